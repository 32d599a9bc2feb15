//! The state of an agent while it is active, and when that is over.
//!
//! What is here is always a copy: every step is in the cluster before it is here. So it can be dropped at any time.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep_until};

/// Whoever waits for longer waits for ever; and a clock can still count it.
const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 86_400);

/// A state, and the `mod_rev` of its document; 0 if there is none yet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct State {
    pub(super) bytes: Bytes,
    pub(super) mod_rev: u64,
}

/// The state, if it is in memory.
#[derive(Debug)]
pub(super) struct Memory {
    state: Option<State>,
    idle_after: Duration,
    used_at: Instant,
}

impl Memory {
    pub(super) fn new(idle_after: Duration) -> Self {
        Memory { state: None, idle_after: idle_after.min(FOR_EVER), used_at: Instant::now() }
    }

    pub(super) fn state(&self) -> Option<&State> {
        self.state.as_ref()
    }

    pub(super) fn keep(&mut self, state: State) {
        self.state = Some(state);
        self.touch();
    }

    pub(super) fn clear(&mut self) {
        self.state = None;
    }

    /// The agent did something just now.
    pub(super) fn touch(&mut self) {
        self.used_at = Instant::now();
    }

    /// Resolves when the agent has been idle for too long; never, if there is nothing to drop.
    pub(super) async fn idle(&self) {
        match self.state {
            Some(_) => sleep_until(self.used_at + self.idle_after).await,
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{advance, timeout};

    use super::*;

    const IDLE: Duration = Duration::from_secs(600);
    const MOMENT: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn what_is_not_used_for_ten_minutes_is_dropped_and_not_sooner() {
        let mut memory = Memory::new(IDLE);
        memory.keep(State { bytes: "history".into(), mod_rev: 7 });
        assert!(timeout(IDLE - MOMENT, memory.idle()).await.is_err());
        assert!(timeout(MOMENT * 2, memory.idle()).await.is_ok());
        memory.clear();
        assert!(timeout(IDLE * 2, memory.idle()).await.is_err(), "there is nothing to drop");
    }

    #[tokio::test(start_paused = true)]
    async fn using_it_keeps_it() {
        let mut memory = Memory::new(IDLE);
        memory.keep(State::default());
        advance(IDLE - MOMENT).await;
        memory.touch();
        assert!(timeout(IDLE - MOMENT, memory.idle()).await.is_err());
        assert!(memory.state().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn it_may_be_kept_for_ever() {
        let mut memory = Memory::new(Duration::MAX);
        memory.keep(State::default());
        assert!(timeout(IDLE * 1_000, memory.idle()).await.is_err());
    }
}
