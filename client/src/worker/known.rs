//! What runs under one session, and what ran last.
//!
//! A standing order begins with the attempts that the agent holds. Most of them run already; some may have ended while
//! the list was under way. Only what was never here is new.

use std::collections::{BTreeMap, VecDeque};

use quorate_proto::v1::Task;
use tokio::sync::watch;

use super::stop::{Stop, Told};

/// How many ended attempts are remembered at least.
const SHORTEST_MEMORY: usize = 64;

/// One grant of one task: its id and token.
pub(super) type Attempt = (String, u64);

pub(super) fn attempt_of(task: &Task) -> Attempt {
    (task.id.clone(), task.claim.as_ref().map_or(0, |claim| claim.token))
}

/// The attempts of one session.
pub(super) struct Known {
    running: BTreeMap<Attempt, watch::Sender<Told>>,
    /// The last that ended. A list names only what was held when it was made: at most the agent's capacity.
    ended: VecDeque<Attempt>,
    memory: usize,
}

impl Known {
    pub(super) fn new(capacity: u32) -> Self {
        let memory = (capacity as usize).max(SHORTEST_MEMORY);
        Known { running: BTreeMap::new(), ended: VecDeque::new(), memory }
    }

    /// Where a new attempt hears of its end; `None` if it is not new.
    pub(super) fn admit(&mut self, attempt: Attempt) -> Option<watch::Receiver<Told>> {
        if self.running.contains_key(&attempt) || self.ended.contains(&attempt) {
            return None;
        }
        let (tell, told) = watch::channel(None);
        self.running.insert(attempt, tell);
        Some(told)
    }

    /// It runs no more.
    pub(super) fn end(&mut self, attempt: Attempt) {
        self.running.remove(&attempt);
        self.ended.push_back(attempt);
        if self.ended.len() > self.memory {
            self.ended.pop_front();
        }
    }

    /// Tells a running attempt to stop. Of several words the earliest end counts.
    pub(super) fn stop(&self, attempt: &Attempt, stop: Stop) {
        if let Some(tell) = self.running.get(attempt) {
            tell.send_if_modified(|told| {
                let sooner = told.as_ref().is_none_or(|earlier| stop.fenced_at < earlier.fenced_at);
                if sooner {
                    *told = Some(stop);
                }
                sooner
            });
        }
    }

    /// Tells all of them: nothing here counts any longer.
    pub(super) fn stop_all(&self, stop: &Stop) {
        self.running.keys().for_each(|attempt| self.stop(attempt, stop.clone()));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn attempt(token: u64) -> Attempt {
        ("t".to_owned(), token)
    }

    #[test]
    fn what_runs_or_ran_is_not_new() {
        let mut known = Known::new(1);
        let _told = known.admit(attempt(5)).unwrap();
        assert!(known.admit(attempt(5)).is_none());
        known.end(attempt(5));
        assert!(known.admit(attempt(5)).is_none(), "sent before its finish was taken");
        assert!(known.admit(attempt(6)).is_some(), "granted again");
    }

    #[test]
    fn only_so_much_is_remembered() {
        let mut known = Known::new(100);
        for token in 0..200 {
            let _told = known.admit(attempt(token)).unwrap();
            known.end(attempt(token));
        }
        assert_eq!(known.ended.len(), 100);
        assert!(known.admit(attempt(100)).is_none() && known.running.is_empty());
    }

    #[tokio::test]
    async fn the_earliest_end_counts() {
        let mut known = Known::new(1);
        let told = known.admit(attempt(5)).unwrap();
        known.stop(&attempt(6), Stop::within(Duration::ZERO, "another's"));
        assert!(told.borrow().is_none());
        known.stop(&attempt(5), Stop::within(Duration::from_secs(10), "first"));
        known.stop(&attempt(5), Stop::within(Duration::from_secs(20), "later"));
        assert_eq!(told.borrow().as_ref().map(|stop| stop.reason.clone()).as_deref(), Some("first"));
        known.stop_all(&Stop::within(Duration::ZERO, "all"));
        assert_eq!(told.borrow().as_ref().map(|stop| stop.reason.clone()).as_deref(), Some("all"));
    }
}
