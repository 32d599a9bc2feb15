//! `quorate queue`: what waits, and for whom.

use clap::Subcommand;
use quorate_client::v1::{QueueDepth, TaskStatsResponse};

use super::exit::Failure;
use super::output::{age, now_ms, or_dash, table};
use super::{Context, view};

/// `quorate queue …`
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Show how many tasks stand where, and what the ready ones require
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
    let header = ["required capabilities", "only for agent", "ready", "highest priority", "oldest"];
    let rows = stats.queues.iter().map(|queue| row(queue, now)).collect();
    format!("{counts}\n{}", table(header, rows, "nothing is ready"))
}

fn row(queue: &QueueDepth, now_ms: u64) -> [String; 5] {
    [
        or_dash(&queue.required_capabilities.join(", ")),
        or_dash(&queue.agent_id),
        queue.ready.to_string(),
        view::priority(queue.highest_priority),
        age(queue.oldest_created_at_ms, now_ms),
    ]
}
