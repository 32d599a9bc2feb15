//! Tasks to submit, from the flags of `quorate task submit` or from a JSON file.
//!
//! Owns: the arguments, and where the tasks come from. `flags` makes one task of flags, `file` reads JSON.
//! Deliberately absent: what the cluster checks anyway and names as well as we could, such as dependencies and cycles.

mod file;
mod flags;

use clap::Args;
use quorate_client::v1::{Spawn, SubmitTasksRequest, TaskSpec};

use self::flags::TaskFlags;
pub(crate) use self::flags::pair;
use super::exit::Failure;
use super::values;

/// Shown under `quorate task submit --help`.
pub(crate) const EXAMPLES: &str = r#"EXAMPLES:
  quorate task submit --title "review crate a" --capability code-review --payload '{"crate": "a"}'
      one task from flags; prints its id
  quorate task submit --title deploy --depends-on build --depends-on test --priority P0
      starts when both are completed, before everything else
  quorate task submit --title fix --needs-check test --agent-reviews 1 --review-capability review
      counts as done when its check passed and another agent has accepted it
  quorate task submit --title summary --concurrency-key repo-a --uses provider:x --queue-timeout 10m
      under the limit of repo-a, not while the breaker is open, given up if nobody takes it
  quorate task submit plan.json
      all tasks of a file, or none of them
  generate-plan | quorate task submit -
      the same from stdin
  quorate task submit part.json --parent "$QUORATE_TASK_ID" --token "$QUORATE_TOKEN"
      from inside a worker's command: tasks that belong to the one that runs

FILE:
  One task, a list of tasks (a whole graph), or {"tasks": [..]}; at most 1,000. A task:
  { "task_id": "document", "title": "write the report", "description": "..",
    "payload": {"any": "json"}, "priority": "high", "labels": {"name": "value"},
    "project": "..", "epic": "..", "feature": "..", "estimated_minutes": 5, "idempotency_key": "..",
    "required_capabilities": ["documentation"], "agent_id": "..", "agent_type": "..", "route": false,
    "required_labels": {"zone": "a"}, "excluded_agents": [".."], "unroutable": "wait",
    "dependencies": ["review-a", "review-b"], "soft_dependencies": [".."],
    "pending_dependencies": [".."], "on_dependency_failure": "block",
    "concurrency_keys": [".."], "uses": [".."], "share": "..", "cost": 1,
    "not_before_ms": 0, "attempt_timeout_ms": 1800000, "queue_timeout_ms": 0,
    "total_timeout_ms": 0, "cancel_grace_ms": 10000,
    "retry": {"max_retries": 3, "base_ms": 2000, "cap_ms": 60000, "jitter_permille": 200,
              "never_retry": [".."], "always_retry": [".."]}, "retry_profile": "..",
    "evidence": {"artifacts": ["diff"], "checks": ["test"], "agent_reviews": 1,
                 "review_capabilities": ["review"], "person_reviews": 0, "max_reworks": 3} }
  Only title is needed. Dependencies may name tasks of the same file. retry and retry_profile exclude
  each other. priority: critical, high, medium, low, background, P0 to P3, or 0 to 10."#;

const MAX_PAYLOAD_BYTES: usize = 1024 * 1024;

/// Flags of `quorate task submit`.
#[derive(Args)]
pub(crate) struct SubmitArgs {
    /// Tasks as JSON (see below); - reads stdin
    #[arg(value_name = "FILE")]
    file: Option<String>,
    #[command(flatten)]
    flags: TaskFlags,
    /// Admit circles among the tasks of the file; `quorate task deadlocks` finds them
    #[arg(long, requires = "file", conflicts_with = "TaskFlags")]
    import: bool,
    /// The running task that these belong to; each needs an idempotency key, so that a second try spawns nothing twice
    #[arg(long, value_name = "ID", requires = "token", conflicts_with = "import")]
    parent: Option<String>,
    /// The token of the parent's running attempt
    #[arg(long, value_name = "TOKEN", env = "QUORATE_TOKEN")]
    token: Option<u64>,
    /// Whoever waits for the parent waits for these too
    #[arg(long, requires = "parent")]
    dependents_wait: bool,
}

/// What the arguments ask for.
pub(crate) async fn request(mut args: SubmitArgs) -> Result<SubmitTasksRequest, Failure> {
    let tasks = match args.file.take() {
        Some(file) => read(file).await?,
        None => {
            let spec = args.flags.spec();
            check_payload("payload", &spec).map_err(Failure::bad_input)?;
            vec![spec]
        }
    };
    let spawn = args.parent.map(|parent_id| Spawn {
        parent_id,
        token: args.token.unwrap_or_default(),
        dependents_wait: args.dependents_wait,
    });
    if spawn.is_some()
        && let Some(spec) = tasks.iter().find(|spec| spec.idempotency_key.is_empty())
    {
        let what = "a spawned task needs an idempotency key (--key, or idempotency_key in the file)";
        return Err(Failure::bad_input(format!("{}: {what}", spec.title)));
    }
    Ok(SubmitTasksRequest { tasks, spawn, admit_cycles: args.import, request: None })
}

/// The tasks of a file, or of stdin for `-`.
async fn read(file: String) -> Result<Vec<TaskSpec>, Failure> {
    let (name, bytes) = values::read_input(file).await?;
    file::parse(&bytes).map_err(|message| Failure::bad_input(format!("{name}: {message}")))
}

fn check_payload(name: &str, spec: &TaskSpec) -> Result<(), String> {
    match spec.payload.len() {
        0..=MAX_PAYLOAD_BYTES => Ok(()),
        bytes => Err(format!("{name} is {bytes} bytes, at most {MAX_PAYLOAD_BYTES} are accepted")),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: SubmitArgs,
    }

    fn accepted(line: &str) -> bool {
        Line::try_parse_from(line.split(' ')).is_ok()
    }

    #[test]
    fn a_file_and_flags_of_a_task_exclude_each_other() {
        assert!(accepted("submit plan.json") && accepted("submit --title a --route --cost 3"));
        for wrong in ["submit", "submit --cost 3", "submit plan.json --title a", "submit plan.json --route"] {
            assert!(!accepted(wrong), "{wrong}");
        }
        assert!(accepted("submit plan.json --import"));
        assert!(!accepted("submit --title a --import"));
    }

    #[tokio::test]
    async fn what_is_spawned_needs_a_key() {
        assert!(accepted("submit --title a --parent t1 --token 7 --dependents-wait"));
        assert!(!accepted("submit --title a --dependents-wait"));
        let line = |text: &str| Line::try_parse_from(text.split(' ')).unwrap_or_else(|error| panic!("{error}")).args;
        let refused = request(line("submit --title a --parent t1 --token 7")).await.unwrap_err();
        assert!(refused.code() == 2 && refused.to_string().contains("--key"), "{refused}");
        let asked = request(line("submit --title a --key k --parent t1 --token 7")).await.unwrap();
        assert_eq!(asked.spawn, Some(Spawn { parent_id: "t1".into(), token: 7, dependents_wait: false }));
    }
}
