//! Tasks to submit, from the flags of `quorate task submit` or from a JSON file.
//!
//! A file is one task, a list of tasks, or `{"tasks": [..]}`. Every complaint names the place (`tasks[3].priority`): a field is
//! read one at a time for that reason, and a field that nobody knows is refused.
//! Deliberately absent: what the cluster checks anyway and names as well as we could, such as dependencies and cycles.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use quorate_client::v1::{KeyValue, RetryPolicy, TaskSpec, Unroutable};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokio::io::AsyncReadExt;

use super::exit::Failure;
use super::values;

/// Shown under `quorate task submit --help`.
pub(crate) const EXAMPLES: &str = r#"EXAMPLES:
  quorate task submit --title "review crate a" --capability code-review --payload '{"crate": "a"}'
      one task from flags; prints its id
  quorate task submit --title deploy --depends-on build --depends-on test --priority P0
      starts when both are completed, before everything else
  quorate task submit plan.json
      all tasks of a file, or none of them
  generate-plan | quorate task submit -
      the same from stdin

FILE:
  One task, a list of tasks, or {"tasks": [..]}; at most 1,000. A task:
  { "task_id": "document", "title": "write the report", "description": "..",
    "payload": {"any": "json"}, "required_capabilities": ["documentation"], "agent_id": "..",
    "priority": "high", "dependencies": ["review-a", "review-b"],
    "retry": {"max_retries": 3, "base_ms": 2000, "cap_ms": 60000, "jitter_permille": 200},
    "attempt_timeout_ms": 1800000, "not_before_ms": 0, "unroutable": "wait",
    "project": "..", "epic": "..", "feature": "..", "estimated_minutes": 5,
    "labels": {"name": "value"}, "idempotency_key": ".." }
  Only title is needed. Dependencies may name tasks of the same file. priority: critical, high,
  medium, low, background, P0 to P3, or 0 to 10."#;

const MAX_TASKS: usize = 1_000;
const MAX_PAYLOAD_BYTES: usize = 1024 * 1024;
const DEFAULT_RETRIES: u32 = 3;
const DEFAULT_JITTER_PERMILLE: u32 = 200;

const TASK_FIELDS: &str = "task_id, title, description, payload, required_capabilities, agent_id, priority, dependencies, \
     retry, attempt_timeout_ms, not_before_ms, unroutable, project, epic, feature, estimated_minutes, labels, \
     idempotency_key";
const RETRY_FIELDS: &str = "max_retries, base_ms, cap_ms, jitter_permille";

/// Flags of `quorate task submit`.
#[derive(Args, Default)]
pub(crate) struct SubmitArgs {
    /// Tasks as JSON (see below); - reads stdin
    #[arg(value_name = "FILE")]
    file: Option<String>,
    /// What is to be done, in a few words
    #[arg(long, value_name = "TEXT", required_unless_present = "file", conflicts_with = "file")]
    title: Option<String>,
    /// What is to be done, at length
    #[arg(long, value_name = "TEXT", conflicts_with = "file")]
    description: Option<String>,
    /// The task's id; without it the cluster picks one
    #[arg(long, value_name = "ID", conflicts_with = "file")]
    id: Option<String>,
    /// Only agents that offer this may do it; repeat to require several
    #[arg(long, value_name = "NAME", conflicts_with = "file")]
    capability: Vec<String>,
    /// Only this agent may do it
    #[arg(long, value_name = "ID", conflicts_with = "file")]
    agent: Option<String>,
    /// critical, high, medium (default), low, background, P0 to P3, or a number from 0 to 10, higher first
    #[arg(long, value_name = "PRIORITY", value_parser = values::priority, conflicts_with = "file")]
    priority: Option<u32>,
    /// A task that must be completed first; repeat for several
    #[arg(long, value_name = "ID", conflicts_with = "file")]
    depends_on: Vec<String>,
    /// What the agent gets; at most 1 MiB
    #[arg(long, value_name = "JSON", value_parser = values::json_text, conflicts_with = "file")]
    payload: Option<String>,
    /// Idempotency key: a second submission with the same key creates nothing and prints the first one's id
    #[arg(long, value_name = "KEY", conflicts_with = "file")]
    key: Option<String>,
    /// Retries after a failed first attempt (default 3), at most 100
    #[arg(long, value_name = "N", conflicts_with = "file", value_parser = clap::value_parser!(u32).range(..=100))]
    max_retries: Option<u32>,
    /// How long one attempt may run (default 2h)
    #[arg(long, value_name = "DURATION", value_parser = values::positive_duration, conflicts_with = "file")]
    attempt_timeout: Option<Duration>,
    /// If no registered agent could do it now: wait (default) or fail
    #[arg(long, value_name = "WHAT", value_parser = values::unroutable, conflicts_with = "file")]
    unroutable: Option<Unroutable>,
    /// The project it belongs to
    #[arg(long, value_name = "NAME", conflicts_with = "file")]
    project: Option<String>,
}

/// What the arguments ask for.
pub(crate) async fn specs(mut args: SubmitArgs) -> Result<Vec<TaskSpec>, Failure> {
    let Some(file) = args.file.take() else {
        let spec = from_flags(args);
        check_payload("payload", &spec).map_err(Failure::bad_input)?;
        return Ok(vec![spec]);
    };
    let (name, bytes) = if file == "-" {
        let mut bytes = Vec::new();
        (String::from("stdin"), tokio::io::stdin().read_to_end(&mut bytes).await.map(|_| bytes))
    } else {
        let bytes = tokio::fs::read(&file).await;
        (file, bytes)
    };
    let bytes = bytes.map_err(|error| Failure::bad_input(format!("{name}: {error}")))?;
    parse(&bytes).map_err(|message| Failure::bad_input(format!("{name}: {message}")))
}

fn from_flags(args: SubmitArgs) -> TaskSpec {
    TaskSpec {
        task_id: args.id.unwrap_or_default(),
        title: args.title.unwrap_or_default(),
        description: args.description.unwrap_or_default(),
        payload: args.payload.unwrap_or_default().into_bytes().into(),
        required_capabilities: args.capability,
        agent_id: args.agent.unwrap_or_default(),
        priority: args.priority,
        dependencies: args.depends_on,
        retry: args.max_retries.map(|max_retries| RetryPolicy {
            max_retries,
            jitter_permille: DEFAULT_JITTER_PERMILLE,
            ..Default::default()
        }),
        attempt_timeout_ms: args.attempt_timeout.map(values::millis).unwrap_or_default(),
        unroutable: args.unroutable.map_or(0, |unroutable| unroutable as i32),
        project: args.project.unwrap_or_default(),
        idempotency_key: args.key.unwrap_or_default(),
        ..Default::default()
    }
}

/// The tasks of a file.
fn parse(bytes: &[u8]) -> Result<Vec<TaskSpec>, String> {
    let value: Value = serde_json::from_slice(bytes).map_err(|error| format!("not valid JSON: {error}"))?;
    let specs = match value {
        Value::Array(list) => many("", list)?,
        Value::Object(mut map) if map.contains_key("tasks") => {
            let tasks = map.remove("tasks");
            if let Some(other) = map.keys().next() {
                return Err(format!("{other} is not accepted beside tasks"));
            }
            match tasks {
                Some(Value::Array(list)) => many("tasks", list)?,
                _ => return Err("tasks: expected a list of tasks".into()),
            }
        }
        one @ Value::Object(_) => vec![task(String::new(), one)?],
        _ => return Err("expected a task (a JSON object), a list of tasks, or {\"tasks\": [..]}".into()),
    };
    match specs.len() {
        1..=MAX_TASKS => Ok(specs),
        count => Err(format!("tasks: {count} tasks, expected 1 to {MAX_TASKS}")),
    }
}

fn many(name: &str, list: Vec<Value>) -> Result<Vec<TaskSpec>, String> {
    list.into_iter().enumerate().map(|(at, value)| task(format!("{name}[{at}]"), value)).collect()
}

fn task(path: String, value: Value) -> Result<TaskSpec, String> {
    let mut fields = Fields::new(path, value)?;
    let labels: BTreeMap<String, String> = fields.take("labels")?;
    let spec = TaskSpec {
        task_id: fields.take("task_id")?,
        title: fields.take("title")?,
        description: fields.take("description")?,
        payload: fields.payload()?.into(),
        required_capabilities: fields.take("required_capabilities")?,
        agent_id: fields.take("agent_id")?,
        priority: fields.priority()?,
        dependencies: fields.take("dependencies")?,
        retry: fields.retry()?,
        attempt_timeout_ms: fields.take("attempt_timeout_ms")?,
        not_before_ms: fields.take("not_before_ms")?,
        unroutable: fields.unroutable()?,
        project: fields.take("project")?,
        epic: fields.take("epic")?,
        feature: fields.take("feature")?,
        estimated_minutes: fields.take("estimated_minutes")?,
        labels: labels.into_iter().map(|(key, value)| KeyValue { key, value }).collect(),
        idempotency_key: fields.take("idempotency_key")?,
    };
    check_payload(&fields.name("payload"), &spec)?;
    if spec.title.is_empty() {
        return Err(format!("{}: expected a text that is not empty", fields.name("title")));
    }
    fields.nothing_left("task", TASK_FIELDS)?;
    Ok(spec)
}

fn check_payload(name: &str, spec: &TaskSpec) -> Result<(), String> {
    match spec.payload.len() {
        0..=MAX_PAYLOAD_BYTES => Ok(()),
        bytes => Err(format!("{name} is {bytes} bytes, at most {MAX_PAYLOAD_BYTES} are accepted")),
    }
}

/// An object that is read field by field.
struct Fields {
    path: String,
    map: Map<String, Value>,
}

impl Fields {
    fn new(path: String, value: Value) -> Result<Self, String> {
        match value {
            Value::Object(map) => Ok(Self { path, map }),
            _ => Err(format!("{path}: expected a JSON object")),
        }
    }

    /// Where a field stands in the file.
    fn name(&self, field: &str) -> String {
        if self.path.is_empty() { field.to_owned() } else { format!("{}.{field}", self.path) }
    }

    /// The value of a field; `null` counts as absent.
    fn value(&mut self, field: &str) -> Option<Value> {
        self.map.remove(field).filter(|value| !value.is_null())
    }

    /// A field, or its default.
    fn take<T: DeserializeOwned + Default>(&mut self, field: &str) -> Result<T, String> {
        match self.value(field) {
            Some(value) => serde_json::from_value(value).map_err(|error| format!("{}: {error}", self.name(field))),
            None => Ok(T::default()),
        }
    }

    fn payload(&mut self) -> Result<Vec<u8>, String> {
        match self.value("payload") {
            Some(value) => serde_json::to_vec(&value).map_err(|error| format!("{}: {error}", self.name("payload"))),
            None => Ok(Vec::new()),
        }
    }

    /// By number or by name.
    fn priority(&mut self) -> Result<Option<u32>, String> {
        let text = match self.value("priority") {
            None => return Ok(None),
            Some(Value::String(text)) => text,
            Some(value) => value.to_string(),
        };
        values::priority(&text).map(Some).map_err(|error| format!("{}: {text}: {error}", self.name("priority")))
    }

    fn unroutable(&mut self) -> Result<i32, String> {
        let text: Option<String> = self.take("unroutable")?;
        let Some(text) = text else { return Ok(0) };
        let parsed = values::unroutable(&text).map(|unroutable| unroutable as i32);
        parsed.map_err(|error| format!("{}: {text}: {error}", self.name("unroutable")))
    }

    fn retry(&mut self) -> Result<Option<RetryPolicy>, String> {
        let Some(value) = self.value("retry") else { return Ok(None) };
        let mut fields = Fields::new(self.name("retry"), value)?;
        let max_retries: Option<u32> = fields.take("max_retries")?;
        let jitter_permille: Option<u32> = fields.take("jitter_permille")?;
        let policy = RetryPolicy {
            max_retries: max_retries.unwrap_or(DEFAULT_RETRIES),
            base_ms: fields.take("base_ms")?,
            cap_ms: fields.take("cap_ms")?,
            jitter_permille: jitter_permille.unwrap_or(DEFAULT_JITTER_PERMILLE),
        };
        fields.nothing_left("retry policy", RETRY_FIELDS)?;
        Ok(Some(policy))
    }

    fn nothing_left(&self, what: &str, accepted: &str) -> Result<(), String> {
        match self.map.keys().next() {
            Some(field) => Err(format!("{} is not a field of a {what}; accepted: {accepted}", self.name(field))),
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

    #[test]
    fn one_task_a_list_and_a_document_are_the_same() {
        let one = parse(br#"{"title": "a", "priority": "HIGH", "payload": {"n": 1}}"#).unwrap();
        assert_eq!((one[0].title.as_str(), one[0].priority), ("a", Some(7)));
        assert_eq!(one[0].payload.as_ref(), br#"{"n":1}"#);
        assert_eq!(one[0].retry, None);
        let list = br#"[{"title": "a", "priority": 7, "payload": {"n": 1}}]"#;
        assert_eq!(parse(list).unwrap(), one);
        let document = br#"{"tasks": [{"title": "a", "priority": "p1", "payload": {"n": 1}, "epic": null}]}"#;
        assert_eq!(parse(document).unwrap(), one);
    }

    #[test]
    fn every_field_is_read() {
        let text = r#"{"task_id": "t", "title": "a", "description": "d", "payload": "text", "required_capabilities": ["c"],
            "agent_id": "x", "priority": 0, "dependencies": ["u"], "retry": {"max_retries": 1, "base_ms": 5},
            "attempt_timeout_ms": 9, "not_before_ms": 8, "unroutable": "fail", "project": "p", "epic": "e",
            "feature": "f", "estimated_minutes": 7, "labels": {"k": "v"}, "idempotency_key": "i"}"#;
        let expected = TaskSpec {
            task_id: "t".into(),
            title: "a".into(),
            description: "d".into(),
            payload: br#""text""#.to_vec().into(),
            required_capabilities: vec!["c".into()],
            agent_id: "x".into(),
            priority: Some(0),
            dependencies: vec!["u".into()],
            retry: Some(RetryPolicy { max_retries: 1, base_ms: 5, cap_ms: 0, jitter_permille: 200 }),
            attempt_timeout_ms: 9,
            not_before_ms: 8,
            unroutable: Unroutable::Fail as i32,
            project: "p".into(),
            epic: "e".into(),
            feature: "f".into(),
            estimated_minutes: 7,
            labels: vec![KeyValue { key: "k".into(), value: "v".into() }],
            idempotency_key: "i".into(),
        };
        assert_eq!(parse(text.as_bytes()).unwrap(), [expected]);
        for field in TASK_FIELDS.split(", ") {
            assert!(text.contains(&format!("\"{}\"", field.trim())), "{field} is not in this test");
        }
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        assert!(wrong(r#"{"tasks": [{"title": "a""#).contains("JSON"));
        assert!(
            wrong(r#"{"tasks": [{"title": "a"}, {"title": "b", "colour": 1}]}"#).starts_with("tasks[1].colour is not")
        );
        assert!(wrong(r#"[{"title": 3}]"#).starts_with("[0].title: invalid type"));
        assert!(wrong(r#"{"title": "a", "priority": "URGENTISH"}"#).starts_with("priority: URGENTISH: expected"));
        assert!(wrong(r#"{"title": "a", "priority": 11}"#).contains("0 to 10"));
        assert!(wrong(r#"{"title": "a", "retry": {"max": 1}}"#).starts_with("retry.max is not"));
        assert!(wrong(r#"{"title": "a", "unroutable": "drop"}"#).contains("wait, fail"));
        assert!(wrong(r#"{"priority": 1}"#).starts_with("title: expected"));
        assert!(wrong(r#"{"tasks": [], "title": "a"}"#).contains("title"));
        assert!(wrong("[]").contains("1 to 1000"));
        assert!(wrong("7").contains("expected a task"));
    }

    #[test]
    fn a_payload_that_is_too_large_is_named() {
        let big = "x".repeat(MAX_PAYLOAD_BYTES);
        assert!(
            wrong(&format!(r#"[{{"title": "a", "payload": "{big}"}}]"#)).starts_with("[0].payload is 1048578 bytes")
        );
    }
}
