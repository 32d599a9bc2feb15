//! The time that a leader stamps on entries.
//!
//! A leader counts time by its monotonic clock. Where it begins, when it takes office, is the question: leases, pauses and
//! time limits hang on it, so time must neither stand still nor leap because the wall clocks of two machines differ.
//!
//! - It goes on from where the leader before it was, who told every member each second ([`Clock::heard`]). If its own wall
//!   clock is ahead of that, time runs a tenth faster until it has caught up: no lease ends more than a tenth early.
//! - Nobody has led while this process ran: it begins at the state's time or its wall clock, whichever is later.
//!
//! Deliberately absent: trust in a wall clock that jumps while a node runs; and a way back, for time does not fall.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

/// By what part time runs faster while it catches up.
const CATCH_UP: u64 = 10;

/// A clock that nobody can make leap while it runs.
#[derive(Debug)]
pub(crate) struct Clock {
    /// From where this node counts.
    origin: Mutex<Origin>,
    /// What a leader said the time was, and when.
    heard: Mutex<Option<(u64, Instant)>>,
}

#[derive(Debug, Clone, Copy)]
struct Origin {
    at_ms: u64,
    since: Instant,
    /// How far the wall clock was ahead.
    behind_ms: u64,
}

impl Clock {
    /// Begins at this machine's wall clock.
    pub(crate) fn new() -> Self {
        let origin = Origin { at_ms: wall_ms(), since: Instant::now(), behind_ms: 0 };
        Clock { origin: Mutex::new(origin), heard: Mutex::default() }
    }

    /// Milliseconds since 1970, as this node counts them.
    pub(crate) fn now_ms(&self) -> u64 {
        self.at(Instant::now())
    }

    /// What a leader says the time is; nought says nothing.
    pub(crate) fn heard(&self, leaders_ms: u64, now: Instant) {
        if leaders_ms > 0 {
            *self.heard.lock() = Some((leaders_ms, now));
        }
    }

    /// What a member that does not lead takes the time for. Better than a wall clock, and no better than a leader's word.
    pub(crate) fn heard_of(&self, told_ms: u64, now: Instant) {
        let mut heard = self.heard.lock();
        if heard.is_none() && told_ms > 0 {
            *heard = Some((told_ms, now));
        }
    }

    /// What this node takes the time for, from what a leader said; 0 if it heard none.
    pub(crate) fn told_ms(&self, now: Instant) -> u64 {
        let heard = *self.heard.lock();
        heard.map_or(0, |(told_ms, at)| told_ms.saturating_add(millis(now.saturating_duration_since(at))))
    }

    /// Takes office over a state that stands at `state_ms`.
    pub(crate) fn take_office(&self, state_ms: u64) {
        self.begin(wall_ms(), state_ms, Instant::now());
    }

    fn begin(&self, wall_ms: u64, state_ms: u64, now: Instant) {
        let goes_on = Some(self.told_ms(now)).filter(|told_ms| *told_ms > 0);
        let at_ms = goes_on.unwrap_or(wall_ms).max(state_ms);
        let behind_ms = wall_ms.saturating_sub(at_ms);
        if behind_ms > 0 {
            tracing::warn!("the wall clock is {behind_ms} ms ahead of the cluster's time, which catches up slowly");
        }
        *self.origin.lock() = Origin { at_ms, since: now, behind_ms };
        // Office is taken twice, the second time over a newer state: that must not look at the wall clock again.
        self.heard(at_ms, now);
    }

    fn at(&self, now: Instant) -> u64 {
        let Origin { at_ms, since, behind_ms } = *self.origin.lock();
        let elapsed_ms = millis(now.saturating_duration_since(since));
        at_ms.saturating_add(elapsed_ms).saturating_add((elapsed_ms / CATCH_UP).min(behind_ms))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: u64 = 3_600_000;

    fn after(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    #[test]
    fn whoever_heard_no_leader_begins_at_the_later_of_state_and_wall_clock() {
        let (clock, start) = (Clock::new(), Instant::now());
        clock.begin(1_000, 5_000, start);
        assert_eq!(clock.at(after(start, 2_000)), 7_000, "the wall clock is behind the state");
        let clock = Clock::new();
        clock.begin(9_000, 5_000, start);
        assert_eq!(clock.at(start), 9_000);
    }

    #[test]
    fn a_wall_clock_that_is_ahead_moves_no_time_at_a_failover() {
        let (clock, start) = (Clock::new(), Instant::now());
        clock.heard(10_000, start);
        clock.begin(10_000 + HOUR_MS, 9_500, after(start, 400));
        assert_eq!(clock.at(after(start, 400)), 10_400);
        assert_eq!(clock.at(after(start, 10_400)), 21_400, "ten seconds, and a tenth of them");
        let later = after(start, 400 + 100 * HOUR_MS);
        assert_eq!(clock.at(later), 10_000 + 101 * HOUR_MS, "it has caught up, and goes no further");
    }

    #[test]
    fn a_wall_clock_that_is_behind_does_not_stop_time() {
        let (clock, start) = (Clock::new(), Instant::now());
        clock.heard(HOUR_MS, start);
        clock.begin(1_000, HOUR_MS - 500, after(start, 300));
        assert_eq!(clock.at(after(start, 1_300)), HOUR_MS + 1_300);
    }

    #[test]
    fn who_was_just_started_takes_the_word_of_who_heard_the_last_leader() {
        let (started, follower, start) = (Clock::new(), Clock::new(), Instant::now());
        follower.heard(10_000, start);
        let now = after(start, 700);
        started.heard_of(follower.told_ms(now), now);
        started.heard_of(99_000, now);
        started.begin(10_000 + HOUR_MS, 9_000, now);
        assert_eq!(started.at(now), 10_700, "and not another's, nor the wall clock");
    }

    #[test]
    fn taking_office_twice_is_taking_it_once() {
        let (clock, start) = (Clock::new(), Instant::now());
        clock.begin(5_000, 1_000, start);
        clock.begin(5_000 + HOUR_MS, 5_100, after(start, 200));
        assert_eq!(clock.at(after(start, 200)), 5_200);
        clock.heard(0, after(start, 300));
        clock.begin(5_000 + HOUR_MS, 5_100, after(start, 400));
        assert_eq!(clock.at(after(start, 400)), 5_400, "nought says nothing");
    }
}
