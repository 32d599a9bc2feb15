//! What a task's specification must look like, and its defaults. Deliberately absent: the state; only the request is
//! looked at.

use quorate_proto::v1::{KeyValue, TaskSpec, Unroutable};

use super::{DEFAULT_BASE_MS, DEFAULT_CAP_MS, DEFAULT_POLICY, DEFAULT_PRIORITY, MAX_PRIORITY};
use crate::error::{Outcome, invalid};
use crate::state::check_id;

/// The largest payload.
pub const MAX_PAYLOAD_BYTES: usize = 1_048_576;
/// The longest title.
pub const MAX_TITLE_BYTES: usize = 512;
/// The longest description.
pub const MAX_DESCRIPTION_BYTES: usize = 64 * 1024;
/// The most capabilities a task may require.
pub const MAX_CAPABILITIES: usize = 64;
/// The most tasks one task may wait for.
pub const MAX_DEPENDENCIES: usize = 256;
/// The most labels.
pub const MAX_LABELS: usize = 32;
/// The most retries.
pub const MAX_RETRIES: u32 = 100;
/// How long an attempt may run if the task does not say.
pub const DEFAULT_TIMEOUT_MS: u64 = 7_200_000;
/// The longest an attempt may run, and the longest a retry may wait.
pub const MAX_TIMEOUT_MS: u64 = 2_592_000_000;

const MAX_LABEL_VALUE_BYTES: usize = 1_024;
const MAX_NAME_BYTES: usize = 128;
const MAX_JITTER_PERMILLE: u32 = 1_000;

/// Checks one specification of a request and fills its defaults in. `at` names it, as in `tasks[3]`.
pub(super) fn spec(at: &str, mut spec: TaskSpec) -> Outcome<TaskSpec> {
    check_id(&format!("{at}.task_id"), &spec.task_id)?;
    for (name, id) in [("agent_id", &spec.agent_id), ("idempotency_key", &spec.idempotency_key)] {
        if !id.is_empty() {
            check_id(&format!("{at}.{name}"), id)?;
        }
    }
    texts(at, &spec)?;
    spec.required_capabilities = capabilities(at, &spec.required_capabilities)?;
    spec.dependencies = dependencies(at, spec.dependencies)?;
    labels(at, &spec.labels)?;
    let priority = spec.priority.unwrap_or(DEFAULT_PRIORITY);
    if priority > MAX_PRIORITY {
        return Err(wrong(at, "priority", format!("must be 0 to {MAX_PRIORITY}; got {priority}")));
    }
    spec.priority = Some(priority);
    if Unroutable::try_from(spec.unroutable).is_err() {
        return Err(wrong(at, "unroutable", format!("must be WAIT or FAIL; got {}", spec.unroutable)));
    }
    if spec.attempt_timeout_ms == 0 {
        spec.attempt_timeout_ms = DEFAULT_TIMEOUT_MS;
    }
    duration(at, "attempt_timeout_ms", spec.attempt_timeout_ms)?;
    retry(at, &mut spec)?;
    Ok(spec)
}

fn texts(at: &str, spec: &TaskSpec) -> Outcome<()> {
    let bounded = [
        ("payload", spec.payload.len(), MAX_PAYLOAD_BYTES),
        ("title", spec.title.len(), MAX_TITLE_BYTES),
        ("description", spec.description.len(), MAX_DESCRIPTION_BYTES),
        ("project", spec.project.len(), MAX_NAME_BYTES),
        ("epic", spec.epic.len(), MAX_NAME_BYTES),
        ("feature", spec.feature.len(), MAX_NAME_BYTES),
    ];
    for (name, length, most) in bounded {
        if length > most {
            return Err(wrong(at, name, format!("must be at most {most} bytes; got {length}")));
        }
    }
    Ok(())
}

fn capabilities(at: &str, given: &[String]) -> Outcome<Vec<String>> {
    let mut capabilities: Vec<String> = given.iter().map(|capability| capability.trim().to_owned()).collect();
    for (i, capability) in capabilities.iter().enumerate() {
        check_id(&format!("{at}.required_capabilities[{i}]"), capability)?;
    }
    capabilities.sort();
    capabilities.dedup();
    at_most(at, "required_capabilities", capabilities.len(), MAX_CAPABILITIES)?;
    Ok(capabilities)
}

/// In the order given, each once.
fn dependencies(at: &str, given: Vec<String>) -> Outcome<Vec<String>> {
    let mut seen = std::collections::BTreeSet::new();
    let mut dependencies = Vec::new();
    for (i, id) in given.into_iter().enumerate() {
        check_id(&format!("{at}.dependencies[{i}]"), &id)?;
        if seen.insert(id.clone()) {
            dependencies.push(id);
        }
    }
    at_most(at, "dependencies", dependencies.len(), MAX_DEPENDENCIES)?;
    Ok(dependencies)
}

fn labels(at: &str, labels: &[KeyValue]) -> Outcome<()> {
    at_most(at, "labels", labels.len(), MAX_LABELS)?;
    for (i, label) in labels.iter().enumerate() {
        check_id(&format!("{at}.labels[{i}].key"), &label.key)?;
        if label.value.len() > MAX_LABEL_VALUE_BYTES {
            let name = format!("labels[{i}].value");
            return Err(wrong(at, &name, format!("must be at most {MAX_LABEL_VALUE_BYTES} bytes")));
        }
    }
    Ok(())
}

fn retry(at: &str, spec: &mut TaskSpec) -> Outcome<()> {
    let mut policy = spec.retry.unwrap_or(DEFAULT_POLICY);
    if policy.max_retries > MAX_RETRIES {
        let message = format!("must be 0 to {MAX_RETRIES}; got {}", policy.max_retries);
        return Err(wrong(at, "retry.max_retries", message));
    }
    if policy.jitter_permille > MAX_JITTER_PERMILLE {
        let message = format!("must be 0 to {MAX_JITTER_PERMILLE}; got {}", policy.jitter_permille);
        return Err(wrong(at, "retry.jitter_permille", message));
    }
    if policy.base_ms == 0 {
        policy.base_ms = DEFAULT_BASE_MS;
    }
    if policy.cap_ms == 0 {
        policy.cap_ms = DEFAULT_CAP_MS;
    }
    duration(at, "retry.base_ms", policy.base_ms)?;
    duration(at, "retry.cap_ms", policy.cap_ms)?;
    spec.retry = Some(policy);
    Ok(())
}

fn duration(at: &str, name: &str, given_ms: u64) -> Outcome<()> {
    if given_ms > MAX_TIMEOUT_MS {
        return Err(wrong(at, name, format!("must be at most {MAX_TIMEOUT_MS}; got {given_ms}")));
    }
    Ok(())
}

fn at_most(at: &str, name: &str, given: usize, most: usize) -> Outcome<()> {
    if given > most {
        return Err(wrong(at, name, format!("must be at most {most}; got {given}")));
    }
    Ok(())
}

fn wrong(at: &str, name: &str, what: String) -> crate::error::Error {
    let field = format!("{at}.{name}");
    invalid(&field, format!("{field} {what}"))
}
