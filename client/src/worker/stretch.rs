//! The work done under one session: starts what comes, stops what is not wanted, leaves or abandons in the end.
//!
//! The loop never waits for one thing: the standing order, jobs and finishes are all under way at once.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use quorate_proto::v1::work_event::Event;
use quorate_proto::v1::{HeldAttemptGone, Task};
use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{sleep, timeout};

use super::bench::{Bench, Count, Ended};
use super::known::{Known, attempt_of};
use super::order::{First, Meaning, Order, judge};
use super::stop::Stop;
use super::{Done, Job, Worker, WorkerReport};
use crate::agents::Agents;
use crate::error::Error;
use crate::outbox::Outbox;
use crate::sessions::Session;

/// How long handlers have to let go of what is no longer theirs, and the cluster to end what this worker leaves.
const LET_GO: Duration = Duration::from_secs(10);

/// Why one session's stretch of work is over.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Over {
    Left,
    SessionLost,
    /// Another process goes by the agent's id.
    Taken,
}

/// How the stretch goes on after some news.
enum Next {
    On,
    Leave,
    Abandon,
    GiveUp(Over),
}

/// The work done under one session.
pub(super) struct Stretch {
    agents: Agents,
    agent_id: String,
    bench: Bench,
    order: Order,
    jobs: JoinSet<Ended>,
    known: Known,
}

impl Stretch {
    pub(super) fn new(worker: &Worker, session: Session, outbox: Option<Outbox>) -> Self {
        let order = Order::of(worker.clone(), session.clone());
        let mut stretch = Stretch::ordering(worker, session, order);
        stretch.bench.outbox = outbox;
        stretch
    }

    fn ordering(worker: &Worker, session: Session, order: Order) -> Self {
        let capacity = worker.registration.capacity.max(1);
        let room = Arc::new(Semaphore::new((capacity as usize).min(Semaphore::MAX_PERMITS)));
        Stretch {
            agents: worker.client.agents(),
            agent_id: worker.registration.agent_id.clone(),
            bench: Bench { tasks: worker.client.tasks(), session, room, outbox: None },
            order,
            jobs: JoinSet::new(),
            known: Known::new(capacity),
        }
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
        loop {
            tokio::select! {
                biased;
                () = shutdown.as_mut() => return self.leave(report).await,
                () = self.bench.session.ended() => return self.abandon(report).await,
                Some(ended) = self.jobs.join_next(), if !self.jobs.is_empty() => self.note(ended, report),
                news = self.order.next() => match self.take(news, handler) {
                    Next::On => {}
                    Next::Leave => return self.leave(report).await,
                    Next::Abandon => return self.abandon(report).await,
                    Next::GiveUp(over) => {
                        self.give_up(report).await;
                        return over;
                    }
                },
            }
        }
    }

    fn take<H, F>(&mut self, news: Result<Event, Error>, handler: &H) -> Next
    where
        H: Fn(Job) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Done> + Send + 'static,
    {
        match news {
            Ok(Event::Assigned(task)) => self.start(handler, task),
            Ok(Event::Revoked(gone)) => self.revoke(gone),
            Ok(Event::Draining(_)) => return Next::Leave,
            Ok(Event::Standing(_)) => tracing::debug!(agent = self.agent_id, "the standing order stands"),
            Err(error) => return self.refused(&error),
        }
        Next::On
    }

    /// Runs what is new. What runs already is sent again whenever the order is, perhaps with news of its end.
    fn start<H, F>(&mut self, handler: &H, task: Task)
    where
        H: Fn(Job) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Done> + Send + 'static,
    {
        let attempt = attempt_of(&task);
        let told = self.known.admit(attempt.clone());
        if let Some(notice) = &task.cancel {
            self.known.stop(&attempt, notice.into());
        }
        if let Some(told) = told {
            self.jobs.spawn(self.bench.clone().run(handler.clone(), task, told));
        }
    }

    fn revoke(&self, gone: HeldAttemptGone) {
        let attempt = (gone.task_id.clone(), gone.token);
        self.known.stop(&attempt, gone.into());
    }

    /// The order was refused. Whether that is the end of this stretch; if not, the next order goes about it differently.
    fn refused(&mut self, error: &Error) -> Next {
        tracing::warn!(%error, "a standing order was refused");
        match judge(error, self.bench.session.is_alive(), self.order.has_stood()) {
            Meaning::Taken => Next::GiveUp(Over::Taken),
            Meaning::Removed => {
                // With the agent went its attempts.
                self.known.stop_all(&Stop::within(Duration::ZERO, "the agent was removed"));
                Next::Leave
            }
            Meaning::SessionLost => {
                self.bench.session.lost();
                Next::Abandon
            }
            // What is assigned meanwhile would stay with an agent that does not hear of it.
            _ if self.order.is_deaf() => Next::GiveUp(Over::SessionLost),
            Meaning::Again => Next::On,
            Meaning::Register => {
                self.order.begin_with(First::Register);
                Next::On
            }
            Meaning::Look => {
                self.order.begin_with(First::Look);
                Next::On
            }
        }
    }

    /// Takes no more, finishes what runs, and goes.
    async fn leave(&mut self, report: &mut WorkerReport) -> Over {
        let owed = self.announce().await;
        self.wind_down(owed, report).await
    }

    /// What was assigned before the drain is `owed`, and on its way: it is handed back. Not to wait for it would cost
    /// its task a lost attempt; but a cluster that cannot send it is not waited for any longer than handlers are.
    async fn wind_down(&mut self, mut owed: bool, report: &mut WorkerReport) -> Over {
        let mut listening = true;
        let mut patience = std::pin::pin!(sleep(LET_GO));
        while !self.jobs.is_empty() || (owed && listening) {
            tokio::select! {
                biased;
                () = self.bench.session.ended() => {
                    report.sessions_lost += 1;
                    self.abandon(report).await;
                    return Over::Left;
                }
                Some(ended) = self.jobs.join_next(), if !self.jobs.is_empty() => self.note(ended, report),
                () = patience.as_mut(), if owed => owed = false,
                news = self.order.next(), if listening => match news {
                    Ok(Event::Assigned(task)) => self.hand_back(task),
                    Ok(Event::Revoked(gone)) => self.revoke(gone),
                    Ok(Event::Draining(_)) => owed = false,
                    Ok(Event::Standing(_)) => {}
                    Err(Error::Unavailable { .. } | Error::OutcomeUnknown { .. }) if !self.order.is_deaf() => {}
                    // Nobody is there to listen to, the agent is gone, or the cluster has no more to say to it.
                    Err(_) => listening = false,
                },
            }
        }
        if let Err(error) = self.bench.session.close().await {
            tracing::warn!(%error, "the session was not closed; it ends by its TTL");
        }
        Over::Left
    }

    /// Says that the agent leaves. Whether something may still be on its way to it.
    async fn announce(&mut self) -> bool {
        let drained = tokio::select! {
            drained = self.agents.drain(&self.agent_id) => drained,
            () = self.bench.session.ended() => return false,
        };
        match drained {
            Ok(drained) => drained.remaining > 0 && !self.order.is_drained(),
            Err(error) => {
                if !error.is_not_found() {
                    tracing::warn!(%error, "could not announce the drain");
                }
                false
            }
        }
    }

    fn hand_back(&mut self, task: Task) {
        if self.known.admit(attempt_of(&task)).is_some() {
            self.jobs.spawn(self.bench.clone().hand_back(task));
        }
    }

    /// The lease is lost: tells every job, and waits a while until all have let go.
    async fn abandon(&mut self, report: &mut WorkerReport) -> Over {
        self.known.stop_all(&Stop::within(Duration::ZERO, "the session was lost"));
        let all = async {
            while let Some(ended) = self.jobs.join_next().await {
                if let Ok(ended) = ended {
                    report.add(ended.count);
                }
            }
        };
        if timeout(LET_GO, all).await.is_err() {
            tracing::warn!(jobs = self.jobs.len(), "some handlers did not let go of their tasks and are stopped");
            (0..self.jobs.len()).for_each(|_| report.add(Count::Fenced));
            self.jobs.abort_all();
        }
        Over::SessionLost
    }

    /// Ends a session that still lives, so that its tasks go to others at once.
    async fn give_up(&mut self, report: &mut WorkerReport) {
        let session = self.bench.session.clone();
        let close = async {
            match timeout(LET_GO, session.close()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, "the session was not closed; it ends by its TTL"),
                Err(_) => tracing::warn!("the session was not closed in time; it ends by its TTL"),
            }
            session.lost();
        };
        tokio::join!(close, self.abandon(report));
    }

    fn note(&mut self, ended: Result<Ended, JoinError>, report: &mut WorkerReport) {
        match ended {
            Ok(ended) => {
                report.add(ended.count);
                self.known.end(ended.attempt);
            }
            // A job neither panics nor is aborted while the stretch lives.
            Err(error) => tracing::error!(%error, "a job was cut off"),
        }
    }
}

#[cfg(test)]
mod tests {
    use quorate_proto::v1::{CancelNotice, Claim};
    use tokio::sync::mpsc;
    use tokio::time::Instant;

    use super::super::order::tests::{scripted, unanswered};
    use super::*;

    const TTL: Duration = Duration::from_secs(60);

    fn task(token: u64) -> Task {
        let claim = Some(Claim { token, ..Claim::default() });
        Task { id: "t".to_owned(), claim, ..Task::default() }
    }

    fn revoked(token: u64, grace_ms: u64) -> Event {
        Event::Revoked(HeldAttemptGone { task_id: "t".to_owned(), token, grace_ms, reason: "not wanted".to_owned() })
    }

    /// What the handlers heard before the session was lost, after as many of them as there should be.
    async fn heard(script: Vec<Event>, handlers: usize) -> Vec<(u64, Option<String>, Duration)> {
        let session = Session::alone(TTL, Instant::now());
        let worker = Worker::builder(session.client().clone()).capacity(4).build();
        let (order, _opened) = scripted(script.into_iter().map(Ok).collect(), false);
        let mut stretch = Stretch::ordering(&worker, session.clone(), order);
        let (tell, mut told) = mpsc::unbounded_channel();
        let handler = move |job: Job| {
            let tell = tell.clone();
            async move {
                job.cancelled().await;
                tell.send((job.token(), job.cancel_reason(), job.grace_left())).unwrap();
                Done::Cancelled
            }
        };
        let mut report = WorkerReport::default();
        let never = std::pin::pin!(std::future::pending());
        let mut heard = Vec::new();
        let listening = async {
            while heard.len() < handlers {
                heard.push(told.recv().await.unwrap());
            }
            session.lost();
        };
        let (over, ()) =
            timeout(TTL, async { tokio::join!(stretch.work(&handler, never, &mut report), listening) }).await.unwrap();
        assert_eq!(over, Over::SessionLost);
        assert_eq!(report.fenced, handlers as u64, "{report:?}");
        assert!(told.try_recv().is_err(), "more handlers ran");
        heard
    }

    #[tokio::test]
    async fn what_is_sent_again_runs_once_and_a_revocation_reaches_it() {
        let assigned = || Event::Assigned(task(5));
        let script = vec![assigned(), Event::Standing(true), assigned(), revoked(4, 0), revoked(5, 60_000)];
        let heard = heard(script, 1).await;
        assert_eq!((heard[0].0, heard[0].1.as_deref()), (5, Some("not wanted")));
        assert!(heard[0].2 > TTL / 2, "the grace is {:?}", heard[0].2);
    }

    #[tokio::test]
    async fn another_grant_of_a_task_runs_beside_a_fenced_one() {
        let assigned = |token| Event::Assigned(task(token));
        let heard = heard(vec![assigned(5), revoked(5, 0), assigned(6), revoked(6, 0)], 2).await;
        let mut tokens: Vec<u64> = heard.iter().map(|(token, ..)| *token).collect();
        tokens.sort_unstable();
        assert_eq!(tokens, [5, 6]);
        assert!(heard.iter().all(|(_, _, grace)| grace.is_zero()));
    }

    #[tokio::test]
    async fn one_that_comes_with_a_cancel_hears_it() {
        let cancel = Some(CancelNotice { reason: "too late".to_owned(), ..CancelNotice::default() });
        let heard = heard(vec![Event::Assigned(Task { cancel, ..task(5) })], 1).await;
        assert_eq!(heard[0].1.as_deref(), Some("too late"));
    }

    /// How a stretch without work ends, and that its session is over then.
    async fn ended_with(order: Order) -> Over {
        let session = Session::alone(TTL, Instant::now());
        let worker = Worker::builder(session.client().clone()).build();
        let mut stretch = Stretch::ordering(&worker, session.clone(), order);
        let mut report = WorkerReport::default();
        let never = std::pin::pin!(std::future::pending());
        let never_runs = |_: Job| std::future::pending::<Done>();
        let over = timeout(TTL, stretch.work(&never_runs, never, &mut report)).await.unwrap();
        assert!(!session.is_alive(), "closed");
        over
    }

    #[tokio::test]
    async fn a_deaf_agent_gives_its_live_session_up() {
        assert_eq!(ended_with(unanswered(Duration::from_millis(100))).await, Over::SessionLost);
    }

    #[tokio::test]
    async fn one_whose_id_was_taken_stops() {
        let taken = super::super::order::taken("a");
        assert_eq!(ended_with(scripted(vec![Err(taken)], true).0).await, Over::Taken);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_owed_is_not_waited_for_without_end() {
        let began = Instant::now();
        let session = Session::alone(TTL, began);
        let worker = Worker::builder(session.client().clone()).build();
        let (order, _opened) = scripted(vec![Ok(Event::Standing(true))], false);
        let mut stretch = Stretch::ordering(&worker, session.clone(), order);
        let over = timeout(TTL, stretch.wind_down(true, &mut WorkerReport::default())).await.unwrap();
        assert_eq!(over, Over::Left);
        assert!((LET_GO..TTL / 3).contains(&began.elapsed()), "waited {:?}", began.elapsed());
    }

    #[tokio::test]
    async fn a_drained_agent_leaves() {
        let session = Session::alone(TTL, Instant::now());
        let worker = Worker::builder(session.client().clone()).build();
        let (order, _opened) = scripted(vec![Ok(Event::Draining(true))], true);
        let mut report = WorkerReport::default();
        let never = std::pin::pin!(std::future::pending());
        let mut stretch = Stretch::ordering(&worker, session.clone(), order);
        let never_runs = |_: Job| std::future::pending::<Done>();
        let over = timeout(TTL, stretch.work(&never_runs, never, &mut report)).await.unwrap();
        assert_eq!((over, report), (Over::Left, WorkerReport::default()));
        assert!(!session.is_alive(), "closed");
    }
}
