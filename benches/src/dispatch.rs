//! How soon does a submitted task begin at a worker that has nothing to do?
//!
//! Every worker is the library's, over connections of its own, as a fleet of processes would have them. Tasks are
//! submitted by a schedule that waits for no answer, so a slow answer is seen as such and does not thin out the load. A
//! task carries the time of its submission; this program is both ends, so one clock is enough.
//!
//! Deliberately absent: a queue. If the workers could not keep up, the wait for a worker would be measured instead.

use std::collections::BTreeSet;
use std::collections::btree_map::{BTreeMap, Entry};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use quorate_client::v1::{AgentFilter, FindAgentsRequest, TaskSpec};
use quorate_client::{Client, Done, Error, Job, Worker, WorkerReport};
use quorate_jepsen::LocalCluster;
use quorate_jepsen::until::until;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, sleep_until, timeout};

use crate::agent::CAPABILITY;
use crate::latency::Latency;
use crate::meter::{Meter, Took};
use crate::paced::due_after;

/// How long each task takes.
const WORK: Duration = Duration::from_millis(20);
/// How long workers may take to be there, and how long without news makes what is missing lost.
const LIMIT: Duration = Duration::from_secs(30);

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Tasks submitted a second, evenly spaced
    #[arg(long, default_value_t = 200)]
    rate: u64,
    /// Workers, each with room for one task
    #[arg(long, default_value_t = 100)]
    workers: u64,
    /// Length of the measurement
    #[arg(long, default_value_t = 20)]
    seconds: u64,
}

/// What a task carries. All times count from one moment of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    number: u64,
    submitted: Duration,
}

/// A handler began.
struct Begun {
    stamp: Stamp,
    at: Duration,
}

/// The running workers.
struct Fleet {
    stop: watch::Sender<bool>,
    workers: Vec<JoinHandle<Result<WorkerReport, Error>>>,
}

/// What the generator knows.
struct Submitted {
    /// When each was acknowledged.
    acked: BTreeMap<u64, Duration>,
    /// Calls that were not answered well.
    failed: Vec<Error>,
    /// How much later than planned each call began.
    late: Latency,
}

/// What the handlers told.
#[derive(Default)]
struct Seen {
    first: BTreeMap<u64, Begun>,
    /// Beginnings after a task's first.
    repeated: u64,
}

/// Starts the workers, submits by the schedule, prints how long tasks took to begin. Fails if one was lost.
pub(crate) async fn run(args: Args) -> Result<()> {
    ensure!((1..=100_000).contains(&args.rate), "--rate must be 1 to 100000; got {}", args.rate);
    ensure!((1..=1_000).contains(&args.workers), "--workers must be 1 to 1000; got {}", args.workers);
    ensure!((1..=3_600).contains(&args.seconds), "--seconds must be 1 to 3600; got {}", args.seconds);
    let busy_ms = args.rate * WORK.as_millis() as u64;
    ensure!(busy_ms < args.workers * 1_000, "--workers must be more than {} for this --rate", busy_ms / 1_000);
    let cluster = LocalCluster::builder().start().await?;
    let client = cluster.client()?;
    let base = Instant::now();
    let (tell, mut told) = mpsc::unbounded_channel();
    let fleet = Fleet::start(&cluster, args.workers, base, &tell)?;
    fleet.wait_standing(&client).await?;

    let meter = Meter::start(&cluster)?;
    let submitted = generate(&client, &args, base).await?;
    let mut seen = Seen::default();
    let lost = seen.wait_for(&submitted.acked, &mut told).await;
    let took = meter.read()?;

    let report = fleet.stop().await?;
    while let Ok(begun) = told.try_recv() {
        seen.note(begun);
    }
    print(&args, &submitted, &seen, &took)?;
    crate::print(&format!("{lost} tasks lost; {report:?}"))?;
    ensure!(lost == 0, "{lost} acknowledged tasks never began");
    if let Some(error) = submitted.failed.first() {
        bail!("{} submissions failed, one with: {error}", submitted.failed.len());
    }
    let acked = submitted.acked.len() as u64;
    ensure!(report.completed == acked, "{acked} tasks were acknowledged and {} completed", report.completed);
    cluster.close()
}

impl Fleet {
    fn start(
        cluster: &LocalCluster,
        workers: u64,
        base: Instant,
        tell: &mpsc::UnboundedSender<Begun>,
    ) -> Result<Fleet> {
        let (stop, stopped) = watch::channel(false);
        let mut running = Vec::new();
        for n in 0..workers {
            let (client, tell, stopped) = (cluster.client()?, tell.clone(), stopped.clone());
            running.push(tokio::spawn(work(client, format!("worker-{n}"), base, tell, stopped)));
        }
        Ok(Fleet { stop, workers: running })
    }

    async fn wait_standing(&self, client: &Client) -> Result<()> {
        let filter = AgentFilter { capabilities: vec![CAPABILITY.into()], ..Default::default() };
        let request = FindAgentsRequest { filter: Some(filter), ..Default::default() };
        let standing = || async {
            ensure!(!self.workers.iter().any(JoinHandle::is_finished), "a worker could not begin");
            let found = client.agents().find(request.clone()).await?.agents;
            let standing = found.iter().filter(|agent| agent.standing).count();
            Ok((standing == self.workers.len()).then_some(()))
        };
        until("every worker has its standing order", LIMIT, standing).await
    }

    /// Lets every worker finish what it has; gives what they did together.
    async fn stop(self) -> Result<WorkerReport> {
        self.stop.send_replace(true);
        let mut all = WorkerReport::default();
        for worker in self.workers {
            let one = worker.await??;
            all.completed += one.completed;
            all.failed += one.failed;
            all.released += one.released;
            all.cancelled += one.cancelled;
            all.fenced += one.fenced;
            all.sessions_lost += one.sessions_lost;
        }
        Ok(all)
    }
}

async fn work(
    client: Client,
    agent_id: String,
    base: Instant,
    tell: mpsc::UnboundedSender<Begun>,
    mut stopped: watch::Receiver<bool>,
) -> Result<WorkerReport, Error> {
    let worker = Worker::builder(client).agent_id(agent_id).agent_type("bench").capabilities([CAPABILITY]).build();
    let handler = move |job: Job| {
        let at = base.elapsed();
        let tell = tell.clone();
        async move {
            let Some(stamp) = job.task.spec.as_ref().and_then(|spec| Stamp::read(&spec.payload)) else {
                return Done::failed_permanently("this task has no stamp");
            };
            // An error means that nobody listens any longer: the measurement was given up.
            let _ = tell.send(Begun { stamp, at });
            sleep(WORK).await;
            Done::completed("")
        }
    };
    let shutdown = async move {
        // An error means that the sender is gone, which is a reason to stop as well.
        let _ = stopped.wait_for(|stop| *stop).await;
    };
    worker.run(handler, shutdown).await
}

/// Submits by the schedule and then waits for the answers.
async fn generate(client: &Client, args: &Args, base: Instant) -> Result<Submitted> {
    let mut submitted = Submitted { acked: BTreeMap::new(), failed: Vec::new(), late: Latency::new()? };
    let mut calls = JoinSet::new();
    let began = tokio::time::Instant::now();
    for number in 0..args.rate * args.seconds {
        let due = began + due_after(number, args.rate);
        sleep_until(due).await;
        submitted.late.record(due.elapsed());
        let stamp = Stamp { number, submitted: base.elapsed() };
        calls.spawn(submit(client.clone(), stamp, base));
    }
    while let Some(answer) = calls.join_next().await {
        match answer? {
            Ok((number, at)) => {
                submitted.acked.insert(number, at);
            }
            Err(error) => submitted.failed.push(error),
        }
    }
    Ok(submitted)
}

/// Submits one task; gives its number and when it was acknowledged.
async fn submit(client: Client, stamp: Stamp, base: Instant) -> Result<(u64, Duration), Error> {
    let spec = TaskSpec {
        title: "bench".into(),
        required_capabilities: vec![CAPABILITY.into()],
        payload: stamp.bytes().into(),
        ..Default::default()
    };
    client.tasks().submit_one(spec).await?;
    Ok((stamp.number, base.elapsed()))
}

impl Stamp {
    fn bytes(&self) -> Vec<u8> {
        let nanos = u64::try_from(self.submitted.as_nanos()).unwrap_or(u64::MAX);
        [self.number.to_le_bytes(), nanos.to_le_bytes()].concat()
    }

    fn read(payload: &[u8]) -> Option<Stamp> {
        let (number, rest) = payload.split_first_chunk::<8>()?;
        let nanos = rest.first_chunk::<8>()?;
        let submitted = Duration::from_nanos(u64::from_le_bytes(*nanos));
        Some(Stamp { number: u64::from_le_bytes(*number), submitted })
    }
}

impl Seen {
    /// Listens until every acknowledged task has begun, or nothing was heard for long. How many have not.
    async fn wait_for(&mut self, acked: &BTreeMap<u64, Duration>, told: &mut mpsc::UnboundedReceiver<Begun>) -> usize {
        let mut missing: BTreeSet<u64> = acked.keys().copied().collect();
        while !missing.is_empty() {
            let Ok(Some(begun)) = timeout(LIMIT, told.recv()).await else { break };
            missing.remove(&begun.stamp.number);
            self.note(begun);
        }
        missing.len()
    }

    fn note(&mut self, begun: Begun) {
        match self.first.entry(begun.stamp.number) {
            Entry::Vacant(first) => {
                first.insert(begun);
            }
            Entry::Occupied(_) => self.repeated += 1,
        }
    }

    /// From the submission, and from its acknowledgement; the last: how many began before they were acknowledged, which
    /// count as zero.
    fn latencies(&self, acked: &BTreeMap<u64, Duration>) -> Result<(Latency, Latency, u64)> {
        let (mut from_submit, mut from_ack, mut early) = (Latency::new()?, Latency::new()?, 0);
        for (number, acked_at) in acked {
            let Some(begun) = self.first.get(number) else { continue };
            from_submit.record(begun.at.saturating_sub(begun.stamp.submitted));
            from_ack.record(begun.at.saturating_sub(*acked_at));
            early += u64::from(begun.at < *acked_at);
        }
        Ok((from_submit, from_ack, early))
    }
}

fn print(args: &Args, submitted: &Submitted, seen: &Seen, took: &Took) -> Result<()> {
    let (from_submit, from_ack, early) = seen.latencies(&submitted.acked)?;
    crate::print(&format!(
        "{} tasks/s for {} s, {} workers: {} acknowledged, {} submissions failed, {} begun, {} begun again",
        args.rate,
        args.seconds,
        args.workers,
        submitted.acked.len(),
        submitted.failed.len(),
        seen.first.len(),
        seen.repeated
    ))?;
    crate::print(&format!(
        "{:<32} {:>9} {:>9} {:>9} {:>9}",
        "until the handler begins, ms", "p50", "p90", "p99", "max"
    ))?;
    line("from the submission", &from_submit)?;
    line("from its acknowledgement", &from_ack)?;
    line("(submission behind its schedule)", &submitted.late)?;
    crate::print(&format!("{early} began before their acknowledgement had arrived and count as 0 there"))?;
    crate::print(&format!(
        "CPU per task: {:.0} us in the three servers together, {:.0} us in this program",
        took.servers_us(from_submit.count()),
        took.bench_us(from_submit.count())
    ))
}

fn line(name: &str, latency: &Latency) -> Result<()> {
    let (p50, p90, p99) = (latency.ms(0.5), latency.ms(0.9), latency.ms(0.99));
    crate::print(&format!("{name:<32} {p50:>9.2} {p90:>9.2} {p99:>9.2} {:>9.2}", latency.max_ms()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begun(number: u64, submitted_ms: u64, at_ms: u64) -> Begun {
        let stamp = Stamp { number, submitted: Duration::from_millis(submitted_ms) };
        Begun { stamp, at: Duration::from_millis(at_ms) }
    }

    #[test]
    fn a_stamp_comes_back_as_it_was() {
        let stamp = Stamp { number: 258, submitted: Duration::from_nanos(1_234_567_891) };
        assert_eq!(Stamp::read(&stamp.bytes()), Some(stamp));
        assert_eq!(Stamp::read(&stamp.bytes()[..15]), None);
    }

    #[test]
    fn what_began_before_its_acknowledgement_counts_as_zero() {
        let mut seen = Seen::default();
        seen.note(begun(1, 10, 14));
        seen.note(begun(2, 20, 24));
        seen.note(begun(2, 20, 90));
        let acked = BTreeMap::from([(1, Duration::from_millis(12)), (2, Duration::from_millis(25))]);
        let (from_submit, from_ack, early) = seen.latencies(&acked).unwrap();
        assert_eq!((seen.repeated, early, from_submit.count()), (1, 1, 2));
        assert!((from_submit.max_ms() - 4.0).abs() < 0.1);
        assert!(from_ack.ms(0.5) < 0.1 && (from_ack.max_ms() - 2.0).abs() < 0.1);
    }

    #[tokio::test]
    async fn what_nobody_began_is_missing() {
        let (tell, mut told) = mpsc::unbounded_channel();
        let acked = BTreeMap::from([(1, Duration::ZERO), (2, Duration::ZERO)]);
        assert!(tell.send(begun(2, 0, 1)).is_ok());
        drop(tell);
        let mut seen = Seen::default();
        assert_eq!(seen.wait_for(&acked, &mut told).await, 1);
        assert!(seen.first.contains_key(&2));
    }
}
