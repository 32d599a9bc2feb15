//! Locks: who holds what. A lock is a name; a scope lease is a set of globs, and conflicts with those that overlap it.
//!
//! ```text
//!   acquire ──▶ free, or shared beside shared ones ────────────────────────────▶ held under a token (its rev)
//!       │                                                                          │
//!       └─────▶ wait_ms > 0: a place at the end of the line ──▶ who is first ──────┘
//!                     │                                          when it gets free
//!                     └── its time is up, withdrawn, session or attempt ended: out of the line
//! ```
//!
//! Owns the Lock and Scope rows. At most [`MAX_LOCKS`] and [`MAX_SCOPES`] exist, so all of them are in memory, with
//! indexes by session, by attempt and by what is due.
//!
//! Invariants:
//! - a lock exists only while somebody holds it: whatever frees it grants it in the same command;
//! - nobody is overtaken: while one waits, who comes later waits behind, even if it could share;
//! - an owner is a name within a session, and takes part in a lock once: it holds it or waits for it;
//! - a session takes part in so much and no more, so does an attempt, and so do all together (`bounds`);
//! - no owners wait for each other in a circle, as far as a bounded search sees;
//! - two leases of different owners overlap only if both are shared.
//!
//! Time ends nothing by itself: a grant is held until a tick, or another command, has ended it. A grant that was late
//! to be extended and that nobody ended may still be extended; a waiter whose time is up is never granted anything.
//!
//! Deliberately absent: the waiting itself. A call that waits is a matter of the node it came to, which learns by
//! [`Effect::LockChanged`] when to look at [`Locks::grant_of`] again.

mod bounds;
mod checked;
mod circle;
mod commands;
mod ends;
mod glob;
mod line;
mod parts;
mod scopes;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use quorate_proto::v1::{Lock, LockHolder, ScopeLease};

pub use self::bounds::{MAX_COMPANY, MAX_SESSION_LOCKS};
pub use self::checked::{DEFAULT_HOLD_MS, MAX_HOLD_MS, MAX_NOTE_BYTES, MAX_TTL_MS, MAX_WAIT_MS, MIN_TTL_MS};
pub use self::commands::{acquire, extend, force_release, release};
pub use self::ends::{attempt_ended, run_due, session_ended};
pub use self::glob::{Glob, begin_apart};
pub use self::scopes::{
    MAX_GLOB_BYTES, MAX_GLOBS, MAX_SCOPES, MAX_SCOPES_PER_REALM, acquire_scope, force_release_scope, release_scope,
};
use crate::effect::Effect;
use crate::error::Fatal;
use crate::state::Out;
use crate::storage::keys::{Key, Table};
use crate::storage::rows::{self, Rows};

/// The most locks that are held at once.
pub const MAX_LOCKS: usize = 100_000;
/// The most owners that wait for one lock.
pub const MAX_WAITERS: usize = 1_024;
/// The most owners that share one lock.
pub const MAX_SHARED_HOLDERS: usize = 1_024;

/// Every lock and every scope lease, with their indexes.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Locks {
    all: BTreeMap<String, Lock>,
    parts: parts::Parts,
    /// Every lock by when time first changes something about it.
    due: BTreeSet<(u64, String)>,
    scopes: scopes::Scopes,
}

// A lock holds no floating-point number, so its equality is total; the generated type just does not say so.
impl Eq for Locks {}

impl Locks {
    /// Builds every index from the rows.
    pub fn rebuild(rows: &dyn Rows) -> Result<Self, Fatal> {
        let mut locks = Locks::default();
        rows::scan_prefix::<Lock>(rows, &Key::table(Table::Lock), |_, lock| {
            locks.put(lock);
            Ok(true)
        })?;
        rows::scan_prefix::<ScopeLease>(rows, &Key::table(Table::Scope), |_, lease| {
            locks.scopes.put(lease);
            Ok(true)
        })?;
        Ok(locks)
    }

    /// One lock; `None` if nobody holds it.
    pub fn get(&self, name: &str) -> Option<&Lock> {
        self.all.get(name)
    }

    /// The locks whose names begin with `prefix` and come after `after`, by name, at most `limit`.
    pub fn list(&self, prefix: &str, after: &str, limit: usize) -> Vec<&Lock> {
        let from = if after < prefix { Bound::Included(prefix) } else { Bound::Excluded(after) };
        (self.all.range::<str, _>((from, Bound::Unbounded)))
            .take_while(|(name, _)| name.starts_with(prefix))
            .take(limit)
            .map(|(_, lock)| lock)
            .collect()
    }

    /// How many locks are held.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether no lock is held.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Whether the lock is held under this token.
    pub fn holds_lock(&self, name: &str, token: u64) -> bool {
        self.get(name).is_some_and(|lock| lock.holders.iter().any(|holder| holder.token == token))
    }

    /// What the owner holds of this lock. An empty owner is the session itself.
    pub fn grant_of(&self, name: &str, session_id: &str, owner: &str) -> Option<&LockHolder> {
        let owner = checked::owner(session_id, owner);
        self.get(name)?.holders.iter().find(|holder| holder.session_id == session_id && holder.owner == owner)
    }

    /// The owner's place in line, from 1. An empty owner is the session itself.
    pub fn position_of(&self, name: &str, session_id: &str, owner: &str) -> Option<u32> {
        let owner = checked::owner(session_id, owner);
        let place = line::place_of(self.get(name)?, (session_id, owner))?;
        Some(line::position(place))
    }

    /// When a grant or a place in line ends next by itself.
    pub fn next_due_ms(&self) -> Option<u64> {
        self.due.first().map(|(at_ms, _)| *at_ms)
    }

    /// Replaces the lock and what the indexes say of it.
    fn put(&mut self, lock: Lock) {
        let before = self.all.remove(&lock.name);
        self.reindex(&lock.name, before.as_ref(), Some(&lock));
        self.all.insert(lock.name.clone(), lock);
    }

    fn take_out(&mut self, name: &str) {
        if let Some(before) = self.all.remove(name) {
            self.reindex(name, Some(&before), None);
        }
    }

    fn reindex(&mut self, name: &str, before: Option<&Lock>, after: Option<&Lock>) {
        self.parts.shift(name, before, after);
        if let Some(at_ms) = before.and_then(line::due_ms) {
            self.due.remove(&(at_ms, name.to_owned()));
        }
        if let Some(at_ms) = after.and_then(line::due_ms) {
            self.due.insert((at_ms, name.to_owned()));
        }
    }
}

/// The one place that writes a lock's row. One that nobody holds any more has none.
fn store(locks: &mut Locks, out: &mut Out<'_, '_>, lock: Lock) {
    let key = Key::table(Table::Lock).text(&lock.name);
    out.effects.push(Effect::LockChanged { name: lock.name.clone() });
    if lock.holders.is_empty() {
        out.txn.delete(&key);
        locks.take_out(&lock.name);
    } else {
        out.txn.put(&key, &lock);
        locks.put(lock);
    }
}
