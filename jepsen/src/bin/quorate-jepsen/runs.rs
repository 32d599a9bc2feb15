//! Runs, one after the other, each with its line in the ledger.

use std::io::{Write, stdout};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use quorate_jepsen::run::judge::Summary;
use quorate_jepsen::run::plan::{Own, Plan, Target};
use quorate_jepsen::run::{self, ledger};
use quorate_jepsen::scenario::{self, CHAOS, Scenario};
use quorate_jepsen::workload::Workload;
use quorate_jepsen::{nemesis, planted, rng, workload};

use crate::args::Options;

pub(crate) fn list() -> Result<bool> {
    writeln!(stdout(), "SCENARIOS")?;
    for scenario in scenario::all() {
        writeln!(stdout(), "  {:<22} {}", scenario.name, scenario.about)?;
    }
    writeln!(stdout(), "\nWORKLOADS")?;
    for workload in workload::all() {
        let checkers = workload.checkers();
        let checkers: Vec<&str> = checkers.iter().map(|checker| checker.name()).collect();
        writeln!(stdout(), "  {:<22} {} [{}]", workload.name(), workload.about(), checkers.join(", "))?;
    }
    writeln!(stdout(), "\nPLANTED BUGS")?;
    for bug in planted::ALL {
        writeln!(stdout(), "  {:<22} {}", bug.bug, bug.about)?;
    }
    Ok(true)
}

pub(crate) async fn run(names: &[String], options: &Options) -> Result<bool> {
    let mut scenarios = Vec::new();
    for name in names {
        scenarios.push(scenario::named(name).with_context(|| format!("no scenario is called {name:?}: see `list`"))?);
    }
    all(&scenarios, options).await
}

pub(crate) async fn chaos(options: &Options) -> Result<bool> {
    let scenarios: Vec<Scenario> = CHAOS.into_iter().filter_map(scenario::named).collect();
    all(&scenarios, options).await
}

pub(crate) async fn matrix(options: &Options) -> Result<bool> {
    let scenarios: Vec<Scenario> = scenario::all().into_iter().filter(|scenario| scenario.nemeses.len() <= 1).collect();
    all(&scenarios, options).await
}

/// What this machine cannot do is said and left out; a run that fails does not keep the others from being made.
async fn all(scenarios: &[Scenario], options: &Options) -> Result<bool> {
    let seed = options.seed.unwrap_or_else(rng::seed);
    let (mut passed, mut left_out) = (0, Vec::new());
    let mut bad = Vec::new();
    for (scenario, number) in scenarios.iter().zip(0_u64..) {
        if let Some(missing) = missing(scenario) {
            writeln!(stdout(), "LEFT OUT {}: {missing}", scenario.name)?;
            left_out.push(scenario.name.clone());
            continue;
        }
        let own = || Own { nodes: options.nodes, binary: options.binary.clone(), ..Own::default() };
        let mut summary = one(scenario, options, seed.wrapping_add(number), own()).await;
        if summary.as_ref().is_ok_and(|summary| summary.verdict == "unknown") {
            // Too little happened to tell. That is no pass, and says nothing against the cluster either.
            writeln!(stdout(), "AGAIN    {}: it could not be told", scenario.name)?;
            summary = one(scenario, options, seed.wrapping_add(number).wrapping_add(1 << 32), own()).await;
        }
        match summary {
            Ok(summary) if summary.passed() => passed += 1,
            Ok(summary) => bad.push(summary.name),
            Err(error) => {
                writeln!(stdout(), "BROKEN   {}: the harness failed: {error:#}", scenario.name)?;
                bad.push(scenario.name.clone());
            }
        }
    }
    writeln!(
        stdout(),
        "{passed} passed, {} did not {bad:?}, {} left out {left_out:?}; seed {seed}",
        bad.len(),
        left_out.len()
    )?;
    // What was left out was not tried, and where nothing was tried nothing held.
    Ok(bad.is_empty() && passed > 0)
}

/// One run, printed and entered in the ledger.
pub(crate) async fn one(scenario: &Scenario, options: &Options, seed: u64, own: Own) -> Result<Summary> {
    let target = match options.endpoints.is_empty() {
        true => Target::Own(own),
        false if scenario.nemeses.is_empty() => Target::Endpoints(options.endpoints.clone()),
        false => bail!("--endpoints: nothing is done to a cluster of somebody else's; use the scenario `calm`"),
    };
    let plan = Plan {
        name: scenario.name.clone(),
        workloads: chosen(&options.workloads)?,
        nemeses: scenario.nemeses.clone(),
        time: Duration::from_secs(options.time),
        seed,
        workers: options.workers,
        pace: Duration::from_millis(options.pace_ms),
        dir: fresh(&options.out, &format!("{}-{seed}", scenario.name)),
        keep: options.keep,
        target,
    };
    let dir = plan.dir.clone();
    let summary = run::run(plan).await?;
    ledger::add(&options.out.join("ledger.jsonl"), &summary)?;
    writeln!(stdout(), "{summary}\n         {}", dir.join("report.html").display())?;
    Ok(summary)
}

/// Removes the nodes' data of every run of a scenario; what was recorded stays.
pub(crate) fn forget_nodes(scenario: &Scenario, options: &Options) -> Result<()> {
    for entry in std::fs::read_dir(&options.out)? {
        let entry = entry?;
        let nodes = entry.path().join("cluster");
        if entry.file_name().to_string_lossy().starts_with(&scenario.name) && nodes.is_dir() {
            std::fs::remove_dir_all(nodes)?;
        }
    }
    Ok(())
}

/// A folder that holds no run yet: the same seed may be run again.
fn fresh(out: &Path, name: &str) -> PathBuf {
    let again = (2_u32..).map(|n| out.join(format!("{name}-{n}")));
    let mut folders = std::iter::once(out.join(name)).chain(again);
    folders.find(|folder| !folder.exists()).unwrap_or_else(|| out.join(name))
}

fn missing(scenario: &Scenario) -> Option<String> {
    let needs = scenario.nemeses.iter().filter_map(|name| nemesis::named(name)).map(|nemesis| nemesis.needs());
    run::missing(needs.reduce(nemesis::Needs::and)?)
}

fn chosen(names: &[String]) -> Result<Vec<Arc<dyn Workload>>> {
    let all = workload::all();
    if names.is_empty() {
        return Ok(all);
    }
    let one = |name: &String| {
        let found = all.iter().find(|workload| workload.name() == name).cloned();
        found.with_context(|| format!("no workload is called {name:?}: see `list`"))
    };
    names.iter().map(one).collect()
}
