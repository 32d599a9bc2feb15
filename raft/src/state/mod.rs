//! The rooms: one module a domain, each with its rows, its in-memory indexes and its commands.
//!
//! A room may touch its own rows through [`Txn`], its own indexes, [`Ctx`], its messages, and the public functions of the
//! rooms below it. There is no cycle:
//!
//! ```text
//! sessions ──▶ tasks ──▶ agents, breakers, dispatch, retries, progress, locks        namespaces ──▶ cluster    backups
//! fence ──▶ tasks, locks
//! schedules ──▶ tasks    breakers ──▶ agents    sessions ──▶ agents, locks, kv, bus
//! transact ──▶ kv, bus ──▶ blobs                news ──▶ bus
//! ```
//!
//! All of it exists once in each namespace ([`namespaces`]); a room never sees more than its own. `cluster` and `backups`
//! are the cluster's: their rows are in no namespace.
//!
//! Deliberately absent: clocks, randomness, threads, `await`, configuration, floats, hash maps, RocksDB. Time and chance
//! arrive in [`Ctx`], drawn by the proposer. The lint table of this crate denies the rest.
//!
//! Three rules that every command keeps:
//! - **Check first, then write.** A rejection leaves no write behind; `apply` stops the node if one does.
//! - **Bounded work.** Whatever a command scans has a constant limit.
//! - **Indexes are derived.** After any sequence of commands they equal those rebuilt from a scan of the rows.

pub mod agents;
pub mod backups;
pub mod blobs;
pub mod breakers;
pub mod bus;
pub mod cluster;
pub mod dispatch;
pub mod fence;
pub mod kv;
pub mod locks;
pub mod namespaces;
pub(crate) mod news;
pub mod progress;
pub mod retries;
pub mod schedules;
pub mod sessions;
pub mod tasks;
pub mod transact;

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};

use quorate_proto::v1::Quotas;

use crate::effect::Effect;
use crate::error::{Fatal, Outcome, exhausted, invalid};
use crate::storage::rows::Rows;
use crate::storage::txn::Txn;

/// What a command may know besides the state.
#[derive(Debug, Clone, Copy)]
pub struct Ctx {
    /// The cluster's time in milliseconds since 1970: never goes back.
    pub now_ms: u64,
    /// The ordinal of this command in the replicated history. Unique; a grant uses it as its fencing token.
    pub rev: u64,
    /// Chance, drawn by the proposer, different for each command.
    pub entropy: u64,
}

/// What a command may write: the open batch, and hints for this node.
pub struct Out<'t, 'a> {
    /// The open batch.
    pub txn: &'t mut Txn<'a>,
    /// Hints for this node; dropped if the command is rejected.
    pub effects: &'t mut Vec<Effect>,
}

/// The in-memory side of every room of one namespace. The rows are the truth; this is rebuilt from them at open.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Rooms {
    /// The one lease.
    pub sessions: sessions::Sessions,
    /// Who exists.
    pub agents: agents::Agents,
    /// Who does what.
    pub tasks: tasks::Tasks,
    /// What is broken.
    pub breakers: breakers::Breakers,
    /// Who gets what.
    pub dispatch: dispatch::Dispatch,
    /// How often.
    pub retries: retries::Retries,
    /// What is due.
    pub schedules: schedules::Schedules,
    /// How far it is.
    pub progress: progress::Progress,
    /// Who holds what.
    pub locks: locks::Locks,
    /// What was said.
    pub bus: bus::Bus,
    /// What is kept.
    pub kv: kv::Kv,
    /// How much of it all there may be: the namespace's, which sets it.
    pub quotas: Quotas,
}

impl Rooms {
    /// Builds every index from the rows.
    pub fn rebuild(rows: &dyn Rows) -> Result<Self, Fatal> {
        Ok(Rooms {
            sessions: sessions::Sessions::rebuild(rows)?,
            agents: agents::Agents::rebuild(rows)?,
            tasks: tasks::Tasks::rebuild(rows)?,
            breakers: breakers::Breakers::rebuild(rows)?,
            dispatch: dispatch::Dispatch::rebuild(rows)?,
            retries: retries::Retries::rebuild(rows)?,
            schedules: schedules::Schedules::rebuild(rows)?,
            progress: progress::Progress::rebuild(rows)?,
            locks: locks::Locks::rebuild(rows)?,
            bus: bus::Bus::rebuild(rows)?,
            kv: kv::Kv::rebuild(rows)?,
            quotas: Quotas::default(),
        })
    }

    /// When something is due next, in milliseconds since 1970. Schedules are not among it: they need a calendar.
    pub fn next_due_ms(&self) -> Option<u64> {
        let due = [
            self.agents.next_due_ms(),
            self.tasks.next_due_ms(),
            self.breakers.next_due_ms(),
            self.locks.next_due_ms(),
            self.bus.next_due_ms(),
            self.kv.next_due_ms(),
        ];
        due.into_iter().flatten().min()
    }

    /// Whether more can be assigned than the last command did.
    pub fn has_work_left(&self) -> bool {
        (self.agents.has_standing() && self.tasks.has_ready()) || self.bus.has_work_left()
    }

    /// What is in use, for a person: the first kind of which there is something.
    pub(crate) fn first_in_use(&self) -> Option<&'static str> {
        let in_use = [
            ("sessions", !self.sessions.is_empty()),
            ("agents", !self.agents.is_empty()),
            ("live tasks", self.tasks.live() > 0),
            ("schedules", !self.schedules.is_empty()),
            ("locks", !self.locks.is_empty()),
            ("scope leases", self.locks.scopes().next().is_some()),
            ("subscriptions", !self.bus.is_empty()),
            ("documents", self.kv.totals().0 > 0),
        ];
        in_use.into_iter().find(|(_, some)| *some).map(|(what, _)| what)
    }
}

/// The longest id or name that is accepted, in bytes.
pub const MAX_ID_BYTES: usize = 128;

/// Checks an id that a caller chose: 1 to 128 bytes of letters, digits and `. _ - : / @`.
pub fn check_id(field: &str, id: &str) -> Outcome<()> {
    let fits = (1..=MAX_ID_BYTES).contains(&id.len())
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-:/@".contains(&b));
    if fits {
        return Ok(());
    }
    Err(invalid(field, format!("{field} must be 1 to {MAX_ID_BYTES} letters, digits or . _ - : / @; got {id:?}")))
}

/// Refuses what would take a namespace over one of its quotas; 0 is no quota.
pub(crate) fn check_quota(quota: &str, most: u64, used: u64, more: u64) -> Outcome<()> {
    if most == 0 || used.saturating_add(more) <= most {
        return Ok(());
    }
    Err(exhausted("", format!("the namespace may have {quota} {most}; it has {used}, and this would add {more}")))
}

/// Removes from a set of the index, and the set with its last member: an index never keeps what a rebuild would not.
pub(crate) fn remove_from<K, Q, V>(index: &mut BTreeMap<K, BTreeSet<V>>, key: &Q, value: &V)
where
    K: Ord + Borrow<Q>,
    Q: Ord + ?Sized,
    V: Ord,
{
    if let Some(values) = index.get_mut(key) {
        values.remove(value);
        if values.is_empty() {
            index.remove(key);
        }
    }
}
