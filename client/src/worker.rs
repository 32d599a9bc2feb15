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
//! ```

mod bench;
mod done;
mod job;
mod known;
mod order;
mod stop;
mod stretch;

use std::pin::{Pin, pin};
use std::time::Duration;

use quorate_proto::v1::{ExecutionMode, KeyValue, RegisterAgentRequest};
use tokio::time::sleep;

use crate::client::Client;
use crate::error::Error;
use crate::sessions::Session;
use stretch::{Over, Stretch};

pub use done::{Done, Output};
pub use job::Job;

/// The pause after a step that failed. It doubles from failure to failure.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

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
}

/// Puts a worker together.
#[derive(Debug, Clone)]
pub struct WorkerBuilder {
    client: Client,
    registration: RegisterAgentRequest,
    session_ttl: Duration,
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

    /// The worker.
    pub fn build(self) -> Worker {
        Worker { client: self.client, registration: self.registration, session_ttl: self.session_ttl }
    }
}

/// An agent that works.
#[derive(Debug, Clone)]
pub struct Worker {
    client: Client,
    registration: RegisterAgentRequest,
    session_ttl: Duration,
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
        WorkerBuilder { client, registration, session_ttl: Duration::from_secs(15) }
    }

    /// Works until `shutdown` resolves, then finishes what it has begun and leaves. An error means that it could not
    /// begin: the cluster refused it, or could not be reached in time.
    pub async fn run<H, F>(&self, handler: H, shutdown: impl Future<Output = ()>) -> Result<WorkerReport, Error>
    where
        H: Fn(Job) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Done> + Send + 'static,
    {
        let mut shutdown = pin!(shutdown);
        let mut report = WorkerReport::default();
        let mut session = self.begin().await?;
        loop {
            let over = Stretch::new(self, session).work(&handler, shutdown.as_mut(), &mut report).await;
            match over {
                Over::Left => return Ok(report),
                Over::SessionLost => report.sessions_lost += 1,
            }
            session = match self.begin_again(shutdown.as_mut()).await? {
                Some(session) => session,
                None => return Ok(report),
            };
        }
    }

    /// Opens a session and registers under it.
    async fn begin(&self) -> Result<Session, Error> {
        loop {
            let session = self.client.sessions().open(self.session_ttl).await?;
            match self.client.agents().register(&session, self.registration.clone()).await {
                Ok(_) => return Ok(session),
                // The session ended before the agent was registered: begin again.
                Err(error) if error.is_not_found() => sleep(FIRST_PAUSE).await,
                Err(error) => return Err(error),
            }
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
                Err(error @ (Error::Unavailable { .. } | Error::OutcomeUnknown { .. })) => {
                    tracing::warn!(%error, "could not begin again; trying on");
                }
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

#[cfg(test)]
mod tests {
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
    async fn one_that_lost_its_session_tries_on_until_it_is_told_to_stop() {
        // Longer than one call and the pause after it.
        let mut stop = pin!(sleep(FIRST_PAUSE * 2));
        let begun = worker().begin_again(stop.as_mut()).await;
        assert!(matches!(begun, Ok(None)), "{begun:?}");
    }
}
