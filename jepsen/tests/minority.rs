//! A node without a majority: alive, not ready, refuses what it cannot promise, and says that nothing happened.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use quorate_client::v1::{Consistency, ListTasksRequest};
use quorate_client::{Client, Config, Error};
use quorate_jepsen::until::until;
use quorate_jepsen::{LocalCluster, http, tasks};

const LIMIT: Duration = Duration::from_secs(20);

/// A client of one node, that gives up soon.
fn hasty(endpoint: String) -> Result<Client> {
    let mut config = Config::new([endpoint]);
    config.call_timeout = Duration::from_secs(3);
    config.attempt_timeout = Duration::from_secs(2);
    Ok(Client::connect(config)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_a_majority_refuses_and_recovers() -> Result<()> {
    let mut cluster = LocalCluster::builder().start().await?;
    let client = cluster.client()?;
    client.tasks().submit_one(tasks::spec("before", "nobody")).await?;
    cluster.wait_converged(LIMIT).await?;

    // The leader stays: it must notice by itself that nobody follows any more.
    let left = cluster.leader().await?;
    for id in cluster.followers().await? {
        cluster.kill(id)?;
    }
    let (endpoint, health) = (cluster.endpoint(left)?, cluster.http(left)?);
    until("the lone node says that it is not ready", LIMIT, || async {
        Ok((http::get(&health, "/health/ready").await?.0 == 503).then_some(()))
    })
    .await?;
    ensure!(http::get(&health, "/health/live").await?.0 == 200, "it is alive all the same");

    let alone = hasty(endpoint)?;
    let read = alone.tasks().get("before").await;
    ensure!(matches!(read, Err(Error::Unavailable { .. })), "a linearizable read gave {read:?}");
    let request = ListTasksRequest { consistency: Consistency::Stale as i32, ..Default::default() };
    let stale = alone.tasks().list(request).await?;
    ensure!(stale.tasks.len() == 1, "a stale read shows what the node has; got {}", stale.tasks.len());
    let written = alone.tasks().submit_one(tasks::spec("alone", "nobody")).await;
    let refused = matches!(written, Err(Error::Unavailable { .. } | Error::OutcomeUnknown { .. }));
    ensure!(refused, "a write without a majority gave {written:?}");

    cluster.start_all().await?;
    let task = client.tasks().get("before").await?.task.context("the task from before is gone")?;
    ensure!(task.id == "before", "another task");
    cluster.check_replicas_equal().await?;
    cluster.close()
}
