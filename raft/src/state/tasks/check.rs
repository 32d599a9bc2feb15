//! What a task's specification must look like, and its defaults. Of the state it sees what a specification may refer to
//! by name: the routing table and the retry profiles.

use quorate_proto::v1::{KeyValue, OnDependencyFailure, TaskSpec, Unroutable};

use super::review::REVIEW_PREFIX;
use super::{DEFAULT_PRIORITY, MAX_PRIORITY, evidence};
use crate::error::{Outcome, invalid};
use crate::state::retries::policy as retry;
use crate::state::{Rooms, check_id};

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
/// The most concurrency keys, the most breakers, and the most excluded agents.
pub const MAX_KEYS: usize = 8;
/// How long an attempt may run if the task does not say.
pub const DEFAULT_TIMEOUT_MS: u64 = 7_200_000;
/// The longest that an attempt, a wait in the queue or a whole task may take: 30 days.
pub const MAX_TIMEOUT_MS: u64 = 2_592_000_000;

const MAX_LABEL_VALUE_BYTES: usize = 1_024;
const MAX_NAME_BYTES: usize = 128;
const MAX_COST: u64 = 1_000_000;
const MAX_GRACE_MS: u64 = 3_600_000;

/// Checks the template of a task that somebody else will submit later. `at` names it.
pub fn check_template(at: &str, template: &TaskSpec) -> Outcome<TaskSpec> {
    spec(at, TaskSpec { task_id: "template".to_owned(), ..template.clone() })
        .map(|spec| TaskSpec { task_id: String::new(), ..spec })
}

/// Checks one specification and completes it with what the state says: the route, and the named retry policy. Gives the
/// routing rule that chose, if one did.
pub(super) fn complete(rooms: &Rooms, at: &str, given: TaskSpec) -> Outcome<(TaskSpec, String)> {
    let mut spec = spec(at, given)?;
    if spec.retry.is_none() {
        let name = if spec.retry_profile.is_empty() { "default" } else { spec.retry_profile.as_str() };
        let Some(policy) = rooms.retries.get(name) else {
            let known = "default, fast, autonomous, restart or one that was set";
            return Err(wrong(at, "retry_profile", format!("must be {known}; got {name:?}")));
        };
        spec.retry = Some(policy);
    }
    if !spec.route {
        return Ok((spec, String::new()));
    }
    let routed = rooms.dispatch.routes().route(&spec.title, &spec.description, &spec.epic);
    spec.agent_type = routed.agent_type;
    Ok((spec, routed.by))
}

/// The beginning of a title.
pub(super) fn clip_title(title: &str) -> String {
    title[..title.floor_char_boundary(MAX_TITLE_BYTES)].to_owned()
}

/// Checks one specification of a request and fills its defaults in. `at` names it, as in `tasks[3]`.
fn spec(at: &str, mut spec: TaskSpec) -> Outcome<TaskSpec> {
    check_id(&format!("{at}.task_id"), &spec.task_id)?;
    if spec.task_id.starts_with(REVIEW_PREFIX) {
        return Err(wrong(at, "task_id", format!("must not begin with {REVIEW_PREFIX:?}: reviews are named so")));
    }
    for (name, id) in
        [("agent_id", &spec.agent_id), ("idempotency_key", &spec.idempotency_key), ("agent_type", &spec.agent_type)]
    {
        if !id.is_empty() {
            check_id(&format!("{at}.{name}"), id)?;
        }
    }
    texts(at, &spec)?;
    labels(at, "labels", &spec.labels)?;
    who(at, &mut spec)?;
    when(at, &mut spec)?;
    waits(at, &mut spec)?;
    times(at, &mut spec)?;
    if let Some(policy) = spec.retry.take() {
        if !spec.retry_profile.is_empty() {
            return Err(wrong(at, "retry_profile", "must be left out where retry is given".to_owned()));
        }
        spec.retry = Some(retry::check(&format!("{at}.retry"), policy)?);
    }
    if let Some(policy) = spec.evidence.take() {
        spec.evidence = Some(evidence::policy(&format!("{at}.evidence"), policy)?);
    }
    Ok(spec)
}

/// Who may do it.
fn who(at: &str, spec: &mut TaskSpec) -> Outcome<()> {
    spec.required_capabilities = names(at, "required_capabilities", &spec.required_capabilities, MAX_CAPABILITIES)?;
    spec.excluded_agents = names(at, "excluded_agents", &spec.excluded_agents, MAX_KEYS)?;
    labels(at, "required_labels", &spec.required_labels)?;
    spec.required_labels.sort_by(|a, b| (&a.key, &a.value).cmp(&(&b.key, &b.value)));
    if spec.route && !(spec.agent_id.is_empty() && spec.agent_type.is_empty()) {
        return Err(wrong(at, "route", "must be left out where agent_id or agent_type is given".to_owned()));
    }
    if spec.excluded_agents.contains(&spec.agent_id) {
        return Err(wrong(at, "excluded_agents", format!("must not name {:?}, which is agent_id", spec.agent_id)));
    }
    if Unroutable::try_from(spec.unroutable).is_err() {
        return Err(wrong(at, "unroutable", format!("must be WAIT or FAIL; got {}", spec.unroutable)));
    }
    Ok(())
}

/// Whose turn it is, and what it counts against.
fn when(at: &str, spec: &mut TaskSpec) -> Outcome<()> {
    let priority = spec.priority.unwrap_or(DEFAULT_PRIORITY);
    if priority > MAX_PRIORITY {
        return Err(wrong(at, "priority", format!("must be 0 to {MAX_PRIORITY}; got {priority}")));
    }
    spec.priority = Some(priority);
    spec.concurrency_keys = names(at, "concurrency_keys", &spec.concurrency_keys, MAX_KEYS)?;
    spec.uses = names(at, "uses", &spec.uses, MAX_KEYS)?;
    if spec.share.is_empty() {
        spec.share.clone_from(&spec.project);
    }
    if spec.share.len() > MAX_NAME_BYTES || spec.share.contains('\0') {
        return Err(wrong(at, "share", format!("must be at most {MAX_NAME_BYTES} bytes, without NUL")));
    }
    if spec.cost > MAX_COST {
        return Err(wrong(at, "cost", format!("must be at most {MAX_COST}; got {}", spec.cost)));
    }
    spec.cost = spec.cost.max(1);
    Ok(())
}

/// What it waits for.
fn waits(at: &str, spec: &mut TaskSpec) -> Outcome<()> {
    let mut seen = std::collections::BTreeSet::from([spec.task_id.clone()]);
    let own = spec.task_id.clone();
    let lists = [
        ("dependencies", &mut spec.dependencies),
        ("soft_dependencies", &mut spec.soft_dependencies),
        ("pending_dependencies", &mut spec.pending_dependencies),
    ];
    let mut count = 0;
    for (name, list) in lists {
        for (i, id) in list.iter().enumerate() {
            check_id(&format!("{at}.{name}[{i}]"), id)?;
            if *id == own {
                let field = format!("{at}.{name}");
                let message = format!("dependencies form a cycle: {own} -> {own}");
                return Err(crate::error::precondition(&field, message));
            }
        }
        // In the order given, each once, in the first list that names it.
        list.retain(|id| seen.insert(id.clone()));
        count += list.len();
        at_most(at, name, count, MAX_DEPENDENCIES)?;
    }
    if OnDependencyFailure::try_from(spec.on_dependency_failure).is_err() {
        let got = spec.on_dependency_failure;
        return Err(wrong(at, "on_dependency_failure", format!("must be BLOCK, SKIP or CASCADE; got {got}")));
    }
    Ok(())
}

fn times(at: &str, spec: &mut TaskSpec) -> Outcome<()> {
    if spec.attempt_timeout_ms == 0 {
        spec.attempt_timeout_ms = DEFAULT_TIMEOUT_MS;
    }
    for (name, given_ms) in [
        ("attempt_timeout_ms", spec.attempt_timeout_ms),
        ("queue_timeout_ms", spec.queue_timeout_ms),
        ("total_timeout_ms", spec.total_timeout_ms),
    ] {
        if given_ms > MAX_TIMEOUT_MS {
            return Err(wrong(at, name, format!("must be at most {MAX_TIMEOUT_MS}; got {given_ms}")));
        }
    }
    if let Some(grace_ms) = spec.cancel_grace_ms.filter(|grace_ms| *grace_ms > MAX_GRACE_MS) {
        return Err(wrong(at, "cancel_grace_ms", format!("must be at most {MAX_GRACE_MS}; got {grace_ms}")));
    }
    Ok(())
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
    // They become parts of keys.
    for (name, text) in [("project", &spec.project), ("epic", &spec.epic), ("feature", &spec.feature)] {
        if text.contains('\0') {
            return Err(wrong(at, name, "must not hold a NUL".to_owned()));
        }
    }
    Ok(())
}

/// Sorted, each once.
fn names(at: &str, name: &str, given: &[String], most: usize) -> Outcome<Vec<String>> {
    let mut names: Vec<String> = given.iter().map(|name| name.trim().to_owned()).collect();
    for (i, id) in names.iter().enumerate() {
        check_id(&format!("{at}.{name}[{i}]"), id)?;
    }
    names.sort();
    names.dedup();
    at_most(at, name, names.len(), most)?;
    Ok(names)
}

fn labels(at: &str, name: &str, labels: &[KeyValue]) -> Outcome<()> {
    at_most(at, name, labels.len(), MAX_LABELS)?;
    for (i, label) in labels.iter().enumerate() {
        check_id(&format!("{at}.{name}[{i}].key"), &label.key)?;
        if label.value.len() > MAX_LABEL_VALUE_BYTES {
            let name = format!("{name}[{i}].value");
            return Err(wrong(at, &name, format!("must be at most {MAX_LABEL_VALUE_BYTES} bytes")));
        }
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
