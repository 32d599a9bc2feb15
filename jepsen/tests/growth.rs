//! Work that grows while it runs: children of a parent that is tried again, a cancel that reaches them, and reviews.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use quorate_client::v1::{AttemptOutcome, EvidencePolicy, ListTasksRequest, RetryPolicy, Task, TaskSpec, TaskStatus};
use quorate_client::{Client, Done, Job};
use quorate_jepsen::fleet::{Crash, Fleet, Shape};
use quorate_jepsen::until::until;
use quorate_jepsen::{LocalCluster, history, tasks};
use tokio::sync::watch;

const LIMIT: Duration = Duration::from_secs(30);
/// How many children the parent has, and how many of them it had when its first worker crashed.
const CHILDREN: usize = 5;
const BORN_EARLY: usize = 3;
const GRACE_MS: u64 = 500;

fn work(id: &str) -> TaskSpec {
    let retry = RetryPolicy { max_retries: 10, base_ms: 10, ..Default::default() };
    TaskSpec { retry: Some(retry), ..tasks::spec(id, "grow") }
}

async fn children(client: &Client, parent_id: &str) -> Result<Vec<Task>> {
    let request = ListTasksRequest { parent_id: parent_id.into(), limit: 1_000, ..Default::default() };
    Ok(client.tasks().list(request).await?.tasks)
}

async fn task(client: &Client, id: &str) -> Result<Task> {
    client.tasks().get(id).await?.task.with_context(|| format!("{id} is gone"))
}

/// The first worker crashes after some of the children; the next one asks for all of them.
async fn raise(job: Job, crash: Crash) -> Done {
    if job.task.id != "parent" {
        return Done::completed("done");
    }
    let first = job.task.claim.as_ref().is_some_and(|claim| claim.attempt == 1);
    // Without ids of their own: nothing but their keys keeps them from being born twice.
    let child = |n: usize| TaskSpec { task_id: String::new(), idempotency_key: format!("child-{n}"), ..work("child") };
    let wanted = if first { BORN_EARLY } else { CHILDREN };
    match job.spawn_awaited((0..wanted).map(child).collect()).await {
        Err(error) => Done::failed(error.to_string()),
        Ok(_) if first => crash.now().await,
        Ok(spawned) => Done::completed(spawned.tasks.iter().filter(|child| child.existed).count().to_string()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_that_is_tried_again_has_no_child_twice() -> Result<()> {
    let cluster = LocalCluster::builder().start().await?;
    let client = cluster.client()?;
    let after = TaskSpec { dependencies: vec!["parent".into()], ..work("after") };
    client.tasks().submit(vec![work("parent"), after]).await?;
    let shape = Shape { capacity: 2, ttl: Duration::from_secs(2), ..Shape::new("worker", 2, "grow") };
    let fleet = Fleet::start(&cluster.endpoints(), &shape, raise);
    let ended = client.tasks().wait("after", LIMIT).await?;
    ensure!(ended.status() == TaskStatus::Completed, "the one that waits for all is {:?}", ended.status());
    let tally = fleet.stop().await?;
    ensure!(tally.crashes == 1, "{} crashes", tally.crashes);

    let parent = task(&client, "parent").await?;
    ensure!(parent.children as usize == CHILDREN, "the parent counts {} children", parent.children);
    let found = String::from_utf8_lossy(&parent.result).into_owned();
    ensure!(found == BORN_EARLY.to_string(), "the second worker found {found} children");
    let history = history::read(&client).await?;
    let (first, second) = history::completed_once(&history, "parent")?;
    ensure!(first.outcome() == AttemptOutcome::Lost, "the crash left {first:?}");
    ensure!(first.agent_id != second.agent_id, "both attempts are by {}", first.agent_id);

    let (begun, _) = history::completed_once(&history, "after")?;
    ensure!(begun.token > second.token, "it did not wait for the parent");
    let children = children(&client, "parent").await?;
    let keys: BTreeSet<String> =
        children.iter().filter_map(|child| child.spec.as_ref()).map(|spec| spec.idempotency_key.clone()).collect();
    ensure!(children.len() == CHILDREN && keys.len() == CHILDREN, "{} children by {keys:?}", children.len());
    for child in &children {
        let (_, done) = history::completed_once(&history, &child.id)?;
        ensure!(done.token < begun.token && done.ended_at_ms <= begun.started_at_ms, "it did not wait for {done:?}");
    }
    ensure!(tasks::all(&client).await?.len() == CHILDREN + 2, "there are tasks that nobody asked for");
    cluster.check_replicas_equal().await?;
    cluster.close()
}

/// A parent with children of every kind: two that stop when asked, one that does not, and one that nobody can do.
async fn family(job: Job, mut release: watch::Receiver<bool>) -> Done {
    if job.task.id == "stubborn" {
        // An error means that the test has ended.
        let _ = release.wait_for(|released| *released).await;
        return Done::completed("too late");
    }
    if job.task.id == "root" {
        let child = |id: &str| TaskSpec { idempotency_key: id.into(), ..work(id) };
        let stubborn = TaskSpec { cancel_grace_ms: Some(GRACE_MS), ..child("stubborn") };
        let waiting = TaskSpec { required_capabilities: vec!["nobody".into()], ..child("waiting") };
        if let Err(error) = job.spawn(vec![child("polite-1"), child("polite-2"), stubborn, waiting]).await {
            return Done::failed_permanently(error.to_string());
        }
    }
    job.cancelled().await;
    Done::Cancelled
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_reaches_the_children_and_fences_the_one_that_ignores_it() -> Result<()> {
    let polite = ["root", "polite-1", "polite-2"];
    let cluster = LocalCluster::builder().start().await?;
    let client = cluster.client()?;
    client.tasks().submit_one(work("root")).await?;
    let (release, released) = watch::channel(false);
    let shape = Shape { capacity: 8, ..Shape::new("worker", 1, "grow") };
    let fleet = Fleet::start(&cluster.endpoints(), &shape, move |job, _| family(job, released.clone()));
    until("the parent and three of its children run", LIMIT, || async {
        Ok((client.tasks().stats().await?.in_progress == 4).then_some(()))
    })
    .await?;

    let cancelled = client.tasks().cancel("root", "changed our minds").await?;
    let told: BTreeSet<&str> = cancelled.running.iter().map(|running| running.task_id.as_str()).collect();
    ensure!(told == BTreeSet::from(["root", "polite-1", "polite-2", "stubborn"]), "told to stop: {told:?}");
    ensure!(cancelled.reached == 5, "{} tasks were reached", cancelled.reached);
    for id in polite.into_iter().chain(["stubborn", "waiting"]) {
        let task = client.tasks().wait(id, LIMIT).await?;
        ensure!(task.status() == TaskStatus::Cancelled, "{id} is {:?}", task.status());
    }
    let history = history::read(&client).await?;
    ensure!(!history.contains_key("waiting"), "the one that nobody can do was tried");
    for id in polite {
        let [attempt] = history::of(&history, id)? else { bail!("{id} was tried more than once") };
        let stopped = attempt.outcome() == AttemptOutcome::Cancelled && attempt.cancel_acknowledged;
        ensure!(stopped, "{id} did not say that it stopped: {attempt:?}");
    }
    let [fenced] = history::of(&history, "stubborn")? else { bail!("stubborn was tried more than once") };
    let ignored = fenced.outcome() == AttemptOutcome::Cancelled && !fenced.cancel_acknowledged;
    ensure!(ignored && fenced.orphan.is_none(), "{fenced:?}");
    let notice = cancelled.running.iter().find(|running| running.task_id == "stubborn").context("it was not told")?;
    ensure!(fenced.ended_at_ms >= notice.fence_at_ms, "it was fenced before its grace was over: {fenced:?}");

    // It comes round in the end, and finds that nobody wants to know.
    release.send_replace(true);
    let tally = fleet.stop().await?;
    ensure!((tally.report.cancelled, tally.report.fenced) == (3, 1), "{tally:?}");
    let history = history::read(&client).await?;
    let late = history::of(&history, "stubborn")?.first().and_then(|attempt| attempt.orphan.as_ref());
    ensure!(late.is_some_and(|orphan| orphan.result.as_ref() == b"too late"), "what came late is {late:?}");
    ensure!(task(&client, "stubborn").await?.result.is_empty(), "what came late counts");
    cluster.check_replicas_equal().await?;
    cluster.close()
}

/// Writes, and writes again by what the reviewer said.
async fn write(job: Job) -> Done {
    match job.feedback() {
        _ if job.is_review() => Done::failed_permanently("the author was given its own review"),
        "" => Done::completed("draft"),
        feedback => Done::completed(format!("revised: {feedback}")),
    }
}

/// Sends the first report back, and accepts the second.
async fn review(job: Job, seen: Arc<AtomicU64>) -> Done {
    match (job.review_of(), seen.fetch_add(1, Ordering::SeqCst)) {
        (Some("essay"), 0) => Done::rework("shorter"),
        (Some("essay"), _) => Done::accept("good"),
        (other, _) => Done::failed_permanently(format!("a review of {other:?}")),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_is_sent_back_once_and_then_accepted_by_another() -> Result<()> {
    let cluster = LocalCluster::builder().start().await?;
    let client = cluster.client()?;
    // The author could review as well, and must not: both are there from the beginning.
    let writers = Shape { capabilities: vec!["write".into(), "review".into()], ..Shape::new("author", 1, "write") };
    let authors = Fleet::start(&cluster.endpoints(), &writers, |job, _| write(job));
    let seen = Arc::new(AtomicU64::new(0));
    let reviewing = move |job: Job, _: Crash| review(job, Arc::clone(&seen));
    let reviewers = Fleet::start(&cluster.endpoints(), &Shape::new("reviewer", 1, "review"), reviewing);

    let evidence =
        EvidencePolicy { agent_reviews: 1, review_capabilities: vec!["review".into()], ..Default::default() };
    client.tasks().submit_one(TaskSpec { evidence: Some(evidence), ..tasks::spec("essay", "write") }).await?;
    let essay = client.tasks().wait("essay", LIMIT).await?;
    ensure!(essay.status() == TaskStatus::Completed, "it is {:?}: {}", essay.status(), essay.error);
    authors.stop().await?;
    reviewers.stop().await?;

    ensure!(essay.reworks == 1 && essay.author_agent_id == "author-0" && !essay.touched, "{essay:?}");
    ensure!(essay.result.as_ref() == b"revised: shorter", "the result is {:?}", essay.result);
    let [accepted] = &essay.reviews[..] else { bail!("{} reviews count", essay.reviews.len()) };
    ensure!(accepted.accepted && !accepted.person && accepted.reviewer == "reviewer-0", "{accepted:?}");
    let history = history::read(&client).await?;
    for attempt in history::of(&history, "essay")? {
        ensure!(attempt.outcome() == AttemptOutcome::Completed && attempt.agent_id == "author-0", "{attempt:?}");
    }
    ensure!(history["essay"].len() == 2, "it was written {} times", history["essay"].len());
    let reviews = children(&client, "essay").await?;
    ensure!(reviews.len() == 2, "{} review tasks", reviews.len());
    for review in &reviews {
        ensure!(review.status() == TaskStatus::Completed && review.review_of == "essay", "{review:?}");
        let (_, done) = history::completed_once(&history, &review.id)?;
        ensure!(done.agent_id == "reviewer-0", "reviewed by {}", done.agent_id);
    }
    cluster.check_replicas_equal().await?;
    cluster.close()
}
