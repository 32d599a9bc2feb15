//! An agent that is always there: it takes one event after another, and remembers.
//!
//! ```text
//!  agent.input.{id} ──▶ consumer, credit 1 ──▶ state ──▶ handler ──▶ one transaction: new state, ack, outputs
//!                                               ▲                      │
//!                                    memory ────┴── dropped when idle ─┘
//! ```
//!
//! Invariant: what the cluster keeps of an event, all of it or nothing, is its effect on the state, its outputs and that
//! it was taken. A crash in between costs a second run of the handler and nothing else.
//!
//! Deliberately absent: one place for an agent. Two processes of one id share its events; the revision of the state makes
//! them take turns.

mod memory;
mod turn;

use std::pin::{Pin, pin};
use std::time::Duration;

use bytes::Bytes;
use quorate_proto::v1::{BusMessage, RejectionCode, SubscriptionSpec};
use tokio::time::sleep;

use crate::bus::Consumer;
use crate::client::Client;
use crate::error::Error;
use crate::requests::may_begin_again;
use crate::sessions::Session;
use memory::Memory;
use turn::{Turn, Turned};

/// The pause before another session is opened. It doubles from failure to failure.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// What came of one event.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Step {
    /// The agent's whole state from now on. What is larger than the log takes goes beside it.
    pub state: Bytes,
    /// What it says. Without a subject, to `agent.output.{id}`; task, correlation id and trace are the event's unless set.
    pub outputs: Vec<BusMessage>,
}

impl Step {
    /// A new state, and nothing to say.
    pub fn new(state: impl Into<Bytes>) -> Self {
        Step { state: state.into(), outputs: Vec::new() }
    }

    /// Says something too.
    #[must_use]
    pub fn output(mut self, payload: impl Into<Bytes>) -> Self {
        self.outputs.push(BusMessage { payload: payload.into(), ..BusMessage::default() });
        self
    }
}

/// What a continuous agent did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ContinuousReport {
    /// Events whose effect is in the state.
    pub handled: u64,
    /// Events that the handler, or the cluster, would not take: delivered again later, and dead in the end.
    pub failed: u64,
    /// Events that were somebody else's before they were through.
    pub superseded: u64,
    /// How often the state was dropped from memory because nothing came.
    pub rested: u64,
    /// How often the lease was lost.
    pub sessions_lost: u64,
}

/// An agent that takes one event after another from `agent.input.{id}`, and keeps its state as the document
/// `agents/{id}/state`.
#[derive(Debug, Clone)]
pub struct ContinuousAgent {
    client: Client,
    agent_id: String,
    idle_after: Duration,
    session_ttl: Duration,
}

/// Why one session's stretch is over.
enum Over {
    Stopped,
    SessionLost,
}

impl ContinuousAgent {
    /// An agent of this id: letters, digits, `_` and `-`.
    pub fn new(client: Client, agent_id: impl Into<String>) -> Self {
        let (idle_after, session_ttl) = (Duration::from_secs(600), Duration::from_secs(15));
        ContinuousAgent { client, agent_id: agent_id.into(), idle_after, session_ttl }
    }

    /// How long nothing must come before the state is dropped from memory; it is read again with the next event. 10 min
    /// unless said otherwise.
    #[must_use]
    pub fn idle_after(mut self, idle_after: Duration) -> Self {
        self.idle_after = idle_after;
        self
    }

    /// How soon its event goes to another process of its id when this one dies: 1 s to 1 h. 15 s unless said otherwise.
    #[must_use]
    pub fn session_ttl(mut self, ttl: Duration) -> Self {
        self.session_ttl = ttl;
        self
    }

    /// Where its events come from: a subject, and the durable subscription of that name.
    pub fn input(&self) -> String {
        format!("agent.input.{}", self.agent_id)
    }

    /// Where what it says goes, unless it says otherwise. Whoever wants all of it subscribes before it begins.
    pub fn output(&self) -> String {
        format!("agent.output.{}", self.agent_id)
    }

    /// The key of its state.
    pub fn state_key(&self) -> String {
        format!("agents/{}/state", self.agent_id)
    }

    /// Takes events until `shutdown` resolves, and finishes the one that it is at. The handler is given the state (empty
    /// at first) and the event; an `Err`, or a panic, is a failed attempt at that event. It may be run twice for one
    /// event, but its step counts once.
    ///
    /// An error means that it could not begin, or cannot go on: the cluster refused it.
    pub async fn run<H, F>(&self, handler: H, shutdown: impl Future<Output = ()>) -> Result<ContinuousReport, Error>
    where
        H: Fn(Bytes, BusMessage) -> F,
        F: Future<Output = Result<Step, String>>,
    {
        let mut shutdown = pin!(shutdown);
        let mut report = ContinuousReport::default();
        let mut has_begun = false;
        let mut pause = FIRST_PAUSE;
        loop {
            let session = tokio::select! {
                biased;
                () = shutdown.as_mut() => return Ok(report),
                session = self.begin() => session,
            };
            match session {
                Ok(session) => {
                    (has_begun, pause) = (true, FIRST_PAUSE);
                    match self.stretch(&handler, &session, shutdown.as_mut(), &mut report).await? {
                        Over::Stopped => return Ok(report),
                        Over::SessionLost => report.sessions_lost += 1,
                    }
                }
                Err(error) if has_begun && may_begin_again(&error) => {
                    tracing::warn!(%error, "could not begin again; trying on")
                }
                Err(error) => return Err(error),
            }
            tokio::select! {
                biased;
                () = shutdown.as_mut() => return Ok(report),
                () = sleep(pause) => {}
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Opens a session, and creates the queue if there is none. One that somebody set up otherwise stays as it is.
    async fn begin(&self) -> Result<Session, Error> {
        let session = self.client.sessions().open(self.session_ttl).await?;
        let spec = SubscriptionSpec { name: self.input(), patterns: vec![self.input()], ..SubscriptionSpec::default() };
        match self.client.bus().subscribe(spec).await {
            Ok(_) => Ok(session),
            Err(error) if is_there(&error) => Ok(session),
            Err(error) => {
                close(&session).await;
                Err(error)
            }
        }
    }

    /// One session's events.
    async fn stretch<H, F>(
        &self,
        handler: &H,
        session: &Session,
        mut shutdown: Pin<&mut impl Future<Output = ()>>,
        report: &mut ContinuousReport,
    ) -> Result<Over, Error>
    where
        H: Fn(Bytes, BusMessage) -> F,
        F: Future<Output = Result<Step, String>>,
    {
        let mut consumer = self.client.bus().consume(session, self.input()).credit(1).start();
        let mut memory = Memory::new(self.idle_after);
        loop {
            let next = tokio::select! {
                biased;
                () = shutdown.as_mut() => {
                    leave(consumer, session).await;
                    return Ok(Over::Stopped);
                }
                () = memory.idle() => {
                    memory.clear();
                    report.rested += 1;
                    continue;
                }
                next = consumer.next() => next,
            };
            match next {
                Some(Ok(delivery)) => {
                    let turn = Turn { agent: self, session, delivery };
                    match turn.take(handler, &mut memory).await {
                        Turned::Handled => report.handled += 1,
                        Turned::Failed => report.failed += 1,
                        Turned::Superseded => report.superseded += 1,
                    }
                    memory.touch();
                }
                Some(Err(error)) if session.is_alive() => {
                    close(session).await;
                    return Err(error);
                }
                Some(Err(_)) | None => return Ok(Over::SessionLost),
            }
        }
    }
}

/// The queue exists, with another specification.
fn is_there(error: &Error) -> bool {
    matches!(error, Error::Rejected { code: RejectionCode::AlreadyExists, .. })
}

async fn leave(consumer: Consumer, session: &Session) {
    if let Err(error) = consumer.close().await {
        tracing::warn!(%error, "a consumer did not leave; it goes with its session");
    }
    close(session).await;
}

async fn close(session: &Session) {
    if let Err(error) = session.close().await {
        tracing::warn!(%error, "the session was not closed; it ends by its TTL");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent() -> ContinuousAgent {
        let mut config = crate::Config::new(["127.0.0.1:1"]);
        config.call_timeout = Duration::from_millis(50);
        ContinuousAgent::new(Client::connect(config).unwrap(), "a-1")
    }

    async fn never(_state: Bytes, _event: BusMessage) -> Result<Step, String> {
        std::future::pending().await
    }

    #[tokio::test]
    async fn an_agent_that_cannot_begin_says_so() {
        let ended = agent().run(never, std::future::pending()).await;
        assert!(matches!(ended, Err(Error::Unavailable { .. } | Error::OutcomeUnknown { .. })), "{ended:?}");
    }

    #[tokio::test]
    async fn one_that_is_told_to_stop_before_it_could_begin_stops() {
        // Sooner than the one call that it takes to fail.
        let ended = agent().run(never, sleep(Duration::from_millis(5))).await;
        assert_eq!(ended.ok(), Some(ContinuousReport::default()));
    }

    #[test]
    fn a_queue_that_somebody_set_up_otherwise_serves_as_well() {
        let refused = |code| Error::Rejected { code, field: "spec.name".to_owned(), message: String::new() };
        assert!(is_there(&refused(RejectionCode::AlreadyExists)));
        assert!(!is_there(&refused(RejectionCode::ResourceExhausted)));
    }

    #[tokio::test]
    async fn it_is_called_the_same_everywhere() {
        let agent = agent();
        assert_eq!((agent.input().as_str(), agent.output().as_str()), ("agent.input.a-1", "agent.output.a-1"));
        assert_eq!(agent.state_key(), "agents/a-1/state");
    }
}
