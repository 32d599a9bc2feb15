//! A leader cut off from the others while they elect another: what it knew is over when it comes back.
//!
//! The leader is frozen, which to the others is the same as a partition, and then let go with everything it believed.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use quorate_client::{Client, Config};
use quorate_jepsen::until::until;
use quorate_jepsen::{LocalCluster, tasks};
use rustix::process::{Pid, Signal, kill_process};

const LIMIT: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_was_cut_off_serves_nothing_stale_and_ends_equal() -> Result<()> {
    let cluster = LocalCluster::builder().start().await?;
    cluster.client()?.tasks().submit_one(tasks::spec("before", "nobody")).await?;
    let old = cluster.leader().await?;
    let process = Pid::from_raw(cluster.pid(old)?.cast_signed()).context("no process")?;
    let others = cluster.followers().await?.into_iter().map(|id| cluster.endpoint(id)).collect::<Result<Vec<_>>>()?;

    kill_process(process, Signal::STOP)?;
    let majority = Client::connect(Config::new(others))?;
    let written = majority.tasks().submit_one(tasks::spec("meanwhile", "nobody")).await;
    kill_process(process, Signal::CONT)?;
    ensure!(written.is_ok(), "the majority did not go on: {written:?}");

    // Asked at once, while it may still believe that it leads.
    let returned = Client::connect(Config::new([cluster.endpoint(old)?]))?;
    let found = returned.tasks().get("meanwhile").await.context("a stale read: it does not know what was written")?;
    ensure!(found.task.is_some_and(|task| task.id == "meanwhile"), "another task");
    until("another node leads", LIMIT, || async { Ok(cluster.leader_except(old).await) }).await?;
    cluster.check_replicas_equal().await?;
    cluster.close()
}
