//! Workers that vanish in the middle of a task: it completes elsewhere, once, and the late result is kept apart.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use quorate_client::v1::{
    AttemptOutcome, FinishKind, FinishTaskRequest, RegisterAgentRequest, RetryPolicy, Task, TaskSpec, TaskStatus,
    work_event,
};
use quorate_client::{Client, Config, Done, Error, Job, Worker};
use quorate_jepsen::until::until;
use quorate_jepsen::{DevNode, LocalCluster, tasks};
use tokio::sync::watch;

const TTL: Duration = Duration::from_secs(2);
const LIMIT: Duration = Duration::from_secs(30);

fn work(id: &str) -> TaskSpec {
    TaskSpec { retry: Some(RetryPolicy { max_retries: 3, ..Default::default() }), ..tasks::spec(id, "work") }
}

/// Claims one task by hand, then vanishes: the session is dropped, never closed.
async fn claim_and_vanish(client: &Client) -> Result<(String, u64)> {
    let session = client.sessions().open(TTL).await?;
    let request = RegisterAgentRequest {
        agent_id: "vanisher".into(),
        session_id: session.id().to_string(),
        agent_type: "tester".into(),
        capabilities: vec!["work".into()],
        ..Default::default()
    };
    client.agents().register(&session, request).await?;
    let claimed = client.tasks().claim(&session, "vanisher", 1, Duration::from_secs(5)).await?;
    let task = claimed.tasks.into_iter().next().context("nothing claimed")?;
    let token = task.claim.context("a claimed task without its claim")?.token;
    Ok((task.id, token))
}

/// A library worker in a runtime of its own, which is torn down in the middle of a task: as near to a crash as one process gets.
async fn crash_a_worker(endpoints: Vec<String>, client: &Client) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.spawn(async move {
        let client = Client::connect(Config::new(endpoints))?;
        let worker = Worker::builder(client).agent_id("crasher").capabilities(["work"]).session_ttl(TTL).build();
        let never = |_job: Job| std::future::pending::<Done>();
        worker.run(never, std::future::pending::<()>()).await.map(|_| ())
    });
    let started = until("the worker holds a task", LIMIT, || async {
        Ok(tasks::all(client).await?.iter().any(|task| held_by(task, "crasher")).then_some(()))
    })
    .await;
    // Before any `?`: a runtime must not be dropped inside another one.
    runtime.shutdown_background();
    started
}

fn held_by(task: &Task, agent: &str) -> bool {
    task.claim.as_ref().is_some_and(|claim| claim.agent_id == agent)
}

async fn good_worker(client: Client, name: &'static str, mut stop: watch::Receiver<bool>) -> Result<u64, Error> {
    let worker = Worker::builder(client).agent_id(name).capabilities(["work"]).capacity(2).session_ttl(TTL).build();
    let handler = move |job: Job| async move {
        let text = format!("{} by {name}", job.task.id);
        Done::completed(text)
    };
    let stopped = async move {
        // An error means that the sender is gone, which is a reason to stop as well.
        let _ = stop.wait_for(|stop| *stop).await;
    };
    Ok(worker.run(handler, stopped).await?.completed)
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_of_lost_workers_complete_elsewhere_exactly_once() -> Result<()> {
    let cluster = LocalCluster::builder().start().await?;
    let client = cluster.client()?;
    let ids: Vec<String> = (0..12).map(|n| format!("task-{n:02}")).collect();
    client.tasks().submit(ids.iter().map(|id| work(id)).collect()).await?;
    let (vanished_id, old_token) = claim_and_vanish(&client).await?;
    crash_a_worker(cluster.endpoints(), &client).await?;

    let (stop, stopped) = watch::channel(false);
    let first = tokio::spawn(good_worker(cluster.client()?, "good-1", stopped.clone()));
    let second = tokio::spawn(good_worker(cluster.client()?, "good-2", stopped));
    for id in &ids {
        let task = client.tasks().wait(id, LIMIT).await?;
        ensure!(task.status == TaskStatus::Completed as i32, "{id} ended as {:?}: {}", task.status(), task.error);
    }

    let late = FinishTaskRequest {
        task_id: vanished_id.clone(),
        token: old_token,
        kind: FinishKind::Completed as i32,
        result: b"too late".to_vec().into(),
        ..Default::default()
    };
    let answer = client.tasks().finish(None, late).await;
    ensure!(matches!(answer, Err(Error::Fenced { .. })), "a late finish was answered with {answer:?}");
    let attempts = tasks::attempts(&client, &vanished_id).await?;
    let old = attempts.iter().find(|attempt| attempt.token == old_token).context("the lost attempt is not listed")?;
    ensure!(old.outcome == AttemptOutcome::Lost as i32, "the lost attempt ended as {:?}", old.outcome());
    let orphan = old.orphan.as_ref().context("the late result was thrown away")?;
    ensure!(orphan.result.as_ref() == b"too late", "the orphan has another result");
    let kept = client.tasks().get(&vanished_id).await?.task.context("the task is gone")?;
    ensure!(kept.result.as_ref() != b"too late", "the late result replaced the accepted one");

    let mut retried = 0;
    for id in &ids {
        let attempts = tasks::attempts(&client, id).await?;
        let completed = tasks::count(&attempts, AttemptOutcome::Completed);
        ensure!(completed == 1, "{id} was completed {completed} times");
        retried += tasks::count(&attempts, AttemptOutcome::Lost);
    }
    ensure!(retried == 2, "{retried} attempts were lost instead of 2");
    stop.send_replace(true);
    let completed = first.await?? + second.await??;
    ensure!(completed == 12, "the two workers count {completed} completions instead of 12");
    cluster.check_replicas_equal().await?;
    cluster.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_task_is_let_go_by_its_worker() -> Result<()> {
    let cluster = LocalCluster::builder().nodes(1).start().await?;
    let client = cluster.client()?;
    client.tasks().submit_one(work("endless")).await?;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let (tell, mut told) = tokio::sync::mpsc::channel(1);
    let worker = Worker::builder(cluster.client()?).agent_id("patient").capabilities(["work"]).session_ttl(TTL).build();
    let working = tokio::spawn(async move {
        let handler = move |job: Job| {
            let tell = tell.clone();
            async move {
                job.cancelled().await;
                // The test waits at the other end; if it failed, there is nobody to tell.
                let _ = tell.send(()).await;
                Done::Cancelled
            }
        };
        worker.run(handler, async move { drop(stopped.await) }).await
    });
    until("the worker holds the task", LIMIT, || async {
        let task = client.tasks().get("endless").await?.task;
        Ok(task.is_some_and(|task| held_by(&task, "patient")).then_some(()))
    })
    .await?;
    client.tasks().cancel("endless", "changed our minds").await?;
    tokio::time::timeout(LIMIT, told.recv()).await?.context("the handler was never told")?;
    ensure!(stop.send(()).is_ok(), "the worker stopped before it was asked to");
    let report = working.await??;
    ensure!((report.cancelled, report.fenced, report.sessions_lost) == (1, 0, 0), "{report:?}");
    let task = client.tasks().get("endless").await?.task.context("the task is gone")?;
    ensure!(task.status == TaskStatus::Cancelled as i32, "it ended as {:?}", task.status());
    cluster.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_claims_has_no_work_pushed_to_it_any_more() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let node = DevNode::start(dir.path(), None).await?;
    let client = node.client()?;
    let session = client.sessions().open(Duration::from_secs(30)).await?;
    let agent = RegisterAgentRequest {
        agent_id: "both".into(),
        agent_type: "tester".into(),
        capabilities: vec!["work".into()],
        ..Default::default()
    };
    client.agents().register(&session, agent).await?;
    let mut events = client.tasks().work(&session, "both").await?;
    let first = events.next().await.context("the stream ended")??.event;
    ensure!(matches!(first, Some(work_event::Event::Standing(true))), "{first:?}");

    // Nothing is there to claim: what comes while it waits must reach the claim, and not the stream.
    let tasks = client.tasks();
    let claiming = tokio::spawn(async move { tasks.claim(&session, "both", 1, LIMIT).await });
    let last = tokio::time::timeout(LIMIT, events.next()).await?.context("the stream ended without a word")?;
    ensure!(last.is_err(), "the stream goes on: {last:?}");
    client.tasks().submit_one(work("late")).await?;
    let claimed = claiming.await??.tasks;
    ensure!(claimed.len() == 1 && claimed[0].id == "late", "{claimed:?}");
    node.stop().await
}
