//! What does a long queue cost: memory for each task, the latency of a claim, the time of a restart?
//!
//! A fresh cluster for each size. The queue is filled; then one worker claims and finishes, and for each task it takes
//! one is submitted, so the queue stays as long as it was. Memory is measured before and after the filling, so the
//! databases' buffers are in it: at small sizes they are most of it.
//!
//! Deliberately absent: claims during the filling. The question is what the length costs, not the load that made it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::stream::{self, StreamExt, TryStreamExt};
use quorate_client::v1::TaskSpec;
use quorate_client::{Client, Config};
use quorate_jepsen::until::until;
use quorate_jepsen::{LocalCluster, Rng, http};

use crate::agent::{self, CAPABILITY};
use crate::latency::Latency;
use crate::memory::{self, mib};
use crate::payload::payload;
use crate::rest::come_to_rest;

const PAYLOAD_BYTES: usize = 256;
/// Tasks a request, and requests under way, while filling.
const BATCH: u64 = 1_000;
const IN_FLIGHT: usize = 8;
/// Claims made before those that count: they fill caches that any size has.
const WARM_UP: u64 = 100;
/// How long converging or a restart may take with a long queue.
const LIMIT: Duration = Duration::from_secs(300);

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Tasks in the queue, one measurement each
    #[arg(long, value_delimiter = ',', default_values_t = [1_000_u64, 100_000, 1_000_000])]
    sizes: Vec<u64>,
    /// Tasks claimed and finished one by one at each size
    #[arg(long, default_value_t = 2_000)]
    claims: u64,
    /// Nodes of the cluster: 1 or 3
    #[arg(long, default_value_t = 3)]
    nodes: u64,
    /// Also stop a follower (or the only node) and time its start until it is ready
    #[arg(long)]
    restart: bool,
}

/// One size's result.
struct Row {
    size: u64,
    filled: Duration,
    claims: Latency,
    nodes: Vec<NodeMemory>,
    restart: Option<Restart>,
}

/// Resident bytes of one node, before the queue was filled and after.
struct NodeMemory {
    id: u64,
    leads: bool,
    before: u64,
    after: u64,
}

/// One node's return with the queue on its disk.
struct Restart {
    id: u64,
    took: Duration,
    resident: u64,
}

/// Measures each size on a cluster of its own and prints the result.
pub(crate) async fn run(args: Args) -> Result<()> {
    ensure!(matches!(args.nodes, 1 | 3), "--nodes must be 1 or 3; got {}", args.nodes);
    ensure!(args.claims > 0 && !args.sizes.contains(&0), "--claims and each of --sizes must be at least 1");
    let mut rows = Vec::new();
    for size in &args.sizes {
        rows.push(measure(&args, *size).await.with_context(|| format!("with {size} tasks"))?);
    }
    costs(&rows)?;
    memories(&rows)
}

async fn measure(args: &Args, size: u64) -> Result<Row> {
    let mut cluster = LocalCluster::builder().nodes(args.nodes).start().await?;
    let client = cluster.client()?;
    cluster.wait_converged(LIMIT).await?;
    let before = residents(&cluster)?;
    let filled = fill(&client, size).await?;
    cluster.wait_converged(LIMIT).await?;
    come_to_rest(&cluster).await;
    let nodes = compare(&cluster, &before).await?;
    let claims = claim(&client, size, args.claims).await?;
    let restart = if args.restart { Some(restart(&mut cluster, size).await?) } else { None };
    cluster.close()?;
    Ok(Row { size, filled, claims, nodes, restart })
}

fn residents(cluster: &LocalCluster) -> Result<BTreeMap<u64, u64>> {
    cluster.node_ids().into_iter().map(|id| Ok((id, memory::resident(cluster.pid(id)?)?))).collect()
}

async fn compare(cluster: &LocalCluster, before: &BTreeMap<u64, u64>) -> Result<Vec<NodeMemory>> {
    let leader = cluster.leader().await?;
    let mut nodes = Vec::new();
    for (id, after) in residents(cluster)? {
        let before = *before.get(&id).with_context(|| format!("node {id} was not measured before"))?;
        nodes.push(NodeMemory { id, leads: id == leader, before, after });
    }
    Ok(nodes)
}

/// Submits `size` tasks; says on stderr how far it is.
async fn fill(client: &Client, size: u64) -> Result<Duration> {
    let started = Instant::now();
    let requests = (0..size.div_ceil(BATCH)).map(|n| n * BATCH..size.min((n + 1) * BATCH));
    let mut answers = stream::iter(requests)
        .map(|numbers| {
            let client = client.clone();
            async move { client.tasks().submit(numbers.map(task).collect()).await }
        })
        .buffer_unordered(IN_FLIGHT);
    let (mut filled, mut told) = (0_u64, 0_u64);
    while let Some(answer) = answers.try_next().await? {
        filled += answer.tasks.len() as u64;
        let tenths = filled * 10 / size;
        if tenths > told {
            told = tenths;
            eprintln!("{filled} of {size} tasks submitted after {:.1} s", started.elapsed().as_secs_f64());
        }
    }
    Ok(started.elapsed())
}

fn task(number: u64) -> TaskSpec {
    TaskSpec {
        title: "bench".into(),
        required_capabilities: vec![CAPABILITY.into()],
        payload: payload(PAYLOAD_BYTES, &mut Rng::new(number)).into(),
        ..Default::default()
    }
}

/// Claims and finishes one by one, and puts a new task at the end of the queue for each.
async fn claim(client: &Client, size: u64, claims: u64) -> Result<Latency> {
    let (session, agent) = agent::open(client, "claimer".into()).await?;
    let mut latency = Latency::new()?;
    for n in 0..WARM_UP + claims {
        let began = Instant::now();
        let answer = client.tasks().claim(&session, &agent, 1, Duration::from_secs(10)).await?;
        let took = began.elapsed();
        client.tasks().finish(Some(&session), agent::completed(answer)?).await?;
        client.tasks().submit_one(task(size + n)).await?;
        if n >= WARM_UP {
            latency.record(took);
        }
    }
    let ready = client.tasks().stats().await?.ready;
    ensure!(ready == size, "{ready} tasks are ready after the claims instead of {size}");
    session.close().await?;
    Ok(latency)
}

/// Stops one node with SIGTERM and times its start. Only then is it asked, itself, whether all tasks are there.
async fn restart(cluster: &mut LocalCluster, size: u64) -> Result<Restart> {
    let id = match cluster.followers().await?.first() {
        Some(follower) => *follower,
        None => cluster.leader().await?,
    };
    cluster.terminate(id).await?;
    let started = Instant::now();
    cluster.start(id)?;
    let (pid, address) = (cluster.pid(id)?, cluster.http(id)?);
    let ready = || async {
        // A process that has ended has no memory: better to hear of it now than after the limit.
        memory::resident(pid)?;
        let answer = http::get(&address, "/health/ready").await;
        Ok(matches!(answer, Ok((200, _))).then_some(()))
    };
    let waited = until("the restarted node is ready", LIMIT, ready).await;
    let took = started.elapsed();
    waited.with_context(|| cluster.logs_tail(id).unwrap_or_default())?;
    let ready = Client::connect(Config::new([cluster.endpoint(id)?]))?.tasks().stats().await?.ready;
    ensure!(ready == size, "node {id} came back with {ready} ready tasks instead of {size}");
    Ok(Restart { id, took, resident: memory::resident(pid)? })
}

impl NodeMemory {
    /// Negative if the node has less in memory than before.
    fn bytes_a_task(&self, size: u64) -> f64 {
        (self.after as f64 - self.before as f64) / size as f64
    }
}

fn costs(rows: &[Row]) -> Result<()> {
    let Some(first) = rows.first() else { return Ok(()) };
    crate::print("claim latency in ms; ratio: p99 against the first size")?;
    crate::print(&format!(
        "{:>10} {:>9} {:>9} {:>7} {:>9} {:>9} {:>9} {:>9} {:>10}",
        "queued", "fill s", "tasks/s", "claims", "p50", "p99", "max", "ratio", "restart s"
    ))?;
    for row in rows {
        let restart = row.restart.as_ref().map_or("-".to_owned(), |one| format!("{:.2}", one.took.as_secs_f64()));
        crate::print(&format!(
            "{:>10} {:>9.1} {:>9.0} {:>7} {:>9.2} {:>9.2} {:>9.2} {:>9.2} {:>10}",
            row.size,
            row.filled.as_secs_f64(),
            row.size as f64 / row.filled.as_secs_f64(),
            row.claims.count(),
            row.claims.ms(0.5),
            row.claims.ms(0.99),
            row.claims.max_ms(),
            row.claims.ms(0.99) / first.claims.ms(0.99),
            restart
        ))?;
    }
    Ok(())
}

fn memories(rows: &[Row]) -> Result<()> {
    crate::print("resident memory in MiB; bytes a task: the difference between empty and full by the tasks queued")?;
    crate::print(&format!(
        "{:>10} {:>5} {:>9} {:>9} {:>9} {:>13} {:>13}",
        "queued", "node", "role", "empty", "full", "bytes a task", "restarted"
    ))?;
    for row in rows {
        for node in &row.nodes {
            let restarted = row.restart.as_ref().filter(|one| one.id == node.id);
            crate::print(&format!(
                "{:>10} {:>5} {:>9} {:>9.1} {:>9.1} {:>13.0} {:>13}",
                row.size,
                node.id,
                if node.leads { "leader" } else { "follower" },
                mib(node.before),
                mib(node.after),
                node.bytes_a_task(row.size),
                restarted.map_or("-".to_owned(), |one| format!("{:.1}", mib(one.resident)))
            ))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_shared_out_among_the_tasks() {
        let node = |before, after| NodeMemory { id: 1, leads: true, before, after };
        assert!((node(1_000, 5_000).bytes_a_task(10) - 400.0).abs() < 0.01);
        assert!((node(5_000, 1_000).bytes_a_task(10) + 400.0).abs() < 0.01);
    }
}
