//! Schedules of every second while leaders are killed: each tick fires once, in its turn, and brings one task.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use quorate_client::v1::{
    MissedTicks, Overlap, RetryPolicy, RunOutcome, Schedule, ScheduleSpec, Task, TaskSpec, TaskStatus,
};
use quorate_client::{Client, Done, Job};
use quorate_jepsen::fleet::{Crash, Fleet, Shape};
use quorate_jepsen::rng::env_u64;
use quorate_jepsen::until::until;
use quorate_jepsen::{LocalCluster, faults, history, tasks};

const EVERY_MS: u64 = 1_000;
/// The cluster keeps the last 1,000 runs of a schedule: more ticks than this come from more schedules.
const MOST_TICKS: u64 = 900;
/// How far behind its clock a schedule may be, a failover included.
const SLACK: Duration = Duration::from_secs(60);

fn schedule(id: &str) -> ScheduleSpec {
    let retry = RetryPolicy { max_retries: 100, base_ms: 10, ..Default::default() };
    ScheduleSpec {
        schedule_id: id.to_owned(),
        every_ms: EVERY_MS,
        task: Some(TaskSpec {
            title: id.to_owned(),
            required_capabilities: vec!["tick".into()],
            retry: Some(retry),
            ..Default::default()
        }),
        missed: MissedTicks::All as i32,
        overlap: Overlap::Allow as i32,
        tolerance_ms: 60_000,
        ..Default::default()
    }
}

/// Waits until every schedule has fired so often.
async fn fired(client: &Client, ticks: u64, limit: Duration) -> Result<()> {
    until(&format!("every schedule has fired {ticks} times"), limit, || async {
        let schedules = client.schedules().list().await?.schedules;
        Ok(schedules.iter().all(|schedule| schedule.runs >= ticks).then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_tick_fires_once_whoever_leads() -> Result<()> {
    let count = env_u64("QUORATE_SCHEDULES", 5).max(1);
    let ticks = env_u64("QUORATE_TICKS", env_u64("QUORATE_SECONDS", 12));
    let kills = env_u64("QUORATE_KILLS", 2);
    ensure!((1..=MOST_TICKS).contains(&ticks), "1 to {MOST_TICKS} ticks; for more, set QUORATE_SCHEDULES");
    let limit = Duration::from_millis(ticks * EVERY_MS) + SLACK;
    let mut cluster = LocalCluster::builder().start().await?;
    let client = cluster.client()?;
    let handler = |_: Job, _: Crash| async { Done::completed("done") };
    let shape = Shape { capacity: 8, ..Shape::new("worker", 2, "tick") };
    let fleet = Fleet::start(&cluster.endpoints(), &shape, handler);

    let mut first_ticks = BTreeMap::new();
    for n in 0..count {
        let created = client.schedules().create(schedule(&format!("every-second-{n}")), false).await?;
        let created = created.schedule.context("no schedule in the answer")?;
        first_ticks.insert(created.id, created.next_tick_ms);
    }
    for kill in 1..=kills {
        fired(&client, ticks * kill / (kills + 1), limit).await?;
        faults::replace_leader(&mut cluster).await?;
    }
    fired(&client, ticks, limit).await?;

    let mut schedules = Vec::new();
    for id in first_ticks.keys() {
        schedules.push(client.schedules().pause(id, true).await?.schedule.context("no schedule in the answer")?);
    }
    let total: u64 = schedules.iter().map(|schedule| schedule.runs).sum();
    until("every task is done", SLACK, || async {
        Ok((client.tasks().stats().await?.completed >= total).then_some(()))
    })
    .await?;
    fleet.stop().await?;
    eprintln!("{count} schedules, {total} ticks, {kills} leaders killed");

    let present: BTreeMap<String, Task> =
        tasks::all(&client).await?.into_iter().map(|task| (task.id.clone(), task)).collect();
    let mut named = BTreeSet::new();
    for schedule in &schedules {
        named.extend(check(&client, schedule, first_ticks[&schedule.id], &present).await?);
    }
    let unnamed: Vec<_> = present.keys().filter(|id| !named.contains(*id)).collect();
    ensure!(named.len() as u64 == total, "{} tasks from {total} ticks", named.len());
    ensure!(unnamed.is_empty(), "tasks that are of no tick: {unnamed:?}");
    let history = history::read(&client).await?;
    for id in &named {
        history::completed_once(&history, id)?;
    }
    cluster.check_replicas_equal().await?;
    cluster.close()
}

/// One run for each tick from the first to the last, each with a task of its own. Gives those tasks.
async fn check(
    client: &Client,
    schedule: &Schedule,
    first_tick_ms: u64,
    present: &BTreeMap<String, Task>,
) -> Result<BTreeSet<String>> {
    let id = &schedule.id;
    let runs = client.schedules().history(id, 1_000).await?.runs;
    ensure!(runs.len() as u64 == schedule.runs, "{id}: {} runs are kept of {}", runs.len(), schedule.runs);
    ensure!((schedule.missed, schedule.overlapped) == (0, 0), "{id}: a tick was missed or overlapped: {schedule:?}");
    let mut named = BTreeSet::new();
    // Newest first.
    for (run, turn) in runs.iter().rev().zip(0_u64..) {
        let expected_ms = first_tick_ms + turn * EVERY_MS;
        ensure!(run.tick_ms == expected_ms, "{id}: tick {expected_ms} expected, {} found", run.tick_ms);
        ensure!(run.outcome() == RunOutcome::Fired && run.ticks == 1 && !run.by_hand, "{id}: {run:?}");
        ensure!(run.fired_at_ms >= run.tick_ms, "{id}: fired before its time: {run:?}");
        let task = present.get(&run.task_id).with_context(|| format!("{id}: the task of a tick is gone: {run:?}"))?;
        ensure!(task.spec.as_ref().is_some_and(|spec| spec.title == *id), "{id}: another's task: {run:?}");
        ensure!(task.status() == TaskStatus::Completed, "{id}: {:?} for {run:?}", task.status());
        ensure!(named.insert(run.task_id.clone()), "{id}: two ticks have the same task: {run:?}");
    }
    let next_ms = first_tick_ms + schedule.runs * EVERY_MS;
    ensure!(schedule.next_tick_ms == next_ms, "{id}: {} comes next, not {next_ms}", schedule.next_tick_ms);
    let late_ms = runs.iter().map(|run| run.fired_at_ms - run.tick_ms).max().unwrap_or_default();
    eprintln!("{id}: {} ticks, at most {late_ms} ms late", runs.len());
    Ok(named)
}
