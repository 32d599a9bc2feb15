//! Tasks from a JSON file: one task, a list of tasks, or `{"tasks": [..]}`.
//!
//! Every complaint names the place (`tasks[3].priority`): a field is read one at a time for that reason, and a field that
//! nobody knows is refused.

use std::collections::BTreeMap;

use quorate_client::v1::{EvidencePolicy, KeyValue, RetryPolicy, TaskSpec};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::check_payload;
use super::flags::on_dependency_failure;
use crate::cli::values;

const MAX_TASKS: usize = 1_000;
const DEFAULT_RETRIES: u32 = 3;
/// Of a retry policy that says nothing about it.
pub(super) const DEFAULT_JITTER_PERMILLE: u32 = 200;

const TASK_FIELDS: &str = "task_id, title, description, payload, required_capabilities, agent_id, priority, dependencies, \
     retry, attempt_timeout_ms, not_before_ms, unroutable, project, epic, feature, estimated_minutes, labels, \
     idempotency_key, agent_type, required_labels, excluded_agents, route, concurrency_keys, uses, share, cost, \
     soft_dependencies, pending_dependencies, on_dependency_failure, queue_timeout_ms, total_timeout_ms, \
     cancel_grace_ms, retry_profile, evidence";
const RETRY_FIELDS: &str = "max_retries, base_ms, cap_ms, jitter_permille, never_retry, always_retry";
const EVIDENCE_FIELDS: &str = "artifacts, checks, agent_reviews, review_capabilities, person_reviews, max_reworks";

/// The tasks of a file.
pub(super) fn parse(bytes: &[u8]) -> Result<Vec<TaskSpec>, String> {
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
        unroutable: fields.word("unroutable", |text| values::unroutable(text).map(|value| value as i32))?,
        project: fields.take("project")?,
        epic: fields.take("epic")?,
        feature: fields.take("feature")?,
        estimated_minutes: fields.take("estimated_minutes")?,
        labels: fields.pairs("labels")?,
        idempotency_key: fields.take("idempotency_key")?,
        agent_type: fields.take("agent_type")?,
        required_labels: fields.pairs("required_labels")?,
        excluded_agents: fields.take("excluded_agents")?,
        route: fields.take("route")?,
        concurrency_keys: fields.take("concurrency_keys")?,
        uses: fields.take("uses")?,
        share: fields.take("share")?,
        cost: fields.take("cost")?,
        soft_dependencies: fields.take("soft_dependencies")?,
        pending_dependencies: fields.take("pending_dependencies")?,
        on_dependency_failure: fields
            .word("on_dependency_failure", |text| on_dependency_failure(text).map(|value| value as i32))?,
        queue_timeout_ms: fields.take("queue_timeout_ms")?,
        total_timeout_ms: fields.take("total_timeout_ms")?,
        cancel_grace_ms: fields.take("cancel_grace_ms")?,
        retry_profile: fields.take("retry_profile")?,
        evidence: fields.evidence()?,
    };
    check_payload(&fields.name("payload"), &spec)?;
    if spec.title.is_empty() {
        return Err(format!("{}: expected a text that is not empty", fields.name("title")));
    }
    fields.nothing_left("task", TASK_FIELDS)?;
    Ok(spec)
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

    /// A text that is one of a few; 0 if it is absent.
    fn word(&mut self, field: &str, parse: impl Fn(&str) -> Result<i32, String>) -> Result<i32, String> {
        let text: Option<String> = self.take(field)?;
        let Some(text) = text else { return Ok(0) };
        parse(&text).map_err(|error| format!("{}: {text}: {error}", self.name(field)))
    }

    /// An object of texts.
    fn pairs(&mut self, field: &str) -> Result<Vec<KeyValue>, String> {
        let pairs: BTreeMap<String, String> = self.take(field)?;
        Ok(pairs.into_iter().map(|(key, value)| KeyValue { key, value }).collect())
    }

    /// An object with fields of its own.
    fn inner(&mut self, field: &str) -> Result<Option<Self>, String> {
        let Some(value) = self.value(field) else { return Ok(None) };
        Fields::new(self.name(field), value).map(Some)
    }

    fn retry(&mut self) -> Result<Option<RetryPolicy>, String> {
        let Some(mut fields) = self.inner("retry")? else { return Ok(None) };
        let max_retries: Option<u32> = fields.take("max_retries")?;
        let jitter_permille: Option<u32> = fields.take("jitter_permille")?;
        let policy = RetryPolicy {
            max_retries: max_retries.unwrap_or(DEFAULT_RETRIES),
            base_ms: fields.take("base_ms")?,
            cap_ms: fields.take("cap_ms")?,
            jitter_permille: jitter_permille.unwrap_or(DEFAULT_JITTER_PERMILLE),
            never_retry: fields.take("never_retry")?,
            always_retry: fields.take("always_retry")?,
        };
        fields.nothing_left("retry policy", RETRY_FIELDS)?;
        Ok(Some(policy))
    }

    fn evidence(&mut self) -> Result<Option<EvidencePolicy>, String> {
        let Some(mut fields) = self.inner("evidence")? else { return Ok(None) };
        let policy = EvidencePolicy {
            artifacts: fields.take("artifacts")?,
            checks: fields.take("checks")?,
            agent_reviews: fields.take("agent_reviews")?,
            review_capabilities: fields.take("review_capabilities")?,
            person_reviews: fields.take("person_reviews")?,
            max_reworks: fields.take("max_reworks")?,
        };
        fields.nothing_left("evidence policy", EVIDENCE_FIELDS)?;
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
    use quorate_client::v1::{OnDependencyFailure, Unroutable};

    use super::super::MAX_PAYLOAD_BYTES;
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
        let retry = parse(br#"{"title": "a", "retry": {"base_ms": 5}}"#).unwrap()[0].retry.clone().unwrap();
        assert_eq!((retry.max_retries, retry.jitter_permille), (DEFAULT_RETRIES, DEFAULT_JITTER_PERMILLE));
        let list = br#"[{"title": "a", "priority": 7, "payload": {"n": 1}}]"#;
        assert_eq!(parse(list).unwrap(), one);
        let document = br#"{"tasks": [{"title": "a", "priority": "p1", "payload": {"n": 1}, "epic": null}]}"#;
        assert_eq!(parse(document).unwrap(), one);
    }

    #[test]
    fn every_field_is_read() {
        let text = r#"{"task_id": "t", "title": "a", "description": "d", "payload": "text", "required_capabilities": ["c"],
            "agent_id": "x", "priority": 0, "dependencies": ["u"],
            "retry": {"max_retries": 1, "base_ms": 5, "cap_ms": 6, "jitter_permille": 100, "never_retry": ["n"],
                "always_retry": ["m"]},
            "attempt_timeout_ms": 9, "not_before_ms": 8, "unroutable": "fail", "project": "p", "epic": "e",
            "feature": "f", "estimated_minutes": 7, "labels": {"k": "v"}, "idempotency_key": "i",
            "agent_type": "coder", "required_labels": {"zone": "a"}, "excluded_agents": ["y"], "route": true,
            "concurrency_keys": ["r"], "uses": ["b"], "share": "s", "cost": 2, "soft_dependencies": ["v"],
            "pending_dependencies": ["w"], "on_dependency_failure": "skip", "queue_timeout_ms": 10,
            "total_timeout_ms": 11, "cancel_grace_ms": 0, "retry_profile": "fast",
            "evidence": {"artifacts": ["diff"], "checks": ["test"], "agent_reviews": 1,
                "review_capabilities": ["review"], "person_reviews": 2, "max_reworks": 0}}"#;
        let expected = TaskSpec {
            task_id: "t".into(),
            title: "a".into(),
            description: "d".into(),
            payload: br#""text""#.to_vec().into(),
            required_capabilities: vec!["c".into()],
            agent_id: "x".into(),
            priority: Some(0),
            dependencies: vec!["u".into()],
            retry: Some(RetryPolicy {
                max_retries: 1,
                base_ms: 5,
                cap_ms: 6,
                jitter_permille: 100,
                never_retry: vec!["n".into()],
                always_retry: vec!["m".into()],
            }),
            attempt_timeout_ms: 9,
            not_before_ms: 8,
            unroutable: Unroutable::Fail as i32,
            project: "p".into(),
            epic: "e".into(),
            feature: "f".into(),
            estimated_minutes: 7,
            labels: vec![KeyValue { key: "k".into(), value: "v".into() }],
            idempotency_key: "i".into(),
            agent_type: "coder".into(),
            required_labels: vec![KeyValue { key: "zone".into(), value: "a".into() }],
            excluded_agents: vec!["y".into()],
            route: true,
            concurrency_keys: vec!["r".into()],
            uses: vec!["b".into()],
            share: "s".into(),
            cost: 2,
            soft_dependencies: vec!["v".into()],
            pending_dependencies: vec!["w".into()],
            on_dependency_failure: OnDependencyFailure::Skip as i32,
            queue_timeout_ms: 10,
            total_timeout_ms: 11,
            cancel_grace_ms: Some(0),
            retry_profile: "fast".into(),
            evidence: Some(EvidencePolicy {
                artifacts: vec!["diff".into()],
                checks: vec!["test".into()],
                agent_reviews: 1,
                review_capabilities: vec!["review".into()],
                person_reviews: 2,
                max_reworks: Some(0),
            }),
        };
        assert_eq!(parse(text.as_bytes()).unwrap(), [expected]);
        for field in [TASK_FIELDS, RETRY_FIELDS, EVIDENCE_FIELDS].iter().flat_map(|fields| fields.split(", ")) {
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
        assert!(
            wrong(r#"{"title": "a", "on_dependency_failure": "go"}"#).starts_with("on_dependency_failure: go: exp")
        );
        assert!(wrong(r#"[{"title": "a", "evidence": {"check": []}}]"#).starts_with("[0].evidence.check is not"));
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
