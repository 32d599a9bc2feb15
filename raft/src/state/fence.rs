//! Fences: a write that happens only while a grant is held.
//!
//! A holder that was paused does not know that its time is up. So whatever it writes may carry the token of its grant,
//! and is refused once the grant is over, whether somebody else was granted it meanwhile or not. Locks, scope leases and
//! attempts of tasks give such tokens; every command may carry some, whichever room it is for.
//!
//! For the same reason a lock or a scope lease may be bound to an attempt, and ends with it: here it is seen to that the
//! attempt is held when the lock is taken.
//!
//! Source: fencing tokens as in Chubby's sequencers (Burrows, OSDI 2006), checked here instead of by each receiver.

use quorate_proto::v1::{
    AcquireLockRequest, AcquireLockResponse, AcquireScopeRequest, AcquireScopeResponse, Fence, FenceKind, RejectionCode,
};

use crate::error::{Outcome, invalid, precondition, reject};
use crate::faults::{Bug, planted};
use crate::state::{Ctx, Out, Rooms, check_id, locks, tasks};
use crate::storage::rows::Rows;

/// How many fences a command may carry.
pub const MAX_FENCES: usize = 8;

/// Refuses unless the grant is held under its token.
pub fn check(rooms: &Rooms, rows: &dyn Rows, fence: &Fence) -> Outcome<()> {
    let Fence { name, token, .. } = fence;
    let (what, held) = match fence.kind() {
        FenceKind::Lock => ("lock", rooms.locks.holds_lock(name, *token)),
        FenceKind::Scope => ("scope lease", rooms.locks.holds_scope(name, *token)),
        FenceKind::Task => ("task", tasks::holds(rows, name, *token)?),
        FenceKind::Unspecified => return Err(invalid("fence", "a fence must be for a lock, a scope or a task")),
    };
    if held || planted(Bug::FenceIgnored) {
        return Ok(());
    }
    let message = format!("{what} {name:?} is not held under token {token} any more");
    Err(reject(RejectionCode::Aborted, "fence", message))
}

/// Takes a lock, or a place in its line: the command's way in.
pub fn acquire_lock(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    req: AcquireLockRequest,
) -> Outcome<AcquireLockResponse> {
    check_attempt(&*out.txn, &req.task_id, req.task_token)?;
    locks::acquire(rooms, out, ctx, req)
}

/// Takes a scope lease: the command's way in.
pub fn acquire_scope(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    req: AcquireScopeRequest,
) -> Outcome<AcquireScopeResponse> {
    check_attempt(&*out.txn, &req.task_id, req.task_token)?;
    locks::acquire_scope(rooms, out, ctx, req)
}

fn check_attempt(rows: &dyn Rows, task_id: &str, token: u64) -> Outcome<()> {
    if task_id.is_empty() {
        return Ok(());
    }
    check_id("task_id", task_id)?;
    if tasks::holds(rows, task_id, token)? {
        return Ok(());
    }
    Err(precondition("task_token", format!("task {task_id:?} is not held under token {token}")))
}
