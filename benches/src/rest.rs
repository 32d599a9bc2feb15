//! Servers at rest: what a load left to do in the background, such as compaction, is not what is measured next.

use std::time::Duration;

use anyhow::Result;
use quorate_jepsen::LocalCluster;
use quorate_jepsen::until::until;

use crate::cpu;

/// They rest when together they used less CPU than this in a second.
const QUIET: Duration = Duration::from_millis(200);
const LIMIT: Duration = Duration::from_secs(120);

/// Waits for it. Says so on stderr if they do not rest: what follows is to be read with that in mind.
pub(crate) async fn come_to_rest(cluster: &LocalCluster) {
    let quiet = || async {
        let before = used(cluster)?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        Ok((used(cluster)?.saturating_sub(before) < QUIET).then_some(()))
    };
    if let Err(error) = until("the servers have come to rest", LIMIT, quiet).await {
        eprintln!("{error:#}; measuring nevertheless");
    }
}

fn used(cluster: &LocalCluster) -> Result<Duration> {
    let pids = cluster.node_ids().into_iter().map(|id| cluster.pid(id)).collect::<Result<Vec<u32>>>()?;
    cpu::used(&pids)
}
