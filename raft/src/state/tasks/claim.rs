//! Claims: the right to finish a task, given to one agent under one session until a deadline.

use std::sync::Arc;

use quorate_proto::v1::{
    Agent, AgentStatus, BandOrder, Claim, ClaimTasksRequest, ClaimTasksResponse, LimitScope, Task,
};

use super::moves::{self, Next};
use super::needs::Needs;
use super::queue::Order;
use super::turns::Charge;
use super::{attempts, body, corrupt, load_live};
use crate::error::{Fatal, Outcome, exhausted, invalid, not_found, precondition};
use crate::faults::{Bug, planted};
use crate::state::breakers::{self, Admission};
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
    // Who asks does not stand any more: what was pushed to it without a stream would reach nobody.
    agents::stop_standing(rooms, out, ctx, &req.agent_id)?;
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
    let mut granted = Vec::new();
    let mut bytes = 0;
    while granted.len() < limit as usize {
        let Some(picked) = pick(rooms, ctx, agent_id) else { break };
        let task = load_live(&*out.txn, &picked.task_id)?;
        bytes += body::weigh(&*out.txn, &task)?;
        if bytes > MAX_GRANTED_BYTES && !granted.is_empty() {
            break;
        }
        let task = assign(rooms, out, ctx, agent_id, &picked, task)?;
        granted.push(body::with_body(&*out.txn, task)?);
    }
    Ok(granted)
}

/// A task chosen for an agent.
#[derive(Debug)]
pub(super) struct Picked {
    pub(super) task_id: Arc<str>,
    pub(super) band: u8,
}

/// What stands between a ready task and an agent besides its needs: limits and breakers.
pub(super) struct Gate<'a> {
    pub(super) rooms: &'a Rooms,
    pub(super) now_ms: u64,
}

impl Gate<'_> {
    /// Whether anything may be started by this agent now.
    pub(super) fn admits(&self, agent: &Agent) -> bool {
        self.has_room(LimitScope::Total, "")
            && self.has_room(LimitScope::AgentType, &agent.agent_type)
            && session_room(self.rooms, &agent.session_id) > 0
            && (self.rooms.breakers.is_quiet() || self.closed(&breakers::agent_breaker(&agent.id)))
    }

    /// Whether a task with these needs may be started now, by whomever.
    pub(super) fn opens(&self, needs: &Needs) -> bool {
        needs.keys.iter().all(|key| self.has_room(LimitScope::Key, key))
            && needs.uses.iter().all(|name| self.closed(name))
    }

    pub(super) fn has_room(&self, scope: LimitScope, name: &str) -> bool {
        let limit = self.rooms.dispatch.limit(scope, name);
        let more = u32::from(planted(Bug::LimitOffByOne));
        limit.is_none_or(|limit| self.rooms.tasks.running.under(scope, name) < limit + more)
    }

    pub(super) fn closed(&self, breaker: &str) -> bool {
        !matches!(self.rooms.breakers.admission(breaker, self.now_ms), Admission::No { .. })
    }
}

/// How the heads of lines compare now.
pub(super) fn order(rooms: &Rooms, now_ms: u64) -> Order<'_> {
    Order { policy: rooms.dispatch.policy(), turns: &rooms.tasks.turns, now_ms }
}

/// The task that the agent takes next, if there is one that it may.
pub(super) fn pick(rooms: &Rooms, ctx: &Ctx, agent_id: &str) -> Option<Picked> {
    let agent = rooms.agents.get(agent_id)?;
    let gate = Gate { rooms, now_ms: ctx.now_ms };
    if !gate.admits(agent) {
        return None;
    }
    let best = rooms.tasks.queues.best_for(agent, order(rooms, ctx.now_ms), |needs| gate.opens(needs))?;
    Some(Picked { task_id: best.task_id(), band: best.band })
}

/// The one place where a claim begins: the attempt, the turn of its share, the probes of its breakers.
pub(super) fn assign(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    agent_id: &str,
    picked: &Picked,
    mut task: Task,
) -> Result<Task, Fatal> {
    let Some(agent) = rooms.agents.get(agent_id).cloned() else {
        return Err(corrupt(&task.id, "was picked for an agent that does not exist"));
    };
    charge(rooms, out, &task, picked.band);
    task.attempts += 1;
    let mut claim = claim_for(&agent, &task, ctx);
    if !rooms.breakers.is_quiet() {
        let uses = task.spec.iter().flat_map(|spec| &spec.uses).cloned();
        for name in uses.chain([breakers::agent_breaker(agent_id)]) {
            if breakers::begin(&mut rooms.breakers, out, ctx, &name, &task.id, claim.token, claim.deadline_ms) {
                claim.probes.push(name);
            }
        }
    }
    attempts::begin(out, &task.id, &agent, &claim);
    moves::move_to(rooms, out, ctx, &mut task, Next::InProgress(claim))?;
    Ok(task)
}

fn charge(rooms: &mut Rooms, out: &mut Out<'_, '_>, task: &Task, band: u8) {
    let Some(spec) = &task.spec else { return };
    let cost = spec.cost.max(1);
    if rooms.tasks.queues.many_shares() {
        let weight = rooms.dispatch.weight(&spec.share);
        rooms.tasks.turns.charge_share(out, Charge { band, share: &spec.share, cost, weight });
    }
    if rooms.dispatch.policy().order() == BandOrder::Weighted {
        rooms.tasks.turns.charge_band(out, band, cost);
    }
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
        agent_type: agent.agent_type.clone(),
        probes: Vec::new(),
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
