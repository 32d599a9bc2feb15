//! Verbs of the schedules room.
//!
//! ```text
//! schedule ID every=MS|cron=A_B_C_D_E tz=ZONE first=MS title=T caps=A,B agent=ID missed=P overlap=P tolerance=MS
//!             deps=ID id=ID key=KEY at=MS payload_bytes=N replace=1
//! unschedule ID    pause ID    resume ID    run ID task=ID
//! fire ID epoch=REV tick=MS next=MS ticks=N task=ID missed=1
//! schedules    show_schedule ID    runs ID limit=N    next_tick    due_schedules limit=N
//! labels TASK      the labels and what the task waits for: soft dependencies
//! fired            what the last command told this node
//! ```
//!
//! An expression has `_` between its fields. An epoch is the rev of the command that set it.

use bytes::Bytes;
use quorate_proto::log::{FireSchedule, answer, command};
use quorate_proto::v1::{
    CreateScheduleRequest, DeleteScheduleRequest, MissedTicks, Overlap, PauseScheduleRequest, RunScheduleNowRequest,
    Schedule, ScheduleRun, ScheduleSpec, TaskSpec,
};
use quorate_raft::apply::Machine;
use quorate_raft::effect::Effect;

use super::Line;

/// The command of a line.
pub(crate) fn body(line: &Line<'_>) -> Option<command::Body> {
    use command::Body as B;
    let schedule_id = line.id();
    Some(match line.verb {
        "schedule" => B::CreateSchedule(CreateScheduleRequest {
            spec: Some(spec(line)),
            replace: line.number("replace", 0) > 0,
            first_tick_ms: line.number("first", 1_000),
            request: None,
        }),
        "unschedule" => B::DeleteSchedule(DeleteScheduleRequest { schedule_id, request: None }),
        "pause" => B::PauseSchedule(PauseScheduleRequest { schedule_id, paused: true, request: None }),
        "resume" => B::PauseSchedule(PauseScheduleRequest { schedule_id, paused: false, request: None }),
        "run" => B::RunScheduleNow(RunScheduleNowRequest { schedule_id, task_id: line.text("task"), request: None }),
        "fire" => B::FireSchedule(FireSchedule {
            schedule_id,
            epoch: line.number("epoch", 1),
            tick_ms: line.number("tick", 0),
            next_tick_ms: line.number("next", 0),
            ticks: line.number("ticks", 1),
            missed: line.number("missed", 0) > 0,
            task_id: line.text("task"),
        }),
        _ => return None,
    })
}

/// How an answer is shown.
pub(crate) fn show(body: &answer::Body) -> Option<String> {
    use answer::Body as B;
    Some(match body {
        B::CreateSchedule(r) => show_schedule(r.schedule.as_ref().unwrap()),
        B::DeleteSchedule(_) => "deleted".to_owned(),
        B::PauseSchedule(r) => show_schedule(r.schedule.as_ref().unwrap()),
        B::RunScheduleNow(r) => show_run(r.run.as_ref().unwrap()),
        B::FireSchedule(run) => show_run(run),
        _ => return None,
    })
}

/// A read.
pub(crate) fn read(machine: &Machine, now_ms: u64, line: &Line<'_>) -> Option<String> {
    let (schedules, rows) = (&machine.rooms().schedules, &machine.rows);
    let id = line.id();
    let limit = usize::try_from(line.number("limit", 100)).unwrap();
    Some(match line.verb {
        "schedules" => words(schedules.iter().map(|schedule| schedule.id.clone()), " "),
        "show_schedule" => schedules.get(&id).map_or("none".to_owned(), show_schedule),
        "runs" => match schedules.history(rows, &id, limit) {
            Ok(runs) => words(runs.iter().map(show_run), "\n"),
            Err(error) => format!("! {error}"),
        },
        "next_tick" => schedules.next_tick_ms().map_or("never".to_owned(), |tick_ms| tick_ms.to_string()),
        "due_schedules" => words(schedules.due(now_ms, limit).into_iter().map(|schedule| schedule.id.clone()), " "),
        "labels" => {
            let task = machine.rooms().tasks.get(rows, &id).unwrap().unwrap_or_default();
            let spec = task.spec.unwrap_or_default();
            let labels = words(spec.labels.iter().map(|label| format!("{}={}", label.key, label.value)), " ");
            format!("{labels} after={} timeout={}", spec.soft_dependencies.join(","), spec.attempt_timeout_ms)
        }
        "fired" => words(machine.effects().filter_map(show_effect), " "),
        _ => return None,
    })
}

fn spec(line: &Line<'_>) -> ScheduleSpec {
    let missed = match line.text("missed").as_str() {
        "" => MissedTicks::Unspecified,
        name => MissedTicks::from_str_name(&format!("MISSED_TICKS_{name}")).expect("a policy"),
    };
    let overlap = match line.text("overlap").as_str() {
        "" => Overlap::Unspecified,
        name => Overlap::from_str_name(&format!("OVERLAP_{name}")).expect("a policy"),
    };
    let payload_bytes = usize::try_from(line.number("payload_bytes", 0)).unwrap();
    ScheduleSpec {
        schedule_id: line.id(),
        cron: line.text("cron").replace('_', " "),
        time_zone: line.text("tz"),
        every_ms: line.number("every", 0),
        task: Some(TaskSpec {
            task_id: line.text("id"),
            title: line.text("title"),
            payload: Bytes::from(vec![b'x'; payload_bytes]),
            required_capabilities: line.list("caps"),
            agent_id: line.text("agent"),
            dependencies: line.list("deps"),
            idempotency_key: line.text("key"),
            not_before_ms: line.number("at", 0),
            ..TaskSpec::default()
        }),
        missed: missed as i32,
        overlap: overlap as i32,
        tolerance_ms: line.number("tolerance", 0),
    }
}

fn show_schedule(schedule: &Schedule) -> String {
    let spec = schedule.spec.clone().unwrap_or_default();
    let mut shown = format!("{} next={} epoch={}", schedule.id, schedule.next_tick_ms, schedule.epoch);
    if schedule.paused {
        shown.push_str(" paused");
    }
    for (name, value) in [
        ("missed", spec.missed().as_str_name().trim_start_matches("MISSED_TICKS_")),
        ("overlap", spec.overlap().as_str_name().trim_start_matches("OVERLAP_")),
    ] {
        shown.push_str(&format!(" {name}={value}"));
    }
    for (name, number) in [
        ("runs", schedule.runs),
        ("missed_ticks", schedule.missed),
        ("overlapped", schedule.overlapped),
        ("last_tick", schedule.last_tick_ms),
    ] {
        if number > 0 {
            shown.push_str(&format!(" {name}={number}"));
        }
    }
    if !schedule.last_task_id.is_empty() {
        shown.push_str(&format!(" last={}", schedule.last_task_id));
    }
    shown
}

fn show_run(run: &ScheduleRun) -> String {
    let outcome = run.outcome().as_str_name().trim_start_matches("RUN_OUTCOME_");
    let mut shown = format!("{outcome} tick={} at={}", run.tick_ms, run.fired_at_ms);
    if run.ticks > 1 {
        shown.push_str(&format!(" ticks={}", run.ticks));
    }
    if !run.task_id.is_empty() {
        shown.push_str(&format!(" task={}", run.task_id));
    }
    if run.by_hand {
        shown.push_str(" by_hand");
    }
    if !run.error.is_empty() {
        shown.push_str(&format!(" error={:?}", run.error));
    }
    shown
}

fn show_effect(effect: &Effect) -> Option<String> {
    match effect {
        Effect::SchedulesChanged => Some("changed".to_owned()),
        Effect::ScheduleFired { schedule_id, tick_ms, task_id, .. } => {
            Some(format!("{schedule_id}@{tick_ms}={task_id}"))
        }
        _ => None,
    }
}

fn words(all: impl Iterator<Item = String>, between: &str) -> String {
    let all: Vec<String> = all.collect();
    if all.is_empty() { "none".to_owned() } else { all.join(between) }
}
