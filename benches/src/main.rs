//! `quorate-bench`: one subcommand a question, each against real nodes with fsync, started on this machine; three,
//! unless it offers a choice.
//!
//! - [`lifecycle`]: what submit, claim and complete cost. [`sessions`]: what living sessions cost the log.
//! - [`queued`]: what a long queue costs in memory, claims and restarts. [`dispatch`]: how soon a pushed task begins.
//! - [`bus`]: how soon and how many messages are delivered. [`locks`]: what a lock costs, alone and contended for.
//! - [`kv`]: what saves, puts and gets cost. [`watch`]: how soon a watcher hears of a put.
//! - [`failover`]: how long a client waits when the leader dies. [`soak`]: whether disk and memory level off.
//! - [`closed`], [`paced`]: load as fast as the answers come, or by a schedule. [`payload`], [`agent`]: what it is.
//! - [`meter`], [`cpu`], [`memory`], [`latency`], [`rest`], [`report`]: what is measured, when, and how it is shown.
//!
//! Deliberately absent: numbers from several machines. Servers and load share this one; the CPU columns tell them apart.

mod agent;
mod bus;
mod closed;
mod cpu;
mod dispatch;
mod failover;
mod kv;
mod latency;
mod lifecycle;
mod locks;
mod memory;
mod meter;
mod paced;
mod payload;
mod queued;
mod report;
mod rest;
mod sessions;
mod soak;
mod watch;

use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Measures a cluster of local nodes.
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
    /// Tasks nobody has claimed: memory for each, claim latency, restart
    Queued(queued::Args),
    /// Tasks pushed to workers at a fixed rate: from submission to the handler's start
    Dispatch(dispatch::Args),
    /// Messages: latency of delivery, throughput, memory for each that waits
    Bus(bus::Args),
    /// Locks: acquired and released alone, handed over where many wait
    Locks(locks::Args),
    /// Documents: saves, puts, linearizable gets
    Kv(kv::Args),
    /// Puts at a fixed rate: from the call to the event at a leader and a follower
    Watch(watch::Args),
    /// Sessions kept alive: the log must not grow
    Sessions(sessions::Args),
    /// The leader is killed: the gap a client sees
    Failover(failover::Args),
    /// A steady load for hours: disk, memory and open files must level off
    Soak(soak::Args),
}

#[tokio::main]
async fn main() -> ExitCode {
    let done = match Args::parse().question {
        Question::Lifecycle(args) => lifecycle::run(args).await,
        Question::Queued(args) => queued::run(args).await,
        Question::Dispatch(args) => dispatch::run(args).await,
        Question::Bus(args) => bus::run(args).await,
        Question::Locks(args) => locks::run(args).await,
        Question::Kv(args) => kv::run(args).await,
        Question::Watch(args) => watch::run(args).await,
        Question::Sessions(args) => sessions::run(args).await,
        Question::Failover(args) => failover::run(args).await,
        Question::Soak(args) => soak::run(args).await,
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
