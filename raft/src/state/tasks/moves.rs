//! Moves: the one place where a task's status changes, together with its row, its place in memory and the counts.

use bytes::Bytes;
use quorate_proto::v1::{CancelNotice, Claim, Task, TaskStatus};

use super::aftermath::Kind;
use super::{Tasks, corrupt, count_key, dead_key, dependent_key, done_key, is_dead, is_ended, live_key};
use crate::effect::Effect;
use crate::error::Fatal;
use crate::state::{Ctx, Out, Rooms, progress};

/// Where a task goes.
#[derive(Debug)]
pub(super) enum Next {
    Pending {
        ready_at_ms: u64,
    },
    Ready,
    /// Waits for these.
    Blocked(Vec<String>),
    InProgress(Claim),
    Reported,
    /// COMPLETED, FAILED, TIMED_OUT, CANCELLED or SKIPPED.
    Ended(TaskStatus),
}

impl Next {
    pub(super) fn status(&self) -> TaskStatus {
        match self {
            Next::Pending { .. } => TaskStatus::Pending,
            Next::Ready => TaskStatus::Ready,
            Next::Blocked(_) => TaskStatus::Blocked,
            Next::InProgress(_) => TaskStatus::InProgress,
            Next::Reported => TaskStatus::Reported,
            Next::Ended(status) => *status,
        }
    }
}

/// Whether a task's status may change from one to another. `Unspecified` stands for "not there yet".
pub fn may_move(from: TaskStatus, to: TaskStatus) -> bool {
    use TaskStatus::{
        Blocked, Cancelled, Completed, Failed, InProgress, Pending, Ready, Reported, Skipped, TimedOut, Unspecified,
    };
    match from {
        Unspecified => matches!(to, Pending | Ready | Blocked | Failed | Skipped),
        Pending => matches!(to, Ready | Blocked | TimedOut | Cancelled),
        Ready => matches!(to, InProgress | Blocked | TimedOut | Cancelled),
        Blocked => matches!(to, Pending | Ready | Failed | Skipped | TimedOut | Cancelled),
        InProgress => matches!(to, Pending | Ready | Reported | Completed | Failed | TimedOut | Cancelled),
        Reported => matches!(to, Ready | Completed | Failed | TimedOut | Cancelled),
        // Redriven.
        Failed | TimedOut => matches!(to, Pending | Ready | Blocked),
        Completed | Cancelled | Skipped => false,
    }
}

/// Stores a task that was not there before.
pub(super) fn create(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    task: &mut Task,
    next: Next,
) -> Result<(), Fatal> {
    check(task, TaskStatus::Unspecified, next.status())?;
    task.created_at_ms = ctx.now_ms;
    task.created_rev = ctx.rev;
    task.clock_from_ms = ctx.now_ms;
    super::body::put_aside(out, task);
    enter(rooms, out, ctx, task, next, TaskStatus::Unspecified)
}

/// Moves a task on. The caller has set what the move does not know: failures, error, attempts.
pub(super) fn move_to(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    task: &mut Task,
    next: Next,
) -> Result<(), Fatal> {
    let (from, to) = (task.status(), next.status());
    check(task, from, to)?;
    for dependency in rooms.tasks.unplace(task) {
        out.txn.delete(&dependent_key(&dependency, &task.id));
    }
    rooms.tasks.count_out(from);
    if is_ended(from) {
        // Back to life.
        out.txn.delete(&done_key(&task.id));
        put_count(&rooms.tasks, out, from);
        if is_dead(from) {
            out.txn.delete(&dead_key(&task.id));
        }
        task.finished_at_ms = 0;
        task.clock_from_ms = ctx.now_ms;
    } else if is_ended(to) {
        out.txn.delete(&live_key(&task.id));
        if let Some(spec) = &task.spec {
            rooms.tasks.queues.dismiss(spec);
        }
    }
    if from == TaskStatus::InProgress && rooms.dispatch.has_limits() {
        out.effects.push(Effect::LimitsChanged);
    }
    enter(rooms, out, ctx, task, next, from)
}

/// The running attempt is asked to stop: its place depends on when it is fenced.
pub(super) fn notify_cancel(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    task: &mut Task,
    notice: CancelNotice,
) -> Result<(), Fatal> {
    rooms.tasks.unplace(task);
    task.cancel = Some(notice);
    rooms.tasks.place(task)?;
    task.updated_at_ms = ctx.now_ms;
    out.txn.put(&live_key(&task.id), task);
    Ok(())
}

/// A BLOCKED task waits for one more: the index and its row.
pub(super) fn wait_for(rooms: &mut Rooms, out: &mut Out<'_, '_>, dependency: &str, task_id: &str) {
    rooms.tasks.wait_for(dependency, task_id);
    out.txn.put_bytes(&dependent_key(dependency, task_id), Bytes::new());
}

/// Where a task that waits for no other begins.
pub(super) fn first_place(task: &Task, ctx: &Ctx) -> Next {
    match task.spec.as_ref().map_or(0, |spec| spec.not_before_ms) {
        not_before_ms if not_before_ms > ctx.now_ms => Next::Pending { ready_at_ms: not_before_ms },
        _ => Next::Ready,
    }
}

/// Sets the status, writes the row in the table of that status and enters the task in its place.
fn enter(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    task: &mut Task,
    next: Next,
    from: TaskStatus,
) -> Result<(), Fatal> {
    let status = next.status();
    task.ready_at_ms = 0;
    task.ready_since_ms = 0;
    task.claim = None;
    task.cancel = None;
    task.set_status(status);
    task.updated_at_ms = ctx.now_ms;
    match next {
        Next::Pending { ready_at_ms } => task.ready_at_ms = ready_at_ms,
        Next::Ready => task.ready_since_ms = ctx.now_ms,
        Next::InProgress(claim) => task.claim = Some(claim),
        Next::Blocked(open) => {
            for dependency in open {
                wait_for(rooms, out, &dependency, &task.id);
            }
        }
        Next::Reported | Next::Ended(_) => {}
    }
    rooms.tasks.count_in(status);
    if is_ended(status) {
        end(rooms, out, ctx, task);
    } else {
        live(rooms, out, task, from)?;
    }
    if let Some(spec) = &task.spec {
        progress::moved(rooms, out, ctx, spec, from, status, task.touched);
    }
    Ok(())
}

fn live(rooms: &mut Rooms, out: &mut Out<'_, '_>, task: &mut Task, from: TaskStatus) -> Result<(), Fatal> {
    task.expires_at_ms = expiry_ms(task);
    out.txn.put(&live_key(&task.id), task);
    if let Some(spec) = &task.spec
        && (from == TaskStatus::Unspecified || is_ended(from))
    {
        rooms.tasks.queues.admit(spec);
    }
    rooms.tasks.place(task)?;
    if task.status() == TaskStatus::Ready
        && let Some(spec) = &task.spec
    {
        out.effects.push(Effect::TaskReady {
            capabilities: spec.required_capabilities.clone(),
            agent_id: spec.agent_id.clone(),
            picky: !(spec.agent_type.is_empty() && spec.required_labels.is_empty() && spec.excluded_agents.is_empty()),
        });
    }
    Ok(())
}

fn end(rooms: &mut Rooms, out: &mut Out<'_, '_>, ctx: &Ctx, task: &mut Task) {
    let status = task.status();
    task.expires_at_ms = 0;
    task.finished_at_ms = ctx.now_ms;
    out.txn.put(&done_key(&task.id), task);
    put_count(&rooms.tasks, out, status);
    if is_dead(status) {
        out.txn.put_bytes(&dead_key(&task.id), Bytes::new());
    }
    if rooms.tasks.waiting.contains_key(task.id.as_str()) {
        rooms.tasks.aftermath.add(ctx, Kind::Dependents, &task.id);
    }
}

pub(super) fn put_count(tasks: &Tasks, out: &mut Out<'_, '_>, status: TaskStatus) {
    let count = Bytes::copy_from_slice(&tasks.count_of(status).to_be_bytes());
    out.txn.put_bytes(&count_key(status), count);
}

/// When a live task times out as a whole, or in the queue.
fn expiry_ms(task: &Task) -> u64 {
    let Some(spec) = &task.spec else { return 0 };
    let whole = (spec.total_timeout_ms > 0).then(|| task.clock_from_ms.saturating_add(spec.total_timeout_ms));
    let queued = (spec.queue_timeout_ms > 0 && task.status() == TaskStatus::Ready)
        .then(|| task.ready_since_ms.saturating_add(spec.queue_timeout_ms));
    [whole, queued].into_iter().flatten().min().unwrap_or(0)
}

/// An illegal move is a defect of this program, not of a request: going on would spread it.
fn check(task: &Task, from: TaskStatus, to: TaskStatus) -> Result<(), Fatal> {
    if may_move(from, to) {
        return Ok(());
    }
    Err(corrupt(&task.id, &format!("cannot go from {from:?} to {to:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_moves_where_the_table_says() {
        // Rows: from; letters: to; in the order of the status numbers, 0 to 10.
        let table = [
            "PRBFS",   // not there yet
            "RBTC",    // PENDING
            "IBTC",    // READY
            "PRFSTC",  // BLOCKED
            "PRUDFTC", // IN_PROGRESS
            "",        // COMPLETED
            "PRB",     // FAILED
            "PRB",     // TIMED_OUT
            "",        // CANCELLED
            "RDFTC",   // REPORTED
            "",        // SKIPPED
        ];
        let letter = |to: TaskStatus| match to {
            TaskStatus::Unspecified => '-',
            TaskStatus::Pending => 'P',
            TaskStatus::Ready => 'R',
            TaskStatus::Blocked => 'B',
            TaskStatus::InProgress => 'I',
            TaskStatus::Completed => 'D',
            TaskStatus::Failed => 'F',
            TaskStatus::TimedOut => 'T',
            TaskStatus::Cancelled => 'C',
            TaskStatus::Reported => 'U',
            TaskStatus::Skipped => 'S',
        };
        for (from, row) in table.into_iter().enumerate() {
            let from = TaskStatus::try_from(from as i32).expect("a status");
            for to in (0..=10).map(|to| TaskStatus::try_from(to).expect("a status")) {
                assert_eq!(may_move(from, to), row.contains(letter(to)), "{from:?} to {to:?}");
            }
        }
    }
}
