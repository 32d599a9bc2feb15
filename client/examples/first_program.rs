//! The first program: one task, one worker, one result. Run `quorate dev` beside it.

#![allow(clippy::print_stdout)] // an example talks to its reader

use quorate_client::v1::TaskSpec;
use quorate_client::{Client, Config, Done, Worker};
use std::time::Duration;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let client = Client::connect(Config::new(["127.0.0.1:7401"]))?;

    let worker = Worker::builder(client.clone()).agent_id("greeter-1").capabilities(["greeting"]).build();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let working = tokio::spawn(async move {
        let hello = |job: quorate_client::Job| async move {
            let name = String::from_utf8_lossy(&job.task.spec.unwrap_or_default().payload).into_owned();
            Done::completed(format!("hello, {name}"))
        };
        worker.run(hello, async move { drop(stopped.await) }).await
    });

    let task =
        TaskSpec { required_capabilities: vec!["greeting".into()], payload: "world".into(), ..TaskSpec::default() };
    let submitted = client.tasks().submit_one(task).await?;
    let done = client.tasks().wait(&submitted.task_id, Duration::from_secs(30)).await?;
    println!("{}", String::from_utf8_lossy(&done.result));

    drop(stop);
    working.await??;
    Ok(())
}
