//! What messages that wait cost a node in memory: resident bytes before they were published and after.
//!
//! The databases' buffers are in it: with few messages they are most of it.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::stream::{self, StreamExt, TryStreamExt};
use quorate_client::Bus;
use quorate_jepsen::{LocalCluster, Rng};

use super::group::subscription;
use super::request;
use crate::memory::{self, mib};
use crate::report::{Column, Form, Table, column};
use crate::rest::come_to_rest;

const SUBJECT: &str = "bench.waiting";
/// Messages a request, and requests under way.
const BATCH: u64 = 1_000;
const IN_FLIGHT: usize = 8;
/// How long the nodes may take to agree afterwards.
const LIMIT: Duration = Duration::from_secs(300);

const COLUMNS: &[Column] = &[
    column("node", "node", 0),
    column("messages", "messages", 0),
    column("empty MiB", "empty_mib", 1),
    column("full MiB", "full_mib", 1),
    column("bytes a message", "bytes_a_message", 0),
];

/// Measures on a cluster of its own, as the first thing that it does, and prints the result.
pub(super) async fn measure(waiting: u64, form: Form) -> Result<()> {
    let cluster = LocalCluster::builder().start().await?;
    let bus = cluster.client()?.bus();
    bus.subscribe(subscription(SUBJECT)).await?;
    cluster.wait_converged(LIMIT).await?;
    let before = residents(&cluster)?;
    fill(&bus, waiting).await?;
    cluster.wait_converged(LIMIT).await?;
    come_to_rest(&cluster).await;
    let stats = bus.subscription(SUBJECT).await?.info.and_then(|info| info.stats).unwrap_or_default();
    ensure!(stats.waiting == waiting, "{} messages wait instead of {waiting}", stats.waiting);

    let leader = cluster.leader().await?;
    let mut table = Table::new("bus_waiting", "resident memory with messages that nobody consumes", COLUMNS);
    for (id, after) in residents(&cluster)? {
        let before = *before.get(&id).with_context(|| format!("node {id} was not measured before"))?;
        let bytes = (after as f64 - before as f64) / waiting as f64;
        let numbers = [id as f64, waiting as f64, mib(before), mib(after), bytes];
        table.row(if id == leader { "leader" } else { "follower" }, numbers);
    }
    table.print(form)?;
    cluster.close()
}

async fn fill(bus: &Bus, waiting: u64) -> Result<()> {
    let sizes = (0..waiting.div_ceil(BATCH)).map(|n| (n, BATCH.min(waiting - n * BATCH)));
    let calls = stream::iter(sizes).map(|(n, size)| {
        let bus = bus.clone();
        async move { bus.publish_all(None, request(SUBJECT, size, &mut Rng::new(n))).await }
    });
    calls.buffer_unordered(IN_FLIGHT).map_ok(drop).try_collect::<()>().await?;
    Ok(())
}

fn residents(cluster: &LocalCluster) -> Result<BTreeMap<u64, u64>> {
    cluster.node_ids().into_iter().map(|id| Ok((id, memory::resident(cluster.pid(id)?)?))).collect()
}
