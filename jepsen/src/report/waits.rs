//! How long clients waited: the arithmetic of it.
//!
//! A *wait* is the time between two successes of one process, so that a lucky client does not hide an unlucky one. A
//! process that was retired by an operation of unknown end goes on under another id, and the record does not say which.
//! So its last wait ends with the first success, at the same node if the record names one, of any process that began
//! later: that may be too short, and is never too long.
//!
//! Deliberately absent: words and drawing.

use std::collections::BTreeMap;

use super::FaultSpan;
use crate::record::{History, Operation, Outcome};

/// When a workload asked, and when it was told that something went well; each in order.
#[derive(Debug, Default)]
pub(super) struct Moments {
    pub(super) asked: Vec<u64>,
    pub(super) oks: Vec<u64>,
}

/// From the end of a fault to the first success after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Recovery {
    /// After so many nanoseconds.
    After(u64),
    /// Somebody asked, and nothing went well any more.
    Never,
}

/// What a process had to wait: from, to.
pub(super) type Wait = (u64, u64);

/// The waits of all processes of a workload.
#[derive(Debug, Default)]
pub(super) struct Waits {
    /// Of each process, in order.
    pub(super) of_process: Vec<Vec<Wait>>,
    /// Processes that asked after their last success, and never had another.
    pub(super) unended: u64,
}

impl Moments {
    pub(super) fn of(history: &History) -> Self {
        let mut asked: Vec<u64> = history.operations.iter().map(|operation| operation.began).collect();
        let mut oks: Vec<u64> = history.operations.iter().filter_map(ok_at).collect();
        asked.sort_unstable();
        oks.sort_unstable();
        Self { asked, oks }
    }

    /// `None`: nobody asked after it, so nothing can be said.
    pub(super) fn recovery(&self, healed: u64) -> Option<Recovery> {
        let after = self.oks.partition_point(|ok| *ok < healed);
        match self.oks.get(after) {
            Some(ok) => Some(Recovery::After(ok - healed)),
            None if self.asked.last().is_some_and(|asked| *asked >= healed) => Some(Recovery::Never),
            None => None,
        }
    }

    /// The longest time without a success while it asked, between these two moments. `None`: it did not ask.
    pub(super) fn longest_silence(&self, from: u64, until: u64) -> Option<u64> {
        let from = from.max(*self.asked.first()?);
        let until = until.min((*self.asked.last()?).max(self.oks.last().copied().unwrap_or_default()));
        if from > until {
            return None;
        }
        let inside = self.oks.iter().copied().skip(self.oks.partition_point(|ok| *ok < from));
        let (mut last, mut longest) = (from, 0);
        for moment in inside.take_while(|ok| *ok < until).chain([until]) {
            longest = longest.max(moment - last);
            last = moment;
        }
        Some(longest)
    }
}

impl Waits {
    pub(super) fn of(history: &History) -> Self {
        let mut processes: BTreeMap<u64, Vec<&Operation>> = BTreeMap::new();
        for operation in &history.operations {
            processes.entry(operation.process).or_default().push(operation);
        }
        let heirs = Heirs::of(&processes);
        let mut waits = Self::default();
        for operations in processes.values() {
            let mut oks: Vec<u64> = operations.iter().filter_map(|operation| ok_at(operation)).collect();
            if let (Some(last_ok), Some(last)) = (oks.last().copied(), operations.last()) {
                let heir = heirs.first_ok_after(last).filter(|_| last.outcome == Outcome::Info);
                oks.extend(heir);
                waits.unended += u64::from(heir.is_none() && last.began > last_ok);
            }
            waits.of_process.push(oks.iter().copied().zip(oks.iter().copied().skip(1)).collect());
        }
        waits
    }

    /// Of each process, its longest wait that this fault falls into.
    pub(super) fn across(&self, fault: &FaultSpan) -> impl Iterator<Item = u64> {
        let until_ns = fault.until_ns.unwrap_or(u64::MAX);
        self.of_process.iter().filter_map(move |waits| {
            let first = waits.partition_point(|(_, to)| *to < fault.from_ns);
            let met = waits.iter().skip(first).take_while(move |(from, _)| *from <= until_ns);
            met.map(|(from, to)| to.saturating_sub(*from)).max()
        })
    }
}

/// Who may have gone on for a process that was retired.
struct Heirs {
    /// At each node: where a process began first, and the earliest success of it and of all that began later.
    by_node: BTreeMap<Option<u64>, Vec<(usize, u64)>>,
}

impl Heirs {
    fn of(processes: &BTreeMap<u64, Vec<&Operation>>) -> Self {
        let mut by_node: BTreeMap<Option<u64>, Vec<(usize, u64)>> = BTreeMap::new();
        for operations in processes.values() {
            let ok = operations.iter().find_map(|operation| ok_at(operation));
            if let (Some(first), Some(ok)) = (operations.first(), ok) {
                by_node.entry(first.node).or_default().push((first.began_at, ok));
            }
        }
        for heirs in by_node.values_mut() {
            heirs.sort_unstable();
            let mut earliest = u64::MAX;
            for (_, ok) in heirs.iter_mut().rev() {
                earliest = earliest.min(*ok);
                *ok = earliest;
            }
        }
        Self { by_node }
    }

    fn first_ok_after(&self, retired: &Operation) -> Option<u64> {
        let heirs = self.by_node.get(&retired.node)?;
        let at = heirs.partition_point(|(began_at, _)| *began_at <= retired.began_at);
        heirs.get(at).map(|(_, ok)| *ok)
    }
}

fn ok_at(operation: &Operation) -> Option<u64> {
    match operation.outcome {
        Outcome::Ok { .. } => operation.ended,
        Outcome::Fail | Outcome::Info => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{fail, history, info, ok};
    use super::*;

    fn fault(from_ns: u64, until_ns: u64) -> FaultSpan {
        FaultSpan { from_ns, until_ns: Some(until_ns), ..FaultSpan::default() }
    }

    #[test]
    fn recovery_is_from_the_end_of_the_fault_to_the_first_success() {
        let moments = Moments::of(&history(vec![ok(0, 1, 10, 20), fail(1, 1, 30, 110), ok(2, 1, 120, 150)]));
        assert_eq!(moments.recovery(100), Some(Recovery::After(50)));
        assert_eq!(moments.recovery(150), Some(Recovery::After(0)));
        assert_eq!(moments.recovery(151), None, "nobody asked after that");
        let dead = Moments::of(&history(vec![ok(0, 1, 10, 20), fail(1, 1, 200, 210)]));
        assert_eq!(dead.recovery(100), Some(Recovery::Never));
        assert_eq!(Moments::default().recovery(0), None);
        assert!(Recovery::Never > Recovery::After(u64::MAX));
    }

    #[test]
    fn silence_is_counted_within_the_fault_and_while_somebody_asked() {
        let moments =
            Moments::of(&history(vec![ok(0, 1, 10, 20), ok(1, 1, 25, 120), ok(2, 1, 130, 140), ok(3, 1, 150, 300)]));
        assert_eq!(moments.longest_silence(100, 200), Some(60), "from 140 to the end of the fault");
        assert_eq!(moments.longest_silence(20, 140), Some(100));
        assert_eq!(moments.longest_silence(0, 15), Some(5), "it began to ask at 10");
        assert_eq!(moments.longest_silence(290, 900), Some(10), "it ended at 300");
        assert_eq!(moments.longest_silence(400, 900), None);
        assert_eq!(Moments::default().longest_silence(0, 9), None);
    }

    #[test]
    fn a_wait_is_between_two_successes_of_one_process() {
        let waits = Waits::of(&history(vec![
            ok(0, 1, 0, 10),
            ok(1, 2, 1, 11),
            fail(2, 1, 20, 30),
            ok(3, 2, 40, 50),
            ok(4, 1, 90, 100),
            ok(5, 1, 101, 102),
        ]));
        assert_eq!(waits.of_process, [vec![(10, 100), (100, 102)], vec![(11, 50)]]);
        assert_eq!(waits.across(&fault(45, 48)).collect::<Vec<_>>(), [90, 39]);
        assert_eq!(waits.across(&fault(60, 200)).collect::<Vec<_>>(), [90], "the longest, and no lucky process");
        assert_eq!(waits.across(&fault(110, 120)).count(), 0);
        assert_eq!(waits.unended, 0);
    }

    #[test]
    fn a_retired_process_waits_until_one_that_came_later_succeeds() {
        let operations = vec![
            ok(0, 1, 0, 10),
            ok(1, 2, 0, 12),
            info(2, 1, 20),
            ok(3, 2, 25, 30),
            fail(4, 3, 40, 50),
            ok(5, 3, 60, 70),
            ok(6, 4, 90, 95),
        ];
        let waits = Waits::of(&history(operations.clone()));
        assert_eq!(waits.of_process, [vec![(10, 70)], vec![(12, 30)], vec![], vec![]]);
        let unended = Waits::of(&history(operations.into_iter().take(5).collect()));
        assert_eq!((unended.unended, unended.of_process[0].len()), (1, 0));
    }
}
