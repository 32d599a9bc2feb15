//! A person's word about a reported task: accepted, or to be done again.

use clap::Args;
use quorate_client::v1::{DecideTaskRequest, Task, Verdict};
use serde_json::json;

use crate::cli::exit::Failure;
use crate::cli::{Context, view};

pub(super) const EXAMPLES: &str = r#"EXAMPLES:
  quorate task list --status reported
      what waits for a verdict; `quorate task show` and `quorate task result` show what was reported
  quorate task accept fix-7 --as ann --comment "reads well"
      when all required reviews are there, the task is completed
  quorate task rework fix-7 --as ann --comment "the error path has no test"
      back to the queue; the next attempt gets the comment"#;

/// Flags of `quorate task accept`.
#[derive(Args)]
pub(crate) struct AcceptArgs {
    /// The task
    #[arg(value_name = "ID")]
    id: String,
    /// Your name, for whoever looks at it later
    #[arg(long = "as", value_name = "NAME")]
    reviewer: String,
    /// What you want to add
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    comment: String,
}

/// Flags of `quorate task rework`.
#[derive(Args)]
pub(crate) struct ReworkArgs {
    /// The task
    #[arg(value_name = "ID")]
    id: String,
    /// Your name, for whoever looks at it later
    #[arg(long = "as", value_name = "NAME")]
    reviewer: String,
    /// What has to change; the next attempt gets it
    #[arg(long, value_name = "TEXT")]
    comment: String,
}

pub(super) async fn accept(context: &Context, args: AcceptArgs) -> Result<(), Failure> {
    let AcceptArgs { id, reviewer, comment } = args;
    decide(context, DecideTaskRequest { task_id: id, reviewer, comment, ..request(Verdict::Accept) }).await
}

pub(super) async fn rework(context: &Context, args: ReworkArgs) -> Result<(), Failure> {
    let ReworkArgs { id, reviewer, comment } = args;
    decide(context, DecideTaskRequest { task_id: id, reviewer, comment, ..request(Verdict::Rework) }).await
}

fn request(verdict: Verdict) -> DecideTaskRequest {
    DecideTaskRequest { verdict: verdict as i32, ..Default::default() }
}

async fn decide(context: &Context, request: DecideTaskRequest) -> Result<(), Failure> {
    let answer = context.client.tasks().decide(request).await?;
    let task = answer.task.unwrap_or_default();
    context.out.show(
        || json!({ "task": view::task(&task), "unblocked": answer.unblocked, "rev": answer.rev }),
        || outcome(&task, answer.unblocked),
    )
}

/// `t1 is completed; 2 tasks became ready`
fn outcome(task: &Task, unblocked: u32) -> String {
    let status = view::task_status(task.status);
    match unblocked {
        0 => format!("{} is {status}", task.id),
        1 => format!("{} is {status}; 1 task became ready", task.id),
        more => format!("{} is {status}; {more} tasks became ready", task.id),
    }
}

#[cfg(test)]
mod tests {
    use quorate_client::v1::TaskStatus;

    use super::*;

    #[test]
    fn an_outcome_counts_what_may_start() {
        let mut task = Task { id: "t1".into(), ..Default::default() };
        task.set_status(TaskStatus::Ready);
        assert_eq!(outcome(&task, 0), "t1 is ready");
        task.set_status(TaskStatus::Completed);
        assert_eq!(outcome(&task, 2), "t1 is completed; 2 tasks became ready");
    }
}
