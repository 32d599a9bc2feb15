//! One task as facts, many as rows.

use quorate_client::v1::{EvidencePolicy, GetTaskResponse, Review, Task, TaskSpec};
use serde_json::json;

use crate::cli::exit::Failure;
use crate::cli::output::{age, facts, now_ms, or_dash, short, span, table};
use crate::cli::{Context, view};

/// The columns of [`task_rows`].
pub(crate) const TASK_HEADER: [&str; 7] = ["id", "title", "status", "priority", "agent", "attempts", "age"];

type Facts = Vec<(&'static str, String)>;

pub(super) async fn run(context: &Context, id: &str) -> Result<(), Failure> {
    let answer = context.client.tasks().get(id).await?;
    let task = answer.task.as_ref().ok_or_else(|| Failure::not_found(format!("no task {id}")))?;
    context.out.show(
        || {
            json!({
                "task": view::task(task),
                "open_dependencies": answer.open_dependencies,
                "dependents": answer.dependents,
                "rev": answer.rev,
            })
        },
        || task_facts(task, &answer),
    )
}

/// The rows under [`TASK_HEADER`].
pub(crate) fn task_rows(tasks: &[Task], now_ms: u64) -> Vec<[String; 7]> {
    tasks.iter().map(|task| task_row(task, now_ms)).collect()
}

fn task_row(task: &Task, now_ms: u64) -> [String; 7] {
    let spec = view::spec_of(task);
    let holder = task.claim.as_ref().map(|claim| claim.agent_id.clone());
    [
        task.id.clone(),
        short(&or_dash(&spec.title), 48),
        view::task_status(task.status),
        spec.priority.map_or_else(|| "-".into(), view::priority),
        or_dash(&holder.unwrap_or(spec.agent_id)),
        task.attempts.to_string(),
        age(task.created_at_ms, now_ms),
    ]
}

/// Everything about one task that is there; the answer beside it tells what it waits for.
pub(crate) fn task_facts(task: &Task, answer: &GetTaskResponse) -> String {
    let (spec, now) = (view::spec_of(task), now_ms());
    let mut rows = standing(task, &spec, now);
    rows.extend(who(task, &spec, now));
    rows.extend(waits(&spec, answer));
    rows.extend(limits(task, &spec));
    rows.extend(evidence(task, &spec));
    rows.extend(rest(task, &spec, now));
    let facts = facts(rows);
    if task.reviews.is_empty() {
        return facts;
    }
    let header = ["reviewer", "verdict", "when", "review task", "comment"];
    let reviews = task.reviews.iter().map(|review| review_row(review, now)).collect();
    format!("{facts}\n{}", table(header, reviews, ""))
}

fn standing(task: &Task, spec: &TaskSpec, now: u64) -> Facts {
    let waits = if task.ready_at_ms > now { span(task.ready_at_ms - now) } else { String::new() };
    let stop = task.cancel.as_ref().map(|notice| {
        let left = span(notice.fence_at_ms.saturating_sub(now));
        format!("{} ago, fenced in {left}: {}", age(notice.requested_at_ms, now), short(&notice.reason, 200))
    });
    let children = if task.children == 0 { String::new() } else { task.children.to_string() };
    vec![
        ("id", task.id.clone()),
        ("title", spec.title.clone()),
        ("description", short(&spec.description, 400)),
        ("status", view::task_status(task.status)),
        ("error", short(&task.error, 400)),
        ("error class", task.error_class.clone()),
        ("told to stop", stop.unwrap_or_default()),
        ("ready in", waits),
        ("ready for", if task.ready_since_ms == 0 { String::new() } else { age(task.ready_since_ms, now) }),
        ("priority", spec.priority.map_or_else(String::new, view::priority)),
        ("parent", task.parent_id.clone()),
        ("has spawned", children),
        ("reviews task", task.review_of.clone()),
    ]
}

fn who(task: &Task, spec: &TaskSpec, now: u64) -> Facts {
    let claim = task.claim.as_ref().map(|claim| {
        let left = span(claim.deadline_ms.saturating_sub(now));
        format!("{}, attempt {}, token {}, {left} left", claim.agent_id, claim.attempt, claim.token)
    });
    let probes = task.claim.as_ref().map(|claim| claim.probes.join(", "));
    let agent_type = match task.routed_by.as_str() {
        "" => spec.agent_type.clone(),
        rule => format!("{}, chosen by {rule}", or_dash(&spec.agent_type)),
    };
    vec![
        ("requires", spec.required_capabilities.join(", ")),
        ("only for agent", spec.agent_id.clone()),
        ("only for type", agent_type),
        ("only with labels", view::pairs_line(&spec.required_labels)),
        ("never by", spec.excluded_agents.join(", ")),
        ("claimed by", claim.unwrap_or_default()),
        ("is the probe of", probes.unwrap_or_default()),
    ]
}

fn waits(spec: &TaskSpec, answer: &GetTaskResponse) -> Facts {
    let hard = spec.dependencies.len() + spec.pending_dependencies.len();
    let if_one_fails = if hard == 0 { String::new() } else { view::on_dependency_failure(spec.on_dependency_failure) };
    vec![
        ("depends on", spec.dependencies.join(", ")),
        ("not there yet", spec.pending_dependencies.join(", ")),
        ("ends after", spec.soft_dependencies.join(", ")),
        ("if one fails", if_one_fails),
        ("still open", answer.open_dependencies.join(", ")),
        ("waited for by", answer.dependents.join(", ")),
    ]
}

fn limits(task: &Task, spec: &TaskSpec) -> Facts {
    let max_retries = spec.retry.as_ref().map_or(0, |retry| retry.max_retries);
    let share = if spec.share.is_empty() { String::new() } else { format!("{}, cost {}", spec.share, spec.cost) };
    let timeouts = [
        ("attempt", Some(spec.attempt_timeout_ms)),
        ("queue", Some(spec.queue_timeout_ms)),
        ("total", Some(spec.total_timeout_ms)),
        ("cancel grace", spec.cancel_grace_ms),
    ];
    let timeouts: Vec<String> = timeouts
        .iter()
        .filter_map(|(name, ms)| ms.filter(|ms| *ms > 0).map(|ms| format!("{name} {}", span(ms))))
        .collect();
    vec![
        ("attempts", format!("{}, {} failed, {max_retries} retries allowed", task.attempts, task.failures)),
        ("retry profile", spec.retry_profile.clone()),
        ("timeouts", timeouts.join(", ")),
        ("limit keys", spec.concurrency_keys.join(", ")),
        ("breakers", spec.uses.join(", ")),
        ("share", share),
    ]
}

fn evidence(task: &Task, spec: &TaskSpec) -> Facts {
    let artifacts: Vec<String> =
        task.artifacts.iter().map(|artifact| format!("{}: {}", artifact.kind, artifact.uri)).collect();
    let checks: Vec<String> =
        task.checks.iter().map(|check| format!("{}: exit code {}", check.name, check.exit_code)).collect();
    vec![
        ("must show", spec.evidence.as_ref().map(demands).unwrap_or_default()),
        ("done by", task.author_agent_id.clone()),
        ("artifacts", artifacts.join(", ")),
        ("checks", checks.join(", ")),
        ("sent back", if task.reworks == 0 { String::new() } else { task.reworks.to_string() }),
        ("feedback", short(&task.feedback, 400)),
    ]
}

/// `checks test; accepted by agents: 2 (review); sent back at most: 3`
fn demands(policy: &EvidencePolicy) -> String {
    let mut parts = Vec::new();
    if !policy.artifacts.is_empty() {
        parts.push(format!("artifacts {}", policy.artifacts.join(", ")));
    }
    if !policy.checks.is_empty() {
        parts.push(format!("checks {}", policy.checks.join(", ")));
    }
    if policy.agent_reviews > 0 {
        let who = policy.review_capabilities.join(", ");
        let who = if who.is_empty() { who } else { format!(" ({who})") };
        parts.push(format!("accepted by agents: {}{who}", policy.agent_reviews));
    }
    if policy.person_reviews > 0 {
        parts.push(format!("accepted by people: {}", policy.person_reviews));
    }
    if let Some(reworks) = policy.max_reworks {
        parts.push(format!("sent back at most: {reworks}"));
    }
    parts.join("; ")
}

fn rest(task: &Task, spec: &TaskSpec, now: u64) -> Facts {
    let ago = |ms: u64| if ms == 0 { String::new() } else { format!("{} ago", age(ms, now)) };
    vec![
        ("project", spec.project.clone()),
        ("epic", spec.epic.clone()),
        ("feature", spec.feature.clone()),
        ("labels", view::pairs_line(&spec.labels)),
        ("key", spec.idempotency_key.clone()),
        ("touched by a person", if task.touched { "yes".into() } else { String::new() }),
        ("created", ago(task.created_at_ms)),
        ("changed", ago(task.updated_at_ms)),
        ("ended", ago(task.finished_at_ms)),
        ("payload", short(&view::bytes_line(&spec.payload), 400)),
        ("result", short(&view::bytes_line(&task.result), 400)),
    ]
}

fn review_row(review: &Review, now_ms: u64) -> [String; 5] {
    [
        if review.person { format!("{} (a person)", review.reviewer) } else { review.reviewer.clone() },
        if review.accepted { "accepted".into() } else { "rework".into() },
        age(review.at_ms, now_ms),
        or_dash(&review.review_task_id),
        short(&or_dash(&review.comment), 200),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_leave_out_what_is_not_there() {
        let answer = GetTaskResponse { dependents: vec!["t2".into()], ..Default::default() };
        let text = task_facts(&Task { id: "t1".into(), ..Default::default() }, &answer);
        assert!(text.contains("waited for by") && text.contains("t2"), "{text}");
        for absent in ["payload", "claimed by", "must show", "if one fails", "feedback", "reviewer"] {
            assert!(!text.contains(absent), "{absent} is in {text}");
        }
    }

    #[test]
    fn facts_tell_what_must_be_shown_and_what_reviewers_said() {
        let policy = EvidencePolicy {
            checks: vec!["test".into()],
            agent_reviews: 2,
            review_capabilities: vec!["review".into()],
            max_reworks: Some(3),
            ..Default::default()
        };
        assert_eq!(demands(&policy), "checks test; accepted by agents: 2 (review); sent back at most: 3");
        let review = Review { reviewer: "ann".into(), person: true, comment: "no test".into(), ..Default::default() };
        let task = Task {
            spec: Some(TaskSpec { total_timeout_ms: 60_000, evidence: Some(policy), ..Default::default() }),
            routed_by: "by-epic".into(),
            reviews: vec![review],
            ..Default::default()
        };
        let text = task_facts(&task, &GetTaskResponse::default());
        for part in ["checks test", "by-epic", "total 1m", "ann (a person)", "rework", "no test"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }
}
