//! `quorate-jepsen`: workloads, faults and checkers from the command line.
//!
//! Deliberately absent: logic. What is run and how it is judged is the library's.

mod args;
mod bugs;
mod reports;
mod runs;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use quorate_jepsen::{power, wire};
use tokio::signal::unix::{SignalKind, signal};

use args::{Args, Command, Of};

fn main() -> ExitCode {
    let args = Args::parse();
    // Before there is a second thread: namespaces are entered by the whole process.
    if args.command.needs_namespaces() {
        match wire::enter() {
            Ok(wire::Entered::Inside) => {}
            Ok(wire::Entered::Without { missing }) => {
                eprintln!("without network namespaces: {}", missing.join("; "));
                eprintln!("cuts are done by proxies on loopback where they can be; what needs more is left out");
            }
            Err(error) => return failed(&error),
        }
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let done = match runtime {
        Ok(runtime) => {
            let done = runtime.block_on(async {
                tokio::select! {
                    done = run(args.command) => done,
                    _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
                    () = told_to_end() => Err(anyhow::anyhow!("told to end")),
                }
            });
            // A checker that was given up may still be at it.
            runtime.shutdown_background();
            done
        }
        Err(error) => Err(error.into()),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => failed(&error),
    }
}

/// SIGTERM: the servers must not outlive the harness.
async fn told_to_end() {
    match signal(SignalKind::terminate()) {
        Ok(mut told) => drop(told.recv().await),
        Err(_) => std::future::pending().await,
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("quorate-jepsen: {error:#}");
    ExitCode::from(2)
}

/// Whether everything held.
async fn run(command: Command) -> Result<bool> {
    match command {
        Command::List => runs::list(),
        Command::Run { scenarios, options } => runs::run(&scenarios, &options).await,
        Command::Chaos { options } => runs::chaos(&options).await,
        Command::Matrix { options } => runs::matrix(&options).await,
        Command::Bugs { bugs, server, options } => bugs::run(&bugs, &server, &options).await,
        Command::Check { history, workload } => reports::check(&history, &workload).await,
        Command::Report { run } => reports::report(&run).await,
        Command::Totals { ledger } => reports::totals(&ledger),
        Command::SelfTest { of: Of::Wire } => wire::self_test().await.map(|()| true),
        Command::SelfTest { of: Of::Power } => {
            let dir = tempfile::tempdir()?;
            power::self_test(dir.path()).map(|()| true)
        }
        Command::EchoServer { address } => wire::echo_server(address).await.map(|()| true),
        Command::EchoClient { address, patience_ms } => {
            wire::echo_client(address, Duration::from_millis(patience_ms)).await.map(|_| true)
        }
    }
}
