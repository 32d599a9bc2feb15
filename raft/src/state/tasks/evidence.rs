//! Evidence: what must be there before a task counts as done.

use std::collections::BTreeSet;

use quorate_proto::v1::{Artifact, CheckResult, EvidencePolicy, FinishTaskRequest, Review, Task};

use crate::error::{Outcome, invalid, precondition};
use crate::state::check_id;

/// The most artifacts, and the most check results, that one finish may refer to.
const MAX_ITEMS: usize = 64;
const MAX_KINDS: usize = 16;
const MAX_REVIEWS: u32 = 5;
const MAX_URI_BYTES: usize = 2_048;
const DEFAULT_REWORKS: u32 = 3;
const MAX_REWORKS: u32 = 100;

/// Checks a policy and fills its defaults in. `field` names it.
pub(super) fn policy(field: &str, mut policy: EvidencePolicy) -> Outcome<EvidencePolicy> {
    for (name, list) in [
        ("artifacts", &mut policy.artifacts),
        ("checks", &mut policy.checks),
        ("review_capabilities", &mut policy.review_capabilities),
    ] {
        for (i, entry) in list.iter().enumerate() {
            check_id(&format!("{field}.{name}[{i}]"), entry)?;
        }
        list.sort();
        list.dedup();
        if list.len() > MAX_KINDS {
            let field = format!("{field}.{name}");
            return Err(invalid(&field, format!("{field} must be at most {MAX_KINDS}; got {}", list.len())));
        }
    }
    for (name, count) in [("agent_reviews", policy.agent_reviews), ("person_reviews", policy.person_reviews)] {
        if count > MAX_REVIEWS {
            let field = format!("{field}.{name}");
            return Err(invalid(&field, format!("{field} must be 0 to {MAX_REVIEWS}; got {count}")));
        }
    }
    if policy.agent_reviews == 0 && !policy.review_capabilities.is_empty() {
        let field = format!("{field}.review_capabilities");
        return Err(invalid(&field, format!("{field} needs agent_reviews of at least 1")));
    }
    let reworks = policy.max_reworks.unwrap_or(DEFAULT_REWORKS);
    if reworks > MAX_REWORKS {
        let field = format!("{field}.max_reworks");
        return Err(invalid(&field, format!("{field} must be 0 to {MAX_REWORKS}; got {reworks}")));
    }
    policy.max_reworks = Some(reworks);
    Ok(policy)
}

/// Whether the shape of what a finish refers to is right.
pub(super) fn check_items(req: &FinishTaskRequest) -> Outcome<()> {
    let sizes = [("artifacts", req.artifacts.len()), ("checks", req.checks.len())];
    if let Some((name, count)) = sizes.into_iter().find(|(_, count)| *count > MAX_ITEMS) {
        return Err(invalid(name, format!("{name} must be at most {MAX_ITEMS}; got {count}")));
    }
    for (i, Artifact { kind, uri, digest, .. }) in req.artifacts.iter().enumerate() {
        check_id(&format!("artifacts[{i}].kind"), kind)?;
        for (name, text, least) in [("uri", uri, 1), ("digest", digest, 0)] {
            if !(least..=MAX_URI_BYTES).contains(&text.len()) {
                let field = format!("artifacts[{i}].{name}");
                let message = format!("{field} must be {least} to {MAX_URI_BYTES} bytes; got {}", text.len());
                return Err(invalid(&field, message));
            }
        }
    }
    for (i, CheckResult { name, .. }) in req.checks.iter().enumerate() {
        check_id(&format!("checks[{i}].name"), name)?;
    }
    Ok(())
}

/// Refuses a completion that lacks what the task asks for; the attempt goes on and may finish again.
pub(super) fn require(task: &Task, req: &FinishTaskRequest) -> Outcome<()> {
    let Some(policy) = task.spec.as_ref().and_then(|spec| spec.evidence.as_ref()) else {
        return Ok(());
    };
    let kinds: BTreeSet<&str> = req.artifacts.iter().map(|artifact| artifact.kind.as_str()).collect();
    if let Some(missing) = policy.artifacts.iter().find(|kind| !kinds.contains(kind.as_str())) {
        let message = format!("task {:?} needs an artifact of kind {missing:?} to be completed", task.id);
        return Err(precondition("artifacts", message));
    }
    for wanted in &policy.checks {
        // The last word on a check counts.
        let message = match req.checks.iter().rfind(|check| check.name == *wanted) {
            Some(check) if check.exit_code == 0 => continue,
            Some(check) => format!("check {wanted:?} exited {}; 0 is needed", check.exit_code),
            None => format!("task {:?} needs the check {wanted:?} to be completed", task.id),
        };
        return Err(precondition("checks", message));
    }
    Ok(())
}

/// How many agents and people must still accept.
pub(super) fn reviews_missing(task: &Task) -> (u32, u32) {
    let Some(policy) = task.spec.as_ref().and_then(|spec| spec.evidence.as_ref()) else {
        return (0, 0);
    };
    let count = |person: bool| {
        let accepted = |review: &&Review| review.accepted && review.person == person;
        u32::try_from(task.reviews.iter().filter(accepted).count()).unwrap_or(u32::MAX)
    };
    (policy.agent_reviews.saturating_sub(count(false)), policy.person_reviews.saturating_sub(count(true)))
}

/// Whether the task may be sent back once more.
pub(super) fn rework_allowed(task: &Task) -> bool {
    let policy = task.spec.as_ref().and_then(|spec| spec.evidence.as_ref());
    task.reworks < policy.and_then(|policy| policy.max_reworks).unwrap_or(DEFAULT_REWORKS)
}

#[cfg(test)]
mod tests {
    use quorate_proto::v1::TaskSpec;

    use super::*;

    fn task(policy: EvidencePolicy) -> Task {
        Task { spec: Some(TaskSpec { evidence: Some(policy), ..TaskSpec::default() }), ..Task::default() }
    }

    fn finish(kinds: &[&str], checks: &[(&str, i32)]) -> FinishTaskRequest {
        FinishTaskRequest {
            artifacts: kinds.iter().map(|kind| Artifact { kind: (*kind).to_owned(), ..Artifact::default() }).collect(),
            checks: (checks.iter())
                .map(|(name, exit_code)| CheckResult { name: (*name).to_owned(), exit_code: *exit_code })
                .collect(),
            ..FinishTaskRequest::default()
        }
    }

    #[test]
    fn a_completion_needs_every_artifact_and_every_check_at_zero() {
        let asked = EvidencePolicy {
            artifacts: vec!["diff".to_owned()],
            checks: vec!["tests".to_owned()],
            ..EvidencePolicy::default()
        };
        let task = task(asked);
        assert!(require(&task, &finish(&["diff"], &[("tests", 0)])).is_ok());
        assert!(require(&task, &finish(&["diff"], &[("tests", 1), ("tests", 0)])).is_ok(), "the last word counts");
        assert!(require(&task, &finish(&["diff"], &[("tests", 0), ("tests", 1)])).is_err());
        assert!(require(&task, &finish(&["report"], &[("tests", 0)])).is_err());
        assert!(require(&task, &finish(&["diff"], &[("lint", 0)])).is_err());
    }

    #[test]
    fn people_and_agents_are_counted_apart() {
        let mut task =
            task(EvidencePolicy { agent_reviews: 2, person_reviews: 1, max_reworks: Some(1), ..Default::default() });
        let review = |person, accepted| Review { person, accepted, ..Review::default() };
        task.reviews = vec![review(false, true), review(false, false)];
        assert_eq!(reviews_missing(&task), (1, 1));
        task.reviews.extend([review(true, true), review(false, true)]);
        assert_eq!(reviews_missing(&task), (0, 0));
        assert!(rework_allowed(&task));
        task.reworks = 1;
        assert!(!rework_allowed(&task));
    }
}
