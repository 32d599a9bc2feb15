//! Work: the stream of an agent with a standing order. The state assigns; here the assignments are delivered.
//!
//! Only a leader that a majority has heard lately serves one: a node that was cut off would keep its agents deaf. What an
//! agent holds is sent anew whenever its stream begins, so nothing that was assigned is ever missed. An agent has one
//! stream; the newest counts.

use std::time::Duration;

use futures::Stream;
use openraft::Instant as _;
use quorate_proto::log::{StandingOrder, command};
use quorate_proto::v1::{AgentStatus, HeldAttemptGone, Task, WorkEvent, WorkRequest, work_event};
use quorate_raft::error::Fatal;
use tokio::sync::mpsc::UnboundedReceiver;
use tonic::Status;

use super::{Door, expect_arm, status};
use crate::core::Core;
use crate::hub::WorkNews;

/// How often a stream makes sure that its node still leads.
const LOOK_ROUND: Duration = Duration::from_millis(250);

/// What the agent holds when its stream begins.
struct Held {
    tasks: Vec<Task>,
    draining: bool,
    rev: u64,
}

/// Places the standing order, then streams what comes of it.
pub(super) async fn stand(
    door: Door,
    request: WorkRequest,
) -> Result<impl Stream<Item = Result<WorkEvent, Status>> + Send + 'static, Status> {
    if !leads(&door.core) {
        return Err(status::not_readable("work is pushed by the leader only", door.core.leader_hint()));
    }
    // Listening before ordering: what is assigned in between is not missed.
    let news = door.core.hub.stand(&request.agent_id, &request.session_id);
    let order = StandingOrder { agent_id: request.agent_id.clone(), session_id: request.session_id.clone() };
    let body = door.propose(None, command::Body::StandingOrder(order)).await?;
    expect_arm!(StandingOrder, body)?;
    Ok(events(door, request, news))
}

/// Whether this node leads, and a majority has heard it lately.
fn leads(core: &Core) -> bool {
    let Ok(leader) = core.raft.as_leader() else { return false };
    let limit = Duration::from_millis(core.settings.config.election_max_ms * 2);
    core.settings.members.len() == 1 || leader.last_quorum_acked().is_some_and(|at| at.elapsed() < limit)
}

fn events(
    door: Door,
    request: WorkRequest,
    mut news: UnboundedReceiver<WorkNews>,
) -> impl Stream<Item = Result<WorkEvent, Status>> + Send + 'static {
    async_stream::stream! {
        let mut look = true;
        let mut standing = false;
        let mut told_to_drain = false;
        loop {
            if look {
                look = false;
                let held = match held(&door, &request) {
                    Ok(Some(held)) => held,
                    Ok(None) => break yield Err(gone(&request)),
                    Err(fatal) => break yield Err(door.fault(&fatal)),
                };
                for task in held.tasks {
                    yield Ok(event(work_event::Event::Assigned(task), held.rev));
                }
                if !standing {
                    standing = true;
                    yield Ok(event(work_event::Event::Standing(true), held.rev));
                }
                if held.draining && !told_to_drain {
                    told_to_drain = true;
                    yield Ok(event(work_event::Event::Draining(true), held.rev));
                }
            }
            let next = tokio::select! {
                next = news.recv() => next,
                () = tokio::time::sleep(LOOK_ROUND) => {
                    if leads(&door.core) {
                        continue;
                    }
                    break yield Err(status::not_readable("this node does not lead any more", door.core.leader_hint()));
                }
                // A stream that stays on would hold up the stop; the agent goes to the next leader.
                _reason = door.core.stop.wait() => break yield Err(status::unavailable("this node is stopping")),
            };
            match next {
                Some(WorkNews::Assigned { task_id, token }) => match assigned(&door, &task_id, token) {
                    Ok(Some((task, rev))) => yield Ok(event(work_event::Event::Assigned(task), rev)),
                    // Over already.
                    Ok(None) => {}
                    Err(fatal) => break yield Err(door.fault(&fatal)),
                },
                Some(WorkNews::Revoked { task_id, token, grace_ms, reason }) => {
                    let revoked = HeldAttemptGone { task_id, token, grace_ms, reason };
                    yield Ok(event(work_event::Event::Revoked(revoked), 0));
                }
                Some(WorkNews::Draining) if told_to_drain => {}
                Some(WorkNews::Draining) => {
                    told_to_drain = true;
                    yield Ok(event(work_event::Event::Draining(true), 0));
                }
                Some(WorkNews::Gone) => break yield Err(gone(&request)),
                Some(WorkNews::Replaced) => look = true,
                None => break yield Err(Status::aborted("a newer stream of this agent took over")),
            }
        }
    }
}

fn event(event: work_event::Event, rev: u64) -> WorkEvent {
    WorkEvent { event: Some(event), rev }
}

fn gone(request: &WorkRequest) -> Status {
    let WorkRequest { agent_id, session_id } = request;
    Status::not_found(format!("agent {agent_id} is not registered under session {session_id} any more"))
}

/// Everything the agent holds under its session; `None`: it is not that session's agent any more.
fn held(door: &Door, request: &WorkRequest) -> Result<Option<Held>, Fatal> {
    door.core.replica.read(|view| {
        let agent = view.rooms.agents.get(&request.agent_id);
        let Some(agent) = agent.filter(|agent| agent.session_id == request.session_id) else { return Ok(None) };
        let mut tasks = Vec::new();
        for (task_id, token) in view.rooms.tasks.held_by_agent(&request.agent_id) {
            let task = view.rooms.tasks.assigned(view.rows, task_id, token)?;
            let ours = |task: &Task| task.claim.as_ref().is_some_and(|claim| claim.session_id == request.session_id);
            tasks.extend(task.filter(ours));
        }
        let draining = agent.status() == AgentStatus::Draining;
        Ok(Some(Held { tasks, draining, rev: view.head.rev }))
    })
}

fn assigned(door: &Door, task_id: &str, token: u64) -> Result<Option<(Task, u64)>, Fatal> {
    door.core.replica.read(|view| {
        let task = view.rooms.tasks.assigned(view.rows, task_id, token)?;
        Ok(task.map(|task| (task, view.head.rev)))
    })
}
