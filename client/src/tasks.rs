//! Tasks: submit, claim, finish, look at.

use std::time::Duration;

use quorate_proto::v1::tasks_client::TasksClient;
use quorate_proto::v1::{
    CancelTaskRequest, CancelTaskResponse, ClaimTasksRequest, ClaimTasksResponse, FinishTaskRequest,
    FinishTaskResponse, GetTaskRequest, GetTaskResponse, ListAttemptsRequest, ListAttemptsResponse, ListTasksRequest,
    ListTasksResponse, RejectionCode, SubmitTasksRequest, SubmitTasksResponse, SubmittedTask, Task, TaskSpec,
    TaskStatsRequest, TaskStatsResponse, TaskStatus,
};
use tokio::time::{Instant, sleep};
use tonic::transport::Channel;

use crate::call::Plan;
use crate::client::{Client, new_id};
use crate::error::Error;
use crate::sessions::{Session, UnderWay};

/// The longest that the cluster holds a claim.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
const FIRST_LOOK: Duration = Duration::from_millis(20);
const SLOWEST_LOOK: Duration = Duration::from_millis(500);

/// The task queue.
#[derive(Debug, Clone)]
pub struct Tasks {
    pub(crate) client: Client,
}

fn stub(channel: Channel) -> TasksClient<Channel> {
    TasksClient::new(channel)
        .max_decoding_message_size(crate::MAX_MESSAGE_BYTES * 4)
        .max_encoding_message_size(crate::MAX_MESSAGE_BYTES)
}

impl Tasks {
    /// Submits all of the tasks or none. Each that has no idempotency key gets one, so that a resend creates nothing
    /// twice.
    pub async fn submit(&self, mut tasks: Vec<TaskSpec>) -> Result<SubmitTasksResponse, Error> {
        for spec in &mut tasks {
            if spec.idempotency_key.is_empty() {
                spec.idempotency_key = new_id("k");
            }
        }
        let request = SubmitTasksRequest { tasks, request: None };
        self.client
            .call(Plan::SAFE, |channel| {
                let request = request.clone();
                async move { stub(channel).submit(request).await }
            })
            .await
    }

    /// Submits one task.
    pub async fn submit_one(&self, task: TaskSpec) -> Result<SubmittedTask, Error> {
        let submitted = self.submit(vec![task]).await?.tasks.pop();
        submitted.ok_or_else(|| Error::OutcomeUnknown { message: "the answer names no task".to_owned() })
    }

    /// Claims up to `max_tasks`, waiting up to `wait` (at most 60 s) for a first one. A resend gets the same tasks.
    pub async fn claim(
        &self,
        session: &Session,
        agent_id: &str,
        max_tasks: u32,
        wait: Duration,
    ) -> Result<ClaimTasksResponse, Error> {
        let under_way = session.begin();
        self.claim_with(claim_request(&under_way, agent_id, max_tasks, wait)).await
    }

    /// A claim that its caller may repeat, under the same request id, for as long as that is under way.
    pub(crate) async fn claim_with(&self, request: ClaimTasksRequest) -> Result<ClaimTasksResponse, Error> {
        let hold = Duration::from_millis(request.wait_ms);
        self.client
            .call(Plan { hold, ..Plan::SAFE }, |channel| {
                let request = request.clone();
                async move { stub(channel).claim(request).await }
            })
            .await
    }

    /// Ends an attempt. With a session, or a request id of the caller's own, a resend also gets the same follow-up
    /// tasks; without either do not ask for any.
    pub async fn finish(
        &self,
        session: Option<&Session>,
        mut request: FinishTaskRequest,
    ) -> Result<FinishTaskResponse, Error> {
        let _under_way = identify(&mut request, session);
        // The token itself makes a plain finish safe to repeat; only tasks handed out with it would be lost.
        let plan = if request.claim_next > 0 && request.request.is_none() { Plan::UNSAFE } else { Plan::SAFE };
        self.client
            .call(plan, |channel| {
                let request = request.clone();
                async move { stub(channel).finish(request).await }
            })
            .await
    }

    /// Ends a task whatever it is doing. A task that is cancelled already counts as success.
    pub async fn cancel(&self, task_id: &str, reason: &str) -> Result<CancelTaskResponse, Error> {
        let request = CancelTaskRequest { task_id: task_id.to_owned(), reason: reason.to_owned(), request: None };
        let cancelled = self
            .client
            .call_in_full(Plan::SAFE, |channel| {
                let request = request.clone();
                async move { stub(channel).cancel(request).await }
            })
            .await;
        let error = match cancelled.result {
            Err(error @ Error::Rejected { code: RejectionCode::FailedPrecondition, .. }) => error,
            other => return other,
        };
        // It has ended, perhaps by an earlier delivery of this very call.
        match self.get(task_id).await {
            Ok(found) => {
                let ended = found.task.filter(|task| task.status() == TaskStatus::Cancelled);
                ended.map(|task| CancelTaskResponse { task: Some(task), rev: found.rev }).ok_or(error)
            }
            Err(_) if cancelled.doubt => {
                Err(Error::OutcomeUnknown { message: format!("task {task_id} has ended, perhaps by this very call") })
            }
            Err(_) => Err(error),
        }
    }

    /// One task with what it waits for and what waits for it.
    pub async fn get(&self, task_id: &str) -> Result<GetTaskResponse, Error> {
        let request = GetTaskRequest { task_id: task_id.to_owned(), consistency: 0 };
        self.client
            .call(Plan::READ, |channel| {
                let request = request.clone();
                async move { stub(channel).get(request).await }
            })
            .await
    }

    /// A page of tasks.
    pub async fn list(&self, request: ListTasksRequest) -> Result<ListTasksResponse, Error> {
        self.client
            .call(Plan::READ, |channel| {
                let request = request.clone();
                async move { stub(channel).list(request).await }
            })
            .await
    }

    /// A page of attempts.
    pub async fn attempts(&self, request: ListAttemptsRequest) -> Result<ListAttemptsResponse, Error> {
        self.client
            .call(Plan::READ, |channel| {
                let request = request.clone();
                async move { stub(channel).attempts(request).await }
            })
            .await
    }

    /// How many tasks stand where.
    pub async fn stats(&self) -> Result<TaskStatsResponse, Error> {
        let request = TaskStatsRequest { consistency: 0 };
        self.client.call(Plan::READ, |channel| async move { stub(channel).stats(request).await }).await
    }

    /// Waits until the task has ended, however it ended.
    pub async fn wait(&self, task_id: &str, limit: Duration) -> Result<Task, Error> {
        let deadline = Instant::now() + limit;
        let mut pause = FIRST_LOOK;
        loop {
            let task = self.get(task_id).await?.task.unwrap_or_default();
            if has_ended(task.status()) {
                return Ok(task);
            }
            if Instant::now() + pause >= deadline {
                return Err(Error::Unavailable {
                    message: format!("task {task_id} did not end within {limit:?}"),
                    last: format!("it is {}", task.status().as_str_name()),
                });
            }
            sleep(pause).await;
            pause = (pause * 2).min(SLOWEST_LOOK);
        }
    }
}

pub(crate) fn claim_request(under_way: &UnderWay, agent_id: &str, max_tasks: u32, wait: Duration) -> ClaimTasksRequest {
    let id = under_way.id();
    ClaimTasksRequest {
        agent_id: agent_id.to_owned(),
        session_id: id.session_id.clone(),
        max_tasks,
        wait_ms: u64::try_from(wait.min(LONGEST_WAIT).as_millis()).unwrap_or(u64::MAX),
        request: Some(id),
    }
}

/// Gives the request an id, if it has none and there is a session to draw one from.
fn identify(request: &mut FinishTaskRequest, session: Option<&Session>) -> Option<UnderWay> {
    if request.request.is_some() {
        return None;
    }
    let under_way = session?.begin();
    request.request = Some(under_way.id());
    Some(under_way)
}

fn has_ended(status: TaskStatus) -> bool {
    matches!(status, TaskStatus::Completed | TaskStatus::Failed | TaskStatus::TimedOut | TaskStatus::Cancelled)
}

#[cfg(test)]
mod tests {
    use quorate_proto::v1::RequestId;

    use super::*;

    const TTL: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_finish_keeps_the_id_it_came_with() {
        let session = Session::alone(TTL, Instant::now());
        let own = RequestId { session_id: "s-other".to_owned(), sequence: 7, done_below: 3 };
        let mut request = FinishTaskRequest { request: Some(own.clone()), ..FinishTaskRequest::default() };
        assert!(identify(&mut request, Some(&session)).is_none());
        assert_eq!(request.request, Some(own));
    }

    #[tokio::test]
    async fn a_finish_without_an_id_draws_one_and_ends_it() {
        let session = Session::alone(TTL, Instant::now());
        let mut request = FinishTaskRequest::default();
        assert!(identify(&mut request, None).is_none() && request.request.is_none());
        let under_way = identify(&mut request, Some(&session));
        assert_eq!(request.request.map(|id| id.sequence), Some(1));
        assert_eq!(session.next_request().done_below, 1);
        drop(under_way);
        assert_eq!(session.next_request().done_below, 2);
    }

    #[tokio::test]
    async fn a_dropped_claim_leaks_no_request_and_a_long_wait_is_clipped() {
        let session = Session::alone(TTL, Instant::now());
        let tasks = Tasks { client: session.client().clone() };
        let claim = tasks.claim(&session, "a", 1, Duration::MAX);
        // Polled once and dropped: the call is under way by then.
        assert!(futures::FutureExt::now_or_never(claim).is_none());
        assert_eq!(session.next_request().done_below, 2);
        assert_eq!(claim_request(&session.begin(), "a", 1, Duration::MAX).wait_ms, 60_000);
    }
}
