//! Agents: who exists, what they offer and how busy they are.
//!
//! Owns the Agent rows. At most [`MAX_AGENTS`] exist, so all of them are in memory, with indexes by capability, status
//! and session. Load is derived from claims: `tasks` moves it through [`shift_load`], nobody reports it.
//!
//! Invariant: a record is removed only when its load is 0. So while an attempt runs, its agent's record exists and
//! counts it.
//!
//! Deliberately absent: tasks. Deregistering an agent that holds claims is `tasks::deregister_agent`.

mod checked;
mod standing;

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use quorate_proto::v1::{
    Agent, AgentFilter, AgentStatus, DrainAgentRequest, DrainAgentResponse, RegisterAgentRequest,
    RegisterAgentResponse, ReportAgentRequest, ReportAgentResponse,
};

use crate::effect::Effect;
use crate::error::{Fatal, Outcome, exhausted, invalid, not_found, precondition};
use crate::state::{Ctx, Out, Rooms, check_quota, remove_from};
use crate::storage::keys::{Key, Table};
use crate::storage::rows::{self, Rows};

/// The most agents that may be registered at once.
pub const MAX_AGENTS: usize = 10_000;
/// The most attempts one agent may hold at once.
pub const MAX_CAPACITY: u32 = 10_000;
/// How long the record of an agent whose session ended is kept.
pub const FORGET_AFTER_MS: u64 = 300_000;

const FULL_HEALTH: u32 = 1_000;

/// Every agent, with its indexes.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Agents {
    all: BTreeMap<String, Agent>,
    by_capability: BTreeMap<String, BTreeSet<String>>,
    by_status: BTreeMap<i32, BTreeSet<String>>,
    by_session: BTreeMap<String, BTreeSet<String>>,
    /// Idle agents without a session, by when their record goes.
    forget: BTreeSet<(u64, String)>,
    standing: standing::Standing,
}

// An agent holds no floating-point number, so its equality is total; the generated type just does not say so.
impl Eq for Agents {}

impl Agents {
    /// Builds every index from the rows.
    pub fn rebuild(rows: &dyn Rows) -> Result<Self, Fatal> {
        let mut agents = Agents::default();
        rows::scan_prefix::<Agent>(rows, &Key::table(Table::Agent), |_, agent| {
            agents.put(agent);
            Ok(true)
        })?;
        Ok(agents)
    }

    /// One agent.
    pub fn get(&self, id: &str) -> Option<&Agent> {
        self.all.get(id)
    }

    /// Every agent, by id.
    pub fn iter(&self) -> impl Iterator<Item = &Agent> {
        self.all.values()
    }

    /// How many agents are registered.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether no agent is registered.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// How many agents have this status.
    pub fn count(&self, status: AgentStatus) -> usize {
        self.by_status.get(&(status as i32)).map_or(0, |ids| ids.len())
    }

    /// The agents that match, least loaded first, then by load, then by id.
    pub fn find(&self, filter: &AgentFilter, limit: usize) -> Vec<Agent> {
        let mut found: Vec<&Agent> =
            self.offering(&filter.capabilities).filter(|agent| matches(filter, agent)).collect();
        found.sort_by(|a, b| by_load(a, b));
        found.into_iter().take(limit).cloned().collect()
    }

    /// Whether some agent that has a session and did not fail offers all of these.
    pub fn offers_all(&self, capabilities: &[String]) -> bool {
        self.offering(capabilities).any(|agent| can_be_asked(agent) && offers(agent, capabilities))
    }

    /// Agents with a standing order and room that may offer all of these, the best first: the caller checks the rest.
    pub fn standing_for<'a>(&'a self, capabilities: &[String], agent_type: &str) -> impl Iterator<Item = &'a Agent> {
        self.standing.offering(capabilities, agent_type).filter_map(|id| self.all.get(id))
    }

    /// Whether some agent with a standing order has room.
    pub fn has_standing(&self) -> bool {
        !self.standing.is_empty()
    }

    /// When a record is to be removed next.
    pub fn next_due_ms(&self) -> Option<u64> {
        self.forget.first().map(|(at_ms, _)| *at_ms)
    }

    /// The agents that offer the rarest of these; all of them if none is asked for.
    pub(crate) fn offering<'a>(&'a self, capabilities: &[String]) -> Box<dyn Iterator<Item = &'a Agent> + 'a> {
        let rarest = capabilities
            .iter()
            .map(|capability| self.by_capability.get(capability))
            .min_by_key(|ids| ids.map_or(0, |ids| ids.len()));
        match rarest {
            None => Box::new(self.all.values()),
            Some(None) => Box::new(std::iter::empty()),
            Some(Some(ids)) => Box::new(ids.iter().filter_map(|id| self.all.get(id))),
        }
    }

    /// Replaces the record and what the indexes say of it.
    fn put(&mut self, agent: Agent) -> Option<Agent> {
        let before = self.all.remove(&agent.id);
        if let Some(before) = &before {
            self.unindex(before, Some(&agent));
        }
        if before.as_ref().is_none_or(|before| before.capabilities != agent.capabilities) {
            for capability in &agent.capabilities {
                self.by_capability.entry(capability.clone()).or_default().insert(agent.id.clone());
            }
        }
        self.by_status.entry(agent.status).or_default().insert(agent.id.clone());
        if !agent.session_id.is_empty() {
            self.by_session.entry(agent.session_id.clone()).or_default().insert(agent.id.clone());
        }
        self.standing.put(&agent);
        if forgettable(&agent) {
            self.forget.insert((agent.forget_at_ms, agent.id.clone()));
        }
        self.all.insert(agent.id.clone(), agent);
        before
    }

    fn take_out(&mut self, id: &str) -> Option<Agent> {
        let agent = self.all.remove(id)?;
        self.unindex(&agent, None);
        Some(agent)
    }

    /// Capabilities seldom change and are many: their index stays if they do not change.
    fn unindex(&mut self, agent: &Agent, next: Option<&Agent>) {
        if next.is_none_or(|next| next.capabilities != agent.capabilities) {
            for capability in &agent.capabilities {
                remove_from(&mut self.by_capability, capability, &agent.id);
            }
        }
        self.standing.take_out(agent);
        remove_from(&mut self.by_status, &agent.status, &agent.id);
        remove_from(&mut self.by_session, &agent.session_id, &agent.id);
        self.forget.remove(&(agent.forget_at_ms, agent.id.clone()));
    }
}

/// Creates or updates an agent and ties it to the session.
///
/// The caller has seen to it that the session lives (`sessions::register_agent`, the command's way in).
/// Claims made under an earlier session stay with that session until it ends. Registering does not undo a drain.
pub fn register(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    req: RegisterAgentRequest,
) -> Outcome<RegisterAgentResponse> {
    let req = checked::registration(req)?;
    let mut agent = match rooms.agents.get(&req.agent_id) {
        Some(known) => {
            let mut agent = known.clone();
            if agent.status() == AgentStatus::Unavailable || agent.session_id != req.session_id {
                agent.restarts = agent.restarts.saturating_add(1);
            }
            agent
        }
        None if rooms.agents.len() >= MAX_AGENTS => {
            return Err(exhausted("agent_id", format!("{MAX_AGENTS} agents are registered; remove some first")));
        }
        None => {
            check_quota("max_agents", rooms.quotas.max_agents, rooms.agents.len() as u64, 1)?;
            Agent {
                id: req.agent_id,
                status: AgentStatus::Available as i32,
                health_permille: FULL_HEALTH,
                registered_at_ms: ctx.now_ms,
                ..Agent::default()
            }
        }
    };
    if agent.session_id != req.session_id {
        agent.standing = false;
    }
    agent.session_id = req.session_id;
    agent.agent_type = req.agent_type;
    agent.capabilities = req.capabilities;
    agent.capacity = req.capacity;
    agent.execution_mode = req.execution_mode;
    agent.endpoint = req.endpoint;
    agent.metadata = req.metadata;
    agent.forget_at_ms = 0;
    if agent.status() != AgentStatus::Draining {
        agent.reason.clear();
        agent.set_status(working_status(&agent));
    }
    let agent = store(&mut rooms.agents, out, ctx, agent)?;
    Ok(RegisterAgentResponse { agent: Some(agent), rev: ctx.rev })
}

/// Takes an agent's word on its health, status and reason.
pub fn report(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    req: ReportAgentRequest,
) -> Outcome<ReportAgentResponse> {
    let mut agent = existing(&rooms.agents, &req.agent_id)?.clone();
    if let Some(health) = req.health_permille {
        if health > FULL_HEALTH {
            return Err(invalid(
                "health_permille",
                format!("health_permille must be 0 to {FULL_HEALTH}; got {health}"),
            ));
        }
        agent.health_permille = health;
    }
    checked::length("reason", &req.reason)?;
    match AgentStatus::try_from(req.status) {
        Ok(AgentStatus::Unspecified) => {
            if !req.reason.is_empty() {
                agent.reason = req.reason;
            }
        }
        Ok(wanted @ (AgentStatus::Available | AgentStatus::Unavailable | AgentStatus::Failed)) => {
            let next = if wanted == AgentStatus::Available { working_status(&agent) } else { wanted };
            check_reported(&agent, wanted, next)?;
            agent.set_status(next);
            // What it said of an earlier state does not explain this one.
            agent.reason = req.reason;
        }
        _ => return Err(invalid("status", "status must be AVAILABLE, UNAVAILABLE or FAILED, or be left out")),
    }
    let agent = store(&mut rooms.agents, out, ctx, agent)?;
    Ok(ReportAgentResponse { agent: Some(agent), rev: ctx.rev })
}

/// No new claims for this agent; its record goes when its last attempt has ended, at once if it holds none.
pub fn drain(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    req: DrainAgentRequest,
) -> Outcome<DrainAgentResponse> {
    let mut agent = existing(&rooms.agents, &req.agent_id)?.clone();
    let remaining = agent.load;
    if remaining == 0 {
        remove(rooms, out, ctx, &req.agent_id);
    } else if agent.status() != AgentStatus::Draining {
        agent.set_status(AgentStatus::Draining);
        agent.forget_at_ms = 0;
        store(&mut rooms.agents, out, ctx, agent)?;
    }
    Ok(DrainAgentResponse { remaining, rev: ctx.rev })
}

/// Work is pushed to the agent from now on, as it has room.
pub fn stand(rooms: &mut Rooms, out: &mut Out<'_, '_>, ctx: &Ctx, agent_id: &str, session_id: &str) -> Outcome<()> {
    let agent = existing(&rooms.agents, agent_id)?;
    if agent.session_id != session_id {
        let message = format!("agent {agent_id:?} does not belong to session {session_id:?}; register it again");
        return Err(precondition("session_id", message));
    }
    if !agent.standing {
        let agent = Agent { standing: true, ..agent.clone() };
        let agent = store(&mut rooms.agents, out, ctx, agent)?;
        if is_available(&agent) {
            out.effects.push(Effect::AgentReady { agent_id: agent.id });
        }
    }
    Ok(())
}

/// Nothing is pushed to the agent any more.
pub fn stop_standing(rooms: &mut Rooms, out: &mut Out<'_, '_>, ctx: &Ctx, agent_id: &str) -> Result<(), Fatal> {
    if let Some(agent) = rooms.agents.get(agent_id).filter(|agent| agent.standing) {
        let agent = Agent { standing: false, ..agent.clone() };
        store(&mut rooms.agents, out, ctx, agent)?;
    }
    Ok(())
}

/// Removes the record, if it is there. The caller has seen to its claims.
pub fn remove(rooms: &mut Rooms, out: &mut Out<'_, '_>, ctx: &Ctx, agent_id: &str) {
    if let Some(agent) = rooms.agents.take_out(agent_id) {
        out.txn.delete(&agent_key(agent_id));
        out.effects.push(Effect::AgentChanged { agent: Box::new(agent), removed: true, rev: ctx.rev });
    }
}

/// The session's agents can no longer be asked. A draining one goes, if it is idle; else with its last attempt.
pub fn session_ended(rooms: &mut Rooms, out: &mut Out<'_, '_>, ctx: &Ctx, session_id: &str) -> Result<(), Fatal> {
    let ids: Vec<String> = rooms.agents.by_session.get(session_id).into_iter().flatten().cloned().collect();
    for id in ids {
        let Some(mut agent) = rooms.agents.get(&id).cloned() else {
            continue;
        };
        agent.session_id.clear();
        agent.standing = false;
        if agent.status() == AgentStatus::Draining {
            if agent.load == 0 {
                remove(rooms, out, ctx, &id);
                continue;
            }
        } else {
            agent.set_status(AgentStatus::Unavailable);
            agent.reason = "session ended".to_owned();
            agent.forget_at_ms = ctx.now_ms.saturating_add(FORGET_AFTER_MS);
        }
        store(&mut rooms.agents, out, ctx, agent)?;
    }
    Ok(())
}

/// Removes records whose time has come, at most `limit`.
pub fn run_due(rooms: &mut Rooms, out: &mut Out<'_, '_>, ctx: &Ctx, limit: usize) -> Result<usize, Fatal> {
    let due: Vec<String> = (rooms.agents.forget.iter())
        .take_while(|(at_ms, _)| *at_ms <= ctx.now_ms)
        .take(limit)
        .map(|(_, id)| id.clone())
        .collect();
    for id in &due {
        remove(rooms, out, ctx, id);
    }
    Ok(due.len())
}

/// The agent began `begun` attempts and `ended` others ended. One for one changes nothing, and writes nothing.
pub fn shift_load(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    agent_id: &str,
    ended: u32,
    begun: u32,
) -> Result<(), Fatal> {
    if ended == begun {
        return Ok(());
    }
    let Some(mut agent) = rooms.agents.get(agent_id).cloned() else {
        return Err(Fatal::Corrupt(format!("agent {agent_id:?} holds attempts but has no record")));
    };
    let Some(load) = agent.load.saturating_add(begun).checked_sub(ended) else {
        return Err(Fatal::Corrupt(format!("agent {agent_id:?} would hold fewer than 0 attempts")));
    };
    agent.load = load;
    match agent.status() {
        AgentStatus::Draining if load == 0 => {
            remove(rooms, out, ctx, agent_id);
            return Ok(());
        }
        AgentStatus::Available | AgentStatus::Busy => agent.set_status(working_status(&agent)),
        _ => {}
    }
    store(&mut rooms.agents, out, ctx, agent)?;
    Ok(())
}

/// The agent began `count` attempts.
pub fn take(rooms: &mut Rooms, out: &mut Out<'_, '_>, ctx: &Ctx, agent_id: &str, count: u32) -> Result<(), Fatal> {
    shift_load(rooms, out, ctx, agent_id, 0, count)
}

/// `count` attempts of the agent ended.
pub fn give_back(rooms: &mut Rooms, out: &mut Out<'_, '_>, ctx: &Ctx, agent_id: &str, count: u32) -> Result<(), Fatal> {
    shift_load(rooms, out, ctx, agent_id, count, 0)
}

/// Whether an agent's status may change from one to another; staying is always allowed.
pub fn may_move(from: AgentStatus, to: AgentStatus) -> bool {
    use AgentStatus::{Available, Busy, Draining, Failed, Unavailable};
    match from {
        Available => matches!(to, Available | Busy | Draining | Unavailable | Failed),
        Busy => matches!(to, Busy | Available | Draining | Unavailable | Failed),
        Unavailable => matches!(to, Unavailable | Available | Busy | Draining | Failed),
        Failed => matches!(to, Failed | Available | Busy | Draining | Unavailable),
        // A drain is not undone: the record goes when it is idle, and may then register anew.
        Draining => matches!(to, Draining),
        AgentStatus::Unspecified => false,
    }
}

/// Whether a claim by this agent can be granted something now.
pub fn is_available(agent: &Agent) -> bool {
    agent.status() == AgentStatus::Available && agent.load < agent.capacity
}

/// Whether an agent passes a filter; empty and zero fields do not filter.
pub fn matches(filter: &AgentFilter, agent: &Agent) -> bool {
    offers(agent, &filter.capabilities)
        && (filter.statuses.is_empty() || filter.statuses.contains(&agent.status))
        && (filter.agent_type.is_empty() || filter.agent_type == agent.agent_type)
        && (filter.execution_mode == 0 || filter.execution_mode == agent.execution_mode)
        && agent.health_permille >= filter.min_health_permille
        && filter
            .max_load_permille
            .is_none_or(|max| u64::from(agent.load) * 1_000 <= u64::from(max) * u64::from(agent.capacity))
}

/// Whether an agent offers all of these.
pub fn offers(agent: &Agent, capabilities: &[String]) -> bool {
    capabilities.iter().all(|capability| agent.capabilities.binary_search(capability).is_ok())
}

/// Whether an agent may yet be given work: it has a session and did not fail.
pub fn can_be_asked(agent: &Agent) -> bool {
    !agent.session_id.is_empty() && agent.status() != AgentStatus::Failed
}

/// Load over capacity, compared without dividing; then load; then id.
fn by_load(a: &Agent, b: &Agent) -> Ordering {
    let a_ratio = u64::from(a.load) * u64::from(b.capacity);
    let b_ratio = u64::from(b.load) * u64::from(a.capacity);
    a_ratio.cmp(&b_ratio).then(a.load.cmp(&b.load)).then_with(|| a.id.cmp(&b.id))
}

fn working_status(agent: &Agent) -> AgentStatus {
    if agent.load >= agent.capacity { AgentStatus::Busy } else { AgentStatus::Available }
}

fn forgettable(agent: &Agent) -> bool {
    agent.forget_at_ms > 0 && agent.load == 0
}

/// The one place that writes an agent's row: checks the move, counts the revision, tells who listens.
fn store(agents: &mut Agents, out: &mut Out<'_, '_>, ctx: &Ctx, mut agent: Agent) -> Result<Agent, Fatal> {
    if let Some(before) = agents.get(&agent.id)
        && !may_move(before.status(), agent.status())
    {
        return Err(Fatal::Corrupt(format!(
            "agent {:?} cannot go from {:?} to {:?}",
            agent.id,
            before.status(),
            agent.status()
        )));
    }
    agent.revision += 1;
    agent.updated_at_ms = ctx.now_ms;
    out.txn.put(&agent_key(&agent.id), &agent);
    let before = agents.put(agent.clone());
    if gained(before.as_ref(), &agent) {
        out.effects.push(Effect::AgentReady { agent_id: agent.id.clone() });
    }
    out.effects.push(Effect::AgentChanged { agent: Box::new(agent.clone()), removed: false, rev: ctx.rev });
    Ok(agent)
}

/// Whether a claim that had to wait may now succeed.
fn gained(before: Option<&Agent>, after: &Agent) -> bool {
    is_available(after)
        && before.is_none_or(|before| {
            !is_available(before)
                || after.capacity - after.load > before.capacity - before.load
                || after.capabilities != before.capabilities
                || after.agent_type != before.agent_type
                || after.metadata != before.metadata
        })
}

fn existing<'a>(agents: &'a Agents, agent_id: &str) -> Outcome<&'a Agent> {
    agents.get(agent_id).ok_or_else(|| not_found("agent_id", format!("no agent {agent_id:?} is registered")))
}

/// `next` is what the wanted status comes to: an agent that says AVAILABLE at full load is BUSY.
fn check_reported(agent: &Agent, wanted: AgentStatus, next: AgentStatus) -> Outcome<()> {
    if !may_move(agent.status(), next) {
        let (from, to) = (status_name(agent.status()), status_name(wanted));
        return Err(precondition("status", format!("agent {:?} is {from} and cannot become {to}", agent.id)));
    }
    if agent.session_id.is_empty() && wanted == AgentStatus::Available {
        let message = format!("agent {:?} has no session and cannot become AVAILABLE; register it again", agent.id);
        return Err(precondition("status", message));
    }
    Ok(())
}

fn status_name(status: AgentStatus) -> &'static str {
    status.as_str_name().trim_start_matches("AGENT_STATUS_")
}

fn agent_key(agent_id: &str) -> Key {
    Key::table(Table::Agent).text(agent_id)
}

#[cfg(test)]
mod tests {
    use quorate_proto::v1::ExecutionMode;

    use super::*;

    const ALL: [AgentStatus; 6] = [
        AgentStatus::Unspecified,
        AgentStatus::Available,
        AgentStatus::Busy,
        AgentStatus::Draining,
        AgentStatus::Unavailable,
        AgentStatus::Failed,
    ];

    #[test]
    fn every_status_moves_where_the_table_says() {
        // Rows: from; columns: to; in the order of ALL.
        let table = [
            [false, false, false, false, false, false],
            [false, true, true, true, true, true],
            [false, true, true, true, true, true],
            [false, false, false, true, false, false],
            [false, true, true, true, true, true],
            [false, true, true, true, true, true],
        ];
        for (from, row) in ALL.into_iter().zip(table) {
            for (to, expected) in ALL.into_iter().zip(row) {
                assert_eq!(may_move(from, to), expected, "{from:?} to {to:?}");
            }
        }
    }

    fn agent(id: &str, load: u32, capacity: u32) -> Agent {
        Agent {
            id: id.to_owned(),
            agent_type: "coder".to_owned(),
            capabilities: vec!["review".to_owned(), "rust".to_owned()],
            status: AgentStatus::Available as i32,
            load,
            capacity,
            health_permille: 800,
            execution_mode: ExecutionMode::Autonomous as i32,
            ..Agent::default()
        }
    }

    fn caps(names: &[&str]) -> AgentFilter {
        AgentFilter { capabilities: names.iter().map(|name| (*name).to_owned()).collect(), ..AgentFilter::default() }
    }

    #[test]
    fn each_filter_field_passes_and_stops() {
        let half_loaded = agent("a", 1, 2);
        let cases = [
            (AgentFilter::default(), true),
            (caps(&["rust"]), true),
            (caps(&["rust", "review"]), true),
            (caps(&["rust", "go"]), false),
            (AgentFilter { statuses: vec![AgentStatus::Available as i32], ..AgentFilter::default() }, true),
            (AgentFilter { statuses: vec![AgentStatus::Busy as i32], ..AgentFilter::default() }, false),
            (AgentFilter { agent_type: "coder".to_owned(), ..AgentFilter::default() }, true),
            (AgentFilter { agent_type: "writer".to_owned(), ..AgentFilter::default() }, false),
            (AgentFilter { execution_mode: ExecutionMode::Autonomous as i32, ..AgentFilter::default() }, true),
            (AgentFilter { execution_mode: ExecutionMode::Scheduled as i32, ..AgentFilter::default() }, false),
            (AgentFilter { min_health_permille: 800, ..AgentFilter::default() }, true),
            (AgentFilter { min_health_permille: 801, ..AgentFilter::default() }, false),
            (AgentFilter { max_load_permille: Some(500), ..AgentFilter::default() }, true),
            (AgentFilter { max_load_permille: Some(499), ..AgentFilter::default() }, false),
        ];
        for (filter, expected) in cases {
            assert_eq!(matches(&filter, &half_loaded), expected, "{filter:?}");
        }
    }

    #[test]
    fn only_an_available_agent_with_free_capacity_is_available() {
        for status in ALL {
            for (load, free) in [(0, true), (1, true), (2, false)] {
                let agent = Agent { status: status as i32, ..agent("a", load, 2) };
                assert_eq!(is_available(&agent), free && status == AgentStatus::Available, "{status:?} at {load} of 2");
            }
        }
    }

    #[test]
    fn least_loaded_first_by_ratio_then_load_then_id() {
        let mut agents = Agents::default();
        for agent in [agent("d", 2, 4), agent("c", 1, 2), agent("b", 1, 2), agent("a", 3, 4), agent("e", 0, 1)] {
            agents.put(agent);
        }
        let order: Vec<String> = agents.find(&AgentFilter::default(), 4).into_iter().map(|agent| agent.id).collect();
        assert_eq!(order, ["e", "b", "c", "d"]);
    }
}
