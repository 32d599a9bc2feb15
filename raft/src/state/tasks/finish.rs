//! Finishing: what a worker says came of its attempt, and what follows from it in the same command.

use quorate_proto::v1::{
    AgentStatus, AttemptOutcome, Claim, FinishKind, FinishTaskRequest, FinishTaskResponse, RejectionCode, Task,
    TaskStatus,
};

use super::attempts::{self, Ending};
use super::claim::{self, MAX_CLAIM};
use super::moves::{self, Next};
use super::{load, retry};
use crate::error::{Fatal, Outcome, invalid, not_found, reject};
use crate::state::{Ctx, Out, Rooms, agents};

/// The largest result.
pub const MAX_RESULT_BYTES: usize = 1_048_576;

/// Ends an attempt, if its token is still the task's; else keeps what it says as an orphan.
pub fn finish(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    req: FinishTaskRequest,
) -> Outcome<FinishTaskResponse> {
    let outcome = outcome_of(&req)?;
    if req.result.len() > MAX_RESULT_BYTES {
        let message = format!("result must be at most {MAX_RESULT_BYTES} bytes; got {}", req.result.len());
        return Err(invalid("result", message));
    }
    let Some(mut task) = load(&*out.txn, &req.task_id)? else {
        return Err(not_found("task_id", format!("no task {:?} exists", req.task_id)));
    };
    let claim = match &task.claim {
        Some(claim) if claim.token == req.token => claim.clone(),
        _ => return late(out, ctx, &task, &req, outcome),
    };
    attempts::end(out, ctx, &task.id, &claim, ending(&req, outcome))?;
    let next = consequence(&mut task, ctx, &req);
    moves::move_to(&mut rooms.tasks, out, ctx, &mut task, next)?;
    let unblocked = match task.status() {
        TaskStatus::Completed => moves::dependency_completed(rooms, out, ctx, &task.id)?,
        _ => 0,
    };
    // Whoever hands a task back does not get it again in the same step: somebody else may be able to do it.
    let claim_next = if outcome == AttemptOutcome::Released { 0 } else { req.claim_next };
    let (next, draining) = hand_over(rooms, out, ctx, &claim, claim_next)?;
    Ok(FinishTaskResponse { status: task.status, fenced: false, next, draining, rev: ctx.rev, unblocked })
}

/// The attempt's outcome that a kind of finish stands for.
fn outcome_of(req: &FinishTaskRequest) -> Outcome<AttemptOutcome> {
    match FinishKind::try_from(req.kind) {
        Ok(FinishKind::Completed) => Ok(AttemptOutcome::Completed),
        Ok(FinishKind::Failed | FinishKind::FailedPermanently) => Ok(AttemptOutcome::Failed),
        Ok(FinishKind::Released) => Ok(AttemptOutcome::Released),
        Ok(FinishKind::Unspecified) | Err(_) => {
            Err(invalid("kind", "kind must be COMPLETED, FAILED, FAILED_PERMANENTLY or RELEASED"))
        }
    }
}

fn ending(req: &FinishTaskRequest, outcome: AttemptOutcome) -> Ending {
    Ending {
        outcome,
        exit_code: req.exit_code,
        stdout: req.stdout.clone(),
        stderr: req.stderr.clone(),
        error: attempts::clip(&req.error),
    }
}

/// Notes on the task what the finish says, and tells where it goes.
fn consequence(task: &mut Task, ctx: &Ctx, req: &FinishTaskRequest) -> Next {
    match req.kind() {
        FinishKind::Completed => {
            task.result = req.result.clone();
            task.error.clear();
            Next::Ended(TaskStatus::Completed)
        }
        FinishKind::Released => Next::Ready,
        kind => {
            task.failures += 1;
            task.error = match req.error.as_str() {
                "" => "the attempt failed".to_owned(),
                error => attempts::clip(error),
            };
            if kind == FinishKind::Failed {
                after_failure(task, ctx, TaskStatus::Failed)
            } else {
                Next::Ended(TaskStatus::Failed)
            }
        }
    }
}

/// A retry after its delay, while the policy allows one; else the end.
pub(super) fn after_failure(task: &Task, ctx: &Ctx, end: TaskStatus) -> Next {
    if retry::allowed(task) {
        Next::Pending { ready_at_ms: ctx.now_ms.saturating_add(retry::delay_ms(task, ctx.entropy)) }
    } else {
        Next::Ended(end)
    }
}

/// A finish whose token is not the running one. The same finish sent twice is no conflict and changes nothing.
fn late(
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    task: &Task,
    req: &FinishTaskRequest,
    outcome: AttemptOutcome,
) -> Outcome<FinishTaskResponse> {
    let Some(attempt) = attempts::find(&*out.txn, task, req.token)? else {
        let message = format!("no attempt of task {:?} ever had the token {}", task.id, req.token);
        return Err(reject(RejectionCode::Aborted, "token", message));
    };
    let fenced = attempt.outcome() != outcome;
    if fenced {
        attempts::keep_orphan(out, ctx, attempt, req);
    }
    Ok(FinishTaskResponse { status: task.status, fenced, rev: ctx.rev, ..FinishTaskResponse::default() })
}

/// Takes the ended attempt off the agent's load, and gives it more work in the same step if it asked for some.
///
/// An agent that cannot take more, or belongs to another session by now, is given none: its finish counts all the same.
fn hand_over(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    ended: &Claim,
    claim_next: u32,
) -> Result<(Vec<Task>, bool), Fatal> {
    let (limit, draining) = match rooms.agents.get(&ended.agent_id) {
        Some(agent) if claim::works(agent) && agent.session_id == ended.session_id => {
            (claim_next.min(MAX_CLAIM).min(claim::free_capacity(agent, 1)), false)
        }
        Some(agent) => (0, agent.status() == AgentStatus::Draining),
        None => (0, false),
    };
    let next = claim::grant(rooms, out, ctx, &ended.agent_id, limit)?;
    agents::shift_load(rooms, out, ctx, &ended.agent_id, 1, claim::count(&next))?;
    Ok((next, draining))
}
