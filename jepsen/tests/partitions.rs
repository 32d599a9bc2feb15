//! The network between real nodes is cut: a leader without the others acknowledges nothing and knows nothing, whoever
//! still reaches a majority goes on, and afterwards all are equal again.
//!
//! Needs Linux: see [`quorate_jepsen::links`].

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::future::join_all;
use quorate_client::{Client, Config, Error};
use quorate_jepsen::load::Written;
use quorate_jepsen::until::until;
use quorate_jepsen::{Load, LocalCluster, Probe, http, tasks};

const LIMIT: Duration = Duration::from_secs(30);
/// A cluster that is whole again serves within this.
const HEALED: Duration = Duration::from_secs(10);
/// A cut lasts so long: several elections could be held, and won by whoever must not.
const CUT: Duration = Duration::from_millis(1_500);
/// Writes and reads that are tried at once at the isolated node.
const TRIES: usize = 4;

/// A client of the given nodes that gives up soon.
fn hasty(endpoints: Vec<String>) -> Result<Client> {
    let mut config = Config::new(endpoints);
    config.call_timeout = Duration::from_secs(3);
    config.attempt_timeout = Duration::from_secs(2);
    Ok(Client::connect(config)?)
}

/// Writes and linearizable reads at a node without a majority, all at once. None may be answered: not even with "there is
/// no such task", which would be a stale read. Gives the ids that were tried.
async fn ask_in_vain(alone: &Client, prefix: &str) -> Result<Vec<String>> {
    let ids: Vec<String> = (0..TRIES).map(|n| format!("{prefix}-{n}")).collect();
    let writes = join_all(ids.iter().map(|id| {
        let spec = tasks::spec(id, "nobody");
        async move { alone.tasks().submit_one(spec).await }
    }));
    let reads = join_all(["before", "meanwhile"].repeat(TRIES / 2).into_iter().map(|id| async move {
        let read = alone.tasks().get(id).await;
        (id, read)
    }));
    let (writes, reads) = tokio::join!(writes, reads);
    for (id, write) in ids.iter().zip(writes) {
        let is_open = matches!(write, Err(Error::Unavailable { .. } | Error::OutcomeUnknown { .. }));
        ensure!(is_open, "without a majority, writing {id} gave {write:?}");
    }
    for (id, read) in reads {
        ensure!(matches!(read, Err(Error::Unavailable { .. })), "without a majority, reading {id} gave {read:?}");
    }
    Ok(ids)
}

/// Nothing acknowledged is missing, and nothing is there that nobody wrote.
async fn check_written(client: &Client, written: &Written, others: &[String]) -> Result<()> {
    ensure!(written.refused.is_empty(), "refused: {:?}", written.refused);
    let present: BTreeSet<String> = tasks::all(client).await?.into_iter().map(|task| task.id).collect();
    let lost: Vec<_> = written.acked.difference(&present).collect();
    ensure!(lost.is_empty(), "{} acknowledged tasks are gone: {lost:?}", lost.len());
    let invented: Vec<_> = present.difference(&written.attempted).filter(|id| !others.contains(id)).collect();
    ensure!(invented.is_empty(), "{} tasks that nobody sent: {invented:?}", invented.len());
    eprintln!("{} acknowledged, {} present", written.acked.len(), present.len());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_isolated_leader_acknowledges_nothing_and_ends_equal() -> Result<()> {
    let mut cluster = LocalCluster::builder().with_links().start().await?;
    let client = cluster.client()?;
    client.tasks().submit_one(tasks::spec("before", "nobody")).await?;
    let load = Load::start(&client, 8, "load", 64);
    let old = cluster.leader().await?;
    let alone = hasty(vec![cluster.endpoint(old)?])?;
    let others = cluster.followers().await?.into_iter().map(|id| cluster.endpoint(id)).collect::<Result<Vec<_>>>()?;
    let majority = Client::connect(Config::new(others))?;

    cluster.links()?.isolate(old);
    let cut = Instant::now();
    // At once, while it still believes that it leads.
    let mut tried = ask_in_vain(&alone, "at-once").await?;
    let new = until("another node leads", LIMIT, || async { Ok(cluster.leader_except(old).await) }).await?;
    majority.tasks().submit_one(tasks::spec("meanwhile", "nobody")).await.context("the majority did not go on")?;
    eprintln!("node {old} isolated; node {new} leads and writes after {} ms at most", cut.elapsed().as_millis());
    tried.extend(ask_in_vain(&alone, "later").await?);

    let healed = Instant::now();
    cluster.links()?.heal();
    let found = until("the isolated node reads what was written meanwhile", LIMIT, || async {
        match alone.tasks().get("meanwhile").await {
            Ok(found) => Ok(Some(found)),
            Err(Error::Unavailable { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    })
    .await?;
    ensure!(found.task.is_some_and(|task| task.id == "meanwhile"), "another task");
    eprintln!("node {old} serves again after {} ms", healed.elapsed().as_millis());
    cluster.wait_all_ready().await?;

    let written = load.stop().await?;
    cluster.check_replicas_equal().await?;
    tried.extend(["before".to_owned(), "meanwhile".to_owned()]);
    check_written(&client, &written, &tried).await?;
    cluster.close()
}

/// What is cut. In each of these some node can lead that a majority hears.
#[derive(Clone, Copy, Debug)]
enum Shape {
    /// The leader reaches nobody, but hears everybody.
    MuteLeader,
    MuteFollower,
    /// The leader does not reach one of its followers.
    LeaderToFollower,
    FollowerToLeader,
    /// Each node reaches only the next one.
    Ring,
    /// The followers do not see each other.
    BridgeOverLeader,
    /// The leader and one follower do not see each other.
    BridgeOverFollower,
    /// The leader on one side, the followers on the other.
    LeaderAside,
}

const SHAPES: [Shape; 8] = [
    Shape::MuteLeader,
    Shape::MuteFollower,
    Shape::LeaderToFollower,
    Shape::FollowerToLeader,
    Shape::Ring,
    Shape::BridgeOverLeader,
    Shape::BridgeOverFollower,
    Shape::LeaderAside,
];

async fn cut(cluster: &LocalCluster, shape: Shape) -> Result<()> {
    let leader = cluster.leader().await?;
    let follower = cluster.node_ids().into_iter().find(|id| *id != leader).context("no follower")?;
    let links = cluster.links()?;
    match shape {
        Shape::MuteLeader => links.one_way(leader),
        Shape::MuteFollower => links.one_way(follower),
        Shape::LeaderToFollower => links.cut(leader, follower),
        Shape::FollowerToLeader => links.cut(follower, leader),
        Shape::Ring => links.ring(),
        Shape::BridgeOverLeader => links.bridge(leader),
        Shape::BridgeOverFollower => links.bridge(follower),
        Shape::LeaderAside => links.halves(&[leader]),
    }
    Ok(())
}

/// All are ready, and a write that began after `healed` is acknowledged, in time.
async fn serves_again(cluster: &mut LocalCluster, probe: &Probe, healed: Instant) -> Result<()> {
    probe.wait_ack_after(healed, HEALED).await?;
    cluster.wait_all_ready().await?;
    let took = healed.elapsed();
    ensure!(took <= HEALED, "it took {} ms to serve again", took.as_millis());
    eprintln!("  whole again after {} ms", took.as_millis());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_reaches_a_majority_goes_on_and_a_healed_cluster_serves_again() -> Result<()> {
    let mut cluster = LocalCluster::builder().with_links().start().await?;
    let mut config = Config::new(cluster.endpoints());
    config.attempt_timeout = Duration::from_secs(1);
    let probe = Probe::start(Client::connect(config)?).await?;
    for shape in SHAPES {
        cut(&cluster, shape).await.with_context(|| format!("{shape:?}"))?;
        let began = Instant::now();
        while began.elapsed() < CUT {
            probe.wait_ack_after(Instant::now(), LIMIT).await.with_context(|| format!("nobody goes on: {shape:?}"))?;
        }
        eprintln!("{shape:?}: at most {} ms between two writes", probe.longest_gap_since(began).as_millis());
        cluster.links()?.heal();
        let healed = Instant::now();
        serves_again(&mut cluster, &probe, healed).await.with_context(|| format!("{shape:?}"))?;
    }

    // Nobody reaches anybody: nobody serves, and everybody comes back.
    for id in cluster.node_ids() {
        cluster.links()?.isolate(id);
    }
    for id in cluster.node_ids() {
        let health = cluster.http(id)?;
        until("a node on its own says that it is not ready", LIMIT, || async {
            Ok((http::get(&health, "/health/ready").await?.0 == 503).then_some(()))
        })
        .await?;
    }
    let refused = hasty(cluster.endpoints())?.tasks().submit_one(tasks::spec("apart", "nobody")).await;
    let is_open = matches!(refused, Err(Error::Unavailable { .. } | Error::OutcomeUnknown { .. }));
    ensure!(is_open, "a write without a majority gave {refused:?}");
    cluster.links()?.heal();
    let healed = Instant::now();
    serves_again(&mut cluster, &probe, healed).await?;
    probe.stop().await?;
    cluster.check_replicas_equal().await?;
    cluster.close()
}
