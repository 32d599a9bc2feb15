//! Blobs on three real nodes: any node takes and gives them, a majority has them before they are acknowledged, and the
//! log carries no more than the reference.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use quorate_client::{Client, Config, Error};
use quorate_jepsen::rng::{Rng, seed};
use quorate_jepsen::{LocalCluster, tasks};
use quorate_proto::v1::bus_client::BusClient;
use quorate_proto::v1::sessions_client::SessionsClient;
use quorate_proto::v1::*;

const LIMIT: Duration = Duration::from_secs(30);
const SIZE: usize = 5_000_000;
const CHUNKS: usize = 5;
/// What the logs may grow by, whatever the size of a blob.
const LOG_GROWTH: u64 = 64 << 10;

/// Content that does not compress.
fn content() -> Vec<u8> {
    let mut rng = Rng::new(seed());
    std::iter::repeat_with(|| rng.next_u64().to_le_bytes()).flatten().take(SIZE).collect()
}

/// A client that talks to one node.
fn client_of(cluster: &LocalCluster, id: u64) -> Result<Client> {
    Ok(Client::connect(Config::new([cluster.endpoint(id)?]))?)
}

async fn check_on(cluster: &LocalCluster, id: u64, blob: &BlobRef, content: &[u8]) -> Result<()> {
    let got = client_of(cluster, id)?.blobs().get(blob).await.with_context(|| format!("node {id}"))?;
    ensure!(got == content, "node {id} gave {} other bytes", got.len());
    Ok(())
}

/// The length of a node's log as it was written, compacted or not.
fn log_bytes(cluster: &LocalCluster, id: u64) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(cluster.dir().join(format!("node-{id}/log")))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            bytes += std::fs::metadata(path)?.len();
        }
    }
    Ok(bytes)
}

/// The chunks on a node's disk.
fn chunks_on(cluster: &LocalCluster, id: u64) -> Result<Vec<PathBuf>> {
    let mut chunks = Vec::new();
    for directory in std::fs::read_dir(cluster.dir().join(format!("node-{id}/blobs")))? {
        for file in std::fs::read_dir(directory?.path())? {
            let path = file?.path();
            // A name of another length is a part of one.
            if path.file_name().is_some_and(|name| name.len() == 64) {
                chunks.push(path);
            }
        }
    }
    Ok(chunks)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_put_through_a_follower_is_read_from_every_node_and_is_not_in_the_log() -> Result<()> {
    let cluster = LocalCluster::builder().start().await?;
    let follower = *cluster.followers().await?.first().context("no follower")?;
    cluster.wait_converged(LIMIT).await?;
    let before = cluster.node_ids().into_iter().map(|id| log_bytes(&cluster, id)).collect::<Result<Vec<_>>>()?;

    let content = content();
    let blob = client_of(&cluster, follower)?.blobs().put(content.clone()).await?;
    ensure!(blob.size_bytes == SIZE as u64 && blob.chunks.len() == CHUNKS, "{} chunks", blob.chunks.len());
    for id in cluster.node_ids() {
        check_on(&cluster, id, &blob, &content).await?;
    }
    let again = client_of(&cluster, cluster.leader().await?)?.blobs().put(content.clone()).await?;
    ensure!(again == blob, "the same content got another name");

    let message = BusMessage { subject: "reports.large".into(), blob: Some(blob.clone()), ..Default::default() };
    deliver(&cluster, follower, message, &content).await?;
    cluster.wait_converged(LIMIT).await?;
    for (id, before) in cluster.node_ids().into_iter().zip(before) {
        let grown = log_bytes(&cluster, id)?.saturating_sub(before);
        ensure!((1..LOG_GROWTH).contains(&grown), "node {id}'s log grew by {grown} bytes");
    }
    cluster.check_replicas_equal().await?;
    cluster.close()
}

/// Publishes through one node and consumes from the leader. The generated clients: which node is called matters here.
async fn deliver(cluster: &LocalCluster, through: u64, message: BusMessage, content: &[u8]) -> Result<()> {
    let mut bus = BusClient::connect(format!("http://{}", cluster.endpoint(through)?)).await?;
    let queue = String::from("reports");
    let unknown = BlobRef { chunks: vec![vec![7_u8; 32].into(); CHUNKS], ..message.blob.clone().unwrap_or_default() };
    let dangling = BusMessage { blob: Some(unknown), ..message.clone() };
    let refused = bus.publish(PublishRequest { messages: vec![dangling], ..Default::default() }).await;
    let code = refused.as_ref().err().map(tonic::Status::code);
    ensure!(code == Some(tonic::Code::FailedPrecondition), "a reference to nothing gave {refused:?}");

    let publish = PublishRequest { messages: vec![message], ensure_subscription: queue.clone(), ..Default::default() };
    bus.publish(publish).await?;
    let leader = cluster.leader().await?;
    let address = format!("http://{}", cluster.endpoint(leader)?);
    let mut sessions = SessionsClient::connect(address.clone()).await?;
    let open = OpenSessionRequest { ttl_ms: 30_000, ..Default::default() };
    let session_id = sessions.open(open).await?.into_inner().session.context("no session")?.id;
    let consume = ConsumeRequest { subscription: queue, session_id, ..Default::default() };
    let mut events = BusClient::connect(address).await?.consume(consume).await?.into_inner();
    let delivered = loop {
        let event = tokio::time::timeout(LIMIT, events.message()).await??.context("the stream ended")?;
        if let Some(consume_event::Event::Delivery(delivery)) = event.event {
            break delivery.message.and_then(|message| message.blob).context("a delivery without its blob")?;
        }
    };
    check_on(cluster, leader, &delivered, content).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledged_blob_survives_the_loss_of_the_node_that_took_it() -> Result<()> {
    let mut cluster = LocalCluster::builder().start().await?;
    cluster.client()?.tasks().submit_one(tasks::spec("before", "nobody")).await?;
    let content = content();
    let taker = *cluster.followers().await?.first().context("no follower")?;
    let blob = client_of(&cluster, taker)?.blobs().put(content.clone()).await?;
    cluster.kill(taker)?;
    for id in cluster.running() {
        check_on(&cluster, id, &blob, &content).await?;
    }

    // Without its disk it has nothing, and brings what it is asked for.
    cluster.wipe(taker)?;
    cluster.restart(taker).await?;
    ensure!(chunks_on(&cluster, taker)?.is_empty(), "the wiped node has chunks before anybody asked for them");
    check_on(&cluster, taker, &blob, &content).await?;
    ensure!(chunks_on(&cluster, taker)?.len() == CHUNKS, "what the wiped node read is not on its disk");
    cluster.check_replicas_equal().await?;
    cluster.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_on_one_disk_is_noticed_and_mended() -> Result<()> {
    let mut cluster = LocalCluster::builder().start().await?;
    let content = content();
    let blob = cluster.client()?.blobs().put(content.clone()).await?;
    let victim = *cluster.node_ids().first().context("no node")?;
    // Whether or not it was in the majority: once it has been asked, it has all of it.
    check_on(&cluster, victim, &blob, &content).await?;
    cluster.kill(victim)?;
    let chunks = chunks_on(&cluster, victim)?;
    ensure!(chunks.len() == CHUNKS, "{} chunks on its disk", chunks.len());
    for path in &chunks {
        let mut stored = std::fs::read(path)?;
        *stored.last_mut().context("an empty chunk")? ^= 1;
        std::fs::write(path, stored)?;
    }
    cluster.restart(victim).await?;
    check_on(&cluster, victim, &blob, &content).await?;
    // All of it is there again, in a state to be given to somebody else.
    for id in cluster.node_ids().into_iter().filter(|id| *id != victim) {
        cluster.kill(id)?;
    }
    check_on(&cluster, victim, &blob, &content).await?;
    cluster.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_a_majority_acknowledges_no_blob() -> Result<()> {
    let mut cluster = LocalCluster::builder().start().await?;
    let left = cluster.leader().await?;
    for id in cluster.followers().await? {
        cluster.kill(id)?;
    }
    let mut config = Config::new([cluster.endpoint(left)?]);
    config.call_timeout = Duration::from_secs(2);
    let put = Client::connect(config)?.blobs().put("small").await;
    let refused = matches!(put, Err(Error::Unavailable { .. } | Error::OutcomeUnknown { .. }));
    ensure!(refused, "a blob that one node of three has gave {put:?}");
    cluster.start_all().await?;
    let blob = cluster.client()?.blobs().put("small").await?;
    for id in cluster.node_ids() {
        check_on(&cluster, id, &blob, b"small").await?;
    }
    cluster.close()
}
