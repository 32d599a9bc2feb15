//! `quorate task`: submit tasks, follow them, fetch what came of them.

use std::time::Duration;

use clap::{Args, Subcommand};
use futures::future::join_all;
use quorate_client::Tasks;
use quorate_client::v1::{
    Attempt, AttemptOutcome, ListAttemptsRequest, ListTasksRequest, SubmitTasksResponse, Task, TaskStatus,
};
use serde_json::{Value, json};

use super::exit::Failure;
use super::output::{age, facts, now_ms, or_dash, short, span, table, took};
use super::submit::{self, SubmitArgs};
use super::{Context, values, view};

/// The most that one call brings.
const PAGE: u32 = 1_000;
const DEFAULT_LIMIT: u32 = 100;
const DEFAULT_WAIT: Duration = Duration::from_secs(600);

/// The columns of [`task_rows`].
pub(crate) const TASK_HEADER: [&str; 7] = ["id", "title", "status", "priority", "agent", "attempts", "age"];

/// `quorate task …`
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Submit tasks from a file or one task from flags; prints their ids
    #[command(after_help = submit::EXAMPLES)]
    Submit(Box<SubmitArgs>),
    /// Show one task, with its dependencies, payload and result
    #[command(visible_alias = "status")]
    Show {
        /// The task
        #[arg(value_name = "ID")]
        id: String,
    },
    /// List tasks, by id; payloads and results are left out
    List(ListArgs),
    /// Write the result of a completed task to stdout, byte for byte
    Result {
        /// The task
        #[arg(value_name = "ID")]
        id: String,
    },
    /// List attempts, of one task or over all of them
    Attempts(AttemptsArgs),
    /// Cancel a task, whatever it is doing
    Cancel {
        /// The task
        #[arg(value_name = "ID")]
        id: String,
        /// Why, for whoever looks at it later
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
    /// Wait until tasks have ended; exit code 1 unless all are completed within --timeout (10m unless given)
    Wait {
        /// The tasks
        #[arg(value_name = "ID", required = true)]
        ids: Vec<String>,
    },
}

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

/// How much of a long list.
#[derive(Args)]
struct Paging {
    /// How many at most
    #[arg(long, value_name = "N", default_value_t = DEFAULT_LIMIT, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// All of them, however many calls it takes
    #[arg(long, conflicts_with = "limit")]
    all: bool,
    /// Go on where an earlier call stopped
    #[arg(long, value_name = "TOKEN")]
    page_token: Option<String>,
}

impl Paging {
    /// How many the next call may bring; `None`: enough.
    fn next_limit(&self, so_far: usize) -> Option<u32> {
        if self.all {
            return Some(PAGE);
        }
        let left = (self.limit as usize).saturating_sub(so_far);
        if left == 0 { None } else { Some(u32::try_from(left).unwrap_or(PAGE).min(PAGE)) }
    }

    /// Says that there is more.
    fn note_rest(&self, context: &Context, next_page_token: &str) {
        if !next_page_token.is_empty() {
            context.out.note(&format!("there is more: --all, or --page-token {next_page_token}"));
        }
    }
}

/// Rows from as many pages as were asked for.
struct Pages<T> {
    rows: Vec<T>,
    next_page_token: String,
    rev: u64,
}

impl<T> Pages<T> {
    /// Asks for page after page: `fetch` gets a limit and a page token, and gives rows, the next token and the rev.
    async fn collect<F>(
        context: &Context,
        paging: &Paging,
        mut fetch: impl FnMut(u32, String) -> F,
    ) -> Result<Self, Failure>
    where
        F: Future<Output = Result<(Vec<T>, String, u64), quorate_client::Error>>,
    {
        let first = paging.page_token.clone().unwrap_or_default();
        let mut pages = Pages { rows: Vec::new(), next_page_token: first, rev: 0 };
        while let Some(limit) = paging.next_limit(pages.rows.len()) {
            let (rows, next_page_token, rev) = fetch(limit, pages.next_page_token).await?;
            pages.rows.extend(rows);
            (pages.next_page_token, pages.rev) = (next_page_token, rev);
            if pages.next_page_token.is_empty() {
                break;
            }
        }
        paging.note_rest(context, &pages.next_page_token);
        Ok(pages)
    }

    fn json(&self, name: &str, view: impl Fn(&T) -> Value) -> Value {
        let rows: Vec<Value> = self.rows.iter().map(view).collect();
        json!({ name: rows, "next_page_token": self.next_page_token, "rev": self.rev })
    }
}

/// Does what the arguments say.
pub(crate) async fn run(context: &Context, command: Command) -> Result<(), Failure> {
    match command {
        Command::Submit(args) => submit(context, *args).await,
        Command::Show { id } => show(context, &id).await,
        Command::List(args) => list(context, args).await,
        Command::Result { id } => result(context, &id).await,
        Command::Attempts(args) => attempts(context, args).await,
        Command::Cancel { id, reason } => cancel(context, &id, &reason).await,
        Command::Wait { ids } => wait(context, &ids).await,
    }
}

async fn submit(context: &Context, args: SubmitArgs) -> Result<(), Failure> {
    let specs = submit::specs(args).await?;
    let answer = context.client.tasks().submit(specs).await?;
    let existed = answer.tasks.iter().filter(|task| task.existed).count();
    if existed > 0 {
        context.out.note(&format!("{existed} of {} existed already, by their keys", answer.tasks.len()));
    }
    context.out.show(
        || json!({ "tasks": answer.tasks.iter().map(view::submitted).collect::<Vec<_>>(), "rev": answer.rev }),
        || ids(&answer),
    )
}

/// One a line, so that a script can use them.
fn ids(answer: &SubmitTasksResponse) -> String {
    answer.tasks.iter().map(|task| task.task_id.as_str()).collect::<Vec<_>>().join("\n")
}

async fn show(context: &Context, id: &str) -> Result<(), Failure> {
    let answer = context.client.tasks().get(id).await?;
    let task = answer.task.ok_or_else(|| Failure::not_found(format!("no task {id}")))?;
    context.out.show(
        || {
            json!({
                "task": view::task(&task),
                "open_dependencies": answer.open_dependencies,
                "dependents": answer.dependents,
                "rev": answer.rev,
            })
        },
        || task_facts(&task, &answer.open_dependencies, &answer.dependents),
    )
}

async fn list(context: &Context, args: ListArgs) -> Result<(), Failure> {
    let statuses = if args.ready { vec![TaskStatus::Ready] } else { args.status };
    let asked = ListTasksRequest {
        statuses: statuses.into_iter().map(|status| status as i32).collect(),
        agent_id: args.agent.unwrap_or_default(),
        project: args.project.unwrap_or_default(),
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

async fn result(context: &Context, id: &str) -> Result<(), Failure> {
    let answer = context.client.tasks().get(id).await?;
    let task = answer.task.ok_or_else(|| Failure::not_found(format!("no task {id}")))?;
    if task.status() != TaskStatus::Completed {
        return Err(Failure::failed(format!("{}: it has no result", ending(&task))));
    }
    context.out.raw(&task.result)
}

async fn attempts(context: &Context, args: AttemptsArgs) -> Result<(), Failure> {
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

async fn cancel(context: &Context, id: &str, reason: &str) -> Result<(), Failure> {
    let answer = context.client.tasks().cancel(id, reason).await?;
    let task = answer.task.unwrap_or_default();
    context.out.show(
        || json!({ "task": view::task(&task), "rev": answer.rev }),
        || format!("{id} is {}", view::task_status(task.status)),
    )
}

async fn wait(context: &Context, ids: &[String]) -> Result<(), Failure> {
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

/// The rows under [`TASK_HEADER`].
pub(crate) fn task_rows(tasks: &[Task], now_ms: u64) -> Vec<[String; 7]> {
    tasks.iter().map(|task| task_row(task, now_ms)).collect()
}

fn task_row(task: &Task, now_ms: u64) -> [String; 7] {
    let spec = task.spec.clone().unwrap_or_default();
    let holder = task.claim.as_ref().map(|claim| claim.agent_id.clone());
    [
        task.id.clone(),
        short(&or_dash(&spec.title), 48),
        view::task_status(task.status),
        spec.priority.map_or_else(|| "-".into(), view::priority),
        or_dash(&holder.unwrap_or(spec.agent_id)),
        task.attempts.to_string(),
        age(task.created_at_ms, now_ms),
    ]
}

fn task_facts(task: &Task, open_dependencies: &[String], dependents: &[String]) -> String {
    let now = now_ms();
    let spec = task.spec.clone().unwrap_or_default();
    let ago = |ms: u64| if ms == 0 { String::new() } else { format!("{} ago", age(ms, now)) };
    let claim = task.claim.as_ref().map(|claim| {
        let left = span(claim.deadline_ms.saturating_sub(now));
        format!("{}, attempt {}, token {}, {left} left", claim.agent_id, claim.attempt, claim.token)
    });
    let labels: Vec<String> = spec.labels.iter().map(|pair| format!("{}={}", pair.key, pair.value)).collect();
    let max_retries = spec.retry.as_ref().map_or(0, |retry| retry.max_retries);
    let waits = if task.ready_at_ms > now { span(task.ready_at_ms - now) } else { String::new() };
    facts(vec![
        ("id", task.id.clone()),
        ("title", spec.title),
        ("description", short(&spec.description, 400)),
        ("status", view::task_status(task.status)),
        ("error", short(&task.error, 400)),
        ("ready in", waits),
        ("priority", spec.priority.map_or_else(String::new, view::priority)),
        ("requires", spec.required_capabilities.join(", ")),
        ("only for agent", spec.agent_id),
        ("claimed by", claim.unwrap_or_default()),
        ("attempts", format!("{}, {} failed, {max_retries} retries allowed", task.attempts, task.failures)),
        ("depends on", spec.dependencies.join(", ")),
        ("still open", open_dependencies.join(", ")),
        ("waited for by", dependents.join(", ")),
        ("project", spec.project),
        ("epic", spec.epic),
        ("feature", spec.feature),
        ("labels", labels.join(", ")),
        ("key", spec.idempotency_key),
        ("created", ago(task.created_at_ms)),
        ("changed", ago(task.updated_at_ms)),
        ("ended", ago(task.finished_at_ms)),
        ("payload", short(&view::bytes_line(&spec.payload), 400)),
        ("result", short(&view::bytes_line(&task.result), 400)),
    ])
}

fn attempt_table(attempts: &[Attempt]) -> String {
    let now = now_ms();
    let header =
        ["task", "attempt", "agent", "type", "outcome", "token", "started", "took", "exit", "late result", "error"];
    let rows = attempts.iter().map(|attempt| attempt_row(attempt, now)).collect();
    table(header, rows, "no attempts")
}

fn attempt_row(attempt: &Attempt, now_ms: u64) -> [String; 11] {
    let end = if attempt.ended_at_ms == 0 { now_ms } else { attempt.ended_at_ms };
    [
        attempt.task_id.clone(),
        attempt.number.to_string(),
        attempt.agent_id.clone(),
        or_dash(&attempt.agent_type),
        view::attempt_outcome(attempt.outcome),
        attempt.token.to_string(),
        age(attempt.started_at_ms, now_ms),
        span(end.saturating_sub(attempt.started_at_ms)),
        attempt.exit_code.map_or_else(|| "-".into(), |code| code.to_string()),
        if attempt.orphan.is_some() { "yes".into() } else { "-".into() },
        short(&or_dash(&attempt.error), 60),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_end_at_the_limit() {
        let paging = |limit, all| Paging { limit, all, page_token: None };
        assert_eq!(paging(100, false).next_limit(0), Some(100));
        assert_eq!(paging(2_500, false).next_limit(0), Some(1_000));
        assert_eq!(paging(2_500, false).next_limit(2_000), Some(500));
        assert_eq!(paging(100, false).next_limit(100), None);
        assert_eq!(paging(100, true).next_limit(7_000), Some(1_000));
    }

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

    #[test]
    fn facts_leave_out_what_is_not_there() {
        let text = task_facts(&Task { id: "t1".into(), ..Default::default() }, &[], &["t2".into()]);
        assert!(text.contains("waited for by") && text.contains("t2"), "{text}");
        assert!(!text.contains("payload") && !text.contains("claimed by"), "{text}");
    }
}
