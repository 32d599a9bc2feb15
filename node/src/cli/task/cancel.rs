//! Cancelling: who is told to stop, and until when.

use clap::Args;
use quorate_client::v1::{CancelTaskRequest, CancelTaskResponse, RunningAttempt, Task, TaskStatus};
use serde_json::json;

use crate::cli::exit::Failure;
use crate::cli::output::{age, now_ms, or_dash, span, table};
use crate::cli::{Context, view};

pub(super) const EXAMPLES: &str = r#"EXAMPLES:
  quorate task cancel plan --reason "the customer left"
      the task and everything it spawned; lists what was still running, and how long it has to stop
  quorate task cancel plan --only-this --reason "done by hand"
      what it spawned goes on
  quorate task cancel plan --now --reason "it writes to the wrong place"
      no grace: running attempts are fenced at once"#;

/// Flags of `quorate task cancel`.
#[derive(Args)]
pub(crate) struct CancelArgs {
    /// The task
    #[arg(value_name = "ID")]
    id: String,
    /// Why, for whoever looks at it later
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Leave alone what it spawned
    #[arg(long)]
    only_this: bool,
    /// Fence what runs at once, without its grace
    #[arg(long)]
    now: bool,
}

pub(super) async fn run(context: &Context, args: CancelArgs) -> Result<(), Failure> {
    let CancelArgs { id, reason, only_this, now } = args;
    let request = CancelTaskRequest { task_id: id, reason, only_this, now, request: None };
    let answer = context.client.tasks().cancel_with(request).await?;
    let task = answer.task.clone().unwrap_or_default();
    context.out.show(
        || {
            json!({
                "task": view::task(&task),
                "running": answer.running.iter().map(view::running).collect::<Vec<_>>(),
                "reached": answer.reached,
                "rev": answer.rev,
            })
        },
        || text(&task, &answer, now_ms()),
    )
}

fn text(task: &Task, answer: &CancelTaskResponse, now_ms: u64) -> String {
    let mut text = if task.cancel.is_some() && task.status() != TaskStatus::Cancelled {
        format!("{} is told to stop", task.id)
    } else {
        format!("{} is {}", task.id, view::task_status(task.status))
    };
    if answer.reached > 1 {
        text.push_str(&format!("; {} tasks were reached", answer.reached));
    }
    if !answer.running.is_empty() {
        let header = ["was running", "agent", "token", "for", "is fenced"];
        let rows = answer.running.iter().map(|attempt| row(attempt, now_ms)).collect();
        text = format!("{text}\n{}", table(header, rows, ""));
    }
    text
}

fn row(attempt: &RunningAttempt, now_ms: u64) -> [String; 5] {
    let fenced = match attempt.fence_at_ms.saturating_sub(now_ms) {
        0 => "now".into(),
        left => format!("in {}", span(left)),
    };
    [
        attempt.task_id.clone(),
        or_dash(&attempt.agent_id),
        attempt.token.to_string(),
        age(attempt.started_at_ms, now_ms),
        fenced,
    ]
}

#[cfg(test)]
mod tests {
    use quorate_client::v1::CancelNotice;

    use super::*;

    #[test]
    fn what_still_runs_is_listed_with_the_time_it_has_left() {
        let running = RunningAttempt {
            task_id: "t1".into(),
            agent_id: "a".into(),
            token: 9,
            started_at_ms: 1_000,
            fence_at_ms: 17_000,
        };
        let answer = CancelTaskResponse { running: vec![running], reached: 3, ..Default::default() };
        let mut task = Task { id: "t1".into(), cancel: Some(CancelNotice::default()), ..Default::default() };
        task.set_status(TaskStatus::InProgress);
        let shown = text(&task, &answer, 5_000);
        for part in ["t1 is told to stop; 3 tasks were reached", "in 12s", "4.0s"] {
            assert!(shown.contains(part), "{part} is not in {shown}");
        }
        assert!(text(&task, &answer, 17_000).contains("now"));
        task.set_status(TaskStatus::Cancelled);
        assert_eq!(text(&task, &CancelTaskResponse::default(), 5_000), "t1 is cancelled");
    }
}
