//! A task, what it was asked to be, and its attempts, as JSON.
//!
//! The fields of the specification are named as in the files of `quorate task submit`.

use quorate_client::v1::{
    Artifact, Attempt, CancelNotice, CheckResult, Claim, EvidencePolicy, Orphan, RetryPolicy, Review, Task, TaskSpec,
};
use serde_json::{Map, Value, json};

use super::{
    attempt_outcome, bytes, finish_kind, object, on_dependency_failure, pairs, share, task_status, text, time,
    unroutable,
};

/// A task; the fields of its specification stand beside the others.
pub(crate) fn task(task: &Task) -> Value {
    let mut view = task.spec.as_ref().map(asked).unwrap_or_default();
    view.extend(progress(task));
    view.extend(reported(task));
    Value::Object(view)
}

/// Where it stands.
fn progress(task: &Task) -> Map<String, Value> {
    object(json!({
        "id": task.id,
        "status": task_status(task.status),
        "created_at_ms": time(task.created_at_ms),
        "updated_at_ms": time(task.updated_at_ms),
        "created_rev": task.created_rev,
        "finished_at_ms": time(task.finished_at_ms),
        "attempts": task.attempts,
        "failures": task.failures,
        "claim": task.claim.as_ref().map(claim),
        "cancel": task.cancel.as_ref().map(cancel),
        "ready_at_ms": time(task.ready_at_ms),
        "ready_since_ms": time(task.ready_since_ms),
        "parent_id": task.parent_id,
        "depth": task.depth,
        "children": task.children,
        "routed_by": task.routed_by,
        "touched": task.touched,
        "error": task.error,
        "error_class": task.error_class,
    }))
}

/// What came of it, and what reviewers think.
fn reported(task: &Task) -> Map<String, Value> {
    object(json!({
        "result": bytes(&task.result),
        "artifacts": task.artifacts.iter().map(artifact).collect::<Vec<_>>(),
        "checks": task.checks.iter().map(check).collect::<Vec<_>>(),
        "author_agent_id": task.author_agent_id,
        "reported_attempt": task.reported_attempt,
        "reviews": task.reviews.iter().map(review).collect::<Vec<_>>(),
        "review_of": task.review_of,
        "reworks": task.reworks,
        "feedback": task.feedback,
    }))
}

/// What was asked for.
fn asked(spec: &TaskSpec) -> Map<String, Value> {
    let mut view = object(json!({
        "title": spec.title,
        "description": spec.description,
        "payload": bytes(&spec.payload),
        "priority": spec.priority,
        "project": spec.project,
        "epic": spec.epic,
        "feature": spec.feature,
        "estimated_minutes": spec.estimated_minutes,
        "labels": pairs(&spec.labels),
        "idempotency_key": spec.idempotency_key,
        "unroutable": unroutable(spec.unroutable),
        "retry": spec.retry.as_ref().map(retry),
        "retry_profile": spec.retry_profile,
        "evidence": spec.evidence.as_ref().map(evidence),
    }));
    view.extend(conditions(spec));
    view
}

/// Who may do it and when.
fn conditions(spec: &TaskSpec) -> Map<String, Value> {
    object(json!({
        "required_capabilities": spec.required_capabilities,
        "agent_id": spec.agent_id,
        "agent_type": spec.agent_type,
        "required_labels": pairs(&spec.required_labels),
        "excluded_agents": spec.excluded_agents,
        "route": spec.route,
        "dependencies": spec.dependencies,
        "soft_dependencies": spec.soft_dependencies,
        "pending_dependencies": spec.pending_dependencies,
        "on_dependency_failure": on_dependency_failure(spec.on_dependency_failure),
        "concurrency_keys": spec.concurrency_keys,
        "uses": spec.uses,
        "share": spec.share,
        "cost": spec.cost,
        "not_before_ms": time(spec.not_before_ms),
        "attempt_timeout_ms": spec.attempt_timeout_ms,
        "queue_timeout_ms": spec.queue_timeout_ms,
        "total_timeout_ms": spec.total_timeout_ms,
        "cancel_grace_ms": spec.cancel_grace_ms,
    }))
}

fn retry(retry: &RetryPolicy) -> Value {
    json!({
        "max_retries": retry.max_retries,
        "base_ms": retry.base_ms,
        "cap_ms": retry.cap_ms,
        "jitter": share(retry.jitter_permille),
        "never_retry": retry.never_retry,
        "always_retry": retry.always_retry,
    })
}

fn evidence(policy: &EvidencePolicy) -> Value {
    json!({
        "artifacts": policy.artifacts,
        "checks": policy.checks,
        "agent_reviews": policy.agent_reviews,
        "review_capabilities": policy.review_capabilities,
        "person_reviews": policy.person_reviews,
        "max_reworks": policy.max_reworks,
    })
}

fn claim(claim: &Claim) -> Value {
    json!({
        "agent_id": claim.agent_id,
        "agent_type": claim.agent_type,
        "session_id": claim.session_id,
        "token": claim.token,
        "attempt": claim.attempt,
        "claimed_at_ms": time(claim.claimed_at_ms),
        "deadline_ms": time(claim.deadline_ms),
        "probes": claim.probes,
    })
}

fn cancel(notice: &CancelNotice) -> Value {
    json!({
        "reason": notice.reason,
        "requested_at_ms": time(notice.requested_at_ms),
        "fence_at_ms": time(notice.fence_at_ms),
    })
}

fn artifact(artifact: &Artifact) -> Value {
    json!({
        "kind": artifact.kind,
        "uri": artifact.uri,
        "digest": artifact.digest,
        "size_bytes": artifact.size_bytes,
    })
}

fn check(check: &CheckResult) -> Value {
    json!({ "name": check.name, "exit_code": check.exit_code })
}

fn review(review: &Review) -> Value {
    json!({
        "reviewer": review.reviewer,
        "person": review.person,
        "accepted": review.accepted,
        "comment": review.comment,
        "at_ms": time(review.at_ms),
        "review_task_id": review.review_task_id,
    })
}

/// What a program that works on a task gets on its stdin.
pub(crate) fn job(task: &Task) -> Value {
    let spec = spec_of(task);
    json!({
        "id": task.id,
        "title": spec.title,
        "description": spec.description,
        "payload": bytes(&spec.payload),
        "labels": pairs(&spec.labels),
        "attempt": task.claim.as_ref().map(|claim| claim.attempt),
        "token": task.claim.as_ref().map(|claim| claim.token),
        "required_capabilities": spec.required_capabilities,
        "dependencies": spec.dependencies,
        "parent_id": task.parent_id,
        "evidence": spec.evidence.as_ref().map(evidence),
        "feedback": task.feedback,
        "review_of": task.review_of,
    })
}

/// What was asked for; nothing of it if the node left it out.
pub(crate) fn spec_of(task: &Task) -> TaskSpec {
    task.spec.clone().unwrap_or_default()
}

/// An attempt.
pub(crate) fn attempt(attempt: &Attempt) -> Value {
    json!({
        "task_id": attempt.task_id,
        "number": attempt.number,
        "agent_id": attempt.agent_id,
        "agent_type": attempt.agent_type,
        "session_id": attempt.session_id,
        "token": attempt.token,
        "outcome": attempt_outcome(attempt.outcome),
        "started_at_ms": time(attempt.started_at_ms),
        "ended_at_ms": time(attempt.ended_at_ms),
        "exit_code": attempt.exit_code,
        "stdout": text(&attempt.stdout),
        "stderr": text(&attempt.stderr),
        "error": attempt.error,
        "error_class": attempt.error_class,
        "cancel_acknowledged": attempt.cancel_acknowledged,
        "orphan": attempt.orphan.as_ref().map(orphan),
    })
}

fn orphan(orphan: &Orphan) -> Value {
    json!({
        "kind": finish_kind(orphan.kind),
        "result": bytes(&orphan.result),
        "error": orphan.error,
        "received_at_ms": time(orphan.received_at_ms),
    })
}

#[cfg(test)]
mod tests {
    use quorate_client::v1::{KeyValue, TaskStatus};

    use super::*;

    #[test]
    fn a_task_shows_its_specification_and_its_state() {
        let shown = Task {
            id: "t1".into(),
            spec: Some(TaskSpec {
                title: "work".into(),
                priority: Some(7),
                required_labels: vec![KeyValue { key: "zone".into(), value: "a".into() }],
                evidence: Some(EvidencePolicy { checks: vec!["test".into()], ..Default::default() }),
                ..Default::default()
            }),
            status: TaskStatus::Reported as i32,
            reviews: vec![Review { reviewer: "ann".into(), person: true, ..Default::default() }],
            ..Default::default()
        };
        let view = task(&shown);
        assert_eq!(view["id"], "t1");
        assert_eq!(view["title"], "work");
        assert_eq!(view["priority"], 7);
        assert_eq!(view["status"], "reported");
        assert_eq!(view["required_labels"], json!({"zone": "a"}));
        assert_eq!(view["evidence"]["checks"], json!(["test"]));
        assert_eq!(view["reviews"][0]["accepted"], false);
        assert_eq!(view["claim"], Value::Null);
        assert_eq!(view["finished_at_ms"], Value::Null);
        assert_eq!(job(&shown)["payload"], Value::Null);
    }
}
