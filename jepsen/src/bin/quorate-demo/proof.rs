//! The end of the demo: what came of every task, from the cluster's own records.
//!
//! Deliberately absent: the driver's memory of what it saw. Only what the cluster answers counts.

use anyhow::Result;
use quorate_client::Client;
use quorate_client::v1::{AttemptOutcome, TaskStatus};
use quorate_jepsen::{probe, tasks};

/// One line of the table.
struct Row {
    id: String,
    attempts: usize,
    lost: usize,
    accepted: usize,
    orphans: usize,
    completed: bool,
}

/// What the records say.
pub(crate) struct Proof {
    rows: Vec<Row>,
}

impl Proof {
    /// Reads every task of the workflow and its attempts.
    pub(crate) async fn gather(client: &Client) -> Result<Self> {
        let mut rows = Vec::new();
        for task in tasks::all(client).await?.into_iter().filter(|task| task.id != probe::TASK_ID) {
            let attempts = tasks::attempts(client, &task.id).await?;
            rows.push(Row {
                attempts: attempts.len(),
                lost: tasks::count(&attempts, AttemptOutcome::Lost),
                accepted: tasks::count(&attempts, AttemptOutcome::Completed),
                orphans: attempts.iter().filter(|attempt| attempt.orphan.is_some()).count(),
                completed: task.status == TaskStatus::Completed as i32,
                id: task.id,
            });
        }
        Ok(Self { rows })
    }

    /// Attempts beyond the first, over all tasks.
    pub(crate) fn retried(&self) -> usize {
        self.rows.iter().map(|row| row.attempts.saturating_sub(1)).sum()
    }

    /// The table.
    pub(crate) fn lines(&self) -> Vec<String> {
        let head = format!("{:<20} {:>8} {:>5} {:>8} {:>7}", "task", "attempts", "lost", "accepted", "orphans");
        let row = |row: &Row| {
            format!("{:<20} {:>8} {:>5} {:>8} {:>7}", row.id, row.attempts, row.lost, row.accepted, row.orphans)
        };
        std::iter::once(head).chain(self.rows.iter().map(row)).collect()
    }

    /// Everything that should hold and does not.
    pub(crate) fn violations(&self, expected_tasks: usize) -> Vec<String> {
        let mut wrong = Vec::new();
        if self.rows.len() != expected_tasks {
            wrong.push(format!("{} tasks instead of {expected_tasks}", self.rows.len()));
        }
        for row in self.rows.iter().filter(|row| !row.completed || row.accepted != 1) {
            wrong.push(format!("{}: {} accepted completions instead of 1", row.id, row.accepted));
        }
        if self.rows.iter().all(|row| row.lost == 0) {
            wrong.push("no attempt was lost: the killed reviewer held nothing".into());
        }
        wrong
    }
}
