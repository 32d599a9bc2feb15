//! Agent definitions as YAML: which agents are scheduled, and when they have what to do.
//!
//! Every complaint names the definition and the field. A key of `schedule` that nobody knows is refused; other keys of
//! a definition belong to other programs and are not looked at.
//! Deliberately absent: whether an expression or a zone means anything. The cluster knows calendars.

use clap::ValueEnum;
use quorate_client::v1::{ExecutionMode, MissedTicks, Overlap, ScheduleSpec, TaskSpec};
use serde::de::DeserializeOwned;
use serde_yaml_ng::{Mapping, Value};

use crate::cli::schedule::{Missed, Overlapping};
use crate::cli::values;

const SCHEDULE_FIELDS: &str = "cron, every, time_zone, missed, overlap, tolerance, title, description, payload, \
     capabilities, priority, timeout";

/// What a file holds.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Definitions {
    /// The schedules of scheduled agents.
    pub(super) specs: Vec<ScheduleSpec>,
    /// How many agents are not scheduled.
    pub(super) others: usize,
}

/// The definitions of a file.
pub(super) fn parse(bytes: &[u8]) -> Result<Definitions, String> {
    let wrong = |error: serde_yaml_ng::Error| format!("not valid YAML: {error}");
    let mut document: Value = serde_yaml_ng::from_slice(bytes).map_err(wrong)?;
    document.apply_merge().map_err(wrong)?;
    let list = match document {
        Value::Sequence(list) => list,
        one @ Value::Mapping(_) => vec![one],
        _ => return Err("expected an agent definition or a list of them".into()),
    };
    let mut found = Definitions::default();
    for (at, value) in list.into_iter().enumerate() {
        let place = match value.get("name") {
            Some(Value::String(name)) if !name.is_empty() => name.clone(),
            _ => format!("definition {}", at + 1),
        };
        match scheduled(value).map_err(|message| format!("{place}: {message}"))? {
            Some(spec) => found.specs.push(spec),
            None => found.others += 1,
        }
    }
    Ok(found)
}

/// The schedule of one agent; none if it works in another way.
fn scheduled(value: Value) -> Result<Option<ScheduleSpec>, String> {
    let mut agent = Fields::new("", value)?;
    if agent.needed("execution_mode", values::execution_mode)? != ExecutionMode::Scheduled {
        return Ok(None);
    }
    let name = agent.needed("name", id)?;
    let agent_type = agent.needed("type", id)?;
    let Some(section) = agent.value("schedule") else {
        return Err("schedule: expected a section with cron or every: the execution mode is scheduled".into());
    };
    let mut fields = Fields::new("schedule", section)?;
    let spec = ScheduleSpec {
        cron: fields.take("cron")?,
        time_zone: fields.take("time_zone")?,
        every_ms: fields.millis("every")?,
        task: Some(task(&mut fields, &name, agent_type)?),
        missed: fields.word("missed", policy::<Missed>)?.map_or(0, |missed| MissedTicks::from(missed) as i32),
        overlap: fields.word("overlap", policy::<Overlapping>)?.map_or(0, |overlap| Overlap::from(overlap) as i32),
        tolerance_ms: fields.millis("tolerance")?,
        schedule_id: name,
    };
    fields.nothing_left("schedule", SCHEDULE_FIELDS)?;
    if spec.cron.is_empty() == (spec.every_ms == 0) {
        return Err("schedule: expected either cron or every".into());
    }
    if spec.cron.is_empty() && !spec.time_zone.is_empty() {
        return Err("schedule.time_zone: accepted with cron only; an interval has no zone".into());
    }
    Ok(Some(spec))
}

/// What each run submits.
fn task(fields: &mut Fields, name: &str, agent_type: String) -> Result<TaskSpec, String> {
    let title: String = fields.take("title")?;
    let task = TaskSpec {
        title: if title.is_empty() { name.to_owned() } else { title },
        description: fields.take("description")?,
        payload: fields.payload()?.into(),
        required_capabilities: fields.take("capabilities")?,
        priority: fields.word("priority", values::priority)?,
        attempt_timeout_ms: fields.millis("timeout")?,
        agent_type,
        ..TaskSpec::default()
    };
    for (at, capability) in task.required_capabilities.iter().enumerate() {
        id(capability).map_err(|error| format!("schedule.capabilities[{at}]: {capability}: {error}"))?;
    }
    Ok(task)
}

fn id(text: &str) -> Result<String, String> {
    if values::is_id(text) {
        return Ok(text.to_owned());
    }
    Err("expected 1 to 128 letters, digits or . _ - : / @".into())
}

/// One of the words that the flag of the same name takes.
fn policy<T: ValueEnum>(text: &str) -> Result<T, String> {
    T::from_str(&text.replace('_', "-"), true).map_err(|_| {
        let known = T::value_variants().iter().filter_map(T::to_possible_value);
        let names: Vec<String> = known.map(|value| value.get_name().to_owned()).collect();
        format!("expected one of {}", names.join(", "))
    })
}

/// A section that is read field by field.
struct Fields {
    path: &'static str,
    map: Mapping,
}

impl Fields {
    fn new(path: &'static str, value: Value) -> Result<Self, String> {
        match value {
            Value::Mapping(map) => Ok(Self { path, map }),
            _ if path.is_empty() => Err("expected names and values".into()),
            _ => Err(format!("{path}: expected names and values")),
        }
    }

    /// Where a field stands in the definition.
    fn name(&self, field: &str) -> String {
        if self.path.is_empty() { field.to_owned() } else { format!("{}.{field}", self.path) }
    }

    /// The value of a field; `null` counts as absent.
    fn value(&mut self, field: &str) -> Option<Value> {
        self.map.shift_remove(field).filter(|value| !value.is_null())
    }

    /// A field, or its default.
    fn take<T: DeserializeOwned + Default>(&mut self, field: &str) -> Result<T, String> {
        match self.value(field) {
            Some(value) => serde_yaml_ng::from_value(value).map_err(|error| format!("{}: {error}", self.name(field))),
            None => Ok(T::default()),
        }
    }

    /// A text or a number that means something.
    fn word<T>(&mut self, field: &str, read: impl Fn(&str) -> Result<T, String>) -> Result<Option<T>, String> {
        let text = match self.value(field) {
            None => return Ok(None),
            Some(Value::String(text)) => text,
            Some(Value::Number(number)) => number.to_string(),
            Some(_) => return Err(format!("{}: expected a text", self.name(field))),
        };
        read(&text).map(Some).map_err(|error| format!("{}: {text}: {error}", self.name(field)))
    }

    /// A word that must be there.
    fn needed<T>(&mut self, field: &str, read: impl Fn(&str) -> Result<T, String>) -> Result<T, String> {
        match self.word(field, &read)? {
            Some(value) => Ok(value),
            // What is said of an empty text says what would be accepted.
            None => read("").map_err(|error| format!("{}: it is missing; {error}", self.name(field))),
        }
    }

    /// A duration; 0 if it is absent.
    fn millis(&mut self, field: &str) -> Result<u64, String> {
        self.word(field, values::positive_duration).map(|duration| duration.map_or(0, values::millis))
    }

    fn payload(&mut self) -> Result<Vec<u8>, String> {
        let Some(value) = self.value("payload") else { return Ok(Vec::new()) };
        let name = self.name("payload");
        let wrong = |error: &dyn std::fmt::Display| format!("{name}: it cannot be written as JSON: {error}");
        let value: serde_json::Value = serde_yaml_ng::from_value(value).map_err(|error| wrong(&error))?;
        serde_json::to_vec(&value).map_err(|error| wrong(&error))
    }

    fn nothing_left(&self, what: &str, accepted: &str) -> Result<(), String> {
        match self.map.keys().next() {
            Some(Value::String(field)) => {
                Err(format!("{} is not a field of a {what}; accepted: {accepted}", self.name(field)))
            }
            Some(_) => Err(format!("{}: a key is not a text; accepted: {accepted}", self.path)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(text: &str) -> String {
        parse(text.as_bytes()).unwrap_err()
    }

    /// The complaint about a scheduled agent with this section.
    fn wrong_schedule(section: &str) -> String {
        wrong(&format!("{{name: n, type: t, execution_mode: scheduled, schedule: {section}}}"))
    }

    #[test]
    fn every_field_is_read() {
        let text = r#"
- name: nightly-report
  type: reporter
  execution_mode: scheduled
  llm_config: {model: large, temperature: 0.2, 7: seven}
  schedule:
    cron: "0 2 * * *"
    time_zone: Europe/Berlin
    missed: all
    overlap: cancel-previous
    tolerance: 90s
    title: nightly report
    description: what happened
    payload: {days: 1, to: [a, b]}
    capabilities: [reports, mail]
    priority: high
    timeout: 10m
- name: watcher
  type: w
  execution_mode: continuous
  schedule: not looked at
- name: sweep
  type: janitor
  execution_mode: SCHEDULED
  schedule: {every: 30s, overlap: cancel_previous, priority: 0, payload: null}
"#;
        let found = parse(text.as_bytes()).unwrap();
        let nightly = ScheduleSpec {
            schedule_id: "nightly-report".into(),
            cron: "0 2 * * *".into(),
            time_zone: "Europe/Berlin".into(),
            every_ms: 0,
            task: Some(TaskSpec {
                title: "nightly report".into(),
                description: "what happened".into(),
                payload: br#"{"days":1,"to":["a","b"]}"#.to_vec().into(),
                required_capabilities: vec!["reports".into(), "mail".into()],
                agent_type: "reporter".into(),
                priority: Some(7),
                attempt_timeout_ms: 600_000,
                ..TaskSpec::default()
            }),
            missed: MissedTicks::All as i32,
            overlap: Overlap::CancelPrevious as i32,
            tolerance_ms: 90_000,
        };
        let sweep = ScheduleSpec {
            schedule_id: "sweep".into(),
            every_ms: 30_000,
            task: Some(TaskSpec {
                title: "sweep".into(),
                agent_type: "janitor".into(),
                priority: Some(0),
                ..TaskSpec::default()
            }),
            overlap: Overlap::CancelPrevious as i32,
            ..ScheduleSpec::default()
        };
        assert_eq!(found, Definitions { specs: vec![nightly, sweep], others: 1 });
        for field in SCHEDULE_FIELDS.split(", ") {
            assert!(text.contains(&format!("{field}: ")), "{field} is not in this test");
        }
    }

    #[test]
    fn one_definition_json_and_shared_parts_are_read_too() {
        let one = br#"{"name": "n", "type": "t", "execution_mode": "scheduled", "schedule": {"every": "1h"}}"#;
        let found = parse(one).unwrap();
        assert_eq!((found.specs[0].every_ms, found.others), (3_600_000, 0));
        let shared = "
- &base {name: base, type: t, execution_mode: autonomous}
- {<<: *base, name: n, execution_mode: scheduled, schedule: {every: 1h}}
";
        assert_eq!(parse(shared.as_bytes()).unwrap(), Definitions { others: 1, ..found });
        assert_eq!(parse(b"[]").unwrap(), Definitions::default());
    }

    #[test]
    fn an_expression_is_the_clusters_to_refuse() {
        let text = "{name: n, type: t, execution_mode: scheduled, schedule: {cron: every full moon}}";
        assert_eq!(parse(text.as_bytes()).unwrap().specs[0].cron, "every full moon");
    }

    #[test]
    fn an_agent_has_a_name_a_type_a_mode_and_if_scheduled_a_schedule() {
        assert!(wrong("[{name: n}]").starts_with("n: execution_mode: it is missing; expected one of autonomous, sch"));
        assert!(wrong("[{name: n, execution_mode: cron}]").starts_with("n: execution_mode: cron: expected one of"));
        assert!(wrong("[{execution_mode: scheduled}]").starts_with("definition 1: name: it is missing; expected 1 to"));
        let two_words = "[{name: two words, type: t, execution_mode: scheduled, schedule: {every: 1h}}]";
        assert!(wrong(two_words).starts_with("two words: name: two words: expected 1 to 128"));
        assert!(wrong("{name: n, execution_mode: scheduled}").starts_with("n: type: it is missing"));
        let bare = wrong("{name: n, type: t, execution_mode: scheduled}");
        assert!(bare.starts_with("n: schedule: expected a section with cron or every"), "{bare}");
        assert!(wrong_schedule("30s").starts_with("n: schedule: expected names"));
    }

    #[test]
    fn mistakes_in_a_schedule_are_named() {
        let unknown = wrong_schedule("{every: 1h, timezone: UTC}");
        assert!(unknown.starts_with("n: schedule.timezone is not a field of a schedule; accepted: cron"), "{unknown}");
        for either in ["{title: a}", "{cron: 0 2 * * *, every: 1h}"] {
            assert!(wrong_schedule(either).contains("schedule: expected either cron or every"), "{either}");
        }
        assert!(wrong_schedule("{every: 30}").starts_with("n: schedule.every: 30: expected a whole number with a"));
        assert!(wrong_schedule("{every: 1h, time_zone: UTC}").starts_with("n: schedule.time_zone: accepted with cron"));
        assert!(wrong_schedule("{every: 1h, missed: [all]}").starts_with("n: schedule.missed: expected a text"));
        let missed = wrong_schedule("{every: 1h, missed: twice}");
        assert!(missed.starts_with("n: schedule.missed: twice: expected one of skip, once, all"), "{missed}");
        assert!(wrong_schedule("{every: 1h, capabilities: [a b]}").starts_with("n: schedule.capabilities[0]: a b: "));
        assert!(wrong_schedule("{every: 1h, capabilities: a}").starts_with("n: schedule.capabilities: invalid type"));
        assert!(wrong_schedule("{every: 1h, payload: {1: a}}").starts_with("n: schedule.payload: it cannot be"));
        assert!(wrong_schedule("{every: 1h, priority: 11}").contains("0 to 10"));
    }

    #[test]
    fn a_file_that_is_not_made_of_definitions_is_refused() {
        for text in ["", "7", "nightly"] {
            assert!(wrong(text).contains("expected an agent definition"), "{text:?}");
        }
        assert!(wrong("[7]").starts_with("definition 1: expected names and values"));
        assert!(wrong("{name: n").starts_with("not valid YAML"));
        let twice = wrong("{name: a, name: b}");
        assert!(twice.starts_with("not valid YAML") && twice.contains("duplicate"), "{twice}");
    }
}
