//! What waits and why, and the answers to commands that change it, as JSON.

use quorate_client::v1::{Deadlock, QueueDepth, Reason, RunningAttempt, SubmittedTask, TaskStatsResponse};
use serde_json::{Map, Value, json};

use super::{task_status, time};

/// What a submission brought.
pub(crate) fn submitted(task: &SubmittedTask) -> Value {
    json!({ "task_id": task.task_id, "status": task_status(task.status), "existed": task.existed })
}

/// How many tasks stand where, in the order of a task's life.
pub(crate) fn counts(stats: &TaskStatsResponse) -> [(&'static str, u64); 10] {
    [
        ("pending", stats.pending),
        ("blocked", stats.blocked),
        ("ready", stats.ready),
        ("in_progress", stats.in_progress),
        ("reported", stats.reported),
        ("completed", stats.completed),
        ("skipped", stats.skipped),
        ("failed", stats.failed),
        ("timed_out", stats.timed_out),
        ("cancelled", stats.cancelled),
    ]
}

/// The queue.
pub(crate) fn stats(stats: &TaskStatsResponse) -> Value {
    let counts: Map<String, Value> =
        counts(stats).into_iter().map(|(status, count)| (status.to_owned(), json!(count))).collect();
    json!({
        "counts": counts,
        "completed_unaided": stats.completed_unaided,
        "queues": stats.queues.iter().map(queue).collect::<Vec<_>>(),
        "rev": stats.rev,
    })
}

fn queue(queue: &QueueDepth) -> Value {
    json!({
        "required_capabilities": queue.required_capabilities,
        "agent_id": queue.agent_id,
        "agent_type": queue.agent_type,
        "concurrency_keys": queue.concurrency_keys,
        "share": queue.share,
        "ready": queue.ready,
        "highest_priority": queue.highest_priority,
        "oldest_created_at_ms": time(queue.oldest_created_at_ms),
    })
}

/// Why a task does not run.
pub(crate) fn reason(reason: &Reason) -> Value {
    json!({ "code": reason.code, "message": reason.message, "subject": reason.subject })
}

/// A circle of waiting tasks.
pub(crate) fn deadlock(deadlock: &Deadlock) -> Value {
    json!({ "task_ids": deadlock.task_ids, "victim": deadlock.victim })
}

/// An attempt that a cancel met.
pub(crate) fn running(attempt: &RunningAttempt) -> Value {
    json!({
        "task_id": attempt.task_id,
        "agent_id": attempt.agent_id,
        "token": attempt.token,
        "started_at_ms": time(attempt.started_at_ms),
        "fence_at_ms": time(attempt.fence_at_ms),
    })
}
