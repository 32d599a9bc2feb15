//! Tasks that wait for each other: submitted in graphs, again and again under the same keys, and worked off by workers
//! of which some fail, some die, and some wake up after their session has ended and finish under the old token.
//!
//! - `submitter`: every third worker. `performer`: the others. `drain`: what is left when they have stopped.
//!
//! Deliberately absent: judgement; see [`crate::check::tasks`], which also says what the operations look like.

mod drain;
mod performer;
mod submitter;

use std::time::Duration;

use anyhow::Result;
use futures::future::BoxFuture;
use quorate_client::Error;
use quorate_client::v1::RejectionCode;

use super::{Context, Workload};
use crate::check::Checker;
use crate::record::Answer;

/// One worker in so many submits.
const SUBMITTERS: u64 = 3;
/// How long a call may take with all its retries.
const PATIENCE: Duration = Duration::from_secs(2);
/// The title of a task that never succeeds.
const DOOMED: &str = "doomed";

/// The workload of tasks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tasks;

impl Tasks {
    /// There is one kind.
    pub fn new() -> Self {
        Self
    }
}

impl Workload for Tasks {
    fn name(&self) -> &'static str {
        "tasks"
    }

    fn about(&self) -> &'static str {
        "graphs of tasks, workers that fail, die and oversleep: none lost, each completed once, none before its parents"
    }

    fn work(&self, context: Context, worker: u64) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            if worker.is_multiple_of(SUBMITTERS) {
                submitter::submit(context, worker).await
            } else {
                performer::perform(context, worker).await
            }
        })
    }

    fn finish(&self, context: Context) -> BoxFuture<'_, Result<()>> {
        Box::pin(drain::finish(context))
    }

    fn checkers(&self) -> Vec<Box<dyn Checker>> {
        vec![Box::new(crate::check::tasks::Tasks::new())]
    }
}

/// The object that all operations are about.
fn queue(context: &Context) -> String {
    format!("{}-tasks", context.prefix)
}

/// What a worker must offer to do these tasks, and no others.
fn capability(context: &Context) -> String {
    format!("{}-work", context.prefix)
}

/// Of the workers of this run, and of no others.
fn agent_type(context: &Context) -> String {
    format!("{}-worker", context.prefix)
}

/// What an error says about the effect of a whole call. The library sends again what is safe to send again, so a
/// refusal may be of the second delivery, and the first taken: the session ended in between, or the disk became full.
fn answer_of(error: &Error) -> Answer {
    match error {
        Error::Rejected { code, .. } if *code != RejectionCode::InvalidArgument => Answer::Info,
        error => Answer::of_error(error),
    }
}
