//! An agent's whole life: register, stay alive, take what is pushed to it, run a handler, finish, drain.
//!
//! Credit is free capacity: the cluster assigns as many tasks as the agent has room for, in the very entry that makes
//! them ready or makes room, and pushes them. When its session is lost the cluster gives its tasks to others, so the
//! worker stops what runs, opens a new session, registers again and goes on.
//!
//! ```text
//!  stretch ── one session's work ──┬── order   the stream that brings tasks and says which to stop
//!                                  ├── known   what runs and what ran: nothing that is sent again runs again
//!                                  └── bench   one task's way from its handler (job) to its accepted finish (done)
//!                                       └── stop   how a job hears that it should end
//!
//!  courier ── across all of them: brings what an earlier life or a lost session left in the outbox
//! ```

mod bench;
mod courier;
mod done;
mod job;
mod known;
mod order;
mod stop;
mod stretch;

use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::time::Duration;

use quorate_proto::v1::{AgentStatus, ExecutionMode, KeyValue, RegisterAgentRequest, RegisterAgentResponse};
use tokio::time::sleep;

use crate::client::Client;
use crate::error::Error;
use crate::reopen::{FIRST_PAUSE, LONGEST_PAUSE};
use crate::requests::may_begin_again;
use crate::sessions::Session;
use courier::Courier;
use stretch::{Over, Stretch};

pub use done::{Done, Output};
pub use job::Job;

/// What a worker did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WorkerReport {
    /// Attempts accepted as completed.
    pub completed: u64,
    /// Attempts accepted as failed.
    pub failed: u64,
    /// Attempts handed back.
    pub released: u64,
    /// Attempts that stopped as a cancel asked, and said so in time.
    pub cancelled: u64,
    /// Attempts that were no longer this worker's when they ended.
    pub fenced: u64,
    /// How often the lease was lost.
    pub sessions_lost: u64,
    /// Results from the outbox, of an earlier life or a lost session, that were accepted. One that came too late is
    /// among the fenced.
    pub replayed: u64,
}

/// Puts a worker together.
#[derive(Debug, Clone)]
pub struct WorkerBuilder {
    client: Client,
    registration: RegisterAgentRequest,
    session_ttl: Duration,
    outbox: Option<PathBuf>,
}

impl WorkerBuilder {
    /// Its name in the registry.
    #[must_use]
    pub fn agent_id(mut self, id: impl Into<String>) -> Self {
        self.registration.agent_id = id.into();
        self
    }

    /// What kind of agent it is.
    #[must_use]
    pub fn agent_type(mut self, agent_type: impl Into<String>) -> Self {
        self.registration.agent_type = agent_type.into();
        self
    }

    /// What it can do.
    #[must_use]
    pub fn capabilities(mut self, capabilities: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.registration.capabilities = capabilities.into_iter().map(Into::into).collect();
        self
    }

    /// How many tasks it runs at once.
    #[must_use]
    pub fn capacity(mut self, capacity: u32) -> Self {
        self.registration.capacity = capacity;
        self
    }

    /// A note that people see beside it.
    #[must_use]
    pub fn metadata(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.registration.metadata.push(KeyValue { key: key.into(), value: value.into() });
        self
    }

    /// How soon its tasks go to others when it dies. 15 s unless said otherwise.
    #[must_use]
    pub fn session_ttl(mut self, ttl: Duration) -> Self {
        self.session_ttl = ttl;
        self
    }

    /// Keeps results in this directory until the cluster has answered: one that is there survives this process and an
    /// outage of the cluster, and counts once. Without it, whatever is not delivered when the process dies is lost, and
    /// its task is done again.
    ///
    /// The next run that is given the same directory delivers what it finds, in the background, whatever its agent's
    /// id, and keeps the sessions alive under which that was done until it has. A result comes in time if the cluster
    /// was away meanwhile, or the worker for less than its session's TTL; else its task is somebody else's by then, and
    /// the result is kept as an orphan of its attempt.
    ///
    /// The directory is made if need be, and belongs to one worker process at a time. If a result cannot be written, as
    /// on a full disk, that is logged and the result delivered all the same: it is as safe as without an outbox. Files
    /// that are damaged, or that the cluster refuses in any form, stay there as `.damaged` and `.refused`.
    #[must_use]
    pub fn outbox(mut self, dir: impl Into<PathBuf>) -> Self {
        self.outbox = Some(dir.into());
        self
    }

    /// The worker.
    pub fn build(self) -> Worker {
        let WorkerBuilder { client, registration, session_ttl, outbox } = self;
        Worker { client, registration, session_ttl, outbox }
    }
}

/// An agent that works.
#[derive(Debug, Clone)]
pub struct Worker {
    client: Client,
    registration: RegisterAgentRequest,
    session_ttl: Duration,
    outbox: Option<PathBuf>,
}

impl Worker {
    /// Begins a worker.
    pub fn builder(client: Client) -> WorkerBuilder {
        let registration = RegisterAgentRequest {
            agent_id: crate::client::new_id("agent"),
            capacity: 1,
            execution_mode: ExecutionMode::Autonomous as i32,
            ..RegisterAgentRequest::default()
        };
        WorkerBuilder { client, registration, session_ttl: Duration::from_secs(15), outbox: None }
    }

    /// Works until `shutdown` resolves, then finishes what it has begun and leaves. An error means that it could not
    /// begin: the cluster refused it, or could not be reached in time; or that another process took its agent's id, or
    /// has its outbox. While an earlier agent of its id is being drained, it waits for that one to go.
    pub async fn run<H, F>(&self, handler: H, shutdown: impl Future<Output = ()>) -> Result<WorkerReport, Error>
    where
        H: Fn(Job) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Done> + Send + 'static,
    {
        let mut shutdown = pin!(shutdown);
        let mut report = WorkerReport::default();
        let mut courier = match &self.outbox {
            Some(dir) => Some(Courier::start(self, dir.clone()).await?),
            None => None,
        };
        self.work(&handler, shutdown.as_mut(), &mut report, courier.as_mut()).await?;
        if let Some(courier) = courier {
            courier.leave(&mut report).await;
        }
        Ok(report)
    }

    /// One stretch after another.
    async fn work<H, F>(
        &self,
        handler: &H,
        mut shutdown: Pin<&mut impl Future<Output = ()>>,
        report: &mut WorkerReport,
        mut courier: Option<&mut Courier>,
    ) -> Result<(), Error>
    where
        H: Fn(Job) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Done> + Send + 'static,
    {
        let begun = tokio::select! {
            biased;
            () = shutdown.as_mut() => return Ok(()),
            begun = self.begin() => begun,
        };
        let mut session = begun?;
        loop {
            let outbox = courier.as_deref().map(Courier::outbox);
            let over = Stretch::new(self, session, outbox).work(handler, shutdown.as_mut(), report).await;
            if let Some(courier) = courier.as_deref_mut() {
                // What this session did not see delivered is owed from here on.
                courier.collect().await;
            }
            match over {
                Over::Left => return Ok(()),
                Over::Taken => return Err(order::taken(&self.registration.agent_id)),
                Over::SessionLost => report.sessions_lost += 1,
            }
            session = match self.begin_again(shutdown.as_mut()).await? {
                Some(session) => session,
                None => return Ok(()),
            };
        }
    }

    /// Opens a session and registers under it.
    async fn begin(&self) -> Result<Session, Error> {
        let mut pause = FIRST_PAUSE;
        loop {
            let session = self.client.sessions().open(self.session_ttl).await?;
            match self.client.agents().register(&session, self.registration.clone()).await {
                Ok(registered) if !is_draining(&registered) => return Ok(session),
                // A drain is not undone: the record goes with the last task of its earlier life. Then there is a new one
                // to be had.
                Ok(_) => {
                    tracing::warn!(agent = self.registration.agent_id, "an agent of this id is being drained; waiting");
                    leave_behind(&session).await;
                }
                // The session ended before the agent was registered: begin again.
                Err(error) if error.is_not_found() => {}
                Err(error) => {
                    if matches!(error, Error::Rejected { .. }) {
                        leave_behind(&session).await;
                    }
                    return Err(error);
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// After a lost session: goes on trying until the cluster can be reached. `None`: shut down meanwhile.
    async fn begin_again(&self, mut shutdown: Pin<&mut impl Future<Output = ()>>) -> Result<Option<Session>, Error> {
        let mut pause = FIRST_PAUSE;
        loop {
            let begun = tokio::select! {
                biased;
                () = shutdown.as_mut() => return Ok(None),
                begun = self.begin() => begun,
            };
            match begun {
                Ok(session) => return Ok(Some(session)),
                Err(error) if may_begin_again(&error) => tracing::warn!(%error, "could not begin again; trying on"),
                Err(error) => return Err(error),
            }
            tokio::select! {
                biased;
                () = shutdown.as_mut() => return Ok(None),
                () = sleep(pause) => {}
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// Closes a session that came to nothing, so that it does not count against anybody until its TTL is over.
async fn leave_behind(session: &Session) {
    if let Err(error) = session.close().await {
        tracing::warn!(%error, "a session was not closed; it ends by its TTL");
    }
}

fn is_draining(registered: &RegisterAgentResponse) -> bool {
    registered.agent.as_ref().is_some_and(|agent| agent.status() == AgentStatus::Draining)
}

#[cfg(test)]
mod tests {
    use quorate_proto::v1::Agent;

    use super::*;

    fn worker() -> Worker {
        let mut config = crate::Config::new(["127.0.0.1:1"]);
        config.call_timeout = Duration::from_millis(50);
        Worker::builder(Client::connect(config).unwrap()).build()
    }

    #[tokio::test]
    async fn a_worker_that_cannot_begin_says_so() {
        let never = |_: Job| std::future::pending::<Done>();
        let ended = worker().run(never, std::future::pending()).await;
        assert!(matches!(ended, Err(Error::Unavailable { .. } | Error::OutcomeUnknown { .. })), "{ended:?}");
    }

    #[tokio::test]
    async fn one_that_is_told_to_stop_before_it_could_begin_stops() {
        let never = |_: Job| std::future::pending::<Done>();
        // Sooner than the one call that it takes to fail.
        let ended = worker().run(never, sleep(Duration::from_millis(5))).await;
        assert_eq!(ended.ok(), Some(WorkerReport::default()));
    }

    #[tokio::test]
    async fn a_worker_whose_outbox_is_another_ones_does_not_begin() {
        let temp = tempfile::tempdir().unwrap();
        let _other = crate::outbox::Outbox::open(temp.path().to_owned(), "other", "").await.unwrap();
        let worker = Worker { outbox: Some(temp.path().to_owned()), ..worker() };
        let never = |_: Job| std::future::pending::<Done>();
        let ended = worker.run(never, std::future::pending()).await;
        assert!(matches!(ended, Err(Error::Config { .. })), "{ended:?}");
    }

    #[test]
    fn a_record_that_is_being_drained_is_waited_for() {
        let registered = |status: AgentStatus| RegisterAgentResponse {
            agent: Some(Agent { status: status as i32, ..Agent::default() }),
            rev: 1,
        };
        assert!(is_draining(&registered(AgentStatus::Draining)) && !is_draining(&registered(AgentStatus::Busy)));
    }

    #[tokio::test]
    async fn one_that_lost_its_session_tries_on_until_it_is_told_to_stop() {
        // Longer than one call and the pause after it.
        let mut stop = pin!(sleep(FIRST_PAUSE * 2));
        let begun = worker().begin_again(stop.as_mut()).await;
        assert!(matches!(begun, Ok(None)), "{begun:?}");
    }
}
