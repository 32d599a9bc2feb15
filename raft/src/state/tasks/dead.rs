//! Dead letters: tasks that failed for good. They wait, with their whole history, until somebody redrives or purges them.

use std::cell::Cell;
use std::collections::BTreeSet;

use quorate_proto::v1::{
    Attempt, PurgeTasksRequest, PurgeTasksResponse, RedriveTasksRequest, RedriveTasksResponse, Task, TaskSpec,
    TaskStatus,
};

use super::moves::{self, Next};
use super::{
    attempts, body, child_key, dead_key, done_key, idempotency_key, is_dead, is_ended, is_live, load, plan, split_pair,
    status_name,
};
use crate::error::{Fatal, Outcome, invalid, not_found, precondition};
use crate::state::{Ctx, Out, Rooms, check_id, progress};
use crate::storage::keys::{Key, Table};
use crate::storage::rows::{self, Rows};

/// The most tasks that one request may redrive or purge.
pub const MAX_DEAD_LETTERS: usize = 1_000;
/// The most rows that one purge removes: what a task was tried a thousand times needs room for others.
pub(super) const MAX_PURGED_ROWS: usize = 20_000;

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
    let specs: Vec<(usize, &TaskSpec)> =
        tasks.iter().enumerate().filter_map(|(i, task)| Some((i, task.spec.as_ref()?))).collect();
    plan::check_sets(rooms, &specs)?;
    let walked = Cell::new(0);
    for task in &tasks {
        plan::check_added(rooms, task, &plan::open_of(&*out.txn, task)?, &walked)?;
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
        if let Some(why) = needed(&*out.txn, task)? {
            return Err(precondition(&field, why));
        }
        rows += weight(task);
        if rows > MAX_PURGED_ROWS {
            let message =
                format!("these tasks have more than {MAX_PURGED_ROWS} attempts and children; purge fewer at once");
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

/// How many rows go with a task, beyond the few that each one has.
pub(super) fn weight(task: &Task) -> usize {
    task.attempts as usize + task.children as usize
}

/// Why an ended task has to stay: a live one waits for it, or one that it spawned is live.
pub(super) fn needed(rows: &dyn Rows, task: &Task) -> Result<Option<String>, Fatal> {
    let dependents = Key::table(Table::Dependent).text(&task.id);
    let mut waiting = None;
    rows.scan(dependents.as_bytes(), &dependents.prefix_end(), &mut |key, _| {
        waiting = Some(split_pair(key)?.1.to_owned());
        Ok(false)
    })?;
    if let Some(waiting) = waiting {
        return Ok(Some(format!("task {waiting:?} waits for {:?}", task.id)));
    }
    let child = live_child(rows, task)?;
    Ok(child.map(|child| format!("task {child:?}, which {:?} spawned, has not ended", task.id)))
}

/// A task that this one spawned and that has not ended.
fn live_child(rows: &dyn Rows, task: &Task) -> Result<Option<String>, Fatal> {
    for child in children(rows, task)? {
        if is_live(rows, &child)? {
            return Ok(Some(child));
        }
    }
    Ok(None)
}

fn children(rows: &dyn Rows, task: &Task) -> Result<Vec<String>, Fatal> {
    let mut children = Vec::new();
    if task.children > 0 {
        let prefix = Key::table(Table::Child).text(&task.id);
        rows.scan(prefix.as_bytes(), &prefix.prefix_end(), &mut |key, _| {
            children.push(split_pair(key)?.1.to_owned());
            Ok(true)
        })?;
    }
    Ok(children)
}

/// What belongs to the parent goes with it: a later task of the same id has no children and no keys of theirs.
fn forget_children(out: &mut Out<'_, '_>, task: &Task) -> Result<(), Fatal> {
    for child in children(&*out.txn, task)? {
        out.txn.delete(&child_key(&task.id, &child));
        if let Some(child) = load(&*out.txn, &child)? {
            forget_key(out, &child)?;
        }
    }
    Ok(())
}

/// The key is free again, unless it names a later task by now.
fn forget_key(out: &mut Out<'_, '_>, task: &Task) -> Result<(), Fatal> {
    let key = task.spec.as_ref().map_or("", |spec| spec.idempotency_key.as_str());
    if !key.is_empty() {
        let key = idempotency_key(&task.parent_id, key);
        if out.txn.get_bytes(key.as_bytes())?.is_some_and(|named| named == task.id) {
            out.txn.delete(&key);
        }
    }
    Ok(())
}

/// Removes an ended task with everything that is known of it.
pub(super) fn remove(rooms: &mut Rooms, out: &mut Out<'_, '_>, ctx: &Ctx, task: &Task) -> Result<(), Fatal> {
    let status = task.status();
    rooms.tasks.count_out(status);
    moves::put_count(&rooms.tasks, out, status);
    // Their outputs may be large: only what names their rows is kept.
    let mut tried: Vec<(u32, String, u64)> = Vec::new();
    rows::scan_prefix::<Attempt>(&*out.txn, &Key::table(Table::Attempt).text(&task.id), |_, attempt| {
        tried.push((attempt.number, attempt.agent_id, attempt.token));
        Ok(true)
    })?;
    for (number, agent_id, token) in tried {
        out.txn.delete(&attempts::key(&task.id, number));
        out.txn.delete(&attempts::agent_key(&agent_id).number(u64::MAX - token).text(&task.id));
    }
    forget_children(out, task)?;
    out.txn.delete(&done_key(&task.id));
    if is_dead(status) {
        out.txn.delete(&dead_key(&task.id));
    }
    body::delete(out, &task.id);
    if !task.parent_id.is_empty() {
        out.txn.delete(&child_key(&task.parent_id, &task.id));
    }
    forget_key(out, task)?;
    if let Some(spec) = &task.spec {
        progress::moved(rooms, out, ctx, spec, status, TaskStatus::Unspecified, task.touched);
    }
    Ok(())
}
