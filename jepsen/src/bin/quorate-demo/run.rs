//! The driver: starts everything, submits one task, breaks things in the middle, checks the end.
//!
//! Deliberately absent: help for the workflow. After the first task is submitted, the driver only watches and kills.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use quorate_client::Client;
use quorate_client::v1::{Task, TaskSpec, TaskStatus};
use quorate_jepsen::{LocalCluster, Probe, binary, probe, tasks};
use serde_json::json;

use crate::fleet::Fleet;
use crate::orchestrate::members;
use crate::proof::Proof;

const LIMIT: Duration = Duration::from_secs(180);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What was done so far.
#[derive(Default)]
struct Faults {
    killed_node: Option<u64>,
    gap: Duration,
    killed_worker: Option<String>,
}

/// The whole demo.
pub(crate) async fn run(root: Option<PathBuf>) -> Result<()> {
    let root = workspace(root)?;
    let crates = members(&root)?;
    let report = root.join("demo-report.md");
    if report.exists() {
        std::fs::remove_file(&report)?;
    }
    let started = Instant::now();
    let quorate = binary::quorate()?;
    let mut cluster = LocalCluster::builder().binary(&quorate).start().await?;
    say(started, &format!("three nodes are ready: {}", cluster.endpoints().join(", ")))?;
    let client = cluster.client()?;
    let mut fleet = Fleet::start(&quorate, &cluster.endpoints(), cluster.dir())?;
    say(started, "five workers started: 3 reviewers, 1 documenter, 1 orchestrator")?;
    let probe = Probe::start(cluster.client()?).await?;
    client.tasks().submit_one(first_task(&root, &report)).await?;
    say(started, "submitted one task: plan the review of this repository")?;

    let faults = watch(&mut cluster, &mut fleet, &client, &probe, started).await?;
    let killed = faults.killed_node.context("the work was over before the leader could be killed")?;
    ensure!(faults.killed_worker.is_some(), "the work was over before a busy reviewer could be killed");
    cluster.restart(killed).await?;
    say(started, &format!("node {killed} is back"))?;
    let failed_calls = probe.stop().await?;
    cluster.wait_converged(Duration::from_secs(30)).await?;
    conclude(&cluster, &client, &faults, &report, crates.len() + 3, &failed_calls, started).await?;
    drop(fleet);
    cluster.close()
}

fn first_task(root: &Path, report: &Path) -> TaskSpec {
    let payload = json!({"step": "plan", "root": root, "report": report});
    TaskSpec {
        title: "plan the review of this repository".into(),
        payload: payload.to_string().into_bytes().into(),
        ..tasks::spec("plan", "orchestration")
    }
}

/// Follows the work to its end; kills the leader after the first review and then a reviewer that is busy.
async fn watch(
    cluster: &mut LocalCluster,
    fleet: &mut Fleet,
    client: &Client,
    probe: &Probe,
    started: Instant,
) -> Result<Faults> {
    let mut faults = Faults::default();
    let mut shown = String::new();
    loop {
        let mut all = tasks::all(client).await?;
        all.retain(|task| task.id != probe::TASK_ID);
        let line = progress(&all);
        if line != shown {
            say(started, &line)?;
            shown = line;
        }
        if let Some(task) = all.iter().find(|task| ended_badly(task)) {
            bail!("{} ended as {:?}: {}", task.id, task.status(), task.error);
        }
        if all.iter().any(|task| task.id == "accept" && is(task, TaskStatus::Completed)) {
            return Ok(faults);
        }
        if faults.killed_node.is_none() {
            if all.iter().any(|task| task.id.starts_with("review-") && is(task, TaskStatus::Completed)) {
                kill_leader(cluster, probe, &mut faults, started).await?;
            }
        } else if faults.killed_worker.is_none()
            && let Some((worker, task)) = all.iter().find_map(busy_reviewer)
            && fleet.has(&worker)
        {
            fleet.kill(&worker)?;
            say(started, &format!("KILLED {worker} (SIGKILL, whole group) while it worked on {task}"))?;
            faults.killed_worker = Some(worker);
        }
        ensure!(started.elapsed() < LIMIT, "not finished after {} s", LIMIT.as_secs());
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn kill_leader(cluster: &mut LocalCluster, probe: &Probe, faults: &mut Faults, started: Instant) -> Result<()> {
    let leader = cluster.leader().await?;
    let moment = Instant::now();
    cluster.kill(leader)?;
    say(started, &format!("KILLED node {leader}, the leader (SIGKILL)"))?;
    probe.wait_ack_after(moment, Duration::from_secs(30)).await?;
    faults.gap = probe.longest_gap_since(moment);
    faults.killed_node = Some(leader);
    let next = cluster.leader().await?;
    say(started, &format!("new leader: node {next}; a writing client waited {} ms", faults.gap.as_millis()))
}

async fn conclude(
    cluster: &LocalCluster,
    client: &Client,
    faults: &Faults,
    report: &Path,
    expected_tasks: usize,
    failed_calls: &[String],
    started: Instant,
) -> Result<()> {
    let proof = Proof::gather(client).await?;
    let digests = cluster.digests(true).await?;
    let mut lines = vec![String::new()];
    lines.extend(proof.lines());
    lines.push(String::new());
    lines.extend(
        digests.iter().map(|(node, rev, digest)| format!("node {node}: rev {rev}, digest of all rows {digest}")),
    );
    lines.push(format!("report:            {}", report.display()));
    lines.push(format!("total time:        {:.1} s", started.elapsed().as_secs_f64()));
    lines.push(format!("attempts retried:  {}", proof.retried()));
    lines.push(format!("failover gap:      {} ms, failed calls {}", faults.gap.as_millis(), failed_calls.len()));
    for line in lines {
        print(&line)?;
    }
    let mut wrong = proof.violations(expected_tasks);
    if digests.iter().any(|(_, _, digest)| Some(digest) != digests.first().map(|(_, _, first)| first)) {
        wrong.push("the replicas differ".into());
    }
    if digests.len() != cluster.node_ids().len() {
        wrong.push("not every node is back".into());
    }
    if !report.is_file() {
        wrong.push("there is no report".into());
    }
    if !wrong.is_empty() {
        bail!("{}", wrong.join("; "));
    }
    print("proof: every task has exactly one accepted completion, and all replicas are equal")
}

fn is(task: &Task, status: TaskStatus) -> bool {
    task.status == status as i32
}

fn ended_badly(task: &Task) -> bool {
    [TaskStatus::Failed, TaskStatus::TimedOut, TaskStatus::Cancelled].iter().any(|status| is(task, *status))
}

/// The reviewer that holds this task, and the task.
fn busy_reviewer(task: &Task) -> Option<(String, String)> {
    let claim = task.claim.as_ref().filter(|claim| claim.agent_id.starts_with("reviewer-"))?;
    is(task, TaskStatus::InProgress).then(|| (claim.agent_id.clone(), task.id.clone()))
}

fn progress(all: &[Task]) -> String {
    let done = all.iter().filter(|task| is(task, TaskStatus::Completed)).count();
    let running = all.iter().filter_map(|task| Some(format!("{} on {}", task.id, task.claim.as_ref()?.agent_id)));
    let running: Vec<String> = running.collect();
    let running = if running.is_empty() { "nothing".into() } else { running.join(", ") };
    format!("{done}/{} done; running: {running}", all.len())
}

/// The given folder, else the nearest one above the current folder that holds a workspace.
fn workspace(root: Option<PathBuf>) -> Result<PathBuf> {
    if let Some(root) = root {
        return Ok(root.canonicalize()?);
    }
    let here = std::env::current_dir()?;
    let is_workspace = |folder: &&Path| {
        std::fs::read_to_string(folder.join("Cargo.toml")).is_ok_and(|text| text.contains("[workspace]"))
    };
    let found = here.ancestors().find(is_workspace);
    found.map(Path::to_owned).context("no workspace here: give one with --root")
}

fn say(started: Instant, text: &str) -> Result<()> {
    print(&format!("[{:6.1} s] {text}", started.elapsed().as_secs_f64()))
}

fn print(line: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{line}")?;
    Ok(())
}
