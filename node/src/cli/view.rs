//! The messages of the API as JSON for `-o json`, and the small texts that the tables share.
//!
//! Conventions: enums as lower-case names (`in_progress`), shares as numbers from 0 to 1, times as integers in fields that end
//! in `_ms`, payloads and results as JSON if they are JSON, else as text, else as `hex:…`; `null` where there is nothing.
//! Owns: the conventions, agents and nodes. `task` holds what a task and its attempts look like, `queue` what waits and why,
//! `locks`, `bus` and `kv` what those rooms hold.
//! Deliberately absent: the way back. These views are for reading.

mod bus;
mod kv;
mod locks;
mod queue;
mod task;

use std::fmt::Write as _;

use quorate_client::v1::{
    Agent, AgentStatus, AttemptOutcome, BlobRef, ExecutionMode, FinishKind, KeyValue, NodeStatusResponse,
    OnDependencyFailure, TaskStatus, Unroutable, agent_event,
};
use serde_json::{Map, Value, json};

pub(crate) use self::bus::{dead, message, overflow, subscription, subscription_info};
pub(crate) use self::kv::{kv_entry, kv_facts, kv_policy};
pub(crate) use self::locks::{holder, lock, lock_mode, scope, who};
pub(crate) use self::queue::{counts, deadlock, reason, running, stats, submitted};
pub(crate) use self::task::{attempt, job, spec_of, task};
use super::values;

/// `in_progress`, for example.
pub(crate) fn task_status(value: i32) -> String {
    name(TaskStatus::try_from(value).map(|known| known.as_str_name()).ok(), "TASK_STATUS_", value)
}

/// `available`, for example.
pub(crate) fn agent_status(value: i32) -> String {
    name(AgentStatus::try_from(value).map(|known| known.as_str_name()).ok(), "AGENT_STATUS_", value)
}

/// `autonomous`, for example.
pub(crate) fn execution_mode(value: i32) -> String {
    name(ExecutionMode::try_from(value).map(|known| known.as_str_name()).ok(), "EXECUTION_MODE_", value)
}

/// `completed`, for example.
pub(crate) fn attempt_outcome(value: i32) -> String {
    name(AttemptOutcome::try_from(value).map(|known| known.as_str_name()).ok(), "ATTEMPT_OUTCOME_", value)
}

/// `changed`, for example.
pub(crate) fn event_kind(value: i32) -> String {
    name(agent_event::Kind::try_from(value).map(|known| known.as_str_name()).ok(), "KIND_", value)
}

fn finish_kind(value: i32) -> String {
    name(FinishKind::try_from(value).map(|known| known.as_str_name()).ok(), "FINISH_KIND_", value)
}

fn unroutable(value: i32) -> String {
    name(Unroutable::try_from(value).map(|known| known.as_str_name()).ok(), "UNROUTABLE_", value)
}

/// `block`, for example.
pub(crate) fn on_dependency_failure(value: i32) -> String {
    let known = OnDependencyFailure::try_from(value).map(|known| known.as_str_name()).ok();
    name(known, "ON_DEPENDENCY_FAILURE_", value)
}

/// A node newer than this program may send a number that has no name here.
fn name(known: Option<&str>, prefix: &str, value: i32) -> String {
    match known {
        Some(known) => known.strip_prefix(prefix).unwrap_or(known).to_ascii_lowercase(),
        None => format!("unknown({value})"),
    }
}

/// An agent.
pub(crate) fn agent(agent: &Agent) -> Value {
    json!({
        "id": agent.id,
        "agent_type": agent.agent_type,
        "capabilities": agent.capabilities,
        "status": agent_status(agent.status),
        "load": agent.load,
        "capacity": agent.capacity,
        "health": share(agent.health_permille),
        "execution_mode": execution_mode(agent.execution_mode),
        "endpoint": agent.endpoint,
        "metadata": pairs(&agent.metadata),
        "session_id": agent.session_id,
        "reason": agent.reason,
        "restarts": agent.restarts,
        "registered_at_ms": time(agent.registered_at_ms),
        "updated_at_ms": time(agent.updated_at_ms),
        "revision": agent.revision,
        "forget_at_ms": time(agent.forget_at_ms),
        "standing": agent.standing,
    })
}

/// One node.
pub(crate) fn node(node: &NodeStatusResponse) -> Value {
    json!({
        "node_id": node.node_id,
        "address": node.address,
        "role": node.role,
        "leader_id": node.leader_id,
        "term": node.term,
        "last_log_index": node.last_log_index,
        "applied_index": node.applied_index,
        "rev": node.rev,
        "snapshot_index": node.snapshot_index,
        "purged_index": node.purged_index,
        "digest": node.digest,
        "full_digest": node.full_digest,
        "ready": node.ready,
        "reason": node.reason,
        "version": node.version,
        "sessions": node.sessions,
        "uptime_ms": node.uptime_ms,
        "log_bytes": node.log_bytes,
        "state_bytes": node.state_bytes,
    })
}

/// JSON, else text, else hexadecimal with its mark.
pub(crate) fn bytes(bytes: &[u8]) -> Value {
    if bytes.is_empty() {
        return Value::Null;
    }
    serde_json::from_slice(bytes).unwrap_or_else(|_| text(bytes))
}

/// Text, else hexadecimal with its mark; never parsed.
fn text(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => json!(text),
        Err(_) => Value::String(hex(bytes)),
    }
}

/// What lies beside the log: its name and its size.
fn blob(blob: &BlobRef) -> Value {
    json!({ "hash": hex(&blob.hash), "size_bytes": blob.size_bytes })
}

/// Hexadecimal with its mark.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let mut text = String::from("hex:");
    for byte in bytes {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// [`bytes`] as one line for a table; empty for nothing.
pub(crate) fn bytes_line(payload: &[u8]) -> String {
    match bytes(payload) {
        Value::Null if payload.is_empty() => String::new(),
        Value::String(text) => text,
        value => value.to_string(),
    }
}

/// `7 high`, `4`.
pub(crate) fn priority(value: u32) -> String {
    match values::priority_name(value) {
        Some(name) => format!("{value} {name}"),
        None => value.to_string(),
    }
}

/// `80%`.
pub(crate) fn percent(permille: u32) -> String {
    format!("{}%", permille / 10)
}

fn share(permille: u32) -> f64 {
    f64::from(permille) / 1000.0
}

/// 0 stands for "not set" in the API.
fn time(ms: u64) -> Value {
    if ms == 0 { Value::Null } else { json!(ms) }
}

fn pairs(pairs: &[KeyValue]) -> Value {
    Value::Object(pairs.iter().map(|pair| (pair.key.clone(), json!(pair.value))).collect())
}

/// `a=b, c=d`
pub(crate) fn pairs_line(pairs: &[KeyValue]) -> String {
    let pairs: Vec<String> = pairs.iter().map(|pair| format!("{}={}", pair.key, pair.value)).collect();
    pairs.join(", ")
}

/// The fields of an object; none of anything else.
fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_lower_case_names() {
        assert_eq!(task_status(TaskStatus::InProgress as i32), "in_progress");
        assert_eq!(task_status(TaskStatus::TimedOut as i32), "timed_out");
        assert_eq!(task_status(99), "unknown(99)");
        assert_eq!(agent_status(AgentStatus::Draining as i32), "draining");
        assert_eq!(execution_mode(ExecutionMode::Autonomous as i32), "autonomous");
        assert_eq!(attempt_outcome(AttemptOutcome::Lost as i32), "lost");
        assert_eq!(event_kind(agent_event::Kind::Gone as i32), "gone");
        assert_eq!(finish_kind(FinishKind::FailedPermanently as i32), "failed_permanently");
        assert_eq!(on_dependency_failure(OnDependencyFailure::Cascade as i32), "cascade");
    }

    #[test]
    fn names_read_back() {
        for status in 1..=10 {
            assert_eq!(values::task_status(&task_status(status)).map(|status| status as i32), Ok(status));
        }
        for status in 1..=5 {
            assert_eq!(values::agent_status(&agent_status(status)).map(|status| status as i32), Ok(status));
        }
        for outcome in 1..=7 {
            assert_eq!(values::attempt_outcome(&attempt_outcome(outcome)).map(|outcome| outcome as i32), Ok(outcome));
        }
    }

    #[test]
    fn bytes_are_json_or_text_or_hexadecimal() {
        assert_eq!(bytes(b""), Value::Null);
        assert_eq!(bytes(b"{\"a\": [1]}"), json!({"a": [1]}));
        assert_eq!(bytes(b"two words"), json!("two words"));
        assert_eq!(bytes(&[0xff, 0x00]), json!("hex:ff00"));
        assert_eq!(bytes_line(b"\"quoted\""), "quoted");
        assert_eq!(bytes_line(b"null"), "null");
        assert_eq!(bytes_line(b""), "");
    }

    #[test]
    fn health_is_a_share() {
        let view = agent(&Agent { health_permille: 800, ..Default::default() });
        assert_eq!(view["health"], json!(0.8));
    }
}
