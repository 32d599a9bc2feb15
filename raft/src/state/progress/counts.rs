//! Arithmetic on counts by status. Deliberately absent: what is counted.

use quorate_proto::v1::{StatusCounts, TaskStatus};

/// Whether a task of this status is done with, one way or another.
pub(super) fn is_ended(status: TaskStatus) -> bool {
    use TaskStatus::{Cancelled, Completed, Failed, Skipped, TimedOut};
    matches!(status, Completed | Failed | TimedOut | Cancelled | Skipped)
}

/// One more of this status; `Unspecified` is none.
pub(super) fn add(counts: &mut StatusCounts, status: TaskStatus) {
    if let Some(count) = count_of(counts, status) {
        *count = count.saturating_add(1);
    }
}

/// One less of this status.
pub(super) fn take(counts: &mut StatusCounts, status: TaskStatus) {
    if let Some(count) = count_of(counts, status) {
        *count = count.saturating_sub(1);
    }
}

/// One that goes from one status to another.
pub(super) fn shift(counts: &mut StatusCounts, from: TaskStatus, to: TaskStatus) {
    take(counts, from);
    add(counts, to);
}

/// Adds the second to the first.
pub(super) fn add_all(counts: &mut StatusCounts, more: &StatusCounts) {
    for (count, more) in fields(counts).into_iter().zip(values(more)) {
        *count = count.saturating_add(more);
    }
}

/// The ended ones among them.
pub(super) fn ended(counts: &StatusCounts) -> StatusCounts {
    let StatusCounts { completed, failed, timed_out, cancelled, skipped, .. } = *counts;
    StatusCounts { completed, failed, timed_out, cancelled, skipped, ..StatusCounts::default() }
}

/// How many are still on their way.
pub(super) fn live(counts: &StatusCounts) -> u64 {
    let StatusCounts { pending, ready, blocked, in_progress, reported, .. } = *counts;
    [pending, ready, blocked, in_progress, reported].into_iter().fold(0, u64::saturating_add)
}

/// Whether there is nothing.
pub(super) fn is_empty(counts: &StatusCounts) -> bool {
    *counts == StatusCounts::default()
}

fn count_of(counts: &mut StatusCounts, status: TaskStatus) -> Option<&mut u64> {
    match status {
        TaskStatus::Unspecified => None,
        TaskStatus::Pending => Some(&mut counts.pending),
        TaskStatus::Ready => Some(&mut counts.ready),
        TaskStatus::Blocked => Some(&mut counts.blocked),
        TaskStatus::InProgress => Some(&mut counts.in_progress),
        TaskStatus::Reported => Some(&mut counts.reported),
        TaskStatus::Completed => Some(&mut counts.completed),
        TaskStatus::Failed => Some(&mut counts.failed),
        TaskStatus::TimedOut => Some(&mut counts.timed_out),
        TaskStatus::Cancelled => Some(&mut counts.cancelled),
        TaskStatus::Skipped => Some(&mut counts.skipped),
    }
}

fn fields(counts: &mut StatusCounts) -> [&mut u64; 10] {
    let StatusCounts {
        pending,
        ready,
        blocked,
        in_progress,
        reported,
        completed,
        failed,
        timed_out,
        cancelled,
        skipped,
    } = counts;
    [pending, ready, blocked, in_progress, reported, completed, failed, timed_out, cancelled, skipped]
}

fn values(counts: &StatusCounts) -> [u64; 10] {
    let mut copy = *counts;
    fields(&mut copy).map(|count| *count)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [TaskStatus; 10] = [
        TaskStatus::Pending,
        TaskStatus::Ready,
        TaskStatus::Blocked,
        TaskStatus::InProgress,
        TaskStatus::Reported,
        TaskStatus::Completed,
        TaskStatus::Failed,
        TaskStatus::TimedOut,
        TaskStatus::Cancelled,
        TaskStatus::Skipped,
    ];

    #[test]
    fn each_status_has_its_own_count_and_is_live_or_ended() {
        for (at, status) in ALL.into_iter().enumerate() {
            let mut counts = StatusCounts::default();
            add(&mut counts, status);
            let mut expected = [0; 10];
            expected[at] = 1;
            assert_eq!(values(&counts), expected, "{status:?}");
            assert_eq!(live(&counts), u64::from(!is_ended(status)), "{status:?}");
            assert_eq!(is_empty(&ended(&counts)), !is_ended(status), "{status:?}");
            shift(&mut counts, status, TaskStatus::Unspecified);
            assert!(is_empty(&counts), "{status:?}");
        }
    }

    #[test]
    fn sums_are_by_status() {
        let mut sum = StatusCounts { ready: 1, failed: 2, ..StatusCounts::default() };
        add_all(&mut sum, &StatusCounts { failed: 3, skipped: 4, ..StatusCounts::default() });
        assert_eq!(sum, StatusCounts { ready: 1, failed: 5, skipped: 4, ..StatusCounts::default() });
    }

    #[test]
    fn a_count_that_is_not_there_is_not_taken() {
        let mut counts = StatusCounts::default();
        take(&mut counts, TaskStatus::Ready);
        assert!(is_empty(&counts));
    }
}
