//! Scope leases: sets of globs that no other owner's lease overlaps, unless both are shared. Taken as a whole or not at
//! all, and never waited for.
//!
//! Globs are compared within their realm only. The comparison is bounded by [`MAX_WORK`]: globs that would need more
//! are refused, in favour of simpler ones. An owner's leases never conflict with each other.
//!
//! A lease has no TTL: it ends with its session, or with its attempt.

use std::collections::{BTreeMap, BTreeSet};

use quorate_proto::v1::{
    AcquireScopeRequest, AcquireScopeResponse, ForceReleaseScopeRequest, ForceReleaseScopeResponse, LockMode,
    RejectionCode, ReleaseScopeRequest, ReleaseScopeResponse, ScopeLease,
};

use super::checked::{self, Taker, mode_name, who};
use super::glob::{Glob, begin_apart};
use super::{Locks, bounds};
use crate::error::{Fatal, Outcome, exhausted, invalid, not_found, precondition, reject};
use crate::state::{Ctx, Out, Rooms, check_id, remove_from};
use crate::storage::keys::{Key, Table};

/// The most leases that are held at once.
pub const MAX_SCOPES: usize = 10_000;
/// The most of them in one realm.
pub const MAX_SCOPES_PER_REALM: usize = 256;
/// The most globs of one lease.
pub const MAX_GLOBS: usize = 32;
/// The longest glob, in bytes.
pub const MAX_GLOB_BYTES: usize = 256;

/// How much is compared in one command: a few milliseconds.
const MAX_WORK: u64 = 2_000_000;
/// What drawn ids begin with.
const DRAWN: &str = "s-";

/// Every lease, with its indexes.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Scopes {
    all: BTreeMap<String, ScopeLease>,
    by_realm: BTreeMap<String, BTreeSet<String>>,
    by_session: BTreeMap<String, BTreeSet<String>>,
    by_attempt: BTreeMap<(String, u64), BTreeSet<String>>,
}

impl Scopes {
    /// Adds a lease. One that exists never changes.
    pub(super) fn put(&mut self, lease: ScopeLease) {
        self.by_realm.entry(lease.realm.clone()).or_default().insert(lease.id.clone());
        self.by_session.entry(lease.session_id.clone()).or_default().insert(lease.id.clone());
        if !lease.task_id.is_empty() {
            let attempt = (lease.task_id.clone(), lease.task_token);
            self.by_attempt.entry(attempt).or_default().insert(lease.id.clone());
        }
        self.all.insert(lease.id.clone(), lease);
    }

    fn take_out(&mut self, id: &str) -> Option<ScopeLease> {
        let lease = self.all.remove(id)?;
        remove_from(&mut self.by_realm, &lease.realm, &lease.id);
        remove_from(&mut self.by_session, &lease.session_id, &lease.id);
        remove_from(&mut self.by_attempt, &(lease.task_id.clone(), lease.task_token), &lease.id);
        Some(lease)
    }

    /// The leases of the session.
    pub(super) fn of_session(&self, session_id: &str) -> Vec<String> {
        self.by_session.get(session_id).into_iter().flatten().cloned().collect()
    }

    /// How many of them there are.
    pub(super) fn count_of_session(&self, session_id: &str) -> usize {
        self.by_session.get(session_id).map_or(0, BTreeSet::len)
    }

    /// How many leases end with the attempt.
    pub(super) fn count_of_attempt(&self, task_id: &str, token: u64) -> usize {
        self.by_attempt.get(&(task_id.to_owned(), token)).map_or(0, BTreeSet::len)
    }

    /// The leases that end with the attempt.
    pub(super) fn of_attempt(&self, task_id: &str, token: u64) -> Vec<String> {
        self.by_attempt.get(&(task_id.to_owned(), token)).into_iter().flatten().cloned().collect()
    }

    fn of_realm(&self, realm: &str) -> impl Iterator<Item = &ScopeLease> {
        self.by_realm.get(realm).into_iter().flatten().filter_map(|id| self.all.get(id))
    }
}

impl Locks {
    /// One scope lease.
    pub fn scope(&self, id: &str) -> Option<&ScopeLease> {
        self.scopes.all.get(id)
    }

    /// Every scope lease, by id.
    pub fn scopes(&self) -> impl Iterator<Item = &ScopeLease> {
        self.scopes.all.values()
    }

    /// Whether the lease is held under this token.
    pub fn holds_scope(&self, id: &str, token: u64) -> bool {
        self.scope(id).is_some_and(|lease| lease.token == token)
    }

    /// The leases of the realm that overlap with one of the globs, by id. No globs: all of its leases; no realm: all
    /// there are, and globs are refused.
    pub fn overlapping(&self, realm: &str, globs: &[String]) -> Outcome<Vec<&ScopeLease>> {
        if realm.is_empty() {
            if !globs.is_empty() {
                return Err(invalid("realm", "realm must be given with globs: they mean something in a realm only"));
            }
            return Ok(self.scopes().collect());
        }
        check_id("realm", realm)?;
        if globs.is_empty() {
            return Ok(self.scopes.of_realm(realm).collect());
        }
        let wanted = parsed(globs)?;
        let (mut found, mut work) = (Vec::new(), 0);
        for lease in self.scopes.of_realm(realm) {
            if overlap(&wanted, lease, &mut work)?.is_some() {
                found.push(lease);
            }
        }
        Ok(found)
    }
}

/// Takes all of the globs, or none. The same asked again is the same lease.
pub fn acquire_scope(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    req: AcquireScopeRequest,
) -> Outcome<AcquireScopeResponse> {
    if !req.id.is_empty() {
        check_id("id", &req.id)?;
    }
    check_id("realm", &req.realm)?;
    let wanted = parsed(&req.globs)?;
    let mode = checked::mode(req.mode)?;
    let taker = Taker {
        session_id: &req.session_id,
        owner: &req.owner,
        task_id: &req.task_id,
        task_token: req.task_token,
        note: &req.note,
    };
    checked::taker(rooms, &taker)?;
    let lease = ScopeLease {
        id: if req.id.is_empty() { format!("{DRAWN}{}", ctx.rev) } else { req.id.clone() },
        realm: req.realm.clone(),
        globs: req.globs.clone(),
        mode: mode as i32,
        session_id: req.session_id.clone(),
        owner: checked::owner(&req.session_id, &req.owner).to_owned(),
        token: ctx.rev,
        acquired_at_ms: ctx.now_ms,
        task_id: req.task_id.clone(),
        task_token: req.task_token,
        note: req.note.clone(),
    };
    if let Some(known) = rooms.locks.scope(&lease.id) {
        if is_same(known, &lease) {
            return Ok(AcquireScopeResponse { lease: Some(known.clone()), rev: ctx.rev });
        }
        return Err(reject(RejectionCode::AlreadyExists, "id", format!("{} exists already", shown(known))));
    }
    if req.id.starts_with(DRAWN) {
        return Err(invalid("id", format!("ids that begin with {DRAWN} are drawn; leave id out to get one")));
    }
    check_room(&rooms.locks.scopes, &lease.realm)?;
    bounds::check_taker(&rooms.locks, &lease.session_id, (&lease.task_id, lease.task_token))?;
    check_free(&rooms.locks, &lease, &wanted)?;
    out.txn.put(&key(&lease.id), &lease);
    rooms.locks.scopes.put(lease.clone());
    Ok(AcquireScopeResponse { lease: Some(lease), rev: ctx.rev })
}

/// Whether it is what its owner asked for before. The note does not matter.
fn is_same(known: &ScopeLease, asked: &ScopeLease) -> bool {
    let asked = ScopeLease {
        token: known.token,
        acquired_at_ms: known.acquired_at_ms,
        note: known.note.clone(),
        ..asked.clone()
    };
    *known == asked
}

fn check_room(scopes: &Scopes, realm: &str) -> Outcome<()> {
    if scopes.all.len() >= MAX_SCOPES {
        return Err(exhausted("id", format!("{MAX_SCOPES} scope leases are held; release some first")));
    }
    if scopes.by_realm.get(realm).is_some_and(|ids| ids.len() >= MAX_SCOPES_PER_REALM) {
        let message = format!("{MAX_SCOPES_PER_REALM} scope leases are held in realm {realm:?}; release some first");
        return Err(exhausted("realm", message));
    }
    Ok(())
}

/// Whether nobody else holds what overlaps, unless it is shared.
fn check_free(locks: &Locks, lease: &ScopeLease, wanted: &[Wanted<'_>]) -> Outcome<()> {
    let mut work = 0;
    for other in locks.scopes.of_realm(&lease.realm) {
        let shared = lease.mode() == LockMode::Shared && other.mode() == LockMode::Shared;
        let same_owner = (&lease.session_id, &lease.owner) == (&other.session_id, &other.owner);
        if shared || same_owner {
            continue;
        }
        if let Some((mine, theirs)) = overlap(wanted, other, &mut work)? {
            let message = format!("{mine:?} overlaps with {theirs:?} of {}", shown(other));
            return Err(precondition("globs", message));
        }
    }
    Ok(())
}

/// A lease for people.
fn shown(lease: &ScopeLease) -> String {
    let mode = mode_name(lease.mode());
    let mut text = format!("scope lease {:?}, {mode} of {}", lease.id, who(&lease.session_id, &lease.owner));
    for (word, said) in [(" for task", &lease.task_id), (":", &lease.note)] {
        if !said.is_empty() {
            text.push_str(&format!("{word} {said:?}"));
        }
    }
    text
}

/// Gives a lease back.
pub fn release_scope(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    req: ReleaseScopeRequest,
) -> Outcome<ReleaseScopeResponse> {
    check_id("id", &req.id)?;
    if !rooms.locks.holds_scope(&req.id, req.token) {
        let message = format!("scope lease {:?} is not held under token {} any more", req.id, req.token);
        return Err(reject(RejectionCode::Aborted, "token", message));
    }
    remove(rooms, out, &req.id);
    Ok(ReleaseScopeResponse { rev: ctx.rev })
}

/// Ends a lease, whoever holds it.
pub fn force_release_scope(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    req: ForceReleaseScopeRequest,
) -> Outcome<ForceReleaseScopeResponse> {
    check_id("id", &req.id)?;
    checked::text("reason", &req.reason)?;
    match remove(rooms, out, &req.id) {
        None => Err(not_found("id", format!("no scope lease {:?} is held", req.id))),
        released => Ok(ForceReleaseScopeResponse { released, rev: ctx.rev }),
    }
}

/// Removes the lease, if there is one.
pub(super) fn remove(rooms: &mut Rooms, out: &mut Out<'_, '_>, id: &str) -> Option<ScopeLease> {
    let lease = rooms.locks.scopes.take_out(id)?;
    out.txn.delete(&key(id));
    Some(lease)
}

fn key(id: &str) -> Key {
    Key::table(Table::Scope).text(id)
}

/// A glob that is asked for.
struct Wanted<'r> {
    text: &'r str,
    glob: Glob,
}

fn parsed(globs: &[String]) -> Outcome<Vec<Wanted<'_>>> {
    if !(1..=MAX_GLOBS).contains(&globs.len()) {
        return Err(invalid("globs", format!("globs must be 1 to {MAX_GLOBS}; got {}", globs.len())));
    }
    globs.iter().enumerate().map(|(i, text)| one_parsed(&format!("globs[{i}]"), text)).collect()
}

fn one_parsed<'r>(field: &str, text: &'r str) -> Outcome<Wanted<'r>> {
    if text.len() > MAX_GLOB_BYTES {
        return Err(invalid(field, format!("{field} must be 1 to {MAX_GLOB_BYTES} bytes; got {}", text.len())));
    }
    match Glob::parse(text) {
        Ok(glob) => Ok(Wanted { text, glob }),
        Err(why) => Err(invalid(field, format!("{field} must be a glob; got {text:?}: {why}"))),
    }
}

/// The first glob of the lease that one of these overlaps with, and which.
fn overlap<'r>(wanted: &[Wanted<'r>], lease: &'r ScopeLease, work: &mut u64) -> Outcome<Option<(&'r str, &'r str)>> {
    for theirs in &lease.globs {
        *work += wanted.len() as u64;
        let near: Vec<&Wanted<'_>> = wanted.iter().filter(|mine| !begin_apart(mine.text, theirs)).collect();
        if near.is_empty() {
            continue;
        }
        let corrupt =
            |why: String| Fatal::Corrupt(format!("scope lease {:?} has the glob {theirs:?}: {why}", lease.id));
        let glob = Glob::parse(theirs).map_err(corrupt)?;
        *work += theirs.len() as u64;
        for mine in near {
            if mine.glob.overlaps_counted(&glob, work) {
                return Ok(Some((mine.text, theirs.as_str())));
            }
            if *work > MAX_WORK {
                let message = "globs take too much comparing with those that are held; ask for fewer, or for some \
                               that begin with more plain text";
                return Err(exhausted("globs", message));
            }
        }
    }
    Ok(None)
}
