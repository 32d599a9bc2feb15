//! The time that a leader stamps on entries.
//!
//! Wall time is looked at when the node starts and when it takes office; in between time runs by the monotonic clock. A
//! wall clock that jumps under a leader neither ends every running attempt at once nor stops time until it has caught
//! up. A new leader begins at the state's time or its own wall clock, whichever is later.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

/// A clock that only its anchor can make jump, and only forward.
#[derive(Debug)]
pub(crate) struct Clock {
    anchor: Mutex<(u64, Instant)>,
}

impl Clock {
    /// Anchored at this machine's wall clock.
    pub(crate) fn new() -> Self {
        Clock { anchor: Mutex::new((wall_ms(), Instant::now())) }
    }

    /// Milliseconds since 1970, as this node counts them.
    pub(crate) fn now_ms(&self) -> u64 {
        self.at(Instant::now())
    }

    fn at(&self, now: Instant) -> u64 {
        let (anchor_ms, anchored) = *self.anchor.lock();
        let elapsed = now.saturating_duration_since(anchored).as_millis();
        anchor_ms.saturating_add(u64::try_from(elapsed).unwrap_or(u64::MAX))
    }

    /// Takes office over a state that stands at `state_ms`.
    pub(crate) fn take_office(&self, state_ms: u64) {
        self.anchor_at(wall_ms(), state_ms, Instant::now());
    }

    fn anchor_at(&self, wall_ms: u64, state_ms: u64, now: Instant) {
        *self.anchor.lock() = (wall_ms.max(state_ms), now);
    }
}

fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_leader_goes_on_from_the_state_and_then_by_the_monotonic_clock() {
        let (clock, start) = (Clock::new(), Instant::now());
        clock.anchor_at(1_000, 5_000, start);
        assert_eq!(clock.at(start + Duration::from_secs(2)), 7_000, "the wall clock is behind the state");
        clock.anchor_at(9_000, 5_000, start);
        assert_eq!(clock.at(start), 9_000);
    }
}
