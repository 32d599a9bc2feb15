//! Releases: attempts that end without their worker's word, because someone cancelled the task, or because the
//! session or the agent is gone.

use std::collections::BTreeMap;
use std::sync::Arc;

use quorate_proto::v1::{
    AttemptOutcome, CancelTaskRequest, CancelTaskResponse, Claim, DeregisterAgentRequest, DeregisterAgentResponse,
    Task, TaskStatus,
};

use super::attempts::{self, Ending};
use super::moves::{self, Next};
use super::{corrupt, is_ended, load, load_live, retry, status_name};
use crate::error::{Fatal, Outcome, not_found, precondition};
use crate::state::{Ctx, Out, Rooms, agents};

/// Ends a live task, whatever it is doing.
pub fn cancel(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    req: CancelTaskRequest,
) -> Outcome<CancelTaskResponse> {
    let Some(mut task) = load(&*out.txn, &req.task_id)? else {
        return Err(not_found("task_id", format!("no task {:?} exists", req.task_id)));
    };
    if is_ended(task.status()) {
        let message = format!("task {:?} is {} already", task.id, status_name(task.status()));
        return Err(precondition("task_id", message));
    }
    task.error = match req.reason.as_str() {
        "" => "cancelled".to_owned(),
        reason => attempts::clip(reason),
    };
    let claim = task.claim.clone();
    if let Some(claim) = &claim {
        attempts::end(out, ctx, &task.id, claim, Ending::of(AttemptOutcome::Cancelled, &task.error))?;
    }
    moves::move_to(&mut rooms.tasks, out, ctx, &mut task, Next::Ended(TaskStatus::Cancelled))?;
    if let Some(claim) = &claim {
        agents::give_back(rooms, out, ctx, &claim.agent_id, 1)?;
    }
    Ok(CancelTaskResponse { task: Some(task), rev: ctx.rev })
}

/// The session's attempts are lost: each counts as a failure, and what may be tried again is ready at once.
pub fn session_ended(rooms: &mut Rooms, out: &mut Out<'_, '_>, ctx: &Ctx, session_id: &str) -> Result<u64, Fatal> {
    let held = rooms.tasks.by_session.get(session_id).into_iter().flatten();
    let ids: Vec<Arc<str>> = held.map(|(_, id)| Arc::clone(id)).collect();
    let mut given_back: BTreeMap<String, u32> = BTreeMap::new();
    for id in &ids {
        let mut task = load_live(&*out.txn, id)?;
        let claim = running_claim(&task)?;
        attempts::end(out, ctx, id, &claim, Ending::of(AttemptOutcome::Lost, "the worker's session ended"))?;
        task.failures += 1;
        let next = if retry::allowed(&task) {
            task.error = "lost with its worker's session".to_owned();
            Next::Ready
        } else {
            task.error =
                format!("lost with its worker's session; attempts that failed or were lost: {}", task.failures);
            Next::Ended(TaskStatus::Failed)
        };
        moves::move_to(&mut rooms.tasks, out, ctx, &mut task, next)?;
        *given_back.entry(claim.agent_id).or_default() += 1;
    }
    for (agent_id, count) in given_back {
        agents::give_back(rooms, out, ctx, &agent_id, count)?;
    }
    Ok(ids.len() as u64)
}

/// Removes an agent; what it held is ready again, unharmed.
pub fn deregister_agent(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    req: DeregisterAgentRequest,
) -> Outcome<DeregisterAgentResponse> {
    if rooms.agents.get(&req.agent_id).is_none() {
        return Err(not_found("agent_id", format!("no agent {:?} is registered", req.agent_id)));
    }
    let held: Vec<Arc<str>> =
        rooms.tasks.by_agent.get(&req.agent_id).into_iter().flatten().map(|(_, id)| Arc::clone(id)).collect();
    for id in &held {
        let mut task = load_live(&*out.txn, id)?;
        let claim = running_claim(&task)?;
        attempts::end(out, ctx, id, &claim, Ending::of(AttemptOutcome::Released, "the agent was deregistered"))?;
        moves::move_to(&mut rooms.tasks, out, ctx, &mut task, Next::Ready)?;
    }
    let count = u32::try_from(held.len()).unwrap_or(u32::MAX);
    agents::give_back(rooms, out, ctx, &req.agent_id, count)?;
    agents::remove(rooms, out, ctx, &req.agent_id);
    Ok(DeregisterAgentResponse { released_tasks: u64::from(count), rev: ctx.rev })
}

/// The claim of a task that an index says is in progress.
pub(super) fn running_claim(task: &Task) -> Result<Claim, Fatal> {
    task.claim.clone().ok_or_else(|| corrupt(&task.id, "is in an index of claims but has none"))
}
