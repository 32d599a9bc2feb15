//! Deadlocks: tasks that wait for each other in a circle. A submission that would close one is refused; an import may
//! bring some in, and they are found and resolved here.
//!
//! Finding looks at every blocked task, so it is a read on one node. Resolving is a command that names the circles found,
//! and looks at each again: what has dissolved meanwhile is left alone.

use quorate_proto::v1::{Deadlock, ResolveDeadlocksRequest, ResolveDeadlocksResponse, TaskStatus};

use super::moves::{self, Next};
use super::{Tasks, cycle, load_live, queue};
use crate::effect::Effect;
use crate::error::{Fatal, Outcome, invalid};
use crate::state::{Ctx, Out, Rooms};
use crate::storage::rows::Rows;

/// The most circles that are named at once.
pub const MAX_DEADLOCKS: usize = 100;
/// The longest circle that one command resolves, all of them together.
const MAX_MEMBERS: usize = 20_000;

impl Tasks {
    /// The circles among the blocked tasks, each with the task that is to give way. No task is in two of them.
    pub fn deadlocks(&self, rows: &dyn Rows) -> Result<Vec<Deadlock>, Fatal> {
        let waits_for =
            |id: &str| -> Vec<String> { self.blocked.get(id).into_iter().flatten().map(ToString::to_string).collect() };
        let mut found = Vec::new();
        for mut path in cycle::find_all(self.blocked.keys().map(|id| &**id), waits_for, MAX_DEADLOCKS) {
            path.pop();
            let victim = victim(rows, &path)?;
            found.push(Deadlock { task_ids: path, victim });
        }
        Ok(found)
    }
}

/// The least important, then the youngest.
fn victim(rows: &dyn Rows, circle: &[String]) -> Result<String, Fatal> {
    let mut members = Vec::with_capacity(circle.len());
    for id in circle {
        let task = load_live(rows, id)?;
        let youth = (u64::MAX - task.created_rev, u32::MAX - task.created_position);
        members.push((queue::priority(&task), youth, task.id));
    }
    Ok(members.into_iter().min().map(|(_, _, id)| id).unwrap_or_default())
}

/// Skips the victim of each circle that still is one.
pub fn resolve_deadlocks(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    req: ResolveDeadlocksRequest,
) -> Outcome<ResolveDeadlocksResponse> {
    let members: usize = req.deadlocks.iter().map(|deadlock| deadlock.task_ids.len()).sum();
    if req.deadlocks.len() > MAX_DEADLOCKS || members > MAX_MEMBERS {
        let message = format!("at most {MAX_DEADLOCKS} circles of {MAX_MEMBERS} tasks together");
        return Err(invalid("deadlocks", message));
    }
    let mut resolved = Vec::new();
    for deadlock in req.deadlocks {
        if !deadlock.task_ids.contains(&deadlock.victim) || !is_circle(&rooms.tasks, &deadlock.task_ids) {
            continue;
        }
        let mut task = load_live(&*out.txn, &deadlock.victim)?;
        let path: Vec<String> = deadlock.task_ids.iter().chain(deadlock.task_ids.first()).cloned().collect();
        task.error = format!("deadlock: {}", cycle::shown(&path));
        moves::move_to(rooms, out, ctx, &mut task, Next::Ended(TaskStatus::Skipped))?;
        let (victim, task_ids) = (deadlock.victim.clone(), deadlock.task_ids.clone());
        out.effects.push(Effect::DeadlockResolved { victim, task_ids });
        resolved.push(deadlock);
    }
    Ok(ResolveDeadlocksResponse { resolved, rev: ctx.rev })
}

fn is_circle(tasks: &Tasks, ids: &[String]) -> bool {
    let next = ids.iter().skip(1).chain(ids.first());
    !ids.is_empty()
        && ids
            .iter()
            .zip(next)
            .all(|(id, next)| tasks.blocked.get(id.as_str()).is_some_and(|open| open.contains(next.as_str())))
}
