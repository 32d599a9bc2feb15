//! Why: the exact reason that a task does not run, out of the same indexes and checks that decide it.

use quorate_proto::v1::{LimitScope, Reason, Task, TaskStatus};

use super::claim::Gate;
use super::needs::Needs;
use super::{aftermath, cycle, evidence, load, status_name};
use crate::error::Fatal;
use crate::state::breakers::{self, Admission};
use crate::state::{Rooms, agents};
use crate::storage::rows::Rows;

/// How many dependencies, and how many agents, are named.
const NAMED: usize = 20;
/// How many tasks are looked at for a circle.
const WALKED: usize = 10_000;
/// How far back in its line a task's place is counted.
const COUNTED: usize = 100_000;

/// Every reason why the task is where it is; `None`: no such task.
pub fn why(rooms: &Rooms, rows: &dyn Rows, now_ms: u64, task_id: &str) -> Result<Option<(Task, Vec<Reason>)>, Fatal> {
    let Some(task) = load(rows, task_id)? else { return Ok(None) };
    let reasons = match task.status() {
        TaskStatus::Blocked => blocked(rooms, rows, &task)?,
        TaskStatus::Pending => vec![pending(&task)],
        TaskStatus::Ready => ready(rooms, now_ms, &task),
        TaskStatus::InProgress => vec![running(&task)],
        TaskStatus::Reported => reported(rows, &task)?,
        status => {
            let error = if task.error.is_empty() { String::new() } else { format!(": {}", task.error) };
            vec![reason("ended", "", format!("it ended {}{error}", status_name(status)))]
        }
    };
    Ok(Some((task, reasons)))
}

fn reason(code: &str, subject: &str, message: String) -> Reason {
    Reason { code: code.to_owned(), message, subject: subject.to_owned() }
}

fn blocked(rooms: &Rooms, rows: &dyn Rows, task: &Task) -> Result<Vec<Reason>, Fatal> {
    let mut reasons = Vec::new();
    let walked = std::cell::Cell::new(0_usize);
    let circle = cycle::through(&task.id, |id| {
        walked.set(walked.get() + 1);
        let open = rooms.tasks.blocked.get(id).filter(|_| walked.get() <= WALKED);
        open.into_iter().flatten().map(ToString::to_string).collect()
    });
    if let Some(path) = circle {
        reasons.push(reason("deadlock", &task.id, format!("waits in a circle: {}", cycle::shown(&path))));
    }
    let open = rooms.tasks.open_dependencies(task);
    for id in open.iter().take(NAMED) {
        reasons.push(match load(rows, id)? {
            None => reason("waits_for", id, format!("waits for {id}, which does not exist yet")),
            Some(other) if super::is_ended(other.status()) => {
                let message = aftermath::dependency_failed(id, other.status());
                reason("dependency_failed", id, format!("{message}; redrive it, or cancel this task"))
            }
            Some(other) => reason("waits_for", id, format!("waits for {id}, which is {}", status_name(other.status()))),
        });
    }
    if open.len() > NAMED {
        reasons.push(reason("waits_for", "", format!("and for {} more", open.len() - NAMED)));
    }
    Ok(reasons)
}

fn pending(task: &Task) -> Reason {
    let at_ms = task.ready_at_ms;
    if task.attempts == 0 {
        return reason("not_before", "", format!("not to begin before {at_ms}"));
    }
    reason("backoff", "", format!("attempt {} failed ({}); tried again at {at_ms}", task.attempts, task.error))
}

fn running(task: &Task) -> Reason {
    let claim = task.claim.clone().unwrap_or_default();
    let agent = claim.agent_id;
    match &task.cancel {
        Some(notice) => reason(
            "stopping",
            &agent,
            format!("agent {agent} was asked to stop ({}); fenced at {}", notice.reason, notice.fence_at_ms),
        ),
        None => reason("running", &agent, format!("attempt {} runs on agent {agent}", claim.attempt)),
    }
}

fn reported(rows: &dyn Rows, task: &Task) -> Result<Vec<Reason>, Fatal> {
    let (agents, persons) = evidence::reviews_missing(task);
    let mut reasons = Vec::new();
    if agents > 0 {
        let mut message = format!("waits for {agents} more agents to accept it");
        for id in super::review::review_ids(task) {
            if let Some(review) = load(rows, &id)? {
                message.push_str(&format!("; {id} is {}", status_name(review.status())));
            }
        }
        reasons.push(reason("review", "agent", message));
    }
    if persons > 0 {
        let message = format!("waits for {persons} more people to accept it: task accept or task rework");
        reasons.push(reason("review", "person", message));
    }
    Ok(reasons)
}

/// What holds a ready task: limits and breakers of its own, then whether any agent could, then its place in the queue.
fn ready(rooms: &Rooms, now_ms: u64, task: &Task) -> Vec<Reason> {
    let Some(spec) = &task.spec else { return Vec::new() };
    let needs = Needs::of(spec);
    let gate = Gate { rooms, now_ms };
    let mut reasons = Vec::new();
    for key in needs.keys.iter().filter(|key| !gate.has_room(LimitScope::Key, key)) {
        reasons.push(limit(rooms, LimitScope::Key, key, &format!("key {key}")));
    }
    if !gate.has_room(LimitScope::Total, "") {
        reasons.push(limit(rooms, LimitScope::Total, "", "all tasks together"));
    }
    for name in needs.uses.iter().filter(|name| !gate.closed(name)) {
        reasons.push(open_breaker(rooms, now_ms, name));
    }
    agents_for(rooms, &gate, &spec.agent_id, &needs, &mut reasons);
    let ahead = rooms.tasks.queues.ahead_in_line(task, COUNTED);
    if ahead > 0 || reasons.is_empty() {
        reasons.push(reason("behind", "", format!("{ahead} tasks with the same needs are before it")));
    }
    reasons
}

fn limit(rooms: &Rooms, scope: LimitScope, name: &str, what: &str) -> Reason {
    let (most, running) =
        (rooms.dispatch.limit(scope, name).unwrap_or_default(), rooms.tasks.running_under(scope, name));
    reason("limit", name, format!("the limit of {what} is {most}, and {running} run"))
}

fn open_breaker(rooms: &Rooms, now_ms: u64, name: &str) -> Reason {
    let when = match rooms.breakers.admission(name, now_ms) {
        Admission::No { retry_at_ms: 0 } => "until somebody closes it".to_owned(),
        Admission::No { retry_at_ms } => format!("until {retry_at_ms}"),
        Admission::Yes | Admission::Probe => "no more".to_owned(),
    };
    reason("breaker_open", name, format!("breaker {name} admits nothing {when}"))
}

/// Whether some agent could take it: none fits, or all that fit are busy, limited or broken.
fn agents_for(rooms: &Rooms, gate: &Gate<'_>, pin: &str, needs: &Needs, reasons: &mut Vec<Reason>) {
    let fitting: Vec<_> = (rooms.agents.iter())
        .filter(|agent| (pin.is_empty() || agent.id == pin) && needs.fit(agent) && agents::can_be_asked(agent))
        .collect();
    if fitting.is_empty() {
        let who = if pin.is_empty() { needs.describe() } else { format!("agent {pin}") };
        return reasons.push(reason("no_agent", pin, format!("needs {who}; none is registered")));
    }
    let free: Vec<_> = fitting.iter().filter(|agent| agents::is_available(agent)).collect();
    if free.is_empty() {
        let names: Vec<&str> = fitting.iter().take(NAMED).map(|agent| agent.id.as_str()).collect();
        let message = format!("{} agents fit, and none has room: {}", fitting.len(), names.join(", "));
        return reasons.push(reason("agents_busy", names[0], message));
    }
    if free.iter().any(|agent| gate.admits(agent)) {
        return;
    }
    for agent in free.into_iter().take(NAMED) {
        let breaker = breakers::agent_breaker(&agent.id);
        if !gate.closed(&breaker) {
            reasons.push(open_breaker(rooms, gate.now_ms, &breaker));
        } else if !gate.has_room(LimitScope::AgentType, &agent.agent_type) {
            let what = format!("agents of type {}", agent.agent_type);
            reasons.push(limit(rooms, LimitScope::AgentType, &agent.agent_type, &what));
        }
    }
}
