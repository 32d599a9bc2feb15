//! A run: workloads against a cluster while a nemesis is at it, then healing, draining and judgement.
//!
//! ```text
//! build ─▶ prepare ─▶ [ calm ─▶ strike ─▶ hold ─▶ heal ]* ─▶ calm, with load ─▶ stop ─▶ drain ─▶ compare ─▶ judge
//! ```
//!
//! A run passes if every checker says that its promise held, everything could be drained, every workload got an answer
//! after the last healing, no node ended by itself, and all replicas are equal. What cannot be told is not a pass.
//!
//! It leaves a folder: `history-<workload>.jsonl`, `faults.jsonl`, `summary.json`, `report.html`.
//!
//! - [`plan`]: what is to be done. [`faults`]: the nemesis at work. [`clients`]: the workloads at work.
//! - [`judge`]: checkers and cluster, and what they say together. [`ledger`]: the totals of all runs.

pub mod clients;
pub mod faults;
pub mod judge;
pub mod ledger;
pub mod plan;

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::cluster::LocalCluster;
use crate::nemesis::Needs;
use crate::rng::Rng;
use crate::wire;

use clients::Clients;
use faults::Faults;
use judge::Summary;
use plan::{Plan, Target};

/// How long the cluster has, with load, after the last fault.
const CALM_AFTER: Duration = Duration::from_secs(3);

/// Does what is planned. An error is one of the harness; what is wrong with the cluster is in the summary.
pub async fn run(plan: Plan) -> Result<Summary> {
    fs::create_dir_all(&plan.dir).with_context(|| format!("cannot create {}", plan.dir.display()))?;
    let mut cluster = match &plan.target {
        Target::Own(_) => Some(build(&plan).await.context("the cluster could not be started")?),
        Target::Endpoints(_) => None,
    };
    let endpoints = match (&cluster, &plan.target) {
        (Some(cluster), _) => cluster.endpoints(),
        (None, Target::Endpoints(endpoints)) => endpoints.clone(),
        (None, Target::Own(_)) => Vec::new(),
    };
    let began = Instant::now();
    let clients = Clients::start(&plan, endpoints, began).await?;
    let mut faults = Faults::create(&plan.dir.join("faults.jsonl"), began)?;
    let mut problems = Vec::new();
    let struck = strike(&plan, cluster.as_mut(), &mut faults, &clients).await;
    if let Err(error) = struck {
        problems.push(format!("the nemesis failed: {error:#}"));
        // What it left behind must not hide why.
        if let Some(cluster) = cluster.as_mut()
            && let Err(error) = cluster.revive().await
        {
            problems.push(format!("and the cluster did not come back: {error:#}"));
        }
    }
    let healed = began.elapsed();
    tokio::time::sleep(CALM_AFTER).await;
    let clients = clients.stop_and_drain(&mut problems).await;
    if let Some(cluster) = cluster.as_mut() {
        judge::cluster(cluster, &mut problems).await;
    }
    let summary = judge::judge(&plan, clients, &faults, healed, problems).await?;
    if let Some(cluster) = cluster {
        finish(&plan, cluster, summary.passed())?;
    }
    Ok(summary)
}

/// What the nemesis needs, and no more: namespaces and foreign disks cost time.
async fn build(plan: &Plan) -> Result<LocalCluster> {
    let needs = plan.nemesis()?.map(|nemesis| nemesis.needs()).unwrap_or_default();
    let Target::Own(own) = &plan.target else { anyhow::bail!("the cluster is somebody else's") };
    let mut builder = LocalCluster::builder().nodes(own.nodes).extra_args(own.args.iter().cloned());
    builder = match &own.binary {
        Some(binary) => builder.binary(binary),
        None => builder,
    };
    if needs.wire && wire::is_inside() {
        // The namespaces are ours: nobody else is on that network.
        builder = builder.with_wire(plan.seed).extra_args(["--insecure-i-understand"]);
    } else if needs.or_links {
        builder = builder.with_links();
    }
    builder = if needs.power { builder.with_power() } else { builder };
    builder = if needs.clock { builder.with_clocks() } else { builder };
    for (name, value) in &own.env {
        builder = builder.env(name, value);
    }
    let cluster = builder.dir(plan.dir.join("cluster")).start().await?;
    Ok(cluster)
}

/// What is missing on this machine for a nemesis with these needs. None: nothing.
pub fn missing(needs: Needs) -> Option<String> {
    let mut missing = Vec::new();
    if needs.wire && !needs.or_links && !wire::is_inside() {
        missing.push("network namespaces".to_owned());
    }
    if needs.power {
        missing.extend(crate::power::PowerDisk::permitted().err());
    }
    if needs.clock {
        missing.extend(crate::clock::WallClock::permitted().err());
    }
    (!missing.is_empty()).then(|| missing.join("; "))
}

async fn strike(plan: &Plan, cluster: Option<&mut LocalCluster>, faults: &mut Faults, clients: &Clients) -> Result<()> {
    let mut rng = Rng::new(plan.seed);
    let mut nemesis = plan.nemesis()?;
    match (nemesis.as_mut(), cluster) {
        (Some(nemesis), Some(cluster)) => faults.work(nemesis.as_mut(), cluster, &mut rng, plan.time, clients).await,
        _ => {
            tokio::time::sleep(plan.time).await;
            Ok(())
        }
    }
}

/// The data of a run that passed is of no use to anybody.
fn finish(plan: &Plan, cluster: LocalCluster, passed: bool) -> Result<()> {
    let dir = cluster.dir().to_owned();
    cluster.close()?;
    if passed && !plan.keep {
        fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    Ok(())
}
