//! One job in a task of its own: runs the handler, then reports what came of it until the cluster has taken it or the
//! lease is gone. With an outbox a result is on disk before that, and what the lease was too short for is left there.
//!
//! Deliberately absent: any memory of other jobs. Several run and finish at once and share nothing but the room.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use quorate_proto::v1::{FinishKind, FinishTaskRequest, FinishTaskResponse, RejectionCode, Task};
use tokio::sync::{Semaphore, watch};
use tokio::time::sleep;

use super::known::{Attempt, attempt_of};
use super::stop::{StopSignal, Told};
use super::{Done, Job, Output, WorkerReport};
use crate::error::Error;
use crate::outbox::{Fate, Outbox, Slip};
use crate::requests::ABOUT_THE_DISK;
use crate::sessions::Session;
use crate::tasks::Tasks;

/// The pause before a finish that nobody took is sent again, on top of the call's own retries.
pub(super) const PAUSE: Duration = Duration::from_millis(200);
/// What the cluster keeps of an output, its end, and of an error, its beginning; there is no point in sending more.
const KEPT_BYTES: usize = 64 << 10;
/// The longest pause that the cluster takes from a provider.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(86_400);

/// What every job of one session works with.
#[derive(Clone)]
pub(super) struct Bench {
    pub(super) tasks: Tasks,
    pub(super) session: Session,
    /// As many places as the agent has capacity. The cluster counts attempts that it fenced as gone; their handlers may
    /// still be at it.
    pub(super) room: Arc<Semaphore>,
    /// Where results are kept until the cluster has answered, if anywhere.
    pub(super) outbox: Option<Outbox>,
}

/// How an attempt counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Count {
    Completed,
    Failed,
    Released,
    Cancelled,
    Fenced,
    /// Not known yet: the result is in the outbox, and counts when the courier has brought it.
    Owed,
}

/// What a job brings back.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) attempt: Attempt,
    pub(super) count: Count,
}

impl WorkerReport {
    pub(super) fn add(&mut self, count: Count) {
        match count {
            Count::Completed => self.completed += 1,
            Count::Failed => self.failed += 1,
            Count::Released => self.released += 1,
            Count::Cancelled => self.cancelled += 1,
            Count::Fenced => self.fenced += 1,
            Count::Owed => {}
        }
    }
}

impl Bench {
    /// Runs the handler on an assigned task and reports the result, also of one that was asked to stop: it may have been
    /// quicker than its grace.
    pub(super) async fn run<H, F>(self, handler: H, task: Task, told: watch::Receiver<Told>) -> Ended
    where
        H: Fn(Job) -> F,
        F: Future<Output = Done>,
    {
        let attempt = attempt_of(&task);
        let stop = StopSignal::new(attempt.clone(), told, self.session.held());
        let job = Job::new(task, self.tasks.clone(), stop.clone());
        let done = match self.perform(handler, job).await {
            // There is no cancel to acknowledge.
            Done::Cancelled if !stop.is_given() => Done::Released,
            done => done,
        };
        self.finish(attempt, done).await
    }

    async fn perform<H, F>(&self, handler: H, job: Job) -> Done
    where
        H: Fn(Job) -> F,
        F: Future<Output = Done>,
    {
        let _place = tokio::select! {
            biased;
            place = self.room.acquire() => place,
            () = job.cancelled() => return Done::Cancelled,
        };
        // A panic in the handler is a failed attempt and not a dead worker.
        let done = AssertUnwindSafe(async move { handler(job).await }).catch_unwind().await;
        done.unwrap_or_else(|_| Done::failed("handler panicked").class("panic"))
    }

    /// Returns a task that was never begun, without counting a failure against it.
    pub(super) async fn hand_back(self, task: Task) -> Ended {
        self.finish(attempt_of(&task), Done::Released).await
    }

    async fn finish(&self, attempt: Attempt, done: Done) -> Ended {
        let under_way = self.session.begin();
        let mut request = FinishTaskRequest { request: Some(under_way.id()), ..finish_of(&attempt, done) };
        let slip = self.keep(&request).await;
        let mut answer = self.deliver(&request).await;
        drop(under_way);
        if let Some(instead) = in_place_of(&request, answer.as_ref()) {
            tracing::error!(task = attempt.0, ?answer, "a finish was refused");
            // The outbox keeps the first: whoever delivers that again is refused again, and comes to the same.
            let under_way = self.session.begin();
            request = FinishTaskRequest { request: Some(under_way.id()), ..finish_of(&attempt, instead) };
            answer = self.deliver(&request).await;
        }
        let fate = Fate::of(answer.as_ref());
        if let (Some(outbox), Some(slip)) = (&self.outbox, &slip) {
            outbox.settle(slip, fate).await;
        }
        let count = match answer {
            Some(Ok(_)) => count_of(request.kind()),
            _ if slip.is_some() && fate == Fate::Owed => {
                tracing::warn!(task = attempt.0, ?answer, "a result was not taken; it is in the outbox");
                Count::Owed
            }
            Some(Err(Error::Rejected { code, message, .. })) if code != RejectionCode::NotFound => {
                tracing::error!(task = attempt.0, message, "a finish was refused");
                Count::Failed
            }
            // Others have the task by now, or will have.
            Some(Err(error)) => {
                tracing::warn!(task = attempt.0, %error, "an attempt was superseded");
                Count::Fenced
            }
            None => Count::Fenced,
        };
        Ended { attempt, count }
    }

    /// Writes a result down. What was handed back or cancelled is none: the end of its session says the same.
    async fn keep(&self, request: &FinishTaskRequest) -> Option<Slip> {
        match (&self.outbox, request.kind()) {
            (Some(outbox), FinishKind::Completed | FinishKind::Failed | FinishKind::FailedPermanently) => {
                outbox.put(request).await
            }
            _ => None,
        }
    }

    /// Sends the finish, always under the same request id, until there is an answer. `None`: the session ended first.
    async fn deliver(&self, request: &FinishTaskRequest) -> Option<Result<FinishTaskResponse, Error>> {
        loop {
            let finished = tokio::select! {
                finished = self.tasks.finish(Some(&self.session), request.clone()) => finished,
                () = self.session.ended() => return None,
            };
            match finished {
                Err(error) if may_pass(&error) => {
                    tracing::warn!(task = request.task_id, %error, "a finish was not taken; sending it again");
                }
                other => return Some(other),
            }
            tokio::select! {
                () = sleep(PAUSE) => {}
                () = self.session.ended() => return None,
            }
        }
    }
}

/// Whether the same finish may yet be taken: safe by its token, it is repeated until the lease is gone.
pub(super) fn may_pass(error: &Error) -> bool {
    match error {
        Error::Unavailable { .. } | Error::OutcomeUnknown { .. } => true,
        // A limit on what the session has under way, or a disk that is full for now: not about this finish.
        Error::Rejected { code: RejectionCode::ResourceExhausted, field, .. } => {
            field.starts_with("request.") || field == ABOUT_THE_DISK
        }
        _ => false,
    }
}

/// What to say instead of a finish that itself was refused: without one that is accepted the attempt would stay open
/// until it times out. That its task or session is not there is no such refusal.
pub(super) fn in_place_of(
    refused: &FinishTaskRequest,
    answer: Option<&Result<FinishTaskResponse, Error>>,
) -> Option<Done> {
    let Some(Err(Error::Rejected { code, field, message })) = answer else { return None };
    if *code == RejectionCode::NotFound {
        return None;
    }
    let error = format!("the result was refused: {message}");
    match refused.kind() {
        FinishKind::FailedPermanently => None,
        // Its class or its pause was wrong. It failed all the same, and another attempt may do better.
        FinishKind::Failed => Some(Done::failed(refused.error.as_str()).with_output(output_of(refused))),
        FinishKind::Cancelled => Some(Done::Released),
        // The next attempt may bring what the task's evidence policy asks for.
        FinishKind::Completed if is_evidence(field) => Some(Done::failed(error).class("evidence")),
        _ => Some(Done::failed_permanently(error)),
    }
}

fn is_evidence(field: &str) -> bool {
    ["artifacts", "checks", "verdict"].iter().any(|name| field.starts_with(name))
}

fn count_of(kind: FinishKind) -> Count {
    match kind {
        FinishKind::Completed => Count::Completed,
        FinishKind::Released => Count::Released,
        FinishKind::Cancelled => Count::Cancelled,
        _ => Count::Failed,
    }
}

pub(super) fn finish_of(attempt: &Attempt, done: Done) -> FinishTaskRequest {
    let plain = FinishTaskRequest { task_id: attempt.0.clone(), token: attempt.1, ..FinishTaskRequest::default() };
    let of = |kind: FinishKind| FinishTaskRequest { kind: kind as i32, ..plain };
    match done {
        Done::Completed { result, output, artifacts, checks, verdict, comment } => {
            let completed = of(FinishKind::Completed);
            let verdict = verdict as i32;
            leaving(output, FinishTaskRequest { result, artifacts, checks, verdict, comment, ..completed })
        }
        Done::Failed { error, class, retry_after, output } => {
            let (failed, error) = (of(FinishKind::Failed), head(error));
            let retry_after = retry_after.min(LONGEST_RETRY_AFTER);
            let retry_after_ms = u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX);
            leaving(output, FinishTaskRequest { error, error_class: class, retry_after_ms, ..failed })
        }
        Done::FailedPermanently { error, output } => {
            leaving(output, FinishTaskRequest { error: head(error), ..of(FinishKind::FailedPermanently) })
        }
        Done::Released => of(FinishKind::Released),
        Done::Cancelled => of(FinishKind::Cancelled),
    }
}

fn leaving(output: Output, request: FinishTaskRequest) -> FinishTaskRequest {
    let Output { exit_code, stdout, stderr } = output;
    FinishTaskRequest { exit_code, stdout: tail(&stdout), stderr: tail(&stderr), ..request }
}

fn output_of(request: &FinishTaskRequest) -> Output {
    Output { exit_code: request.exit_code, stdout: request.stdout.clone(), stderr: request.stderr.clone() }
}

fn head(mut error: String) -> String {
    error.truncate(error.floor_char_boundary(KEPT_BYTES));
    error
}

fn tail(output: &Bytes) -> Bytes {
    output.slice(output.len().saturating_sub(KEPT_BYTES)..)
}

#[cfg(test)]
mod tests {
    use quorate_proto::v1::Verdict;
    use tokio::sync::mpsc;
    use tokio::time::{Instant, timeout};

    use super::super::stop::Stop;
    use super::*;

    const TTL: Duration = Duration::from_secs(60);

    fn bench(session: Session) -> Bench {
        Bench { tasks: session.client().tasks(), session, room: Arc::new(Semaphore::new(1)), outbox: None }
    }

    fn finish(done: Done) -> FinishTaskRequest {
        finish_of(&("t".to_owned(), 1), done)
    }

    async fn panics(_: Job) -> Done {
        panic!("on purpose")
    }

    fn rejected(code: RejectionCode, field: &str) -> Error {
        Error::Rejected { code, field: field.to_owned(), message: "no".to_owned() }
    }

    #[test]
    fn a_refused_result_is_replaced_by_what_will_be_taken() {
        use RejectionCode::{FailedPrecondition, InvalidArgument, NotFound};
        let of = |kind: FinishKind| FinishTaskRequest { kind: kind as i32, ..FinishTaskRequest::default() };
        let told = |kind, error| in_place_of(&of(kind), Some(&Err(error)));
        let completed = |code, field| told(FinishKind::Completed, rejected(code, field));
        assert!(matches!(completed(InvalidArgument, "result"), Some(Done::FailedPermanently { .. })));
        let missing = completed(InvalidArgument, "artifacts");
        assert!(matches!(missing, Some(Done::Failed { class, .. }) if class == "evidence"));
        assert!(completed(NotFound, "task_id").is_none());
        assert!(told(FinishKind::Completed, Error::Fenced { field: String::new(), message: String::new() }).is_none());
        assert!(told(FinishKind::FailedPermanently, rejected(InvalidArgument, "error")).is_none());
        let acknowledged = told(FinishKind::Cancelled, rejected(FailedPrecondition, "kind"));
        assert!(matches!(acknowledged, Some(Done::Released)));
        assert!(in_place_of(&of(FinishKind::Completed), None).is_none());
    }

    #[test]
    fn a_failure_that_was_described_wrongly_is_still_one_that_may_be_tried_again() {
        let output = Output { exit_code: Some(3), stderr: "no".into(), ..Output::default() };
        let request = finish(Done::failed("no answer").class("no id").with_output(output));
        let refusal = Err(rejected(RejectionCode::InvalidArgument, "error_class"));
        let request = finish(in_place_of(&request, Some(&refusal)).unwrap());
        assert_eq!((request.kind(), request.error.as_str()), (FinishKind::Failed, "no answer"));
        assert_eq!((request.error_class.as_str(), request.retry_after_ms), ("", 0));
        assert_eq!((request.exit_code, request.stderr.as_ref()), (Some(3), &b"no"[..]));
        let limited = finish(Done::rate_limited("429", Duration::MAX));
        assert_eq!((limited.kind(), limited.retry_after_ms), (FinishKind::Failed, 86_400_000));
    }

    #[test]
    fn what_may_pass_is_sent_again() {
        assert!(may_pass(&Error::OutcomeUnknown { message: String::new() }));
        assert!(may_pass(&rejected(RejectionCode::ResourceExhausted, "request.done_below")));
        assert!(!may_pass(&rejected(RejectionCode::ResourceExhausted, "result")));
        assert!(!may_pass(&rejected(RejectionCode::InvalidArgument, "result")));
    }

    #[test]
    fn outputs_are_cut_to_their_tails_and_errors_to_their_heads_and_results_are_not() {
        let long: Bytes = [vec![b'a'; KEPT_BYTES], vec![b'b'; KEPT_BYTES]].concat().into();
        let output = Output { stdout: long.clone(), ..Output::default() };
        let request = finish(Done::completed(long.clone()).with_output(output));
        assert_eq!(request.stdout, vec![b'b'; KEPT_BYTES]);
        assert_eq!(request.result, long);
        let wordy = "a".repeat(KEPT_BYTES - 1) + "ä";
        assert_eq!(finish(Done::failed(wordy.as_str())).error.len(), KEPT_BYTES - 1);
        assert_eq!(finish(Done::failed_permanently(wordy)).error.len(), KEPT_BYTES - 1);
    }

    #[test]
    fn what_the_handler_says_is_what_is_sent() {
        let limited = finish(Done::rate_limited("429", Duration::from_secs(2)));
        assert_eq!((limited.kind(), limited.error_class.as_str()), (FinishKind::Failed, "rate_limited"));
        assert_eq!((limited.retry_after_ms, limited.error.as_str()), (2_000, "429"));
        let review = finish(Done::rework("shorter"));
        assert_eq!((review.kind(), review.verdict()), (FinishKind::Completed, Verdict::Rework));
        assert_eq!(review.comment, "shorter");
        assert_eq!(finish(Done::completed("x").with_check("lint", 0)).checks.len(), 1);
        let stopped = finish(Done::Cancelled);
        assert_eq!((stopped.kind(), stopped.token, stopped.claim_next), (FinishKind::Cancelled, 1, 0));
    }

    #[tokio::test]
    async fn a_finish_is_given_up_with_the_session_and_its_request_id_with_it() {
        let session = Session::alone(TTL, Instant::now());
        let (_tell, told) = watch::channel(None);
        let running = tokio::spawn(bench(session.clone()).run(panics, Task::default(), told));
        session.lost();
        let ended = timeout(TTL, running).await.unwrap().unwrap();
        assert_eq!(ended.count, Count::Fenced);
        let next = session.next_request();
        assert_eq!(next.done_below, next.sequence, "nothing is under way");
    }

    #[tokio::test]
    async fn a_result_is_on_disk_before_it_is_delivered_and_stays_when_the_session_ends_first() {
        let temp = tempfile::tempdir().unwrap();
        let session = Session::alone(TTL, Instant::now());
        let outbox = Outbox::open(temp.path().to_owned(), "a", "").await.unwrap();
        let bench = Bench { outbox: Some(outbox.clone()), ..bench(session.clone()) };
        let handler = |_: Job| std::future::ready(Done::completed("the result"));
        let task = Task { id: "kept".to_owned(), ..Task::default() };
        let (_tell, told) = watch::channel(None);
        let running = tokio::spawn(bench.clone().run(handler, task, told));
        // The session is there, and so is whoever delivers: nobody takes it.
        let entries = timeout(TTL, async {
            loop {
                match outbox.entries().await.unwrap() {
                    none if none.is_empty() => sleep(Duration::from_millis(1)).await,
                    entries => break entries,
                }
            }
        });
        let slips: Vec<_> = entries.await.unwrap().into_values().flatten().collect();
        let entry = outbox.read(&slips[0]).await.unwrap();
        assert_eq!((entry.session_id(), entry.agent_id.as_str()), ("s-alone", "a"));
        assert_eq!(entry.finish.result.as_ref(), b"the result");
        session.lost();
        assert_eq!(timeout(TTL, running).await.unwrap().unwrap().count, Count::Owed);
        assert_eq!(outbox.entries().await.unwrap().into_values().flatten().collect::<Vec<_>>(), slips);

        let handed_back = Task { id: "handed back".to_owned(), ..Task::default() };
        assert_eq!(timeout(TTL, bench.hand_back(handed_back)).await.unwrap().count, Count::Fenced);
        assert_eq!(outbox.entries().await.unwrap().into_values().flatten().count(), 1, "no result");
    }

    #[tokio::test]
    async fn no_more_handlers_run_at_once_than_there_is_room_for() {
        let session = Session::alone(TTL, Instant::now());
        let bench = bench(session.clone());
        let (begin, mut begun) = mpsc::unbounded_channel();
        let stubborn = move |job: Job| {
            begin.send(job.task.id).unwrap();
            std::future::pending::<Done>()
        };
        let task = |id: &str| Task { id: id.to_owned(), ..Task::default() };
        let (_tell, told) = watch::channel(None);
        let first = tokio::spawn(bench.clone().run(stubborn.clone(), task("first"), told));
        assert_eq!(timeout(TTL, begun.recv()).await.unwrap().as_deref(), Some("first"));
        let (tell, told) = watch::channel(None);
        let second = tokio::spawn(bench.run(stubborn, task("second"), told));
        assert!(timeout(PAUSE, begun.recv()).await.is_err(), "the first still runs");
        // It does not wait for its place when nobody wants it any longer.
        tell.send_replace(Some(Stop::within(Duration::ZERO, "not wanted")));
        session.lost();
        assert_eq!(timeout(TTL, second).await.unwrap().unwrap().count, Count::Fenced);
        assert!(begun.try_recv().is_err());
        first.abort();
    }
}
