//! Dead letters: tasks that failed for good. They wait, with their whole history, until somebody redrives or purges them.

use std::collections::BTreeSet;

use quorate_proto::v1::{
    Attempt, PurgeTasksRequest, PurgeTasksResponse, RedriveTasksRequest, RedriveTasksResponse, Task, TaskStatus,
};

use super::moves::{self, Next};
use super::{
    attempts, body, child_key, dead_key, done_key, idempotency_key, is_dead, is_ended, load, plan, status_name,
};
use crate::error::{Fatal, Outcome, invalid, not_found, precondition};
use crate::state::{Ctx, Out, Rooms, check_id, progress};
use crate::storage::keys::{Key, Table};
use crate::storage::rows::{self, Rows};

/// The most tasks that one request may redrive or purge.
pub const MAX_DEAD_LETTERS: usize = 1_000;
/// The most rows that one purge removes: what a task was tried a thousand times needs room for others.
const MAX_PURGED_ROWS: usize = 20_000;

/// Sends dead letters back to the queue, with their failures forgotten. All of them or none.
pub fn redrive(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    req: RedriveTasksRequest,
) -> Outcome<RedriveTasksResponse> {
    let tasks = named(&*out.txn, &req.task_ids)?;
    for (i, task) in tasks.iter().enumerate() {
        if !is_dead(task.status()) {
            let message = format!("task {:?} is {} and no dead letter", task.id, status_name(task.status()));
            return Err(precondition(&format!("task_ids[{i}]"), message));
        }
    }
    let redriven = u32::try_from(tasks.len()).unwrap_or(u32::MAX);
    for mut task in tasks {
        task.failures = 0;
        task.reworks = 0;
        task.error.clear();
        task.error_class.clear();
        task.touched = true;
        let open = plan::open_of(&*out.txn, &task)?;
        let next = if open.is_empty() { moves::first_place(&task, ctx) } else { Next::Blocked(open) };
        moves::move_to(rooms, out, ctx, &mut task, next)?;
    }
    Ok(RedriveTasksResponse { redriven, rev: ctx.rev })
}

/// Removes ended tasks with everything that is known of them. All of them or none.
pub fn purge(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    req: PurgeTasksRequest,
) -> Outcome<PurgeTasksResponse> {
    let tasks = named(&*out.txn, &req.task_ids)?;
    let mut rows = 0;
    for (i, task) in tasks.iter().enumerate() {
        let field = format!("task_ids[{i}]");
        if !is_ended(task.status()) {
            let message = format!("task {:?} is {}; cancel it first", task.id, status_name(task.status()));
            return Err(precondition(&field, message));
        }
        if let Some(waiting) = rooms.tasks.waiting.get(task.id.as_str()).and_then(BTreeSet::first) {
            return Err(precondition(&field, format!("task {waiting:?} waits for {:?}", task.id)));
        }
        rows += task.attempts as usize;
        if rows > MAX_PURGED_ROWS {
            let message = format!("these tasks have more than {MAX_PURGED_ROWS} attempts; purge fewer at once");
            return Err(invalid("task_ids", message));
        }
    }
    let purged = u32::try_from(tasks.len()).unwrap_or(u32::MAX);
    for task in tasks {
        remove(rooms, out, ctx, &task)?;
    }
    Ok(PurgeTasksResponse { purged, rev: ctx.rev })
}

fn named(rows: &dyn Rows, task_ids: &[String]) -> Outcome<Vec<Task>> {
    if !(1..=MAX_DEAD_LETTERS).contains(&task_ids.len()) {
        let message = format!("task_ids must be 1 to {MAX_DEAD_LETTERS}; got {}", task_ids.len());
        return Err(invalid("task_ids", message));
    }
    let mut seen = BTreeSet::new();
    let mut tasks = Vec::with_capacity(task_ids.len());
    for (i, id) in task_ids.iter().enumerate() {
        let field = format!("task_ids[{i}]");
        check_id(&field, id)?;
        if !seen.insert(id) {
            return Err(invalid(&field, format!("{id:?} is named twice")));
        }
        tasks.push(load(rows, id)?.ok_or_else(|| not_found(&field, format!("no task {id:?} exists")))?);
    }
    Ok(tasks)
}

fn remove(rooms: &mut Rooms, out: &mut Out<'_, '_>, ctx: &Ctx, task: &Task) -> Result<(), Fatal> {
    let status = task.status();
    rooms.tasks.count_out(status);
    moves::put_count(&rooms.tasks, out, status);
    let mut tried: Vec<Attempt> = Vec::new();
    rows::scan_prefix::<Attempt>(&*out.txn, &Key::table(Table::Attempt).text(&task.id), |_, attempt| {
        tried.push(attempt);
        Ok(true)
    })?;
    for attempt in tried {
        out.txn.delete(&attempts::key(&task.id, attempt.number));
        out.txn.delete(&attempts::agent_key(&attempt.agent_id).number(u64::MAX - attempt.token).text(&task.id));
    }
    out.txn.delete(&done_key(&task.id));
    if is_dead(status) {
        out.txn.delete(&dead_key(&task.id));
    }
    body::delete(out, &task.id);
    if !task.parent_id.is_empty() {
        out.txn.delete(&child_key(&task.parent_id, &task.id));
    }
    if let Some(spec) = &task.spec {
        if !spec.idempotency_key.is_empty() {
            out.txn.delete(&idempotency_key(&task.parent_id, &spec.idempotency_key));
        }
        progress::moved(rooms, out, ctx, spec, status, TaskStatus::Unspecified, task.touched);
    }
    Ok(())
}
