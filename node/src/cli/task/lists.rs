//! Many tasks as rows, and attempts.

use clap::Args;
use quorate_client::v1::{Attempt, AttemptOutcome, ListAttemptsRequest, ListTasksRequest, TaskStatus};

use super::{Pages, Paging, TASK_HEADER, task_rows};
use crate::cli::exit::Failure;
use crate::cli::output::{age, now_ms, or_dash, short, span, table};
use crate::cli::{Context, values, view};

pub(super) const LIST_EXAMPLES: &str = "\
EXAMPLES:
  quorate task list --ready
      what could start now
  quorate task list --status reported --project shop
      what waits to be accepted
  quorate task list --parent plan --all -o json
      everything that one task spawned, for a program";

/// Flags of `quorate task list`.
#[derive(Args)]
pub(crate) struct ListArgs {
    /// Only tasks in this state, such as ready or in_progress; repeat to allow several
    #[arg(long, value_name = "STATUS", value_parser = values::task_status)]
    status: Vec<TaskStatus>,
    /// Only tasks that can be started now; the same as --status ready
    #[arg(long, conflicts_with = "status")]
    ready: bool,
    /// Only tasks that this agent holds, or that only it may do
    #[arg(long, value_name = "ID")]
    agent: Option<String>,
    /// Only tasks of this project
    #[arg(long, value_name = "NAME")]
    project: Option<String>,
    /// Only tasks of this epic
    #[arg(long, value_name = "NAME")]
    epic: Option<String>,
    /// Only tasks of this feature
    #[arg(long, value_name = "NAME")]
    feature: Option<String>,
    /// Only tasks that this task spawned
    #[arg(long, value_name = "ID")]
    parent: Option<String>,
    #[command(flatten)]
    paging: Paging,
}

/// Flags of `quorate task attempts`.
#[derive(Args)]
pub(crate) struct AttemptsArgs {
    /// The task; without it, attempts at all tasks
    #[arg(value_name = "ID")]
    id: Option<String>,
    /// Only attempts by this agent
    #[arg(long, value_name = "ID")]
    agent: Option<String>,
    /// Only attempts by agents of this type
    #[arg(long = "type", value_name = "TYPE")]
    agent_type: Option<String>,
    /// Only attempts that ended so: running, completed, failed, timed_out, lost, released, cancelled
    #[arg(long, value_name = "OUTCOME", value_parser = values::attempt_outcome)]
    outcome: Option<AttemptOutcome>,
    #[command(flatten)]
    paging: Paging,
}

pub(super) async fn tasks(context: &Context, args: ListArgs) -> Result<(), Failure> {
    let statuses = if args.ready { vec![TaskStatus::Ready] } else { args.status };
    let asked = ListTasksRequest {
        statuses: statuses.into_iter().map(|status| status as i32).collect(),
        agent_id: args.agent.unwrap_or_default(),
        project: args.project.unwrap_or_default(),
        epic: args.epic.unwrap_or_default(),
        feature: args.feature.unwrap_or_default(),
        parent_id: args.parent.unwrap_or_default(),
        ..Default::default()
    };
    let pages = Pages::collect(context, &args.paging, |limit, page_token| {
        let (client, request) = (context.client.tasks(), ListTasksRequest { limit, page_token, ..asked.clone() });
        async move { client.list(request).await.map(|page| (page.tasks, page.next_page_token, page.rev)) }
    })
    .await?;
    context
        .out
        .show(|| pages.json("tasks", view::task), || table(TASK_HEADER, task_rows(&pages.rows, now_ms()), "no tasks"))
}

pub(super) async fn attempts(context: &Context, args: AttemptsArgs) -> Result<(), Failure> {
    let asked = ListAttemptsRequest {
        task_id: args.id.unwrap_or_default(),
        agent_id: args.agent.unwrap_or_default(),
        agent_type: args.agent_type.unwrap_or_default(),
        outcome: args.outcome.map_or(0, |outcome| outcome as i32),
        ..Default::default()
    };
    let pages = Pages::collect(context, &args.paging, |limit, page_token| {
        let (client, request) = (context.client.tasks(), ListAttemptsRequest { limit, page_token, ..asked.clone() });
        async move { client.attempts(request).await.map(|page| (page.attempts, page.next_page_token, page.rev)) }
    })
    .await?;
    context.out.show(|| pages.json("attempts", view::attempt), || attempt_table(&pages.rows))
}

/// Attempts as rows.
pub(crate) fn attempt_table(attempts: &[Attempt]) -> String {
    let now = now_ms();
    let header = [
        "task",
        "attempt",
        "agent",
        "type",
        "outcome",
        "token",
        "started",
        "took",
        "exit",
        "late result",
        "class",
        "error",
    ];
    let rows = attempts.iter().map(|attempt| attempt_row(attempt, now)).collect();
    table(header, rows, "no attempts")
}

fn attempt_row(attempt: &Attempt, now_ms: u64) -> [String; 12] {
    let end = if attempt.ended_at_ms == 0 { now_ms } else { attempt.ended_at_ms };
    [
        attempt.task_id.clone(),
        attempt.number.to_string(),
        attempt.agent_id.clone(),
        or_dash(&attempt.agent_type),
        outcome(attempt),
        attempt.token.to_string(),
        age(attempt.started_at_ms, now_ms),
        span(end.saturating_sub(attempt.started_at_ms)),
        attempt.exit_code.map_or_else(|| "-".into(), |code| code.to_string()),
        if attempt.orphan.is_some() { "yes".into() } else { "-".into() },
        or_dash(&attempt.error_class),
        short(&or_dash(&attempt.error), 60),
    ]
}

/// A cancelled attempt either said that it stopped, or may have run on without effect.
fn outcome(attempt: &Attempt) -> String {
    let outcome = view::attempt_outcome(attempt.outcome);
    match (attempt.outcome(), attempt.cancel_acknowledged) {
        (AttemptOutcome::Cancelled, true) => format!("{outcome}, acknowledged"),
        (AttemptOutcome::Cancelled, false) => format!("{outcome}, fenced"),
        _ => outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cancelled_attempt_says_whether_it_stopped() {
        let mut attempt = Attempt { error_class: "busy".into(), ..Default::default() };
        attempt.set_outcome(AttemptOutcome::Cancelled);
        assert_eq!(outcome(&attempt), "cancelled, fenced");
        attempt.cancel_acknowledged = true;
        assert_eq!(outcome(&attempt), "cancelled, acknowledged");
        assert!(attempt_table(&[attempt]).contains("busy"));
    }
}
