//! How long does one client, writing every 10 ms, wait when the leader is killed?

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hdrhistogram::Histogram;
use quorate_jepsen::{LocalCluster, Probe};

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How often the leader is killed
    #[arg(long, default_value_t = 20)]
    kills: u64,
}

/// Kills, waits for the next acknowledged write, restarts; prints the gaps.
pub(crate) async fn run(args: Args) -> Result<()> {
    ensure!(args.kills > 0, "--kills must be at least 1");
    let mut cluster = LocalCluster::builder().start().await?;
    let probe = Probe::start(cluster.client()?).await?;
    let mut gaps_ms = Histogram::<u64>::new(3)?;
    for kill in 1..=args.kills {
        let leader = cluster.leader().await?;
        let moment = Instant::now();
        cluster.kill(leader)?;
        probe.wait_ack_after(moment, Duration::from_secs(60)).await?;
        let gap = probe.longest_gap_since(moment);
        gaps_ms.saturating_record(u64::try_from(gap.as_millis())?);
        crate::print(&format!("kill {kill}: node {leader}, gap {} ms", gap.as_millis()))?;
        cluster.restart(leader).await?;
        // The returned node must be caught up, or the next kill would measure that instead.
        let caught_up = || async { Ok(within_reach(&cluster).await?.then_some(())) };
        quorate_jepsen::until::until("the returned node has caught up", Duration::from_secs(60), caught_up).await?;
    }
    let failed = probe.stop().await?.len();
    let (p50, p99) = (gaps_ms.value_at_quantile(0.5), gaps_ms.value_at_quantile(0.99));
    crate::print(&format!("gap p50 {p50} ms, p99 {p99} ms, max {} ms; failed calls {failed}", gaps_ms.max()))?;
    cluster.close()
}

/// The probe writes on, so equality is a matter of luck: a few entries apart is caught up.
async fn within_reach(cluster: &LocalCluster) -> Result<bool> {
    let mut applied = Vec::new();
    for id in cluster.running() {
        applied.push(cluster.status(id).await?.applied_index);
    }
    let (least, most) = (applied.iter().min(), applied.iter().max());
    Ok(least.zip(most).is_some_and(|(least, most)| most - least < 20))
}
