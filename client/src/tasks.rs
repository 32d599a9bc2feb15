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
use crate::sessions::Session;

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

    /// Claims up to `max_tasks`, waiting up to `wait` for a first one. A resend gets the same tasks.
    pub async fn claim(
        &self,
        session: &Session,
        agent_id: &str,
        max_tasks: u32,
        wait: Duration,
    ) -> Result<ClaimTasksResponse, Error> {
        let id = session.next_request();
        let sequence = id.sequence;
        let request = ClaimTasksRequest {
            agent_id: agent_id.to_owned(),
            session_id: session.id().to_owned(),
            max_tasks,
            wait_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
            request: Some(id),
        };
        let claimed = self
            .client
            .call(Plan { hold: wait, ..Plan::SAFE }, |channel| {
                let request = request.clone();
                async move { stub(channel).claim(request).await }
            })
            .await;
        session.done(sequence);
        claimed
    }

    /// Ends an attempt. With a session a resend also gets the same follow-up tasks; without one do not ask for any.
    pub async fn finish(
        &self,
        session: Option<&Session>,
        mut request: FinishTaskRequest,
    ) -> Result<FinishTaskResponse, Error> {
        request.request = session.map(Session::next_request);
        // The token itself makes a plain finish safe to repeat; only tasks handed out with it would be lost.
        let plan = if request.claim_next > 0 && session.is_none() { Plan::UNSAFE } else { Plan::SAFE };
        let finished = self
            .client
            .call(plan, |channel| {
                let request = request.clone();
                async move { stub(channel).finish(request).await }
            })
            .await;
        if let (Some(session), Some(id)) = (session, &request.request) {
            session.done(id.sequence);
        }
        finished
    }

    /// Ends a task whatever it is doing. A task that is cancelled already counts as success.
    pub async fn cancel(&self, task_id: &str, reason: &str) -> Result<CancelTaskResponse, Error> {
        let request = CancelTaskRequest { task_id: task_id.to_owned(), reason: reason.to_owned(), request: None };
        let cancelled = self
            .client
            .call(Plan::SAFE, |channel| {
                let request = request.clone();
                async move { stub(channel).cancel(request).await }
            })
            .await;
        match cancelled {
            // Perhaps an earlier delivery of this very call ended it.
            Err(error @ Error::Rejected { code: RejectionCode::FailedPrecondition, .. }) => {
                let found = self.get(task_id).await?;
                let ended = found.task.filter(|task| task.status() == TaskStatus::Cancelled);
                ended.map(|task| CancelTaskResponse { task: Some(task), rev: found.rev }).ok_or(error)
            }
            other => other,
        }
    }

    /// One task with what it waits for and what waits for it.
    pub async fn get(&self, task_id: &str) -> Result<GetTaskResponse, Error> {
        let request = GetTaskRequest { task_id: task_id.to_owned(), consistency: 0 };
        self.client
            .call(Plan::SAFE, |channel| {
                let request = request.clone();
                async move { stub(channel).get(request).await }
            })
            .await
    }

    /// A page of tasks.
    pub async fn list(&self, request: ListTasksRequest) -> Result<ListTasksResponse, Error> {
        self.client
            .call(Plan::SAFE, |channel| {
                let request = request.clone();
                async move { stub(channel).list(request).await }
            })
            .await
    }

    /// A page of attempts.
    pub async fn attempts(&self, request: ListAttemptsRequest) -> Result<ListAttemptsResponse, Error> {
        self.client
            .call(Plan::SAFE, |channel| {
                let request = request.clone();
                async move { stub(channel).attempts(request).await }
            })
            .await
    }

    /// How many tasks stand where.
    pub async fn stats(&self) -> Result<TaskStatsResponse, Error> {
        let request = TaskStatsRequest { consistency: 0 };
        self.client.call(Plan::SAFE, |channel| async move { stub(channel).stats(request).await }).await
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

fn has_ended(status: TaskStatus) -> bool {
    matches!(status, TaskStatus::Completed | TaskStatus::Failed | TaskStatus::TimedOut | TaskStatus::Cancelled)
}
