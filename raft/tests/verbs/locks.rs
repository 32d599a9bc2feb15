//! The verbs of scripts about locks and scope leases.
//!
//! ```text
//! lock NAME session=s owner=o mode=shared wait=ms ttl=ms hold=ms task=t task_token=n note=n
//! lock_extend NAME token=n ttl=ms
//! unlock NAME token=n session=s owner=o
//! lock_force NAME reason=r
//! scope [ID] realm=r globs=a/**,b session=s owner=o mode=shared task=t task_token=n note=n
//! unscope ID token=n    scope_force ID reason=r
//! locks [PREFIX] after=n limit=n    place NAME session=s owner=o    held lock|scope NAME token=n    lock_news
//! scopes [REALM] globs=a,b
//! ```
//!
//! A token is the rev of the command that granted it: the number of commands up to there, reads left out. An owner is
//! shown as `session/owner`, and as the session alone if that is its name.

use quorate_proto::log::{answer, command};
use quorate_proto::v1::{
    AcquireLockRequest, AcquireLockResponse, AcquireScopeRequest, ExtendLockRequest, ForceReleaseLockRequest,
    ForceReleaseScopeRequest, Lock, LockHolder, LockMode, LockWaiter, ReleaseLockRequest, ReleaseScopeRequest,
    ScopeLease,
};
use quorate_raft::apply::Machine;
use quorate_raft::effect::Effect;
use quorate_raft::error::Error;

use super::{Line, show_rejection};

/// The command that a line stands for.
pub(crate) fn body(line: &Line<'_>) -> Option<command::Body> {
    use command::Body as B;
    let name = line.id();
    Some(match line.verb {
        "lock" => B::AcquireLock(AcquireLockRequest {
            name,
            session_id: line.text("session"),
            owner: line.text("owner"),
            mode: mode(line),
            wait_ms: line.number("wait", 0),
            ttl_ms: line.number("ttl", 0),
            max_hold_ms: line.number("hold", 0),
            task_id: line.text("task"),
            task_token: line.number("task_token", 0),
            note: line.text("note"),
            request: None,
        }),
        "lock_extend" => B::ExtendLock(ExtendLockRequest {
            name,
            token: line.number("token", 0),
            ttl_ms: line.number("ttl", 0),
            request: None,
        }),
        "unlock" => B::ReleaseLock(ReleaseLockRequest {
            name,
            token: line.number("token", 0),
            session_id: line.text("session"),
            owner: line.text("owner"),
            request: None,
        }),
        "lock_force" => {
            B::ForceReleaseLock(ForceReleaseLockRequest { name, reason: line.text("reason"), request: None })
        }
        "scope" => B::AcquireScope(AcquireScopeRequest {
            id: name,
            realm: line.text("realm"),
            globs: line.list("globs"),
            mode: mode(line),
            session_id: line.text("session"),
            owner: line.text("owner"),
            task_id: line.text("task"),
            task_token: line.number("task_token", 0),
            note: line.text("note"),
            request: None,
        }),
        "unscope" => B::ReleaseScope(ReleaseScopeRequest { id: name, token: line.number("token", 0), request: None }),
        "scope_force" => {
            B::ForceReleaseScope(ForceReleaseScopeRequest { id: name, reason: line.text("reason"), request: None })
        }
        _ => return None,
    })
}

fn mode(line: &Line<'_>) -> i32 {
    match line.text("mode").as_str() {
        "" => LockMode::Unspecified as i32,
        "exclusive" => LockMode::Exclusive as i32,
        "shared" => LockMode::Shared as i32,
        number => number.parse().expect("a mode"),
    }
}

/// How an answer is shown.
pub(crate) fn show(body: &answer::Body) -> Option<String> {
    use answer::Body as B;
    Some(match body {
        B::AcquireLock(r) => acquired(r),
        B::ExtendLock(r) => format!("expires={}", r.expires_at_ms),
        B::ReleaseLock(r) => format!("released{}", granted(&r.granted)),
        B::ForceReleaseLock(r) => format!("released {}{}", holders(&r.released), granted(&r.granted)),
        B::AcquireScope(r) => lease(r.lease.as_ref().unwrap()),
        B::ReleaseScope(_) => "released".to_owned(),
        B::ForceReleaseScope(r) => format!("released {}", lease(r.released.as_ref().unwrap())),
        _ => return None,
    })
}

/// What a line that is no command reads.
pub(crate) fn read(machine: &Machine, _now_ms: u64, line: &Line<'_>) -> Option<String> {
    let locks = &machine.rooms().locks;
    let name = line.id();
    Some(match line.verb {
        "locks" => {
            let limit = usize::try_from(line.number("limit", 100)).unwrap();
            let found = locks.list(&name, &line.text("after"), limit);
            lines(found.into_iter().map(lock).collect())
        }
        "place" => {
            let (session_id, owner) = (line.text("session"), line.text("owner"));
            match (locks.grant_of(&name, &session_id, &owner), locks.position_of(&name, &session_id, &owner)) {
                (Some(grant), None) => format!("holds it: {}", holder(grant)),
                (None, Some(position)) => format!("waits at {position}"),
                (None, None) => "takes no part".to_owned(),
                (Some(_), Some(_)) => "holds it and waits for it".to_owned(),
            }
        }
        "held" => {
            let (name, token) = (line.plain.get(1).expect("a name"), line.number("token", 0));
            let held =
                if line.id() == "scope" { locks.holds_scope(name, token) } else { locks.holds_lock(name, token) };
            let said = if held { "yes" } else { "no" };
            said.to_owned()
        }
        "scopes" => match locks.overlapping(&name, &line.list("globs")) {
            Ok(found) => lines(found.into_iter().map(lease).collect()),
            Err(Error::Rejected(rejection)) => show_rejection(&rejection),
            Err(Error::Fatal(fatal)) => panic!("{fatal}"),
        },
        "lock_news" => {
            let told = machine.effects().filter_map(|effect| match effect {
                Effect::LockChanged { name } => Some(name.clone()),
                _ => None,
            });
            let told: Vec<String> = told.collect();
            if told.is_empty() { "no news".to_owned() } else { told.join(", ") }
        }
        _ => return None,
    })
}

fn lines(all: Vec<String>) -> String {
    if all.is_empty() { "none".to_owned() } else { all.join("\n") }
}

fn acquired(r: &AcquireLockResponse) -> String {
    match &r.holder {
        Some(grant) => format!("granted {}", holder(grant)),
        None => format!("waits at {}", r.position),
    }
}

fn granted(all: &[LockHolder]) -> String {
    if all.is_empty() { String::new() } else { format!(", granted {}", holders(all)) }
}

fn holders(all: &[LockHolder]) -> String {
    all.iter().map(holder).collect::<Vec<_>>().join(", ")
}

fn lock(lock: &Lock) -> String {
    let mut shown = format!("{}: {}", lock.name, holders(&lock.holders));
    if !lock.waiters.is_empty() {
        let waiters: Vec<String> = lock.waiters.iter().map(waiter).collect();
        shown.push_str(&format!("; waiting {}", waiters.join(", ")));
    }
    shown
}

fn holder(holder: &LockHolder) -> String {
    let mut shown =
        format!("{} {} token={}", who(&holder.session_id, &holder.owner), word(holder.mode()), holder.token);
    for (name, at_ms) in [("expires", holder.expires_at_ms), ("forced", holder.forced_at_ms)] {
        if at_ms > 0 {
            shown.push_str(&format!(" {name}={at_ms}"));
        }
    }
    shown + &bound(&holder.task_id, holder.task_token, &holder.note)
}

fn waiter(waiter: &LockWaiter) -> String {
    let shown = format!("{} {} until={}", who(&waiter.session_id, &waiter.owner), word(waiter.mode()), waiter.until_ms);
    shown + &bound(&waiter.task_id, waiter.task_token, &waiter.note)
}

fn lease(lease: &ScopeLease) -> String {
    let (globs, owner) = (lease.globs.join(","), who(&lease.session_id, &lease.owner));
    let shown = format!("{} {} {globs} {owner} {} token={}", lease.id, lease.realm, word(lease.mode()), lease.token);
    shown + &bound(&lease.task_id, lease.task_token, &lease.note)
}

fn bound(task_id: &str, task_token: u64, note: &str) -> String {
    let mut shown = String::new();
    if !task_id.is_empty() {
        shown.push_str(&format!(" task={task_id}@{task_token}"));
    }
    if !note.is_empty() {
        shown.push_str(&format!(" note={note}"));
    }
    shown
}

fn who(session_id: &str, owner: &str) -> String {
    if owner == session_id { session_id.to_owned() } else { format!("{session_id}/{owner}") }
}

fn word(mode: LockMode) -> &'static str {
    let name = mode.as_str_name();
    name.strip_prefix("LOCK_MODE_").unwrap_or(name)
}
