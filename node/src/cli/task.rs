//! `quorate task`: submit tasks, follow them, fetch what came of them, step in.
//!
//! ```text
//!   show lists       one task as facts, many as rows, attempts
//!   wait             until the end, and the result
//!   decide cancel    a person's word: accept, rework, stop
//!   waits tree       what waits for what: reasons, dependencies, circles; the whole family drawn
//!   pages            long lists, call by call
//! ```

mod cancel;
mod decide;
mod lists;
mod pages;
mod show;
mod tree;
mod wait;
mod waits;

use clap::Subcommand;
use quorate_client::v1::SubmitTasksResponse;
use serde_json::json;

pub(crate) use self::lists::attempt_table;
pub(crate) use self::pages::{Pages, Paging};
pub(crate) use self::show::{TASK_HEADER, task_facts, task_rows};
use super::exit::Failure;
use super::submit::{self, SubmitArgs};
use super::{Context, view};

/// `quorate task …`
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Submit tasks from a file or one task from flags; prints their ids
    #[command(after_help = submit::EXAMPLES)]
    Submit(Box<SubmitArgs>),
    /// Show one task: what it needs, where it stands, what came of it
    #[command(visible_alias = "status")]
    Show {
        /// The task
        #[arg(value_name = "ID")]
        id: String,
    },
    /// List tasks, by id; payloads and results are left out
    #[command(after_help = lists::LIST_EXAMPLES)]
    List(lists::ListArgs),
    /// Write the result of a task to stdout, byte for byte
    Result {
        /// The task: completed, or reported and still to be accepted
        #[arg(value_name = "ID")]
        id: String,
    },
    /// List attempts, of one task or over all of them
    Attempts(lists::AttemptsArgs),
    /// Wait until tasks have ended; exit code 1 unless all are completed within --timeout (10m unless given)
    Wait {
        /// The tasks
        #[arg(value_name = "ID", required = true)]
        ids: Vec<String>,
    },
    /// Say why a task is not running, or what it is doing
    #[command(after_help = waits::WHY_EXAMPLES)]
    Why {
        /// The task
        #[arg(value_name = "ID")]
        id: String,
    },
    /// Draw a task with what it waits for and what it spawned
    #[command(after_help = tree::EXAMPLES)]
    Tree(tree::TreeArgs),
    /// Accept a reported task, as a person
    #[command(after_help = decide::EXAMPLES)]
    Accept(decide::AcceptArgs),
    /// Send a reported task back to be done again, as a person
    #[command(after_help = decide::EXAMPLES)]
    Rework(decide::ReworkArgs),
    /// Cancel a task and what it spawned; what runs is told to stop, and fenced after its grace
    #[command(after_help = cancel::EXAMPLES)]
    Cancel(cancel::CancelArgs),
    /// Make a task that is not running wait for more
    #[command(after_help = waits::DEPEND_EXAMPLES)]
    Depend(waits::DependArgs),
    /// List the circles among waiting tasks, or break them
    #[command(after_help = waits::DEADLOCKS_EXAMPLES)]
    Deadlocks(waits::DeadlocksArgs),
}

/// Does what the arguments say.
pub(crate) async fn run(context: &Context, command: Command) -> Result<(), Failure> {
    match command {
        Command::Submit(args) => submit(context, *args).await,
        Command::Show { id } => show::run(context, &id).await,
        Command::List(args) => lists::tasks(context, args).await,
        Command::Result { id } => wait::result(context, &id).await,
        Command::Attempts(args) => lists::attempts(context, args).await,
        Command::Wait { ids } => wait::run(context, &ids).await,
        Command::Why { id } => waits::why(context, &id).await,
        Command::Tree(args) => tree::run(context, &args).await,
        Command::Accept(args) => decide::accept(context, args).await,
        Command::Rework(args) => decide::rework(context, args).await,
        Command::Cancel(args) => cancel::run(context, args).await,
        Command::Depend(args) => waits::depend(context, args).await,
        Command::Deadlocks(args) => waits::deadlocks(context, &args).await,
    }
}

async fn submit(context: &Context, args: SubmitArgs) -> Result<(), Failure> {
    let request = submit::request(args).await?;
    let answer = context.client.tasks().submit_with(request).await?;
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
