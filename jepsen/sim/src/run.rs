//! One run: faults under load, then no faults under load, then quiet, and every node must have the same.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use openraft::AsyncRuntime;
use openraft_rt_sim::SimRuntime;

use crate::load::{Client, Load};
use crate::node::Cluster;
use crate::plan;
use crate::types::{sleep_ms, spawn};
use crate::world::{Options, Totals, World};

const CLIENTS: u64 = 4;
/// Once healed, every client must be answered within this time, and every node have the same within it again.
const RECOVERY: Duration = Duration::from_secs(10);
/// How long the load goes on at least once healed.
const HEALED: Duration = Duration::from_secs(3);

/// What a run came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// The hash over its whole trace.
    pub(crate) hash: u64,
    /// What must not have happened.
    pub(crate) violations: Vec<String>,
    /// What happened.
    pub(crate) totals: Totals,
    /// The last lines of the trace.
    pub(crate) tail: Vec<String>,
}

/// Runs one seed. A panic is a violation like any other.
pub(crate) fn run(seed: u64, options: Options) -> Outcome {
    let ran = catch_unwind(AssertUnwindSafe(|| SimRuntime::with_seed(seed).block_on(simulate(seed, options))));
    ran.unwrap_or_else(|panic| Outcome {
        hash: 0,
        violations: vec![format!("panicked: {}", message(panic.as_ref()))],
        totals: Totals::default(),
        tail: Vec::new(),
    })
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a message")
}

async fn simulate(seed: u64, options: Options) -> Outcome {
    let world = Arc::new(World::new(seed, options));
    let size = if seed % 5 == 4 { 5 } else { 3 };
    match Cluster::new(world.clone(), size) {
        Ok(cluster) => phases(seed, &world, Arc::new(cluster)).await,
        Err(error) => world.violated(error),
    }
    let mut totals = *world.totals.lock();
    totals.elections = world.invariants.lock().elections();
    Outcome { hash: world.trace_hash(), violations: world.violations(), totals, tail: world.trace_tail() }
}

async fn phases(seed: u64, world: &World, cluster: Arc<Cluster>) {
    cluster.begin().await;
    spawn(cluster.clone().look_after());
    let load = Arc::new(Load::default());
    for number in 1..=CLIENTS {
        spawn(Client::new(number, seed, cluster.clone(), load.clone()).run());
    }
    plan::run(cluster.clone(), seed).await;
    plan::heal(&cluster);
    let healed = world.now();
    let lively = || world.now() >= healed + HEALED && load.stuck_since(healed).is_empty();
    if !wait(world, RECOVERY, lively).await {
        world.violated(format!("clients {:?} are not answered any more", load.stuck_since(healed)));
    }
    load.end();
    // What was begun is answered or given up; then nothing moves but what is due.
    if !wait(world, RECOVERY, || cluster.is_even()).await {
        world.violated("the nodes do not come to the same state".to_owned());
    }
    if !world.has_failed() {
        world.check(cluster.compare());
    }
    cluster.end().await;
}

/// Waits for something, but not for longer, nor once something was found; says whether it need not be complained of.
async fn wait(world: &World, longest: Duration, mut reached: impl FnMut() -> bool) -> bool {
    let until = world.now() + longest;
    while !world.has_failed() && !reached() {
        if world.now() >= until {
            return false;
        }
        sleep_ms(20).await;
    }
    true
}
