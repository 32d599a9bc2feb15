//! Ends that nobody asked this room for: a session's, an attempt's, and those that time brings. Nothing here can be
//! refused, and whatever gets free is granted to who is next in the same step.

use quorate_proto::v1::{LockHolder, LockWaiter};

use super::{line, scopes, store};
use crate::error::Fatal;
use crate::state::{Ctx, Out, Rooms};

/// How many holders and waiters a tick writes anew, those that stay as they are too, before it leaves the rest for the
/// next one: a lock is one row.
const REWRITTEN_AT_ONCE: usize = 16_384;

/// The session's owners hold nothing and wait for nothing any more.
pub fn session_ended(rooms: &mut Rooms, out: &mut Out<'_, '_>, ctx: &Ctx, session_id: &str) -> Result<(), Fatal> {
    for name in rooms.locks.parts.of_session(session_id) {
        let holds = |holder: &LockHolder| holder.session_id == session_id;
        end(rooms, out, ctx, &name, holds, |waiter| waiter.session_id == session_id);
    }
    for id in rooms.locks.scopes.of_session(session_id) {
        scopes::remove(rooms, out, &id);
    }
    Ok(())
}

/// What was held or waited for as part of the attempt ends with it.
pub fn attempt_ended(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    task_id: &str,
    token: u64,
) -> Result<(), Fatal> {
    for name in rooms.locks.parts.of_attempt(task_id, token) {
        let holds = |holder: &LockHolder| holder.task_id == task_id && holder.task_token == token;
        end(rooms, out, ctx, &name, holds, |waiter| waiter.task_id == task_id && waiter.task_token == token);
    }
    for id in rooms.locks.scopes.of_attempt(task_id, token) {
        scopes::remove(rooms, out, &id);
    }
    Ok(())
}

/// Ends what has expired, what was held for too long, and what waited for its time: at most `limit` locks, fewer if
/// many take part in them. The rest stays due. Tells how many locks it were.
pub fn run_due(rooms: &mut Rooms, out: &mut Out<'_, '_>, ctx: &Ctx, limit: usize) -> Result<usize, Fatal> {
    let due: Vec<String> = (rooms.locks.due.iter())
        .take_while(|(at_ms, _)| *at_ms <= ctx.now_ms)
        .take(limit)
        .map(|(_, name)| name.clone())
        .collect();
    let (mut ended, mut rewritten) = (0, 0);
    for name in &due {
        if rewritten >= REWRITTEN_AT_ONCE {
            break;
        }
        rewritten += rooms.locks.get(name).map_or(0, |lock| lock.holders.len() + lock.waiters.len());
        let holds = |holder: &LockHolder| line::is_over(holder, ctx.now_ms);
        end(rooms, out, ctx, name, holds, |waiter| waiter.until_ms <= ctx.now_ms);
        ended += 1;
    }
    Ok(ended)
}

/// Takes out who holds so and who waits so, and lets the line move on.
fn end(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    name: &str,
    holds: impl Fn(&LockHolder) -> bool,
    waits: impl Fn(&LockWaiter) -> bool,
) {
    let Some(mut lock) = rooms.locks.get(name).cloned() else { return };
    lock.holders.retain(|holder| !holds(holder));
    lock.waiters.retain(|waiter| !waits(waiter));
    line::advance(&mut lock, ctx);
    store(&mut rooms.locks, out, lock);
}
