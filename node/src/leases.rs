//! Session deadlines, in the leader's memory and nowhere else.
//!
//! A keep-alive moves a deadline here and costs the log nothing. A new leader knows no deadlines, so it gives every
//! session a full time to live: a failover may prolong a lease, never shorten it. Expiry itself is a command.
//!
//! Invariant: deadlines belong to one term of leadership; the first thing that happens in another discards them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use quorate_proto::v1::Session;
use quorate_raft::faults::{Bug, planted};
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
    sessions: BTreeMap<Key, Deadline>,
    by_time: BTreeSet<(Instant, Key)>,
}

/// A session whose deadline has passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lapsed {
    pub(crate) key: Key,
    pub(crate) epoch: u64,
}

/// A session and the namespace it is in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) namespace: Arc<str>,
    pub(crate) session_id: String,
}

impl Key {
    pub(crate) fn new(namespace: &Arc<str>, session_id: &str) -> Self {
        Key { namespace: namespace.clone(), session_id: session_id.to_owned() }
    }
}

/// The time by which leases end: no clock that anybody can set.
pub(crate) fn now() -> Instant {
    if planted(Bug::LeaseByWallClock) {
        static STARTED: LazyLock<(Instant, SystemTime)> = LazyLock::new(|| (Instant::now(), SystemTime::now()));
        return STARTED.0 + STARTED.1.elapsed().unwrap_or_default();
    }
    Instant::now()
}

/// The deadlines of one leader.
#[derive(Default)]
pub(crate) struct Leases {
    table: Mutex<Table>,
    changed: Notify,
}

impl Leases {
    /// Takes office in `term`: every live session gets a full time to live from `now`.
    pub(crate) fn lead<'a>(
        &self,
        term: u64,
        sessions: impl Iterator<Item = (&'a Arc<str>, &'a Session)>,
        now: Instant,
    ) {
        let mut table = self.table.lock();
        *table = Table { term: Some(term), ..Table::default() };
        for (namespace, session) in sessions {
            let ttl_ms = if planted(Bug::LeaseShortened) { session.ttl_ms / 10 } else { session.ttl_ms };
            table.set(Key::new(namespace, &session.id), session.epoch, Duration::from_millis(ttl_ms), now);
        }
        self.changed.notify_one();
    }

    /// Leaves office: forgets everything.
    pub(crate) fn follow(&self) {
        *self.table.lock() = Table::default();
        self.changed.notify_one();
    }

    /// A session was opened or resumed.
    pub(crate) fn opened(&self, key: Key, epoch: u64, ttl_ms: u64, now: Instant) {
        let mut table = self.table.lock();
        if table.term.is_some() {
            table.set(key, epoch, Duration::from_millis(ttl_ms), now);
            self.changed.notify_one();
        }
    }

    /// A session ended, as the state says in its order: an opening that comes later is told later.
    pub(crate) fn ended(&self, key: &Key) {
        self.table.lock().remove(key);
    }

    /// The session of that epoch has ended. Whoever knows it from an answer may be late: one that was opened since under
    /// the same id keeps its deadline.
    pub(crate) fn ended_at(&self, key: &Key, epoch: u64) {
        let mut table = self.table.lock();
        if table.sessions.get(key).is_some_and(|deadline| deadline.epoch == epoch) {
            table.remove(key);
        }
    }

    /// Moves the deadline to `now` + TTL.
    pub(crate) fn keep_alive(&self, key: &Key, now: Instant) -> Kept {
        let mut table = self.table.lock();
        match table.sessions.get(key).copied() {
            None => Kept::Unknown,
            Some(Deadline { ending: true, .. }) => Kept::Ending,
            Some(Deadline { ttl, epoch, .. }) => {
                table.set(key.clone(), epoch, ttl, now);
                Kept::For(ttl)
            }
        }
    }

    /// The expiry of the session of that epoch certainly did not happen: it may be kept alive again until the next one is
    /// proposed.
    pub(crate) fn not_ended(&self, key: &Key, epoch: u64) {
        let mut table = self.table.lock();
        if let Some(deadline) = table.sessions.get_mut(key).filter(|deadline| deadline.epoch == epoch) {
            deadline.ending = false;
        }
    }

    /// The sessions whose deadline has passed at `now`, at most `limit`, and the term to propose their end in. They stay
    /// known until the expiry is applied, with a little time before they are named again.
    pub(crate) fn lapsed(&self, now: Instant, limit: usize) -> (Option<u64>, Vec<Lapsed>) {
        let mut table = self.table.lock();
        let due: Vec<Key> =
            table.by_time.iter().take_while(|(at, _)| *at <= now).take(limit).map(|(_, key)| key.clone()).collect();
        let mut lapsed = Vec::with_capacity(due.len());
        for key in due {
            if let Some(deadline) = table.sessions.get(&key).copied() {
                lapsed.push(Lapsed { key: key.clone(), epoch: deadline.epoch });
                table.move_to(key, Deadline { ending: true, ..deadline }, now + Duration::from_secs(1));
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
    fn set(&mut self, key: Key, epoch: u64, ttl: Duration, now: Instant) {
        self.move_to(key, Deadline { at: now, ttl, epoch, ending: false }, now + ttl);
    }

    fn move_to(&mut self, key: Key, deadline: Deadline, at: Instant) {
        self.remove(&key);
        self.by_time.insert((at, key.clone()));
        self.sessions.insert(key, Deadline { at, ..deadline });
    }

    fn remove(&mut self, key: &Key) {
        if let Some((key, old)) = self.sessions.remove_entry(key) {
            self.by_time.remove(&(old.at, key));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(id: &str, ttl_ms: u64) -> Session {
        Session { id: id.to_owned(), epoch: 7, ttl_ms, ..Session::default() }
    }

    fn key(id: &str) -> Key {
        Key::new(&"default".into(), id)
    }

    fn lead(leases: &Leases, term: u64, ttl_ms: u64, now: Instant) {
        leases.lead(term, [(&"default".into(), &session("s", ttl_ms))].into_iter(), now);
    }

    fn ids(leases: &Leases, now: Instant) -> Vec<String> {
        leases.lapsed(now, 100).1.into_iter().map(|lapsed| lapsed.key.session_id).collect()
    }

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn alive_with_a_beat_at_four_minutes_gone_six_minutes_after_it() {
        let (leases, start) = (Leases::default(), Instant::now());
        lead(&leases, 1, 300_000, start);
        assert_eq!(leases.keep_alive(&key("s"), start + 4 * MINUTE), Kept::For(5 * MINUTE));
        assert!(ids(&leases, start + 8 * MINUTE).is_empty());
        assert_eq!(ids(&leases, start + 10 * MINUTE), ["s"]);
    }

    #[test]
    fn a_new_leader_gives_every_session_a_full_ttl() {
        let (leases, start) = (Leases::default(), Instant::now());
        lead(&leases, 1, 1_000, start);
        lead(&leases, 2, 1_000, start + Duration::from_millis(900));
        assert!(ids(&leases, start + Duration::from_millis(1_800)).is_empty());
        assert_eq!(leases.lapsed(start + Duration::from_millis(1_900), 9).0, Some(2));
    }

    #[test]
    fn a_follower_expires_nobody_and_keeps_nobody_alive() {
        let (leases, start) = (Leases::default(), Instant::now());
        lead(&leases, 1, 1_000, start);
        leases.follow();
        leases.opened(key("t"), 9, 1_000, start);
        assert_eq!(leases.keep_alive(&key("s"), start), Kept::Unknown);
        assert!(ids(&leases, start + MINUTE).is_empty());
    }

    #[test]
    fn a_lapsed_session_is_named_again_only_after_a_while() {
        let (leases, start) = (Leases::default(), Instant::now());
        lead(&leases, 1, 1_000, start);
        let late = start + Duration::from_secs(2);
        assert_eq!(ids(&leases, late), ["s"]);
        assert!(ids(&leases, late).is_empty());
        assert_eq!(leases.keep_alive(&key("s"), late), Kept::Ending, "its expiry is on the way");
        leases.not_ended(&key("s"), 7);
        assert_eq!(leases.keep_alive(&key("s"), late), Kept::For(Duration::from_secs(1)));
        leases.ended(&key("s"));
        assert!(ids(&leases, late + MINUTE).is_empty());
    }

    #[test]
    fn what_became_of_an_expiry_does_not_concern_a_later_session_of_that_id() {
        let (leases, start) = (Leases::default(), Instant::now());
        lead(&leases, 1, 1_000, start);
        let late = start + Duration::from_secs(2);
        assert_eq!(leases.lapsed(late, 9).1, [Lapsed { key: key("s"), epoch: 7 }]);
        leases.opened(key("s"), 8, 60_000, late);
        leases.ended_at(&key("s"), 7);
        assert_eq!(leases.keep_alive(&key("s"), late), Kept::For(MINUTE));
        assert_eq!(leases.lapsed(late + 2 * MINUTE, 9).1, [Lapsed { key: key("s"), epoch: 8 }]);
        leases.not_ended(&key("s"), 7);
        assert_eq!(leases.keep_alive(&key("s"), late), Kept::Ending, "its own expiry is on the way");
        leases.ended_at(&key("s"), 8);
        assert_eq!(leases.keep_alive(&key("s"), late), Kept::Unknown);
    }

    #[test]
    fn the_same_id_in_two_namespaces_is_two_sessions() {
        let (leases, start) = (Leases::default(), Instant::now());
        lead(&leases, 1, 1_000, start);
        let other = Key::new(&"other".into(), "s");
        assert_eq!(leases.keep_alive(&other, start), Kept::Unknown);
        leases.opened(other.clone(), 9, 60_000, start);
        assert_eq!(leases.lapsed(start + Duration::from_secs(2), 9).1, [Lapsed { key: key("s"), epoch: 7 }]);
        assert_eq!(leases.keep_alive(&other, start), Kept::For(MINUTE));
    }
}
