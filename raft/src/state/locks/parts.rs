//! Who takes part in which lock: the index that a session's end, an attempt's end and the search for circles ask.
//!
//! Only what differs between a lock before and after a change is touched: a long line costs no index work but for those
//! that come and go.

use std::collections::BTreeSet;

use quorate_proto::v1::Lock;

use super::line::{Owner, holds_as, waits_as};

/// Who holds and who waits.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Parts {
    /// Session, owner, lock.
    holding: BTreeSet<(String, String, String)>,
    waiting: BTreeSet<(String, String, String)>,
    /// Those that end with an attempt: task, token, lock, session, owner.
    bound: BTreeSet<(String, u64, String, String, String)>,
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
            side.remove(&gone.as_owner(name));
            if let Some(bound) = gone.as_bound(name) {
                self.bound.remove(&bound);
            }
        }
        for new in is.difference(&was) {
            let side = if new.waits { &mut self.waiting } else { &mut self.holding };
            side.insert(new.as_owner(name));
            self.bound.extend(new.as_bound(name));
        }
    }

    /// The locks that the session's owners hold or wait for.
    pub(super) fn of_session(&self, session_id: &str) -> BTreeSet<String> {
        let from = (session_id.to_owned(), String::new(), String::new());
        let sides = [&self.holding, &self.waiting].into_iter();
        let of_session =
            sides.flat_map(|side| side.range(from.clone()..).take_while(move |(id, _, _)| id == session_id));
        of_session.map(|(_, _, name)| name.clone()).collect()
    }

    /// The locks that are held or waited for as part of the attempt.
    pub(super) fn of_attempt(&self, task_id: &str, token: u64) -> BTreeSet<String> {
        let from = (task_id.to_owned(), token, String::new(), String::new(), String::new());
        let bound = self.bound.range(from..).take_while(|(id, number, ..)| id == task_id && *number == token);
        bound.map(|(_, _, name, _, _)| name.clone()).collect()
    }

    /// The locks that the owner waits for.
    pub(super) fn awaited_by<'p>(&'p self, (session_id, owner): Owner<'p>) -> impl Iterator<Item = &'p str> {
        let from = (session_id.to_owned(), owner.to_owned(), String::new());
        let waiting = self.waiting.range(from..).take_while(move |(id, name, _)| id == session_id && name == owner);
        waiting.map(|(_, _, name)| name.as_str())
    }
}

impl Part<'_> {
    fn as_owner(&self, name: &str) -> (String, String, String) {
        (self.owner.0.to_owned(), self.owner.1.to_owned(), name.to_owned())
    }

    /// `None` if it is not part of an attempt.
    fn as_bound(&self, name: &str) -> Option<(String, u64, String, String, String)> {
        let (task_id, token) = self.attempt;
        let (session_id, owner) = self.owner;
        (!task_id.is_empty())
            .then(|| (task_id.to_owned(), token, name.to_owned(), session_id.to_owned(), owner.to_owned()))
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
