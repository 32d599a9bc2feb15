//! Breakers across the cluster: an agent that fails is given nothing more, whoever leads; of many that ask whether a
//! broken thing works again, one may try.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use quorate_client::v1::{
    AcquireBreakerRequest, AcquireBreakerResponse, AttemptOutcome, Breaker, BreakerSettings, BreakerState,
    ReportBreakerRequest, RetryPolicy, TaskSpec, TaskStatus,
};
use quorate_client::{Client, Done, Job};
use quorate_jepsen::fleet::{Crash, Fleet, Shape};
use quorate_jepsen::until::until;
use quorate_jepsen::{DevNode, LocalCluster, faults, history, tasks};
use quorate_proto::v1::breakers_client::BreakersClient;

const LIMIT: Duration = Duration::from_secs(30);
/// Failures in a row that open a breaker of which nobody said otherwise.
const THRESHOLD: usize = 5;
const WELL: usize = 20;
const NAME: &str = "provider:test";
const ASK_EACH: usize = 10;

fn work(id: String) -> TaskSpec {
    let retry = RetryPolicy { max_retries: 100, base_ms: 10, cap_ms: 100, ..Default::default() };
    TaskSpec { retry: Some(retry), ..tasks::spec(id, "work") }
}

/// The breaker, if anything was ever said of it.
async fn look(client: &Client, name: &str) -> Result<Option<Breaker>> {
    match client.breakers().get(name).await {
        Ok(found) => Ok(found.breaker),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn becomes(client: &Client, name: &str, state: BreakerState) -> Result<Breaker> {
    until(&format!("breaker {name} is {state:?}"), LIMIT, || async {
        Ok(look(client, name).await?.filter(|breaker| breaker.state() == state))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_fails_is_given_nothing_more_whoever_leads() -> Result<()> {
    let mut cluster = LocalCluster::builder().start().await?;
    let client = cluster.client()?;
    // Longer than this test can take: nothing here may be a probe.
    let settings = BreakerSettings { open_ms: 3_600_000, ..Default::default() };
    client.breakers().configure("", settings).await?;

    let failing = |_: Job, _: Crash| async { Done::failed("no answer").class("connection") };
    let bad = Fleet::start(&cluster.endpoints(), &Shape::new("bad", 1, "work"), failing);
    let ids: Vec<String> = (0..THRESHOLD).map(|n| format!("ill-{n}")).collect();
    client.tasks().submit(ids.iter().cloned().map(work).collect()).await?;
    let open = becomes(&client, "agent:bad-0", BreakerState::Open).await?;
    ensure!(open.failures as usize == THRESHOLD && open.opened_count == 1, "{open:?}");

    let doing = |_: Job, _: Crash| async { Done::completed("done") };
    let good = Fleet::start(&cluster.endpoints(), &Shape::new("good", 1, "work"), doing);
    let later: Vec<String> = (0..WELL).map(|n| format!("well-{n}")).collect();
    client.tasks().submit(later.iter().cloned().map(work).collect()).await?;
    faults::replace_leader(&mut cluster).await?;
    let after = look(&client, "agent:bad-0").await?.context("the breaker went with the leader")?;
    ensure!(after == open, "it was {open:?} and is {after:?}");

    for id in ids.iter().chain(&later) {
        let task = client.tasks().wait(id, LIMIT).await?;
        ensure!(task.status() == TaskStatus::Completed, "{id} is {:?}: {}", task.status(), task.error);
    }
    let asked = client.breakers().acquire(None, "agent:bad-0", "test").await?;
    ensure!(!asked.allowed && asked.state() == BreakerState::Open, "{asked:?}");
    ensure!(asked.fallback_agent_id == "good-0", "instead of it, {:?} is named", asked.fallback_agent_id);
    bad.stop().await?;
    good.stop().await?;

    let history = history::read(&client).await?;
    for id in ids.iter().chain(&later) {
        let (_, completed) = history::completed_once(&history, id)?;
        ensure!(completed.agent_id == "good-0", "{id} was done by {}", completed.agent_id);
    }
    let by_bad = history.values().flatten().filter(|attempt| attempt.agent_id == "bad-0");
    let by_bad: Vec<AttemptOutcome> = by_bad.map(|attempt| attempt.outcome()).collect();
    ensure!(by_bad == [AttemptOutcome::Failed; THRESHOLD], "its attempts: {by_bad:?}");
    cluster.check_replicas_equal().await?;
    cluster.close()
}

/// Asks ten times on each node, all at once. With the generated client: the library would go to the leader.
async fn ask_everywhere(cluster: &LocalCluster) -> Result<Vec<AcquireBreakerResponse>> {
    let mut stubs = Vec::new();
    for endpoint in cluster.endpoints() {
        stubs.push(BreakersClient::connect(format!("http://{endpoint}")).await?);
    }
    let asked = stubs.iter().flat_map(|stub| (0..ASK_EACH).map(move |_| stub.clone())).enumerate();
    let asked = asked.map(|(n, mut stub)| async move {
        let request = AcquireBreakerRequest { name: NAME.into(), holder: format!("caller-{n}"), request: None };
        anyhow::Ok(stub.acquire(request).await?.into_inner())
    });
    try_join_all(asked).await
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_that_ask_a_half_open_breaker_one_may_try() -> Result<()> {
    let cluster = LocalCluster::builder().start().await?;
    let client = cluster.client()?;
    let settings = BreakerSettings { open_ms: 500, ..Default::default() };
    client.breakers().configure(NAME, settings).await?;
    let session = client.sessions().open(Duration::from_secs(10)).await?;
    for n in 1..=THRESHOLD {
        let failure = ReportBreakerRequest {
            name: NAME.into(),
            error: "503".into(),
            error_class: "connection".into(),
            ..Default::default()
        };
        let breaker = client.breakers().report(Some(&session), failure).await?.breaker.context("no breaker")?;
        let expected = if n < THRESHOLD { BreakerState::Closed } else { BreakerState::Open };
        ensure!(breaker.state() == expected, "after {n} failures: {breaker:?}");
    }

    becomes(&client, NAME, BreakerState::HalfOpen).await?;
    let answers = ask_everywhere(&cluster).await?;
    let allowed: Vec<_> = answers.iter().filter(|answer| answer.allowed).collect();
    ensure!(answers.len() == 3 * ASK_EACH && allowed.len() == 1, "{} of {} may try", allowed.len(), answers.len());
    let probe_token = allowed[0].probe_token;
    ensure!(probe_token > 0, "the one that may try has no token");
    let waiting = |answer: &AcquireBreakerResponse| {
        answer.allowed || (answer.state() == BreakerState::HalfOpen && answer.probe_token == 0)
    };
    ensure!(answers.iter().all(waiting), "{answers:?}");

    let success = ReportBreakerRequest { name: NAME.into(), success: true, probe_token, ..Default::default() };
    let breaker = client.breakers().report(Some(&session), success).await?.breaker.context("no breaker")?;
    ensure!(breaker.state() == BreakerState::Closed && breaker.failures == 0, "{breaker:?}");
    let answers = ask_everywhere(&cluster).await?;
    ensure!(answers.iter().all(|answer| answer.allowed && answer.probe_token == 0), "{answers:?}");
    session.close().await?;
    cluster.check_replicas_equal().await?;
    cluster.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_fleet_that_fails_costs_a_few_attempts_and_no_task() -> Result<()> {
    const EACH: usize = 4;
    const TASKS: usize = 1_000;
    // Those that were under way when the breaker opened may fail too.
    const MOST_FAILED: usize = EACH * (THRESHOLD + 2);
    let dir = tempfile::tempdir()?;
    let node = DevNode::start(dir.path(), None).await?;
    let client = node.client()?;
    let endpoints = [node.endpoint().to_owned()];
    let settings = BreakerSettings { open_ms: 3_600_000, ..Default::default() };
    client.breakers().configure("", settings).await?;
    let failing = |_: Job, _: Crash| async { Done::failed("no answer").class("connection") };
    let doing = |_: Job, _: Crash| async { Done::completed("done") };
    let bad = Fleet::start(&endpoints, &Shape::new("bad", EACH, "work"), failing);
    let good = Fleet::start(&endpoints, &Shape::new("good", EACH, "work"), doing);
    client.tasks().submit((0..TASKS).map(|n| work(format!("t-{n}"))).collect()).await?;
    until("everything is completed", LIMIT, || async {
        Ok((client.tasks().stats().await?.completed == TASKS as u64).then_some(()))
    })
    .await?;
    bad.stop().await?;
    good.stop().await?;
    let history = history::read(&client).await?;
    let failed = history.values().flatten().filter(|attempt| attempt.outcome() == AttemptOutcome::Failed).count();
    println!("{TASKS} tasks completed, {failed} attempts failed");
    ensure!((1..=MOST_FAILED).contains(&failed), "{failed} attempts failed");
    node.stop().await
}
