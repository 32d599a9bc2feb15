//! Finishing: what a worker says came of its attempt, and what follows from it in the same command.

use quorate_proto::v1::{
    AgentStatus, AttemptOutcome, Claim, FinishKind, FinishTaskRequest, FinishTaskResponse, RejectionCode, Task,
    TaskStatus,
};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::attempts::{self, Ending, RATE_LIMITED};
use super::claim::{self, MAX_CLAIM};
use super::moves::{self, Next};
use super::{aftermath, body, evidence, load, policy, retry_allowed, review};
use crate::error::{Fatal, Outcome, invalid, not_found, precondition, reject};
use crate::faults::{Bug, planted};
use crate::state::retries::policy as retry;
use crate::state::{Ctx, Out, Rooms, agents, breakers, check_id};

/// The largest result.
pub const MAX_RESULT_BYTES: usize = 1_048_576;
/// The longest pause that a provider may ask for: a day.
const MAX_RETRY_AFTER_MS: u64 = 86_400_000;
/// How long a task rests that an agent with a standing order has handed back.
const RELEASE_PAUSE_MS: u64 = 1_000;

/// Ends an attempt, if its token is still the task's; else keeps what it says as an orphan.
pub fn finish(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    req: FinishTaskRequest,
) -> Outcome<FinishTaskResponse> {
    let outcome = outcome_of(&req)?;
    check_shape(&req)?;
    let Some(mut task) = load(&*out.txn, &req.task_id)? else {
        return Err(not_found("task_id", format!("no task {:?} exists", req.task_id)));
    };
    let claim = match &task.claim {
        Some(claim) if claim.token == req.token || planted(Bug::FinishUnderOldToken) => claim.clone(),
        _ => return late(out, ctx, &task, &req, outcome),
    };
    check_against(&task, &req, outcome)?;
    attempts::end(rooms, out, ctx, &task, &claim, ending(&req, outcome))?;
    throttle(rooms, out, ctx, &task, &req);
    let mut next = consequence(&mut task, ctx, &req, &claim);
    if matches!(next, Next::Ready) && stands(rooms, &claim) {
        // It would be pushed back at once, and handed back at once, for as long as nobody else can do it.
        next = Next::Pending { ready_at_ms: ctx.now_ms.saturating_add(RELEASE_PAUSE_MS) };
    }
    if outcome == AttemptOutcome::Completed {
        body::put_result(out, &task, req.result.clone())?;
    }
    moves::move_to(rooms, out, ctx, &mut task, next)?;
    match task.status() {
        TaskStatus::Reported => review::begin(rooms, out, ctx, &mut task)?,
        TaskStatus::Completed if !task.review_of.is_empty() => {
            review::review_completed(rooms, out, ctx, &task, &claim.agent_id, &req)?;
        }
        _ => {}
    }
    let unblocked = if rooms.tasks.aftermath.is_empty() { 0 } else { aftermath::tell(rooms, out, ctx)?.ready };
    // Whoever hands a task back does not get it again in the same step: somebody else may be able to do it.
    let claim_next = if outcome == AttemptOutcome::Released { 0 } else { req.claim_next };
    let (next, draining) = hand_over(rooms, out, ctx, &claim, claim_next)?;
    Ok(FinishTaskResponse { status: task.status, fenced: false, next, draining, rev: ctx.rev, unblocked })
}

/// Whether work is pushed to the agent that hands this back.
fn stands(rooms: &Rooms, claim: &Claim) -> bool {
    rooms.agents.get(&claim.agent_id).is_some_and(|agent| agent.standing && claim::works(agent))
}

fn check_shape(req: &FinishTaskRequest) -> Outcome<()> {
    if req.result.len() > MAX_RESULT_BYTES {
        let message = format!("result must be at most {MAX_RESULT_BYTES} bytes; got {}", req.result.len());
        return Err(invalid("result", message));
    }
    if !req.error_class.is_empty() {
        check_id("error_class", &req.error_class)?;
    }
    if req.retry_after_ms > MAX_RETRY_AFTER_MS {
        let message = format!("retry_after_ms must be at most {MAX_RETRY_AFTER_MS}; got {}", req.retry_after_ms);
        return Err(invalid("retry_after_ms", message));
    }
    evidence::check_items(req)
}

/// What only the task shows to be wrong. The attempt goes on, and may finish again.
fn check_against(task: &Task, req: &FinishTaskRequest, outcome: AttemptOutcome) -> Outcome<()> {
    match outcome {
        // A cancelled task needs no evidence: nobody will build on it.
        AttemptOutcome::Completed if task.cancel.is_none() => {
            evidence::require(task, req)?;
            review::check_verdict(task, req)
        }
        AttemptOutcome::Cancelled if task.cancel.is_none() => {
            Err(precondition("kind", format!("nobody asked for task {:?} to be cancelled", task.id)))
        }
        _ => Ok(()),
    }
}

/// A provider asked for a pause: everybody who uses it hears of it.
fn throttle(rooms: &mut Rooms, out: &mut Out<'_, '_>, ctx: &Ctx, task: &Task, req: &FinishTaskRequest) {
    if req.kind() == FinishKind::Failed && req.error_class == RATE_LIMITED && req.retry_after_ms > 0 {
        for name in task.spec.iter().flat_map(|spec| &spec.uses) {
            breakers::throttle(&mut rooms.breakers, out, ctx, name, req.retry_after_ms);
        }
    }
}

/// The attempt's outcome that a kind of finish stands for.
fn outcome_of(req: &FinishTaskRequest) -> Outcome<AttemptOutcome> {
    match FinishKind::try_from(req.kind) {
        Ok(FinishKind::Completed) => Ok(AttemptOutcome::Completed),
        Ok(FinishKind::Failed | FinishKind::FailedPermanently) => Ok(AttemptOutcome::Failed),
        Ok(FinishKind::Released) => Ok(AttemptOutcome::Released),
        Ok(FinishKind::Cancelled) => Ok(AttemptOutcome::Cancelled),
        Ok(FinishKind::Unspecified) | Err(_) => {
            Err(invalid("kind", "kind must be COMPLETED, FAILED, FAILED_PERMANENTLY, RELEASED or CANCELLED"))
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
        error_class: if outcome == AttemptOutcome::Failed { req.error_class.clone() } else { String::new() },
        acknowledged: outcome == AttemptOutcome::Cancelled,
    }
}

/// Notes on the task what the finish says, and tells where it goes.
fn consequence(task: &mut Task, ctx: &Ctx, req: &FinishTaskRequest, claim: &Claim) -> Next {
    if let Some(notice) = task.cancel.clone() {
        // However the attempt ended: the task was to stop, and those that wait for it must not go on.
        task.error = notice.reason;
        return Next::Ended(TaskStatus::Cancelled);
    }
    match req.kind() {
        FinishKind::Completed => {
            task.error.clear();
            task.error_class.clear();
            task.artifacts = req.artifacts.clone();
            task.checks = req.checks.clone();
            task.author_agent_id = claim.agent_id.clone();
            task.reviews.clear();
            match evidence::reviews_missing(task) {
                (0, 0) => Next::Ended(TaskStatus::Completed),
                _ => {
                    task.reported_attempt = claim.attempt;
                    Next::Reported
                }
            }
        }
        FinishKind::Released => Next::Ready,
        kind => failed(task, ctx, req, kind == FinishKind::FailedPermanently),
    }
}

fn failed(task: &mut Task, ctx: &Ctx, req: &FinishTaskRequest, permanently: bool) -> Next {
    task.error = match req.error.as_str() {
        "" => "the attempt failed".to_owned(),
        error => attempts::clip(error),
    };
    task.error_class = req.error_class.clone();
    if !permanently && req.error_class == RATE_LIMITED && req.retry_after_ms > 0 {
        // The provider's pause is nobody's failure.
        return Next::Pending { ready_at_ms: ctx.now_ms.saturating_add(req.retry_after_ms) };
    }
    task.failures += 1;
    if permanently {
        return Next::Ended(TaskStatus::Failed);
    }
    after_failure(task, ctx, TaskStatus::Failed)
}

/// A retry after its delay, while the policy allows one for this kind of failure; else the end.
pub(super) fn after_failure(task: &Task, ctx: &Ctx, end: TaskStatus) -> Next {
    if !retry_allowed(task) || retry::is_final(&policy(task), &task.error_class) {
        return Next::Ended(end);
    }
    // Tasks that fail in one command draw differently from its chance.
    let own = xxh3_64_with_seed(task.id.as_bytes(), ctx.entropy);
    let delay_ms = retry::delay_ms(&policy(task), task.failures.saturating_sub(1), own);
    Next::Pending { ready_at_ms: ctx.now_ms.saturating_add(delay_ms) }
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
