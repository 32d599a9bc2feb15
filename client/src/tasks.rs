//! Tasks: submit, claim, finish, look at. [`steer`] intervenes in what was submitted.
//!
//! Deliberately absent: a way to work. A [`Worker`](crate::Worker) claims and finishes for its handler; what is here is
//! for those who do it by hand.

mod steer;

use std::time::Duration;

use futures::stream::BoxStream;
use prost::Message;
use quorate_proto::v1::tasks_client::TasksClient;
use quorate_proto::v1::{
    ClaimTasksRequest, ClaimTasksResponse, FinishTaskRequest, FinishTaskResponse, GetTaskRequest, GetTaskResponse,
    ListAttemptsRequest, ListAttemptsResponse, ListDeadlocksRequest, ListDeadlocksResponse, ListTasksRequest,
    ListTasksResponse, RejectionCode, Spawn, SubmitTasksRequest, SubmitTasksResponse, SubmittedTask, Task, TaskSpec,
    TaskStatsRequest, TaskStatsResponse, TaskStatus, WhyTaskRequest, WhyTaskResponse, WorkEvent, WorkRequest,
};
use tokio::time::{Instant, sleep};

use crate::call::Plan;
use crate::channels::Channel;
use crate::client::{Client, new_id};
use crate::error::Error;
use crate::reopen::items;
use crate::requests::{identify, judged};
use crate::sessions::{Session, UnderWay};

/// The longest that the cluster holds a claim.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
const FIRST_LOOK: Duration = Duration::from_millis(20);
const SLOWEST_LOOK: Duration = Duration::from_millis(500);
/// Whoever waits for longer waits for ever; and a clock can still count it.
const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 86_400);

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
    pub async fn submit(&self, tasks: Vec<TaskSpec>) -> Result<SubmitTasksResponse, Error> {
        self.submit_with(SubmitTasksRequest { tasks, ..SubmitTasksRequest::default() }).await
    }

    /// Submits one task.
    pub async fn submit_one(&self, task: TaskSpec) -> Result<SubmittedTask, Error> {
        let submitted = self.submit(vec![task]).await?.tasks.pop();
        submitted.ok_or_else(|| Error::OutcomeUnknown { message: "the answer names no task".to_owned() })
    }

    /// Submits tasks that may wait for each other in a circle; [`Tasks::deadlocks`] finds those.
    pub async fn import(&self, tasks: Vec<TaskSpec>) -> Result<SubmitTasksResponse, Error> {
        self.submit_with(SubmitTasksRequest { tasks, admit_cycles: true, ..SubmitTasksRequest::default() }).await
    }

    /// Submits tasks as children of a running one, by its token. Each needs an idempotency key of its own: a parent that
    /// is tried again gets the children that it has. With `dependents_wait`, whoever waits for the parent waits for
    /// them too.
    pub async fn spawn(
        &self,
        parent_id: &str,
        token: u64,
        tasks: Vec<TaskSpec>,
        dependents_wait: bool,
    ) -> Result<SubmitTasksResponse, Error> {
        let spawn = Some(Spawn { parent_id: parent_id.to_owned(), token, dependents_wait });
        self.submit_with(SubmitTasksRequest { tasks, spawn, ..SubmitTasksRequest::default() }).await
    }

    /// As [`Tasks::submit`], with every option.
    pub async fn submit_with(&self, mut request: SubmitTasksRequest) -> Result<SubmitTasksResponse, Error> {
        give_keys(&mut request)?;
        check_size(&request)?;
        let submitted = self
            .client
            .call_in_full(Plan::SAFE, |channel| {
                let request = request.clone();
                async move { stub(channel).submit(request).await }
            })
            .await;
        match submitted.result {
            // The parent's token went between two deliveries; the first may have been in time.
            Err(Error::Fenced { message, .. }) if submitted.doubt => Err(Error::OutcomeUnknown { message }),
            result => result,
        }
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
        let request = claim_request(&under_way, agent_id, max_tasks, wait);
        let hold = Duration::from_millis(request.wait_ms);
        let claimed = self
            .client
            .call_in_full(Plan { hold, ..Plan::SAFE }, |channel| {
                let request = request.clone();
                async move { stub(channel).claim(request).await }
            })
            .await;
        judged(claimed, true)
    }

    /// A standing order: the attempts that the agent holds, then whatever it has room for, as it becomes ready. The
    /// stream ends when its node does, or when another node leads; order again then.
    pub async fn work(
        &self,
        session: &Session,
        agent_id: &str,
    ) -> Result<BoxStream<'static, Result<WorkEvent, Error>>, Error> {
        let request = WorkRequest { agent_id: agent_id.to_owned(), session_id: session.id().to_owned() };
        let opened = self
            .client
            .call_in_full(Plan::SAFE, |channel| {
                let request = request.clone();
                async move { stub(channel).work(request).await }
            })
            .await;
        Ok(items(&self.client, opened.node, opened.result?))
    }

    /// Ends an attempt. With a session, or a request id of the caller's own, a resend also gets the same follow-up
    /// tasks; without either do not ask for any.
    pub async fn finish(
        &self,
        session: Option<&Session>,
        mut request: FinishTaskRequest,
    ) -> Result<FinishTaskResponse, Error> {
        let _under_way = identify(&mut request.request, session);
        check_size(&request)?;
        // The token itself makes a plain finish safe to repeat; only tasks handed out with it would be lost.
        let plan = if request.claim_next > 0 && request.request.is_none() { Plan::UNSAFE } else { Plan::SAFE };
        let identified = request.request.is_some();
        let finished = self
            .client
            .call_in_full(plan, |channel| {
                let request = request.clone();
                async move { stub(channel).finish(request).await }
            })
            .await;
        // Without an id it is the token that ties a second delivery to the first.
        if identified { judged(finished, true) } else { finished.result }
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

    /// Every reason why the task is not running, or what it is doing.
    pub async fn why(&self, task_id: &str) -> Result<WhyTaskResponse, Error> {
        let request = WhyTaskRequest { task_id: task_id.to_owned(), consistency: 0 };
        self.client
            .call(Plan::READ, |channel| {
                let request = request.clone();
                async move { stub(channel).why(request).await }
            })
            .await
    }

    /// The circles among waiting tasks.
    pub async fn deadlocks(&self) -> Result<ListDeadlocksResponse, Error> {
        let request = ListDeadlocksRequest { consistency: 0 };
        self.client.call(Plan::READ, |channel| async move { stub(channel).deadlocks(request).await }).await
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

    /// Waits until the task has ended, however it ended. One that is reported has not: it may be sent back.
    pub async fn wait(&self, task_id: &str, limit: Duration) -> Result<Task, Error> {
        let deadline = Instant::now() + limit.min(FOR_EVER);
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

/// Whoever submits does not care which key it is; a parent that spawns must, since another attempt spawns again.
fn give_keys(request: &mut SubmitTasksRequest) -> Result<(), Error> {
    for (i, spec) in request.tasks.iter_mut().enumerate() {
        if !spec.idempotency_key.is_empty() {
            continue;
        }
        if request.spawn.is_some() {
            let message = format!("tasks[{i}].idempotency_key must be set: no other attempt may spawn it twice");
            return Err(Error::Config { message });
        }
        spec.idempotency_key = new_id("k");
    }
    Ok(())
}

/// Refuses what no message can carry. Sent, it would fail on the way, every time, and nobody could tell that it had no
/// effect.
pub(crate) fn check_size(request: &impl Message) -> Result<(), Error> {
    let (limit, bytes) = (crate::MAX_MESSAGE_BYTES, request.encoded_len());
    if bytes <= limit {
        return Ok(());
    }
    Err(Error::Rejected {
        code: RejectionCode::InvalidArgument,
        field: String::new(),
        message: format!("a request must be at most {limit} bytes; got {bytes}"),
    })
}

fn claim_request(under_way: &UnderWay, agent_id: &str, max_tasks: u32, wait: Duration) -> ClaimTasksRequest {
    let id = under_way.id();
    ClaimTasksRequest {
        agent_id: agent_id.to_owned(),
        session_id: id.session_id.clone(),
        max_tasks,
        wait_ms: u64::try_from(wait.min(LONGEST_WAIT).as_millis()).unwrap_or(u64::MAX),
        request: Some(id),
    }
}

fn has_ended(status: TaskStatus) -> bool {
    use TaskStatus::{Cancelled, Completed, Failed, Skipped, TimedOut};
    matches!(status, Completed | Failed | TimedOut | Cancelled | Skipped)
}

#[cfg(test)]
mod tests {
    use quorate_proto::v1::{CheckResult, RequestId};

    use super::*;

    const TTL: Duration = Duration::from_secs(60);

    #[test]
    fn every_submitted_task_has_a_key_and_a_spawned_one_its_own() {
        let tasks = vec![TaskSpec { idempotency_key: "mine".to_owned(), ..TaskSpec::default() }, TaskSpec::default()];
        let mut plain = SubmitTasksRequest { tasks, ..SubmitTasksRequest::default() };
        let mut spawning = SubmitTasksRequest { spawn: Some(Spawn::default()), ..plain.clone() };
        give_keys(&mut plain).unwrap();
        assert_eq!(plain.tasks[0].idempotency_key, "mine");
        assert!(!plain.tasks[1].idempotency_key.is_empty());
        let refused = give_keys(&mut spawning).unwrap_err();
        assert!(refused.to_string().starts_with("tasks[1].idempotency_key must be set"), "{refused}");
    }

    #[test]
    fn reported_is_alive_and_skipped_is_not() {
        assert!(has_ended(TaskStatus::Skipped) && has_ended(TaskStatus::Cancelled));
        assert!(!has_ended(TaskStatus::Reported) && !has_ended(TaskStatus::Blocked));
    }

    #[tokio::test]
    async fn what_no_message_carries_is_refused_and_not_unknown() {
        let session = Session::alone(TTL, Instant::now());
        let tasks = Tasks { client: session.client().clone() };
        let half = || TaskSpec { payload: vec![0; crate::MAX_MESSAGE_BYTES / 2].into(), ..TaskSpec::default() };
        let too_many = tasks.submit(vec![half(), half()]).await;
        assert!(matches!(too_many, Err(Error::Rejected { code: RejectionCode::InvalidArgument, .. })), "{too_many:?}");
        // Evidence counts as well as results do.
        let check = CheckResult { name: "x".repeat(crate::MAX_MESSAGE_BYTES), exit_code: 0 };
        let request = FinishTaskRequest { checks: vec![check], ..FinishTaskRequest::default() };
        let too_long = tasks.finish(Some(&session), request).await;
        assert!(matches!(too_long, Err(Error::Rejected { code: RejectionCode::InvalidArgument, .. })), "{too_long:?}");
        assert_eq!(session.next_request().done_below, 2, "it leaves no request under way");
        let fits = tasks.submit(vec![half()]).await;
        assert!(!matches!(fits, Ok(_) | Err(Error::Rejected { .. })), "nobody is there to take it: {fits:?}");
    }

    #[tokio::test]
    async fn one_may_wait_for_ever() {
        let session = Session::alone(TTL, Instant::now());
        let waited = Tasks { client: session.client().clone() }.wait("t", Duration::MAX).await;
        assert!(matches!(waited, Err(Error::Unavailable { .. })), "{waited:?}");
    }

    #[tokio::test]
    async fn a_finish_keeps_the_id_it_came_with() {
        let session = Session::alone(TTL, Instant::now());
        let own = RequestId { session_id: "s-other".to_owned(), sequence: 7, done_below: 3 };
        let mut request = FinishTaskRequest { request: Some(own.clone()), ..FinishTaskRequest::default() };
        assert!(identify(&mut request.request, Some(&session)).is_none());
        assert_eq!(request.request, Some(own));
    }

    #[tokio::test]
    async fn a_finish_without_an_id_draws_one_and_ends_it() {
        let session = Session::alone(TTL, Instant::now());
        let mut request = FinishTaskRequest::default();
        assert!(identify(&mut request.request, None).is_none() && request.request.is_none());
        let under_way = identify(&mut request.request, Some(&session));
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
