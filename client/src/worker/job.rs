//! One task to do, as its handler sees it.

use std::time::Duration;

use quorate_proto::v1::{SubmitTasksResponse, Task, TaskSpec};

use super::stop::StopSignal;
use crate::error::Error;
use crate::tasks::Tasks;

/// One task to do.
#[derive(Debug)]
pub struct Job {
    /// The task, with its claim.
    pub task: Task,
    tasks: Tasks,
    stop: StopSignal,
}

impl Job {
    pub(super) fn new(task: Task, tasks: Tasks, stop: StopSignal) -> Self {
        Job { task, tasks, stop }
    }

    /// Resolves when the job should stop: its task was cancelled or ran out of time, or the lease is lost. While there is
    /// grace left, stop and return [`Done::Cancelled`](crate::Done::Cancelled), or something better if it is done by
    /// then; afterwards whatever the handler still does will not count.
    pub async fn cancelled(&self) {
        self.stop.given().await;
    }

    /// Why the job should stop, once it should.
    pub fn cancel_reason(&self) -> Option<String> {
        self.stop.reason()
    }

    /// How long a job that should stop still has to do so and say so. Zero: it was not asked to stop, or is fenced
    /// already.
    pub fn grace_left(&self) -> Duration {
        self.stop.grace_left()
    }

    /// The fencing token: pass it on to whatever the task writes to, and let that refuse older ones.
    pub fn token(&self) -> u64 {
        self.task.claim.as_ref().map_or(0, |claim| claim.token)
    }

    /// What the last reviewer wants changed; empty unless the task was sent back.
    pub fn feedback(&self) -> &str {
        &self.task.feedback
    }

    /// Whether this is a review: it ends with [`Done::accept`](crate::Done::accept) or
    /// [`Done::rework`](crate::Done::rework).
    pub fn is_review(&self) -> bool {
        self.review_of().is_some()
    }

    /// The task that this one reviews.
    pub fn review_of(&self) -> Option<&str> {
        Some(self.task.review_of.as_str()).filter(|id| !id.is_empty())
    }

    /// Adds tasks to the graph, as children of this one. Each needs an idempotency key, the same in every attempt at this
    /// task: a key that is known stands for the child that exists.
    pub async fn spawn(&self, specs: Vec<TaskSpec>) -> Result<SubmitTasksResponse, Error> {
        self.tasks.spawn(&self.task.id, self.token(), specs, false).await
    }

    /// As [`Job::spawn`]; whoever waits for this task waits for its children too.
    pub async fn spawn_awaited(&self, specs: Vec<TaskSpec>) -> Result<SubmitTasksResponse, Error> {
        self.tasks.spawn(&self.task.id, self.token(), specs, true).await
    }
}
