//! Judgement: what the checkers say of the records, what the cluster looks like, and what that comes to.

use std::fmt;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::clients::Done;
use super::faults::{Fault, Faults};
use super::plan::Plan;
use crate::check::{Report, Verdict};
use crate::cluster::LocalCluster;
use crate::record::{History, Outcome};
use crate::report::{self, FaultSpan, WorkloadRun};
use crate::workload::Workload;

/// A checker that takes longer cannot tell.
const CHECK: Duration = Duration::from_secs(300);

/// What a run came to, small enough for one line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Which run.
    pub name: String,
    /// `pass`, `fail` or `unknown`.
    pub verdict: String,
    /// Of every choice.
    pub seed: u64,
    /// What was tested.
    pub commit: String,
    /// Which nemeses were at work.
    pub nemeses: Vec<String>,
    /// How long clients worked.
    pub seconds: u64,
    /// Operations that took effect.
    pub ok: u64,
    /// Operations without effect.
    pub fail: u64,
    /// Operations of which nobody knows.
    pub info: u64,
    /// Faults that were done and undone.
    pub faults: u64,
    /// The share of seconds in which some client was answered out of the log, in thousandths.
    pub available_permille: u64,
    /// Each checker's words, with its workload.
    pub checks: Vec<String>,
    /// What else was wrong.
    pub problems: Vec<String>,
}

impl Summary {
    /// Whether everything held.
    pub fn passed(&self) -> bool {
        self.verdict == "pass"
    }

    /// All operations.
    pub fn operations(&self) -> u64 {
        self.ok + self.fail + self.info
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Summary { name, verdict, seed, seconds, ok, fail, info, faults, available_permille, .. } = self;
        write!(f, "{:<8} {name}: seed {seed}, {seconds} s, {faults} faults, ", verdict.to_uppercase())?;
        write!(f, "{ok} ok, {fail} fail, {info} info, available {:.1} %", *available_permille as f64 / 10.0)?;
        self.problems.iter().try_for_each(|problem| write!(f, "\n         problem: {problem}"))?;
        let bad = self.checks.iter().filter(|check| !check.contains(": holds"));
        bad.into_iter().try_for_each(|check| write!(f, "\n         {check}"))
    }
}

/// What is wrong with the cluster itself, when all is healed and nobody writes.
pub async fn cluster(cluster: &mut LocalCluster, problems: &mut Vec<String>) {
    for id in cluster.node_ids() {
        match cluster.exited(id) {
            Ok(None) => {}
            Ok(Some(status)) => problems.push(format!("node {id} ended by itself: {status}")),
            Err(error) => problems.push(format!("node {id}: {error:#}")),
        }
    }
    if let Err(error) = cluster.check_replicas_equal().await {
        problems.push(format!("{error:#}"));
    }
}

/// Judges, and writes down what it comes to.
pub async fn judge(
    plan: &Plan,
    clients: Vec<Done>,
    faults: &Faults,
    healed: Duration,
    mut problems: Vec<String>,
) -> Result<Summary> {
    let mut workloads = Vec::new();
    for Done { workload, history } in clients {
        if !answered_after(&history, healed) {
            problems.push(format!("{}: nobody was answered after the last healing", workload.name()));
        }
        workloads.push(check(&workload, history).await?);
    }
    let summary = summarize(plan, &workloads, faults, problems);
    let mut json = serde_json::to_vec_pretty(&summary)?;
    json.push(b'\n');
    fs::write(plan.dir.join("summary.json"), json)?;
    write_report(&plan.dir, &summary, workloads, &faults.all)?;
    Ok(summary)
}

/// Writes the page about a run.
pub fn write_report(
    dir: &std::path::Path,
    summary: &Summary,
    workloads: Vec<WorkloadRun>,
    faults: &[Fault],
) -> Result<()> {
    let span = |fault: &Fault| FaultSpan {
        name: fault.nemesis.clone(),
        what: fault.what.clone(),
        from_ns: fault.from,
        until_ns: fault.until,
    };
    let mut facts = vec![("verdict".to_owned(), summary.verdict.clone())];
    facts.extend(summary.problems.iter().map(|problem| ("problem".to_owned(), problem.clone())));
    let page = report::html(&report::Run {
        title: summary.name.clone(),
        seed: summary.seed,
        began: String::new(),
        commit: summary.commit.clone(),
        facts,
        workloads,
        faults: faults.iter().map(span).collect(),
        problems: summary.problems.clone(),
    });
    let path = dir.join("report.html");
    fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))
}

/// Everything that checks a workload, on its record.
pub async fn check(workload: &std::sync::Arc<dyn Workload>, history: History) -> Result<WorkloadRun> {
    let name = workload.name();
    let history = std::sync::Arc::new(history);
    let mut reports = Vec::new();
    for checker in workload.checkers() {
        let (of, called) = (history.clone(), checker.name());
        // One that is given up goes on in its thread; the process ends before long.
        let checking = tokio::task::spawn_blocking(move || checker.check(&of));
        reports.push(match tokio::time::timeout(CHECK, checking).await {
            Ok(Ok(report)) => report,
            Ok(Err(error)) => Report::unknown(called, 0, format!("the checker failed: {error}")),
            Err(_) => Report::unknown(called, 0, format!("it took more than {} s", CHECK.as_secs())),
        });
    }
    let history = std::sync::Arc::try_unwrap(history).unwrap_or_else(|shared| (*shared).clone());
    Ok(WorkloadRun { name: name.to_owned(), history, reports })
}

fn summarize(plan: &Plan, workloads: &[WorkloadRun], faults: &Faults, problems: Vec<String>) -> Summary {
    let (mut ok, mut fail, mut info) = (0, 0, 0);
    for operation in workloads.iter().flat_map(|workload| &workload.history.operations) {
        match operation.outcome {
            Outcome::Ok { .. } => ok += 1,
            Outcome::Fail => fail += 1,
            Outcome::Info => info += 1,
        }
    }
    let reports = || workloads.iter().flat_map(|run| run.reports.iter().map(move |report| (&run.name, report)));
    let broken = reports().any(|(_, report)| matches!(report.verdict, Verdict::Broken(_)));
    let all_hold = workloads.iter().all(|run| !run.reports.is_empty() && run.reports.iter().all(Report::holds));
    let verdict = match (broken || !problems.is_empty(), all_hold && workloads.len() == plan.workloads.len()) {
        (true, _) => "fail",
        (false, true) => "pass",
        (false, false) => "unknown",
    };
    Summary {
        name: plan.name.clone(),
        verdict: verdict.to_owned(),
        seed: plan.seed,
        commit: crate::binary::commit(),
        nemeses: plan.nemeses.clone(),
        seconds: plan.time.as_secs(),
        ok,
        fail,
        info,
        faults: faults.all.iter().filter(|fault| fault.until.is_some()).count() as u64,
        available_permille: available_permille(workloads, plan.time),
        checks: reports().map(|(workload, report)| format!("{workload}/{report}")).collect(),
        problems,
    }
}

/// The share of the seconds under faults in which some client got an answer.
fn available_permille(workloads: &[WorkloadRun], time: Duration) -> u64 {
    let seconds = time.as_secs();
    let mut answered = vec![false; usize::try_from(seconds).unwrap_or_default()];
    for operation in workloads.iter().flat_map(|workload| &workload.history.operations) {
        // What has a place in the log took a majority; a look at one node does not.
        if let (Outcome::Ok { rev: Some(_), .. }, Some(ended)) = (&operation.outcome, operation.ended)
            && let Some(second) = answered.get_mut((ended / 1_000_000_000) as usize)
        {
            *second = true;
        }
    }
    let count = answered.iter().filter(|second| **second).count() as u64;
    (count * 1_000).checked_div(seconds).unwrap_or_default()
}

/// Whether the cluster is of use to this workload again.
fn answered_after(history: &History, healed: Duration) -> bool {
    let healed = u64::try_from(healed.as_nanos()).unwrap_or(u64::MAX);
    history.operations.iter().any(|operation| operation.began >= healed && operation.res().is_some())
}
