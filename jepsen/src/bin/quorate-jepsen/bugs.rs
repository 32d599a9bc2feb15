//! Bugs on purpose: each is planted in a cluster of its own, and must not pass.

use std::io::{Write, stdout};
use std::path::Path;

use anyhow::{Result, ensure};
use quorate_jepsen::planted::{self, Planted};
use quorate_jepsen::run::judge::Summary;
use quorate_jepsen::run::plan::Own;
use quorate_jepsen::scenario::Scenario;
use quorate_jepsen::{rng, run};

use crate::args::Options;
use crate::runs;

/// How often a bug may hide: what is found depends on when the faults come.
const TRIES: u64 = 3;
/// What is said of a cluster that is not what it should be.
const TELLING: [&str; 4] = ["replicas differ", "ended by itself", "ended with", "went on after a sync"];

pub(crate) async fn run(names: &[String], server: &Path, options: &Options) -> Result<bool> {
    ensure!(server.is_file(), "--server {} is no file: build one with `--features faults`", server.display());
    let known = |name: &String| planted::ALL.iter().any(|planted| planted.bug == name);
    ensure!(names.iter().all(known), "no such bug among {names:?}: see `list`");
    let seed = options.seed.unwrap_or_else(rng::seed);
    let wanted = planted::ALL.into_iter().filter(|one| names.is_empty() || names.iter().any(|name| name == one.bug));
    let mut rows = Vec::new();
    for planted in wanted {
        rows.push((planted, caught(planted, server, options, seed).await?));
    }
    writeln!(stdout(), "\n| bug | under | caught by |\n|---|---|---|")?;
    for (planted, caught) in &rows {
        let under = if planted.nemesis.is_empty() { "no fault" } else { planted.nemesis };
        writeln!(
            stdout(),
            "| {}: {} | {under} | {} |",
            planted.bug,
            planted.about,
            caught.as_deref().unwrap_or("NOT CAUGHT")
        )?;
    }
    let hidden = rows.iter().filter(|(_, caught)| caught.is_none()).count();
    writeln!(stdout(), "\n{} of {} caught; seed {seed}", rows.len() - hidden, rows.len())?;
    Ok(hidden == 0)
}

/// By what it was caught: the first checker, or else the first problem.
async fn caught(planted: Planted, server: &Path, options: &Options, seed: u64) -> Result<Option<String>> {
    let nemeses: Vec<String> =
        [planted.nemesis].into_iter().filter(|name| !name.is_empty()).map(str::to_owned).collect();
    let scenario = Scenario { name: format!("bug-{}", planted.bug), about: String::new(), nemeses };
    let needs = scenario.nemeses.first().and_then(|name| quorate_jepsen::nemesis::named(name));
    if let Some(missing) = needs.and_then(|nemesis| run::missing(nemesis.needs())) {
        writeln!(stdout(), "LEFT OUT {}: {missing}", scenario.name)?;
        return Ok(None);
    }
    let mut options = options.clone();
    // So that each node has clients of its own, which ask no other.
    options.workers = options.workers.max(6);
    options.workloads = planted.workloads.iter().map(|name| (*name).to_owned()).collect();
    for attempt in 0..TRIES {
        let variable =
            if planted.node == 0 { "FAULT_PLANT".to_owned() } else { format!("FAULT_PLANT@{}", planted.node) };
        let own = Own {
            nodes: options.nodes,
            binary: Some(server.to_owned()),
            env: vec![(variable, planted.bug.to_owned())],
            // A short run must need snapshots too.
            args: ["--snapshot-every", "100", "--log-keep", "50"].map(str::to_owned).to_vec(),
        };
        let summary = runs::one(&scenario, &options, seed.wrapping_add(attempt), own).await?;
        if let Some(caught) = caught_by(&summary) {
            if !options.keep {
                runs::forget_nodes(&scenario, &options)?;
            }
            return Ok(Some(caught));
        }
    }
    Ok(None)
}

fn caught_by(summary: &Summary) -> Option<String> {
    let broken = summary.checks.iter().find(|check| check.contains("BROKEN"));
    let by_checker = broken.and_then(|check| check.split(':').next()).map(str::to_owned);
    // Other problems, such as a run that was not drained in time, may come of a busy machine.
    let tells = |problem: &&String| TELLING.iter().any(|words| problem.contains(words));
    let problem = summary.problems.iter().find(tells);
    by_checker.or_else(|| problem.map(|problem| problem.lines().next().unwrap_or("").to_owned()))
}
