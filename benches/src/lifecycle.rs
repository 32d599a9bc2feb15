//! What does a task cost from submission to completion, at 1 to 256 clients?
//!
//! Every client has a session and an agent; all agents share one capability and so one queue, as a fleet would.

use std::time::{Duration, Instant};

use anyhow::Result;
use quorate_client::v1::TaskSpec;
use quorate_client::{Client, Session};
use quorate_jepsen::LocalCluster;

use crate::agent::{self, CAPABILITY};
use crate::cpu;
use crate::latency::Latency;

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Concurrent clients, one measurement each
    #[arg(long, value_delimiter = ',', default_values_t = [1_u64, 16, 64, 256])]
    clients: Vec<u64>,
    /// Length of each measurement
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t = Form::Table)]
    output: Form,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Form {
    Table,
    Json,
}

/// Latencies: submit, claim, finish, and all three together.
struct Steps {
    times: [Latency; 4],
}

/// One line of the result.
struct Row {
    clients: u64,
    seconds: f64,
    steps: Steps,
    servers: Duration,
    bench: Duration,
}

impl Steps {
    fn new() -> Result<Self> {
        Ok(Self { times: [Latency::new()?, Latency::new()?, Latency::new()?, Latency::new()?] })
    }

    fn add(&mut self, other: &Self) -> Result<()> {
        self.times.iter_mut().zip(&other.times).try_for_each(|(mine, theirs)| mine.add(theirs))
    }

    fn record(&mut self, step: usize, took: Duration) {
        if let Some(latency) = self.times.get_mut(step) {
            latency.record(took);
        }
    }
}

/// Measures each number of clients on one cluster and prints the result.
pub(crate) async fn run(args: Args) -> Result<()> {
    let cluster = LocalCluster::builder().start().await?;
    let mut pids = Vec::new();
    for id in cluster.node_ids() {
        pids.push(cluster.pid(id)?);
    }
    let client = cluster.client()?;
    let mut rows = Vec::new();
    for clients in args.clients {
        rows.push(measure(&client, clients, Duration::from_secs(args.seconds), &pids).await?);
    }
    match args.output {
        Form::Table => table(&rows)?,
        Form::Json => crate::print(&json(&rows))?,
    }
    cluster.close()
}

async fn measure(client: &Client, clients: u64, length: Duration, pids: &[u32]) -> Result<Row> {
    let mut ready = Vec::new();
    for n in 0..clients {
        ready.push(agent::open(client, format!("bench-{clients}-{n}")).await?);
    }
    let own = [std::process::id()];
    let (servers, bench) = (cpu::used(pids)?, cpu::used(&own)?);
    let started = Instant::now();
    let tasks: Vec<_> = ready
        .iter()
        .map(|(session, agent)| tokio::spawn(work(client.clone(), session.clone(), agent.clone(), started + length)))
        .collect();
    let mut steps = Steps::new()?;
    for task in tasks {
        steps.add(&task.await??)?;
    }
    let seconds = started.elapsed().as_secs_f64();
    let (servers, bench) = (cpu::used(pids)?.saturating_sub(servers), cpu::used(&own)?.saturating_sub(bench));
    for (session, _) in ready {
        session.close().await?;
    }
    Ok(Row { clients, seconds, steps, servers, bench })
}

/// Each client submits as many as it claims, so there is always one to claim, its own or another's.
async fn work(client: Client, session: Session, agent: String, end: Instant) -> Result<Steps> {
    let mut steps = Steps::new()?;
    while Instant::now() < end {
        let spec = TaskSpec {
            title: "bench".into(),
            required_capabilities: vec![CAPABILITY.into()],
            payload: vec![b'x'; 128].into(),
            ..Default::default()
        };
        let began = Instant::now();
        client.tasks().submit_one(spec).await?;
        let submitted = Instant::now();
        let answer = client.tasks().claim(&session, &agent, 1, Duration::from_secs(10)).await?;
        let claimed = Instant::now();
        client.tasks().finish(Some(&session), agent::completed(answer)?).await?;
        let finished = Instant::now();
        steps.record(0, submitted - began);
        steps.record(1, claimed - submitted);
        steps.record(2, finished - claimed);
        steps.record(3, finished - began);
    }
    Ok(steps)
}

impl Row {
    fn done(&self) -> u64 {
        self.steps.times[3].count()
    }

    fn per_second(&self) -> f64 {
        self.done() as f64 / self.seconds
    }

    fn micros_each(&self, cpu: Duration) -> f64 {
        cpu.as_micros() as f64 / self.done().max(1) as f64
    }

    /// p50 and p99 of each step, in milliseconds.
    fn quantiles_ms(&self) -> Vec<(f64, f64)> {
        self.steps.times.iter().map(|one| (one.ms(0.5), one.ms(0.99))).collect()
    }
}

fn table(rows: &[Row]) -> Result<()> {
    let steps: Vec<String> =
        ["submit", "claim", "complete", "whole"].iter().map(|name| format!("{:>16}", format!("{name} ms"))).collect();
    crate::print("latency columns: p50/p99; CPU: microseconds per task, three servers together and this program")?;
    crate::print(&format!(
        "{:>7} {:>9} {} {:>11} {:>9}",
        "clients",
        "tasks/s",
        steps.join(" "),
        "servers us",
        "bench us"
    ))?;
    for row in rows {
        let cells: Vec<String> =
            row.quantiles_ms().iter().map(|(p50, p99)| format!("{:>16}", format!("{p50:.2}/{p99:.2}"))).collect();
        crate::print(&format!(
            "{:>7} {:>9.0} {} {:>11.0} {:>9.0}",
            row.clients,
            row.per_second(),
            cells.join(" "),
            row.micros_each(row.servers),
            row.micros_each(row.bench)
        ))?;
    }
    Ok(())
}

/// Only numbers and fixed names: nothing here needs escaping.
fn json(rows: &[Row]) -> String {
    let row = |row: &Row| {
        let steps: Vec<String> = ["submit", "claim", "complete", "whole"]
            .iter()
            .zip(row.quantiles_ms())
            .map(|(name, (p50, p99))| format!(r#""{name}_ms":{{"p50":{p50},"p99":{p99}}}"#))
            .collect();
        format!(
            r#"{{"clients":{},"tasks":{},"tasks_per_s":{:.1},{},"server_cpu_us":{:.1},"bench_cpu_us":{:.1}}}"#,
            row.clients,
            row.done(),
            row.per_second(),
            steps.join(","),
            row.micros_each(row.servers),
            row.micros_each(row.bench)
        )
    };
    format!("[{}]", rows.iter().map(row).collect::<Vec<_>>().join(","))
}
