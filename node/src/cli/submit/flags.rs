//! One task from the flags of `quorate task submit`.

use std::time::Duration;

use clap::Args;
use quorate_client::v1::{EvidencePolicy, KeyValue, OnDependencyFailure, RetryPolicy, TaskSpec, Unroutable};

use super::file::DEFAULT_JITTER_PERMILLE;
use crate::cli::values;

// How the help groups them.
const WHO: &str = "Who may do it";
const WAITS: &str = "What it waits for";
const TIMES: &str = "How long, how often";
const DONE: &str = "When it counts as done";

/// The flags that describe one task; a file takes their place.
#[derive(Args, Default)]
#[group(conflicts_with = "file")]
pub(super) struct TaskFlags {
    /// What is to be done, in a few words
    #[arg(long, value_name = "TEXT", required_unless_present = "file")]
    title: Option<String>,
    /// What is to be done, at length
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// The task's id; without it the cluster picks one
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// What the agent gets; at most 1 MiB
    #[arg(long, value_name = "JSON", value_parser = values::json_text)]
    payload: Option<String>,
    /// The project it belongs to
    #[arg(long, value_name = "NAME")]
    project: Option<String>,
    /// The epic it belongs to; with --route it decides where no rule does
    #[arg(long, value_name = "NAME")]
    epic: Option<String>,
    /// The feature it belongs to
    #[arg(long, value_name = "NAME")]
    feature: Option<String>,
    /// Idempotency key: a second submission with the same key creates nothing and prints the first one's id
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// critical, high, medium (default), low, background, P0 to P3, or a number from 0 to 10, higher first
    #[arg(long, value_name = "PRIORITY", value_parser = values::priority)]
    priority: Option<u32>,

    /// Only agents that offer this may do it; repeat to require several
    #[arg(long, value_name = "NAME", help_heading = WHO)]
    capability: Vec<String>,
    /// Only this agent may do it
    #[arg(long, value_name = "ID", help_heading = WHO)]
    agent: Option<String>,
    /// Only agents of this type may do it
    #[arg(long, value_name = "TYPE", help_heading = WHO)]
    agent_type: Option<String>,
    /// Only agents whose metadata has this may do it; repeat to require several
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair, help_heading = WHO)]
    label_required: Vec<KeyValue>,
    /// Never this agent; repeat for several
    #[arg(long, value_name = "ID", help_heading = WHO)]
    exclude_agent: Vec<String>,
    /// Let the routing table choose the agent type
    #[arg(long, conflicts_with_all = ["agent", "agent_type"], help_heading = WHO)]
    route: bool,
    /// If no registered agent could do it now: wait (default) or fail
    #[arg(long, value_name = "WHAT", value_parser = values::unroutable, help_heading = WHO)]
    unroutable: Option<Unroutable>,

    /// A task that must be completed first; repeat for several
    #[arg(long, value_name = "ID", help_heading = WAITS)]
    depends_on: Vec<String>,
    /// A task that must have ended first, however it ended; repeat for several
    #[arg(long, value_name = "ID", help_heading = WAITS)]
    soft_after: Vec<String>,
    /// A task that must be completed first and need not exist yet; repeat for several
    #[arg(long, value_name = "ID", help_heading = WAITS)]
    pending_after: Vec<String>,
    /// If one of them fails: block (default: stay blocked), skip (end as skipped) or cascade (fail too)
    #[arg(long, value_name = "WHAT", value_parser = on_dependency_failure, help_heading = WAITS)]
    on_dependency_failure: Option<OnDependencyFailure>,
    /// It counts against the limit of this key; repeat for several, at most 8
    #[arg(long, value_name = "KEY", help_heading = WAITS)]
    concurrency_key: Vec<String>,
    /// It waits while this breaker is open, and its outcome feeds it; repeat for several, at most 8
    #[arg(long, value_name = "BREAKER", help_heading = WAITS)]
    uses: Vec<String>,
    /// Whose turn it takes among tasks of one priority (default: the project)
    #[arg(long, value_name = "NAME", help_heading = WAITS)]
    share: Option<String>,
    /// How much of that share it takes (default 1)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000), help_heading = WAITS)]
    cost: Option<u64>,

    /// How long one attempt may run (default 2h)
    #[arg(long, value_name = "DURATION", value_parser = values::positive_duration, help_heading = TIMES)]
    attempt_timeout: Option<Duration>,
    /// How long it may be ready without a worker (default: for ever)
    #[arg(long, value_name = "DURATION", value_parser = values::positive_duration, help_heading = TIMES)]
    queue_timeout: Option<Duration>,
    /// How long from its submission to its end (default: for ever)
    #[arg(long, value_name = "DURATION", value_parser = values::positive_duration, help_heading = TIMES)]
    total_timeout: Option<Duration>,
    /// How long a worker has to stop when it is cancelled (default 10s)
    #[arg(long, value_name = "DURATION", value_parser = values::duration, help_heading = TIMES)]
    cancel_grace: Option<Duration>,
    /// Retries after a failed first attempt (default 3), at most 100
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=100), help_heading = TIMES)]
    max_retries: Option<u32>,
    /// A named retry policy: default, fast, autonomous, restart, or one of your own
    #[arg(long, value_name = "NAME", conflicts_with = "max_retries", help_heading = TIMES)]
    retry_profile: Option<String>,

    /// A finish must refer to an artifact of this kind; repeat for several
    #[arg(long, value_name = "KIND", help_heading = DONE)]
    needs_artifact: Vec<String>,
    /// A finish must report that this check passed; repeat for several
    #[arg(long, value_name = "NAME", help_heading = DONE)]
    needs_check: Vec<String>,
    /// How many other agents must accept it, at most 5
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=5), help_heading = DONE)]
    agent_reviews: Option<u32>,
    /// What a reviewing agent must offer; repeat for several
    #[arg(long, value_name = "NAME", requires = "agent_reviews", help_heading = DONE)]
    review_capability: Vec<String>,
    /// How many people must accept it, at most 5
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=5), help_heading = DONE)]
    person_reviews: Option<u32>,
    /// How often it may be sent back before it fails (default 3)
    #[arg(long, value_name = "N", help_heading = DONE)]
    max_reworks: Option<u32>,
}

impl TaskFlags {
    /// The task they describe.
    pub(super) fn spec(self) -> TaskSpec {
        let evidence = self.evidence();
        TaskSpec {
            task_id: self.id.unwrap_or_default(),
            title: self.title.unwrap_or_default(),
            description: self.description.unwrap_or_default(),
            payload: self.payload.unwrap_or_default().into_bytes().into(),
            project: self.project.unwrap_or_default(),
            epic: self.epic.unwrap_or_default(),
            feature: self.feature.unwrap_or_default(),
            idempotency_key: self.key.unwrap_or_default(),
            priority: self.priority,
            required_capabilities: self.capability,
            agent_id: self.agent.unwrap_or_default(),
            agent_type: self.agent_type.unwrap_or_default(),
            required_labels: self.label_required,
            excluded_agents: self.exclude_agent,
            route: self.route,
            unroutable: self.unroutable.map_or(0, |unroutable| unroutable as i32),
            dependencies: self.depends_on,
            soft_dependencies: self.soft_after,
            pending_dependencies: self.pending_after,
            on_dependency_failure: self.on_dependency_failure.map_or(0, |what| what as i32),
            concurrency_keys: self.concurrency_key,
            uses: self.uses,
            share: self.share.unwrap_or_default(),
            cost: self.cost.unwrap_or_default(),
            attempt_timeout_ms: self.attempt_timeout.map(values::millis).unwrap_or_default(),
            queue_timeout_ms: self.queue_timeout.map(values::millis).unwrap_or_default(),
            total_timeout_ms: self.total_timeout.map(values::millis).unwrap_or_default(),
            cancel_grace_ms: self.cancel_grace.map(values::millis),
            retry: self.max_retries.map(|max_retries| RetryPolicy {
                max_retries,
                jitter_permille: DEFAULT_JITTER_PERMILLE,
                ..Default::default()
            }),
            retry_profile: self.retry_profile.unwrap_or_default(),
            evidence,
            ..Default::default()
        }
    }

    /// `None`: a finish is enough.
    fn evidence(&self) -> Option<EvidencePolicy> {
        let policy = EvidencePolicy {
            artifacts: self.needs_artifact.clone(),
            checks: self.needs_check.clone(),
            agent_reviews: self.agent_reviews.unwrap_or_default(),
            review_capabilities: self.review_capability.clone(),
            person_reviews: self.person_reviews.unwrap_or_default(),
            max_reworks: self.max_reworks,
        };
        (policy != EvidencePolicy::default()).then_some(policy)
    }
}

/// `name=value`
pub(crate) fn pair(text: &str) -> Result<KeyValue, String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok(KeyValue { key: key.to_owned(), value: value.to_owned() }),
        _ => Err("expected name=value".into()),
    }
}

/// What a task does when a dependency fails.
pub(super) fn on_dependency_failure(text: &str) -> Result<OnDependencyFailure, String> {
    match text.trim().to_ascii_lowercase().as_str() {
        "block" => Ok(OnDependencyFailure::Block),
        "skip" => Ok(OnDependencyFailure::Skip),
        "cascade" => Ok(OnDependencyFailure::Cascade),
        _ => Err("expected one of block, skip, cascade".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_demand_there_is_no_evidence_policy() {
        assert_eq!(TaskFlags { title: Some("a".into()), ..Default::default() }.spec().evidence, None);
        let spec = TaskFlags { needs_check: vec!["test".into()], ..Default::default() }.spec();
        assert_eq!(spec.evidence, Some(EvidencePolicy { checks: vec!["test".into()], ..Default::default() }));
    }

    #[test]
    fn labels_are_pairs_and_words_are_few() {
        assert_eq!(pair("zone=a=b"), Ok(KeyValue { key: "zone".into(), value: "a=b".into() }));
        assert!(pair("zone").is_err() && pair("=a").is_err());
        assert_eq!(on_dependency_failure("Skip"), Ok(OnDependencyFailure::Skip));
        assert!(on_dependency_failure("ignore").unwrap_err().contains("cascade"));
    }
}
