//! Small helpers round the task calls: specs, whole lists, attempts.
//!
//! Deliberately absent: checks. Tests say themselves what must hold.

use anyhow::Result;
use quorate_client::Client;
use quorate_client::v1::{Attempt, AttemptOutcome, ListAttemptsRequest, ListTasksRequest, Task, TaskSpec};

/// A task with an explicit id that only agents with `capability` may do.
pub fn spec(id: impl Into<String>, capability: &str) -> TaskSpec {
    let task_id = id.into();
    TaskSpec { title: task_id.clone(), task_id, required_capabilities: vec![capability.into()], ..Default::default() }
}

/// Every task there is, by linearizable pages.
pub async fn all(client: &Client) -> Result<Vec<Task>> {
    let mut tasks = Vec::new();
    let mut request = ListTasksRequest { limit: 1_000, ..Default::default() };
    loop {
        let page = client.tasks().list(request.clone()).await?;
        tasks.extend(page.tasks);
        if page.next_page_token.is_empty() {
            return Ok(tasks);
        }
        request.page_token = page.next_page_token;
    }
}

/// Every attempt of one task.
pub async fn attempts(client: &Client, task_id: &str) -> Result<Vec<Attempt>> {
    let request = ListAttemptsRequest { task_id: task_id.into(), limit: 1_000, ..Default::default() };
    Ok(client.tasks().attempts(request).await?.attempts)
}

/// How many of the attempts ended in `outcome`.
pub fn count(attempts: &[Attempt], outcome: AttemptOutcome) -> usize {
    attempts.iter().filter(|attempt| attempt.outcome == outcome as i32).count()
}
