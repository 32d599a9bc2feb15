//! Schedules of one and of two seconds under every policy, paused, resumed and run by hand while they tick.
//!
//! Nobody runs their tasks, so that each stays as the tick brought it. A schedule is told from others by its name,
//! which is the project of its tasks as well.
//!
//! Pauses are asked of one node, and once: of two deliveries nobody knows which one was answered, and at which rev the
//! clock began again.
//!
//! At the end everything is resumed until the clock has brought each something, and then paused, so that what is read
//! does not change any more.
//!
//! Deliberately absent: deletion and replacement, which take the history along.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::future::BoxFuture;
use quorate_client::v1::schedules_client::SchedulesClient;
use quorate_client::v1::{
    ListTasksRequest, MissedTicks, Overlap as Overlaps, PauseScheduleRequest, RunOutcome, Schedule, ScheduleRun,
    ScheduleSpec, Task, TaskSpec, TaskStatus,
};
use quorate_client::{Client, Error, Session};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tonic::transport::Channel;

use super::breakers::once;
use super::direct::effect;
use super::{Context, Workload};
use crate::check::Checker;
use crate::check::ticks::Ticks;
use crate::check::ticks::told::{
    Brought, Created, Fate, Look, Missed, Overlap, Pause, Ran, Run, Runs, Stand, Tasks, Terms,
};
use crate::coordination::only;
use crate::record::{Answer, Process};
use crate::rng::Rng;
use crate::until::until;

const PATIENCE: Duration = Duration::from_secs(2);
/// At the end, when nothing is broken any more.
const LAST_PATIENCE: Duration = Duration::from_secs(30);
const LIMIT: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_millis(200);
/// What ticks every second needs no more than this of any worker.
const CALM: Duration = Duration::from_millis(500);
const TTL: Duration = Duration::from_secs(30);
const SCHEDULE_LABEL: &str = "quorate.schedule";
const TICK_LABEL: &str = "quorate.tick_ms";
/// What a worker looks at, and what the cluster keeps.
const NEWEST: u32 = 20;
const KEPT: u32 = 1_000;
const PAGE: u32 = 1_000;
/// Schedules that one worker creates besides those that are there from the beginning.
const MOST_OWN: u64 = 2;

/// What is there from the beginning.
const KINDS: [Terms; 6] = [
    terms(1_000, Missed::All, Overlap::Allow),
    terms(1_000, Missed::Once, Overlap::Allow),
    terms(1_000, Missed::Skip, Overlap::Allow),
    terms(2_000, Missed::All, Overlap::Queue),
    terms(2_000, Missed::Once, Overlap::Skip),
    terms(2_000, Missed::Skip, Overlap::Queue),
];

const fn terms(interval_ms: u64, missed: Missed, overlap: Overlap) -> Terms {
    // Short, so that a failover or a pause brings missed ones.
    Terms { interval_ms, missed, overlap, tolerance_ms: 2_500 }
}

/// The workload.
#[derive(Clone, Copy, Debug, Default)]
pub struct Schedules;

impl Schedules {
    /// The workload.
    pub fn new() -> Self {
        Self
    }
}

impl Workload for Schedules {
    fn name(&self) -> &'static str {
        "schedules"
    }

    fn about(&self) -> &'static str {
        "schedules that tick every one or two seconds, paused, resumed and run by hand: each tick once, in its turn"
    }

    fn prepare(&self, context: Context) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let client = context.client(0, LAST_PATIENCE)?;
            let mut process = context.recorder.process();
            for (terms, name) in KINDS.into_iter().zip(first_names(&context)) {
                let answer = create(&client, &mut process, &name, terms).await;
                ensure!(matches!(answer, Answer::Ok { .. }), "schedule {name} could not be created: {answer:?}");
            }
            Ok(())
        })
    }

    fn work(&self, context: Context, worker: u64) -> BoxFuture<'_, Result<()>> {
        Box::pin(work(context, worker))
    }

    fn finish(&self, context: Context) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let client = context.client(0, LAST_PATIENCE)?;
            let mut process = context.recorder.process();
            let names = present(&client, &context).await?;
            let stub = node(&context, 0)?;
            for name in &names {
                pause_at_last(&stub, &mut process, name, false).await?;
            }
            for name in &names {
                moves_on(&client, name).await?;
            }
            for name in &names {
                pause_at_last(&stub, &mut process, name, true).await?;
            }
            for name in &names {
                read_at_last(&client, &mut process, name).await?;
            }
            Ok(())
        })
    }

    fn checkers(&self) -> Vec<Box<dyn Checker>> {
        vec![Box::new(Ticks::new())]
    }
}

fn first_names(context: &Context) -> Vec<String> {
    (0..KINDS.len()).map(|number| format!("{}-every-{number}", context.prefix)).collect()
}

async fn work(context: Context, worker: u64) -> Result<()> {
    let context = Context { pace: context.pace.max(CALM), ..context };
    let (client, stub) = (context.client(worker, PATIENCE)?, node(&context, worker)?);
    let (mut rng, mut process) = (context.rng(worker), context.recorder.process());
    let mut session = None;
    let (mut names, mut own) = (first_names(&context), 0);
    while context.pause(&mut rng).await {
        let name = names.get(rng.below(names.len() as u64) as usize).cloned().unwrap_or_default();
        match rng.below(8) {
            0 => run_now(&client, usable(&client, &mut session, &mut rng).await, &mut process, &name).await,
            1 | 2 => drop(pause(&stub, &mut process, &name, rng.below(4) == 0).await),
            3 if own < MOST_OWN => {
                own += 1;
                let name = format!("{}-own-{worker}-{own}", context.prefix);
                let terms = KINDS.get(rng.below(KINDS.len() as u64) as usize).copied();
                if let Some(terms) = terms
                    && let Answer::Ok { .. } = create(&client, &mut process, &name, terms).await
                {
                    names.push(name);
                }
            }
            _ => drop(look(&client, &mut process, &name, NEWEST).await),
        }
    }
    Ok(())
}

/// Half of the time a session to run by hand under, so that a resend is not a second run.
async fn usable<'a>(client: &Client, session: &'a mut Option<Session>, rng: &mut Rng) -> Option<&'a Session> {
    if rng.below(2) == 0 {
        return None;
    }
    if !session.as_ref().is_some_and(Session::is_alive) {
        *session = client.sessions().open(TTL).await.ok();
    }
    session.as_ref()
}

/// An answer that can be written down; a value always can.
fn told(value: &impl serde::Serialize) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}

async fn create(client: &Client, process: &mut Process, name: &str, terms: Terms) -> Answer {
    let creating = async {
        match client.schedules().create(spec(name, terms), false).await {
            Ok(created) => {
                let first_tick_ms = created.schedule.unwrap_or_default().next_tick_ms;
                Answer::at(created.rev, told(&Created { first_tick_ms }))
            }
            Err(error) => Answer::of_error(&error),
        }
    };
    process.run("create", name, told(&terms), None, creating).await
}

/// The node of a worker, and no other.
fn node(context: &Context, worker: u64) -> Result<SchedulesClient<Channel>> {
    let place = worker as usize % context.endpoints.len().max(1);
    let endpoint = context.endpoints.get(place).context("there are no nodes")?;
    Ok(SchedulesClient::new(only(endpoint)?))
}

async fn pause(stub: &SchedulesClient<Channel>, process: &mut Process, name: &str, paused: bool) -> Answer {
    let request = PauseScheduleRequest { schedule_id: name.to_owned(), paused, request: None };
    let mut stub = stub.clone();
    let pausing = async {
        match once(stub.pause(request)).await {
            Ok(changed) => Answer::at(changed.rev, json!({})),
            Err(status) => effect(&status),
        }
    };
    process.run("pause", name, told(&Pause { paused }), None, pausing).await
}

/// As [`pause`], until it is answered.
async fn pause_at_last(stub: &SchedulesClient<Channel>, process: &mut Process, name: &str, paused: bool) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Answer::Ok { .. } = pause(stub, process, name, paused).await {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "schedule {name} can be neither paused nor resumed");
        sleep(RETRY).await;
    }
}

async fn run_now(client: &Client, session: Option<&Session>, process: &mut Process, name: &str) {
    let running = async {
        match client.schedules().run_now(session, name).await {
            Ok(ran) => Answer::at(ran.rev, told(&Ran { run: run(ran.run.unwrap_or_default()) })),
            // The session may have ended between two deliveries, of which the first was taken.
            Err(Error::Rejected { .. }) if session.is_some() => Answer::Info,
            Err(error) => Answer::of_error(&error),
        }
    };
    process.run("run_now", name, json!({}), None, running).await;
}

async fn look(client: &Client, process: &mut Process, name: &str, limit: u32) -> Answer {
    let looking = async {
        match client.schedules().history(name, limit).await {
            Ok(history) => Answer::at(history.rev, told(&Runs { runs: history.runs.into_iter().map(run).collect() })),
            Err(_) => Answer::Fail,
        }
    };
    process.run("look", name, told(&Look { limit: limit as usize }), None, looking).await
}

fn spec(name: &str, terms: Terms) -> ScheduleSpec {
    let missed = match terms.missed {
        Missed::Skip => MissedTicks::Skip,
        Missed::Once => MissedTicks::Once,
        Missed::All => MissedTicks::All,
    };
    let overlap = match terms.overlap {
        Overlap::Skip => Overlaps::Skip,
        Overlap::Queue => Overlaps::Queue,
        Overlap::Allow => Overlaps::Allow,
    };
    let task = TaskSpec {
        title: name.to_owned(),
        required_capabilities: vec![format!("{name}-nobody")],
        project: name.to_owned(),
        ..TaskSpec::default()
    };
    ScheduleSpec {
        schedule_id: name.to_owned(),
        every_ms: terms.interval_ms,
        task: Some(task),
        missed: missed as i32,
        overlap: overlap as i32,
        tolerance_ms: terms.tolerance_ms,
        ..ScheduleSpec::default()
    }
}

fn run(run: ScheduleRun) -> Run {
    let fate = match run.outcome() {
        RunOutcome::Fired => Fate::Fired,
        RunOutcome::Missed => Fate::Missed,
        RunOutcome::Overlapped => Fate::Overlapped,
        RunOutcome::Refused | RunOutcome::Unspecified => Fate::Refused,
    };
    let ScheduleRun { rev, tick_ms, fired_at_ms, task_id, ticks, by_hand, .. } = run;
    Run { rev, tick_ms, fired_at_ms, fate, task_id, ticks, by_hand }
}

/// The schedules of this run that exist.
async fn present(client: &Client, context: &Context) -> Result<Vec<String>> {
    let own = format!("{}-", context.prefix);
    let schedules = client.schedules().list().await.context("the schedules cannot be listed")?.schedules;
    let is_ours =
        |id: &String| id.strip_prefix(&own).is_some_and(|rest| rest.starts_with("every-") || rest.starts_with("own-"));
    Ok(schedules.into_iter().map(|schedule| schedule.id).filter(is_ours).collect())
}

/// Waits until the clock has brought something twice.
async fn moves_on(client: &Client, name: &str) -> Result<()> {
    let next_ms = || async { anyhow::Ok(schedule(client, name).await?.0.next_tick_ms) };
    for _ in 0..2 {
        let before_ms = next_ms().await?;
        until(&format!("schedule {name} goes on"), LIMIT, || async {
            Ok((next_ms().await? > before_ms).then_some(()))
        })
        .await?;
    }
    Ok(())
}

/// A schedule, and the place at which it was read.
async fn schedule(client: &Client, name: &str) -> Result<(Schedule, u64)> {
    let found = client.schedules().get(name).await.with_context(|| format!("schedule {name} cannot be read"))?;
    Ok((found.schedule.unwrap_or_default(), found.rev))
}

/// How the schedule stands, its tasks, and all runs that are kept.
async fn read_at_last(client: &Client, process: &mut Process, name: &str) -> Result<()> {
    let standing = async {
        match schedule(client, name).await {
            Ok((schedule, rev)) => Answer::at(rev, told(&stand(&schedule))),
            Err(_) => Answer::Fail,
        }
    };
    let stood = process.run("ticks", name, json!({}), None, standing).await;
    let listing = async {
        match brought(client, name).await {
            Ok((tasks, rev)) => Answer::at(rev, told(&Tasks { tasks })),
            Err(_) => Answer::Fail,
        }
    };
    let listed = process.run("tasks", name, json!({}), None, listing).await;
    let looked = look(client, process, name, KEPT).await;
    let is_read = [stood, listed, looked].iter().all(|answer| matches!(answer, Answer::Ok { .. }));
    ensure!(is_read, "schedule {name} could not be read at the end");
    Ok(())
}

fn stand(schedule: &Schedule) -> Stand {
    let Schedule { next_tick_ms, runs, missed, overlapped, .. } = *schedule;
    Stand { next_tick_ms, fired: runs, missed, overlapped }
}

/// All tasks of a schedule, and the place up to which none is left out.
async fn brought(client: &Client, name: &str) -> Result<(Vec<Brought>, u64), Error> {
    let mut request = ListTasksRequest { project: name.to_owned(), limit: PAGE, ..ListTasksRequest::default() };
    let (mut tasks, mut rev) = (Vec::new(), u64::MAX);
    loop {
        let page = client.tasks().list(request.clone()).await?;
        rev = rev.min(page.rev);
        tasks.extend(page.tasks.iter().map(told_of_task));
        if page.next_page_token.is_empty() {
            return Ok((tasks, rev));
        }
        request.page_token = page.next_page_token;
    }
}

fn told_of_task(task: &Task) -> Brought {
    let labels = task.spec.iter().flat_map(|spec| &spec.labels);
    let label = |wanted: &str| {
        let mut found = labels.clone().filter(|label| label.key == wanted);
        found.next().map(|label| label.value.clone()).unwrap_or_default()
    };
    let is_alive = matches!(
        task.status(),
        TaskStatus::Pending | TaskStatus::Ready | TaskStatus::Blocked | TaskStatus::InProgress | TaskStatus::Reported
    );
    Brought {
        id: task.id.clone(),
        schedule: label(SCHEDULE_LABEL),
        tick_ms: label(TICK_LABEL).parse().unwrap_or_default(),
        rev: task.created_rev,
        is_ended: !is_alive,
    }
}
