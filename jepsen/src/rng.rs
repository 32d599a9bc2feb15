//! A small seeded generator (SplitMix64): moments and choices of a test, replayable from the seed it printed.
//!
//! Deliberately absent: any claim of quality beyond that.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A seeded source of choices.
#[derive(Clone, Debug)]
pub struct Rng {
    state: u64,
}

impl Rng {
    /// The same seed gives the same choices.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`; 0 if the bound is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next_u64().checked_rem(bound).unwrap_or(0)
    }

    /// A duration from `from_ms` up to, not including, `to_ms`.
    pub fn millis(&mut self, from_ms: u64, to_ms: u64) -> Duration {
        Duration::from_millis(from_ms + self.below(to_ms.saturating_sub(from_ms)))
    }
}

/// The seed of this run: `QUORATE_SEED`, else the clock. Printed, so that a failure can be replayed.
pub fn seed() -> u64 {
    let given = std::env::var("QUORATE_SEED").ok().and_then(|text| text.parse().ok());
    let seed =
        given.unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |now| now.as_nanos() as u64));
    eprintln!("seed {seed} (repeat with QUORATE_SEED={seed})");
    seed
}

/// A number from the environment, or `default` where it is unset or not a number.
pub fn env_u64(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}
