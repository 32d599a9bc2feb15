//! One node that somebody tried things on becomes a cluster of three, with everything that was in it.

use anyhow::{Context, Result, ensure};
use quorate_client::Client;
use quorate_client::v1::{BusMessage, SubscriptionSpec};
use quorate_jepsen::coordination::backlog;
use quorate_jepsen::{DevNode, LocalCluster, gaps, tasks};

const TASKS: usize = 50;
const DOCUMENTS: usize = 20;
const MESSAGES: usize = 30;
const QUEUE: &str = "letters";

async fn furnish(client: &Client) -> Result<()> {
    let specs = (0..TASKS).map(|n| tasks::spec(format!("task-{n}"), "nobody"));
    client.tasks().submit(specs.collect()).await?;
    for n in 0..DOCUMENTS {
        client.kv().put(format!("plans/{n}"), format!("plan {n}")).send().await?;
    }
    let spec = SubscriptionSpec { name: QUEUE.into(), patterns: vec![QUEUE.into()], ..Default::default() };
    client.bus().subscribe(spec).await?;
    for n in 0..MESSAGES {
        let message = BusMessage { id: format!("letter-{n}"), subject: QUEUE.into(), ..Default::default() };
        client.bus().publish(None, message).await?;
    }
    Ok(())
}

async fn is_furnished(client: &Client) -> Result<()> {
    gaps::check_kept(client, &(0..TASKS).map(|n| format!("task-{n}")).collect()).await?;
    for n in 0..DOCUMENTS {
        let entry = client.kv().get(&format!("plans/{n}")).await?.with_context(|| format!("plan {n} is gone"))?;
        ensure!(entry.value == format!("plan {n}").as_bytes() && entry.version == 1, "plan {n} is {entry:?}");
    }
    let letters = backlog(client, QUEUE).await?;
    ensure!(letters == MESSAGES as u64, "{letters} of {MESSAGES} letters are there");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_tried_out_becomes_a_cluster_of_three() -> Result<()> {
    let mut cluster = LocalCluster::builder().nodes(0).cluster_id("grown-up").start().await?;
    cluster.reserve(1)?;
    let (dir, address) = (cluster.data_dir(1)?.display().to_string(), cluster.endpoint(1)?);
    let adopt = ["cluster", "adopt", "--data-dir", &dir, "--cluster-id", "grown-up", "--advertise", &address];

    let dev = DevNode::start(cluster.dir(), Some(cluster.data_dir(1)?)).await?;
    furnish(&dev.client()?).await?;
    let said = cluster.cli(&adopt).await?.refused().context("of a node that runs")?;
    ensure!(said.contains("in use"), "refused for another reason: {said}");
    // kill -9: what was acknowledged is in its log, and maybe nowhere else.
    drop(dev);

    // Safe to repeat.
    for _ in 0..2 {
        cluster.cli(&adopt).await?.succeeded()?;
    }
    cluster.add_process(1).await?;
    cluster.wait_ready(1).await?;
    is_furnished(&cluster.client()?).await.context("alone")?;
    for id in [2, 3] {
        cluster.add_process(id).await?;
        cluster.cli(&["cluster", "add", &cluster.member(id)?]).await?.succeeded()?;
        cluster.wait_ready(id).await?;
    }
    cluster.check_replicas_equal().await?;

    // The one that it all began with is not needed any more.
    let client = cluster.client()?;
    cluster.kill(1)?;
    is_furnished(&client).await.context("without the first node")?;
    cluster.restart(1).await?;
    cluster.check_replicas_equal().await?;
    cluster.close()
}
