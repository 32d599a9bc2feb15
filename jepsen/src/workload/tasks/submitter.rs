//! Who submits: graphs of tasks, and single tasks whose second submission, under the same key, has another id.
//!
//! Deliberately absent: a queue that grows without end. While too much is left to do, nothing is submitted.

use anyhow::Result;
use quorate_client::Client;
use quorate_client::v1::{ListTasksRequest, OnDependencyFailure, RetryPolicy, TaskSpec, TaskStatus};
use serde_json::{Value, json};

use super::{DOOMED, PATIENCE, answer_of, capability, queue};
use crate::record::{Answer, Process};
use crate::rng::Rng;
use crate::tasks;
use crate::workload::Context;

/// The most tasks that are left to do when another graph is submitted.
const WINDOW: u32 = 200;
/// How often the same is submitted while nobody knows what came of it.
const TRIES: u32 = 4;
/// One submission in so many is of a single task.
const SINGLE: u64 = 4;
/// One task in so many never succeeds.
const DOOM: u64 = 50;
/// Retries of a task that may succeed.
const RETRIES: u32 = 10;

/// Submits until told to stop.
pub(super) async fn submit(context: Context, worker: u64) -> Result<()> {
    let mut submitter = Submitter {
        client: context.client(worker, PATIENCE)?,
        process: context.recorder.process(),
        rng: context.rng(worker),
        queue: queue(&context),
        context,
    };
    let mut number = 0_u64;
    while submitter.context.pause(&mut submitter.rng).await {
        if submitter.is_full().await {
            continue;
        }
        number += 1;
        let name = format!("{}-t{worker}.{number}", submitter.context.prefix);
        if submitter.rng.below(SINGLE) == 0 {
            submitter.single(&name).await;
        } else {
            submitter.graph(&name).await;
        }
    }
    Ok(())
}

struct Submitter {
    context: Context,
    client: Client,
    process: Process,
    rng: Rng,
    queue: String,
}

impl Submitter {
    /// Whether enough is left to do. If nobody says, no.
    async fn is_full(&self) -> bool {
        let page = self.client.tasks().list(unfinished(&self.context, WINDOW)).await;
        page.is_ok_and(|page| page.tasks.len() >= WINDOW as usize)
    }

    /// Five to fifteen tasks, each waiting for up to three before it, all submitted as one.
    async fn graph(&mut self, name: &str) {
        let count = 5 + self.rng.below(11);
        let mut specs: Vec<TaskSpec> = Vec::new();
        for n in 0..count {
            let mut spec = self.spec(format!("{name}.{n}"));
            for _ in 0..self.rng.below(4) {
                let parent = usize::try_from(self.rng.below(n)).ok().and_then(|parent| specs.get(parent));
                spec.dependencies.extend(parent.map(|parent| parent.task_id.clone()));
            }
            spec.dependencies.sort_unstable();
            spec.dependencies.dedup();
            specs.push(spec);
        }
        for _ in 0..TRIES {
            match self.send(&specs).await {
                Answer::Info => {}
                // Once more although it is there, now and then.
                Answer::Ok { .. } if self.rng.below(4) == 0 => {}
                Answer::Ok { .. } | Answer::Fail => return,
            }
        }
    }

    /// One task, submitted again under another id and the same key: there must not be two.
    async fn single(&mut self, name: &str) {
        let first = self.spec(name.to_owned());
        for n in 0..TRIES {
            let task_id = if n == 0 { name.to_owned() } else { format!("{name}-again{n}") };
            let spec = TaskSpec { task_id, ..first.clone() };
            let is_known = matches!(self.send(&[spec]).await, Answer::Ok { .. });
            if is_known && self.rng.below(2) == 0 {
                return;
            }
        }
    }

    fn spec(&mut self, id: String) -> TaskSpec {
        let is_doomed = self.rng.below(DOOM) == 0;
        let max_retries = if is_doomed { self.rng.below(3) as u32 } else { RETRIES };
        let retry = RetryPolicy { max_retries, base_ms: 50, cap_ms: 400, jitter_permille: 500, ..Default::default() };
        let plain = tasks::spec(id.clone(), &capability(&self.context));
        TaskSpec {
            title: if is_doomed { DOOMED.to_owned() } else { id.clone() },
            project: self.context.prefix.clone(),
            idempotency_key: id,
            retry: Some(retry),
            on_dependency_failure: OnDependencyFailure::Cascade as i32,
            ..plain
        }
    }

    async fn send(&mut self, specs: &[TaskSpec]) -> Answer {
        let arg = json!({ "tasks": specs.iter().map(described).collect::<Vec<_>>() });
        let (client, specs) = (&self.client, specs.to_vec());
        let call = async move {
            match client.tasks().submit(specs).await {
                Ok(answer) => {
                    let ids: Vec<String> = answer.tasks.into_iter().map(|task| task.task_id).collect();
                    Answer::at(answer.rev, json!({ "ids": ids }))
                }
                Err(error) => answer_of(&error),
            }
        };
        self.process.run("submit", &self.queue, arg, None, call).await
    }
}

/// What a checker must know of a task.
fn described(spec: &TaskSpec) -> Value {
    let attempts = spec.retry.as_ref().map(|retry| u64::from(retry.max_retries) + 1);
    json!({ "id": spec.task_id, "key": spec.idempotency_key, "after": spec.dependencies, "attempts": attempts })
}

/// Asks for tasks of this run that have not ended.
pub(super) fn unfinished(context: &Context, limit: u32) -> ListTasksRequest {
    use TaskStatus::{Blocked, InProgress, Pending, Ready, Reported};
    let statuses = [Pending, Ready, Blocked, InProgress, Reported].map(|status| status as i32).to_vec();
    ListTasksRequest { statuses, project: context.prefix.clone(), limit, ..Default::default() }
}
