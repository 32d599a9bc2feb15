//! Work that counts only once another agent has accepted it: the author misspells, the reviewer sends it back, the author
//! corrects, the reviewer accepts. Run `quorate dev` beside it.

#![allow(clippy::print_stdout)] // an example talks to its reader

use std::time::Duration;

use anyhow::{Context, Result};
use quorate_client::v1::{EvidencePolicy, TaskSpec};
use quorate_client::{Client, Config, Done, Error, Job, Worker, WorkerReport};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Writes at first carelessly, then as the reviewer wants it.
async fn write(job: Job) -> Done {
    let feedback = job.feedback();
    println!("author:   attempt {} (feedback: {feedback:?})", job.task.attempts);
    Done::completed(if feedback.is_empty() { "teh fleet is ready" } else { "the fleet is ready" })
}

/// Reads what was reported and says what it thinks of it.
async fn review(client: &Client, job: Job) -> Result<Done> {
    let id = job.review_of().context("this is no review")?;
    let work = client.tasks().get(id).await?.task.context("the reviewed task is gone")?;
    let text = String::from_utf8_lossy(&work.result).into_owned();
    println!("reviewer: {text:?}");
    Ok(if text.contains("teh") { Done::rework("it is spelled \"the\"") } else { Done::accept("well written") })
}

fn start<H, F>(worker: Worker, handler: H, mut stop: watch::Receiver<bool>) -> JoinHandle<Result<WorkerReport, Error>>
where
    H: Fn(Job) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Done> + Send + 'static,
{
    tokio::spawn(async move {
        let stopped = async move {
            // An error means that the sender is gone, which is a reason to stop as well.
            let _ = stop.wait_for(|stop| *stop).await;
        };
        worker.run(handler, stopped).await
    })
}

#[tokio::main]
async fn main() -> Result<()> {
    let client = Client::connect(Config::new(["127.0.0.1:7401"]))?;
    let (stop, stopped) = watch::channel(false);

    let author = Worker::builder(client.clone()).agent_id("author").capabilities(["write"]).build();
    let author = start(author, write, stopped.clone());
    let reviewer = Worker::builder(client.clone()).agent_id("reviewer").capabilities(["review"]).build();
    let helper = client.clone();
    let reviewing = move |job: Job| {
        let client = helper.clone();
        async move { review(&client, job).await.unwrap_or_else(|error| Done::failed(error.to_string())) }
    };
    let reviewer = start(reviewer, reviewing, stopped);

    let evidence =
        EvidencePolicy { agent_reviews: 1, review_capabilities: vec!["review".into()], ..EvidencePolicy::default() };
    let task = TaskSpec {
        title: "say that the fleet is ready".into(),
        required_capabilities: vec!["write".into()],
        evidence: Some(evidence),
        ..TaskSpec::default()
    };
    let submitted = client.tasks().submit_one(task).await?;
    let done = client.tasks().wait(&submitted.task_id, Duration::from_secs(30)).await?;
    println!("{:?} after {} rework: {}", done.status(), done.reworks, String::from_utf8_lossy(&done.result));

    stop.send_replace(true);
    author.await??;
    reviewer.await??;
    Ok(())
}
