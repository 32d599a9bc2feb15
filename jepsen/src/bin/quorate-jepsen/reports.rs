//! Records of runs that are over.

use std::io::{Write, stdout};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use quorate_jepsen::check::Verdict;
use quorate_jepsen::record::History;
use quorate_jepsen::run::faults::Faults;
use quorate_jepsen::run::judge::{self, Summary};
use quorate_jepsen::run::{clients, ledger};
use quorate_jepsen::workload::{self, Workload};

/// How many places are shown of what was broken.
const SHOWN: usize = 10;

pub(crate) async fn check(history: &Path, workload: &str) -> Result<bool> {
    let run = judge::check(&named(workload)?, History::read(history)?).await?;
    for report in &run.reports {
        writeln!(stdout(), "{report}")?;
        if let Verdict::Broken(findings) = &report.verdict {
            for finding in findings.iter().take(SHOWN) {
                writeln!(stdout(), "  {}  operations {:?}", finding.text, finding.operations)?;
            }
        }
    }
    Ok(run.reports.iter().all(|report| report.holds()))
}

pub(crate) async fn report(dir: &Path) -> Result<bool> {
    let summary = dir.join("summary.json");
    let summary = std::fs::read(&summary).with_context(|| format!("cannot read {}", summary.display()))?;
    let summary: Summary = serde_json::from_slice(&summary)?;
    let mut workloads = Vec::new();
    for workload in workload::all() {
        let path = dir.join(clients::file_of(workload.name()));
        if path.is_file() {
            workloads.push(judge::check(&workload, History::read(&path)?).await?);
        }
    }
    let held = workloads.iter().flat_map(|run| &run.reports).all(|report| report.holds());
    judge::write_report(dir, &summary, workloads, &Faults::read(&dir.join("faults.jsonl"))?)?;
    writeln!(stdout(), "{}", dir.join("report.html").display())?;
    Ok(held)
}

pub(crate) fn totals(path: &Path) -> Result<bool> {
    let ledger::Totals { runs, failed, operations, faults, seconds } = ledger::totals(path)?;
    writeln!(
        stdout(),
        "{runs} runs, {failed} did not pass; {operations} operations, {faults} faults, {seconds} s under load"
    )?;
    Ok(true)
}

fn named(name: &str) -> Result<Arc<dyn Workload>> {
    let found = workload::all().into_iter().find(|workload| workload.name() == name);
    found.with_context(|| format!("no workload is called {name:?}: see `list`"))
}
