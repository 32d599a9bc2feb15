//! Cancelling: a running attempt is asked to stop and has a grace to say that it did; then it is fenced. What the task
//! spawned is cancelled with it.

use quorate_proto::v1::{
    AttemptOutcome, CancelNotice, CancelTaskRequest, CancelTaskResponse, RunningAttempt, Task, TaskStatus,
};

use super::aftermath::{self, Kind};
use super::attempts::{self, Ending};
use super::moves::{self, Next};
use super::{is_ended, load, release, review, status_name};
use crate::effect::Effect;
use crate::error::{Fatal, Outcome, not_found, precondition};
use crate::state::{Ctx, Out, Rooms, agents};

/// How long a worker has to stop, if the task does not say.
pub(super) const DEFAULT_GRACE_MS: u64 = 10_000;

/// Ends a live task, and by default what it spawned. Cancelling again changes nothing, unless it says `now`.
pub fn cancel(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    req: CancelTaskRequest,
) -> Outcome<CancelTaskResponse> {
    let Some(mut task) = load(&*out.txn, &req.task_id)? else {
        return Err(not_found("task_id", format!("no task {:?} exists", req.task_id)));
    };
    if is_ended(task.status()) {
        let message = format!("task {:?} is {} already", task.id, status_name(task.status()));
        return Err(precondition("task_id", message));
    }
    let reason = match req.reason.as_str() {
        "" => "cancelled".to_owned(),
        reason => attempts::clip(reason),
    };
    let running = cancel_one(rooms, out, ctx, &mut task, &reason, req.now, !req.only_this)?;
    let mut told = aftermath::tell(rooms, out, ctx)?;
    told.cancelled(None);
    let running = running.into_iter().chain(told.running).collect();
    Ok(CancelTaskResponse { task: Some(task), rev: ctx.rev, running, reached: told.cancelled })
}

/// Ends a task for another room, if it is live, with its usual grace.
pub fn cancel_internal(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    task_id: &str,
    reason: &str,
) -> Result<(), Fatal> {
    if let Some(mut task) = load(&*out.txn, task_id)?.filter(|task| !is_ended(task.status())) {
        cancel_one(rooms, out, ctx, &mut task, reason, false, true)?;
    }
    Ok(())
}

/// Cancels one live task; its children hear of it later in the command. Gives the attempt that was running.
pub(super) fn cancel_one(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    task: &mut Task,
    reason: &str,
    now: bool,
    children: bool,
) -> Result<Option<RunningAttempt>, Fatal> {
    if children && task.children > 0 {
        let kind = if now { Kind::ChildrenNow } else { Kind::Children };
        rooms.tasks.aftermath.add(ctx, kind, &task.id);
    }
    if task.status() == TaskStatus::Reported {
        review::drop_open_reviews(rooms, out, ctx, task)?;
    }
    let Some(claim) = task.claim.clone() else {
        task.error = reason.to_owned();
        moves::move_to(rooms, out, ctx, task, Next::Ended(TaskStatus::Cancelled))?;
        return Ok(None);
    };
    let grace_ms = match task.spec.as_ref().and_then(|spec| spec.cancel_grace_ms).unwrap_or(DEFAULT_GRACE_MS) {
        _ if now => 0,
        grace_ms => grace_ms,
    };
    let fence_at_ms = ctx.now_ms.saturating_add(grace_ms);
    let running = RunningAttempt {
        task_id: task.id.clone(),
        agent_id: claim.agent_id.clone(),
        token: claim.token,
        started_at_ms: claim.claimed_at_ms,
        fence_at_ms: task.cancel.as_ref().map_or(fence_at_ms, |notice| notice.fence_at_ms.min(fence_at_ms)),
    };
    if grace_ms == 0 {
        fence(rooms, out, ctx, task, reason)?;
    } else if task.cancel.is_none() {
        let notice = CancelNotice { reason: reason.to_owned(), requested_at_ms: ctx.now_ms, fence_at_ms };
        moves::notify_cancel(rooms, out, ctx, task, notice)?;
        out.effects.push(Effect::Revoked {
            agent_id: claim.agent_id,
            task_id: task.id.clone(),
            token: claim.token,
            grace_ms,
            reason: reason.to_owned(),
        });
    }
    Ok(Some(running))
}

/// The running attempt counts no more, whatever its worker still does.
pub(super) fn fence(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    task: &mut Task,
    reason: &str,
) -> Result<(), Fatal> {
    let claim = release::running_claim(task)?;
    task.error = reason.to_owned();
    attempts::end(rooms, out, ctx, task, &claim, Ending::of(AttemptOutcome::Cancelled, reason))?;
    moves::move_to(rooms, out, ctx, task, Next::Ended(TaskStatus::Cancelled))?;
    out.effects.push(Effect::Revoked {
        agent_id: claim.agent_id.clone(),
        task_id: task.id.clone(),
        token: claim.token,
        grace_ms: 0,
        reason: reason.to_owned(),
    });
    agents::give_back(rooms, out, ctx, &claim.agent_id, 1)
}
