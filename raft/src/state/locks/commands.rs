//! The commands about locks. Checked in full before anything is written.

use quorate_proto::v1::{
    AcquireLockRequest, AcquireLockResponse, ExtendLockRequest, ExtendLockResponse, ForceReleaseLockRequest,
    ForceReleaseLockResponse, Lock, LockHolder, LockMode, LockWaiter, RejectionCode, ReleaseLockRequest,
    ReleaseLockResponse,
};

use super::checked::{self, mode_name, who};
use super::line::{self, Owner, holds_as, waits_as};
use super::{Locks, MAX_WAITERS, bounds, circle, store};
use crate::error::{Error, Outcome, exhausted, invalid, not_found, precondition, reject};
use crate::state::{Ctx, Out, Rooms, check_id};

/// Takes the lock, or a place at the end of its line. Who asks again has what it has: the grant, or the place.
pub fn acquire(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    req: AcquireLockRequest,
) -> Outcome<AcquireLockResponse> {
    let waiter = checked::waiter(rooms, ctx, &req)?;
    let locks = &mut rooms.locks;
    if let Some(answer) = again(locks, out, ctx, &req, &waiter)? {
        return Ok(answer);
    }
    let admitted = locks.get(&req.name).is_none_or(|lock| line::admits(lock, waiter.mode()));
    let mut lock = match locks.get(&req.name) {
        Some(lock) => {
            if !admitted {
                check_wait(locks, lock, &waiter, req.wait_ms)?;
            }
            lock.clone()
        }
        None => Lock { name: req.name, ..Lock::default() },
    };
    bounds::check_room(locks, &lock)?;
    bounds::check_taker(locks, &waiter.session_id, (&waiter.task_id, waiter.task_token))?;
    let mut answer = AcquireLockResponse { rev: ctx.rev, now_ms: ctx.now_ms, ..AcquireLockResponse::default() };
    if admitted {
        let holder = line::grant(&waiter, ctx);
        lock.holders.push(holder.clone());
        answer.holder = Some(holder);
    } else {
        answer.position = line::position(lock.waiters.len());
        lock.waiters.push(waiter);
    }
    store(locks, out, lock);
    Ok(answer)
}

/// The answer to an owner that takes part in the lock already. A wait only ever gets longer.
fn again(
    locks: &mut Locks,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    req: &AcquireLockRequest,
    wanted: &LockWaiter,
) -> Outcome<Option<AcquireLockResponse>> {
    let answer = AcquireLockResponse { rev: ctx.rev, now_ms: ctx.now_ms, ..AcquireLockResponse::default() };
    if let Some(holder) = locks.grant_of(&req.name, &wanted.session_id, &wanted.owner) {
        let attempt = (holder.task_id.as_str(), holder.task_token);
        check_same(wanted, &format!("holds lock {:?}", req.name), holder.mode(), attempt)?;
        return Ok(Some(AcquireLockResponse { holder: Some(holder.clone()), ..answer }));
    }
    let Some(lock) = locks.get(&req.name) else { return Ok(None) };
    let Some(place) = line::place_of(lock, waits_as(wanted)) else { return Ok(None) };
    let known = &lock.waiters[place];
    let attempt = (known.task_id.as_str(), known.task_token);
    check_same(wanted, &format!("waits for lock {:?}", req.name), known.mode(), attempt)?;
    if wanted.until_ms > known.until_ms {
        let mut lock = lock.clone();
        lock.waiters[place].until_ms = wanted.until_ms;
        store(locks, out, lock);
    }
    Ok(Some(AcquireLockResponse { position: line::position(place), ..answer }))
}

/// Who asks again is answered with what it has, so it must ask for that: the mode, and the attempt that it ends with.
fn check_same(wanted: &LockWaiter, does: &str, mode: LockMode, attempt: (&str, u64)) -> Outcome<()> {
    let owner = who(&wanted.session_id, &wanted.owner);
    if mode != wanted.mode() {
        let (has, asks) = (mode_name(mode), mode_name(wanted.mode()));
        return Err(precondition("mode", format!("{owner} {does} {has}; release that first to ask for {asks}")));
    }
    let asked = (wanted.task_id.as_str(), wanted.task_token);
    if attempt != asked {
        let field = if attempt.0 == asked.0 { "task_token" } else { "task_id" };
        let (has, asks) = (part_of(attempt), part_of(asked));
        return Err(precondition(field, format!("{owner} {does} {has}; release that first to ask for it {asks}")));
    }
    Ok(())
}

/// An attempt for people.
fn part_of((task_id, token): (&str, u64)) -> String {
    if task_id.is_empty() {
        return "as part of no task".to_owned();
    }
    format!("as part of task {task_id:?} under token {token}")
}

/// Whether the owner may stand in line.
fn check_wait(locks: &Locks, lock: &Lock, waiter: &LockWaiter, wait_ms: u64) -> Outcome<()> {
    if wait_ms == 0 {
        return Err(precondition("name", format!("{}; set wait_ms to wait for it", taken(lock))));
    }
    if lock.waiters.len() >= MAX_WAITERS {
        return Err(exhausted("name", format!("{MAX_WAITERS} wait for lock {:?} already", lock.name)));
    }
    match circle::closed_by(locks, lock, waiter) {
        Some(path) => Err(precondition("name", format!("waiting would close a circle: {path}"))),
        None => Ok(()),
    }
}

/// Who is in the way.
fn taken(lock: &Lock) -> String {
    let mut text = format!("lock {:?} is held", lock.name);
    if let Some(first) = lock.holders.first() {
        let (by, mode) = (who(&first.session_id, &first.owner), mode_name(first.mode()));
        text.push_str(&format!(" {mode} by {by} under token {}", first.token));
        for (word, said) in [(" for task", &first.task_id), (":", &first.note)] {
            if !said.is_empty() {
                text.push_str(&format!("{word} {said:?}"));
            }
        }
    }
    if lock.holders.len() > 1 {
        text.push_str(&format!(" and {} more", lock.holders.len() - 1));
    }
    if !lock.waiters.is_empty() {
        text.push_str(&format!("; {} in line", lock.waiters.len()));
    }
    text
}

/// Moves the end of a grant with a TTL. Shared grants of one step have one token, and are extended together.
pub fn extend(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    req: ExtendLockRequest,
) -> Outcome<ExtendLockResponse> {
    check_id("name", &req.name)?;
    checked::ttl(req.ttl_ms)?;
    let locks = &mut rooms.locks;
    let Some(known) = locks.get(&req.name).filter(|lock| held_under(lock, req.token).next().is_some()) else {
        return Err(stale(&req.name, req.token));
    };
    if held_under(known, req.token).all(|holder| holder.ttl_ms == 0) {
        let message = format!("the grant of lock {:?} has no TTL to extend: it lives with its session", req.name);
        return Err(precondition("token", message));
    }
    let mut lock = known.clone();
    let mut first_ms = u64::MAX;
    for holder in lock.holders.iter_mut().filter(|holder| holder.token == req.token && holder.ttl_ms > 0) {
        let ttl_ms = if req.ttl_ms == 0 { holder.ttl_ms } else { req.ttl_ms };
        holder.expires_at_ms = line::expires_at_ms(ctx.now_ms, ttl_ms, holder.forced_at_ms);
        first_ms = first_ms.min(holder.expires_at_ms);
    }
    let forced = held_under(&lock, req.token).map(|holder| holder.forced_at_ms).filter(|at_ms| *at_ms > 0);
    let forced_at_ms = forced.min().unwrap_or_default();
    let answer = ExtendLockResponse { expires_at_ms: first_ms, forced_at_ms, now_ms: ctx.now_ms, rev: ctx.rev };
    if lock != *known {
        store(locks, out, lock);
    }
    Ok(answer)
}

/// Gives the lock back, or leaves its line; who is next has it in the same step.
pub fn release(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    req: ReleaseLockRequest,
) -> Outcome<ReleaseLockResponse> {
    check_id("name", &req.name)?;
    if req.token == 0 || !req.session_id.is_empty() {
        check_id("session_id", &req.session_id)?;
    }
    if !req.owner.is_empty() {
        check_id("owner", &req.owner)?;
    }
    let locks = &mut rooms.locks;
    let (mut lock, owner) = leaving(locks, &req)?;
    let owner = (owner.0.as_str(), owner.1.as_str());
    lock.holders.retain(|holder| holds_as(holder) != owner);
    lock.waiters.retain(|waiter| waits_as(waiter) != owner);
    let granted = line::advance(&mut lock, ctx);
    store(locks, out, lock);
    Ok(ReleaseLockResponse { granted, rev: ctx.rev })
}

/// The lock, and which of its owners the request is about.
fn leaving(locks: &Locks, req: &ReleaseLockRequest) -> Outcome<(Lock, (String, String))> {
    let lock = locks.get(&req.name);
    if req.token == 0 {
        let named: Owner<'_> = (req.session_id.as_str(), checked::owner(&req.session_id, &req.owner));
        let takes_part = |lock: &&Lock| {
            lock.holders.iter().any(|holder| holds_as(holder) == named) || line::place_of(lock, named).is_some()
        };
        return match lock.filter(takes_part) {
            Some(lock) => Ok((lock.clone(), owned(named))),
            None => {
                let owner = who(named.0, named.1);
                Err(not_found("name", format!("{owner} neither holds lock {:?} nor waits for it", req.name)))
            }
        };
    }
    let Some(lock) = lock else { return Err(stale(&req.name, req.token)) };
    let is_meant = |holder: &&LockHolder| {
        [(&req.session_id, &holder.session_id), (&req.owner, &holder.owner)]
            .into_iter()
            .all(|(named, known)| named.is_empty() || named == known)
    };
    let mut meant = held_under(lock, req.token).filter(is_meant);
    match (meant.next(), meant.next()) {
        (Some(holder), None) => Ok((lock.clone(), owned(holds_as(holder)))),
        (Some(_), Some(_)) => {
            let message = format!("several hold lock {:?} under token {}", req.name, req.token);
            Err(invalid("owner", format!("session_id and owner must be given: {message}")))
        }
        (None, _) => Err(stale(&req.name, req.token)),
    }
}

/// Ends every grant of the lock.
pub fn force_release(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    req: ForceReleaseLockRequest,
) -> Outcome<ForceReleaseLockResponse> {
    check_id("name", &req.name)?;
    checked::text("reason", &req.reason)?;
    let Some(mut lock) = rooms.locks.get(&req.name).cloned() else {
        return Err(not_found("name", format!("nobody holds lock {:?}", req.name)));
    };
    let released = std::mem::take(&mut lock.holders);
    let granted = line::advance(&mut lock, ctx);
    store(&mut rooms.locks, out, lock);
    Ok(ForceReleaseLockResponse { released, granted, rev: ctx.rev })
}

fn held_under(lock: &Lock, token: u64) -> impl Iterator<Item = &LockHolder> {
    lock.holders.iter().filter(move |holder| holder.token == token)
}

fn owned((session_id, owner): Owner<'_>) -> (String, String) {
    (session_id.to_owned(), owner.to_owned())
}

fn stale(name: &str, token: u64) -> Error {
    reject(RejectionCode::Aborted, "token", format!("lock {name:?} is not held under token {token} any more"))
}
