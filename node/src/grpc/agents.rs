//! Agents: who exists, and who changed.

use std::collections::BTreeSet;

use futures::Stream;
use futures::stream::BoxStream;
use quorate_proto::log::command;
use quorate_proto::v1::agents_server::Agents;
use quorate_proto::v1::{
    Agent, AgentEvent, AgentFilter, DeregisterAgentRequest, DeregisterAgentResponse, DrainAgentRequest,
    DrainAgentResponse, FindAgentsRequest, FindAgentsResponse, GetAgentRequest, GetAgentResponse, RegisterAgentRequest,
    RegisterAgentResponse, ReportAgentRequest, ReportAgentResponse, WatchAgentsRequest, agent_event,
};
use quorate_raft::state::{agents, check_id};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tonic::{Request, Response, Status};

use super::{Door, checked, expect_arm, rows_wanted, status};
use crate::hub::{AgentNews, Listening};

const FIND_DEFAULT: usize = 1_000;
const FIND_MAX: usize = 10_000;

#[tonic::async_trait]
impl Agents for Door {
    async fn register(
        &self,
        request: Request<RegisterAgentRequest>,
    ) -> Result<Response<RegisterAgentResponse>, Status> {
        let mut request = request.into_inner();
        checked(check_id("agent_id", &request.agent_id))?;
        checked(check_id("session_id", &request.session_id))?;
        let body = self.propose(request.request.take(), command::Body::RegisterAgent(request)).await?;
        Ok(self.respond(expect_arm!(RegisterAgent, body)?))
    }

    async fn report(&self, request: Request<ReportAgentRequest>) -> Result<Response<ReportAgentResponse>, Status> {
        let mut request = request.into_inner();
        checked(check_id("agent_id", &request.agent_id))?;
        let body = self.propose(request.request.take(), command::Body::ReportAgent(request)).await?;
        Ok(self.respond(expect_arm!(ReportAgent, body)?))
    }

    async fn drain(&self, request: Request<DrainAgentRequest>) -> Result<Response<DrainAgentResponse>, Status> {
        let mut request = request.into_inner();
        checked(check_id("agent_id", &request.agent_id))?;
        let body = self.propose(request.request.take(), command::Body::DrainAgent(request)).await?;
        Ok(self.respond(expect_arm!(DrainAgent, body)?))
    }

    async fn deregister(
        &self,
        request: Request<DeregisterAgentRequest>,
    ) -> Result<Response<DeregisterAgentResponse>, Status> {
        let mut request = request.into_inner();
        checked(check_id("agent_id", &request.agent_id))?;
        let body = self.propose(request.request.take(), command::Body::DeregisterAgent(request)).await?;
        Ok(self.respond(expect_arm!(DeregisterAgent, body)?))
    }

    async fn get(&self, request: Request<GetAgentRequest>) -> Result<Response<GetAgentResponse>, Status> {
        let request = request.into_inner();
        checked(check_id("agent_id", &request.agent_id))?;
        let found = self
            .read(request.consistency(), |view| {
                let Some(agent) = view.rooms.agents.get(&request.agent_id).cloned() else { return Ok(None) };
                let recent_task_ids = view.rooms.tasks.recent_of_agent(view.rows, &request.agent_id)?;
                Ok(Some(GetAgentResponse { agent: Some(agent), recent_task_ids, rev: view.head.rev }))
            })
            .await?;
        found
            .map(|response| self.respond(response))
            .ok_or_else(|| status::missing("agent_id", format!("no agent {}", request.agent_id)))
    }

    async fn find(&self, request: Request<FindAgentsRequest>) -> Result<Response<FindAgentsResponse>, Status> {
        let request = request.into_inner();
        let filter = request.filter.clone().unwrap_or_default();
        check_filter(&filter)?;
        let limit = rows_wanted("limit", request.limit, FIND_DEFAULT, FIND_MAX)?;
        let response = self
            .read(request.consistency(), |view| {
                let agents = view.rooms.agents.find(&filter, limit);
                Ok(FindAgentsResponse { agents, rev: view.head.rev })
            })
            .await?;
        Ok(self.respond(response))
    }

    type WatchStream = BoxStream<'static, Result<AgentEvent, Status>>;

    async fn watch(&self, request: Request<WatchAgentsRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let filter = request.into_inner().filter.unwrap_or_default();
        check_filter(&filter)?;
        if self.core.stop.is_thrown() {
            return Err(status::not_readable("this node is stopping", self.core.leader_hint()));
        }
        self.fresh().await?;
        let news = self.hub().await?.watch_agents();
        Ok(Response::new(Box::pin(watch(self.clone(), filter, news))))
    }
}

fn check_filter(filter: &AgentFilter) -> Result<(), Status> {
    if filter.min_health_permille > 1_000 {
        let message = format!("min_health_permille must be 0 to 1000; got {}", filter.min_health_permille);
        return Err(status::invalid("filter.min_health_permille", message));
    }
    Ok(())
}

/// What exists, then every change, in order. Subscribing comes before looking, and changes that the look already shows
/// are skipped by their rev: no gap, nothing twice. A watcher that is too slow for the buffer looks again.
fn watch(
    door: Door,
    filter: AgentFilter,
    mut news: Listening<broadcast::Receiver<AgentNews>>,
) -> impl Stream<Item = Result<AgentEvent, Status>> + Send + 'static {
    async_stream::stream! {
        let mut shown: BTreeSet<String> = BTreeSet::new();
        let mut seen = 0;
        let mut look = true;
        loop {
            if look {
                let (present, rev) = door.look(|view| {
                    (view.rooms.agents.find(&filter, FIND_MAX), view.head.rev)
                });
                let ids: BTreeSet<String> = present.iter().map(|agent| agent.id.clone()).collect();
                for id in shown.difference(&ids) {
                    let agent = Agent { id: id.clone(), ..Agent::default() };
                    yield Ok(event(agent_event::Kind::Gone, agent, rev));
                }
                for agent in present {
                    let kind = if seen == 0 { agent_event::Kind::Present } else { agent_event::Kind::Changed };
                    yield Ok(event(kind, agent, rev));
                }
                shown = ids;
                seen = rev;
                look = false;
            }
            let next = tokio::select! {
                next = news.recv() => next,
                // A watcher that stays on would hold up the stop; it watches another node then.
                _reason = door.core.stop.wait() => break,
            };
            match next {
                Ok(AgentNews::Changed { rev, .. }) if rev <= seen => {}
                Ok(AgentNews::Changed { agent, removed, rev }) => {
                    let matches = !removed && agents::matches(&filter, &agent);
                    if matches {
                        shown.insert(agent.id.clone());
                        yield Ok(event(agent_event::Kind::Changed, *agent, rev));
                    } else if shown.remove(&agent.id) {
                        yield Ok(event(agent_event::Kind::Gone, *agent, rev));
                    }
                }
                Ok(AgentNews::Replaced) | Err(RecvError::Lagged(_)) => look = true,
                Err(RecvError::Closed) => break,
            }
        }
    }
}

fn event(kind: agent_event::Kind, agent: Agent, rev: u64) -> AgentEvent {
    AgentEvent { kind: kind as i32, agent: Some(agent), rev }
}
