//! The demo: a fleet of agents reviews this repository while its coordinator loses a node and an agent.
//!
//! Without a subcommand it is the driver ([`run`]): three nodes, five worker processes, one task submitted, the leader and
//! a busy reviewer killed with SIGKILL, and a proof at the end. The subcommands are the agents themselves, started by
//! `quorate worker --exec`: they read a task as JSON on stdin and print its result.
//!
//! Deliberately absent: a language model. The agents do real text work; a short pause per file stands for thinking.

mod document;
mod fleet;
mod job;
mod orchestrate;
mod proof;
mod review;
mod run;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Reviews this repository with five agents on three nodes, and breaks things on the way.
#[derive(Parser)]
#[command(name = "quorate-demo", version)]
struct Args {
    #[command(subcommand)]
    agent: Option<Agent>,
    /// Root of the workspace to review; otherwise the one around the current folder
    #[arg(long)]
    root: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Agent {
    /// Act as a reviewer: task JSON on stdin, findings on stdout
    Review,
    /// Act as the documenter: write the report from the results of the reviews
    Document,
    /// Act as the orchestrator: submit the work, or accept the report
    Orchestrate,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let done = match args.agent {
        Some(Agent::Review) => review::act(),
        Some(Agent::Document) => document::act(),
        Some(Agent::Orchestrate) => orchestrate::act(),
        None => tokio::select! {
            done = run::run(args.root) => done,
            _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
        },
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("quorate-demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}
