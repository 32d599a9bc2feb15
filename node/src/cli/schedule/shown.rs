//! What a schedule and its runs look like: as JSON, and as the texts of the tables.

use quorate_client::v1::{MissedTicks, Overlap, RunOutcome, Schedule, ScheduleRun, Task, TaskSpec};
use serde_json::{Value, json};

use crate::calendar::{NEVER_MS, written};
use crate::cli::output::{age, facts, now_ms, or_dash, short, span};
use crate::cli::view;

/// A schedule; the policies stand beside the counts of what they did.
pub(crate) fn schedule_view(schedule: &Schedule) -> Value {
    let spec = schedule.spec.clone().unwrap_or_default();
    json!({
        "id": schedule.id,
        "cron": spec.cron,
        "time_zone": spec.time_zone,
        "every_ms": time(spec.every_ms),
        "missed_policy": missed(spec.missed),
        "overlap_policy": overlap(spec.overlap),
        "tolerance_ms": spec.tolerance_ms,
        "task": spec.task.as_ref().map(task_view),
        "paused": schedule.paused,
        "next_tick_ms": time(schedule.next_tick_ms),
        "created_at_ms": time(schedule.created_at_ms),
        "epoch": schedule.epoch,
        "last_tick_ms": time(schedule.last_tick_ms),
        "last_task_id": schedule.last_task_id,
        "runs": schedule.runs,
        "missed": schedule.missed,
        "overlapped": schedule.overlapped,
    })
}

/// The specification alone: the view of a task, without what a task that was never submitted shows as well.
fn task_view(spec: &TaskSpec) -> Value {
    let mut shown = view::task(&Task { spec: Some(spec.clone()), ..Task::default() });
    if let (Value::Object(shown), Value::Object(others)) = (&mut shown, view::task(&Task::default())) {
        shown.retain(|name, _| !others.contains_key(name));
    }
    shown
}

/// A run, with how its task stands.
pub(crate) fn run_view(run: &ScheduleRun) -> Value {
    let status = if run.task_status == 0 { Value::Null } else { json!(view::task_status(run.task_status)) };
    json!({
        "schedule_id": run.schedule_id,
        "tick_ms": run.tick_ms,
        "fired_at_ms": run.fired_at_ms,
        "outcome": run_outcome(run.outcome),
        "task_id": run.task_id,
        "ticks": run.ticks,
        "by_hand": run.by_hand,
        "error": run.error,
        "rev": run.rev,
        "task_status": status,
        "task_started_at_ms": time(run.task_started_at_ms),
        "task_finished_at_ms": time(run.task_finished_at_ms),
        "task_error": run.task_error,
    })
}

/// The row of `quorate schedule list`.
pub(super) fn schedule_row(schedule: &Schedule, now_ms: u64) -> [String; 8] {
    [
        schedule.id.clone(),
        when(schedule),
        next(schedule, now_ms),
        age(schedule.last_tick_ms, now_ms),
        or_dash(&schedule.last_task_id),
        schedule.runs.to_string(),
        schedule.missed.to_string(),
        schedule.overlapped.to_string(),
    ]
}

/// What `quorate schedule show` shows.
pub(super) fn schedule_facts(schedule: &Schedule) -> String {
    let now = now_ms();
    let ago = |at_ms: u64| if at_ms == 0 { String::new() } else { format!("{} ago", age(at_ms, now)) };
    let spec = schedule.spec.clone().unwrap_or_default();
    let task = spec.task.unwrap_or_default();
    facts(vec![
        ("id", schedule.id.clone()),
        ("when", when(schedule)),
        ("next", next(schedule, now)),
        ("missed times", missed(spec.missed)),
        ("overlapping runs", overlap(spec.overlap)),
        ("tolerance", span(spec.tolerance_ms)),
        ("task", task.title),
        ("description", short(&task.description, 400)),
        ("requires", task.required_capabilities.join(", ")),
        ("only for agent", task.agent_id),
        ("only for agents of type", task.agent_type),
        ("priority", task.priority.map_or_else(String::new, view::priority)),
        ("attempt may run", span(task.attempt_timeout_ms)),
        ("payload", short(&view::bytes_line(&task.payload), 400)),
        ("last time", ago(schedule.last_tick_ms)),
        ("last task", schedule.last_task_id.clone()),
        ("runs", schedule.runs.to_string()),
        ("missed", schedule.missed.to_string()),
        ("overlapped", schedule.overlapped.to_string()),
        ("created", ago(schedule.created_at_ms)),
    ])
}

/// The row of `quorate schedule history`.
pub(super) fn run_row(run: &ScheduleRun) -> [String; 9] {
    let since = |from_ms: u64, to_ms: u64| match (from_ms, to_ms) {
        (0, _) | (_, 0) => "-".to_owned(),
        (from_ms, to_ms) => span(to_ms.saturating_sub(from_ms)),
    };
    [
        written(run.tick_ms, ""),
        if run.by_hand { "by hand".to_owned() } else { span(run.fired_at_ms.saturating_sub(run.tick_ms)) },
        run_outcome(run.outcome),
        run.ticks.to_string(),
        or_dash(&run.task_id),
        if run.task_status == 0 { "-".to_owned() } else { view::task_status(run.task_status) },
        since(run.fired_at_ms, run.task_started_at_ms),
        since(run.task_started_at_ms, run.task_finished_at_ms),
        short(&or_dash(if run.error.is_empty() { &run.task_error } else { &run.error }), 60),
    ]
}

/// `0 2 * * * Europe/Berlin`, `every 30s`
pub(super) fn when(schedule: &Schedule) -> String {
    let spec = schedule.spec.clone().unwrap_or_default();
    match spec.cron.as_str() {
        "" => format!("every {}", span(spec.every_ms)),
        cron if spec.time_zone.is_empty() => format!("{cron} UTC"),
        cron => format!("{cron} {}", spec.time_zone),
    }
}

/// `2026-07-15 02:00:00 CEST (in 5h 3m)`, `paused`
pub(super) fn next(schedule: &Schedule, now_ms: u64) -> String {
    if schedule.paused {
        return "paused".to_owned();
    }
    let zone = schedule.spec.as_ref().map(|spec| spec.time_zone.as_str()).unwrap_or_default();
    match schedule.next_tick_ms {
        NEVER_MS => "never".to_owned(),
        tick_ms => format!("{} (in {})", written(tick_ms, zone), ahead(tick_ms, now_ms)),
    }
}

/// How long until then.
pub(super) fn ahead(at_ms: u64, now_ms: u64) -> String {
    span(at_ms.saturating_sub(now_ms))
}

/// 0 stands for "not set" in the API.
fn time(ms: u64) -> Value {
    if ms == 0 { Value::Null } else { json!(ms) }
}

fn missed(value: i32) -> String {
    name(MissedTicks::try_from(value).map(|known| known.as_str_name()).ok(), "MISSED_TICKS_", value)
}

fn overlap(value: i32) -> String {
    name(Overlap::try_from(value).map(|known| known.as_str_name()).ok(), "OVERLAP_", value)
}

/// `fired`, for example.
pub(crate) fn run_outcome(value: i32) -> String {
    name(RunOutcome::try_from(value).map(|known| known.as_str_name()).ok(), "RUN_OUTCOME_", value)
}

/// A node newer than this program may send a number that has no name here.
fn name(known: Option<&str>, prefix: &str, value: i32) -> String {
    match known {
        Some(known) => known.strip_prefix(prefix).unwrap_or(known).to_ascii_lowercase(),
        None => format!("unknown({value})"),
    }
}

#[cfg(test)]
mod tests {
    use quorate_client::v1::ScheduleSpec;

    use super::*;

    #[test]
    fn a_template_shows_what_was_asked_and_nothing_else() {
        let view = task_view(&TaskSpec { title: "count".to_owned(), ..TaskSpec::default() });
        assert_eq!(view["title"], "count");
        assert!(view.get("status").is_none() && view.get("attempts").is_none(), "{view}");
    }

    #[test]
    fn the_next_run_is_written_in_its_zone() {
        let spec = ScheduleSpec {
            cron: "0 9 * * *".to_owned(),
            time_zone: "Europe/Berlin".to_owned(),
            ..ScheduleSpec::default()
        };
        // 2026-07-15 07:00:00 UTC.
        let at_ms = 1_784_098_800_000;
        let schedule = Schedule { spec: Some(spec), next_tick_ms: at_ms, ..Schedule::default() };
        assert_eq!(next(&schedule, at_ms - 90_000), "2026-07-15 09:00:00 CEST (in 1m 30s)");
        assert_eq!(when(&schedule), "0 9 * * * Europe/Berlin");
        assert_eq!(next(&Schedule { paused: true, ..schedule.clone() }, 0), "paused");
        assert_eq!(next(&Schedule { next_tick_ms: NEVER_MS, ..schedule }, 0), "never");
    }

    #[test]
    fn policies_and_outcomes_are_lower_case_names() {
        assert_eq!(missed(MissedTicks::All as i32), "all");
        assert_eq!(overlap(Overlap::CancelPrevious as i32), "cancel_previous");
        assert_eq!(run_outcome(RunOutcome::Overlapped as i32), "overlapped");
        assert_eq!(run_outcome(99), "unknown(99)");
    }
}
