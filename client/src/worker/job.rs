//! One job in a task of its own: runs the handler, then reports what came of it until the cluster has taken it or the
//! lease is gone.
//!
//! Deliberately absent: any memory of other jobs. Several run and finish at once and know nothing of each other.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use quorate_proto::v1::{FinishKind, FinishTaskRequest, FinishTaskResponse, RejectionCode, Task};
use tokio::sync::watch;
use tokio::time::sleep;

use super::{Done, Job, Output, WorkerReport};
use crate::error::Error;
use crate::sessions::Session;
use crate::tasks::Tasks;

/// The pause before a finish that nobody took is sent again, on top of the call's own retries.
const PAUSE: Duration = Duration::from_millis(200);
/// The tail of an output that the cluster keeps; there is no point in sending more.
const OUTPUT_BYTES: usize = 64 << 10;
/// What a finish may carry besides its outputs and still fit into a message.
const RESULT_BYTES: usize = crate::MAX_MESSAGE_BYTES - (1 << 20);

/// What every job of one session works with.
#[derive(Clone)]
pub(super) struct Bench {
    pub(super) tasks: Tasks,
    pub(super) session: Session,
    /// The leases are lost.
    pub(super) cancelled: watch::Receiver<bool>,
    /// The worker takes no more.
    pub(super) leaving: watch::Receiver<bool>,
}

/// How an attempt counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Count {
    Completed,
    Failed,
    Released,
    Fenced,
}

/// What a job brings back.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) count: Count,
    /// What was claimed along with the finish.
    pub(super) next: Vec<Task>,
}

impl WorkerReport {
    pub(super) fn add(&mut self, count: Count) {
        match count {
            Count::Completed => self.completed += 1,
            Count::Failed => self.failed += 1,
            Count::Released => self.released += 1,
            Count::Fenced => self.fenced += 1,
        }
    }
}

impl Bench {
    /// Runs the handler on a claimed task and reports the result.
    pub(super) async fn run<H, F>(self, handler: H, task: Task) -> Ended
    where
        H: Fn(Job) -> F,
        F: Future<Output = Done>,
    {
        let job = Job { task, cancelled: self.cancelled.clone(), held: self.session.held() };
        let (id, token) = (job.task.id.clone(), job.token());
        // A panic in the handler is a failed attempt and not a dead worker.
        let done = AssertUnwindSafe(async move { handler(job).await })
            .catch_unwind()
            .await
            .unwrap_or_else(|_| Done::Failed { error: "handler panicked".to_owned(), output: Output::default() });
        self.finish(finish_of(id, token, done)).await
    }

    /// Returns a task that was never begun, without counting a failure against it.
    pub(super) async fn hand_back(self, task: Task) -> Ended {
        let token = task.claim.as_ref().map_or(0, |claim| claim.token);
        self.finish(finish_of(task.id, token, Done::Released)).await
    }

    async fn finish(&self, mut request: FinishTaskRequest) -> Ended {
        let (task_id, token) = (request.task_id.clone(), request.token);
        let mut kind = request.kind();
        request.claim_next = u32::from(!*self.leaving.borrow());
        let mut answer = match oversized(&request) {
            Some(refusal) => Some(Err(refusal)),
            None => self.deliver(request).await,
        };
        if let Some(message) = refusal(answer.as_ref())
            && kind != FinishKind::FailedPermanently
        {
            tracing::error!(task = task_id, message, "a finish was refused");
            // Without a result that is accepted the attempt would stay open until it times out.
            kind = FinishKind::FailedPermanently;
            let error = format!("the result was refused: {message}");
            let done = Done::FailedPermanently { error, output: Output::default() };
            let claim_next = u32::from(!*self.leaving.borrow());
            let instead = FinishTaskRequest { claim_next, ..finish_of(task_id.clone(), token, done) };
            answer = self.deliver(instead).await;
        }
        match answer {
            Some(Ok(answer)) => Ended { count: count_of(kind), next: answer.next },
            Some(Err(Error::Rejected { code, message, .. })) if code != RejectionCode::NotFound => {
                tracing::error!(task = task_id, message, "a finish was refused");
                Ended { count: Count::Failed, next: Vec::new() }
            }
            // Others have the task by now, or will have.
            Some(Err(error)) => {
                tracing::warn!(task = task_id, %error, "an attempt was superseded");
                Ended { count: Count::Fenced, next: Vec::new() }
            }
            None => Ended { count: Count::Fenced, next: Vec::new() },
        }
    }

    /// Sends the finish, always under the same request id, until there is an answer. `None`: the session ended first.
    async fn deliver(&self, mut request: FinishTaskRequest) -> Option<Result<FinishTaskResponse, Error>> {
        let under_way = self.session.begin();
        request.request = Some(under_way.id());
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
fn may_pass(error: &Error) -> bool {
    match error {
        Error::Unavailable { .. } | Error::OutcomeUnknown { .. } => true,
        // A limit on what the session has under way, not on this finish.
        Error::Rejected { code: RejectionCode::ResourceExhausted, field, .. } => field.starts_with("request."),
        _ => false,
    }
}

/// Why the finish itself was refused. That its task or session is not there is no such reason.
fn refusal(answer: Option<&Result<FinishTaskResponse, Error>>) -> Option<String> {
    match answer {
        Some(Err(Error::Rejected { code, message, .. })) if *code != RejectionCode::NotFound => Some(message.clone()),
        _ => None,
    }
}

/// A finish that no message could carry; sending it would fail in the same way for ever.
fn oversized(request: &FinishTaskRequest) -> Option<Error> {
    let (result, error) = (request.result.len(), request.error.len());
    (result + error > RESULT_BYTES).then(|| Error::Rejected {
        code: RejectionCode::InvalidArgument,
        field: "result".to_owned(),
        message: format!("result and error must fit into a message; got {result} and {error} bytes"),
    })
}

fn count_of(kind: FinishKind) -> Count {
    match kind {
        FinishKind::Completed => Count::Completed,
        FinishKind::Released => Count::Released,
        _ => Count::Failed,
    }
}

fn finish_of(task_id: String, token: u64, done: Done) -> FinishTaskRequest {
    let (kind, result, error, output) = match done {
        Done::Completed { result, output } => (FinishKind::Completed, result, String::new(), output),
        Done::Failed { error, output } => (FinishKind::Failed, Bytes::new(), error, output),
        Done::FailedPermanently { error, output } => (FinishKind::FailedPermanently, Bytes::new(), error, output),
        Done::Released => (FinishKind::Released, Bytes::new(), String::new(), Output::default()),
    };
    FinishTaskRequest {
        task_id,
        token,
        kind: kind as i32,
        result,
        error,
        exit_code: output.exit_code,
        stdout: tail(&output.stdout),
        stderr: tail(&output.stderr),
        ..FinishTaskRequest::default()
    }
}

fn tail(output: &Bytes) -> Bytes {
    output.slice(output.len().saturating_sub(OUTPUT_BYTES)..)
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    const TTL: Duration = Duration::from_secs(60);

    fn bench(session: Session) -> Bench {
        let tasks = session.client().tasks();
        Bench { tasks, session, cancelled: watch::channel(false).1, leaving: watch::channel(false).1 }
    }

    async fn panics(_: Job) -> Done {
        panic!("on purpose")
    }

    fn rejected(code: RejectionCode, field: &str) -> Error {
        Error::Rejected { code, field: field.to_owned(), message: "no".to_owned() }
    }

    #[test]
    fn only_a_refusal_of_the_result_is_replaced_by_a_failure() {
        let told = |error| refusal(Some(&Err(error))).is_some();
        assert!(told(rejected(RejectionCode::InvalidArgument, "result")));
        assert!(!told(rejected(RejectionCode::NotFound, "task_id")));
        assert!(!told(Error::Fenced { message: String::new() }));
        assert!(refusal(None).is_none());
    }

    #[test]
    fn what_may_pass_is_sent_again() {
        assert!(may_pass(&Error::OutcomeUnknown { message: String::new() }));
        assert!(may_pass(&rejected(RejectionCode::ResourceExhausted, "request.done_below")));
        assert!(!may_pass(&rejected(RejectionCode::ResourceExhausted, "result")));
        assert!(!may_pass(&rejected(RejectionCode::InvalidArgument, "result")));
    }

    #[test]
    fn outputs_are_cut_to_their_tails_and_results_are_not() {
        let long: Bytes = [vec![b'a'; OUTPUT_BYTES], vec![b'b'; OUTPUT_BYTES]].concat().into();
        let output = Output { stdout: long.clone(), ..Output::default() };
        let request = finish_of("t".to_owned(), 1, Done::Completed { result: long.clone(), output });
        assert_eq!(request.stdout, vec![b'b'; OUTPUT_BYTES]);
        assert_eq!(request.result, long);
        assert!(oversized(&request).is_none());
        let huge = FinishTaskRequest { result: vec![0; RESULT_BYTES + 1].into(), ..request };
        assert!(oversized(&huge).is_some());
    }

    #[tokio::test]
    async fn a_finish_is_given_up_with_the_session_and_its_request_id_with_it() {
        let session = Session::alone(TTL, Instant::now());
        let work = bench(session.clone());
        let running = tokio::spawn(work.run(panics, Task::default()));
        session.lost();
        let ended = tokio::time::timeout(TTL, running).await.unwrap().unwrap();
        assert_eq!(ended.count, Count::Fenced);
        let next = session.next_request();
        assert_eq!(next.done_below, next.sequence, "nothing is under way");
    }
}
