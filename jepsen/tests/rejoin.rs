//! A node that lost its disk comes back under load, by snapshot, and ends equal to the others.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use quorate_jepsen::until::until;
use quorate_jepsen::{Load, LocalCluster, http, tasks};

#[tokio::test(flavor = "multi_thread")]
async fn wiped_follower_rejoins_by_snapshot_under_load() -> Result<()> {
    let flags = ["--snapshot-every", "500", "--log-keep", "200"];
    let mut cluster = LocalCluster::builder().extra_args(flags).start().await?;
    let client = cluster.client()?;
    let load = Load::start(&client, 16, "load", 1024);

    let victim = cluster.followers().await?.into_iter().max().context("no follower")?;
    cluster.kill(victim)?;
    cluster.wipe(victim)?;
    let purged = until("the log is purged on every running node", Duration::from_secs(120), || async {
        let mut lowest = u64::MAX;
        for id in cluster.running() {
            lowest = lowest.min(cluster.status(id).await?.purged_index);
        }
        Ok((lowest > 0).then_some(lowest))
    })
    .await?;
    cluster.restart(victim).await?;
    eprintln!("node {victim} is ready again; the others had purged up to {purged} when it came");

    let written = load.stop().await?;
    ensure!(
        written.refused.is_empty() && written.unanswered.is_empty(),
        "{:?} {:?}",
        written.refused,
        written.unanswered
    );
    cluster.check_replicas_equal().await?;
    let status = cluster.status(victim).await?;
    ensure!(
        status.snapshot_index >= purged,
        "node {victim} has a snapshot at {} although the log began after {purged}",
        status.snapshot_index
    );
    cluster.close()
}

/// It has forgotten which votes it gave, so it must hear from every member that could know of a newer leader.
#[tokio::test(flavor = "multi_thread")]
async fn wiped_follower_waits_until_it_has_heard_from_the_others() -> Result<()> {
    let mut cluster = LocalCluster::builder().start().await?;
    let client = cluster.client()?;
    client.tasks().submit_one(tasks::spec("before", "nobody")).await?;
    let mut followers = cluster.followers().await?;
    let (victim, away) = (followers.pop().context("no follower")?, followers.pop().context("only one follower")?);
    cluster.kill(victim)?;
    cluster.wipe(victim)?;
    cluster.kill(away)?;
    cluster.start(victim)?;
    let health = cluster.http(victim)?;
    until("the wiped node is up", Duration::from_secs(20), || async {
        Ok(http::get(&health, "/health/live").await.is_ok().then_some(()))
    })
    .await?;
    // The leader keeps trying to replicate to it all the while; one round of its patience is enough to see it refuse.
    let ready = until("the wiped node follows a leader", Duration::from_secs(4), || async {
        Ok(http::get(&health, "/health/ready").await.is_ok_and(|(code, _)| code == 200).then_some(()))
    })
    .await;
    ensure!(ready.is_err(), "it followed a leader although the third member was not heard");

    cluster.restart(away).await?;
    cluster.wait_ready(victim).await?;
    let found = client.tasks().get("before").await?.task.context("the task from before is gone")?;
    ensure!(found.id == "before", "another task");
    cluster.check_replicas_equal().await?;
    cluster.close()
}
