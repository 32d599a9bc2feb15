//! `quorate checkpoint`: milestones that were reached.

use clap::Subcommand;
use quorate_client::v1::Checkpoint;
use serde_json::{Value, json};

use super::Context;
use super::exit::Failure;
use super::output::{age, now_ms, or_dash, table};
use super::project::{counts_view, failed, waiting};

/// `quorate checkpoint …`
#[derive(Subcommand)]
pub(crate) enum Command {
    /// List milestones, newest first: every tenth completed task of a project, each finished feature and epic
    List {
        /// The project; without it, all of them
        #[arg(value_name = "PROJECT")]
        project: Option<String>,
        /// How many at most
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000))]
        limit: u32,
    },
}

/// Does what the arguments say.
pub(crate) async fn run(context: &Context, command: Command) -> Result<(), Failure> {
    let Command::List { project, limit } = command;
    let answer = context.client.progress().checkpoints(&project.unwrap_or_default(), limit).await?;
    context.out.show(
        || json!({ "checkpoints": answer.checkpoints.iter().map(view).collect::<Vec<_>>(), "rev": answer.rev }),
        || {
            let now = now_ms();
            let header = ["age", "project", "milestone", "epic", "feature", "completed", "failed", "on the way", "rev"];
            table(header, answer.checkpoints.iter().map(|one| row(one, now)).collect(), "no milestone was reached yet")
        },
    )
}

/// A milestone.
pub(super) fn view(checkpoint: &Checkpoint) -> Value {
    json!({
        "rev": checkpoint.rev,
        "at_ms": checkpoint.at_ms,
        "project": checkpoint.project,
        "epic": checkpoint.epic,
        "feature": checkpoint.feature,
        "milestone": checkpoint.milestone,
        "counts": counts_view(&checkpoint.counts.unwrap_or_default()),
    })
}

fn row(checkpoint: &Checkpoint, now_ms: u64) -> [String; 9] {
    let counts = checkpoint.counts.unwrap_or_default();
    [
        age(checkpoint.at_ms, now_ms),
        or_dash(&checkpoint.project),
        milestone(&checkpoint.milestone),
        or_dash(&checkpoint.epic),
        or_dash(&checkpoint.feature),
        counts.completed.to_string(),
        failed(&counts).to_string(),
        (waiting(&counts) + counts.in_progress + counts.reported).to_string(),
        checkpoint.rev.to_string(),
    ]
}

/// `tasks:10` as people say it.
fn milestone(milestone: &str) -> String {
    match milestone.split_once(':') {
        Some(("tasks", count)) => format!("{count} tasks completed"),
        _ => format!("{milestone} finished"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn milestones_are_readable() {
        assert_eq!(milestone("tasks:20"), "20 tasks completed");
        assert_eq!(milestone("epic"), "epic finished");
        let row = row(&Checkpoint { milestone: "feature".to_owned(), ..Checkpoint::default() }, 0);
        assert_eq!(row[2], "feature finished");
    }
}
