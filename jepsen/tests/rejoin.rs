//! A node that lost its disk comes back under load, by snapshot, and ends equal to the others.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use quorate_jepsen::until::until;
use quorate_jepsen::{Load, LocalCluster};

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
