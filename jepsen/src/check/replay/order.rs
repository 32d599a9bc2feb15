//! The log as the answers tell it: which revs are taken, and what real time says of an operation's place.
//!
//! Deliberately absent: what operations do. That is the model's.

use crate::check::Finding;
use crate::check::model::{Kind, named};
use crate::record::{History, Operation};

/// How an operation stands at its rev.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// It is what took the rev.
    Write,
    /// It is that, or it looked.
    Perhaps,
    /// It sees what took the rev.
    Read,
}

/// An operation with its rev.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placed<'a> {
    pub(super) operation: &'a Operation,
    pub(super) rev: u64,
    pub(super) place: Place,
}

impl<'a> Placed<'a> {
    pub(super) fn new(operation: &'a Operation, rev: u64, kind: Kind) -> Self {
        let place = match kind {
            Kind::Write => Place::Write,
            Kind::Perhaps => Place::Perhaps,
            Kind::Read | Kind::Refusal => Place::Read,
        };
        Self { operation, rev, place }
    }

    /// The order of the log: a write is before those that see it.
    pub(super) fn order(&self) -> (u64, Place, usize) {
        (self.rev, self.place, self.operation.id)
    }

    /// The last rev that something else can have and still be before this.
    fn last_before(&self) -> u64 {
        if self.place == Place::Write { self.rev.saturating_sub(1) } else { self.rev }
    }
}

/// The newest rev that was known when an operation began, and of which operation it was.
type Floor = Option<(u64, usize)>;

/// The log.
#[derive(Debug)]
pub(super) struct Log {
    /// Of each operation, by its id.
    floors: Vec<Floor>,
    /// Every rev of an answer, rising.
    revs: Vec<u64>,
    /// With each of them, the first end of an operation that has this rev or a later one.
    first_ends: Vec<usize>,
    /// Every rev of a write, rising.
    taken: Vec<u64>,
}

impl Log {
    /// What the history says of its log; `placed` is everything in it that has a rev.
    pub(super) fn of(history: &History, mut placed: Vec<Placed<'_>>) -> Self {
        placed.sort_by_key(Placed::order);
        let mut first_ends: Vec<usize> = placed.iter().map(|placed| placed.operation.ended_at).collect();
        let mut first = usize::MAX;
        for end in first_ends.iter_mut().rev() {
            first = first.min(*end);
            *end = first;
        }
        let writes = placed.iter().filter(|placed| placed.place == Place::Write);
        let mut taken: Vec<u64> = writes.map(|placed| placed.rev).collect();
        taken.dedup();
        let revs = placed.iter().map(|placed| placed.rev).collect();
        Self { floors: floors(history), revs, first_ends, taken }
    }

    /// How many revs after one of a key, and before an operation, are left for what has none.
    pub(super) fn holes(&self, after: u64, before: &Placed<'_>) -> usize {
        let last = before.last_before();
        let up_to = |rev: u64| self.taken.partition_point(|taken| *taken <= rev);
        let (revs, taken) = (last.saturating_sub(after), up_to(last).saturating_sub(up_to(after)));
        usize::try_from(revs).unwrap_or(usize::MAX).saturating_sub(taken)
    }

    /// Whether an operation without a rev may stand before another in the log. If it may, it may before any later one.
    pub(super) fn may_precede(&self, unknown: &Operation, placed: &Placed<'_>) -> bool {
        let at = self.revs.partition_point(|rev| *rev < placed.rev);
        let first_end = self.first_ends.get(at).copied().unwrap_or(usize::MAX);
        let is_behind = self.floor(unknown).is_none_or(|(rev, _)| rev < placed.last_before());
        unknown.began_at < first_end && is_behind
    }

    /// What is wrong with the place of an operation: something that had ended when it began is behind it.
    pub(super) fn out_of_time(&self, history: &History, placed: &Placed<'_>, is_write: bool) -> Option<Finding> {
        let Placed { operation, rev, .. } = placed;
        let (floor, earlier) = self.floor(operation)?;
        if *rev > floor || (*rev == floor && !is_write) {
            return None;
        }
        let what = history.operations.get(earlier).map(named)?;
        let bound = if is_write { "after" } else { "at or after" };
        let text = format!(
            "{} took effect at rev {rev}, where {bound} rev {floor} is expected: {what}, of rev {floor}, had ended \
             before it began",
            named(operation)
        );
        Some(Finding::new(text, [earlier, operation.id]))
    }

    fn floor(&self, operation: &Operation) -> Floor {
        self.floors.get(operation.id).copied().flatten()
    }
}

/// Of each operation, the newest rev of those that had ended when it began.
fn floors(history: &History) -> Vec<Floor> {
    let mut moments: Vec<(usize, usize, Floor)> = Vec::new();
    for Operation { id, began_at, .. } in &history.operations {
        moments.push((*began_at, *id, None));
    }
    for operation in &history.operations {
        if let Some(rev) = operation.rev() {
            moments.push((operation.ended_at, operation.id, Some((rev, operation.id))));
        }
    }
    moments.sort_unstable();
    let mut floors = vec![None; history.operations.len()];
    let mut newest: Floor = None;
    for (_, id, ended) in moments {
        match ended {
            Some(_) => newest = newest.max(ended),
            None => {
                if let Some(floor) = floors.get_mut(id) {
                    *floor = newest;
                }
            }
        }
    }
    floors
}

/// Writes that share a rev, of all writes.
pub(super) fn shared_revs(mut writes: Vec<Placed<'_>>) -> Vec<Finding> {
    writes.sort_by_key(Placed::order);
    let shared = writes.windows(2).filter_map(|pair| match pair {
        [one, other] if one.rev == other.rev => Some((one, other)),
        _ => None,
    });
    let finding = |(one, other): (&Placed<'_>, &Placed<'_>)| {
        let (rev, ids) = (one.rev, [one.operation.id, other.operation.id]);
        let (one, other) = (named(one.operation), named(other.operation));
        Finding::new(format!("{one} and {other} both took effect at rev {rev}, which only one write can have"), ids)
    };
    shared.map(finding).collect()
}
