//! Results that are finished while nobody is there to take them: they arrive once, or are told apart.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use quorate_client::v1::{Attempt, AttemptOutcome, RetryPolicy, TaskSpec, TaskStatus};
use quorate_client::{Client, Done, Job, Worker};
use quorate_jepsen::process::Process;
use quorate_jepsen::until::until;
use quorate_jepsen::{LocalCluster, binary, tasks};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};

const LIMIT: Duration = Duration::from_secs(60);
/// Longer than a worker needs to finish and a cluster to elect; short enough to wait for its end.
const TTL: Duration = Duration::from_secs(6);
const TASK: &str = "Night/work:1";

fn work(id: &str) -> TaskSpec {
    TaskSpec { retry: Some(RetryPolicy { max_retries: 3, ..Default::default() }), ..tasks::spec(id, "work") }
}

/// The results in an outbox.
fn kept(outbox: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    if outbox.exists() {
        for file in std::fs::read_dir(outbox)? {
            names.push(file?.file_name().to_string_lossy().into_owned());
        }
    }
    names.retain(|name| name.ends_with(".finish"));
    Ok(names)
}

/// Whether there is nothing at all in an outbox but its lock: no result, and nothing that was set aside.
fn is_empty(outbox: &Path) -> Result<bool> {
    for file in std::fs::read_dir(outbox)? {
        if file?.file_name() != "LOCK" {
            return Ok(false);
        }
    }
    Ok(true)
}

async fn until_kept(outbox: &Path) -> Result<()> {
    until("a result is in the outbox", LIMIT, || async { Ok((kept(outbox)?.len() == 1).then_some(())) }).await
}

async fn until_empty(outbox: &Path) -> Result<()> {
    until("nothing is left in the outbox", LIMIT, || async { Ok(is_empty(outbox)?.then_some(())) }).await
}

/// A `quorate worker` whose task ends when its gate opens.
struct Keeper {
    process: Process,
    dir: PathBuf,
}

impl Keeper {
    fn new(cluster: &LocalCluster, dir: &Path, id: Option<&str>) -> Result<Self> {
        let (gate, begun) = (dir.join("gate"), dir.join("begun"));
        // Bounded: it must not outlive a test that failed before the gate was opened.
        let exec = format!(
            "printf x >> '{}'; n=0; while [ ! -e '{}' ] && [ $n -lt 1200 ]; do n=$((n+1)); sleep 0.05; done; \
             printf 'attempt %s' \"$QUORATE_ATTEMPT\"",
            begun.display(),
            gate.display()
        );
        let outbox = dir.join("outbox").display().to_string();
        let ttl = format!("{}s", TTL.as_secs());
        let mut args = vec!["worker", "-o", "json", "--quiet", "--capability", "work", "--session-ttl", &ttl];
        args.extend(["--outbox", &outbox, "--exec", &exec]);
        if let Some(id) = id {
            args.extend(["--id", id]);
        }
        let args = args.into_iter().map(str::to_owned).collect();
        let process = Process::new("keeper", &binary::quorate()?, args, dir);
        let process = process.with_env("QUORATE_ENDPOINTS", &cluster.endpoints().join(","));
        Ok(Self { process, dir: dir.to_owned() })
    }

    fn outbox(&self) -> PathBuf {
        self.dir.join("outbox")
    }

    /// How many attempts were begun here, in both of its lives.
    fn begun(&self) -> Result<usize> {
        let path = self.dir.join("begun");
        Ok(if path.exists() { std::fs::read(path)?.len() } else { 0 })
    }

    /// Works, loses the whole cluster, finishes, and dies with the result on disk.
    async fn finish_alone_and_die(&mut self, cluster: &mut LocalCluster) -> Result<()> {
        self.process.start()?;
        let keeper = &*self;
        until("the worker has begun", LIMIT, || async { Ok((keeper.begun()? == 1).then_some(())) }).await?;
        cluster.kill_all()?;
        std::fs::write(self.dir.join("gate"), "")?;
        let kept = until_kept(&self.outbox()).await;
        kept.with_context(|| self.process.tail())?;
        self.process.kill()
    }

    /// SIGTERM, and what it says of itself then. Whoever was killed said nothing.
    async fn leave(&mut self) -> Result<Value> {
        let status = self.process.terminate(LIMIT).await?;
        ensure!(status.success(), "the worker ended with {status}\n{}", self.process.tail());
        Ok(serde_json::from_str(&std::fs::read_to_string(self.dir.join("keeper.out"))?)?)
    }
}

async fn attempts_of(client: &Client, id: &str) -> Result<Vec<Attempt>> {
    let mut attempts = tasks::attempts(client, id).await?;
    attempts.sort_unstable_by_key(|attempt| attempt.number);
    Ok(attempts)
}

/// The worker and all three nodes are killed; both come back.
async fn a_result_survives_everybody(id: Option<&str>) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut cluster = LocalCluster::builder().start().await?;
    let client = cluster.client()?;
    client.tasks().submit_one(work(TASK)).await?;
    let mut keeper = Keeper::new(&cluster, dir.path(), id)?;
    keeper.finish_alone_and_die(&mut cluster).await?;

    // The worker is the first to be back: it has to go on trying.
    keeper.process.start()?;
    cluster.start_all().await?;
    let task = client.tasks().wait(TASK, LIMIT).await.with_context(|| keeper.process.tail())?;
    ensure!(task.status() == TaskStatus::Completed, "it ended as {:?}: {}", task.status(), task.error);
    until_empty(&keeper.outbox()).await?;
    let report = keeper.leave().await?;
    ensure!(report["replayed"] == 1 && report["completed"] == 0 && report["fenced"] == 0, "{report}");

    let task = client.tasks().get(TASK).await?.task.context("the task is gone")?;
    ensure!(task.result.as_ref() == b"attempt 1", "its result is {:?}", task.result);
    let attempts = attempts_of(&client, TASK).await?;
    ensure!(attempts.len() == 1, "{} attempts were begun: {attempts:?}", attempts.len());
    ensure!(attempts[0].outcome() == AttemptOutcome::Completed, "it ended as {:?}", attempts[0].outcome());
    ensure!(keeper.begun()? == 1, "the command ran {} times", keeper.begun()?);
    cluster.check_replicas_equal().await?;
    cluster.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_survives_the_cluster_and_its_worker() -> Result<()> {
    a_result_survives_everybody(Some("keeper")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn it_does_so_under_another_name_too() -> Result<()> {
    a_result_survives_everybody(None).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_comes_when_another_did_the_task_is_told_apart() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut cluster = LocalCluster::builder().start().await?;
    let client = cluster.client()?;
    client.tasks().submit_one(work(TASK)).await?;
    let mut keeper = Keeper::new(&cluster, dir.path(), Some("keeper"))?;
    keeper.finish_alone_and_die(&mut cluster).await?;

    // The cluster is back and the worker is not: its session ends.
    cluster.start_all().await?;
    let (stop, stopped) = oneshot::channel::<()>();
    let other = Worker::builder(cluster.client()?).agent_id("other").capabilities(["work"]).session_ttl(TTL).build();
    let other = tokio::spawn(async move {
        let handler = |_: Job| async { Done::completed("by another") };
        other.run(handler, async move { drop(stopped.await) }).await
    });
    let task = client.tasks().wait(TASK, LIMIT).await?;
    ensure!(task.status() == TaskStatus::Completed, "it ended as {:?}: {}", task.status(), task.error);

    keeper.process.start()?;
    let orphan = until("the late result is kept as an orphan", LIMIT, || async {
        Ok(attempts_of(&client, TASK).await?.into_iter().next().and_then(|first| first.orphan))
    })
    .await
    .with_context(|| keeper.process.tail())?;
    ensure!(orphan.result.as_ref() == b"attempt 1", "the orphan is {orphan:?}");
    until_empty(&keeper.outbox()).await?;
    let report = keeper.leave().await?;
    ensure!(report["fenced"] == 1 && report["replayed"] == 0 && report["completed"] == 0, "{report}");
    ensure!(stop.send(()).is_ok(), "the other worker stopped before it was asked to");
    ensure!(other.await??.completed == 1, "the other worker did not do it");

    let attempts = attempts_of(&client, TASK).await?;
    let ends: Vec<_> = attempts.iter().map(|attempt| (attempt.agent_id.as_str(), attempt.outcome())).collect();
    ensure!(ends == [("keeper", AttemptOutcome::Lost), ("other", AttemptOutcome::Completed)], "{ends:?}");
    let task = client.tasks().get(TASK).await?.task.context("the task is gone")?;
    ensure!(task.result.as_ref() == b"by another", "the late result replaced the accepted one");
    cluster.check_replicas_equal().await?;
    cluster.close()
}

/// A worker that lives all through an outage in which its session ends, as far as it can tell.
#[tokio::test(flavor = "multi_thread")]
async fn a_result_outlives_its_session_when_the_cluster_is_away_for_longer() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let outbox = dir.path().join("outbox");
    let mut cluster = LocalCluster::builder().start().await?;
    let client = cluster.client()?;
    client.tasks().submit(vec![work("done"), work("cut-off")]).await?;
    let (open, gate) = watch::channel(false);
    let (tell, mut told) = mpsc::unbounded_channel();
    let (stop, stopped) = oneshot::channel::<()>();
    let worker = Worker::builder(cluster.client()?).agent_id("keeper").capabilities(["work"]).capacity(2);
    let worker = worker.session_ttl(TTL).outbox(&outbox).build();
    let working = tokio::spawn(async move {
        let handler = move |job: Job| {
            let (mut gate, tell) = (gate.clone(), tell.clone());
            async move {
                let first = job.task.claim.as_ref().is_some_and(|claim| claim.attempt == 1);
                if job.task.id == "cut-off" && first {
                    job.cancelled().await;
                    // The test waits at the other end; if it failed, there is nobody to tell.
                    let _ = tell.send(());
                    return Done::Cancelled;
                }
                // An error means that the test is over.
                let _ = gate.wait_for(|open| *open).await;
                Done::completed("in time")
            }
        };
        worker.run(handler, async move { drop(stopped.await) }).await
    });
    until("the worker holds both tasks", LIMIT, || async {
        let held = tasks::all(&client).await?.into_iter().filter(|task| task.claim.is_some()).count();
        Ok((held == 2).then_some(()))
    })
    .await?;

    cluster.kill_all()?;
    open.send_replace(true);
    until_kept(&outbox).await?;
    tokio::time::timeout(LIMIT, told.recv()).await?.context("the session was never lost")?;
    ensure!(kept(&outbox)?.len() == 1, "the result went with its session");
    cluster.start_all().await?;
    for id in ["done", "cut-off"] {
        let task = client.tasks().wait(id, LIMIT).await?;
        ensure!(task.status() == TaskStatus::Completed, "{id} ended as {:?}: {}", task.status(), task.error);
    }
    until_empty(&outbox).await?;
    ensure!(stop.send(()).is_ok(), "the worker stopped before it was asked to");
    let report = working.await??;
    ensure!((report.replayed, report.completed, report.sessions_lost) == (1, 1, 1), "{report:?}");

    let done = attempts_of(&client, "done").await?;
    ensure!(done.len() == 1 && done[0].outcome() == AttemptOutcome::Completed, "{done:?}");
    let cut_off = attempts_of(&client, "cut-off").await?;
    let ends: Vec<_> = cut_off.iter().map(Attempt::outcome).collect();
    ensure!(ends == [AttemptOutcome::Lost, AttemptOutcome::Completed], "{ends:?}");
    cluster.check_replicas_equal().await?;
    cluster.close()
}
