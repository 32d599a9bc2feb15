//! Due things: attempts that ran too long or did not stop in their grace, tasks that took or waited too long, delays
//! that are over.

use std::collections::BTreeSet;
use std::sync::Arc;

use quorate_proto::v1::{AttemptOutcome, Task, TaskStatus};

use super::attempts::{self, Ending};
use super::moves::{self, Next};
use super::{cancel, finish, load_live, release, review};
use crate::effect::Effect;
use crate::error::Fatal;
use crate::state::{Ctx, Out, Rooms, agents};

/// The error class of an attempt that ran too long.
pub(super) const TIMEOUT: &str = "timeout";

/// Does what is due, at most `limit` things, and tells how many it did. The rest stays due.
pub fn run_due(rooms: &mut Rooms, out: &mut Out<'_, '_>, ctx: &Ctx, limit: usize) -> Result<usize, Fatal> {
    // First what ends a task for good: it must not be tried again just before.
    let expired = first_due(&rooms.tasks.expiries, ctx, limit);
    for id in &expired {
        expire(rooms, out, ctx, id)?;
    }
    let overdue = first_due(&rooms.tasks.deadlines, ctx, limit - expired.len());
    for id in &overdue {
        fence_or_time_out(rooms, out, ctx, id)?;
    }
    let ripe = first_due(&rooms.tasks.delayed, ctx, limit - expired.len() - overdue.len());
    for id in &ripe {
        let mut task = load_live(&*out.txn, id)?;
        moves::move_to(rooms, out, ctx, &mut task, Next::Ready)?;
    }
    Ok(expired.len() + overdue.len() + ripe.len())
}

fn first_due(timers: &BTreeSet<(u64, Arc<str>)>, ctx: &Ctx, limit: usize) -> Vec<Arc<str>> {
    (timers.iter()).take_while(|(at_ms, _)| *at_ms <= ctx.now_ms).take(limit).map(|(_, id)| Arc::clone(id)).collect()
}

/// The task as a whole took too long, or nobody took it in time.
fn expire(rooms: &mut Rooms, out: &mut Out<'_, '_>, ctx: &Ctx, task_id: &str) -> Result<(), Fatal> {
    let mut task = load_live(&*out.txn, task_id)?;
    if let Some(notice) = task.cancel.clone() {
        return cancel::fence(rooms, out, ctx, &mut task, &notice.reason);
    }
    if task.status() == TaskStatus::Reported {
        review::drop_open_reviews(rooms, out, ctx, &task)?;
    }
    task.error_class = TIMEOUT.to_owned();
    let (queue_ms, total_ms) = task.spec.as_ref().map_or((0, 0), |spec| (spec.queue_timeout_ms, spec.total_timeout_ms));
    let whole = total_ms > 0 && task.clock_from_ms.saturating_add(total_ms) <= ctx.now_ms;
    task.error = match whole {
        true => format!("did not end within {total_ms} ms"),
        false => format!("no worker took it within {queue_ms} ms"),
    };
    let claim = task.claim.clone();
    if let Some(claim) = &claim {
        let error = task.error.clone();
        attempts::end(rooms, out, ctx, &task, claim, Ending::classed(AttemptOutcome::TimedOut, &error, TIMEOUT))?;
        revoke(out, &task, &error);
    }
    out.effects.push(Effect::TaskTimedOut { task_id: task.id.clone(), token: 0 });
    moves::move_to(rooms, out, ctx, &mut task, Next::Ended(TaskStatus::TimedOut))?;
    match claim {
        Some(claim) => agents::give_back(rooms, out, ctx, &claim.agent_id, 1),
        None => Ok(()),
    }
}

/// The attempt is fenced, whatever its worker still does.
fn fence_or_time_out(rooms: &mut Rooms, out: &mut Out<'_, '_>, ctx: &Ctx, task_id: &str) -> Result<(), Fatal> {
    let mut task = load_live(&*out.txn, task_id)?;
    if let Some(notice) = task.cancel.clone() {
        return cancel::fence(rooms, out, ctx, &mut task, &notice.reason);
    }
    let claim = release::running_claim(&task)?;
    let allowed_ms = claim.deadline_ms.saturating_sub(claim.claimed_at_ms);
    task.error = format!("attempt {} ran longer than {allowed_ms} ms", claim.attempt);
    task.error_class = TIMEOUT.to_owned();
    let ending = Ending::classed(AttemptOutcome::TimedOut, &task.error, TIMEOUT);
    attempts::end(rooms, out, ctx, &task, &claim, ending)?;
    revoke(out, &task, &task.error);
    out.effects.push(Effect::TaskTimedOut { task_id: task.id.clone(), token: claim.token });
    task.failures += 1;
    let next = finish::after_failure(&task, ctx, TaskStatus::TimedOut);
    moves::move_to(rooms, out, ctx, &mut task, next)?;
    agents::give_back(rooms, out, ctx, &claim.agent_id, 1)
}

/// Tells the worker that its attempt counts no more.
pub(super) fn revoke(out: &mut Out<'_, '_>, task: &Task, reason: &str) {
    if let Some(claim) = &task.claim {
        out.effects.push(Effect::Revoked {
            agent_id: claim.agent_id.clone(),
            task_id: task.id.clone(),
            token: claim.token,
            grace_ms: 0,
            reason: reason.to_owned(),
        });
    }
}
