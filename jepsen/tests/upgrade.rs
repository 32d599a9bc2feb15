//! One node after another is upgraded under writes, one is taken back and upgraded again, then the level is raised: from
//! there older nodes are refused. No call fails.
//!
//! The older version is `QUORATE_OLD_BIN`; without it, this one that behaves as its predecessor (`--pretend-level 1`).

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use quorate_client::v1::RaiseFeatureLevelRequest;
use quorate_client::v1::cluster_client::ClusterClient;
use quorate_jepsen::coordination::only;
use quorate_jepsen::until::until;
use quorate_jepsen::{LocalCluster, Steady, binary};

const LIMIT: Duration = Duration::from_secs(30);
const WRITERS: usize = 4;

/// The version before.
struct Older {
    binary: PathBuf,
    args: Vec<&'static str>,
}

impl Older {
    fn find() -> Result<Self> {
        match std::env::var_os("QUORATE_OLD_BIN") {
            Some(path) => Ok(Older { binary: path.into(), args: Vec::new() }),
            None => Ok(Older { binary: binary::quorate()?, args: vec!["--pretend-level", "1"] }),
        }
    }

    fn is_pretended(&self) -> bool {
        !self.args.is_empty()
    }

    fn install(&self, cluster: &mut LocalCluster, id: u64) -> Result<()> {
        cluster.with_binary(id, &self.binary)?;
        cluster.with_args(id, self.args.iter().copied())
    }
}

fn install_this_version(cluster: &mut LocalCluster, id: u64) -> Result<()> {
    cluster.with_binary(id, binary::quorate()?)?;
    cluster.with_args(id, Vec::<String>::new())
}

/// Stops the node as an operator does, lets `install` change it, and waits until it is ready and writes go on.
async fn exchange(
    cluster: &mut LocalCluster,
    load: &Steady,
    id: u64,
    install: impl FnOnce(&mut LocalCluster, u64) -> Result<()>,
) -> Result<()> {
    let began = Instant::now();
    cluster.terminate(id).await?;
    install(cluster, id)?;
    cluster.restart(id).await?;
    load.wait_success().await?;
    eprintln!("node {id} exchanged, longest gap {:?}", load.longest_gap_since(began));
    Ok(())
}

/// What needs the new level is refused, and the refusal says how to get there.
async fn new_commands_wait(cluster: &LocalCluster) -> Result<()> {
    let target = cluster.dir().join("backups");
    let target = target.to_str().context("an unusual path")?;
    let said = cluster.cli(&["backup", "schedule", "--to", target, "--every", "6h"]).await?.refused()?;
    ensure!(said.contains("raise-level"), "the refusal does not say what to do: {said}");
    Ok(())
}

/// The level cannot be raised over the head of a node that would not understand it.
async fn an_older_node_holds_the_level(cluster: &LocalCluster, id: u64) -> Result<()> {
    let leader = cluster.leader().await?;
    let mut stub = ClusterClient::new(only(&cluster.endpoint(leader)?)?);
    let answer = stub.raise_feature_level(RaiseFeatureLevelRequest { level: 2 }).await;
    let refused = answer.as_ref().is_err_and(|status| status.message().contains(&format!("node {id}")));
    ensure!(refused, "with node {id} of the version before, raising the level gave {answer:?}");
    Ok(())
}

async fn raise(cluster: &LocalCluster) -> Result<()> {
    let client = cluster.client()?;
    // What the leader knows of a node is up to a second old: a node that was exchanged just now may count as an older one.
    until("the level is raised", LIMIT, || async {
        let ran = cluster.cli(&["cluster", "raise-level"]).await?;
        let level = client.cluster().status().await?.feature_level;
        Ok((ran.code == 0 && level >= 2).then_some(()))
    })
    .await?;
    let target = cluster.dir().join("backups");
    let target = target.to_str().context("an unusual path")?;
    cluster.cli(&["backup", "schedule", "--to", target, "--every", "6h"]).await?.succeeded()?;
    cluster.cli(&["backup", "schedule", "--off"]).await?.succeeded()?;
    Ok(())
}

/// An older version ends by itself and says why; nothing is lost, and the new one goes on from there.
async fn an_older_node_is_refused(cluster: &mut LocalCluster, older: &Older, load: &Steady) -> Result<()> {
    let id = cluster.followers().await?.into_iter().max().context("no follower")?;
    cluster.terminate(id).await?;
    older.install(cluster, id)?;
    let mark = cluster.log_mark(id);
    cluster.start(id)?;
    let began = Instant::now();
    let status = loop {
        if let Some(status) = cluster.exited(id)? {
            break status;
        }
        ensure!(began.elapsed() < LIMIT, "an older node went on:\n{}", cluster.logs_since(id, mark));
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let said = cluster.logs_since(id, mark);
    ensure!(!status.success(), "an older node ended as if all were well: {said}");
    if older.is_pretended() {
        ensure!(said.contains("feature level 2") && said.contains("newer"), "it does not say why: {said}");
    }
    cluster.kill(id)?;
    install_this_version(cluster, id)?;
    cluster.restart(id).await?;
    load.wait_success().await
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_are_upgraded_one_by_one_and_no_call_fails() -> Result<()> {
    let older = Older::find()?;
    let mut cluster =
        LocalCluster::builder().binary(&older.binary).first_args(older.args.iter().copied()).start().await?;
    let client = cluster.client()?;
    let load = Steady::start(&client, WRITERS, "upgrade").await?;

    for id in [1, 2, 3] {
        exchange(&mut cluster, &load, id, install_this_version).await?;
    }
    new_commands_wait(&cluster).await?;
    // Until the level is raised there is a way back.
    exchange(&mut cluster, &load, 2, |cluster, id| older.install(cluster, id)).await?;
    an_older_node_holds_the_level(&cluster, 2).await?;
    exchange(&mut cluster, &load, 2, install_this_version).await?;
    raise(&cluster).await?;
    an_older_node_is_refused(&mut cluster, &older, &load).await?;

    let outcome = load.stop().await?;
    eprintln!("{}", outcome.summary());
    outcome.check_none_failed()?;
    outcome.check_kept(&client).await?;
    cluster.check_replicas_equal().await?;
    cluster.close()
}
