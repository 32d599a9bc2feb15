//! Fans out and joins: five numbers are squared, each as a task of its own, and one more task adds them up when all are
//! done. Run `quorate dev` beside it.

#![allow(clippy::print_stdout)] // an example talks to its reader

use std::time::Duration;

use anyhow::{Context, Result};
use quorate_client::v1::TaskSpec;
use quorate_client::{Client, Config, Done, Graph, Job, Worker};

fn arithmetic(title: &str, payload: String) -> TaskSpec {
    TaskSpec {
        title: title.into(),
        required_capabilities: vec!["arithmetic".into()],
        payload: payload.into(),
        ..TaskSpec::default()
    }
}

fn number(bytes: &[u8]) -> Result<u64> {
    Ok(std::str::from_utf8(bytes)?.parse()?)
}

/// Squares its payload, or adds up what came of the tasks that it waited for.
async fn calculate(client: &Client, job: Job) -> Result<u64> {
    let spec = job.task.spec.context("a task without its specification")?;
    if spec.dependencies.is_empty() {
        return Ok(number(&spec.payload)?.pow(2));
    }
    let mut sum = 0;
    for id in &spec.dependencies {
        let part = client.tasks().get(id).await?.task.context("a dependency is gone")?;
        sum += number(&part.result)?;
    }
    Ok(sum)
}

#[tokio::main]
async fn main() -> Result<()> {
    let client = Client::connect(Config::new(["127.0.0.1:7401"]))?;

    let worker =
        Worker::builder(client.clone()).agent_id("calculator").capabilities(["arithmetic"]).capacity(3).build();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let helper = client.clone();
    let working = tokio::spawn(async move {
        let handler = move |job: Job| {
            let client = helper.clone();
            async move {
                match calculate(&client, job).await {
                    Ok(number) => Done::completed(number.to_string()),
                    Err(error) => Done::failed(error.to_string()),
                }
            }
        };
        worker.run(handler, async move { drop(stopped.await) }).await
    });

    // The whole graph is one command: all of it is submitted, or nothing.
    let mut graph = Graph::new("squares");
    let squares = graph.map("square", 1..=5, |n| arithmetic("square it", n.to_string()));
    let sum = graph.join(arithmetic("add them up", String::new()), &squares);
    graph.submit(&client.tasks()).await?;

    let done = client.tasks().wait(sum.id(), Duration::from_secs(30)).await?;
    println!("1 + 4 + 9 + 16 + 25 = {}", String::from_utf8_lossy(&done.result));

    drop(stop);
    println!("{:?}", working.await??);
    Ok(())
}
