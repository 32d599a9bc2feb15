//! Claims: the right to finish a task, given to one agent under one session until a deadline.

use prost::Message;
use quorate_proto::v1::{Agent, AgentStatus, Claim, ClaimTasksRequest, ClaimTasksResponse, Task};

use super::moves::{self, Next};
use super::{attempts, load_live};
use crate::error::{Fatal, Outcome, exhausted, invalid, not_found, precondition};
use crate::state::{Ctx, Out, Rooms, agents, check_id};

/// The most tasks one claim may take.
pub const MAX_CLAIM: u32 = 256;
/// One answer carries so much and not more, but always one task: what cannot be received must not be granted.
pub const MAX_GRANTED_BYTES: usize = 4 << 20;
/// The most attempts one session may hold: its end releases them all in one command.
pub const MAX_SESSION_CLAIMS: usize = 10_000;

/// Gives the agent the best ready tasks it may do.
pub fn claim(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    req: ClaimTasksRequest,
) -> Outcome<ClaimTasksResponse> {
    check_id("session_id", &req.session_id)?;
    if req.max_tasks > MAX_CLAIM {
        let message = format!("max_tasks must be at most {MAX_CLAIM}; got {}", req.max_tasks);
        return Err(invalid("max_tasks", message));
    }
    let Some(agent) = rooms.agents.get(&req.agent_id) else {
        return Err(not_found("agent_id", format!("no agent {:?} is registered", req.agent_id)));
    };
    if agent.session_id != req.session_id {
        let message =
            format!("agent {:?} does not belong to session {:?}; register it again", agent.id, req.session_id);
        return Err(precondition("session_id", message));
    }
    if agent.status() == AgentStatus::Draining {
        return Ok(ClaimTasksResponse { tasks: Vec::new(), draining: true, rev: ctx.rev });
    }
    if !works(agent) {
        let message =
            format!("agent {:?} is unavailable or failed; report it AVAILABLE or register it again", agent.id);
        return Err(precondition("agent_id", message));
    }
    if session_room(rooms, &req.session_id) == 0 {
        let message = format!("session {:?} holds {MAX_SESSION_CLAIMS} attempts; finish some first", req.session_id);
        return Err(exhausted("session_id", message));
    }
    let limit = req.max_tasks.max(1).min(free_capacity(agent, 0));
    let tasks = grant(rooms, out, ctx, &req.agent_id, limit)?;
    agents::take(rooms, out, ctx, &req.agent_id, count(&tasks))?;
    Ok(ClaimTasksResponse { tasks, draining: false, rev: ctx.rev })
}

/// Gives the agent up to `limit` tasks under its session. The caller moves its load.
///
/// The token is the command's `rev`. The tasks of one command share it, which is harmless: a token fences the grants
/// of one task against each other, and no command grants the same task twice.
pub(super) fn grant(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    agent_id: &str,
    limit: u32,
) -> Result<Vec<Task>, Fatal> {
    if limit == 0 {
        return Ok(Vec::new());
    }
    let Rooms { agents, tasks, .. } = rooms;
    let Some(agent) = agents.get(agent_id) else {
        return Ok(Vec::new());
    };
    let held = tasks.by_session.get(&agent.session_id).map_or(0, |ids| ids.len());
    let limit = (limit as usize).min(MAX_SESSION_CLAIMS.saturating_sub(held));
    let mut granted = Vec::new();
    let mut bytes = 0;
    for id in tasks.queues.best(agent, limit) {
        let mut task = load_live(&*out.txn, &id)?;
        bytes += task.encoded_len();
        if bytes > MAX_GRANTED_BYTES && !granted.is_empty() {
            break;
        }
        task.attempts += 1;
        let claim = claim_for(agent, &task, ctx);
        attempts::begin(out, &task.id, agent, &claim);
        moves::move_to(tasks, out, ctx, &mut task, Next::InProgress(claim))?;
        granted.push(task);
    }
    Ok(granted)
}

fn claim_for(agent: &Agent, task: &Task, ctx: &Ctx) -> Claim {
    let timeout_ms = task.spec.as_ref().map_or(super::DEFAULT_TIMEOUT_MS, |spec| spec.attempt_timeout_ms);
    Claim {
        agent_id: agent.id.clone(),
        session_id: agent.session_id.clone(),
        token: ctx.rev,
        attempt: task.attempts,
        claimed_at_ms: ctx.now_ms,
        deadline_ms: ctx.now_ms.saturating_add(timeout_ms),
    }
}

/// How many more attempts the agent may hold once `ended` of its attempts are over.
pub(super) fn free_capacity(agent: &Agent, ended: u32) -> u32 {
    agent.capacity.saturating_sub(agent.load.saturating_sub(ended))
}

/// Whether the agent takes work, if it has room.
pub(super) fn works(agent: &Agent) -> bool {
    matches!(agent.status(), AgentStatus::Available | AgentStatus::Busy)
}

pub(super) fn count(tasks: &[Task]) -> u32 {
    u32::try_from(tasks.len()).unwrap_or(u32::MAX)
}

fn session_room(rooms: &Rooms, session_id: &str) -> usize {
    MAX_SESSION_CLAIMS.saturating_sub(rooms.tasks.by_session.get(session_id).map_or(0, |ids| ids.len()))
}
