//! One run of the command line, as an operator types it.
//!
//! Deliberately absent: what it prints, as far as that is for people. Tests ask the cluster itself where they can.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::binary;
use crate::process::clean_command;

/// Restoring or replacing with a large state takes its time.
const LIMIT: Duration = Duration::from_secs(900);

/// How it ended, and what it printed.
#[derive(Debug)]
pub struct Ran {
    /// The exit code; -1 if a signal ended it.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Everything, for people: standard output, then standard error.
    pub said: String,
}

impl Ran {
    /// Standard output of a run that must have succeeded.
    pub fn succeeded(self) -> Result<String> {
        ensure!(self.code == 0, "it ended with {}:\n{}", self.code, self.said);
        Ok(self.out)
    }

    /// What was said by a run that must have been refused.
    pub fn refused(self) -> Result<String> {
        ensure!(self.code > 0, "it ended with {}, and should have been refused:\n{}", self.code, self.said);
        Ok(self.said)
    }
}

/// Runs `quorate` with these arguments; `endpoints` is where it finds the cluster, if it looks for one.
pub async fn quorate(endpoints: &[String], args: &[&str]) -> Result<Ran> {
    let mut command = clean_command(&binary::quorate()?);
    command.args(args).stdin(Stdio::null());
    if !endpoints.is_empty() {
        command.env("QUORATE_ENDPOINTS", endpoints.join(","));
    }
    let mut command = tokio::process::Command::from(command);
    let output = tokio::time::timeout(LIMIT, command.kill_on_drop(true).output());
    let output = output.await.with_context(|| format!("{args:?} did not end"))??;
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = format!("{args:?}\n{out}{}", String::from_utf8_lossy(&output.stderr));
    Ok(Ran { code: output.status.code().unwrap_or(-1), out, said })
}
