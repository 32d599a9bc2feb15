//! Dead tasks: found, redriven, purged.
//!
//! Deliberately absent: a place of their own. They are tasks like others, in the status failed or timed_out.

use futures::future::join_all;
use quorate_client::Error;
use quorate_client::v1::{GetTaskResponse, ListAttemptsRequest, ListTasksRequest, Task, TaskStatus};
use serde_json::json;

use super::{PurgeArgs, RedriveArgs, in_part};
use crate::cli::exit::Failure;
use crate::cli::output::{age, now_ms, or_dash, short, table};
use crate::cli::task::{Pages, Paging, attempt_table, task_facts};
use crate::cli::{Context, view};

/// The most that one command takes.
const MOST_AT_ONCE: usize = 1_000;
/// Calls at one time.
const CALLS: usize = 32;
const MOST_ATTEMPTS: u32 = 100;

/// Those of a project, or of all, by id.
pub(super) async fn dead_letters(
    context: &Context,
    paging: &Paging,
    project: Option<String>,
) -> Result<Pages<Task>, Failure> {
    let asked = ListTasksRequest {
        statuses: vec![TaskStatus::Failed as i32, TaskStatus::TimedOut as i32],
        project: project.unwrap_or_default(),
        ..Default::default()
    };
    Pages::collect(context, paging, |limit, page_token| {
        let (client, request) = (context.client.tasks(), ListTasksRequest { limit, page_token, ..asked.clone() });
        async move { client.list(request).await.map(|page| (page.tasks, page.next_page_token, page.rev)) }
    })
    .await
}

/// One of them, as it was answered.
pub(super) async fn show(context: &Context, id: &str, answer: GetTaskResponse) -> Result<(), Failure> {
    let task = answer.task.as_ref().ok_or_else(|| Failure::not_found(format!("no task {id}")))?;
    check_dead(task)?;
    let asked = ListAttemptsRequest { task_id: id.to_owned(), limit: MOST_ATTEMPTS, ..Default::default() };
    let page = context.client.tasks().attempts(asked).await?;
    if !page.next_page_token.is_empty() {
        context.out.note(&format!("it has more than {MOST_ATTEMPTS} attempts: quorate task attempts {id} --all"));
    }
    context.out.show(
        || {
            let attempts: Vec<_> = page.attempts.iter().map(view::attempt).collect();
            json!({ "task": view::task(task), "attempts": attempts, "rev": answer.rev })
        },
        || format!("{}\n{}", task_facts(task, &answer), attempt_table(&page.attempts)),
    )
}

pub(super) async fn redrive(context: &Context, args: RedriveArgs) -> Result<(), Failure> {
    let ids = if args.all { all_ids(context, args.project).await? } else { args.ids };
    let swept = sweep(&ids, args.all, "redriven", async |ids: Vec<String>| {
        let answer = context.client.tasks().redrive(ids).await?;
        Ok::<_, Error>((answer.redriven, answer.rev))
    })
    .await?;
    swept.show(context, "redriven")
}

pub(super) async fn purge(context: &Context, args: PurgeArgs) -> Result<(), Failure> {
    let all = args.all;
    let ids = if all {
        all_ids(context, args.project).await?
    } else {
        // The cluster would purge any task that has ended; here only dead letters are meant.
        check_all_dead(context, &args.ids).await?;
        args.ids
    };
    let swept = sweep(&ids, all, "purged", async |mut ids: Vec<String>| {
        if all {
            // Since they were listed, some may have been redriven, and even completed.
            ids = still_dead(context, ids).await?;
        }
        if ids.is_empty() {
            return Ok((0, 0));
        }
        let answer = context.client.tasks().purge(ids).await?;
        Ok::<_, Error>((answer.purged, answer.rev))
    })
    .await?;
    swept.show(context, "purged")
}

/// What became of many.
#[derive(Debug, Default)]
struct Swept {
    done: u64,
    rev: u64,
    /// Why some were left as they are.
    refused: Vec<String>,
}

impl Swept {
    fn show(&self, context: &Context, what: &str) -> Result<(), Failure> {
        context.out.show(
            || json!({ what: self.done, "refused": self.refused, "rev": self.rev }),
            || format!("{} {what}", self.done),
        )?;
        match self.refused.first() {
            None => Ok(()),
            Some(first) => Err(Failure::failed(format!("{} not {what}: {first}", self.refused.len()))),
        }
    }
}

/// Command by command, each all or none. If it `may_leave_some`, one that is refused is halved until only those are left
/// out that must be, such as a task that others wait for.
async fn sweep(
    ids: &[String],
    may_leave_some: bool,
    what: &str,
    call: impl AsyncFn(Vec<String>) -> Result<(u32, u64), Error>,
) -> Result<Swept, Failure> {
    let mut swept = Swept::default();
    let mut left: Vec<&[String]> = ids.chunks(MOST_AT_ONCE).rev().collect();
    while let Some(some) = left.pop() {
        match call(some.to_vec()).await {
            Ok((count, rev)) => {
                swept.done += u64::from(count);
                swept.rev = swept.rev.max(rev);
            }
            Err(Error::Rejected { message, .. }) if may_leave_some && some.len() == 1 => swept.refused.push(message),
            Err(Error::Rejected { .. }) if may_leave_some => {
                let (first, second) = some.split_at(some.len() / 2);
                left.extend([second, first]);
            }
            Err(error) => return Err(in_part(error, swept.done, what)),
        }
    }
    Ok(swept)
}

async fn all_ids(context: &Context, project: Option<String>) -> Result<Vec<String>, Failure> {
    let pages = dead_letters(context, &Paging::everything(), project).await?;
    Ok(pages.rows.into_iter().map(|task| task.id).collect())
}

async fn check_all_dead(context: &Context, ids: &[String]) -> Result<(), Failure> {
    let tasks = context.client.tasks();
    for some in ids.chunks(CALLS) {
        for (id, answer) in some.iter().zip(join_all(some.iter().map(|id| tasks.get(id))).await) {
            check_dead(&answer?.task.ok_or_else(|| Failure::not_found(format!("no task {id}")))?)?;
        }
    }
    Ok(())
}

/// Those that still are dead letters.
async fn still_dead(context: &Context, ids: Vec<String>) -> Result<Vec<String>, Error> {
    let tasks = context.client.tasks();
    let mut dead = Vec::with_capacity(ids.len());
    for some in ids.chunks(CALLS) {
        for (id, answer) in some.iter().zip(join_all(some.iter().map(|id| tasks.get(id))).await) {
            match answer {
                Ok(found) if found.task.as_ref().is_some_and(|task| check_dead(task).is_ok()) => dead.push(id.clone()),
                Ok(_) => {}
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(dead)
}

fn check_dead(task: &Task) -> Result<(), Failure> {
    match task.status() {
        TaskStatus::Failed | TaskStatus::TimedOut => Ok(()),
        _ => {
            let status = view::task_status(task.status);
            Err(Failure::failed(format!("{} is {status}: a dead letter is failed or timed_out", task.id)))
        }
    }
}

/// Dead letters as rows.
pub(super) fn letter_table(tasks: &[Task]) -> String {
    let now = now_ms();
    let header = ["id", "title", "status", "attempts", "ended", "class", "error"];
    table(header, tasks.iter().map(|task| letter_row(task, now)).collect(), "no dead letters")
}

fn letter_row(task: &Task, now_ms: u64) -> [String; 7] {
    [
        task.id.clone(),
        short(&or_dash(&view::spec_of(task).title), 40),
        view::task_status(task.status),
        task.attempts.to_string(),
        age(task.finished_at_ms, now_ms),
        or_dash(&task.error_class),
        short(&or_dash(&task.error), 60),
    ]
}

#[cfg(test)]
mod tests {
    use quorate_client::v1::RejectionCode;

    use super::*;

    #[test]
    fn only_failed_and_timed_out_tasks_are_dead() {
        let mut task = Task { id: "t1".into(), ..Default::default() };
        for (status, is_dead) in [
            (TaskStatus::Failed, true),
            (TaskStatus::TimedOut, true),
            (TaskStatus::Completed, false),
            (TaskStatus::Cancelled, false),
        ] {
            task.set_status(status);
            assert_eq!(check_dead(&task).is_ok(), is_dead, "{status:?}");
        }
        assert_eq!(check_dead(&task).unwrap_err().to_string(), "t1 is cancelled: a dead letter is failed or timed_out");
    }

    /// Refuses whatever contains `stuck`.
    async fn all_but_stuck(ids: Vec<String>) -> Result<(u32, u64), Error> {
        if ids.iter().any(|id| id == "stuck") {
            let (code, field) = (RejectionCode::FailedPrecondition, String::new());
            return Err(Error::Rejected { code, field, message: "b waits for stuck".into() });
        }
        Ok((u32::try_from(ids.len()).unwrap(), 7))
    }

    #[tokio::test]
    async fn one_that_must_stay_does_not_keep_the_others() {
        let mut ids: Vec<String> = (0..2_500).map(|n| n.to_string()).collect();
        ids.insert(1_300, "stuck".into());
        let swept = sweep(&ids, true, "purged", all_but_stuck).await.unwrap();
        assert_eq!((swept.done, swept.rev, swept.refused.as_slice()), (2_500, 7, &["b waits for stuck".into()][..]));
        let refused = sweep(&ids, false, "purged", all_but_stuck).await.unwrap_err();
        assert!(refused.to_string().starts_with("1000 were purged"), "named ones are all or none: {refused}");
    }
}
