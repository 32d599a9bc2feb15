//! How long a caller is waited for in the middle of a blob. There are few places for uploads and readers, and whoever
//! has one must use it.
//!
//! Time runs only while this node waits for the caller, and what moves earns some of it back. So a caller that keeps
//! above one chunk in [`PER_CHUNK`] does not run out of it, in pieces of any size; a slower one does.
//!
//! Invariant: nobody is waited for longer than [`TRANSFER`] after the beginning.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::CHUNK;

/// How long a caller may take for as much as a chunk.
const PER_CHUNK: Duration = Duration::from_secs(30);
/// How long the whole blob may take.
pub(super) const TRANSFER: Duration = Duration::from_secs(10 * 60);

/// The time that one caller has left.
#[derive(Debug)]
pub(super) struct Pace {
    left: Duration,
    until: Instant,
}

impl Pace {
    /// For a blob that begins now.
    pub(super) fn new() -> Self {
        Pace { left: PER_CHUNK, until: Instant::now() + TRANSFER }
    }

    /// Waits for the caller. `None`: it is too slow.
    pub(super) async fn wait<T>(&mut self, caller: impl Future<Output = T>) -> Option<T> {
        let began = Instant::now();
        let outcome = timeout_at(self.until.min(began + self.left), caller).await.ok();
        self.left = self.left.saturating_sub(began.elapsed());
        outcome
    }

    /// So much came from the caller, or went to it.
    pub(super) fn moved(&mut self, bytes: usize) {
        let earned = PER_CHUNK * u32::try_from(bytes).unwrap_or(u32::MAX) / CHUNK as u32;
        self.left = PER_CHUNK.min(self.left + earned);
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    fn pace(left: Duration) -> Pace {
        Pace { left, ..Pace::new() }
    }

    #[test]
    fn what_moves_earns_time_up_to_that_of_one_chunk() {
        let mut pace = pace(Duration::ZERO);
        for (bytes, left) in [(0, Duration::ZERO), (CHUNK / 2, PER_CHUNK / 2), (CHUNK / 4, PER_CHUNK * 3 / 4)] {
            pace.moved(bytes);
            assert_eq!(pace.left, left, "after {bytes} bytes more");
        }
        pace.moved(usize::MAX);
        assert_eq!(pace.left, PER_CHUNK);
    }

    #[tokio::test]
    async fn waiting_uses_time_up() {
        let mut pace = pace(Duration::from_millis(20));
        assert_eq!(pace.wait(pending::<()>()).await, None);
        assert_eq!(pace.left, Duration::ZERO);
        assert_eq!(pace.wait(ready(7)).await, Some(7), "what is there already is taken");
    }

    #[tokio::test]
    async fn the_whole_has_an_end_however_fast_it_is() {
        let mut pace = Pace { left: PER_CHUNK, until: Instant::now() };
        assert_eq!(pace.wait(pending::<()>()).await, None);
    }
}
