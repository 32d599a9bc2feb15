//! Random graphs of tasks, done by workers that crash while leaders are killed: every task is done once, in order.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures::stream::{self, StreamExt, TryStreamExt};
use quorate_client::v1::{AttemptOutcome, BreakerSettings, RetryPolicy, TaskSpec, TaskStatus};
use quorate_client::{Client, Done, Graph, Job, Node};
use quorate_jepsen::fleet::{Crash, Fleet, Shape};
use quorate_jepsen::rng::{Rng, env_u64, seed};
use quorate_jepsen::until::until;
use quorate_jepsen::{LocalCluster, faults, history, tasks};
use tokio::sync::watch;
use tokio::task::JoinHandle;

const TASKS: usize = 100;
const WORKERS: usize = 8;
/// Graphs under way at once, however many there are.
const IN_FLIGHT: usize = 40;
const LIMIT: Duration = Duration::from_secs(120);
/// In a long run; a short one has two kills in the middle of its work.
const BETWEEN_KILLS: Duration = Duration::from_secs(4);
/// One task in so many waits for everything that nothing waits for yet.
const JOIN_EVERY: u64 = 15;
/// One attempt in so many fails.
const FAIL_EVERY: u64 = 20;
/// The first worker at some task of every so many graphs crashes in the middle of it.
const CRASH_EVERY: u64 = 3;

/// A graph, and what must come before what.
struct Dag {
    graph: Graph,
    waits_for: BTreeMap<String, Vec<String>>,
    /// Comes after all others.
    last: String,
    /// Whoever tries it first crashes.
    crasher: Option<String>,
}

fn work(place: usize) -> TaskSpec {
    let retry = RetryPolicy { max_retries: 100, base_ms: 10, cap_ms: 100, jitter_permille: 200, ..Default::default() };
    TaskSpec { retry: Some(retry), ..tasks::spec(format!("{place:03}"), "graph") }
}

fn dag(seed: u64, number: u64) -> Dag {
    let mut rng = Rng::new(seed.wrapping_add(number));
    let mut graph = Graph::keyed("dag", number.to_string());
    let mut waits_for = BTreeMap::new();
    let mut nodes: Vec<Node> = Vec::new();
    // What nothing waits for yet.
    let mut tips: BTreeSet<Node> = BTreeSet::new();
    for place in 0..TASKS {
        let (node, dependencies) = if place + 1 == TASKS || rng.below(JOIN_EVERY) == 0 {
            (graph.join(work(place), &tips), tips.iter().cloned().collect())
        } else {
            let node = graph.task(work(place));
            let (hard, soft) = pick(&mut rng, &nodes);
            graph.after(&node, &hard);
            graph.soft_after(&node, &soft);
            (node, [hard, soft].concat())
        };
        tips.retain(|tip| !dependencies.contains(tip));
        tips.insert(node.clone());
        let ids = dependencies.iter().map(|dependency| dependency.id().to_owned()).collect();
        waits_for.insert(node.id().to_owned(), ids);
        nodes.push(node);
    }
    let id_at = |place: usize| nodes[place].id().to_owned();
    let crasher = number.is_multiple_of(CRASH_EVERY).then(|| id_at(rng.below(TASKS as u64) as usize));
    Dag { graph, waits_for, last: id_at(TASKS - 1), crasher }
}

/// Up to four earlier tasks; about one in five is waited for softly.
fn pick(rng: &mut Rng, earlier: &[Node]) -> (Vec<Node>, Vec<Node>) {
    let places: BTreeSet<u64> = (0..rng.below(5)).map(|_| rng.below(earlier.len() as u64)).collect();
    let picked = places.into_iter().filter_map(|place| earlier.get(place as usize).cloned());
    picked.partition(|_| rng.below(5) > 0)
}

/// What the handlers share.
#[derive(Clone)]
struct Handling {
    seed: u64,
    crashers: Arc<BTreeSet<String>>,
    done: Arc<AtomicU64>,
}

impl Handling {
    async fn handle(self, job: Job, crash: Crash) -> Done {
        let attempt = job.task.claim.as_ref().map_or(0, |claim| claim.attempt);
        if attempt == 1 && self.crashers.contains(&job.task.id) {
            return crash.now().await;
        }
        let seed =
            job.task.id.bytes().fold(self.seed ^ u64::from(attempt), |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
            });
        let mut rng = Rng::new(seed);
        tokio::time::sleep(rng.millis(0, 4)).await;
        if rng.below(FAIL_EVERY) == 0 {
            return Done::failed("on purpose").class("connection");
        }
        self.done.fetch_add(1, Ordering::Relaxed);
        Done::completed("done")
    }
}

/// Submits every graph and waits for its end. The second third begins after the first kill, the last after the second.
async fn run_all(client: Client, graphs: Vec<(Graph, String)>, killed: watch::Receiver<u64>) -> Result<()> {
    let count = graphs.len() as u64;
    stream::iter(graphs.into_iter().zip(0_u64..))
        .map(move |((graph, last), number)| {
            let (client, mut killed) = (client.clone(), killed.clone());
            async move {
                drop(killed.wait_for(|kills| *kills >= number * 3 / count).await?);
                graph.submit(&client.tasks()).await?;
                let task = client.tasks().wait(&last, LIMIT).await?;
                ensure!(task.status() == TaskStatus::Completed, "{last} is {:?}: {}", task.status(), task.error);
                anyhow::Ok(())
            }
        })
        .buffer_unordered(IN_FLIGHT)
        .try_collect::<Vec<()>>()
        .await?;
    Ok(())
}

/// Kills leaders until the work is done: in the middle of the first third and of the second, and by the clock.
async fn kill_leaders(
    cluster: &mut LocalCluster,
    running: &JoinHandle<Result<()>>,
    done: &AtomicU64,
    total: u64,
    killed: &watch::Sender<u64>,
) -> Result<()> {
    loop {
        let (kills, since) = (*killed.borrow(), Instant::now());
        let midway = total * (2 * kills + 1) / 6;
        until("the work is done, or the next leader is to go", LIMIT, || async {
            let halfway = kills < 2 && done.load(Ordering::Relaxed) >= midway;
            Ok((running.is_finished() || halfway || since.elapsed() >= BETWEEN_KILLS).then_some(()))
        })
        .await?;
        if running.is_finished() {
            return Ok(());
        }
        faults::replace_leader(cluster).await?;
        killed.send_replace(kills + 1);
    }
}

/// Crashes workers at moments that have nothing to do with what they are doing.
async fn crash_at_random(crashes: Vec<Crash>, mut rng: Rng) {
    loop {
        tokio::time::sleep(rng.millis(1_000, 3_000)).await;
        if let Some(crash) = crashes.get(rng.below(crashes.len() as u64) as usize) {
            crash.order();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_task_is_done_once_and_in_order_while_workers_and_leaders_die() -> Result<()> {
    let seed = seed();
    let count = env_u64("QUORATE_SEEDS", 6).max(1);
    let dags: Vec<Dag> = (0..count).map(|number| dag(seed, number)).collect();
    let total = count * TASKS as u64;
    let mut cluster = LocalCluster::builder().start().await?;
    let client = cluster.client()?;
    // That a worker which loses much is given nothing for a minute is another test's subject.
    let patient = BreakerSettings { failure_threshold: 10_000, ..Default::default() };
    client.breakers().configure("", patient).await?;

    let crashers = Arc::new(dags.iter().filter_map(|dag| dag.crasher.clone()).collect());
    let handling = Handling { seed, crashers, done: Arc::default() };
    let done = Arc::clone(&handling.done);
    let shape = Shape { capacity: 4, ttl: Duration::from_secs(2), ..Shape::new("worker", WORKERS, "graph") };
    let handler = move |job: Job, crash: Crash| handling.clone().handle(job, crash);
    let fleet = Fleet::start(&cluster.endpoints(), &shape, handler);
    let crashing = tokio::spawn(crash_at_random(fleet.crashes(), Rng::new(seed)));

    let began = Instant::now();
    let killed = watch::Sender::new(0);
    let graphs = dags.iter().map(|dag| (dag.graph.clone(), dag.last.clone())).collect();
    let running = tokio::spawn(run_all(client.clone(), graphs, killed.subscribe()));
    kill_leaders(&mut cluster, &running, &done, total, &killed).await?;
    running.await??;
    let took = began.elapsed();
    crashing.abort();
    let tally = fleet.stop().await?;
    faults::sessions_end(&cluster, LIMIT).await?;

    let kills = *killed.borrow();
    let per_second = u128::from(total) * 1_000 / took.as_millis().max(1);
    eprintln!("{total} tasks in {took:?} ({per_second} a second), {kills} leaders killed, {} crashes", tally.crashes);
    ensure!(kills >= 2 || count < 3, "only {kills} leaders were killed");
    check(&client, &dags).await?;
    cluster.check_replicas_equal().await?;
    cluster.close()
}

async fn check(client: &Client, dags: &[Dag]) -> Result<()> {
    let submitted: BTreeSet<String> = dags.iter().flat_map(|dag| dag.waits_for.keys().cloned()).collect();
    let present = tasks::all(client).await?;
    let completed = present.iter().filter(|task| task.status() == TaskStatus::Completed);
    let completed: BTreeSet<String> = completed.map(|task| task.id.clone()).collect();
    let lost: Vec<_> = submitted.difference(&completed).collect();
    ensure!(lost.is_empty(), "submitted and not completed: {lost:?}");
    ensure!(present.len() == submitted.len(), "{} tasks from {} submitted", present.len(), submitted.len());

    let history = history::read(client).await?;
    eprintln!("attempts: {:?}", history::outcomes(&history));
    for (id, dependencies) in dags.iter().flat_map(|dag| &dag.waits_for) {
        let (first, _) = history::completed_once(&history, id)?;
        for dependency in dependencies {
            let (_, before) = history::completed_once(&history, dependency)?;
            let in_order = before.ended_at_ms <= first.started_at_ms && before.token < first.token;
            ensure!(in_order, "{id} began before {dependency} was done: {first:?} {before:?}");
        }
    }
    for id in dags.iter().filter_map(|dag| dag.crasher.as_ref()) {
        let (first, _) = history::completed_once(&history, id)?;
        ensure!(first.outcome() == AttemptOutcome::Lost, "the crash at {id} left {first:?}");
    }
    Ok(())
}
