//! Intervening: cancel, decide, add dependencies, redrive, purge, resolve deadlocks.
//!
//! The cluster recognizes these when they come again only by a request id. With one (see [`Session::next_request`]) they
//! are repeated until there is an answer. Without, one whose outcome is unknown is reported as such, except where the
//! task itself tells whether it happened: a cancel and added dependencies.
//!
//! [`Session::next_request`]: crate::Session::next_request

use quorate_proto::v1::{
    AddDependenciesRequest, AddDependenciesResponse, CancelTaskRequest, CancelTaskResponse, DecideTaskRequest,
    DecideTaskResponse, PurgeTasksRequest, PurgeTasksResponse, RedriveTasksRequest, RedriveTasksResponse,
    RejectionCode, ResolveDeadlocksRequest, ResolveDeadlocksResponse, Task, TaskStatus,
};

use super::{Tasks, stub};
use crate::call::Plan;
use crate::error::Error;
use crate::requests::{judged, plan};

impl Tasks {
    /// Ends a task whatever it is doing, and everything it spawned. A running attempt has its grace to stop. A task that
    /// is cancelled already, or stopping, counts as success.
    pub async fn cancel(&self, task_id: &str, reason: &str) -> Result<CancelTaskResponse, Error> {
        let (task_id, reason) = (task_id.to_owned(), reason.to_owned());
        self.cancel_with(CancelTaskRequest { task_id, reason, ..CancelTaskRequest::default() }).await
    }

    /// As [`Tasks::cancel`], with every option.
    pub async fn cancel_with(&self, request: CancelTaskRequest) -> Result<CancelTaskResponse, Error> {
        let cancelled = self
            .client
            .call_in_full(Plan::SAFE, |channel| {
                let request = request.clone();
                async move { stub(channel).cancel(request).await }
            })
            .await;
        let error = match cancelled.result {
            Err(error) if is_precondition(&error) => error,
            other => return other,
        };
        // It has ended, perhaps by an earlier delivery of this very call.
        match self.get(&request.task_id).await {
            Ok(found) => {
                let task = found.task.filter(|task| is_cancelled(task, request.now)).ok_or(error)?;
                Ok(CancelTaskResponse { task: Some(task), rev: found.rev, ..CancelTaskResponse::default() })
            }
            Err(_) if cancelled.doubt => Err(in_doubt(&request.task_id, "has ended")),
            Err(_) => Err(error),
        }
    }

    /// A person accepts a reported task, or sends it back.
    pub async fn decide(&self, request: DecideTaskRequest) -> Result<DecideTaskResponse, Error> {
        let outcome = self
            .client
            .call_in_full(plan(request.request.as_ref()), |channel| {
                let request = request.clone();
                async move { stub(channel).decide(request).await }
            })
            .await;
        judged(outcome, request.request.is_some())
    }

    /// Makes a task that is not running wait for more. One that waits for all of it already counts as success.
    pub async fn add_dependencies(&self, request: AddDependenciesRequest) -> Result<AddDependenciesResponse, Error> {
        let added = self
            .client
            .call_in_full(Plan::SAFE, |channel| {
                let request = request.clone();
                async move { stub(channel).add_dependencies(request).await }
            })
            .await;
        let error = match added.result {
            Err(error) if added.doubt && is_precondition(&error) => error,
            other => return other,
        };
        // It may have gone on since an earlier delivery.
        match self.get(&request.task_id).await {
            Ok(found) => {
                let task = found.task.filter(|task| waits_for(task, &request.dependencies)).ok_or(error)?;
                Ok(AddDependenciesResponse { task: Some(task), rev: found.rev })
            }
            Err(_) => Err(in_doubt(&request.task_id, "takes no dependencies now")),
        }
    }

    /// Sends dead letters (tasks that failed or timed out) back to the queue, their failures forgotten.
    pub async fn redrive(&self, task_ids: Vec<String>) -> Result<RedriveTasksResponse, Error> {
        self.redrive_with(RedriveTasksRequest { task_ids, request: None }).await
    }

    /// As [`Tasks::redrive`], with a request id.
    pub async fn redrive_with(&self, request: RedriveTasksRequest) -> Result<RedriveTasksResponse, Error> {
        let outcome = self
            .client
            .call_in_full(plan(request.request.as_ref()), |channel| {
                let request = request.clone();
                async move { stub(channel).redrive(request).await }
            })
            .await;
        judged(outcome, request.request.is_some())
    }

    /// Removes ended tasks with all that is kept of them. Cannot be undone.
    pub async fn purge(&self, task_ids: Vec<String>) -> Result<PurgeTasksResponse, Error> {
        self.purge_with(PurgeTasksRequest { task_ids, request: None }).await
    }

    /// As [`Tasks::purge`], with a request id.
    pub async fn purge_with(&self, request: PurgeTasksRequest) -> Result<PurgeTasksResponse, Error> {
        let outcome = self
            .client
            .call_in_full(plan(request.request.as_ref()), |channel| {
                let request = request.clone();
                async move { stub(channel).purge(request).await }
            })
            .await;
        judged(outcome, request.request.is_some())
    }

    /// Skips the lowest-priority task of each circle.
    pub async fn resolve_deadlocks(&self) -> Result<ResolveDeadlocksResponse, Error> {
        // A second delivery would do no harm, but its answer would not name what the first one resolved.
        self.client
            .call(Plan::UNSAFE, |channel| async move {
                stub(channel).resolve_deadlocks(ResolveDeadlocksRequest::default()).await
            })
            .await
    }
}

fn is_precondition(error: &Error) -> bool {
    matches!(error, Error::Rejected { code: RejectionCode::FailedPrecondition, .. })
}

/// Cancelled, or asked to stop. A cancel that grants no grace wants more than a request.
fn is_cancelled(task: &Task, now: bool) -> bool {
    task.status() == TaskStatus::Cancelled || (task.cancel.is_some() && !now)
}

fn waits_for(task: &Task, dependencies: &[String]) -> bool {
    let spec = task.spec.as_ref();
    spec.is_some_and(|spec| dependencies.iter().all(|dependency| spec.dependencies.contains(dependency)))
}

fn in_doubt(task_id: &str, what: &str) -> Error {
    Error::OutcomeUnknown { message: format!("task {task_id} {what}, perhaps by this very call") }
}

#[cfg(test)]
mod tests {
    use quorate_proto::v1::{CancelNotice, RequestId, TaskSpec};

    use super::*;
    use crate::call::Repeat;

    #[test]
    fn only_a_request_id_makes_them_safe_to_repeat() {
        assert_eq!(plan(None).repeat, Repeat::Unsafe);
        assert_eq!(plan(Some(&RequestId::default())).repeat, Repeat::Safe);
    }

    #[test]
    fn a_task_that_is_stopping_counts_as_cancelled_unless_it_should_stop_now() {
        let mut task = Task { cancel: Some(CancelNotice::default()), ..Task::default() };
        assert!(is_cancelled(&task, false) && !is_cancelled(&task, true));
        task.cancel = None;
        assert!(!is_cancelled(&task, false));
        task.set_status(TaskStatus::Cancelled);
        assert!(is_cancelled(&task, true));
    }

    #[test]
    fn dependencies_are_added_when_all_of_them_are_there() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let spec = TaskSpec { dependencies: names(&["a", "b", "c"]), ..TaskSpec::default() };
        let task = Task { spec: Some(spec), ..Task::default() };
        assert!(waits_for(&task, &names(&["c", "a"])));
        assert!(!waits_for(&task, &names(&["a", "d"])));
        assert!(!waits_for(&Task::default(), &names(&["a"])));
    }
}
