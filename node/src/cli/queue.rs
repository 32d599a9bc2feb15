//! `quorate queue`: what waits, and for whom.

use clap::Subcommand;
use quorate_client::v1::{QueueDepth, TaskStatsResponse};

use super::exit::Failure;
use super::output::{age, now_ms, or_dash, table};
use super::{Context, view};

const STATUS_EXAMPLES: &str = "\
EXAMPLES:
  quorate queue status
      one count for every status, then one line for every kind of ready task
  quorate queue status -o json | jq .counts.reported
      how many wait to be accepted";

/// `quorate queue …`
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Show how many tasks stand where, and what the ready ones require
    #[command(after_help = STATUS_EXAMPLES)]
    Status,
}

/// Does what the arguments say.
pub(crate) async fn run(context: &Context, command: Command) -> Result<(), Failure> {
    match command {
        Command::Status => {
            let stats = context.client.tasks().stats().await?;
            context.out.show(|| view::stats(&stats), || text(&stats))
        }
    }
}

fn text(stats: &TaskStatsResponse) -> String {
    let counts = view::counts(stats);
    let counts = table(counts.map(|(status, _)| status), vec![counts.map(|(_, count)| count.to_string())], "");
    let now = now_ms();
    let header = [
        "required capabilities",
        "only for agent",
        "only for type",
        "limit keys",
        "share",
        "ready",
        "highest priority",
        "oldest",
    ];
    let rows = stats.queues.iter().map(|queue| row(queue, now)).collect();
    let unaided = match stats.completed {
        0 => String::new(),
        completed => format!("{} of {completed} completed without a person's help\n", stats.completed_unaided),
    };
    format!("{counts}\n{unaided}{}", table(header, rows, "nothing is ready"))
}

fn row(queue: &QueueDepth, now_ms: u64) -> [String; 8] {
    [
        or_dash(&queue.required_capabilities.join(", ")),
        or_dash(&queue.agent_id),
        or_dash(&queue.agent_type),
        or_dash(&queue.concurrency_keys.join(", ")),
        or_dash(&queue.share),
        queue.ready.to_string(),
        view::priority(queue.highest_priority),
        age(queue.oldest_created_at_ms, now_ms),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_holds_its_tasks_apart() {
        let line = QueueDepth {
            agent_type: "coder".into(),
            concurrency_keys: vec!["repo-a".into(), "gpu".into()],
            share: "team".into(),
            ready: 3,
            ..Default::default()
        };
        let stats = TaskStatsResponse {
            reported: 4,
            completed: 9,
            completed_unaided: 7,
            queues: vec![line],
            ..Default::default()
        };
        let text = text(&stats);
        for part in ["reported", "skipped", "coder", "repo-a, gpu", "team", "7 of 9"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }
}
