//! The leader is killed again and again under writes: how long a client waits, and that nothing acknowledged is lost.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use quorate_jepsen::rng::{Rng, seed};
use quorate_jepsen::{Load, LocalCluster, Probe, tasks};

const KILLS: usize = 5;
const LONGEST: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
async fn writes_go_on_after_each_loss_of_the_leader() -> Result<()> {
    let mut rng = Rng::new(seed());
    let mut cluster = LocalCluster::builder().start().await?;
    let client = cluster.client()?;
    let load = Load::start(&client, 4, "load", 64);
    let probe = Probe::start(cluster.client()?).await?;
    let mut gaps = Vec::new();
    for _ in 0..KILLS {
        let leader = cluster.leader().await?;
        tokio::time::sleep(rng.millis(50, 300)).await;
        let killed = Instant::now();
        cluster.kill(leader)?;
        probe.wait_ack_after(killed, Duration::from_secs(30)).await?;
        gaps.push(probe.longest_gap_since(killed));
        cluster.restart(leader).await?;
        cluster.leader().await?;
    }
    eprintln!("client gaps in ms: {:?}", gaps.iter().map(Duration::as_millis).collect::<Vec<_>>());
    probe.stop().await?;
    let written = load.stop().await?;
    ensure!(gaps.iter().all(|gap| *gap < LONGEST), "a gap was longer than {LONGEST:?}");
    ensure!(written.refused.is_empty(), "refused without reason: {:?}", written.refused);
    let present: BTreeSet<String> = tasks::all(&client).await?.into_iter().map(|task| task.id).collect();
    let lost: Vec<_> = written.acked.difference(&present).collect();
    ensure!(lost.is_empty(), "acknowledged tasks are gone: {lost:?}");
    cluster.check_replicas_equal().await?;
    cluster.close()
}
