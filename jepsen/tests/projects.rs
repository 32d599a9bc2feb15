//! A plan of 10 epics, 35 features and 122 tasks, done by agents that nobody helps: the roll-ups, the milestones and what
//! `/api/status` says are right, and all of it was done unaided.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use quorate_client::v1::{SubmitTasksRequest, TaskSpec};
use quorate_client::{Done, Job, Worker};
use quorate_jepsen::until::until;
use quorate_jepsen::{DevNode, http};

const LIMIT: Duration = Duration::from_secs(20);
const EPICS: usize = 10;
const FEATURES: usize = 35;
const TASKS: usize = 122;

/// Tasks spread over the features, features over the epics; within a feature each waits for the one before.
fn plan() -> Vec<TaskSpec> {
    let task = |i: usize| {
        let feature = i % FEATURES;
        TaskSpec {
            task_id: format!("T{i:03}"),
            title: format!("step {i}"),
            project: "plan".to_owned(),
            epic: format!("E{:03}", feature % EPICS),
            feature: format!("F{feature:03}"),
            required_capabilities: vec!["work".to_owned()],
            dependencies: i.checked_sub(FEATURES).map(|before| format!("T{before:03}")).into_iter().collect(),
            ..TaskSpec::default()
        }
    };
    (0..TASKS).map(task).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_of_122_tasks_is_done_unaided_and_told_right() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let node = DevNode::start(dir.path(), None).await?;
    let client = node.client()?;
    client.tasks().submit_with(SubmitTasksRequest { tasks: plan(), ..SubmitTasksRequest::default() }).await?;
    let project = &client.progress().projects("plan").await?.projects[0];
    let features: usize = project.epics.iter().map(|epic| epic.features.len()).sum();
    ensure!((project.epics.len(), features) == (EPICS, FEATURES), "{} epics, {features} features", project.epics.len());
    let counts = project.counts.context("no counts")?;
    ensure!((counts.ready, counts.blocked) == (FEATURES as u64, (TASKS - FEATURES) as u64), "{counts:?}");

    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let worker = Worker::builder(client.clone()).agent_id("w").capabilities(["work"]).capacity(4).build();
    let working = tokio::spawn(async move {
        worker.run(|_: Job| async { Done::completed("done") }, async move { drop(stopped.await) }).await
    });
    until("everything is completed", LIMIT, || async {
        Ok((client.tasks().stats().await?.completed == TASKS as u64).then_some(()))
    })
    .await?;

    let milestones = client.progress().checkpoints("plan", 100).await?.checkpoints;
    let count = |kind: &str| milestones.iter().filter(|found| found.milestone.starts_with(kind)).count();
    let found = (count("tasks:"), count("feature"), count("epic"));
    ensure!(found == (TASKS / 10, FEATURES, EPICS), "{found:?}");

    let (code, body) = http::get(node.http(), "/api/status").await?;
    let status: serde_json::Value = serde_json::from_str(&body).with_context(|| body.clone())?;
    ensure!(code == 200, "{code}: {body}");
    for (field, wanted) in [("total", 122.0), ("completed", 122.0), ("blocked", 0.0), ("completed_last_hour", 122.0)] {
        ensure!(status[field].as_f64() == Some(wanted), "{field}: {body}");
    }
    for field in ["completed_percent", "success_percent", "unaided_percent"] {
        ensure!(status[field].as_f64() == Some(100.0), "{field}: {body}");
    }
    ensure!(stop.send(()).is_ok(), "the worker stopped before it was asked to");
    working.await??;
    node.stop().await
}
