//! Breakers: what is broken, so that nobody spends an attempt on it. One for each agent (`agent:<id>`) and for each
//! named dependency, such as `provider:anthropic`.
//!
//! ```text
//!             failures in a row reach the threshold          open_ms later
//!   CLOSED ───────────────────────────────────────▶ OPEN ──────────────────▶ HALF_OPEN ── one probe at a time
//!      ▲                                              ▲                        │   │
//!      │                                              └── failed, said nothing ┘   │
//!      └──────────────────────────────── succeeded ────────────────────────────────┘
//! ```
//!
//! Owns the Breaker rows and the one BreakerDefaults row. At most [`MAX_BREAKERS`] exist, so all of them are in memory,
//! with an index of what is due by time.
//!
//! Invariants:
//! - a probe exists only while HALF_OPEN, and never two at a time;
//! - a breaker that is as good as new has no row: a call that succeeds where nothing ever failed writes nothing;
//! - time moves a breaker the same way whether a tick stores the move or a command looks first: what
//!   time does is a function of the row, its settings and the time alone.
//!
//! `successes_total` therefore counts successes that changed something (a probe's, or the first after a failure), not
//! every call.
//!
//! Deliberately absent: what a task does about it. `tasks` asks for [`Breakers::admission`] and reports what came of
//! its attempts; calls that were under way when the breaker opened say nothing new, and are not counted.

mod checked;
mod circuit;
mod commands;
mod feed;

use std::collections::{BTreeMap, BTreeSet};

use quorate_proto::v1::{Breaker, BreakerSettings, BreakerState};

pub use self::checked::{
    DEFAULT_OPEN_MS, DEFAULT_PROBE_TIMEOUT_MS, DEFAULT_THRESHOLD, MAX_EXCLUDED, MAX_OPEN_MS, MAX_THRESHOLD,
};
pub use self::circuit::MAX_TEXT_BYTES;
pub use self::commands::{acquire, configure, force, report};
pub use self::feed::{Verdict, begin, record, run_due, throttle};
use crate::effect::Effect;
use crate::error::{Fatal, Outcome};
use crate::state::{Ctx, Out, check_id};
use crate::storage::keys::{Key, Table};
use crate::storage::rows::{self, Rows};

/// The most breakers that are kept.
pub const MAX_BREAKERS: usize = 20_000;

const AGENT_PREFIX: &str = "agent:";

/// The name of an agent's breaker.
pub fn agent_breaker(agent_id: &str) -> String {
    format!("{AGENT_PREFIX}{agent_id}")
}

/// Checks a breaker's name: an id, or an agent's id after `agent:`, however long.
pub fn check_name(name: &str) -> Outcome<()> {
    let id = name.strip_prefix(AGENT_PREFIX).filter(|id| !id.is_empty());
    check_id("name", id.unwrap_or(name))
}

/// Whether a call may be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It may.
    Yes,
    /// It may, as the probe: nobody else until its outcome is known.
    Probe,
    /// It may not.
    No {
        /// When it is worth asking again, at the latest; 0: not by itself.
        retry_at_ms: u64,
    },
}

/// Every breaker, with its indexes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Breakers {
    all: BTreeMap<String, Breaker>,
    /// Of every breaker without settings of its own. Always filled in.
    defaults: BreakerSettings,
    /// OPEN ones by when a probe may pass, HALF_OPEN ones by when their probe has failed.
    timers: BTreeSet<(u64, String)>,
    /// CLOSED ones without settings of their own, by their last change: the first of them makes room for a new one.
    idle: BTreeSet<(u64, String)>,
}

impl Default for Breakers {
    fn default() -> Self {
        Breakers { all: BTreeMap::new(), defaults: checked::built_in(), timers: BTreeSet::new(), idle: BTreeSet::new() }
    }
}

impl Breakers {
    /// Builds every index from the rows.
    pub fn rebuild(rows: &dyn Rows) -> Result<Self, Fatal> {
        let mut breakers = Breakers::default();
        rows::scan_prefix::<Breaker>(rows, &Key::table(Table::Breaker), |_, breaker| {
            breakers.put(breaker);
            Ok(true)
        })?;
        if let Some(defaults) = rows::get(rows, &defaults_key())? {
            breakers.defaults = defaults;
        }
        Ok(breakers)
    }

    /// One breaker, as its row stands.
    pub fn get(&self, name: &str) -> Option<&Breaker> {
        self.all.get(name)
    }

    /// Every breaker, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Breaker> {
        self.all.values()
    }

    /// How many breakers are kept.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Whether nothing is broken or ever was: everything is admitted, and a success has nothing to say.
    pub fn is_quiet(&self) -> bool {
        self.all.is_empty()
    }

    /// The settings of every breaker that has none of its own.
    pub fn defaults(&self) -> &BreakerSettings {
        &self.defaults
    }

    /// The settings that hold for this name, known or not.
    pub fn effective(&self, name: &str) -> BreakerSettings {
        self.settings(name).clone()
    }

    /// Whether a call may be made now.
    pub fn admission(&self, name: &str, now_ms: u64) -> Admission {
        match self.all.get(name) {
            None => Admission::Yes,
            Some(breaker) if circuit::due_ms(breaker).is_none_or(|at_ms| at_ms > now_ms) => circuit::admission(breaker),
            // Its time has come, and no tick has stored that yet.
            Some(_) => circuit::admission(&self.now(name, now_ms)),
        }
    }

    /// When a breaker moves next by itself.
    pub fn next_due_ms(&self) -> Option<u64> {
        self.timers.first().map(|(at_ms, _)| *at_ms)
    }

    fn settings(&self, name: &str) -> &BreakerSettings {
        self.all.get(name).and_then(|breaker| breaker.settings.as_ref()).unwrap_or(&self.defaults)
    }

    /// The breaker as it is at this time; as new if nothing is known of it.
    fn now(&self, name: &str, now_ms: u64) -> Breaker {
        let mut breaker = self.all.get(name).cloned().unwrap_or_else(|| circuit::as_new(name));
        circuit::settle(&mut breaker, self.settings(name), now_ms);
        breaker
    }

    /// Whether this one has a row, or may get one.
    fn has_room_for(&self, name: &str) -> bool {
        self.all.len() < MAX_BREAKERS || !self.idle.is_empty() || self.all.contains_key(name)
    }

    /// Replaces the record and what the indexes say of it.
    fn put(&mut self, breaker: Breaker) {
        self.take_out(&breaker.name);
        if let Some(at_ms) = circuit::due_ms(&breaker) {
            self.timers.insert((at_ms, breaker.name.clone()));
        }
        if circuit::is_idle(&breaker) {
            self.idle.insert((breaker.changed_at_ms, breaker.name.clone()));
        }
        self.all.insert(breaker.name.clone(), breaker);
    }

    fn take_out(&mut self, name: &str) -> Option<Breaker> {
        let breaker = self.all.remove(name)?;
        if let Some(at_ms) = circuit::due_ms(&breaker) {
            self.timers.remove(&(at_ms, name.to_owned()));
        }
        self.idle.remove(&(breaker.changed_at_ms, name.to_owned()));
        Some(breaker)
    }
}

fn key(name: &str) -> Key {
    Key::table(Table::Breaker).text(name)
}

fn defaults_key() -> Key {
    Key::table(Table::BreakerDefaults)
}

/// The one place that writes a breaker's row. What did not change, or is as good as new, is not written; neither is a
/// new one for which there is no room.
fn store(breakers: &mut Breakers, out: &mut Out<'_, '_>, ctx: &Ctx, mut breaker: Breaker) {
    let told = match breakers.get(&breaker.name) {
        Some(before) if *before == breaker => return,
        // A probe that is given up moves no state, but lets the next one in.
        Some(before) => before.state != breaker.state || (before.probe.is_some() && breaker.probe.is_none()),
        None if breaker == circuit::as_new(&breaker.name) => return,
        None => breaker.state() != BreakerState::Closed,
    };
    if !make_room(breakers, out, &breaker.name) {
        return;
    }
    breaker.changed_at_ms = ctx.now_ms;
    out.txn.put(&key(&breaker.name), &breaker);
    if told {
        out.effects.push(changed(&breaker.name, breaker.state(), ctx));
    }
    breakers.put(breaker);
}

/// Room for one more, at the cost of the idle one that has not changed for longest. Agents come and go under new names:
/// what the gone ones left behind must not keep the new ones from having a breaker.
fn make_room(breakers: &mut Breakers, out: &mut Out<'_, '_>, name: &str) -> bool {
    if breakers.len() < MAX_BREAKERS || breakers.all.contains_key(name) {
        return true;
    }
    let Some((_, oldest)) = breakers.idle.first().cloned() else { return false };
    breakers.take_out(&oldest);
    out.txn.delete(&key(&oldest));
    true
}

/// Forgets everything said of it, its own settings included.
fn remove(breakers: &mut Breakers, out: &mut Out<'_, '_>, ctx: &Ctx, name: &str) {
    let Some(before) = breakers.take_out(name) else { return };
    out.txn.delete(&key(name));
    if before.state() != BreakerState::Closed {
        out.effects.push(changed(name, BreakerState::Closed, ctx));
    }
}

fn changed(name: &str, state: BreakerState, ctx: &Ctx) -> Effect {
    Effect::BreakerChanged { name: name.to_owned(), state, rev: ctx.rev }
}
