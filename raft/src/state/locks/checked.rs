//! What a request must be before it is looked at any further: shapes, limits, and whether who asks is there at all.

use quorate_proto::v1::{AcquireLockRequest, LockMode, LockWaiter};

use crate::error::{Outcome, invalid, not_found};
use crate::state::{Ctx, Rooms, check_id};

/// The longest wait for a lock.
pub const MAX_WAIT_MS: u64 = 3_600_000;
/// The shortest TTL of a grant.
pub const MIN_TTL_MS: u64 = 100;
/// The longest TTL of a grant.
pub const MAX_TTL_MS: u64 = 86_400_000;
/// The longest that a grant may ask to be held before it is ended by force.
pub const MAX_HOLD_MS: u64 = 604_800_000;
/// How long a grant is held at most that asks for nothing else and belongs to no attempt.
pub const DEFAULT_HOLD_MS: u64 = 300_000;
/// The longest note or reason, in bytes.
pub const MAX_NOTE_BYTES: usize = 256;

/// Who takes something: a lock or a scope.
pub(super) struct Taker<'r> {
    pub(super) session_id: &'r str,
    /// As it was sent: empty is the session itself.
    pub(super) owner: &'r str,
    pub(super) task_id: &'r str,
    pub(super) task_token: u64,
    pub(super) note: &'r str,
}

/// The name that an owner goes by.
pub(super) fn owner<'r>(session_id: &'r str, owner: &'r str) -> &'r str {
    if owner.is_empty() { session_id } else { owner }
}

/// An owner for people.
pub(super) fn who(session_id: &str, owner: &str) -> String {
    if owner == session_id { session_id.to_owned() } else { format!("{session_id}/{owner}") }
}

/// A valid request as the place in line that it would get; `until_ms` is now if it does not wait.
pub(super) fn waiter(rooms: &Rooms, ctx: &Ctx, req: &AcquireLockRequest) -> Outcome<LockWaiter> {
    check_id("name", &req.name)?;
    let mode = mode(req.mode)?;
    if req.wait_ms > MAX_WAIT_MS {
        return Err(invalid("wait_ms", format!("wait_ms must be at most {MAX_WAIT_MS}; got {}", req.wait_ms)));
    }
    ttl(req.ttl_ms)?;
    if req.max_hold_ms > MAX_HOLD_MS {
        let message = format!("max_hold_ms must be at most {MAX_HOLD_MS}; got {}", req.max_hold_ms);
        return Err(invalid("max_hold_ms", message));
    }
    taker(
        rooms,
        &Taker {
            session_id: &req.session_id,
            owner: &req.owner,
            task_id: &req.task_id,
            task_token: req.task_token,
            note: &req.note,
        },
    )?;
    // What belongs to an attempt ends with it: the attempt has limits of its own.
    let open_ended = req.max_hold_ms == 0 && req.task_id.is_empty();
    Ok(LockWaiter {
        session_id: req.session_id.clone(),
        owner: owner(&req.session_id, &req.owner).to_owned(),
        mode: mode as i32,
        since_ms: ctx.now_ms,
        until_ms: ctx.now_ms.saturating_add(req.wait_ms),
        ttl_ms: req.ttl_ms,
        max_hold_ms: if open_ended { DEFAULT_HOLD_MS } else { req.max_hold_ms },
        task_id: req.task_id.clone(),
        task_token: req.task_token,
        note: req.note.clone(),
        ticket: ctx.rev,
    })
}

/// Who takes something must be there to hold it. Whether its attempt is held, if it is part of one, was seen to before.
pub(super) fn taker(rooms: &Rooms, taker: &Taker<'_>) -> Outcome<()> {
    check_id("session_id", taker.session_id)?;
    if !taker.owner.is_empty() {
        check_id("owner", taker.owner)?;
    }
    text("note", taker.note)?;
    if rooms.sessions.get(taker.session_id).is_none() {
        let message = format!("session {:?} has ended or never was; open one first", taker.session_id);
        return Err(not_found("session_id", message));
    }
    if taker.task_id.is_empty() {
        return match taker.task_token {
            0 => Ok(()),
            token => Err(invalid("task_id", format!("task_id must be given with task_token {token}"))),
        };
    }
    check_id("task_id", taker.task_id)
}

/// The mode, or what stands for it if none is given.
pub(super) fn mode(mode: i32) -> Outcome<LockMode> {
    match LockMode::try_from(mode) {
        Ok(LockMode::Unspecified | LockMode::Exclusive) => Ok(LockMode::Exclusive),
        Ok(LockMode::Shared) => Ok(LockMode::Shared),
        Err(_) => Err(invalid("mode", format!("mode must be EXCLUSIVE or SHARED; got {mode}"))),
    }
}

/// A mode for people.
pub(super) fn mode_name(mode: LockMode) -> &'static str {
    if mode == LockMode::Shared { "SHARED" } else { "EXCLUSIVE" }
}

/// A TTL, or none.
pub(super) fn ttl(ttl_ms: u64) -> Outcome<()> {
    if ttl_ms == 0 || (MIN_TTL_MS..=MAX_TTL_MS).contains(&ttl_ms) {
        return Ok(());
    }
    Err(invalid("ttl_ms", format!("ttl_ms must be 0 or {MIN_TTL_MS} to {MAX_TTL_MS}; got {ttl_ms}")))
}

/// Free text has a bound.
pub(super) fn text(field: &str, text: &str) -> Outcome<()> {
    if text.len() > MAX_NOTE_BYTES {
        return Err(invalid(field, format!("{field} must be at most {MAX_NOTE_BYTES} bytes; got {}", text.len())));
    }
    Ok(())
}
