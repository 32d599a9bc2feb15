//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

/// Breaks a cluster and judges what its clients saw.
///
/// Starts real server processes in network namespaces of their own, lets clients work on them while faults are done to
/// them, and holds the record of every call against what was promised. Needs root for all of it; without root it says
/// what it leaves out.
#[derive(Parser)]
#[command(name = "quorate-jepsen", version, after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "\
EXAMPLES:
  quorate-jepsen run kill-leader
      every workload for 30 s while leaders are killed; the report is in target/jepsen
  quorate-jepsen run power-all --workload register --seed 7 --time 120
      one workload, and choices that can be repeated
  quorate-jepsen run calm --endpoints 10.0.0.1:7401,10.0.0.2:7401
      clients and checkers only, on a cluster that runs elsewhere
  quorate-jepsen check target/jepsen/…/history-register.jsonl --workload register
      judges a record again, or that of another harness

Exit codes: 0 all held; 1 something was broken or could not be told; 2 the harness itself failed.";

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Show every scenario, workload and planted bug
    List,
    /// Run scenarios, one after the other
    Run {
        /// Their names: see `list`
        #[arg(required = true)]
        scenarios: Vec<String>,
        #[command(flatten)]
        options: Options,
    },
    /// Run what every commit must pass, in about four minutes
    Chaos {
        #[command(flatten)]
        options: Options,
    },
    /// Run every nemesis with every workload
    Matrix {
        #[command(flatten)]
        options: Options,
    },
    /// Plant bugs in the server, and see that each is caught
    Bugs {
        /// Which; all, if none is named
        bugs: Vec<String>,
        /// A server that was built with the feature `faults`
        #[arg(long, value_name = "PATH")]
        server: PathBuf,
        #[command(flatten)]
        options: Options,
    },
    /// Judge a record
    Check {
        /// One JSON object a line
        history: PathBuf,
        /// Whose checkers judge it
        #[arg(long)]
        workload: String,
    },
    /// Judge all records of a run, and write its page anew
    Report {
        /// The folder of the run
        run: PathBuf,
    },
    /// Add up a ledger
    Totals {
        /// One run a line
        #[arg(default_value = "target/jepsen/ledger.jsonl")]
        ledger: PathBuf,
    },
    /// See whether this machine can do what the faults need
    #[command(hide = true)]
    SelfTest {
        /// Of what
        of: Of,
    },
    /// Sends back what it gets
    #[command(hide = true)]
    EchoServer {
        /// Where it listens
        address: SocketAddr,
    },
    /// Sends something, and waits until it comes back
    #[command(hide = true)]
    EchoClient {
        /// Where it calls
        address: SocketAddr,
        /// How long it waits
        patience_ms: u64,
    },
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Of {
    Wire,
    Power,
}

/// What all runs have in common.
#[derive(Clone, clap::Args)]
pub(crate) struct Options {
    /// Seconds of faults in each run
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) time: u64,
    /// Of every choice; otherwise the clock
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// Clients of each workload
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=100))]
    pub(crate) workers: u64,
    /// About how many milliseconds a client waits between two operations
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    pub(crate) pace_ms: u64,
    /// Only these workloads; otherwise all
    #[arg(long = "workload", value_name = "NAME")]
    pub(crate) workloads: Vec<String>,
    /// Where runs are kept
    #[arg(long, default_value = "target/jepsen")]
    pub(crate) out: PathBuf,
    /// The server; otherwise the one beside this program
    #[arg(long, value_name = "PATH")]
    pub(crate) binary: Option<PathBuf>,
    /// A cluster that runs already: nothing is done to it but work
    #[arg(long, value_delimiter = ',', value_name = "HOST:PORT")]
    pub(crate) endpoints: Vec<String>,
    /// Nodes of a cluster that is started
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=7))]
    pub(crate) nodes: u64,
    /// Keep the nodes' data of runs that pass
    #[arg(long)]
    pub(crate) keep: bool,
}

impl Command {
    /// Whether it starts clusters of its own.
    pub(crate) fn needs_namespaces(&self) -> bool {
        match self {
            Command::Run { options, .. } => options.endpoints.is_empty(),
            Command::Chaos { .. } | Command::Matrix { .. } | Command::Bugs { .. } => true,
            Command::SelfTest { of } => matches!(of, Of::Wire),
            Command::List | Command::Check { .. } | Command::Report { .. } | Command::Totals { .. } => false,
            Command::EchoServer { .. } | Command::EchoClient { .. } => false,
        }
    }
}
