//! Snapshots on their way to peers, and why no new one is taken meanwhile.
//!
//! A new snapshot lets the log before it go. A peer that has just received the old one goes on from there by the log: if that
//! has gone, it needs another snapshot, and under load it may never arrive. So while one is on its way, and for a little after,
//! none is taken, for so long at most that the log does not fill the disk for a peer that never gets there.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How long a peer has, once it has a snapshot, to read on from there.
const REST: Duration = Duration::from_secs(60);
/// How long new snapshots are put off at most.
const LONGEST: Duration = Duration::from_secs(10 * 60);

// Nothing of this reaches the state.
#[allow(clippy::disallowed_methods)]
fn now() -> Instant {
    Instant::now()
}

/// What is on its way. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Carried {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    under_way: usize,
    ended: Option<Instant>,
    /// Since when new ones are put off.
    since: Option<Instant>,
}

/// One transfer; it ends when this is dropped.
pub(super) struct Carrying {
    state: Arc<Mutex<State>>,
}

impl Drop for Carrying {
    fn drop(&mut self) {
        let mut state = self.state.lock();
        state.under_way -= 1;
        state.ended = Some(now());
    }
}

impl Carried {
    /// A transfer begins.
    pub(super) fn begin(&self) -> Carrying {
        self.state.lock().under_way += 1;
        Carrying { state: self.state.clone() }
    }

    /// Whether a new snapshot has to wait.
    pub(super) fn puts_off_now(&self) -> bool {
        self.puts_off(now())
    }

    fn puts_off(&self, now: Instant) -> bool {
        let mut state = self.state.lock();
        let lately = state.ended.is_some_and(|ended| now.saturating_duration_since(ended) < REST);
        if state.under_way == 0 && !lately {
            state.since = None;
            return false;
        }
        let since = *state.since.get_or_insert(now);
        now.saturating_duration_since(since) < LONGEST
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_wait_for_a_transfer_and_its_peer_but_not_for_ever() {
        let (carried, now) = (Carried::default(), Instant::now());
        assert!(!carried.puts_off(now));
        let one = carried.begin();
        assert!(carried.puts_off(now));
        assert!(!carried.puts_off(now + LONGEST), "a peer that never gets there");
        drop(one);
        assert!(carried.puts_off(Instant::now()), "it reads on from there");
        assert!(!carried.puts_off(Instant::now() + REST));
        let _another = carried.begin();
        assert!(carried.puts_off(now + LONGEST), "counted anew");
    }
}
