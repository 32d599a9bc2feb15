//! Waiting for the end of tasks, and fetching a result.

use std::time::Duration;

use futures::future::join_all;
use quorate_client::Tasks;
use quorate_client::v1::{Task, TaskStatus};
use serde_json::json;

use super::{TASK_HEADER, task_rows};
use crate::cli::exit::Failure;
use crate::cli::output::{now_ms, short, table, took};
use crate::cli::{Context, view};

const DEFAULT_WAIT: Duration = Duration::from_secs(600);

/// Writes what a task brought.
pub(super) async fn result(context: &Context, id: &str) -> Result<(), Failure> {
    let answer = context.client.tasks().get(id).await?;
    let task = answer.task.ok_or_else(|| Failure::not_found(format!("no task {id}")))?;
    match task.status() {
        TaskStatus::Completed => {}
        TaskStatus::Reported => context.out.note(&format!("{id} is reported, and still to be accepted")),
        _ => return Err(Failure::failed(format!("{}: it has no result", ending(&task)))),
    }
    context.out.raw(&task.result)
}

/// Waits for all of them.
pub(super) async fn run(context: &Context, ids: &[String]) -> Result<(), Failure> {
    let limit = context.timeout.unwrap_or(DEFAULT_WAIT);
    context.out.progress(&format!("waiting up to {} for {} tasks", took(limit), ids.len()));
    let tasks = context.client.tasks();
    let calls = ids.iter().map(|id| wait_for_one(&tasks, id, limit));
    let (mut ended, mut first_failure) = (Vec::new(), None);
    for answer in join_all(calls).await {
        match answer {
            Ok(task) => ended.push(task),
            Err(failure) => {
                if first_failure.is_some() {
                    context.out.failure(&failure);
                } else {
                    first_failure = Some(failure);
                }
            }
        }
    }
    context.out.show(
        || json!({ "tasks": ended.iter().map(view::task).collect::<Vec<_>>() }),
        || table(TASK_HEADER, task_rows(&ended, now_ms()), ""),
    )?;
    let not_completed = ended.iter().find(|task| task.status() != TaskStatus::Completed);
    match first_failure.or_else(|| not_completed.map(|task| Failure::failed(ending(task)))) {
        Some(failure) => Err(failure),
        None => Ok(()),
    }
}

async fn wait_for_one(tasks: &Tasks, id: &str, limit: Duration) -> Result<Task, Failure> {
    let mut seen = false;
    let follow = async {
        tasks.get(id).await?;
        seen = true;
        // A little more than we wait ourselves, so that running out of time is always told in the words below.
        tasks.wait(id, limit + Duration::from_secs(60)).await
    };
    let answer = tokio::time::timeout(limit, follow).await;
    match answer {
        Ok(task) => Ok(task?),
        Err(_) if seen => Err(Failure::failed(format!("{id} has not ended within {}", took(limit)))),
        Err(_) => Err(Failure::unavailable(format!("nobody could be asked about {id} within {}", took(limit)))),
    }
}

/// `t1 is failed: exit code 3`
fn ending(task: &Task) -> String {
    let status = view::task_status(task.status);
    match task.error.as_str() {
        "" => format!("{} is {status}", task.id),
        error => format!("{} is {status}: {}", task.id, short(error, 200)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ending_says_why() {
        let failed = Task {
            id: "t1".into(),
            status: TaskStatus::Failed as i32,
            error: "exit code 3".into(),
            ..Default::default()
        };
        assert_eq!(ending(&failed), "t1 is failed: exit code 3");
        assert_eq!(ending(&Task { error: String::new(), ..failed }), "t1 is failed");
    }
}
