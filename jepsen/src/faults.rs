//! Faults that more than one test wants.
//!
//! Deliberately absent: when they come. Tests say that, by a seed or by how far the work is.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::cluster::LocalCluster;
use crate::until::until;

/// How long an election may take on a busy machine before it counts as broken.
const LIMIT: Duration = Duration::from_secs(30);

/// Kills the leader with SIGKILL, waits until another node leads, and starts the killed one again. Gives the moment of
/// the kill.
pub async fn replace_leader(cluster: &mut LocalCluster) -> Result<Instant> {
    let old = cluster.leader().await?;
    let killed = Instant::now();
    cluster.kill(old)?;
    let rest: &LocalCluster = cluster;
    let new = until("another node leads", LIMIT, || async { Ok(rest.leader_except(old).await) }).await?;
    eprintln!("leader {old} killed, node {new} leads after {} ms", killed.elapsed().as_millis());
    cluster.restart(old).await?;
    Ok(killed)
}

/// Waits until no session is left: crashed workers are missed by then, and an idle cluster writes nothing.
pub async fn sessions_end(cluster: &LocalCluster, limit: Duration) -> Result<()> {
    until("every session has ended", limit, || async {
        // Without a leader to ask, or with one that changes just then, there is nothing to see yet.
        let Some(leader) = cluster.leader_now().await else { return Ok(None) };
        Ok(cluster.status(leader).await.ok().filter(|status| status.sessions == 0).map(|_| ()))
    })
    .await
}
