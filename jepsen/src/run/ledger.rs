//! The ledger: one line for each run that ever was, and the totals.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};

use super::judge::Summary;

/// Adds a line.
pub fn add(path: &Path, summary: &Summary) -> Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let file = OpenOptions::new().create(true).append(true).open(path);
    let mut file = file.with_context(|| format!("cannot write {}", path.display()))?;
    let mut line = serde_json::to_vec(summary)?;
    line.push(b'\n');
    // One write: two runs may end at the same moment.
    file.write_all(&line)?;
    Ok(())
}

/// What all runs in a ledger come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Runs.
    pub runs: u64,
    /// Runs that did not pass.
    pub failed: u64,
    /// Operations.
    pub operations: u64,
    /// Faults.
    pub faults: u64,
    /// Seconds of load.
    pub seconds: u64,
}

/// Reads a ledger.
pub fn totals(path: &Path) -> Result<Totals> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut totals = Totals::default();
    for (line, number) in text.lines().zip(1_u64..) {
        let summary: Summary = serde_json::from_str(line).with_context(|| format!("line {number} is no run"))?;
        totals.runs += 1;
        totals.failed += u64::from(!summary.passed());
        totals.operations += summary.operations();
        totals.faults += summary.faults;
        totals.seconds += summary.seconds;
    }
    Ok(totals)
}
