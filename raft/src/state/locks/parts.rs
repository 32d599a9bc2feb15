//! Who takes part in which lock: the index that the bounds, the search for circles, and the end of a session or of an
//! attempt ask.
//!
//! Only what differs between a lock before and after a change is touched: a long line costs no index work but for those
//! that come and go.

use std::collections::{BTreeMap, BTreeSet};

use quorate_proto::v1::Lock;

use super::line::{Owner, holds_as, waits_as};
use crate::state::remove_from;

/// Owner and lock, by session.
type Side = BTreeMap<String, BTreeSet<(String, String)>>;

/// A task and the token of its attempt.
type Attempt = (String, u64);

/// A lock, and the session and owner of one who holds it or waits.
type Bound = (String, String, String);

/// Who holds and who waits.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Parts {
    holding: Side,
    waiting: Side,
    /// Those that end with an attempt: lock, session and owner, by task and token.
    bound: BTreeMap<Attempt, BTreeSet<Bound>>,
    /// How many hold and wait.
    len: usize,
}

/// One holder or waiter.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Part<'l> {
    owner: Owner<'l>,
    waits: bool,
    attempt: (&'l str, u64),
}

impl Parts {
    /// Takes in what a change of a lock changes.
    pub(super) fn shift(&mut self, name: &str, before: Option<&Lock>, after: Option<&Lock>) {
        let (was, is) = (parts(before), parts(after));
        for gone in was.difference(&is) {
            let side = if gone.waits { &mut self.waiting } else { &mut self.holding };
            remove_from(side, gone.owner.0, &gone.as_owner(name));
            if let Some((attempt, bound)) = gone.as_bound(name) {
                remove_from(&mut self.bound, &attempt, &bound);
            }
        }
        for new in is.difference(&was) {
            let side = if new.waits { &mut self.waiting } else { &mut self.holding };
            side.entry(new.owner.0.to_owned()).or_default().insert(new.as_owner(name));
            if let Some((attempt, bound)) = new.as_bound(name) {
                self.bound.entry(attempt).or_default().insert(bound);
            }
        }
        self.len = (self.len + is.len()).saturating_sub(was.len());
    }

    /// How many hold and wait, in all locks together.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// How many of them are owners of the session.
    pub(super) fn count_of_session(&self, session_id: &str) -> usize {
        let sides = [&self.holding, &self.waiting].into_iter();
        sides.filter_map(|side| side.get(session_id)).map(BTreeSet::len).sum()
    }

    /// How many of them are part of the attempt.
    pub(super) fn count_of_attempt(&self, task_id: &str, token: u64) -> usize {
        self.bound.get(&(task_id.to_owned(), token)).map_or(0, BTreeSet::len)
    }

    /// The locks that the session's owners hold or wait for.
    pub(super) fn of_session(&self, session_id: &str) -> BTreeSet<String> {
        let sides = [&self.holding, &self.waiting].into_iter();
        sides.filter_map(|side| side.get(session_id)).flatten().map(|(_, name)| name.clone()).collect()
    }

    /// The locks that are held or waited for as part of the attempt.
    pub(super) fn of_attempt(&self, task_id: &str, token: u64) -> BTreeSet<String> {
        let bound = self.bound.get(&(task_id.to_owned(), token));
        bound.into_iter().flatten().map(|(name, _, _)| name.clone()).collect()
    }

    /// The locks that the owner waits for.
    pub(super) fn awaited_by<'p>(&'p self, (session_id, owner): Owner<'p>) -> impl Iterator<Item = &'p str> {
        let from = (owner.to_owned(), String::new());
        let waiting = self.waiting.get(session_id).map(|side| side.range(from..));
        let waiting = waiting.into_iter().flatten().take_while(move |(name, _)| name == owner);
        waiting.map(|(_, name)| name.as_str())
    }
}

impl Part<'_> {
    fn as_owner(&self, name: &str) -> (String, String) {
        (self.owner.1.to_owned(), name.to_owned())
    }

    /// `None` if it is not part of an attempt.
    fn as_bound(&self, name: &str) -> Option<(Attempt, Bound)> {
        let (task_id, token) = self.attempt;
        let (session_id, owner) = self.owner;
        let bound = (name.to_owned(), session_id.to_owned(), owner.to_owned());
        (!task_id.is_empty()).then(|| ((task_id.to_owned(), token), bound))
    }
}

fn parts(lock: Option<&Lock>) -> BTreeSet<Part<'_>> {
    let Some(lock) = lock else { return BTreeSet::new() };
    let holders = lock.holders.iter().map(|holder| {
        let attempt = (holder.task_id.as_str(), holder.task_token);
        Part { owner: holds_as(holder), waits: false, attempt }
    });
    let waiters = lock.waiters.iter().map(|waiter| {
        let attempt = (waiter.task_id.as_str(), waiter.task_token);
        Part { owner: waits_as(waiter), waits: true, attempt }
    });
    holders.chain(waiters).collect()
}
