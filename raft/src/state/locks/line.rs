//! One lock as it stands: who may have it, who is next, when it ends. Functions of the lock and the time alone; nothing
//! here writes a row.

use quorate_proto::v1::{Lock, LockHolder, LockMode, LockWaiter};

use super::MAX_SHARED_HOLDERS;
use crate::faults::{Bug, planted};
use crate::state::Ctx;

/// A session and a name within it.
pub(super) type Owner<'a> = (&'a str, &'a str);

/// Whether a newcomer may have it at once.
pub(super) fn admits(lock: &Lock, mode: LockMode) -> bool {
    lock.waiters.is_empty() && joins(&lock.holders, mode)
}

/// More than one hold it only if all share it, so the first speaks for all.
fn joins(holders: &[LockHolder], mode: LockMode) -> bool {
    let shared = |holder: &LockHolder| holder.mode() == LockMode::Shared && mode == LockMode::Shared;
    holders.first().is_none_or(|first| shared(first) && holders.len() < MAX_SHARED_HOLDERS)
}

/// Grants the lock to the head of the line, and to the heads after it that may share it; says to whom.
pub(super) fn advance(lock: &mut Lock, ctx: &Ctx) -> Vec<LockHolder> {
    let Lock { holders, waiters, .. } = lock;
    waiters.retain(|waiter| waiter.until_ms > ctx.now_ms);
    let held = holders.len();
    for waiter in waiters.iter() {
        if !joins(holders, waiter.mode()) {
            break;
        }
        holders.push(grant(waiter, ctx));
    }
    let granted = holders[held..].to_vec();
    waiters.drain(..granted.len());
    granted
}

/// What the waiter gets.
pub(super) fn grant(waiter: &LockWaiter, ctx: &Ctx) -> LockHolder {
    let forced_at_ms = match waiter.max_hold_ms {
        0 => 0,
        max_hold_ms => ctx.now_ms.saturating_add(max_hold_ms),
    };
    LockHolder {
        session_id: waiter.session_id.clone(),
        owner: waiter.owner.clone(),
        token: if planted(Bug::LockTokenReused) { 1 } else { ctx.rev },
        mode: waiter.mode,
        acquired_at_ms: ctx.now_ms,
        ttl_ms: waiter.ttl_ms,
        expires_at_ms: expires_at_ms(ctx.now_ms, waiter.ttl_ms, forced_at_ms),
        forced_at_ms,
        task_id: waiter.task_id.clone(),
        task_token: waiter.task_token,
        note: waiter.note.clone(),
    }
}

/// When a grant ends that is not extended; 0: not by its TTL. Nothing outlasts its forced end.
pub(super) fn expires_at_ms(now_ms: u64, ttl_ms: u64, forced_at_ms: u64) -> u64 {
    let at_ms = now_ms.saturating_add(ttl_ms);
    match (ttl_ms, forced_at_ms) {
        (0, _) => 0,
        (_, 0) => at_ms,
        _ => at_ms.min(forced_at_ms),
    }
}

/// Whether the grant's time is up.
pub(super) fn is_over(holder: &LockHolder, now_ms: u64) -> bool {
    [holder.expires_at_ms, holder.forced_at_ms].into_iter().any(|at_ms| at_ms > 0 && at_ms <= now_ms)
}

/// When time first ends a grant or a place in line.
pub(super) fn due_ms(lock: &Lock) -> Option<u64> {
    let ends = lock.holders.iter().flat_map(|holder| [holder.expires_at_ms, holder.forced_at_ms]);
    let ends = ends.filter(|at_ms| *at_ms > 0);
    ends.chain(lock.waiters.iter().map(|waiter| waiter.until_ms)).min()
}

/// Where the owner stands in line, from 0.
pub(super) fn place_of(lock: &Lock, owner: Owner<'_>) -> Option<usize> {
    lock.waiters.iter().position(|waiter| waits_as(waiter) == owner)
}

/// A place in line as people count.
pub(super) fn position(place: usize) -> u32 {
    u32::try_from(place + 1).unwrap_or(u32::MAX)
}

pub(super) fn holds_as(holder: &LockHolder) -> Owner<'_> {
    (&holder.session_id, &holder.owner)
}

pub(super) fn waits_as(waiter: &LockWaiter) -> Owner<'_> {
    (&waiter.session_id, &waiter.owner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CTX: Ctx = Ctx { now_ms: 1_000, rev: 9, entropy: 0 };

    fn waiter(owner: &str, mode: LockMode, until_ms: u64) -> LockWaiter {
        let (session_id, owner) = ("s".to_owned(), owner.to_owned());
        LockWaiter { session_id, owner, mode: mode as i32, until_ms, ..LockWaiter::default() }
    }

    fn owners(holders: &[LockHolder]) -> String {
        holders.iter().map(|holder| holder.owner.as_str()).collect()
    }

    #[test]
    fn shared_heads_go_together_up_to_the_first_that_cannot() {
        use LockMode::{Exclusive, Shared};
        let line = [("a", Shared, 2_000), ("b", Exclusive, 1_000), ("c", Shared, 2_000), ("d", Exclusive, 2_000)];
        let waiters = line.into_iter().map(|(owner, mode, until_ms)| waiter(owner, mode, until_ms)).collect();
        let mut lock = Lock { name: "l".to_owned(), holders: Vec::new(), waiters };
        assert_eq!(owners(&advance(&mut lock, &CTX)), "ac", "b's time is up");
        assert_eq!((owners(&lock.holders).as_str(), lock.waiters.len()), ("ac", 1));
        lock.holders.remove(0);
        assert_eq!(owners(&advance(&mut lock, &CTX)), "", "c still shares it");
        lock.holders.clear();
        assert_eq!(owners(&advance(&mut lock, &CTX)), "d");
        assert!(lock.waiters.is_empty());
    }

    #[test]
    fn only_so_many_share() {
        let waiters = (0..=MAX_SHARED_HOLDERS).map(|i| waiter(&i.to_string(), LockMode::Shared, 2_000)).collect();
        let mut lock = Lock { name: "l".to_owned(), holders: Vec::new(), waiters };
        assert_eq!(advance(&mut lock, &CTX).len(), MAX_SHARED_HOLDERS);
        lock.holders.pop();
        assert_eq!(owners(&advance(&mut lock, &CTX)), MAX_SHARED_HOLDERS.to_string());
    }

    #[test]
    fn nothing_outlasts_its_forced_end() {
        assert_eq!(expires_at_ms(1_000, 0, 5_000), 0);
        assert_eq!(expires_at_ms(1_000, 100, 0), 1_100);
        assert_eq!(expires_at_ms(1_000, 100, 5_000), 1_100);
        assert_eq!(expires_at_ms(1_000, 10_000, 5_000), 5_000);
    }
}
