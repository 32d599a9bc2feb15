//! Do living sessions cost the log anything? They must not: exit 1 if its last index moves.

use std::time::Duration;

use anyhow::{Result, ensure};
use futures::stream::{self, StreamExt, TryStreamExt};
use quorate_jepsen::LocalCluster;

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Sessions to keep alive
    #[arg(long, default_value_t = 10_000)]
    sessions: u64,
    /// For how long
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Their TTL; each is renewed three times within it
    #[arg(long, default_value_t = 15_000)]
    ttl_ms: u64,
}

/// Opens the sessions, watches the log, prints before and after.
pub(crate) async fn run(args: Args) -> Result<()> {
    let cluster = LocalCluster::builder().start().await?;
    let client = cluster.client()?;
    let ttl = Duration::from_millis(args.ttl_ms);
    let sessions: Vec<_> = stream::iter(0..args.sessions)
        .map(|_| {
            let client = client.clone();
            async move { client.sessions().open(ttl).await }
        })
        .buffer_unordered(256)
        .try_collect()
        .await?;
    cluster.wait_converged(Duration::from_secs(30)).await?;
    let leader = cluster.leader().await?;
    let before = cluster.status(leader).await?;
    crate::print(&format!("{} sessions open, last log index {}", before.sessions, before.last_log_index))?;
    tokio::time::sleep(Duration::from_secs(args.seconds)).await;
    let after = cluster.status(leader).await?;
    let alive = sessions.iter().filter(|session| session.is_alive()).count();
    crate::print(&format!("after {} s: {alive} alive, last log index {}", args.seconds, after.last_log_index))?;
    ensure!(before.term == after.term, "the term changed: the comparison says nothing");
    ensure!(before.last_log_index == after.last_log_index, "the log grew");
    ensure!(alive == sessions.len() && after.sessions == args.sessions, "sessions were lost");
    cluster.close()
}
