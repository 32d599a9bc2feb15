//! Limits of 1, 2 and 7 under fifty workers while leaders are killed: never more at once, and never fewer while there
//! is work.
//!
//! Tasks with one key are fed so that there is always work for each; those with two start where both have room at once,
//! which is mostly at the end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use quorate_client::v1::{LimitScope, LimitUse, RetryPolicy, TaskSpec, TaskStatus};
use quorate_client::{Client, Done, Job};
use quorate_jepsen::fleet::{Fleet, Shape};
use quorate_jepsen::history::History;
use quorate_jepsen::rng::{Rng, env_u64, seed};
use quorate_jepsen::until::until;
use quorate_jepsen::{LocalCluster, faults, history, tasks};
use tokio::sync::watch;

const KEYS: [(&str, u32); 3] = [("one", 1), ("two", 2), ("seven", 7)];
const PAIRS: [&str; 3] = ["one.two", "one.seven", "two.seven"];
const EACH_PAIR: usize = 20;
const WORKERS: usize = 50;
const LIMIT: Duration = Duration::from_secs(60);
/// Between two looks at what runs.
const POLL: Duration = Duration::from_millis(100);
/// Before the first kill, between two, and after the last.
const CALM: Duration = Duration::from_millis(1_500);
/// What is seen so soon after a kill does not count.
const UPROAR: Duration = Duration::from_secs(3);
/// So many tasks of a key are kept waiting, for each that may run; fed in portions of half as many.
const STOCK: u64 = 40;
/// With fewer left than this many for each that may run, a look does not count.
const SCARCE: u64 = 5;
/// In percent.
const AT_THE_LIMIT: usize = 80;
const FEWEST_LOOKS: usize = 10;

/// How much work there is for each key, by what was acknowledged and what was handled.
#[derive(Debug, Default)]
struct Stock {
    submitted: [AtomicU64; 3],
    handled: [AtomicU64; 3],
}

impl Stock {
    fn left(&self, key: usize) -> u64 {
        self.submitted[key].load(Ordering::SeqCst).saturating_sub(self.handled[key].load(Ordering::SeqCst))
    }

    fn is_scarce(&self, key: usize) -> bool {
        self.left(key) < SCARCE * u64::from(KEYS[key].1)
    }
}

/// A task that counts against each key in its id: `one.two-17`.
fn work(keys: &str, n: u64) -> TaskSpec {
    let retry = RetryPolicy { max_retries: 100, base_ms: 10, cap_ms: 100, ..Default::default() };
    TaskSpec {
        concurrency_keys: keys_of(keys).map(str::to_owned).collect(),
        retry: Some(retry),
        ..tasks::spec(format!("{keys}-{n}"), "limited")
    }
}

fn keys_of(id: &str) -> impl Iterator<Item = &str> {
    id.split('-').next().unwrap_or_default().split('.')
}

/// Submits tasks with one key as others are handled, until stopped. Gives how many.
async fn feed(client: Client, stock: Arc<Stock>, stopped: watch::Receiver<bool>) -> Result<u64> {
    let mut submitted = 0;
    while !*stopped.borrow() {
        for (key, (name, limit)) in KEYS.into_iter().enumerate() {
            let portion = STOCK / 2 * u64::from(limit);
            if stock.left(key) > 2 * portion {
                continue;
            }
            client.tasks().submit((submitted..submitted + portion).map(|n| work(name, n)).collect()).await?;
            stock.submitted[key].fetch_add(portion, Ordering::SeqCst);
            submitted += portion;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(submitted)
}

/// How many run under each key, in the order of [`KEYS`].
async fn running(client: &Client) -> Result<[u32; 3]> {
    let limits = client.dispatch().limits().await?.limits;
    let under = |name: &str| {
        let named = |limit: &&LimitUse| limit.limit.as_ref().is_some_and(|l| l.name == name);
        limits.iter().find(named).map_or(0, |limit| limit.running)
    };
    Ok(KEYS.map(|(name, _)| under(name)))
}

/// One look at what runs.
struct Look {
    began: Instant,
    ended: Instant,
    running: [u32; 3],
    scarce: [bool; 3],
}

async fn look_on(client: Client, stock: Arc<Stock>, stopped: watch::Receiver<bool>) -> Vec<Look> {
    let mut looks = Vec::new();
    while !*stopped.borrow() {
        let began = Instant::now();
        // Without an answer there is nothing to see.
        if let Ok(running) = running(&client).await {
            let scarce = [0, 1, 2].map(|key| stock.is_scarce(key));
            looks.push(Look { began, ended: Instant::now(), running, scarce });
        }
        tokio::time::sleep(POLL).await;
    }
    looks
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_is_never_exceeded_and_never_left_unused() -> Result<()> {
    let seed = seed();
    let kills = env_u64("QUORATE_KILLS", 2);
    let mut cluster = LocalCluster::builder().start().await?;
    let client = cluster.client()?;
    for (name, max) in KEYS {
        client.dispatch().set_limit(LimitScope::Key, name, max).await?;
    }
    let pairs: Vec<TaskSpec> =
        PAIRS.iter().flat_map(|pair| (0..EACH_PAIR as u64).map(move |n| work(pair, n))).collect();
    let pair_count = pairs.len() as u64;
    client.tasks().submit(pairs).await?;

    let stock = Arc::new(Stock::default());
    let (stop, stopped) = watch::channel(false);
    let feeding = tokio::spawn(feed(client.clone(), Arc::clone(&stock), stopped.clone()));
    let fleet = start_workers(&cluster, seed, &stock);
    until("every limit is reached", LIMIT, || async {
        Ok((running(&client).await? == KEYS.map(|(_, max)| max)).then_some(()))
    })
    .await?;
    let looking = tokio::spawn(look_on(client.clone(), Arc::clone(&stock), stopped));
    let mut killed = Vec::new();
    // Time itself is the subject here: what is seen while nothing happens, and how soon it is so again after a kill.
    tokio::time::sleep(CALM).await;
    for _ in 0..kills {
        let at = faults::replace_leader(&mut cluster).await?;
        killed.push(at);
        tokio::time::sleep((UPROAR + CALM).saturating_sub(at.elapsed()).max(CALM)).await;
    }
    stop.send_replace(true);
    let looks = looking.await?;
    let submitted = feeding.await?? + pair_count;
    until("every task is done", LIMIT, || async {
        Ok((client.tasks().stats().await?.completed == submitted).then_some(()))
    })
    .await?;
    fleet.stop().await?;

    never_idle(&looks, &killed)?;
    never_more(&client, submitted).await?;
    cluster.check_replicas_equal().await?;
    cluster.close()
}

fn start_workers(cluster: &LocalCluster, seed: u64, stock: &Arc<Stock>) -> Fleet {
    let stock = Arc::clone(stock);
    Fleet::start(&cluster.endpoints(), &Shape::new("worker", WORKERS, "limited"), move |job: Job, _| {
        let stock = Arc::clone(&stock);
        async move {
            tokio::time::sleep(Rng::new(seed ^ job.token()).millis(1, 6)).await;
            let keys: Vec<&str> = keys_of(&job.task.id).collect();
            if let [only] = keys[..]
                && let Some(key) = KEYS.iter().position(|(name, _)| *name == only)
            {
                stock.handled[key].fetch_add(1, Ordering::SeqCst);
            }
            Done::completed("done")
        }
    })
}

/// While there was work, and no leader had just gone, each limit was reached nearly always.
fn never_idle(looks: &[Look], killed: &[Instant]) -> Result<()> {
    let in_uproar = |look: &Look| killed.iter().any(|at| look.ended >= *at && look.began < *at + UPROAR);
    for (key, (name, limit)) in KEYS.into_iter().enumerate() {
        let counted: Vec<&Look> = looks.iter().filter(|look| !look.scarce[key] && !in_uproar(look)).collect();
        let full = counted.iter().filter(|look| look.running[key] == limit).count();
        eprintln!("{name}: at its limit in {full} of {} looks ({} in all)", counted.len(), looks.len());
        ensure!(counted.len() >= FEWEST_LOOKS, "{name}: too few looks to say anything");
        ensure!(full * 100 >= counted.len() * AT_THE_LIMIT, "{name}: there was room and work, and nothing started");
        let most = looks.iter().map(|look| look.running[key]).max().unwrap_or_default();
        ensure!(most <= limit, "{name}: {most} ran at once");
    }
    Ok(())
}

/// By the attempts: no more at once than each limit allows, and every task done once.
async fn never_more(client: &Client, submitted: u64) -> Result<()> {
    let present = tasks::all(client).await?;
    ensure!(present.len() as u64 == submitted, "{} tasks from {submitted}", present.len());
    let history = history::read(client).await?;
    for task in &present {
        ensure!(task.status() == TaskStatus::Completed, "{} is {:?}", task.id, task.status());
        history::completed_once(&history, &task.id)?;
    }
    eprintln!("{submitted} tasks; attempts: {:?}", history::outcomes(&history));
    for (name, limit) in KEYS {
        let peak = peak(&history, name).context("nothing ran")?;
        ensure!(peak == i64::from(limit), "{name}: {peak} at once instead of {limit}");
    }
    Ok(())
}

/// The most attempts under a key at once. What ends and what begins in the same millisecond did not overlap.
fn peak(history: &History, key: &str) -> Option<i64> {
    let mut changes: BTreeMap<u64, (i64, i64)> = BTreeMap::new();
    let under = history.iter().filter(|(id, _)| keys_of(id).any(|own| own == key));
    for attempt in under.flat_map(|(_, attempts)| attempts) {
        changes.entry(attempt.started_at_ms).or_default().1 += 1;
        changes.entry(attempt.ended_at_ms).or_default().0 += 1;
    }
    let counts = changes.into_values().scan(0, |count, (ended, began)| {
        *count += began - ended;
        Some(*count)
    });
    counts.max()
}
