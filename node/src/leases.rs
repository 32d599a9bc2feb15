//! Session deadlines, in the leader's memory and nowhere else.
//!
//! A keep-alive moves a deadline here and costs the log nothing. A new leader knows no deadlines, so it gives every
//! session a full time to live: a failover may prolong a lease, never shorten it. Expiry itself is a command.
//!
//! Invariant: deadlines belong to one term of leadership; the first thing that happens in another discards them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use quorate_proto::v1::Session;
use tokio::sync::Notify;

#[derive(Debug, Clone, Copy)]
struct Deadline {
    at: Instant,
    ttl: Duration,
    epoch: u64,
    /// Its expiry was proposed: nobody may be told that it lives on.
    ending: bool,
}

/// What a keep-alive finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kept {
    /// Good for so long from now.
    For(Duration),
    /// Its end is on the way; how that comes out is not known yet.
    Ending,
    /// Not in this table.
    Unknown,
}

#[derive(Default)]
struct Table {
    /// The term these deadlines belong to; none while this node does not lead.
    term: Option<u64>,
    sessions: BTreeMap<String, Deadline>,
    by_time: BTreeSet<(Instant, String)>,
}

/// A session whose deadline has passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lapsed {
    pub(crate) session_id: String,
    pub(crate) epoch: u64,
}

/// The deadlines of one leader.
#[derive(Default)]
pub(crate) struct Leases {
    table: Mutex<Table>,
    changed: Notify,
}

impl Leases {
    /// Takes office in `term`: every live session gets a full time to live from `now`.
    pub(crate) fn lead<'a>(&self, term: u64, sessions: impl Iterator<Item = &'a Session>, now: Instant) {
        let mut table = self.table.lock();
        *table = Table { term: Some(term), ..Table::default() };
        for session in sessions {
            table.set(&session.id, session.epoch, Duration::from_millis(session.ttl_ms), now);
        }
        self.changed.notify_one();
    }

    /// Leaves office: forgets everything.
    pub(crate) fn follow(&self) {
        *self.table.lock() = Table::default();
        self.changed.notify_one();
    }

    /// A session was opened or resumed.
    pub(crate) fn opened(&self, session_id: &str, epoch: u64, ttl_ms: u64, now: Instant) {
        let mut table = self.table.lock();
        if table.term.is_some() {
            table.set(session_id, epoch, Duration::from_millis(ttl_ms), now);
            self.changed.notify_one();
        }
    }

    /// A session ended.
    pub(crate) fn ended(&self, session_id: &str) {
        self.table.lock().remove(session_id);
    }

    /// Moves the deadline to `now` + TTL.
    pub(crate) fn keep_alive(&self, session_id: &str, now: Instant) -> Kept {
        let mut table = self.table.lock();
        match table.sessions.get(session_id).copied() {
            None => Kept::Unknown,
            Some(Deadline { ending: true, .. }) => Kept::Ending,
            Some(Deadline { ttl, epoch, .. }) => {
                table.set(session_id, epoch, ttl, now);
                Kept::For(ttl)
            }
        }
    }

    /// The expiry of a session certainly did not happen: it may be kept alive again until the next one is proposed.
    pub(crate) fn not_ended(&self, session_id: &str) {
        if let Some(deadline) = self.table.lock().sessions.get_mut(session_id) {
            deadline.ending = false;
        }
    }

    /// The sessions whose deadline has passed at `now`, at most `limit`, and the term to propose their end in. They stay
    /// known until the expiry is applied, with a little time before they are named again.
    pub(crate) fn lapsed(&self, now: Instant, limit: usize) -> (Option<u64>, Vec<Lapsed>) {
        let mut table = self.table.lock();
        let due: Vec<String> =
            table.by_time.iter().take_while(|(at, _)| *at <= now).take(limit).map(|(_, id)| id.clone()).collect();
        let mut lapsed = Vec::with_capacity(due.len());
        for id in due {
            if let Some(deadline) = table.sessions.get(&id).copied() {
                lapsed.push(Lapsed { session_id: id.clone(), epoch: deadline.epoch });
                table.move_to(&id, Deadline { ending: true, ..deadline }, now + Duration::from_secs(1));
            }
        }
        (table.term, lapsed)
    }

    /// Waits until the next deadline, or until the deadlines change.
    pub(crate) async fn next_deadline(&self) {
        let next = self.table.lock().by_time.first().map(|(at, _)| *at);
        match next {
            Some(at) => {
                tokio::select! {
                    () = tokio::time::sleep_until(at.into()) => {}
                    () = self.changed.notified() => {}
                }
            }
            None => self.changed.notified().await,
        }
    }
}

impl Table {
    fn set(&mut self, id: &str, epoch: u64, ttl: Duration, now: Instant) {
        self.move_to(id, Deadline { at: now, ttl, epoch, ending: false }, now + ttl);
    }

    fn move_to(&mut self, id: &str, deadline: Deadline, at: Instant) {
        self.remove(id);
        self.sessions.insert(id.to_owned(), Deadline { at, ..deadline });
        self.by_time.insert((at, id.to_owned()));
    }

    fn remove(&mut self, id: &str) {
        if let Some(old) = self.sessions.remove(id) {
            self.by_time.remove(&(old.at, id.to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(id: &str, ttl_ms: u64) -> Session {
        Session { id: id.to_owned(), epoch: 7, ttl_ms, ..Session::default() }
    }

    fn ids(leases: &Leases, now: Instant) -> Vec<String> {
        leases.lapsed(now, 100).1.into_iter().map(|lapsed| lapsed.session_id).collect()
    }

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn alive_with_a_beat_at_four_minutes_gone_six_minutes_after_it() {
        let (leases, start) = (Leases::default(), Instant::now());
        leases.lead(1, [session("s", 300_000)].iter(), start);
        assert_eq!(leases.keep_alive("s", start + 4 * MINUTE), Kept::For(5 * MINUTE));
        assert!(ids(&leases, start + 8 * MINUTE).is_empty());
        assert_eq!(ids(&leases, start + 10 * MINUTE), ["s"]);
    }

    #[test]
    fn a_new_leader_gives_every_session_a_full_ttl() {
        let (leases, start) = (Leases::default(), Instant::now());
        leases.lead(1, [session("s", 1_000)].iter(), start);
        leases.lead(2, [session("s", 1_000)].iter(), start + Duration::from_millis(900));
        assert!(ids(&leases, start + Duration::from_millis(1_800)).is_empty());
        assert_eq!(leases.lapsed(start + Duration::from_millis(1_900), 9).0, Some(2));
    }

    #[test]
    fn a_follower_expires_nobody_and_keeps_nobody_alive() {
        let (leases, start) = (Leases::default(), Instant::now());
        leases.lead(1, [session("s", 1_000)].iter(), start);
        leases.follow();
        leases.opened("t", 9, 1_000, start);
        assert_eq!(leases.keep_alive("s", start), Kept::Unknown);
        assert!(ids(&leases, start + MINUTE).is_empty());
    }

    #[test]
    fn a_lapsed_session_is_named_again_only_after_a_while() {
        let (leases, start) = (Leases::default(), Instant::now());
        leases.lead(1, [session("s", 1_000)].iter(), start);
        let late = start + Duration::from_secs(2);
        assert_eq!(ids(&leases, late), ["s"]);
        assert!(ids(&leases, late).is_empty());
        assert_eq!(leases.keep_alive("s", late), Kept::Ending, "its expiry is on the way");
        leases.not_ended("s");
        assert_eq!(leases.keep_alive("s", late), Kept::For(Duration::from_secs(1)));
        leases.ended("s");
        assert!(ids(&leases, late + MINUTE).is_empty());
    }
}
