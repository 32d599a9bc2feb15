//! The run in columns of equal width: how much was answered in each, and how fast.
//!
//! An operation belongs to the column in which it ended; one of which the end is not known, to that in which it began.
//!
//! Deliberately absent: drawing.

use super::Run;
use crate::record::Outcome;

/// What is drawn is a few points for each column: never more than 2,000 in a line.
pub(super) const MOST_COLUMNS: u64 = 600;
const SECOND: u64 = 1_000_000_000;

/// All columns of a run, from its beginning.
#[derive(Debug)]
pub(super) struct Series {
    /// A whole number of seconds.
    pub(super) width_ns: u64,
    /// At least one.
    pub(super) columns: Vec<Column>,
}

/// What ended in one of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Column {
    pub(super) ok: u64,
    pub(super) fail: u64,
    pub(super) info: u64,
    /// Of what went well, in order.
    took: Vec<u64>,
}

/// How long it took, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Latency {
    pub(super) p50: u64,
    pub(super) p99: u64,
    pub(super) max: u64,
}

impl Column {
    /// `None`: nothing went well in it.
    pub(super) fn latency(&self) -> Option<Latency> {
        let max = *self.took.last()?;
        Some(Latency { p50: percentile(&self.took, 50), p99: percentile(&self.took, 99), max })
    }

    pub(super) fn total(&self) -> u64 {
        self.ok + self.fail + self.info
    }
}

impl Series {
    /// Of all workloads together.
    pub(super) fn of(run: &Run) -> Self {
        let end_ns = run.end_ns();
        let width_ns = end_ns.div_ceil(MOST_COLUMNS).div_ceil(SECOND).max(1).saturating_mul(SECOND);
        let mut columns = vec![Column::default(); (end_ns / width_ns + 1) as usize];
        for operation in run.workloads.iter().flat_map(|workload| &workload.history.operations) {
            let moment = operation.ended.unwrap_or(operation.began);
            let Some(column) = columns.get_mut((moment / width_ns) as usize) else { continue };
            match operation.outcome {
                Outcome::Ok { .. } => {
                    column.ok += 1;
                    column.took.push(moment.saturating_sub(operation.began));
                }
                Outcome::Fail => column.fail += 1,
                Outcome::Info => column.info += 1,
            }
        }
        columns.iter_mut().for_each(|column| column.took.sort_unstable());
        Self { width_ns, columns }
    }

    /// From the beginning to the end of the last column.
    pub(super) fn span_ns(&self) -> u64 {
        self.width_ns.saturating_mul(self.columns.len() as u64)
    }
}

/// The smallest of these that `percent` of them do not exceed. They must be in order.
pub(super) fn percentile(sorted: &[u64], percent: usize) -> u64 {
    let at = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(at).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{info, ok, run_of};
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn each_second_is_a_column_until_there_are_too_many() {
        let operations = vec![ok(0, 1, 0, 5 * MS), ok(1, 1, SECOND, SECOND + 7 * MS), info(2, 2, 2 * SECOND)];
        let short = Series::of(&run_of(operations));
        assert_eq!((short.width_ns, short.columns.len()), (SECOND, 3));
        let counts: Vec<_> = short.columns.iter().map(|column| (column.ok, column.info)).collect();
        assert_eq!(counts, [(1, 0), (1, 0), (0, 1)]);
        assert_eq!(short.columns[1].latency(), Some(Latency { p50: 7 * MS, p99: 7 * MS, max: 7 * MS }));
        assert_eq!(short.columns[2].latency(), None);

        let long = Series::of(&run_of(vec![ok(0, 1, 0, 86_400 * SECOND)]));
        assert!(long.columns.len() as u64 <= MOST_COLUMNS + 1 && long.width_ns == 144 * SECOND, "{}", long.width_ns);
        let endless = Series::of(&run_of(vec![ok(0, 1, 0, u64::MAX)]));
        assert!(endless.columns.len() as u64 <= MOST_COLUMNS + 1);
    }

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let times: Vec<u64> = (1..=200).collect();
        assert_eq!([50, 99, 100].map(|percent| percentile(&times, percent)), [100, 198, 200]);
        assert_eq!((percentile(&times[..1], 50), percentile(&[], 99)), (1, 0));
    }
}
