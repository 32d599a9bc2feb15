//! Quorate's state machine and consensus on a simulated clock, network and disk: whole clusters from a seed, in one
//! thread.
//!
//! ```text
//!   plan ── faults ─▶ ┌ network: cut, lost, late, twice ┐          ┌ trace: a hash over all that happened
//!   load ── calls ──▶ │ node × 3 or 5                   │ ─ told ▶ ├ invariants: consensus, equal replicas
//!                     │   propose, office ─▶ openraft   │          └ model: what each answer had to be
//!                     │   store ─▶ disk ◀─ machine      │
//!                     └─────────────────────────────────┘
//! ```
//!
//! Real: the state machine (`quorate_raft::apply` and every room), its rows and keys, the codec of log entries, and
//! openraft at the version of production, on its own simulation runtime (`openraft-rt-sim`).
//!
//! Simulated: time, chance, the order of tasks; the disk ([`disk`]), under production's rules for what is synced when;
//! the network ([`network`]); snapshots, which are copies of the rows; and, written again because production's are tied
//! to tokio and gRPC, the proposer ([`propose`]) and the leader's loops ([`office`]). A paused node's disk and messages
//! stand still, its timers do not.
//!
//! Not here: RocksDB, gRPC, real clocks, changes of membership, transfers of leadership, pipelined replication. Those
//! are met by real processes. One difference is chosen: a state becomes durable here only after the log that it was
//! made from. openraft may apply what this node's own log has not synced yet; `--state-may-lead-log` takes the
//! difference away.
//!
//! The same seed gives the same run and the same hash, whatever was run before it:
//!
//! ```text
//!   quorate-sim --seed 7 --verbose          one run, every line of it
//!   quorate-sim --seeds 0..10000            many
//!   quorate-sim --seeds 0..50 --check-determinism
//!   quorate-sim --seeds 0..200 --plant lose-vote
//! ```
//!
//! Exit code 1: something was found.

use std::ops::Range;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;

use crate::plant::Plant;
use crate::run::{Outcome, run};
use crate::world::{Options, Totals};

mod disk;
mod invariants;
mod load;
mod machine;
mod model;
mod network;
mod node;
mod office;
mod plan;
mod plant;
mod propose;
mod rng;
mod run;
mod store;
mod trace;
mod types;
mod world;

#[cfg(test)]
mod tests;

/// The pause between two lines about progress.
const PROGRESS: Duration = Duration::from_secs(10);

/// Runs whole clusters in simulated time.
#[derive(Debug, Parser)]
#[command(name = "quorate-sim", version)]
struct Cli {
    /// Run this seed.
    #[arg(long, required_unless_present = "seeds", conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Run these seeds: from, and up to but not including, as 0..1000.
    #[arg(long, value_name = "FROM..TO", value_parser = read_range)]
    seeds: Option<Range<u64>>,
    /// Plant a bug; to see it found.
    #[arg(long, value_enum)]
    plant: Option<Plant>,
    /// Run each seed twice; the hashes must be equal.
    #[arg(long)]
    check_determinism: bool,
    /// Let a state become durable before the log that it was made from.
    #[arg(long)]
    state_may_lead_log: bool,
    /// Print everything that happens.
    #[arg(long)]
    verbose: bool,
}

fn read_range(text: &str) -> Result<Range<u64>, String> {
    let parts: Option<Range<u64>> =
        text.split_once("..").and_then(|(from, to)| Some(from.parse().ok()?..to.parse().ok()?));
    parts.filter(|range| !range.is_empty()).ok_or_else(|| format!("{text:?} is not FROM..TO with FROM below TO"))
}

/// The words that repeat a seed.
fn repeat(seed: u64, cli: &Cli) -> String {
    let mut words = format!("quorate-sim --seed {seed} --verbose");
    if let Some(plant) = cli.plant {
        let name = clap::ValueEnum::to_possible_value(&plant);
        words.push_str(&format!(" --plant {}", name.as_ref().map_or("", |name| name.get_name())));
    }
    if cli.state_may_lead_log {
        words.push_str(" --state-may-lead-log");
    }
    words
}

/// Runs one seed, twice if it is to be compared.
fn run_checked(seed: u64, cli: &Cli, options: Options) -> Outcome {
    let mut outcome = run(seed, options);
    if cli.check_determinism {
        let again = run(seed, Options { verbose: false, ..options });
        if again.hash != outcome.hash {
            let (one, other) = (outcome.hash, again.hash);
            outcome.violations.push(format!("the same seed gives {one:016x} and {other:016x}"));
        }
    }
    outcome
}

fn report_failure(seed: u64, cli: &Cli, outcome: &Outcome) {
    println!("seed {seed} FAILED:");
    outcome.tail.iter().for_each(|line| println!("    {line}"));
    outcome.violations.iter().for_each(|violation| println!("  {violation}"));
    println!("  repeat with: {}", repeat(seed, cli));
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let seeds = cli.seeds.clone().unwrap_or_else(|| {
        let seed = cli.seed.unwrap_or_default();
        seed..seed.saturating_add(1)
    });
    let options = Options { plant: cli.plant, verbose: cli.verbose, state_may_lead_log: cli.state_may_lead_log };
    let (begun, mut told) = (Instant::now(), Instant::now());
    let (mut totals, mut count, mut failed) = (Totals::default(), 0_u64, 0_u64);
    for seed in seeds {
        let outcome = run_checked(seed, &cli, options);
        totals.add(&outcome.totals);
        count += 1;
        if !outcome.violations.is_empty() {
            failed += 1;
            report_failure(seed, &cli, &outcome);
        }
        if cli.seed.is_some() {
            println!("seed {seed}: trace {:016x}", outcome.hash);
        }
        if told.elapsed() >= PROGRESS {
            told = Instant::now();
            println!("{count} seeds, {failed} failed, after {} s", begun.elapsed().as_secs());
        }
    }
    println!("{count} seeds, {failed} failed, in {:.1} s: {totals}", begun.elapsed().as_secs_f64());
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
