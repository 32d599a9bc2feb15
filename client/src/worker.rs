//! An agent's whole life: register, stay alive, claim, run a handler, finish, drain.
//!
//! Credit is free capacity: the worker asks for as many tasks as it can run, and each finish asks for one more in the
//! same log entry. When its session is lost the cluster gives its tasks to others, so it cancels what runs, opens a
//! new session, registers again and goes on.

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use quorate_proto::v1::{
    ClaimTasksResponse, ExecutionMode, FinishKind, FinishTaskRequest, KeyValue, RegisterAgentRequest, Task,
};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::client::Client;
use crate::error::Error;
use crate::sessions::Session;

/// How long one claim waits for work.
const CLAIM_WAIT: Duration = Duration::from_secs(20);
/// The pause after a claim that failed.
const CLAIM_PAUSE: Duration = Duration::from_millis(200);

/// One task to do.
#[derive(Debug)]
pub struct Job {
    /// The task, with its claim.
    pub task: Task,
    cancelled: watch::Receiver<bool>,
}

impl Job {
    /// Resolves when the lease on the task is lost: whatever the handler still does will not count.
    pub async fn cancelled(&self) {
        let mut cancelled = self.cancelled.clone();
        if cancelled.wait_for(|cancelled| *cancelled).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// The fencing token: pass it on to whatever the task writes to, and let that refuse older ones.
    pub fn token(&self) -> u64 {
        self.task.claim.as_ref().map_or(0, |claim| claim.token)
    }
}

/// What an attempt left behind besides its result. Tails of 64 KiB are kept.
#[derive(Debug, Clone, Default)]
pub struct Output {
    /// Of the process, if there was one.
    pub exit_code: Option<i32>,
    /// What it printed.
    pub stdout: Bytes,
    /// What it complained about.
    pub stderr: Bytes,
}

/// What became of a job.
#[derive(Debug, Clone)]
pub enum Done {
    /// It is done, with this result.
    Completed {
        /// At most 1 MiB.
        result: Bytes,
        /// What it left behind.
        output: Output,
    },
    /// It failed; the task's policy decides about another try.
    Failed {
        /// One sentence for a person.
        error: String,
        /// What it left behind.
        output: Output,
    },
    /// It failed and will never work.
    FailedPermanently {
        /// One sentence for a person.
        error: String,
        /// What it left behind.
        output: Output,
    },
    /// Handed back unharmed.
    Released,
}

/// What a worker did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WorkerReport {
    /// Attempts accepted as completed.
    pub completed: u64,
    /// Attempts accepted as failed.
    pub failed: u64,
    /// Attempts handed back.
    pub released: u64,
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

/// Why one session's stretch of work is over.
enum Over {
    ShutDown,
    SessionLost,
}

/// One job under way.
struct Running {
    cancel: watch::Sender<bool>,
    token: u64,
}

/// A claim under way.
type Claiming = std::pin::Pin<Box<dyn Future<Output = Result<ClaimTasksResponse, Error>> + Send>>;

/// What a finished handler brings back.
type Ended = (String, u64, Done);

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
        loop {
            let session = self.client.sessions().open(self.session_ttl).await?;
            match self.client.agents().register(&session, self.registration.clone()).await {
                Ok(_) => {}
                // The session ended before the agent was registered: begin again.
                Err(error) if error.is_not_found() => continue,
                Err(error) => return Err(error),
            }
            let mut stretch = Stretch { worker: self, session, jobs: JoinSet::new(), running: BTreeMap::new() };
            match stretch.work(&handler, shutdown.as_mut(), &mut report).await? {
                Over::ShutDown => return Ok(report),
                Over::SessionLost => report.sessions_lost += 1,
            }
        }
    }
}

async fn next_claim(claiming: &mut Option<Claiming>) -> Option<Result<ClaimTasksResponse, Error>> {
    match claiming {
        Some(claiming) => Some(claiming.await),
        None => None,
    }
}

/// The work done under one session.
struct Stretch<'a> {
    worker: &'a Worker,
    session: Session,
    jobs: JoinSet<Ended>,
    running: BTreeMap<String, Running>,
}

impl Stretch<'_> {
    async fn work<H, F>(
        &mut self,
        handler: &H,
        mut shutdown: std::pin::Pin<&mut impl Future<Output = ()>>,
        report: &mut WorkerReport,
    ) -> Result<Over, Error>
    where
        H: Fn(Job) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Done> + Send + 'static,
    {
        // A claim under way is never dropped: what it brings must be run or handed back.
        let mut claiming: Option<Claiming> = None;
        loop {
            let credit = self.worker.registration.capacity.max(1).saturating_sub(self.running.len() as u32);
            if claiming.is_none() && credit > 0 {
                claiming = Some(self.claim(credit));
            }
            tokio::select! {
                biased;
                () = shutdown.as_mut() => return self.leave(claiming, report).await,
                () = self.session.ended() => return Ok(self.abandon().await),
                Some(ended) = self.jobs.join_next(), if !self.running.is_empty() => {
                    for task in self.finish(ended, 1, report).await? {
                        self.start(handler, task);
                    }
                }
                claimed = next_claim(&mut claiming), if claiming.is_some() => {
                    claiming = None;
                    match claimed {
                        Some(Ok(claimed)) if claimed.draining => return self.leave(None, report).await,
                        Some(Ok(claimed)) => claimed.tasks.into_iter().for_each(|task| self.start(handler, task)),
                        // It may have been granted tasks that nobody here knows of: only the session's end gives
                        // them back.
                        Some(Err(Error::OutcomeUnknown { message })) => {
                            tracing::warn!(message, "a claim's outcome is unknown; starting a new session");
                            self.close_quietly().await;
                            return Ok(self.abandon().await);
                        }
                        Some(Err(error)) => self.claim_failed(&error).await?,
                        None => {}
                    }
                }
            }
        }
    }

    fn claim(&self, credit: u32) -> Claiming {
        let (tasks, session) = (self.worker.client.tasks(), self.session.clone());
        let agent_id = self.worker.registration.agent_id.clone();
        Box::pin(async move { tasks.claim(&session, &agent_id, credit, CLAIM_WAIT).await })
    }

    async fn close_quietly(&self) {
        if let Err(error) = self.session.close().await {
            tracing::warn!(%error, "the session was not closed; it ends by its TTL");
        }
    }

    fn start<H, F>(&mut self, handler: &H, task: Task)
    where
        H: Fn(Job) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Done> + Send + 'static,
    {
        let (cancel, cancelled) = watch::channel(false);
        let (id, job) = (task.id.clone(), Job { task, cancelled });
        let token = job.token();
        let handler = handler.clone();
        self.running.insert(id.clone(), Running { cancel, token });
        self.jobs.spawn(async move {
            // A task of its own, so that a panic in the handler is a failed attempt and not a dead worker.
            let done = match tokio::spawn(async move { handler(job).await }).await {
                Ok(done) => done,
                Err(_) => Done::Failed { error: "handler panicked".to_owned(), output: Output::default() },
            };
            (id, token, done)
        });
    }

    /// Reports one job and returns what was claimed along with it.
    async fn finish(
        &mut self,
        ended: Result<Ended, tokio::task::JoinError>,
        claim_next: u32,
        report: &mut WorkerReport,
    ) -> Result<Vec<Task>, Error> {
        // The wrapper around the handler neither panics nor is aborted while the stretch lives.
        let Ok((id, token, done)) = ended else { return Ok(Vec::new()) };
        self.running.retain(|running, job| running != &id || job.token != token);
        let (kind, result, error, output) = match done {
            Done::Completed { result, output } => (FinishKind::Completed, result, String::new(), output),
            Done::Failed { error, output } => (FinishKind::Failed, Bytes::new(), error, output),
            Done::FailedPermanently { error, output } => (FinishKind::FailedPermanently, Bytes::new(), error, output),
            Done::Released => (FinishKind::Released, Bytes::new(), String::new(), Output::default()),
        };
        let request = FinishTaskRequest {
            task_id: id.clone(),
            token,
            kind: kind as i32,
            result,
            error,
            exit_code: output.exit_code,
            stdout: output.stdout,
            stderr: output.stderr,
            claim_next,
            request: None,
        };
        let tasks = self.worker.client.tasks();
        loop {
            let finished = tokio::select! {
                finished = tasks.finish(Some(&self.session), request.clone()) => finished,
                // Others have the task by now, or will have.
                () = self.session.ended() => {
                    report.fenced += 1;
                    return Ok(Vec::new());
                }
            };
            match finished {
                Ok(answer) => {
                    match kind {
                        FinishKind::Completed => report.completed += 1,
                        FinishKind::Released => report.released += 1,
                        _ => report.failed += 1,
                    }
                    return Ok(answer.next);
                }
                Err(Error::Fenced { message }) => {
                    tracing::warn!(task = id, message, "an attempt was superseded");
                    report.fenced += 1;
                    return Ok(Vec::new());
                }
                // Safe by its token: until the lease is gone, keep trying.
                Err(Error::Unavailable { .. } | Error::OutcomeUnknown { .. }) => {}
                Err(error) => {
                    tracing::error!(task = id, %error, "a finish was refused");
                    report.failed += 1;
                    return Ok(Vec::new());
                }
            }
        }
    }

    /// A refused claim usually means that the session is gone or the agent unknown; anything else is tried again.
    async fn claim_failed(&self, error: &Error) -> Result<(), Error> {
        match error {
            Error::Rejected { .. } if self.session.is_alive() => {
                tracing::warn!(%error, "a claim was refused; registering again");
                let registration = self.worker.registration.clone();
                match self.worker.client.agents().register(&self.session, registration).await {
                    Ok(_) => {}
                    // The session is gone, and its keeper will notice.
                    Err(error) if error.is_not_found() => {}
                    Err(error) => return Err(error),
                }
            }
            _ => tracing::warn!(%error, "a claim failed"),
        }
        tokio::time::sleep(CLAIM_PAUSE).await;
        Ok(())
    }

    /// Takes no more, finishes what runs, and goes.
    async fn leave(&mut self, claiming: Option<Claiming>, report: &mut WorkerReport) -> Result<Over, Error> {
        let agent_id = &self.worker.registration.agent_id;
        match self.worker.client.agents().drain(agent_id).await {
            Err(error) if !error.is_not_found() => tracing::warn!(%error, "could not announce the drain"),
            _ => {}
        }
        while let Some(ended) = self.jobs.join_next().await {
            self.finish(ended, 0, report).await?;
        }
        // A drained agent's claim returns at once. Should it have won the race with the drain, closing the session
        // hands back what it brought; waiting for it first keeps it from being granted anything afterwards.
        if let Some(claiming) = claiming
            && let Ok(claimed) = claiming.await
        {
            report.released += claimed.tasks.len() as u64;
            for task in claimed.tasks {
                self.hand_back(&task).await;
            }
        }
        self.close_quietly().await;
        Ok(Over::ShutDown)
    }

    /// Returns a task that was never begun, without counting a failure against it.
    async fn hand_back(&self, task: &Task) {
        let token = task.claim.as_ref().map_or(0, |claim| claim.token);
        let kind = FinishKind::Released as i32;
        let request = FinishTaskRequest { task_id: task.id.clone(), token, kind, ..FinishTaskRequest::default() };
        if let Err(error) = self.worker.client.tasks().finish(Some(&self.session), request).await {
            tracing::warn!(task = task.id, %error, "a task was not handed back; it returns with the session's end");
        }
    }

    /// The lease is lost: tells every job, and waits until all have let go.
    async fn abandon(&mut self) -> Over {
        for job in self.running.values() {
            job.cancel.send_replace(true);
        }
        while self.jobs.join_next().await.is_some() {}
        self.running.clear();
        Over::SessionLost
    }
}
