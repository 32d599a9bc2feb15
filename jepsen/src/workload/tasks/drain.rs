//! After the faults: work goes on until nothing is left to do, and then everything is read.
//!
//! Deliberately absent: patience with a queue that does not become shorter.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use quorate_client::v1::{Attempt, ListAttemptsRequest, ListTasksRequest, Task, TaskStatus};
use quorate_client::{Client, Error};
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::submitter::unfinished;
use super::{agent_type, answer_of, performer, queue};
use crate::record::{Answer, Process};
use crate::until::until;
use crate::workload::Context;

/// How many work.
const WORKERS: u64 = 4;
/// Work of which nothing is done for so long has stopped.
const STALLED: Duration = Duration::from_secs(60);
/// How long a call may take with all its retries.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two reads of which the first failed.
const PAUSE: Duration = Duration::from_millis(200);
const PAGE: u32 = 1_000;

/// Works off what is left, and reads what came of everything.
pub(super) async fn finish(context: Context) -> Result<()> {
    let client = context.client(0, PATIENCE)?;
    work_off(&client, &context).await.context("the tasks could not be drained")?;
    let mut process = context.recorder.process();
    let queue = queue(&context);
    read(&mut process, &queue, "final", || states(&client, &context)).await?;
    read(&mut process, &queue, "dead", || dead(&client, &context)).await?;
    read(&mut process, &queue, "attempts", || attempts(&client, &context)).await
}

async fn work_off(client: &Client, context: &Context) -> Result<()> {
    let (stop, stopped) = watch::channel(false);
    let mut performers = JoinSet::new();
    for n in 0..WORKERS {
        let own = Context { stop: stopped.clone(), ..context.clone() };
        performers.spawn(performer::perform_calmly(own, context.workers + n));
    }
    let worked_off = watch_it_shrink(client, context).await;
    stop.send_replace(true);
    while let Some(performed) = performers.join_next().await {
        performed??;
    }
    worked_off
}

async fn watch_it_shrink(client: &Client, context: &Context) -> Result<()> {
    let mut left = usize::MAX;
    while left > 0 {
        let before = left;
        left = until("fewer tasks are left to do", STALLED, || async {
            // Who does not answer now may answer later.
            let now = all(client, unfinished(context, PAGE)).await.ok().map(|tasks| tasks.len());
            Ok(now.filter(|now| *now < before))
        })
        .await
        .with_context(|| format!("{before} were left"))?;
    }
    Ok(())
}

/// Records reads until one is answered.
async fn read<Read>(process: &mut Process, queue: &str, f: &str, mut call: impl FnMut() -> Read) -> Result<()>
where
    Read: Future<Output = Result<Value, Error>>,
{
    let began = Instant::now();
    loop {
        let reading = call();
        let answer = async {
            match reading.await {
                Ok(res) => Answer::ok(res),
                Err(error) => answer_of(&error),
            }
        };
        if let Answer::Ok { .. } = process.run(f, queue, json!({}), None, answer).await {
            return Ok(());
        }
        if began.elapsed() > STALLED {
            bail!("{f} could not be read within {STALLED:?}");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn states(client: &Client, context: &Context) -> Result<Value, Error> {
    let request = ListTasksRequest { project: context.prefix.clone(), limit: PAGE, ..Default::default() };
    let tasks = all(client, request).await?;
    let states: Map<String, Value> = tasks.into_iter().map(|task| (task.id.clone(), state(&task).into())).collect();
    Ok(json!({ "states": states }))
}

async fn dead(client: &Client, context: &Context) -> Result<Value, Error> {
    let statuses = vec![TaskStatus::Failed as i32, TaskStatus::TimedOut as i32];
    let request = ListTasksRequest { statuses, project: context.prefix.clone(), limit: PAGE, ..Default::default() };
    let ids: Vec<String> = all(client, request).await?.into_iter().map(|task| task.id).collect();
    Ok(json!({ "ids": ids }))
}

async fn attempts(client: &Client, context: &Context) -> Result<Value, Error> {
    let mut request = ListAttemptsRequest { agent_type: agent_type(context), limit: PAGE, ..Default::default() };
    let mut by_task: Map<String, Value> = Map::new();
    loop {
        let page = client.tasks().attempts(request.clone()).await?;
        for attempt in page.attempts {
            let line = line(&attempt);
            let lines = by_task.entry(attempt.task_id).or_insert_with(|| Value::Array(Vec::new()));
            if let Value::Array(lines) = lines {
                lines.push(line);
            }
        }
        if page.next_page_token.is_empty() {
            return Ok(json!({ "attempts": by_task }));
        }
        request.page_token = page.next_page_token;
    }
}

/// Every task that is asked for, by linearizable pages.
async fn all(client: &Client, mut request: ListTasksRequest) -> Result<Vec<Task>, Error> {
    let mut tasks = Vec::new();
    loop {
        let page = client.tasks().list(request.clone()).await?;
        tasks.extend(page.tasks);
        if page.next_page_token.is_empty() {
            return Ok(tasks);
        }
        request.page_token = page.next_page_token;
    }
}

fn state(task: &Task) -> &'static str {
    match task.status() {
        TaskStatus::Completed => "done",
        TaskStatus::Failed | TaskStatus::TimedOut => "dead",
        TaskStatus::InProgress => "claimed",
        TaskStatus::Pending | TaskStatus::Ready | TaskStatus::Blocked => "pending",
        // Nothing here leads to any of these.
        TaskStatus::Unspecified => "unspecified",
        TaskStatus::Cancelled => "cancelled",
        TaskStatus::Reported => "reported",
        TaskStatus::Skipped => "skipped",
    }
}

fn line(attempt: &Attempt) -> Value {
    let outcome = attempt.outcome().as_str_name().trim_start_matches("ATTEMPT_OUTCOME_").to_ascii_lowercase();
    json!({
        "number": attempt.number,
        "token": attempt.token,
        "outcome": outcome,
        "started": attempt.started_at_ms,
        "ended": attempt.ended_at_ms,
    })
}
