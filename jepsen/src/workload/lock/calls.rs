//! The calls of a lock's holder, and what is recorded of each answer.
//!
//! Deliberately absent: anything that gives a lock back or extends it by itself, as the library's guard does.

use quorate_client::v1::{
    AcquireLockRequest, AcquireLockResponse, ExtendLockRequest, Fence, FenceKind, GetLockRequest, GetLockResponse,
    LockMode, ReleaseLockRequest,
};
use quorate_client::{Client, Session};
use serde_json::{Value, json};
use tonic::{Code, Status};

use super::super::direct::{Direct, effect};
use super::super::documents;
use crate::record::Answer;

/// No grant ends because it was held for too long: the most that may be asked for.
const LONGEST_HOLD_MS: u64 = 604_800_000;

/// Asks for a lock, and does not wait.
pub(super) async fn acquire(node: &Direct, key: &str, session_id: &str, owner: &str, ttl_ms: u64) -> Answer {
    let request = AcquireLockRequest {
        name: key.to_owned(),
        session_id: session_id.to_owned(),
        owner: owner.to_owned(),
        mode: LockMode::Exclusive as i32,
        ttl_ms,
        max_hold_ms: LONGEST_HOLD_MS,
        ..AcquireLockRequest::default()
    };
    match node.call(node.locks().acquire(request)).await {
        Ok(AcquireLockResponse { holder: Some(holder), rev, .. }) => {
            Answer::at(rev, json!({ "got": true, "token": holder.token }))
        }
        // A place in line, which nobody asked for: who knows what comes of it.
        Ok(_) => Answer::Info,
        Err(status) if status.code() == Code::FailedPrecondition => held_by_another(node, key).await,
        Err(status) => effect(&status),
    }
}

/// A lock that is held was refused. Where it is free by the time that somebody looks, nothing can be said.
async fn held_by_another(node: &Direct, key: &str) -> Answer {
    let request = GetLockRequest { name: key.to_owned(), ..GetLockRequest::default() };
    match node.call(node.locks().get(request)).await {
        Ok(GetLockResponse { lock: Some(lock), rev, .. }) if !lock.holders.is_empty() => {
            Answer::at(rev, json!({ "got": false, "token": 0 }))
        }
        _ => Answer::Fail,
    }
}

/// Gives a lock back.
pub(super) async fn release(node: &Direct, client: &Client, key: &str, token: u64) -> Answer {
    let request = ReleaseLockRequest { name: key.to_owned(), token, ..ReleaseLockRequest::default() };
    match node.call(node.locks().release(request)).await {
        Ok(released) => Answer::at(released.rev, json!({ "ok": true })),
        Err(status) => refused(&status, client, key, json!({ "ok": false })).await,
    }
}

/// Moves the end of a grant.
pub(super) async fn extend(node: &Direct, client: &Client, key: &str, token: u64) -> Answer {
    let request = ExtendLockRequest { name: key.to_owned(), token, ..ExtendLockRequest::default() };
    match node.call(node.locks().extend(request)).await {
        Ok(extended) => Answer::at(extended.rev, json!({ "ok": true })),
        Err(status) => refused(&status, client, key, json!({ "ok": false })).await,
    }
}

async fn refused(status: &Status, client: &Client, key: &str, res: Value) -> Answer {
    if status.code() == Code::Aborted { over(client, key, res).await } else { effect(status) }
}

/// A grant is over, and stays over: at the place of any look after that.
async fn over(client: &Client, key: &str, res: Value) -> Answer {
    match client.locks().get(key).await {
        Ok(lock) => Answer::at(lock.rev, res),
        Err(_) => Answer::Fail,
    }
}

/// Writes the register under a grant. A session is there for its request id.
pub(super) async fn write(client: &Client, key: &str, token: u64, value: &str, session: Option<&Session>) -> Answer {
    let fence = Fence { kind: FenceKind::Lock as i32, name: key.to_owned(), token };
    let fenced = match client.fenced([fence]) {
        Ok(fenced) => fenced,
        Err(error) => return Answer::of_error(&error),
    };
    let put = fenced.kv().put(key, value.to_owned());
    let put = if let Some(session) = session { put.request(session) } else { put };
    match put.send().await {
        Ok(put) => Answer::at(put.rev, json!({ "accepted": true })),
        Err(error) if error.fence_is_over() => over(client, key, json!({ "accepted": false })).await,
        Err(error) => Answer::of_error(&error),
    }
}

/// Reads the register.
pub(super) async fn read(client: &Client, key: &str) -> Answer {
    match documents::read(client, key).await {
        Ok((entry, rev)) => Answer::at(rev, documents::shown(entry.as_ref())),
        Err(_) => Answer::Fail,
    }
}
