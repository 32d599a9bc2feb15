//! The command line: what can be asked for, and where each command lives.
//!
//! ```text
//!   agent task lock bus kv …   one noun a file: its flags, its calls, its tables
//!   submit                     tasks from flags and files
//!   worker, exec               a worker process, and one task of it as a process group
//!   held, signals              what is held for as long as a command runs, and what ends it
//!   values, view, output       text in, messages to JSON, the only place that prints
//!   exit                       exit codes
//! ```
//!
//! Everything but `serve` and `dev` stands on the client library and knows the cluster by its endpoints only.
//! Deliberately absent: prompts, colours, state between calls.

mod agent;
mod backup;
mod breaker;
mod bus;
mod checkpoint;
mod cluster;
mod dlq;
mod events;
mod exec;
mod exit;
mod held;
mod kv;
mod limit;
mod lock;
mod namespace;
mod output;
mod project;
mod queue;
mod rebuild;
mod restore;
mod retry;
mod route;
mod schedule;
mod scope;
mod share;
mod signals;
mod stats;
mod submit;
mod task;
mod values;
mod view;
mod worker;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use quorate_client::{Client, Config};

use self::exit::Failure;
use self::output::{Format, Out};

/// Coordinates a fleet of AI agents: who exists, who does what and in which order, on three machines that agree
#[derive(Parser)]
#[command(name = "quorate", version, propagate_version = true, after_help = exit::EXIT_CODES)]
pub(crate) struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What every command that talks to a cluster needs.
#[derive(Args)]
struct Global {
    /// The nodes to talk to; any of them will do, the others are for when it is down
    #[arg(
        long,
        global = true,
        env = "QUORATE_ENDPOINTS",
        value_name = "HOST:PORT,..",
        value_delimiter = ',',
        default_value = "127.0.0.1:7401"
    )]
    endpoints: Vec<String>,
    /// The part of the cluster that the command is about (default: the namespace default)
    #[arg(short, long, global = true, env = "QUORATE_NAMESPACE", value_name = "NAME")]
    namespace: Option<String>,
    /// How results are printed
    #[arg(short, long, global = true, value_enum, value_name = "FORMAT", default_value = "table")]
    output: Format,
    /// How long a call may take, retries included (default 30s); what `bus request` and `task wait` (default 10m) wait
    #[arg(long, global = true, value_name = "DURATION", value_parser = values::positive_duration)]
    timeout: Option<Duration>,
}

#[derive(Subcommand)]
enum Command {
    /// Run one node of a cluster
    Serve(Box<crate::config::ServeArgs>),
    /// Run a cluster of one on this machine, to try things out
    Dev(crate::config::DevArgs),
    /// Look at the cluster, change who is in it, find what is wrong
    #[command(subcommand)]
    Cluster(cluster::Command),
    /// Take, plan, list, check and remove copies of the whole state
    #[command(subcommand)]
    Backup(backup::Command),
    /// Make a new cluster from a backup
    #[command(after_help = restore::HELP)]
    Restore(restore::RestoreArgs),
    /// See who exists and how busy they are; drain or remove an agent
    #[command(subcommand)]
    Agent(agent::Command),
    /// Submit tasks, follow them, fetch their results
    #[command(subcommand)]
    Task(task::Command),
    /// See tasks that failed for good and messages that were given up; send them back or remove them
    #[command(subcommand)]
    Dlq(dlq::Command),
    /// See what waits
    #[command(subcommand)]
    Queue(queue::Command),
    /// Submit tasks by the clock
    #[command(subcommand)]
    Schedule(schedule::Command),
    /// Say how many tasks may run at once, in total, by agent type and by key
    #[command(subcommand)]
    Limit(limit::Command),
    /// Divide the turns among shares; choose the order of priorities
    #[command(subcommand)]
    Share(share::Command),
    /// See and replace the routing table; ask what it would do with a text
    #[command(subcommand)]
    Route(route::Command),
    /// See what is broken; open, close or tune a circuit breaker
    #[command(subcommand)]
    Breaker(breaker::Command),
    /// List, define and delete named retry policies
    #[command(subcommand)]
    Retry(retry::Command),
    /// Hold a lock, run a command under it; see who holds what and who waits
    #[command(subcommand)]
    Lock(lock::Command),
    /// Hold a set of paths, run a command under it; see who is in the way
    #[command(subcommand)]
    Scope(scope::Command),
    /// Publish messages, listen, ask; see and change subscriptions
    #[command(subcommand)]
    Bus(bus::Command),
    /// Write and read documents and their versions
    #[command(subcommand)]
    Kv(kv::Command),
    /// See what happened to every object, and follow what happens next
    #[command(after_help = events::EXAMPLES)]
    Events(events::EventsArgs),
    /// Divide the cluster, and say how much each part may hold
    #[command(subcommand)]
    Namespace(namespace::Command),
    /// See how far projects, epics and features are
    #[command(subcommand)]
    Project(project::Command),
    /// See milestones that were reached
    #[command(subcommand)]
    Checkpoint(checkpoint::Command),
    /// See how the work stood in the past
    #[command(subcommand)]
    Stats(stats::Command),
    /// Be an agent: run a shell command for every task
    #[command(after_help = worker::EXAMPLES)]
    Worker(Box<worker::WorkerArgs>),
}

/// What a command works with: the cluster, and the place where results go.
pub(crate) struct Context {
    client: Client,
    out: Out,
    endpoints: Vec<String>,
    /// Empty: the default one.
    namespace: String,
    timeout: Option<Duration>,
}

impl Context {
    fn new(global: Global, out: Out) -> Result<Self, Failure> {
        let endpoints: Vec<String> =
            global.endpoints.iter().map(|one| one.trim().to_owned()).filter(|one| !one.is_empty()).collect();
        if endpoints.is_empty() {
            return Err(Failure::bad_input("endpoints: expected at least one host:port"));
        }
        let mut config = Config::new(endpoints.clone());
        config.client_name = concat!("quorate-cli ", env!("CARGO_PKG_VERSION")).to_owned();
        let namespace = global.namespace.unwrap_or_default();
        config.namespace = namespace.clone();
        if let Some(timeout) = global.timeout {
            config.call_timeout = timeout;
        }
        Ok(Self { client: Client::connect(config)?, out, endpoints, namespace, timeout: global.timeout })
    }
}

/// Parses the arguments of this process and does what they say.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(run(cli)),
        Err(error) => {
            let failure = Failure::failed(format!("cannot start: {error}"));
            Out::new(cli.global.output).failure(&failure);
            failure.exit_code()
        }
    }
}

/// Does what the arguments say; prints why if it cannot.
pub(crate) async fn run(cli: Cli) -> ExitCode {
    let out = Out::new(cli.global.output);
    match dispatch(cli, out).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            out.failure(&failure);
            failure.exit_code()
        }
    }
}

async fn dispatch(cli: Cli, out: Out) -> Result<(), Failure> {
    let Cli { global, command } = cli;
    match command {
        Command::Serve(args) => crate::server::serve(*args).await.map_err(|error| Failure::from_anyhow(&error)),
        Command::Dev(args) => crate::server::dev(args).await.map_err(|error| Failure::from_anyhow(&error)),
        Command::Cluster(command) => cluster::run(&Context::new(global, out)?, command).await,
        Command::Backup(command) => backup::run(&Context::new(global, out)?, command).await,
        Command::Restore(args) => restore::run(&Context::new(global, out)?, args).await,
        Command::Agent(command) => agent::run(&Context::new(global, out)?, command).await,
        Command::Task(command) => task::run(&Context::new(global, out)?, command).await,
        Command::Dlq(command) => dlq::run(&Context::new(global, out)?, command).await,
        Command::Schedule(command) => schedule::run(&Context::new(global, out)?, command).await,
        Command::Limit(command) => limit::run(&Context::new(global, out)?, command).await,
        Command::Share(command) => share::run(&Context::new(global, out)?, command).await,
        Command::Route(command) => route::run(&Context::new(global, out)?, command).await,
        Command::Breaker(command) => breaker::run(&Context::new(global, out)?, command).await,
        Command::Retry(command) => retry::run(&Context::new(global, out)?, command).await,
        Command::Lock(command) => lock::run(&Context::new(global, out)?, command).await,
        Command::Scope(command) => scope::run(&Context::new(global, out)?, command).await,
        Command::Bus(command) => bus::run(&Context::new(global, out)?, command).await,
        Command::Kv(command) => kv::run(&Context::new(global, out)?, command).await,
        Command::Events(args) => events::run(&Context::new(global, out)?, &args).await,
        Command::Namespace(command) => namespace::run(&Context::new(global, out)?, command).await,
        Command::Project(command) => project::run(&Context::new(global, out)?, command).await,
        Command::Checkpoint(command) => checkpoint::run(&Context::new(global, out)?, command).await,
        Command::Stats(command) => stats::run(&Context::new(global, out)?, command).await,
        Command::Queue(command) => queue::run(&Context::new(global, out)?, command).await,
        Command::Worker(args) => worker::run(&Context::new(global, out)?, *args).await,
    }
}

/// For the tests of nouns: the subcommand that a line means, the noun first.
#[cfg(test)]
fn subcommand<'l, C: Subcommand>(line: impl IntoIterator<Item = &'l str>) -> Result<C, clap::Error> {
    let noun = C::augment_subcommands(clap::Command::new("quorate")).subcommand_required(true);
    C::from_arg_matches(&noun.try_get_matches_from(line)?)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_and_argument_has_help() {
        fn check(command: &clap::Command, path: &str, missing: &mut Vec<String>) {
            let path = format!("{path} {}", command.get_name());
            if command.get_about().is_none() {
                missing.push(path.clone());
            }
            for arg in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
                if arg.get_help().is_none() {
                    missing.push(format!("{path}: {}", arg.get_id()));
                }
            }
            // The tree of `help` is clap's own.
            for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
                check(sub, &path, missing);
            }
        }
        let mut command = Cli::command();
        command.build();
        let mut missing = Vec::new();
        check(&command, "", &mut missing);
        assert!(missing.is_empty(), "without help: {missing:?}");
    }

    #[test]
    fn help_shows_exit_codes_and_examples() {
        let mut command = Cli::command();
        assert!(command.render_help().to_string().contains("outcome unknown"));
        let paths = [
            "agent list, task submit, task tree, dlq list, worker, events, namespace set",
            "lock acquire, lock run, lock list, scope acquire, scope run, scope list",
            "bus pub, bus sub, bus request, bus create, kv put, kv get, kv list, kv policy set",
        ];
        for path in paths.iter().flat_map(|some| some.split(", ")) {
            let mut command = Cli::command();
            let mut at = &mut command;
            for name in path.split(' ') {
                at = at.find_subcommand_mut(name).unwrap();
            }
            assert!(at.render_help().to_string().contains("EXAMPLES"), "{path}");
        }
    }

    #[test]
    fn global_flags_may_stand_behind_the_command() {
        let line = "quorate task wait t1 --timeout 5m -o json --endpoints a:1,b:2 -n research";
        let cli = Cli::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(cli.global.endpoints, ["a:1", "b:2"]);
        assert_eq!(cli.global.output, Format::Json);
        assert_eq!(cli.global.timeout, Some(Duration::from_secs(300)));
        assert_eq!(cli.global.namespace.as_deref(), Some("research"));
        let first = Cli::try_parse_from(["quorate", "-n", "research", "kv", "put", "counter", "-1"]);
        assert!(first.is_ok_and(|cli| cli.global.namespace.as_deref() == Some("research")), "in front of it too");
    }
}
