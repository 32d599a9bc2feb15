//! Fifty tasks that wait for each other in a circle: refused with the path, or imported, found, and resolved by
//! skipping one.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use quorate_client::v1::{RejectionCode, TaskSpec, TaskStatus};
use quorate_client::{Done, Error, Job};
use quorate_jepsen::fleet::{Crash, Fleet, Shape};
use quorate_jepsen::{LocalCluster, history, tasks};

const MEMBERS: usize = 50;
/// The least important: it gives way.
const VICTIM: usize = 17;
const LIMIT: Duration = Duration::from_secs(30);

fn id(member: usize) -> String {
    format!("ring-{:02}", member % MEMBERS)
}

/// Each waits for the next, the last for the first.
fn ring() -> Vec<TaskSpec> {
    let member = |n: usize| TaskSpec {
        dependencies: vec![id(n + 1)],
        priority: (n == VICTIM).then_some(1),
        ..tasks::spec(id(n), "ring")
    };
    (0..MEMBERS).map(member).collect()
}

/// Fails unless each of these waits for the next.
fn follows_the_ring(path: &[String]) -> Result<()> {
    let ring: BTreeSet<(String, String)> = (0..MEMBERS).map(|n| (id(n), id(n + 1))).collect();
    for pair in path.windows(2) {
        ensure!(ring.contains(&(pair[0].clone(), pair[1].clone())), "{} does not wait for {}", pair[0], pair[1]);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_circle_is_refused_by_name_or_found_and_resolved() -> Result<()> {
    let cluster = LocalCluster::builder().start().await?;
    let client = cluster.client()?;

    let message = match client.tasks().submit(ring()).await {
        Err(Error::Rejected { code: RejectionCode::FailedPrecondition, message, .. }) => message,
        other => bail!("a circle was answered with {other:?}"),
    };
    let (_, path) = message.split_once(": ").context("no path in the refusal")?;
    let path: Vec<String> = path.split(" -> ").map(str::to_owned).collect();
    ensure!(path.len() == MEMBERS + 1 && path.first() == path.last(), "not the whole circle: {message}");
    follows_the_ring(&path)?;
    ensure!(tasks::all(&client).await?.is_empty(), "a refused submission left tasks behind");

    client.tasks().import(ring()).await?;
    let found = client.tasks().deadlocks().await?.deadlocks;
    let [circle] = &found[..] else { bail!("{} circles instead of one: {found:?}", found.len()) };
    let members: BTreeSet<&String> = circle.task_ids.iter().collect();
    ensure!(circle.task_ids.len() == MEMBERS && members.len() == MEMBERS, "not the whole circle: {circle:?}");
    let closed: Vec<String> = circle.task_ids.iter().chain(circle.task_ids.first()).cloned().collect();
    follows_the_ring(&closed)?;
    ensure!(circle.victim == id(VICTIM), "{} is to give way", circle.victim);
    let why = client.tasks().why(&id(0)).await?.reasons;
    ensure!(why.iter().any(|reason| reason.code == "deadlock"), "no word of the circle in {why:?}");

    // The worker is there before the circle is resolved: it is that, and nothing else, which sets the others free.
    let handler = |_: Job, _: Crash| async { Done::completed("done") };
    let fleet = Fleet::start(&cluster.endpoints(), &Shape::new("worker", 1, "ring"), handler);
    let resolved = client.tasks().resolve_deadlocks().await?.resolved;
    ensure!(resolved == found, "resolved {resolved:?}");
    ensure!(client.tasks().deadlocks().await?.deadlocks.is_empty(), "it is still there");

    // Whoever waits for the victim is free; the one that the victim waited for is the last.
    let last = client.tasks().wait(&id(VICTIM + 1), LIMIT).await?;
    ensure!(last.status() == TaskStatus::Completed, "the last one is {:?}", last.status());
    fleet.stop().await?;
    let victim = client.tasks().get(&id(VICTIM)).await?.task.context("the victim is gone")?;
    ensure!(victim.status() == TaskStatus::Skipped, "the victim is {:?}", victim.status());
    ensure!(victim.attempts == 0 && victim.error.starts_with("deadlock: "), "{victim:?}");
    let stats = client.tasks().stats().await?;
    ensure!((stats.completed, stats.skipped) == (MEMBERS as u64 - 1, 1), "{stats:?}");
    let history = history::read(&client).await?;
    let mut before = 0;
    for n in (0..MEMBERS - 1).map(|step| VICTIM + MEMBERS - 1 - step) {
        let (first, _) = history::completed_once(&history, &id(n))?;
        ensure!(first.token > before, "{} was begun before what it waits for", id(n));
        before = first.token;
    }
    cluster.check_replicas_equal().await?;
    cluster.close()
}
