//! Tasks under limits of one, two and five, claimed by hand, held for a while, and completed; some of those who hold
//! one die.
//!
//! The first worker also keeps each key supplied: as many tasks wait as would fill its limit ten times over. Some tasks
//! carry two keys.
//!
//! At the end one agent completes what is left, and all attempts and tasks are read.
//!
//! Deliberately absent: work that is pushed to agents. A claim by hand says when it was asked for and when it was
//! answered.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::future::BoxFuture;
use quorate_client::v1::{
    Attempt, AttemptOutcome, FinishKind, FinishTaskRequest, LimitScope, ListAttemptsRequest, ListTasksRequest,
    RegisterAgentRequest, RetryPolicy, Task, TaskSpec, TaskStatus,
};
use quorate_client::{Client, Error, Session};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{Context, Workload};
use crate::check::Checker;
use crate::check::limits::Limits as LimitsHold;
use crate::check::limits::told::{Attempts, Claimed, Complete, Completed, Limit, Standing, Submit, Tasks, Try};
use crate::record::{Answer, Process};
use crate::rng::Rng;

const PATIENCE: Duration = Duration::from_secs(2);
/// At the end, when nothing is broken any more.
const LAST_PATIENCE: Duration = Duration::from_secs(30);
/// How long nothing may be completed at the end while something is left.
const STALLED: Duration = Duration::from_secs(60);
/// How soon the cluster misses a worker that died.
const TTL: Duration = Duration::from_secs(2);
/// How long a claim waits for a task.
const WAIT: Duration = Duration::from_millis(300);
const SHORTEST_HOLD_MS: u64 = 20;
const LONGEST_HOLD_MS: u64 = 200;
/// One in so many dies with a task in its hands.
const DEATH: u64 = 25;
/// So many wait for each that may run.
const STOCK: u64 = 10;
const PAGE: u32 = 1_000;
const LIMITS: [(&str, u32); 3] = [("one", 1), ("two", 2), ("five", 5)];

/// The workload.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits;

impl Limits {
    /// The workload.
    pub fn new() -> Self {
        Self
    }
}

impl Workload for Limits {
    fn name(&self) -> &'static str {
        "limits"
    }

    fn about(&self) -> &'static str {
        "tasks under concurrency limits, claimed by workers of which some die: never one too many at once"
    }

    fn prepare(&self, context: Context) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let client = context.client(0, LAST_PATIENCE)?;
            let mut process = context.recorder.process();
            for (name, max) in LIMITS {
                let key = limit_key(&context, name);
                let setting = async {
                    match client.dispatch().set_limit(LimitScope::Key, &key, max).await {
                        Ok(set) => Answer::at(set.rev, json!({})),
                        Err(error) => Answer::of_error(&error),
                    }
                };
                let arg = told(&Limit { max: u64::from(max) });
                let answer = process.run("limit", &key, arg, None, setting).await;
                ensure!(matches!(answer, Answer::Ok { .. }), "the limit {key} could not be set: {answer:?}");
            }
            Ok(())
        })
    }

    fn work(&self, context: Context, worker: u64) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move { Worker::new(&context, worker, PATIENCE)?.run().await })
    }

    fn finish(&self, context: Context) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let mut worker = Worker::new(&context, context.workers, LAST_PATIENCE)?;
            worker.drain().await?;
            worker.read_attempts().await?;
            worker.read_tasks().await
        })
    }

    fn checkers(&self) -> Vec<Box<dyn Checker>> {
        vec![Box::new(LimitsHold::new())]
    }
}

/// Of a concurrency key.
fn limit_key(context: &Context, name: &str) -> String {
    format!("{}-{name}", context.prefix)
}

/// Of everything else: the project of the tasks, the type and the capability of the agents.
fn room(context: &Context) -> String {
    format!("{}-limits", context.prefix)
}

/// An answer that can be written down; a value always can.
fn told(value: &impl serde::Serialize) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}

/// A registered agent and what keeps it alive.
struct Seat {
    agent_id: String,
    session: Session,
}

struct Worker<'a> {
    context: &'a Context,
    number: u64,
    room: String,
    client: Client,
    rng: Rng,
    process: Process,
    /// `None`: it died, or does not know any more what it holds.
    seat: Option<Seat>,
    lives: u64,
    submitted: u64,
}

impl<'a> Worker<'a> {
    fn new(context: &'a Context, number: u64, patience: Duration) -> Result<Self> {
        Ok(Self {
            context,
            number,
            room: room(context),
            client: context.client(number, patience)?,
            rng: context.rng(number),
            process: context.recorder.process(),
            seat: None,
            lives: 0,
            submitted: 0,
        })
    }

    async fn run(mut self) -> Result<()> {
        while self.context.pause(&mut self.rng).await {
            if self.number == 0 {
                self.feed().await;
            }
            let Some(claimed) = self.claim().await else { continue };
            sleep(self.rng.millis(SHORTEST_HOLD_MS, LONGEST_HOLD_MS)).await;
            if self.rng.below(DEATH) == 0 {
                // Its session is not closed: the cluster finds out by itself.
                self.seat = None;
                continue;
            }
            self.complete(claimed).await;
        }
        Ok(())
    }

    /// Submits more where little waits. Without an answer there is nothing to see.
    async fn feed(&mut self) {
        let Ok(limits) = self.client.dispatch().limits().await else { return };
        for (name, max) in LIMITS {
            let key = limit_key(self.context, name);
            let named = limits.limits.iter().find(|held| held.limit.as_ref().is_some_and(|limit| limit.name == key));
            let waiting = named.map_or(0, |held| held.waiting);
            let stock = STOCK * u64::from(max);
            for _ in waiting..stock {
                if self.context.is_over() {
                    return;
                }
                self.submit(&key).await;
            }
        }
    }

    /// One task; one in ten carries another key as well.
    async fn submit(&mut self, key: &str) {
        self.submitted += 1;
        let id = format!("{}-{}-{}", self.room, self.number, self.submitted);
        let mut keys = vec![key.to_owned()];
        if self.rng.below(10) == 0
            && let Some((name, _)) = LIMITS.get(self.rng.below(LIMITS.len() as u64) as usize)
        {
            keys.push(limit_key(self.context, name));
        }
        keys.sort_unstable();
        keys.dedup();
        let (client, spec) = (&self.client, self.spec(&id, &keys));
        let submitting = async {
            match client.tasks().submit(vec![spec]).await {
                Ok(submitted) => Answer::at(submitted.rev, json!({})),
                Err(error) => Answer::of_error(&error),
            }
        };
        self.process.run("submit", &self.room, told(&Submit { id, keys }), None, submitting).await;
    }

    fn spec(&self, id: &str, keys: &[String]) -> TaskSpec {
        let retry = RetryPolicy { max_retries: 100, base_ms: 10, cap_ms: 100, ..RetryPolicy::default() };
        TaskSpec {
            task_id: id.to_owned(),
            title: id.to_owned(),
            required_capabilities: vec![self.room.clone()],
            project: self.room.clone(),
            concurrency_keys: keys.to_vec(),
            retry: Some(retry),
            ..TaskSpec::default()
        }
    }

    /// A new life, if the old one is over. Says whether there is one.
    async fn sit(&mut self) -> bool {
        if self.seat.as_ref().is_some_and(|seat| seat.session.is_alive()) {
            return true;
        }
        self.seat = None;
        self.lives += 1;
        let Ok(session) = self.client.sessions().open(TTL).await else { return false };
        let agent_id = format!("{}-{}.{}", self.room, self.number, self.lives);
        let request = RegisterAgentRequest {
            agent_id: agent_id.clone(),
            agent_type: self.room.clone(),
            capabilities: vec![self.room.clone()],
            capacity: 1,
            ..RegisterAgentRequest::default()
        };
        if self.client.agents().register(&session, request).await.is_ok() {
            self.seat = Some(Seat { agent_id, session });
        }
        self.seat.is_some()
    }

    async fn claim(&mut self) -> Option<Complete> {
        if !self.sit().await {
            return None;
        }
        let (client, Seat { agent_id, session }) = (&self.client, self.seat.as_ref()?);
        let claiming = async {
            match client.tasks().claim(session, agent_id, 1, WAIT).await {
                Ok(claimed) => {
                    let task = claimed.tasks.into_iter().next();
                    let token = task.as_ref().and_then(|task| task.claim.as_ref()).map_or(0, |claim| claim.token);
                    Answer::at(claimed.rev, told(&Claimed { id: task.map(|task| task.id), token }))
                }
                Err(error) => Answer::of_error(&error),
            }
        };
        let answer = self.process.run("claim", &self.room, json!({ "worker": agent_id }), None, claiming).await;
        let Answer::Ok { res, .. } = answer else {
            // What it may hold now, it does not know.
            self.seat = None;
            return None;
        };
        let Claimed { id, token } = serde_json::from_value(res).unwrap_or_default();
        Some(Complete { id: id?, token })
    }

    async fn complete(&mut self, claimed: Complete) {
        let request = FinishTaskRequest {
            task_id: claimed.id.clone(),
            token: claimed.token,
            kind: FinishKind::Completed as i32,
            ..FinishTaskRequest::default()
        };
        let (client, session) = (&self.client, self.seat.as_ref().map(|seat| &seat.session));
        let completing = async {
            match client.tasks().finish(session, request).await {
                Ok(finished) => Answer::at(finished.rev, told(&Completed { accepted: true })),
                Err(Error::Fenced { .. }) => Answer::ok(told(&Completed { accepted: false })),
                Err(error) => Answer::of_error(&error),
            }
        };
        let answer = self.process.run("complete", &self.room, told(&claimed), None, completing).await;
        if answer_is(&answer, false) || !matches!(answer, Answer::Ok { .. }) {
            self.seat = None;
        }
    }

    /// Completes what is left.
    async fn drain(&mut self) -> Result<()> {
        let mut progressed = Instant::now();
        while self.is_left().await? {
            // Claims are recorded, so a few at a time are enough between two looks.
            for _ in 0..100 {
                let Some(claimed) = self.claim().await else { break };
                self.complete(claimed).await;
                progressed = Instant::now();
            }
            ensure!(progressed.elapsed() < STALLED, "nothing was completed for {} s", STALLED.as_secs());
        }
        Ok(())
    }

    /// Whether a task has not ended.
    async fn is_left(&self) -> Result<bool> {
        let alive =
            [TaskStatus::Pending, TaskStatus::Ready, TaskStatus::Blocked, TaskStatus::InProgress, TaskStatus::Reported];
        let mut request = ListTasksRequest {
            statuses: alive.map(|status| status as i32).to_vec(),
            project: self.room.clone(),
            limit: PAGE,
            ..ListTasksRequest::default()
        };
        loop {
            // A page may be empty, and not the last.
            let page = self.client.tasks().list(request.clone()).await.context("the tasks cannot be listed")?;
            if !page.tasks.is_empty() || page.next_page_token.is_empty() {
                return Ok(!page.tasks.is_empty());
            }
            request.page_token = page.next_page_token;
        }
    }

    async fn read_attempts(&mut self) -> Result<()> {
        let mut request =
            ListAttemptsRequest { agent_type: self.room.clone(), limit: PAGE, ..ListAttemptsRequest::default() };
        loop {
            let (client, mut next) = (&self.client, String::new());
            let reading = async {
                match client.tasks().attempts(request.clone()).await {
                    Ok(page) => {
                        let attempts = page.attempts.iter().map(tried).collect();
                        let more = !page.next_page_token.is_empty();
                        next = page.next_page_token;
                        Answer::at(page.rev, told(&Attempts { attempts, more }))
                    }
                    Err(_) => Answer::Fail,
                }
            };
            let answer = self.process.run("attempts", &self.room, json!({}), None, reading).await;
            ensure!(matches!(answer, Answer::Ok { .. }), "the attempts cannot be read");
            if next.is_empty() {
                return Ok(());
            }
            request.page_token = next;
        }
    }

    async fn read_tasks(&mut self) -> Result<()> {
        let mut request = ListTasksRequest { project: self.room.clone(), limit: PAGE, ..ListTasksRequest::default() };
        loop {
            let (client, mut next) = (&self.client, String::new());
            let reading = async {
                match client.tasks().list(request.clone()).await {
                    Ok(page) => {
                        let tasks = page.tasks.iter().map(standing).collect();
                        let more = !page.next_page_token.is_empty();
                        next = page.next_page_token;
                        Answer::at(page.rev, told(&Tasks { tasks, more }))
                    }
                    Err(_) => Answer::Fail,
                }
            };
            let answer = self.process.run("tasks", &self.room, json!({}), None, reading).await;
            ensure!(matches!(answer, Answer::Ok { .. }), "the tasks cannot be read");
            if next.is_empty() {
                return Ok(());
            }
            request.page_token = next;
        }
    }
}

fn answer_is(answer: &Answer, accepted: bool) -> bool {
    matches!(answer, Answer::Ok { res, .. } if *res == told(&Completed { accepted }))
}

fn tried(attempt: &Attempt) -> Try {
    Try {
        id: attempt.task_id.clone(),
        token: attempt.token,
        started_at_ms: attempt.started_at_ms,
        ended_at_ms: attempt.ended_at_ms,
        is_completed: attempt.outcome() == AttemptOutcome::Completed,
    }
}

fn standing(task: &Task) -> Standing {
    let keys = task.spec.as_ref().map(|spec| spec.concurrency_keys.clone()).unwrap_or_default();
    Standing { id: task.id.clone(), keys, is_completed: task.status() == TaskStatus::Completed }
}
