//! When no operation of anybody succeeded for long: then there was perhaps no leader, and afterwards perhaps another.
//!
//! Deliberately absent: what was done to the cluster. The record alone says how it looked to clients.

use crate::record::{History, Operation};

/// The times without success, in nanoseconds of the run, oldest first.
#[derive(Debug, Default)]
pub(super) struct Outages {
    gaps: Vec<(u64, u64)>,
}

impl Outages {
    /// Those longer than `gap`.
    pub(super) fn of(history: &History, gap: u64) -> Self {
        // Giving a session up is nothing that the cluster does.
        let succeeded = |op: &&Operation| op.res().is_some() && op.f != "abandon";
        let mut ends: Vec<u64> = history.operations.iter().filter(succeeded).filter_map(|op| op.ended).collect();
        ends.sort_unstable();
        let pairs = ends.iter().zip(ends.iter().skip(1)).map(|(from, to)| (*from, *to));
        Self { gaps: pairs.filter(|(from, to)| to - from > gap).collect() }
    }

    /// What they add to the life of a lease of this TTL between two moments.
    pub(super) fn allowance(&self, from: u64, to: u64, ttl: u64) -> u64 {
        let first = self.gaps.partition_point(|(_, end)| *end <= from);
        let met = self.gaps.iter().skip(first).take_while(|(began, _)| *began < to);
        met.map(|(began, ended)| (ended - began).saturating_add(ttl)).fold(0, u64::saturating_add)
    }
}
