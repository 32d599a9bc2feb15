//! Work: the stream of an agent with a standing order. The state assigns; here the assignments are delivered.
//!
//! Only a leader that a majority has heard lately serves one: a node that was cut off would keep its agents deaf. What an
//! agent holds is sent anew whenever its stream begins, so nothing that was assigned is ever missed. An agent has one
//! stream; the newest counts.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::Stream;
use openraft::Instant as _;
use quorate_proto::log::{StandingOrder, command};
use quorate_proto::v1::{
    AgentStatus, HeldAttemptGone, Rejection, RejectionCode, Task, WorkEvent, WorkRequest, work_event,
};
use quorate_raft::error::Fatal;
use tokio::sync::mpsc::UnboundedReceiver;
use tonic::Status;

use super::{Door, expect_arm, status};
use crate::core::Core;
use crate::hub::{Listening, WorkNews};

/// How often a stream makes sure that its node still leads.
pub(super) const LOOK_ROUND: Duration = Duration::from_millis(250);

/// What the agent holds when its stream begins: tasks and tokens.
struct Held {
    attempts: Vec<(String, u64)>,
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
    if door.core.stop.is_thrown() {
        return Err(status::unavailable("this node is stopping; nothing is pushed any more"));
    }
    // Somebody else's call must not end the stream of the agent that stands.
    door.fresh().await?;
    let is_ours =
        door.look(|view| view.rooms.agents.get(&request.agent_id).map(|agent| agent.session_id == request.session_id));
    match is_ours {
        Some(true) => {}
        Some(false) => return Err(precondition(&request)),
        None => return Err(gone(&door, &request)),
    }
    // Listening before ordering: what is assigned in between is not missed.
    let news = door.hub().await?.stand(&request.agent_id, &request.session_id);
    let order = StandingOrder { agent_id: request.agent_id.clone(), session_id: request.session_id.clone() };
    let body = door.propose(None, command::Body::StandingOrder(order)).await?;
    expect_arm!(StandingOrder, body)?;
    Ok(events(door, request, news))
}

fn stands(door: &Door, request: &WorkRequest) -> bool {
    door.look(|view| view.rooms.agents.get(&request.agent_id).is_some_and(|agent| agent.standing))
}

/// Whether this node leads, and a majority has heard it lately.
pub(super) fn leads(core: &Core) -> bool {
    let Ok(leader) = core.raft.as_leader() else { return false };
    let limit = Duration::from_millis(core.settings.config.election_max_ms * 2);
    core.is_alone() || leader.last_quorum_acked().is_some_and(|at| at.elapsed() < limit)
}

fn events(
    door: Door,
    request: WorkRequest,
    mut news: Listening<UnboundedReceiver<WorkNews>>,
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
                    Ok(None) => break yield Err(gone(&door, &request)),
                    Err(fatal) => break yield Err(door.fault(&fatal)),
                };
                // One at a time: all that an agent holds, payloads and all, may be a lot.
                for (task_id, token) in held.attempts {
                    match assigned(&door, &task_id, token) {
                        Ok(Some((task, rev))) => yield Ok(event(work_event::Event::Assigned(task), rev)),
                        Ok(None) => {}
                        Err(fatal) => {
                            yield Err(door.fault(&fatal));
                            return;
                        }
                    }
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
                // Leadership has been handed over by then; a stream that stays on would hold up the stop.
                _reason = door.core.closing.wait() => {
                    break yield Err(status::not_readable("this node is stopping", door.core.leader_hint()));
                }
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
                Some(WorkNews::Gone) => break yield Err(gone(&door, &request)),
                Some(WorkNews::Withdrawn) if standing && !stands(&door, &request) => {
                    break yield Err(Status::aborted("a claim has ended the standing order"));
                }
                // Said before the order stood.
                Some(WorkNews::Withdrawn) => {}
                Some(WorkNews::Replaced) => look = true,
                None => break yield Err(Status::aborted("a newer stream of this agent took over")),
            }
        }
    }
}

fn event(event: work_event::Event, rev: u64) -> WorkEvent {
    WorkEvent { event: Some(event), rev }
}

/// The agent is not this session's any more: it is nobody's, or somebody else's.
fn gone(door: &Door, request: &WorkRequest) -> Status {
    let WorkRequest { agent_id, session_id } = request;
    if door.look(|view| view.rooms.agents.get(agent_id).is_some()) {
        return status::missing("session_id", format!("agent {agent_id} does not belong to session {session_id}"));
    }
    status::missing("agent_id", format!("no agent {agent_id} is registered"))
}

fn precondition(request: &WorkRequest) -> Status {
    let WorkRequest { agent_id, session_id } = request;
    status::rejected(&Rejection {
        code: RejectionCode::FailedPrecondition as i32,
        message: format!("agent {agent_id} does not belong to session {session_id}; register it again"),
        field: "session_id".to_owned(),
    })
}

/// Everything the agent holds under its session; `None`: it is not that session's agent any more.
fn held(door: &Door, request: &WorkRequest) -> Result<Option<Held>, Fatal> {
    door.look(|view| {
        let agent = view.rooms.agents.get(&request.agent_id);
        let Some(agent) = agent.filter(|agent| agent.session_id == request.session_id) else { return Ok(None) };
        // Attempts under an earlier session of the agent end with that.
        let ours: BTreeSet<(&str, u64)> =
            view.rooms.tasks.held_by_session(&request.session_id).map(|(id, token, _)| (id, token)).collect();
        let held = view.rooms.tasks.held_by_agent(&request.agent_id).filter(|attempt| ours.contains(attempt));
        let attempts = held.map(|(task_id, token)| (task_id.to_owned(), token)).collect();
        let draining = agent.status() == AgentStatus::Draining;
        Ok(Some(Held { attempts, draining, rev: view.head.rev }))
    })
}

fn assigned(door: &Door, task_id: &str, token: u64) -> Result<Option<(Task, u64)>, Fatal> {
    door.look(|view| {
        let task = view.rooms.tasks.assigned(view.rows, task_id, token)?;
        Ok(task.map(|task| (task, view.head.rev)))
    })
}
