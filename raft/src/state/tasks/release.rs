//! Releases: attempts that end without their worker's word, because the session or the agent is gone.

use std::collections::BTreeMap;
use std::sync::Arc;

use quorate_proto::v1::{AttemptOutcome, Claim, DeregisterAgentRequest, DeregisterAgentResponse, Task, TaskStatus};

use super::attempts::{self, Ending};
use super::moves::{self, Next};
use super::{corrupt, due, load_live, retry_allowed};
use crate::error::{Fatal, Outcome, not_found};
use crate::state::{Ctx, Out, Rooms, agents};

/// The error class of an attempt whose worker is gone.
const LOST: &str = "lost";

/// The session's attempts are lost: each counts as a failure, and what may be tried again is ready at once.
pub fn session_ended(rooms: &mut Rooms, out: &mut Out<'_, '_>, ctx: &Ctx, session_id: &str) -> Result<u64, Fatal> {
    let held = rooms.tasks.by_session.get(session_id).into_iter().flatten();
    let ids: Vec<Arc<str>> = held.map(|(_, id)| Arc::clone(id)).collect();
    let mut given_back: BTreeMap<String, u32> = BTreeMap::new();
    for id in &ids {
        let mut task = load_live(&*out.txn, id)?;
        let claim = running_claim(&task)?;
        let ending = Ending::classed(AttemptOutcome::Lost, "the worker's session ended", LOST);
        attempts::end(rooms, out, ctx, &task, &claim, ending)?;
        task.failures += 1;
        task.error_class = LOST.to_owned();
        let next = if let Some(notice) = &task.cancel {
            task.error = notice.reason.clone();
            Next::Ended(TaskStatus::Cancelled)
        } else if retry_allowed(&task) {
            task.error = "lost with its worker's session".to_owned();
            Next::Ready
        } else {
            task.error =
                format!("lost with its worker's session; attempts that failed or were lost: {}", task.failures);
            Next::Ended(TaskStatus::Failed)
        };
        due::revoke(out, &task, "the session ended");
        moves::move_to(rooms, out, ctx, &mut task, next)?;
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
        let ending = Ending::of(AttemptOutcome::Released, "the agent was deregistered");
        attempts::end(rooms, out, ctx, &task, &claim, ending)?;
        due::revoke(out, &task, "the agent was deregistered");
        let next = match &task.cancel {
            Some(notice) => {
                task.error = notice.reason.clone();
                Next::Ended(TaskStatus::Cancelled)
            }
            None => Next::Ready,
        };
        moves::move_to(rooms, out, ctx, &mut task, next)?;
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
