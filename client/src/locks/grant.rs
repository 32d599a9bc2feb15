//! A grant as it was told, and how much of its time is left.
//!
//! The cluster counts by a clock of its own. What an answer brings of that clock was not behind it when the call was
//! *sent*, so whatever the cluster had left by then counts from there: nobody here believes for longer than the cluster.
//! An answer that comes to a resend may have been given before, to an earlier attempt; then it counts from that one.
//!
//! Such caution may leave little of a grant, or nothing, that has hardly begun: its call waited in line. So a grant that
//! took long to be heard of is confirmed before anybody relies on it.

use std::time::Duration;

use quorate_proto::v1::{ExtendLockResponse, LockHolder};
use tokio::time::Instant;

use crate::call::Plan;

/// An extension gets a third of the TTL, but never less than a slow round trip takes.
const SHORTEST_ATTEMPT: Duration = Duration::from_millis(300);

/// What the cluster granted.
#[derive(Debug)]
pub(super) struct Grant {
    pub(super) name: String,
    pub(super) holder: LockHolder,
    /// When the local clock showed what the cluster's showed at `now_ms`, or earlier.
    since: Instant,
    now_ms: u64,
}

impl Grant {
    /// As told at `now_ms` in the answer to a call that was sent at `since` or later.
    pub(super) fn told(name: String, holder: LockHolder, now_ms: u64, since: Instant) -> Self {
        // An answer is never older than the grant that it tells of.
        let now_ms = now_ms.max(holder.acquired_at_ms);
        Grant { name, holder, since, now_ms }
    }

    /// It was extended, by a call that was sent then.
    pub(super) fn extended(&mut self, answer: &ExtendLockResponse, sent: Instant) {
        self.holder.expires_at_ms = answer.expires_at_ms;
        (self.since, self.now_ms) = (sent, answer.now_ms.max(self.now_ms));
    }

    /// Its TTL, if it has one.
    pub(super) fn ttl(&self) -> Option<Duration> {
        (self.holder.ttl_ms > 0).then(|| Duration::from_millis(self.holder.ttl_ms))
    }

    /// When it ends unless it is extended, by the local clock.
    pub(super) fn ends(&self) -> Option<Instant> {
        self.left_at(self.holder.expires_at_ms).and_then(|left| self.since.checked_add(left))
    }

    /// When it ends, extended or not, by the local clock.
    pub(super) fn forced_at(&self) -> Option<Instant> {
        self.left_at(self.holder.forced_at_ms).and_then(|left| self.since.checked_add(left))
    }

    /// So long under way that a third of what was left may have gone by unheard.
    pub(super) fn is_aged(&self) -> bool {
        let ends = [self.holder.expires_at_ms, self.holder.forced_at_ms];
        let left = ends.into_iter().filter_map(|at_ms| self.left_at(at_ms)).min();
        left.is_some_and(|left| self.since.elapsed() >= left / 3)
    }

    /// What was left when it was told, until an end by the cluster's clock; 0 is no end.
    fn left_at(&self, at_ms: u64) -> Option<Duration> {
        (at_ms > 0).then(|| Duration::from_millis(at_ms.saturating_sub(self.now_ms)))
    }
}

/// How a grant with this TTL is extended: given up by then.
pub(super) fn extension(ttl: Duration, until: Instant) -> Plan {
    Plan { attempt_limit: Some((ttl / 3).max(SHORTEST_ATTEMPT)), until: Some(until), ..Plan::SAFE }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Granted at 100 s by the cluster's clock.
    fn told(ttl_ms: u64, max_hold_ms: u64, now_ms: u64) -> Grant {
        let end = |term_ms: u64| if term_ms == 0 { 0 } else { 100_000 + term_ms };
        let holder = LockHolder {
            token: 7,
            acquired_at_ms: 100_000,
            ttl_ms,
            expires_at_ms: end(ttl_ms),
            forced_at_ms: end(max_hold_ms),
            ..LockHolder::default()
        };
        Grant::told("deploy".to_owned(), holder, now_ms, Instant::now())
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_left_counts_from_when_the_call_was_sent() {
        let sent = Instant::now();
        let grant = told(30_000, 300_000, 100_000);
        advance(SECOND).await;
        assert_eq!((grant.ends(), grant.forced_at()), (Some(sent + 30 * SECOND), Some(sent + 300 * SECOND)));
        let unbounded = told(0, 0, 100_000);
        assert_eq!((unbounded.ttl(), unbounded.ends(), unbounded.forced_at()), (None, None, None));
        assert!(!unbounded.is_aged());
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_its_owner_held_before_has_only_the_rest() {
        let grant = told(30_000, 300_000, 120_000);
        assert_eq!(grant.ends(), Some(Instant::now() + 10 * SECOND));
        assert_eq!(grant.forced_at(), Some(Instant::now() + 280 * SECOND));
        let over = told(30_000, 0, 140_000);
        assert!(over.ends() == Some(Instant::now()) && over.is_aged());
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_took_longer_to_be_heard_of_than_it_lasts_is_whole_again_once_it_was_extended() {
        // Asked for, waited for 6 s in line, granted for 5 s.
        let mut grant = told(5_000, 60_000, 100_000);
        advance(6 * SECOND).await;
        assert!(grant.ends().unwrap() < Instant::now() && grant.is_aged());
        let sent = Instant::now();
        let answer = ExtendLockResponse { expires_at_ms: 105_100, now_ms: 100_100, ..ExtendLockResponse::default() };
        grant.extended(&answer, sent);
        assert!(!grant.is_aged());
        assert_eq!(grant.ends(), Some(sent + 5 * SECOND));
        assert_eq!(grant.forced_at(), Some(sent + Duration::from_millis(59_900)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_third_of_the_shortest_term_makes_it_old() {
        let (by_ttl, by_force) = (told(30_000, 300_000, 100_000), told(0, 30_000, 100_000));
        advance(9 * SECOND).await;
        assert!(!by_ttl.is_aged() && !by_force.is_aged());
        advance(SECOND).await;
        assert!(by_ttl.is_aged() && by_force.is_aged());
    }

    #[tokio::test(start_paused = true)]
    async fn an_extension_is_given_up_when_it_would_be_late() {
        let until = Instant::now() + SECOND;
        let short = extension(Duration::from_millis(100), until);
        assert_eq!((short.attempt_limit, short.until), (Some(SHORTEST_ATTEMPT), Some(until)));
        assert_eq!(extension(30 * SECOND, until).attempt_limit, Some(10 * SECOND));
    }
}
