//! Submission: all tasks of a request are created, or none. What may refuse it is in `check` (the request alone) and
//! `plan` (the state); here is what is written.

use bytes::Bytes;
use quorate_proto::v1::{SubmitTasksRequest, SubmitTasksResponse, SubmittedTask, Task, TaskSpec};

use super::aftermath::Kind;
use super::moves::{self, Next};
use super::plan::{self, First, MAX_SUBMIT, Plan, Planned};
use super::{check, child_key, corrupt, idempotency_key, live_key, load, load_live};
use crate::error::{Fatal, Outcome, invalid};
use crate::state::{Ctx, Out, Rooms, check_quota};

/// Creates tasks.
pub fn submit(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    mut req: SubmitTasksRequest,
) -> Outcome<SubmitTasksResponse> {
    if !(1..=MAX_SUBMIT).contains(&req.tasks.len()) {
        return Err(invalid("tasks", format!("tasks must be 1 to {MAX_SUBMIT}; got {}", req.tasks.len())));
    }
    let mut specs = Vec::with_capacity(req.tasks.len());
    let mut routed = Vec::with_capacity(req.tasks.len());
    for (i, spec) in std::mem::take(&mut req.tasks).into_iter().enumerate() {
        let (spec, by) = check::complete(rooms, &format!("tasks[{i}]"), spec)?;
        specs.push(spec);
        routed.push(by);
    }
    let plan = plan::plan(rooms, &*out.txn, ctx, &req, specs)?;
    let new = plan.tasks.iter().filter(|planned| matches!(planned, Planned::New { .. })).count() as u64;
    check_quota("max_live_tasks", rooms.quotas.max_live_tasks, rooms.tasks.live() as u64, new)?;
    let submitted = write(rooms, out, ctx, plan, &routed)?;
    Ok(SubmitTasksResponse { tasks: submitted, rev: ctx.rev })
}

/// Creates one task for another room, as if it had been submitted. A rejection has written nothing.
pub fn submit_internal(rooms: &mut Rooms, out: &mut Out<'_, '_>, ctx: &Ctx, spec: TaskSpec) -> Outcome<Task> {
    let task_id = spec.task_id.clone();
    submit(rooms, out, ctx, SubmitTasksRequest { tasks: vec![spec], ..SubmitTasksRequest::default() })?;
    Ok(load(&*out.txn, &task_id)?.ok_or_else(|| corrupt(&task_id, "was submitted but has no row"))?)
}

fn write(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    plan: Plan,
    routed: &[String],
) -> Result<Vec<SubmittedTask>, Fatal> {
    let Plan { tasks, parent, joined } = plan;
    let mut submitted = Vec::with_capacity(tasks.len());
    let mut born = Vec::new();
    for (planned, routed_by) in tasks.into_iter().zip(routed) {
        submitted.push(match planned {
            Planned::Existed { task_id } => (task_id, true),
            Planned::New { mut task, first } => {
                task.routed_by.clone_from(routed_by);
                create(rooms, out, ctx, &mut task, first)?;
                if !super::is_ended(task.status()) {
                    born.push(task.id.clone());
                }
                (task.id, false)
            }
        });
    }
    if let Some(parent) = &parent {
        for waiting in &joined {
            join(rooms, out, ctx, &parent.id, waiting, &born)?;
        }
    }
    // One that ended at birth may be waited for by one that the request lists before it.
    for (task_id, _) in submitted.iter().filter(|(_, existed)| !existed) {
        let waited_for = rooms.tasks.waiting.contains_key(task_id.as_str());
        if waited_for && !super::is_live(&*out.txn, task_id)? {
            rooms.tasks.aftermath.add(ctx, Kind::Dependents, task_id);
        }
    }
    if let Some(parent) = parent {
        out.txn.put(&live_key(&parent.id), &parent);
    }
    // The status of each once all are stored: one may have been given to an agent already, but not within this command.
    submitted
        .into_iter()
        .map(|(task_id, existed)| {
            let task = load(&*out.txn, &task_id)?.ok_or_else(|| corrupt(&task_id, "was submitted but has no row"))?;
            Ok(SubmittedTask { task_id, status: task.status, existed })
        })
        .collect()
}

/// A task that waits for the parent waits for what it spawned too, in the same way.
fn join(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    parent_id: &str,
    waiting: &str,
    born: &[String],
) -> Result<(), Fatal> {
    if born.is_empty() {
        return Ok(());
    }
    let mut task = load_live(&*out.txn, waiting)?;
    if let Some(spec) = &mut task.spec {
        let soft = spec.soft_dependencies.iter().any(|id| id == parent_id);
        let list = if soft { &mut spec.soft_dependencies } else { &mut spec.dependencies };
        list.extend(born.iter().cloned());
    }
    for child in born {
        moves::wait_for(rooms, out, child, waiting);
    }
    task.updated_at_ms = ctx.now_ms;
    out.txn.put(&live_key(waiting), &task);
    Ok(())
}

fn create(rooms: &mut Rooms, out: &mut Out<'_, '_>, ctx: &Ctx, task: &mut Task, first: First) -> Result<(), Fatal> {
    let key = task.spec.as_ref().map_or("", |spec| spec.idempotency_key.as_str());
    if !key.is_empty() {
        let id = Bytes::copy_from_slice(task.id.as_bytes());
        out.txn.put_bytes(&idempotency_key(&task.parent_id, key), id);
    }
    if !task.parent_id.is_empty() {
        out.txn.put_bytes(&child_key(&task.parent_id, &task.id), Bytes::new());
    }
    let next = match first {
        First::Free => moves::first_place(task, ctx),
        First::Blocked(open) => Next::Blocked(open),
        First::Ended(status, why) => {
            task.error = why;
            Next::Ended(status)
        }
    };
    moves::create(rooms, out, ctx, task, next)
}

/// Ties a task that the coordinator itself makes to the one that it is for; the caller writes the parent.
pub(super) fn attach_child(out: &mut Out<'_, '_>, parent: &mut Task, child: &mut Task) {
    child.parent_id.clone_from(&parent.id);
    child.depth = parent.depth + 1;
    parent.children += 1;
    out.txn.put_bytes(&child_key(&parent.id, &child.id), Bytes::new());
}
