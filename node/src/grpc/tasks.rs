//! Tasks: submitted, claimed, finished, looked at.

use std::time::Duration;

use futures::future::select_all;
use futures::stream::BoxStream;
use quorate_proto::log::{answer, command};
use quorate_proto::v1::tasks_server::Tasks;
use quorate_proto::v1::{
    AddDependenciesRequest, AddDependenciesResponse, AgentStatus, CancelTaskRequest, CancelTaskResponse,
    ClaimTasksRequest, ClaimTasksResponse, Consistency, DecideTaskRequest, DecideTaskResponse, FinishTaskRequest,
    FinishTaskResponse, GetTaskRequest, GetTaskResponse, ListAttemptsRequest, ListAttemptsResponse,
    ListDeadlocksRequest, ListDeadlocksResponse, ListTasksRequest, ListTasksResponse, PurgeTasksRequest,
    PurgeTasksResponse, RedriveTasksRequest, RedriveTasksResponse, RequestId, ResolveDeadlocksRequest,
    ResolveDeadlocksResponse, SubmitTasksRequest, SubmitTasksResponse, TaskStatsRequest, TaskStatsResponse,
    WhyTaskRequest, WhyTaskResponse, WorkEvent, WorkRequest,
};
use quorate_raft::error::Fatal;
use quorate_raft::state::check_id;
use quorate_raft::state::sessions::Recorded;
use quorate_raft::state::tasks;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::{Door, answered, at_most, checked, expect_arm, new_id, status, work};
use crate::core::Leadership;
use crate::hub::RECHECK;

const MAX_WAIT_MS: u64 = 60_000;
/// There are no more.
const MAX_STATUSES: usize = 11;

#[tonic::async_trait]
impl Tasks for Door {
    async fn submit(&self, request: Request<SubmitTasksRequest>) -> Result<Response<SubmitTasksResponse>, Status> {
        let mut request = request.into_inner();
        for spec in &mut request.tasks {
            if spec.task_id.is_empty() {
                spec.task_id = new_id("t");
            }
        }
        let body = self.propose(request.request.take(), command::Body::SubmitTasks(request)).await?;
        Ok(self.respond(expect_arm!(SubmitTasks, body)?))
    }

    async fn claim(&self, request: Request<ClaimTasksRequest>) -> Result<Response<ClaimTasksResponse>, Status> {
        let request = request.into_inner();
        checked(check_id("agent_id", &request.agent_id))?;
        checked(check_id("session_id", &request.session_id))?;
        if request.wait_ms > MAX_WAIT_MS {
            let message = format!("wait_ms must be at most {MAX_WAIT_MS}; got {}", request.wait_ms);
            return Err(status::invalid("wait_ms", message));
        }
        Ok(self.respond(self.claim_or_wait(request).await?))
    }

    async fn finish(&self, request: Request<FinishTaskRequest>) -> Result<Response<FinishTaskResponse>, Status> {
        let mut request = request.into_inner();
        checked(check_id("task_id", &request.task_id))?;
        let (task_id, token) = (request.task_id.clone(), request.token);
        let body = self.propose(request.request.take(), command::Body::FinishTask(request)).await?;
        let response = expect_arm!(FinishTask, body)?;
        if response.fenced {
            let message =
                format!("fenced: token {token} of task {task_id} was superseded; the result is kept as an orphan");
            return Err(Status::aborted(message));
        }
        Ok(self.respond(response))
    }

    async fn cancel(&self, request: Request<CancelTaskRequest>) -> Result<Response<CancelTaskResponse>, Status> {
        let mut request = request.into_inner();
        checked(check_id("task_id", &request.task_id))?;
        let body = self.propose(request.request.take(), command::Body::CancelTask(request)).await?;
        Ok(self.respond(expect_arm!(CancelTask, body)?))
    }

    async fn decide(&self, request: Request<DecideTaskRequest>) -> Result<Response<DecideTaskResponse>, Status> {
        let mut request = request.into_inner();
        checked(check_id("task_id", &request.task_id))?;
        let body = self.propose(request.request.take(), command::Body::DecideTask(request)).await?;
        Ok(self.respond(expect_arm!(DecideTask, body)?))
    }

    async fn add_dependencies(
        &self,
        request: Request<AddDependenciesRequest>,
    ) -> Result<Response<AddDependenciesResponse>, Status> {
        let mut request = request.into_inner();
        checked(check_id("task_id", &request.task_id))?;
        let body = self.propose(request.request.take(), command::Body::AddDependencies(request)).await?;
        Ok(self.respond(expect_arm!(AddDependencies, body)?))
    }

    async fn redrive(&self, request: Request<RedriveTasksRequest>) -> Result<Response<RedriveTasksResponse>, Status> {
        let mut request = request.into_inner();
        let body = self.propose(request.request.take(), command::Body::RedriveTasks(request)).await?;
        Ok(self.respond(expect_arm!(RedriveTasks, body)?))
    }

    async fn purge(&self, request: Request<PurgeTasksRequest>) -> Result<Response<PurgeTasksResponse>, Status> {
        let mut request = request.into_inner();
        let body = self.propose(request.request.take(), command::Body::PurgeTasks(request)).await?;
        Ok(self.respond(expect_arm!(PurgeTasks, body)?))
    }

    async fn deadlocks(
        &self,
        request: Request<ListDeadlocksRequest>,
    ) -> Result<Response<ListDeadlocksResponse>, Status> {
        let request = request.into_inner();
        let response = self
            .read(request.consistency(), |view| {
                let deadlocks = view.rooms.tasks.deadlocks(view.rows)?;
                Ok(ListDeadlocksResponse { deadlocks, rev: view.head.rev })
            })
            .await?;
        Ok(self.respond(response))
    }

    async fn resolve_deadlocks(
        &self,
        request: Request<ResolveDeadlocksRequest>,
    ) -> Result<Response<ResolveDeadlocksResponse>, Status> {
        let mut request = request.into_inner();
        let found = self.read(Consistency::Linearizable, |view| Ok(view.rooms.tasks.deadlocks(view.rows)?)).await?;
        request.deadlocks = found;
        let body = self.propose(request.request.take(), command::Body::ResolveDeadlocks(request)).await?;
        Ok(self.respond(expect_arm!(ResolveDeadlocks, body)?))
    }

    async fn why(&self, request: Request<WhyTaskRequest>) -> Result<Response<WhyTaskResponse>, Status> {
        let request = request.into_inner();
        checked(check_id("task_id", &request.task_id))?;
        let found = self
            .read(request.consistency(), |view| {
                let found = tasks::why(view.rooms, view.rows, view.head.now_ms, &request.task_id)?;
                let rev = view.head.rev;
                Ok(found.map(|(task, reasons)| WhyTaskResponse { status: task.status, reasons, rev }))
            })
            .await?;
        found
            .map(|response| self.respond(response))
            .ok_or_else(|| Status::not_found(format!("no task {}", request.task_id)))
    }

    type WorkStream = BoxStream<'static, Result<WorkEvent, Status>>;

    async fn work(&self, request: Request<WorkRequest>) -> Result<Response<Self::WorkStream>, Status> {
        let request = request.into_inner();
        checked(check_id("agent_id", &request.agent_id))?;
        checked(check_id("session_id", &request.session_id))?;
        let events = work::stand(self.clone(), request).await?;
        Ok(self.respond(Box::pin(events) as Self::WorkStream))
    }

    async fn get(&self, request: Request<GetTaskRequest>) -> Result<Response<GetTaskResponse>, Status> {
        let request = request.into_inner();
        checked(check_id("task_id", &request.task_id))?;
        let found = self
            .read(request.consistency(), |view| {
                let tasks = &view.rooms.tasks;
                let Some(task) = tasks.get(view.rows, &request.task_id)? else { return Ok(None) };
                Ok(Some(GetTaskResponse {
                    open_dependencies: tasks.open_dependencies(&task),
                    dependents: tasks.dependents(&request.task_id),
                    rev: view.head.rev,
                    task: Some(task),
                }))
            })
            .await?;
        found
            .map(|response| self.respond(response))
            .ok_or_else(|| Status::not_found(format!("no task {}", request.task_id)))
    }

    async fn list(&self, request: Request<ListTasksRequest>) -> Result<Response<ListTasksResponse>, Status> {
        let request = request.into_inner();
        at_most("limit", request.limit, tasks::MAX_PAGE as usize)?;
        check_filters([("agent_id", &request.agent_id), ("parent_id", &request.parent_id)])?;
        check_token(&request.page_token)?;
        if request.statuses.len() > MAX_STATUSES {
            let message = format!("statuses must be at most {MAX_STATUSES}; got {}", request.statuses.len());
            return Err(status::invalid("statuses", message));
        }
        let response = self
            .read(request.consistency(), |view| {
                let (tasks, next_page_token) = view.rooms.tasks.list(view.rows, &request)?;
                Ok(ListTasksResponse { tasks, next_page_token, rev: view.head.rev })
            })
            .await?;
        Ok(self.respond(response))
    }

    async fn attempts(&self, request: Request<ListAttemptsRequest>) -> Result<Response<ListAttemptsResponse>, Status> {
        let request = request.into_inner();
        at_most("limit", request.limit, tasks::MAX_PAGE as usize)?;
        check_filters([("task_id", &request.task_id), ("agent_id", &request.agent_id)])?;
        let response = self
            .read(request.consistency(), |view| {
                let (attempts, next_page_token) = view.rooms.tasks.attempts(view.rows, &request)?;
                Ok(ListAttemptsResponse { attempts, next_page_token, rev: view.head.rev })
            })
            .await?;
        Ok(self.respond(response))
    }

    async fn stats(&self, request: Request<TaskStatsRequest>) -> Result<Response<TaskStatsResponse>, Status> {
        let request = request.into_inner();
        let response = self
            .read(request.consistency(), |view| {
                Ok(TaskStatsResponse {
                    rev: view.head.rev,
                    completed_unaided: view.rooms.progress.completed_unaided(),
                    ..view.rooms.tasks.stats()
                })
            })
            .await?;
        Ok(self.respond(response))
    }
}

/// Ids that a list is narrowed to: they become parts of keys.
fn check_filters<const N: usize>(named: [(&str, &String); N]) -> Result<(), Status> {
    named.into_iter().filter(|(_, id)| !id.is_empty()).try_for_each(|(field, id)| checked(check_id(field, id)))
}

fn check_token(page_token: &str) -> Result<(), Status> {
    if page_token.contains('\0') {
        return Err(status::invalid("page_token", "page_token must be the one that the page before named"));
    }
    Ok(())
}

/// What a look at the state says about a claim.
enum Outlook {
    /// Propose: there is something to take, or a room should say why not.
    Propose,
    /// This very request was answered before.
    Answered(Box<quorate_proto::log::Answer>),
    /// The agent is to take no more.
    Draining { rev: u64 },
    /// Nothing to do now; listen to these capabilities.
    Wait(Vec<String>),
}

impl Door {
    /// Proposes only when there is something to take: an idle worker costs the log nothing.
    async fn claim_or_wait(&self, request: ClaimTasksRequest) -> Result<ClaimTasksResponse, Status> {
        let deadline = Instant::now() + Duration::from_millis(request.wait_ms);
        // The leader's state is as new as its answers; a follower's may not yet know the agent that just registered.
        if !matches!(self.core.leadership(), Leadership::Here { .. }) {
            self.fresh().await?;
        }
        loop {
            // Listening before looking: what becomes ready in between is not missed.
            let listened = self.hub().await?.listen(&request.agent_id, &self.capabilities(&request.agent_id));
            let mut wakes: Vec<_> = listened.iter().map(|notify| Box::pin(notify.notified())).collect();
            wakes.iter_mut().for_each(|wake| {
                wake.as_mut().enable();
            });
            match self.outlook(&request)? {
                Outlook::Answered(answer) => return expect_arm!(ClaimTasks, answered(*answer)?),
                Outlook::Draining { rev } => {
                    return Ok(ClaimTasksResponse { draining: true, rev, ..ClaimTasksResponse::default() });
                }
                Outlook::Propose => {
                    let response = self.propose_claim(request.clone()).await?;
                    if !response.tasks.is_empty() || response.draining || Instant::now() >= deadline {
                        return Ok(response);
                    }
                }
                Outlook::Wait(capabilities) if capabilities.len() + 2 != listened.len() => continue,
                Outlook::Wait(_) => {}
            }
            let now = Instant::now();
            if now < deadline && self.core.stop.is_thrown() {
                // "Nothing to do" at once would be asked again at once.
                return Err(status::unavailable("this node is stopping; nothing was claimed"));
            }
            if now >= deadline {
                let rev = self.look(|view| view.head.rev);
                return Ok(ClaimTasksResponse { rev, ..ClaimTasksResponse::default() });
            }
            let until = deadline.min(now + RECHECK);
            let _woken_or_not = tokio::time::timeout_at(until, select_all(wakes)).await;
        }
    }

    fn capabilities(&self, agent_id: &str) -> Vec<String> {
        self.look(|view| view.rooms.agents.get(agent_id).map(|agent| agent.capabilities.clone()).unwrap_or_default())
    }

    fn outlook(&self, request: &ClaimTasksRequest) -> Result<Outlook, Status> {
        let looked: Result<Outlook, Fatal> = self.look(|view| {
            if let Some(id) = &request.request
                && let Recorded::Answered(answer) = view.rooms.sessions.recorded(view.rows, id)?
            {
                return Ok(Outlook::Answered(answer));
            }
            let Some(agent) = view.rooms.agents.get(&request.agent_id) else { return Ok(Outlook::Propose) };
            let fits = agent.session_id == request.session_id;
            Ok(match agent.status() {
                AgentStatus::Draining if fits => Outlook::Draining { rev: view.head.rev },
                AgentStatus::Available | AgentStatus::Busy if fits => {
                    // Who asks must not have work pushed to it any more; only a command can say so.
                    if agent.standing || tasks::claimable(view.rooms, view.head.now_ms, &request.agent_id) {
                        Outlook::Propose
                    } else {
                        Outlook::Wait(agent.capabilities.clone())
                    }
                }
                _ => Outlook::Propose,
            })
        });
        looked.map_err(|fatal| self.fault(&fatal))
    }

    async fn propose_claim(&self, mut request: ClaimTasksRequest) -> Result<ClaimTasksResponse, Status> {
        let id: Option<RequestId> = request.request.take();
        let body: answer::Body = self.propose(id, command::Body::ClaimTasks(request)).await?;
        expect_arm!(ClaimTasks, body)
    }
}
