//! Dependencies added later: a task that has not started waits for more.

use std::cell::Cell;

use quorate_proto::v1::{AddDependenciesRequest, AddDependenciesResponse, TaskStatus};

use super::check::MAX_DEPENDENCIES;
use super::moves::{self, Next};
use super::{is_ended, live_key, load, plan, status_name, unblocks};
use crate::error::{Outcome, exhausted, invalid, not_found, precondition};
use crate::state::{Ctx, Out, Rooms, check_id};

/// Makes a task wait for others that exist. What has ended well already is noted and not waited for.
pub fn add_dependencies(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    req: AddDependenciesRequest,
) -> Outcome<AddDependenciesResponse> {
    if !(1..=MAX_DEPENDENCIES).contains(&req.dependencies.len()) {
        let message = format!("dependencies must be 1 to {MAX_DEPENDENCIES}; got {}", req.dependencies.len());
        return Err(invalid("dependencies", message));
    }
    let Some(mut task) = load(&*out.txn, &req.task_id)? else {
        return Err(not_found("task_id", format!("no task {:?} exists", req.task_id)));
    };
    plan::not_started(&task)?;
    let mut spec = task.spec.clone().unwrap_or_default();
    let mut open = Vec::new();
    for (i, id) in req.dependencies.iter().enumerate() {
        let field = format!("dependencies[{i}]");
        check_id(&field, id)?;
        let Some(dependency) = load(&*out.txn, id)? else {
            return Err(not_found(&field, format!("no task {id:?} exists")));
        };
        let status = dependency.status();
        if is_ended(status) && !unblocks(status) {
            let message = format!("task {id:?} is {}; nothing can wait for it", status_name(status));
            return Err(precondition(&field, message));
        }
        let known = [&spec.dependencies, &spec.soft_dependencies, &spec.pending_dependencies];
        if known.into_iter().any(|list| list.contains(id)) {
            continue;
        }
        spec.dependencies.push(id.clone());
        if !unblocks(status) {
            open.push(id.clone());
        }
    }
    if spec.dependencies.len() > plan::MAX_OPEN {
        let message = format!("task {:?} would have more than {} dependencies", task.id, plan::MAX_OPEN);
        return Err(exhausted("dependencies", message));
    }
    plan::check_added(rooms, &task, &open, &Cell::new(0))?;
    task.spec = Some(spec);
    if task.status() == TaskStatus::Blocked || open.is_empty() {
        for id in &open {
            moves::wait_for(rooms, out, id, &task.id);
        }
        task.updated_at_ms = ctx.now_ms;
        out.txn.put(&live_key(&task.id), &task);
    } else {
        moves::move_to(rooms, out, ctx, &mut task, Next::Blocked(open))?;
    }
    Ok(AddDependenciesResponse { task: Some(task), rev: ctx.rev })
}
