//! Due things: attempts that ran too long, and delays that are over.

use std::collections::BTreeSet;
use std::sync::Arc;

use quorate_proto::v1::{AttemptOutcome, TaskStatus};

use super::attempts::{self, Ending};
use super::moves::{self, Next};
use super::{finish, load_live, release};
use crate::error::Fatal;
use crate::state::{Ctx, Out, Rooms, agents};

/// Does what is due, at most `limit` things, and tells how many it did. The rest stays due.
pub fn run_due(rooms: &mut Rooms, out: &mut Out<'_, '_>, ctx: &Ctx, limit: usize) -> Result<usize, Fatal> {
    let overdue = first_due(&rooms.tasks.deadlines, ctx, limit);
    for id in &overdue {
        time_out(rooms, out, ctx, id)?;
    }
    let ripe = first_due(&rooms.tasks.delayed, ctx, limit - overdue.len());
    for id in &ripe {
        let mut task = load_live(&*out.txn, id)?;
        moves::move_to(&mut rooms.tasks, out, ctx, &mut task, Next::Ready)?;
    }
    Ok(overdue.len() + ripe.len())
}

fn first_due(timers: &BTreeSet<(u64, Arc<str>)>, ctx: &Ctx, limit: usize) -> Vec<Arc<str>> {
    (timers.iter()).take_while(|(at_ms, _)| *at_ms <= ctx.now_ms).take(limit).map(|(_, id)| Arc::clone(id)).collect()
}

/// The attempt is fenced, whatever its worker still does.
fn time_out(rooms: &mut Rooms, out: &mut Out<'_, '_>, ctx: &Ctx, task_id: &str) -> Result<(), Fatal> {
    let mut task = load_live(&*out.txn, task_id)?;
    let claim = release::running_claim(&task)?;
    let allowed_ms = claim.deadline_ms.saturating_sub(claim.claimed_at_ms);
    task.error = format!("attempt {} ran longer than {allowed_ms} ms", claim.attempt);
    attempts::end(out, ctx, task_id, &claim, Ending::of(AttemptOutcome::TimedOut, &task.error))?;
    task.failures += 1;
    let next = finish::after_failure(&task, ctx, TaskStatus::TimedOut);
    moves::move_to(&mut rooms.tasks, out, ctx, &mut task, next)?;
    agents::give_back(rooms, out, ctx, &claim.agent_id, 1)
}
