//! Moves: the one place where a task's status changes, together with its row, its place in memory and the counts.

use bytes::Bytes;
use quorate_proto::v1::{Claim, Task, TaskStatus};

use super::{Tasks, corrupt, count_key, dependent_key, done_key, is_ended, live_key, load_live};
use crate::effect::Effect;
use crate::error::Fatal;
use crate::state::{Ctx, Out, Rooms};

/// Where a task goes.
#[derive(Debug)]
pub(super) enum Next {
    Pending {
        ready_at_ms: u64,
    },
    Ready,
    InProgress(Claim),
    /// COMPLETED, FAILED, TIMED_OUT or CANCELLED.
    Ended(TaskStatus),
}

impl Next {
    fn status(&self) -> TaskStatus {
        match self {
            Next::Pending { .. } => TaskStatus::Pending,
            Next::Ready => TaskStatus::Ready,
            Next::InProgress(_) => TaskStatus::InProgress,
            Next::Ended(status) => *status,
        }
    }
}

/// Whether a task's status may change from one to another. `Unspecified` stands for "not there yet".
pub fn may_move(from: TaskStatus, to: TaskStatus) -> bool {
    use TaskStatus::{Blocked, Cancelled, Completed, Failed, InProgress, Pending, Ready, TimedOut, Unspecified};
    match from {
        Unspecified => matches!(to, Pending | Ready | Blocked | Failed),
        Pending => matches!(to, Ready | Cancelled),
        Ready => matches!(to, InProgress | Cancelled),
        Blocked => matches!(to, Pending | Ready | Cancelled),
        InProgress => matches!(to, Pending | Ready | Completed | Failed | TimedOut | Cancelled),
        Completed | Failed | TimedOut | Cancelled => false,
    }
}

/// Stores a task that was not there before, with its first status set; `open` are the dependencies it waits for.
pub(super) fn create(
    tasks: &mut Tasks,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    mut task: Task,
    open: &[String],
) -> Result<(), Fatal> {
    let to = task.status();
    check(&task, TaskStatus::Unspecified, to)?;
    task.created_at_ms = ctx.now_ms;
    task.created_rev = ctx.rev;
    if !is_ended(to)
        && let Some(spec) = &task.spec
    {
        tasks.queues.admit(spec);
    }
    for dependency in open {
        tasks.wait_for(dependency, &task.id);
        out.txn.put_bytes(&dependent_key(dependency, &task.id), Bytes::new());
    }
    settle(tasks, out, ctx, &mut task)
}

/// Moves a live task on. The caller has set what the move does not know: failures, error, result, attempts.
pub(super) fn move_to(
    tasks: &mut Tasks,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    task: &mut Task,
    next: Next,
) -> Result<(), Fatal> {
    let (from, to) = (task.status(), next.status());
    check(task, from, to)?;
    for dependency in tasks.unplace(task) {
        out.txn.delete(&dependent_key(&dependency, &task.id));
    }
    tasks.count_out(from);
    task.ready_at_ms = 0;
    task.claim = None;
    match next {
        Next::Pending { ready_at_ms } => task.ready_at_ms = ready_at_ms,
        Next::InProgress(claim) => task.claim = Some(claim),
        Next::Ready | Next::Ended(_) => {}
    }
    task.set_status(to);
    if is_ended(to) {
        out.txn.delete(&live_key(&task.id));
        if let Some(spec) = &task.spec {
            tasks.queues.dismiss(spec);
        }
    }
    settle(tasks, out, ctx, task)
}

/// A dependency was completed: those that waited for nothing else may go. Gives how many became ready.
pub(super) fn dependency_completed(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    task_id: &str,
) -> Result<u32, Fatal> {
    let tasks = &mut rooms.tasks;
    let mut ready = 0;
    for id in tasks.waiting.remove(task_id).unwrap_or_default() {
        out.txn.delete(&dependent_key(task_id, &id));
        let open = tasks.blocked.get_mut(&id).ok_or_else(|| corrupt(&id, "waits but is not blocked"))?;
        *open = open.saturating_sub(1);
        if *open > 0 {
            continue;
        }
        let mut task = load_live(&*out.txn, &id)?;
        let next = first_place(&task, ctx);
        ready += u32::from(next.status() == TaskStatus::Ready);
        move_to(tasks, out, ctx, &mut task, next)?;
    }
    Ok(ready)
}

/// Where a task that waits for no other begins.
pub(super) fn first_place(task: &Task, ctx: &Ctx) -> Next {
    match task.spec.as_ref().map_or(0, |spec| spec.not_before_ms) {
        not_before_ms if not_before_ms > ctx.now_ms => Next::Pending { ready_at_ms: not_before_ms },
        _ => Next::Ready,
    }
}

/// Writes the row in the table of its status and enters the task in the place of its status.
fn settle(tasks: &mut Tasks, out: &mut Out<'_, '_>, ctx: &Ctx, task: &mut Task) -> Result<(), Fatal> {
    let status = task.status();
    task.updated_at_ms = ctx.now_ms;
    tasks.count_in(status);
    if is_ended(status) {
        task.finished_at_ms = ctx.now_ms;
        out.txn.put(&done_key(&task.id), task);
        let count = Bytes::copy_from_slice(&tasks.count_of(status).to_be_bytes());
        out.txn.put_bytes(&count_key(status), count);
        return Ok(());
    }
    out.txn.put(&live_key(&task.id), task);
    tasks.place(task)?;
    if status == TaskStatus::Ready
        && let Some(spec) = &task.spec
    {
        out.effects.push(Effect::TaskReady {
            capabilities: spec.required_capabilities.clone(),
            agent_id: spec.agent_id.clone(),
        });
    }
    Ok(())
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
        // Rows: from; columns: to; both in the order of the status numbers, 0 to 8.
        let table = [
            "-PRB-F--", // not there yet
            "-.R----C", // PENDING
            "-.-I---C", // READY
            "-PR----C", // BLOCKED
            "-PR-DFTC", // IN_PROGRESS
            "--------", "--------", "--------", "--------",
        ];
        let allowed = |row: &str, to: TaskStatus| {
            let letter = match to {
                TaskStatus::Unspecified => return false,
                TaskStatus::Pending => 'P',
                TaskStatus::Ready => 'R',
                TaskStatus::Blocked => 'B',
                TaskStatus::InProgress => 'I',
                TaskStatus::Completed => 'D',
                TaskStatus::Failed => 'F',
                TaskStatus::TimedOut => 'T',
                TaskStatus::Cancelled => 'C',
            };
            row.contains(letter)
        };
        for (from, row) in table.into_iter().enumerate() {
            let from = TaskStatus::try_from(from as i32).expect("a status");
            for to in (0..=8).map(|to| TaskStatus::try_from(to).expect("a status")) {
                assert_eq!(may_move(from, to), allowed(row, to), "{from:?} to {to:?}");
            }
        }
    }
}
