//! `quorate-bench`: one subcommand a question, each against three real nodes with fsync, started on this machine.
//!
//! - [`lifecycle`]: what submit, claim and complete cost. [`sessions`]: what living sessions cost the log.
//! - [`failover`]: how long a client waits when the leader dies. [`cpu`]: CPU time of processes.
//!
//! Deliberately absent: numbers from several machines. Servers and load share this one; the CPU columns tell them apart.

mod cpu;
mod failover;
mod lifecycle;
mod sessions;

use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Measures a cluster of three local nodes.
#[derive(Parser)]
#[command(name = "quorate-bench", version)]
struct Args {
    #[command(subcommand)]
    question: Question,
}

#[derive(Subcommand)]
enum Question {
    /// Submit, claim, complete: throughput, latency, CPU per task
    Lifecycle(lifecycle::Args),
    /// Sessions kept alive: the log must not grow
    Sessions(sessions::Args),
    /// The leader is killed: the gap a client sees
    Failover(failover::Args),
}

#[tokio::main]
async fn main() -> ExitCode {
    let done = match Args::parse().question {
        Question::Lifecycle(args) => lifecycle::run(args).await,
        Question::Sessions(args) => sessions::run(args).await,
        Question::Failover(args) => failover::run(args).await,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("quorate-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The one place that writes to stdout.
fn print(line: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{line}")?;
    Ok(())
}
