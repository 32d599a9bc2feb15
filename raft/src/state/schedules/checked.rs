//! What a specification must look like, and its defaults. Deliberately absent: the state; only the request is looked at.
//! Also absent: whether the expression and the zone mean anything. The node that takes the request knows calendars.

use prost::Message;
use quorate_proto::v1::{MissedTicks, Overlap, ScheduleSpec, TaskSpec};

use crate::error::{Error, Outcome, invalid};
use crate::state::{check_id, tasks};

/// The longest cron expression.
pub const MAX_CRON_BYTES: usize = 256;
/// The shortest interval.
pub const MIN_EVERY_MS: u64 = 1_000;
/// The longest interval, and the longest tolerance.
pub const MAX_EVERY_MS: u64 = 31_536_000_000;
/// How late a tick may be before it is a missed one, if the specification does not say.
pub const DEFAULT_TOLERANCE_MS: u64 = 60_000;
/// How long an attempt at a scheduled task may run if the template does not say.
pub const DEFAULT_ATTEMPT_TIMEOUT_MS: u64 = 300_000;
/// The largest template, encoded: all of them are in memory, and each firing writes its schedule's row.
pub const MAX_TEMPLATE_BYTES: usize = 64 * 1024;
/// The label that names the schedule on every task that it submitted.
pub const SCHEDULE_LABEL: &str = "quorate.schedule";
/// The label that names the tick.
pub const TICK_LABEL: &str = "quorate.tick_ms";

const MAX_ZONE_BYTES: usize = 64;
/// Each run's task gets [`SCHEDULE_LABEL`] and [`TICK_LABEL`] besides its own.
const OWN_LABELS: usize = 2;

/// Checks a specification and fills its defaults in.
pub(super) fn spec(spec: Option<ScheduleSpec>) -> Outcome<ScheduleSpec> {
    let mut spec = spec.ok_or_else(|| invalid("spec", "spec must be given"))?;
    check_id("spec.schedule_id", &spec.schedule_id)?;
    times(&spec)?;
    spec.missed = match MissedTicks::try_from(spec.missed) {
        Ok(MissedTicks::Unspecified) => MissedTicks::Once as i32,
        Ok(known) => known as i32,
        Err(_) => return Err(wrong("missed", format!("must be SKIP, ONCE or ALL; got {}", spec.missed))),
    };
    spec.overlap = match Overlap::try_from(spec.overlap) {
        Ok(Overlap::Unspecified) => Overlap::Skip as i32,
        Ok(known) => known as i32,
        Err(_) => {
            let what = format!("must be SKIP, QUEUE, CANCEL_PREVIOUS or ALLOW; got {}", spec.overlap);
            return Err(wrong("overlap", what));
        }
    };
    if spec.tolerance_ms == 0 {
        spec.tolerance_ms = DEFAULT_TOLERANCE_MS;
    }
    if spec.tolerance_ms > MAX_EVERY_MS {
        return Err(wrong("tolerance_ms", format!("must be at most {MAX_EVERY_MS}; got {}", spec.tolerance_ms)));
    }
    spec.task = Some(template(spec.task.take())?);
    Ok(spec)
}

/// An expression or an interval, not both.
fn times(spec: &ScheduleSpec) -> Outcome<()> {
    match (spec.cron.is_empty(), spec.every_ms) {
        (true, 0) => return Err(wrong("cron", "or spec.every_ms must be set".to_owned())),
        (false, 1..) => return Err(wrong("every_ms", "must be left out where spec.cron is set".to_owned())),
        (true, every_ms) if !(MIN_EVERY_MS..=MAX_EVERY_MS).contains(&every_ms) => {
            return Err(wrong("every_ms", format!("must be {MIN_EVERY_MS} to {MAX_EVERY_MS}; got {every_ms}")));
        }
        (true, _) if !spec.time_zone.is_empty() => {
            return Err(wrong("time_zone", "must be left out where spec.every_ms is set".to_owned()));
        }
        _ => {}
    }
    for (name, text, most) in [("cron", &spec.cron, MAX_CRON_BYTES), ("time_zone", &spec.time_zone, MAX_ZONE_BYTES)] {
        if text.len() > most {
            return Err(wrong(name, format!("must be at most {most} bytes; got {}", text.len())));
        }
    }
    Ok(())
}

fn template(task: Option<TaskSpec>) -> Outcome<TaskSpec> {
    let mut task = task.ok_or_else(|| wrong("task", "must be given: what each run submits".to_owned()))?;
    let given = [
        ("task.task_id", !task.task_id.is_empty()),
        ("task.idempotency_key", !task.idempotency_key.is_empty()),
        ("task.not_before_ms", task.not_before_ms != 0),
    ];
    if let Some((name, _)) = given.into_iter().find(|(_, given)| *given) {
        return Err(wrong(name, "must be left out: every run is a task of its own".to_owned()));
    }
    let most = tasks::MAX_LABELS - OWN_LABELS;
    if task.labels.len() > most {
        return Err(wrong("task.labels", format!("must be at most {most}; got {}", task.labels.len())));
    }
    if let Some(i) = task.labels.iter().position(|label| [SCHEDULE_LABEL, TICK_LABEL].contains(&label.key.as_str())) {
        let what = format!("must not be {SCHEDULE_LABEL} or {TICK_LABEL}: each run sets them");
        return Err(wrong(&format!("task.labels[{i}].key"), what));
    }
    if task.attempt_timeout_ms == 0 {
        task.attempt_timeout_ms = DEFAULT_ATTEMPT_TIMEOUT_MS;
    }
    let task = tasks::check_template("spec.task", &task)?;
    match task.encoded_len() {
        0..=MAX_TEMPLATE_BYTES => Ok(task),
        bytes => Err(wrong("task", format!("must be at most {MAX_TEMPLATE_BYTES} bytes encoded; got {bytes}"))),
    }
}

fn wrong(name: &str, what: String) -> Error {
    let field = format!("spec.{name}");
    invalid(&field, format!("{field} {what}"))
}

#[cfg(test)]
mod tests {
    use quorate_proto::v1::KeyValue;

    use super::*;

    fn every() -> ScheduleSpec {
        ScheduleSpec {
            schedule_id: "nightly".to_owned(),
            every_ms: 60_000,
            task: Some(TaskSpec { title: "count".to_owned(), ..TaskSpec::default() }),
            ..ScheduleSpec::default()
        }
    }

    /// The field that a specification is refused for.
    fn refused(change: impl FnOnce(&mut ScheduleSpec)) -> String {
        let mut given = every();
        change(&mut given);
        match spec(Some(given)) {
            Err(Error::Rejected(rejection)) => rejection.field,
            other => panic!("not refused: {other:?}"),
        }
    }

    fn task(change: impl FnOnce(&mut TaskSpec)) -> impl FnOnce(&mut ScheduleSpec) {
        move |spec: &mut ScheduleSpec| change(spec.task.as_mut().expect("a template"))
    }

    #[test]
    fn defaults_are_filled_in() {
        let spec = spec(Some(every())).expect("a good specification");
        assert_eq!((spec.missed(), spec.overlap()), (MissedTicks::Once, Overlap::Skip));
        assert_eq!(spec.tolerance_ms, DEFAULT_TOLERANCE_MS);
        assert_eq!(spec.task.map(|task| task.attempt_timeout_ms), Some(DEFAULT_ATTEMPT_TIMEOUT_MS));
    }

    #[test]
    fn each_mistake_names_its_field() {
        assert_eq!(refused(|spec| spec.schedule_id.clear()), "spec.schedule_id");
        assert_eq!(refused(|spec| spec.every_ms = 0), "spec.cron");
        assert_eq!(refused(|spec| spec.cron = "* * * * *".to_owned()), "spec.every_ms");
        assert_eq!(refused(|spec| spec.every_ms = 999), "spec.every_ms");
        assert_eq!(refused(|spec| spec.every_ms = MAX_EVERY_MS + 1), "spec.every_ms");
        assert_eq!(refused(|spec| spec.time_zone = "Europe/Berlin".to_owned()), "spec.time_zone");
        assert_eq!(refused(|spec| spec.missed = 9), "spec.missed");
        assert_eq!(refused(|spec| spec.overlap = 9), "spec.overlap");
        assert_eq!(refused(|spec| spec.tolerance_ms = u64::MAX), "spec.tolerance_ms");
        assert_eq!(refused(|spec| spec.task = None), "spec.task");
        let long = |spec: &mut ScheduleSpec| {
            spec.every_ms = 0;
            spec.cron = "1,".repeat(MAX_CRON_BYTES);
        };
        assert_eq!(refused(long), "spec.cron");
    }

    #[test]
    fn a_template_holds_nothing_that_belongs_to_one_run() {
        assert_eq!(refused(task(|task| task.task_id = "t".to_owned())), "spec.task.task_id");
        assert_eq!(refused(task(|task| task.idempotency_key = "k".to_owned())), "spec.task.idempotency_key");
        assert_eq!(refused(task(|task| task.not_before_ms = 1)), "spec.task.not_before_ms");
        let label = |key: &str| KeyValue { key: key.to_owned(), value: String::new() };
        assert_eq!(refused(task(|task| task.labels = vec![label("a"), label(TICK_LABEL)])), "spec.task.labels[1].key");
        let many: Vec<KeyValue> = (0..31).map(|i| label(&format!("l{i}"))).collect();
        assert_eq!(refused(task(|task| task.labels = many)), "spec.task.labels");
        assert_eq!(refused(task(|task| task.payload = vec![b'x'; MAX_TEMPLATE_BYTES].into())), "spec.task");
    }
}
