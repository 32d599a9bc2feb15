//! The work done under one session: claims while there is capacity, starts jobs, leaves or abandons in the end.
//!
//! The loop never waits for one thing: claims, jobs and finishes are all under way at once.

use std::pin::Pin;
use std::time::Duration;

use quorate_proto::v1::{ClaimTasksResponse, RejectionCode, Task};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{sleep, timeout};

use super::job::{Bench, Count, Ended};
use super::{Done, FIRST_PAUSE, Job, LONGEST_PAUSE, Worker, WorkerReport};
use crate::error::Error;
use crate::sessions::Session;
use crate::tasks::claim_request;

/// How long one claim waits for work.
const CLAIM_WAIT: Duration = Duration::from_secs(20);
/// The most tasks that one claim may ask for.
const MAX_CLAIM: u32 = 256;
/// How long handlers have to let go of what is no longer theirs.
const LET_GO: Duration = Duration::from_secs(10);

/// Why one session's stretch of work is over.
pub(super) enum Over {
    Left,
    SessionLost,
}

/// A claim under way.
type Claiming = Pin<Box<dyn Future<Output = Result<ClaimTasksResponse, Error>> + Send>>;

/// What comes before the next claim, after one that failed.
#[derive(Debug, Clone, Copy, Default)]
struct Trouble {
    pause: Duration,
    register: bool,
}

/// What a failed claim means.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Again,
    /// The agent is tied to another session.
    Register,
    /// Somebody removed the agent while its session lives.
    Removed,
    SessionLost,
}

/// The work done under one session.
pub(super) struct Stretch<'a> {
    worker: &'a Worker,
    bench: Bench,
    jobs: JoinSet<Ended>,
    cancel: watch::Sender<bool>,
    tell_leaving: watch::Sender<bool>,
    trouble: Trouble,
}

async fn next_claim(claiming: &mut Option<Claiming>) -> Option<Result<ClaimTasksResponse, Error>> {
    match claiming {
        Some(claiming) => Some(claiming.await),
        None => None,
    }
}

impl<'a> Stretch<'a> {
    pub(super) fn new(worker: &'a Worker, session: Session) -> Self {
        let (cancel, cancelled) = watch::channel(false);
        let (tell_leaving, leaving) = watch::channel(false);
        let bench = Bench { tasks: worker.client.tasks(), session, cancelled, leaving };
        Stretch { worker, bench, jobs: JoinSet::new(), cancel, tell_leaving, trouble: Trouble::default() }
    }

    pub(super) async fn work<H, F>(
        &mut self,
        handler: &H,
        mut shutdown: Pin<&mut impl Future<Output = ()>>,
        report: &mut WorkerReport,
    ) -> Over
    where
        H: Fn(Job) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Done> + Send + 'static,
    {
        // A claim under way is dropped only with its session: what it brings must be run or handed back.
        let mut claiming: Option<Claiming> = None;
        loop {
            let credit = self.worker.registration.capacity.max(1).saturating_sub(self.jobs.len() as u32);
            if claiming.is_none() && credit > 0 {
                claiming = Some(self.claim(credit.min(MAX_CLAIM)));
            }
            tokio::select! {
                biased;
                () = shutdown.as_mut() => return self.leave(claiming, report).await,
                () = self.bench.session.ended() => return self.abandon(report).await,
                Some(ended) = self.jobs.join_next(), if !self.jobs.is_empty() => {
                    for task in note(ended, report) {
                        self.start(handler, task);
                    }
                }
                claimed = next_claim(&mut claiming), if claiming.is_some() => {
                    claiming = None;
                    match claimed {
                        Some(Ok(claimed)) if claimed.draining => return self.leave(None, report).await,
                        Some(Ok(claimed)) => {
                            self.trouble = Trouble::default();
                            claimed.tasks.into_iter().for_each(|task| self.start(handler, task));
                        }
                        Some(Err(error)) => {
                            if let Some(over) = self.claim_failed(&error, report).await {
                                return over;
                            }
                        }
                        None => {}
                    }
                }
            }
        }
    }

    fn claim(&self, credit: u32) -> Claiming {
        Box::pin(claim(self.worker.clone(), self.bench.clone(), self.trouble, credit))
    }

    fn start<H, F>(&mut self, handler: &H, task: Task)
    where
        H: Fn(Job) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Done> + Send + 'static,
    {
        self.jobs.spawn(self.bench.clone().run(handler.clone(), task));
    }

    /// Whether that is the end of this stretch; if not, the next claim goes about it differently.
    async fn claim_failed(&mut self, error: &Error, report: &mut WorkerReport) -> Option<Over> {
        tracing::warn!(%error, "a claim failed");
        self.trouble.pause = (self.trouble.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        match judge(error, self.bench.session.is_alive()) {
            Verdict::Again => None,
            Verdict::Register => {
                self.trouble.register = true;
                None
            }
            Verdict::Removed => {
                // With the agent went its claims.
                self.cancel.send_replace(true);
                Some(self.leave(None, report).await)
            }
            Verdict::SessionLost => {
                self.bench.session.lost();
                Some(self.abandon(report).await)
            }
        }
    }

    /// Takes no more, finishes what runs, and goes.
    async fn leave(&mut self, mut claiming: Option<Claiming>, report: &mut WorkerReport) -> Over {
        self.tell_leaving.send_replace(true);
        let agents = self.worker.client.agents();
        tokio::select! {
            drained = agents.drain(&self.worker.registration.agent_id) => match drained {
                Err(error) if !error.is_not_found() => tracing::warn!(%error, "could not announce the drain"),
                _ => {}
            },
            () = self.bench.session.ended() => {}
        }
        // A drained agent's claim returns at once. Should it have won the race with the drain, what it brought is
        // handed back; waiting for it keeps it from being granted anything afterwards.
        while !self.jobs.is_empty() || claiming.is_some() {
            tokio::select! {
                biased;
                () = self.bench.session.ended() => {
                    report.sessions_lost += 1;
                    self.abandon(report).await;
                    return Over::Left;
                }
                Some(ended) = self.jobs.join_next(), if !self.jobs.is_empty() => {
                    self.hand_back(note(ended, report));
                }
                claimed = next_claim(&mut claiming), if claiming.is_some() => {
                    claiming = None;
                    if let Some(Ok(claimed)) = claimed {
                        self.hand_back(claimed.tasks);
                    }
                }
            }
        }
        if let Err(error) = self.bench.session.close().await {
            tracing::warn!(%error, "the session was not closed; it ends by its TTL");
        }
        Over::Left
    }

    fn hand_back(&mut self, tasks: Vec<Task>) {
        for task in tasks {
            self.jobs.spawn(self.bench.clone().hand_back(task));
        }
    }

    /// The lease is lost: tells every job, and waits a while until all have let go.
    async fn abandon(&mut self, report: &mut WorkerReport) -> Over {
        self.cancel.send_replace(true);
        let all = async {
            while let Some(ended) = self.jobs.join_next().await {
                // What came along with a finish is lost with the session.
                let _lost = note(ended, report);
            }
        };
        if timeout(LET_GO, all).await.is_err() {
            tracing::warn!(jobs = self.jobs.len(), "some handlers did not let go of their tasks and are stopped");
            (0..self.jobs.len()).for_each(|_| report.add(Count::Fenced));
            self.jobs.abort_all();
        }
        Over::SessionLost
    }
}

/// One claim, under one request id until its outcome is known or the session has ended: it may have been granted tasks
/// that only a resend brings here.
async fn claim(worker: Worker, bench: Bench, trouble: Trouble, credit: u32) -> Result<ClaimTasksResponse, Error> {
    if !trouble.pause.is_zero() {
        let mut leaving = bench.leaving.clone();
        tokio::select! {
            () = sleep(trouble.pause) => {}
            _changed = leaving.changed() => return Ok(ClaimTasksResponse::default()),
        }
    }
    if trouble.register {
        worker.client.agents().register(&bench.session, worker.registration.clone()).await?;
    }
    let under_way = bench.session.begin();
    let request = claim_request(&under_way, &worker.registration.agent_id, credit, CLAIM_WAIT);
    // Once one delivery may have been granted something, only an answer to this very request brings it here.
    let mut doubt = false;
    loop {
        match bench.tasks.claim_with(request.clone()).await {
            Err(Error::Unavailable { .. }) if doubt && bench.session.is_alive() => sleep(FIRST_PAUSE).await,
            Err(Error::OutcomeUnknown { message }) if bench.session.is_alive() => {
                doubt = true;
                tracing::warn!(message, "a claim's outcome is unknown; asking again");
                sleep(FIRST_PAUSE).await;
            }
            claimed => return claimed,
        }
    }
}

/// Counts a job and returns what was claimed along with its finish.
fn note(ended: Result<Ended, JoinError>, report: &mut WorkerReport) -> Vec<Task> {
    match ended {
        Ok(ended) => {
            report.add(ended.count);
            ended.next
        }
        // A job neither panics nor is aborted while the stretch lives.
        Err(error) => {
            tracing::error!(%error, "a job was cut off");
            Vec::new()
        }
    }
}

fn judge(error: &Error, alive: bool) -> Verdict {
    let Error::Rejected { code, field, .. } = error else { return Verdict::Again };
    match (code, field.as_str()) {
        // From the request id, or from registering again: the session itself is unknown.
        (RejectionCode::NotFound, "session_id" | "request.session_id") => Verdict::SessionLost,
        (RejectionCode::FailedPrecondition, "session_id") => Verdict::Register,
        (RejectionCode::NotFound, "agent_id") if alive => Verdict::Removed,
        _ => Verdict::Again,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(code: RejectionCode, field: &str, alive: bool) -> Verdict {
        judge(&Error::Rejected { code, field: field.to_owned(), message: String::new() }, alive)
    }

    #[test]
    fn a_failed_claim_is_judged_by_what_it_names() {
        use RejectionCode::{FailedPrecondition, InvalidArgument, NotFound};
        assert_eq!(judged(NotFound, "request.session_id", true), Verdict::SessionLost);
        assert_eq!(judged(NotFound, "session_id", true), Verdict::SessionLost);
        assert_eq!(judged(FailedPrecondition, "session_id", true), Verdict::Register);
        assert_eq!(judged(NotFound, "agent_id", true), Verdict::Removed);
        assert_eq!(judged(NotFound, "agent_id", false), Verdict::Again, "its session went first");
        // Reported unavailable by somebody: registering would override that.
        assert_eq!(judged(FailedPrecondition, "agent_id", true), Verdict::Again);
        assert_eq!(judged(InvalidArgument, "max_tasks", true), Verdict::Again);
        assert_eq!(judge(&Error::OutcomeUnknown { message: String::new() }, true), Verdict::Again);
    }
}
