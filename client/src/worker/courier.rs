//! The courier: brings to the cluster what is left in the outbox, by an earlier life of the worker or by a session that
//! it lost. In the background: new work does not wait for it.
//!
//! One round a session. The session is resumed first, so that its attempts are still held if the cluster was away all the
//! while; then each result goes under the request id of its first delivery; then the session is closed, which hands back
//! what died with its worker. Of a session that has ended the token alone says what a result is worth: mostly an orphan.
//!
//! Deliberately absent: giving up. A round ends with answers, or with the worker; the next life goes on.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use quorate_proto::v1::{Agent, AgentStatus, FinishTaskRequest, FinishTaskResponse};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

use super::bench::{self, PAUSE, finish_of, in_place_of};
use super::{Worker, WorkerReport, leave_behind};
use crate::client::Client;
use crate::error::Error;
use crate::outbox::{Entry, Fate, Origin, Outbox, Slip};
use crate::requests::may_begin_again;
use crate::sessions::Session;

/// How long a worker that leaves waits for what is under way. What is not brought by then stays on disk.
const LAST_ROUND: Duration = Duration::from_secs(5);

/// The courier of one worker. Dropped, it stops where it is.
pub(super) struct Courier {
    client: Client,
    agent_id: String,
    session_ttl: Duration,
    outbox: Outbox,
    shared: Arc<Shared>,
    rounds: JoinSet<()>,
    under_way: BTreeMap<Origin, AbortHandle>,
}

#[derive(Default)]
struct Shared {
    replayed: AtomicU64,
    fenced: AtomicU64,
    /// The worker will not register again.
    leaving: AtomicBool,
}

impl Courier {
    /// Opens the outbox and sets out with what is in it.
    pub(super) async fn start(worker: &Worker, dir: PathBuf) -> Result<Self, Error> {
        let (client, agent_id) = (worker.client.clone(), worker.registration.agent_id.clone());
        let outbox = Outbox::open(dir, &agent_id, &client.config().namespace).await?;
        let mut courier = Courier {
            client,
            agent_id,
            session_ttl: worker.session_ttl,
            outbox,
            shared: Arc::default(),
            rounds: JoinSet::new(),
            under_way: BTreeMap::new(),
        };
        courier.collect().await;
        Ok(courier)
    }

    pub(super) fn outbox(&self) -> Outbox {
        self.outbox.clone()
    }

    /// Sets out with whatever is in the outbox. Only between two stretches: while one works, its bench delivers.
    pub(super) async fn collect(&mut self) {
        self.under_way.retain(|_, round| !round.is_finished());
        let entries = match self.outbox.entries().await {
            Ok(entries) => entries,
            Err(error) => {
                tracing::error!(%error, "the outbox cannot be read; what is in it waits");
                return;
            }
        };
        for (origin, slips) in entries {
            if self.under_way.contains_key(&origin) {
                continue;
            }
            let round = match self.round(&origin) {
                Ok(round) => round,
                Err(error) => {
                    tracing::error!(%error, "what is in the outbox names a namespace that cannot be; it waits");
                    continue;
                }
            };
            tracing::info!(session = origin.session_id, results = slips.len(), "bringing what a session left");
            let under_way = self.rounds.spawn(round.go(slips.into()));
            self.under_way.insert(origin, under_way);
        }
    }

    /// The worker leaves: waits a while for what is under way, and adds what came of it all.
    pub(super) async fn leave(mut self, report: &mut WorkerReport) {
        self.shared.leaving.store(true, Ordering::Relaxed);
        let all = async { while self.rounds.join_next().await.is_some() {} };
        if timeout(LAST_ROUND, all).await.is_err() {
            tracing::warn!("some results were not delivered; they are in the outbox for the next start");
        }
        report.replayed += self.shared.replayed.load(Ordering::Relaxed);
        report.fenced += self.shared.fenced.load(Ordering::Relaxed);
    }

    fn round(&self, origin: &Origin) -> Result<Round, Error> {
        let client = if origin.namespace == self.client.config().namespace {
            self.client.clone()
        } else {
            self.client.in_namespace(&origin.namespace)?
        };
        Ok(Round {
            client,
            session_id: origin.session_id.clone(),
            session_ttl: self.session_ttl,
            own_agent: self.agent_id.clone(),
            outbox: self.outbox.clone(),
            shared: Arc::clone(&self.shared),
        })
    }
}

/// The way of what one session left.
struct Round {
    client: Client,
    session_id: String,
    session_ttl: Duration,
    own_agent: String,
    outbox: Outbox,
    shared: Arc<Shared>,
}

impl Round {
    async fn go(self, mut slips: VecDeque<Slip>) {
        loop {
            let session = self.resume().await;
            tokio::select! {
                () = self.bring_all(&mut slips) => {
                    if let Some(session) = &session {
                        leave_behind(session).await;
                    }
                    return;
                }
                // Another outage. The cluster may still hold what it holds: a new leader gives every session a full TTL.
                () = lost(session.as_ref()) => {}
            }
        }
    }

    /// The session, if it lives.
    async fn resume(&self) -> Option<Session> {
        loop {
            match self.client.sessions().resume(&self.session_id, self.session_ttl).await {
                Ok(session) => return Some(session),
                Err(error) if error.is_not_found() => return None,
                Err(error) if may_begin_again(&error) => {
                    tracing::warn!(session = self.session_id, %error, "a session was not resumed; trying on");
                }
                Err(error) => {
                    tracing::warn!(session = self.session_id, %error, "a session cannot be resumed");
                    return None;
                }
            }
            sleep(PAUSE).await;
        }
    }

    /// Can be dropped anywhere and begun again: a slip goes when its entry is settled, and not before.
    async fn bring_all(&self, slips: &mut VecDeque<Slip>) {
        while let Some(slip) = slips.front() {
            if let Some(entry) = self.outbox.read(slip).await {
                self.bring(slip, entry).await;
            }
            slips.pop_front();
        }
    }

    async fn bring(&self, slip: &Slip, entry: Entry) {
        self.stand_down(&entry.agent_id).await;
        let task = entry.finish.task_id.clone();
        let answer = self.deliver(entry.finish).await;
        let fate = Fate::of(Some(&answer));
        self.outbox.settle(slip, fate).await;
        match answer {
            Ok(_) => {
                tracing::info!(task, "a result from the outbox was accepted");
                self.shared.replayed.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) if fate == Fate::Owed => {
                tracing::error!(task, %error, "a result cannot be delivered; it stays in the outbox");
            }
            Err(error) => {
                tracing::warn!(task, %error, "a result from the outbox came too late");
                self.shared.fenced.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Makes sure that nothing is pushed to the agent under this session: its place would be taken again in the very step
    /// that takes the result, and nobody is there any more to do the work.
    async fn stand_down(&self, agent_id: &str) {
        let agents = self.client.agents();
        loop {
            let stood_down = match agents.get(agent_id).await {
                Ok(found) if found.agent.as_ref().is_none_or(|agent| !stands(agent, &self.session_id)) => Ok(()),
                // This worker's own, about to be registered under its new session, which has the same effect.
                Ok(_) if agent_id == self.own_agent && !self.shared.leaving.load(Ordering::Relaxed) => {
                    sleep(PAUSE).await;
                    continue;
                }
                Ok(_) => agents.drain(agent_id).await.map(|_| ()),
                Err(error) => Err(error),
            };
            match stood_down {
                Err(error) if may_begin_again(&error) => {
                    tracing::warn!(agent_id, %error, "could not see to an agent of an earlier life; trying on");
                }
                // Gone already, or nothing that trying again would change.
                Ok(()) | Err(_) => return,
            }
            sleep(PAUSE).await;
        }
    }

    /// Delivers the finish, or what is said in place of one that is refused.
    async fn deliver(&self, finish: FinishTaskRequest) -> Result<FinishTaskResponse, Error> {
        let answer = self.send(finish.clone()).await;
        match in_place_of(&finish, Some(&answer)) {
            Some(instead) => {
                tracing::error!(task = finish.task_id, ?answer, "a finish was refused");
                self.send(finish_of(&(finish.task_id, finish.token), instead)).await
            }
            None => answer,
        }
    }

    /// Sends until there is an answer: under the request id, as long as the cluster can tell what that stands for, and
    /// does not know it for a refusal on account of an earlier fence.
    async fn send(&self, mut request: FinishTaskRequest) -> Result<FinishTaskResponse, Error> {
        loop {
            match self.client.tasks().finish(None, request.clone()).await {
                Err(error) if request.request.is_some() && (is_about_the_id(&error) || error.fence_is_over()) => {
                    request.request = None;
                    continue;
                }
                Err(error) if bench::may_pass(&error) => {
                    tracing::warn!(task = request.task_id, %error, "a finish was not taken; sending it again");
                }
                answer => return answer,
            }
            sleep(PAUSE).await;
        }
    }
}

/// Whether it was the request id that was refused and not the finish: the session has ended, or forgotten the answer.
/// Without an id the token judges, and a finish that counted before is answered as well as ever.
fn is_about_the_id(error: &Error) -> bool {
    matches!(error, Error::Rejected { field, .. } if field.starts_with("request."))
}

/// Whether work is pushed to the agent under this session.
fn stands(agent: &Agent, session_id: &str) -> bool {
    let works = matches!(agent.status(), AgentStatus::Available | AgentStatus::Busy);
    agent.standing && works && agent.session_id == session_id
}

/// A session that is not there cannot be lost.
async fn lost(session: Option<&Session>) {
    match session {
        Some(session) => session.ended().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use quorate_proto::v1::{FinishKind, RejectionCode, RequestId};

    use super::*;

    fn worker() -> Worker {
        let mut config = crate::Config::new(["127.0.0.1:1"]);
        config.call_timeout = Duration::from_millis(20);
        Worker::builder(Client::connect(config).unwrap()).build()
    }

    #[test]
    fn an_agent_stands_under_its_own_session_and_while_it_works() {
        let of = |status: AgentStatus, standing| {
            stands(&Agent { status: status as i32, standing, session_id: "s".to_owned(), ..Agent::default() }, "s")
        };
        assert!(of(AgentStatus::Busy, true) && of(AgentStatus::Available, true));
        assert!(!of(AgentStatus::Draining, true) && !of(AgentStatus::Available, false));
        let elsewhere = Agent { status: AgentStatus::Available as i32, standing: true, ..Agent::default() };
        assert!(!stands(&elsewhere, "s"));
    }

    #[test]
    fn a_refused_request_id_is_no_refusal_of_the_finish() {
        let rejected = |field: &str| Error::Rejected {
            code: RejectionCode::FailedPrecondition,
            field: field.to_owned(),
            message: String::new(),
        };
        assert!(is_about_the_id(&rejected("request.sequence")) && is_about_the_id(&rejected("request.session_id")));
        let fenced = Error::Fenced { field: "token".to_owned(), message: String::new() };
        assert!(!is_about_the_id(&rejected("kind")) && !is_about_the_id(&fenced));
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_takes_stays_for_the_next_life() {
        let temp = tempfile::tempdir().unwrap();
        let finish = FinishTaskRequest {
            task_id: "t".to_owned(),
            token: 5,
            kind: FinishKind::Completed as i32,
            request: Some(RequestId { session_id: "s".to_owned(), sequence: 1, done_below: 1 }),
            ..FinishTaskRequest::default()
        };
        let slip = Outbox::open(temp.path().to_owned(), "earlier", "").await.unwrap().put(&finish).await.unwrap();
        let mut courier = Courier::start(&worker(), temp.path().to_owned()).await.unwrap();
        courier.collect().await;
        assert_eq!(courier.rounds.len(), 1, "one round a session");
        let (outbox, mut report) = (courier.outbox(), WorkerReport::default());
        courier.leave(&mut report).await;
        assert_eq!(report, WorkerReport::default());
        assert_eq!(outbox.read(&slip).await.map(|entry| entry.finish), Some(finish));
    }
}
