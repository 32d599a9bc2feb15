//! What must hold of locks and scope leases, from their rows alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use quorate_proto::log::answer::Body as A;
use quorate_proto::log::command::Body as B;
use quorate_proto::v1::{
    AcquireLockRequest, AcquireScopeRequest, Lock, LockHolder, LockMode, LockWaiter, Rejection, RejectionCode,
    ScopeLease,
};
use quorate_raft::state::locks::Glob;

use super::steps::GLOBS;
use super::view::View;
use super::{At, is_past};

/// Every two of the globs that overlap have one of these in common: a test says so.
pub(crate) const PATHS: [&str; 8] =
    ["src", "src/a.rs", "src/x/c.rs", "src/z.md", "docs/x.md", "docs/y.txt", "other/x.md", "README.md"];

/// Which of the paths are in each glob, a bit for each.
static IN_GLOB: LazyLock<BTreeMap<&str, u8>> = LazyLock::new(|| {
    let paths = |glob: &str| {
        let glob = parsed(glob);
        PATHS.iter().rev().fold(0, |paths, path| (paths << 1) | u8::from(glob.matches(path)))
    };
    GLOBS.iter().map(|glob| (*glob, paths(glob))).collect()
});

/// A session and a name within it.
type Owner<'v> = (&'v str, &'v str);

pub(crate) fn check(view: &View) {
    view.locks.values().for_each(|lock| check_lock(view, lock));
    let waits_for = who_waits_for_whom(view);
    for owner in waits_for.keys() {
        assert!(!reaches(&waits_for, owner, owner), "{owner:?} waits for itself: {:?}", view.locks);
    }
    for lease in view.scopes.values() {
        assert!(is_alive(view, &lease.session_id, &lease.task_id, lease.task_token), "its end has come: {lease:?}");
        for other in view.scopes.values().filter(|other| other.id < lease.id) {
            let apart = !overlap(&lease.globs, other);
            assert!(apart || may_overlap(lease, other), "a path is in both {lease:?} and {other:?}");
        }
    }
}

fn check_lock(view: &View, lock: &Lock) {
    let Lock { holders, waiters, .. } = lock;
    let shares = |mode: LockMode| mode == LockMode::Shared;
    assert!(!holders.is_empty(), "held by nobody: {lock:?}");
    let all_share = holders.iter().all(|holder| shares(holder.mode()));
    assert!(holders.len() == 1 || all_share, "held by several, and not shared: {lock:?}");
    let stuck = waiters.first().is_none_or(|first| !(all_share && shares(first.mode())));
    assert!(stuck, "who is first in line could have it: {lock:?}");
    assert!(holders.is_sorted_by_key(|holder| holder.token), "tokens do not rise: {lock:?}");
    assert!(waiters.is_sorted_by(|a, b| a.ticket < b.ticket), "not in the order in which they came: {lock:?}");
    let owners: BTreeSet<Owner<'_>> = holders.iter().map(holds_as).chain(waiters.iter().map(waits_as)).collect();
    assert_eq!(owners.len(), holders.len() + waiters.len(), "an owner takes part twice: {lock:?}");
    for holder in holders {
        assert!(is_alive(view, &holder.session_id, &holder.task_id, holder.task_token), "its end has come: {lock:?}");
        let outlasts = holder.forced_at_ms > 0 && holder.expires_at_ms > holder.forced_at_ms;
        assert!(!outlasts, "outlasts its forced end: {lock:?}");
    }
    for waiter in waiters {
        assert!(is_alive(view, &waiter.session_id, &waiter.task_id, waiter.task_token), "its end has come: {lock:?}");
    }
}

/// Whether what belongs to this session, and to this attempt if to any, goes on.
fn is_alive(view: &View, session_id: &str, task_id: &str, task_token: u64) -> bool {
    view.sessions.contains_key(session_id) && (task_id.is_empty() || view.runs(task_id, task_token))
}

fn holds_as(holder: &LockHolder) -> Owner<'_> {
    (&holder.session_id, &holder.owner)
}

fn waits_as(waiter: &LockWaiter) -> Owner<'_> {
    (&waiter.session_id, &waiter.owner)
}

/// Those whom a place in line waits for: every holder, and who is before it and cannot share with it.
fn waits_behind(lock: &Lock, place: usize, mode: LockMode) -> impl Iterator<Item = Owner<'_>> {
    let both = move |other: LockMode| mode == LockMode::Shared && other == LockMode::Shared;
    let before = lock.waiters[..place].iter().filter(move |waiter| !both(waiter.mode())).map(waits_as);
    before.chain(lock.holders.iter().map(holds_as))
}

fn who_waits_for_whom(view: &View) -> BTreeMap<Owner<'_>, BTreeSet<Owner<'_>>> {
    let mut waits_for: BTreeMap<Owner<'_>, BTreeSet<Owner<'_>>> = BTreeMap::new();
    for lock in view.locks.values() {
        for (place, waiter) in lock.waiters.iter().enumerate() {
            waits_for.entry(waits_as(waiter)).or_default().extend(waits_behind(lock, place, waiter.mode()));
        }
    }
    waits_for
}

/// Whether one waits for the other, over however many others.
fn reaches(waits_for: &BTreeMap<Owner<'_>, BTreeSet<Owner<'_>>>, from: &Owner<'_>, to: &Owner<'_>) -> bool {
    let (mut seen, mut ahead) = (BTreeSet::new(), vec![*from]);
    while let Some(owner) = ahead.pop() {
        for next in waits_for.get(&owner).into_iter().flatten() {
            if next == to {
                return true;
            }
            if seen.insert(*next) {
                ahead.push(*next);
            }
        }
    }
    false
}

fn may_overlap(one: &ScopeLease, other: &ScopeLease) -> bool {
    let shared = one.mode() == LockMode::Shared && other.mode() == LockMode::Shared;
    let same_owner = (&one.session_id, &one.owner) == (&other.session_id, &other.owner);
    shared || same_owner || one.realm != other.realm
}

/// Whether one of the paths is in these globs and in the lease.
fn overlap(globs: &[String], lease: &ScopeLease) -> bool {
    let paths = |globs: &[String]| globs.iter().fold(0, |paths, glob| paths | IN_GLOB[glob.as_str()]);
    paths(globs) & paths(&lease.globs) != 0
}

pub(crate) fn parsed(glob: &str) -> Glob {
    Glob::parse(glob).unwrap_or_else(|why| panic!("{glob:?}: {why}"))
}

/// What holds of it if that was the state before the command.
pub(crate) fn check_since(before: &View, after: &View, at: At, body: &B) {
    let names: BTreeSet<&String> = before.locks.keys().chain(after.locks.keys()).collect();
    for name in names {
        let none = Lock::default();
        let was = before.locks.get(name).unwrap_or(&none);
        let is = after.locks.get(name).unwrap_or(&none);
        check_ends(was, after, at, body, name);
        check_line(was, is, at);
        if let B::Tick(_) = body {
            let over = |holder: &LockHolder| is_over(holder, at);
            assert!(!is.holders.iter().any(over), "its time is up, and a tick left it: {is:?}");
            assert!(is.waiters.iter().all(|waiter| waiter.until_ms > at.now_ms), "waits on after its time: {is:?}");
        }
    }
    for lease in before.scopes.values() {
        let ends = match body {
            B::ReleaseScope(req) => req.id == lease.id && req.token == lease.token,
            B::ForceReleaseScope(req) => req.id == lease.id,
            _ => !is_alive(after, &lease.session_id, &lease.task_id, lease.task_token),
        };
        assert!(ends || after.scopes.get(&lease.id) == Some(lease), "no longer as it was: {lease:?}");
    }
    for lease in after.scopes.values().filter(|lease| !before.scopes.contains_key(&lease.id)) {
        assert_eq!((lease.token, lease.acquired_at_ms), (at.rev, at.now_ms), "{lease:?}");
    }
}

fn is_over(holder: &LockHolder, at: At) -> bool {
    is_past(holder.expires_at_ms, at.now_ms) || is_past(holder.forced_at_ms, at.now_ms)
}

/// A grant ends because somebody said so, or because what it hangs on ended; by itself only with a tick.
fn check_ends(was: &Lock, after: &View, at: At, body: &B, name: &str) {
    for holder in &was.holders {
        let stays = after.locks.get(name).is_some_and(|lock| lock.holders.iter().any(|other| is_same(other, holder)));
        let said = match body {
            B::ReleaseLock(req) => req.name == name && (req.token == 0 || req.token == holder.token),
            B::ForceReleaseLock(req) => req.name == name,
            B::Tick(_) => is_over(holder, at),
            _ => false,
        };
        let alive = is_alive(after, &holder.session_id, &holder.task_id, holder.task_token);
        assert!(stays || said || !alive, "{body:?} ended {holder:?}");
    }
}

fn is_same(one: &LockHolder, other: &LockHolder) -> bool {
    (holds_as(one), one.token) == (holds_as(other), other.token)
}

/// Nobody is overtaken: who is granted the lock was before all who still wait, and who comes stands behind them.
fn check_line(was: &Lock, is: &Lock, at: At) {
    let place = |owner: Owner<'_>| was.waiters.iter().position(|waiter| waits_as(waiter) == owner);
    let still: Vec<usize> = is.waiters.iter().filter_map(|waiter| place(waits_as(waiter))).collect();
    assert!(still.is_sorted_by(|a, b| a < b), "the line changed its order: {was:?}, {is:?}");
    let new = &is.waiters[still.len()..];
    let behind =
        new.len() <= 1 && new.iter().all(|waiter| waiter.ticket == at.rev && place(waits_as(waiter)).is_none());
    assert!(behind, "who comes stands at the end: {was:?}, {is:?}");
    let granted: Vec<&LockHolder> =
        is.holders.iter().filter(|holder| !was.holders.iter().any(|other| is_same(other, holder))).collect();
    for holder in granted {
        assert_eq!((holder.token, holder.acquired_at_ms), (at.rev, at.now_ms), "{holder:?}");
        assert!(was.holders.iter().all(|other| other.token < holder.token), "tokens do not rise: {was:?}, {is:?}");
        match place(holds_as(holder)) {
            Some(place) => {
                let waited = &was.waiters[place];
                assert!(waited.until_ms > at.now_ms, "granted after its time: {waited:?}");
                assert_eq!((waited.mode, waited.task_token), (holder.mode, holder.task_token), "{waited:?}");
                assert!(still.iter().all(|other| *other > place), "{holder:?} overtook somebody: {was:?}, {is:?}");
            }
            None => assert!(was.waiters.is_empty(), "{holder:?} overtook those in line: {was:?}"),
        }
    }
}

/// What was answered is so; what was refused because of others was in their way.
pub(crate) fn check_answer(before: &View, after: &View, body: &B, answer: &A) {
    match (body, answer) {
        (B::AcquireLock(req), A::AcquireLock(answer)) => {
            let owner = owner(&req.session_id, &req.owner);
            let lock = &after.locks[&req.name];
            match &answer.holder {
                Some(holder) => assert!(lock.holders.contains(holder), "{answer:?}, {lock:?}"),
                None => {
                    let place = lock.waiters.iter().position(|waiter| waits_as(waiter) == owner);
                    assert_eq!(place.map(|place| place as u32 + 1), Some(answer.position), "{lock:?}");
                }
            }
        }
        (B::AcquireLock(req), A::Rejected(why)) => check_held(before, req, why),
        (B::AcquireScope(req), A::AcquireScope(answer)) => {
            let lease = answer.lease.as_ref().expect("a lease");
            assert_eq!((after.scopes.get(&lease.id), &lease.globs), (Some(lease), &req.globs));
        }
        (B::AcquireScope(req), A::Rejected(why)) => check_in_the_way(before, req, why),
        _ => {}
    }
}

fn owner<'r>(session_id: &'r str, owner: &'r str) -> Owner<'r> {
    (session_id, if owner.is_empty() { session_id } else { owner })
}

/// Whether the refusal is about a circle.
pub(crate) fn is_circle(why: &Rejection) -> bool {
    why.message.contains("circle")
}

fn check_held(before: &View, req: &AcquireLockRequest, why: &Rejection) {
    if (why.code(), why.field.as_str()) != (RejectionCode::FailedPrecondition, "name") {
        return;
    }
    let lock = &before.locks[&req.name];
    let mode = if req.mode() == LockMode::Shared { LockMode::Shared } else { LockMode::Exclusive };
    let joins = mode == LockMode::Shared && lock.holders.iter().all(|holder| holder.mode() == LockMode::Shared);
    assert!(!(joins && lock.waiters.is_empty()), "refused, and it was free: {req:?}, {lock:?}");
    assert!(req.wait_ms == 0 || is_circle(why), "refused, and could have waited: {req:?}, {lock:?}");
    let newcomer = owner(&req.session_id, &req.owner);
    let waits_for = who_waits_for_whom(before);
    let closes = waits_behind(lock, lock.waiters.len(), mode).any(|ahead| reaches(&waits_for, &ahead, &newcomer));
    assert_eq!(closes && req.wait_ms > 0, is_circle(why), "{req:?}: {why:?}, {:?}", before.locks);
}

fn check_in_the_way(before: &View, req: &AcquireScopeRequest, why: &Rejection) {
    if (why.code(), why.field.as_str()) != (RejectionCode::FailedPrecondition, "globs") {
        return;
    }
    let (session_id, owner) = owner(&req.session_id, &req.owner);
    let asked = ScopeLease {
        realm: req.realm.clone(),
        mode: req.mode,
        session_id: session_id.to_owned(),
        owner: owner.to_owned(),
        ..ScopeLease::default()
    };
    let in_the_way = |lease: &ScopeLease| overlap(&req.globs, lease) && !may_overlap(&asked, lease);
    assert!(before.scopes.values().any(in_the_way), "refused, and nothing was in the way: {why:?}");
}
