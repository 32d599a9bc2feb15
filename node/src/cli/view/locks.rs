//! Who holds what, as JSON.

use quorate_client::v1::{Lock, LockHolder, LockMode, LockWaiter, ScopeLease};
use serde_json::{Value, json};

use super::{name, time};

/// `shared`, for example.
pub(crate) fn lock_mode(value: i32) -> String {
    match LockMode::try_from(value) {
        // Not said means exclusive.
        Ok(LockMode::Unspecified) => "exclusive".to_owned(),
        known => name(known.map(|known| known.as_str_name()).ok(), "LOCK_MODE_", value),
    }
}

/// A lock with its holders and who waits for it.
pub(crate) fn lock(lock: &Lock) -> Value {
    json!({
        "name": lock.name,
        "holders": lock.holders.iter().map(holder).collect::<Vec<_>>(),
        "waiters": lock.waiters.iter().map(waiter).collect::<Vec<_>>(),
    })
}

/// A grant.
pub(crate) fn holder(holder: &LockHolder) -> Value {
    json!({
        "session_id": holder.session_id,
        "owner": holder.owner,
        "token": holder.token,
        "mode": lock_mode(holder.mode),
        "acquired_at_ms": time(holder.acquired_at_ms),
        "ttl_ms": time(holder.ttl_ms),
        "expires_at_ms": time(holder.expires_at_ms),
        "forced_at_ms": time(holder.forced_at_ms),
        "task_id": holder.task_id,
        "task_token": holder.task_token,
        "note": holder.note,
    })
}

fn waiter(waiter: &LockWaiter) -> Value {
    json!({
        "session_id": waiter.session_id,
        "owner": waiter.owner,
        "mode": lock_mode(waiter.mode),
        "since_ms": time(waiter.since_ms),
        "until_ms": time(waiter.until_ms),
        "ttl_ms": time(waiter.ttl_ms),
        "max_hold_ms": time(waiter.max_hold_ms),
        "task_id": waiter.task_id,
        "task_token": waiter.task_token,
        "note": waiter.note,
        "ticket": waiter.ticket,
    })
}

/// A scope lease.
pub(crate) fn scope(lease: &ScopeLease) -> Value {
    json!({
        "id": lease.id,
        "realm": lease.realm,
        "globs": lease.globs,
        "mode": lock_mode(lease.mode),
        "session_id": lease.session_id,
        "owner": lease.owner,
        "token": lease.token,
        "acquired_at_ms": time(lease.acquired_at_ms),
        "task_id": lease.task_id,
        "task_token": lease.task_token,
        "note": lease.note,
    })
}

/// Who holds something or waits for it: a session, or an owner within one.
pub(crate) fn who(session_id: &str, owner: &str) -> String {
    if owner.is_empty() || owner == session_id { session_id.to_owned() } else { format!("{session_id}/{owner}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_names_who_holds_it_and_how() {
        let shared = LockHolder { token: 7, mode: LockMode::Shared as i32, ..LockHolder::default() };
        let view = lock(&Lock { name: "deploy".into(), holders: vec![shared], waiters: vec![LockWaiter::default()] });
        assert_eq!((&view["name"], &view["holders"][0]["mode"]), (&json!("deploy"), &json!("shared")));
        assert_eq!(view["holders"][0]["forced_at_ms"], Value::Null, "never");
        assert_eq!(view["waiters"][0]["mode"], "exclusive");
    }

    #[test]
    fn an_owner_is_one_of_a_session() {
        assert_eq!(who("s1", "s1"), "s1");
        assert_eq!(who("s1", ""), "s1");
        assert_eq!(who("s1", "builder"), "s1/builder");
    }
}
