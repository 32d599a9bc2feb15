//! Locks and scope leases: taken, waited for, given back, looked at. The state grants; a call that waits is a matter of
//! the node it came to, follower or leader.
//!
//! Deliberately absent: the withdrawal of a caller that has gone. It may have called another node for the same owner by
//! then, and withdrawing the one call would take away the place of the other. The place ends with its time, or when the
//! client, which alone knows, withdraws it.

use std::time::Duration;

use quorate_proto::log::command;
use quorate_proto::v1::locks_server::Locks;
use quorate_proto::v1::{
    AcquireLockRequest, AcquireLockResponse, AcquireScopeRequest, AcquireScopeResponse, Consistency, ExtendLockRequest,
    ExtendLockResponse, ForceReleaseLockRequest, ForceReleaseLockResponse, ForceReleaseScopeRequest,
    ForceReleaseScopeResponse, GetLockRequest, GetLockResponse, ListLocksRequest, ListLocksResponse, ListScopesRequest,
    ListScopesResponse, Lock, LockHolder, ReleaseLockRequest, ReleaseLockResponse, ReleaseScopeRequest,
    ReleaseScopeResponse,
};
use quorate_raft::error::{Outcome, not_found, precondition};
use quorate_raft::replica::View;
use quorate_raft::state::check_id;
use quorate_raft::state::locks::MAX_WAIT_MS;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::{Door, checked, expect_arm, rows_wanted, status};
use crate::hub::RECHECK;
use crate::propose::ProposeError;

const LIST_DEFAULT: usize = 1_000;
const LIST_MAX: usize = 10_000;
/// How long a call waits for the state to say that its time is up.
const SLACK: Duration = Duration::from_secs(1);
/// How long a waiting call trusts that its node hears of grants. One that is cut off must not keep its callers waiting.
const SURE: Duration = Duration::from_secs(5);

#[tonic::async_trait]
impl Locks for Door {
    async fn acquire(&self, request: Request<AcquireLockRequest>) -> Result<Response<AcquireLockResponse>, Status> {
        let request = request.into_inner();
        checked(check_id("name", &request.name))?;
        checked(check_id("session_id", &request.session_id))?;
        check_owner(&request.owner)?;
        if request.wait_ms > MAX_WAIT_MS {
            let message = format!("wait_ms must be at most {MAX_WAIT_MS}; got {}", request.wait_ms);
            return Err(status::invalid("wait_ms", message));
        }
        Ok(self.respond(self.acquire_or_wait(request).await?))
    }

    async fn extend(&self, request: Request<ExtendLockRequest>) -> Result<Response<ExtendLockResponse>, Status> {
        let mut request = request.into_inner();
        checked(check_id("name", &request.name))?;
        let body = self.propose(request.request.take(), command::Body::ExtendLock(request)).await?;
        Ok(self.respond(expect_arm!(ExtendLock, body)?))
    }

    async fn release(&self, request: Request<ReleaseLockRequest>) -> Result<Response<ReleaseLockResponse>, Status> {
        let mut request = request.into_inner();
        checked(check_id("name", &request.name))?;
        check_owner(&request.owner)?;
        let body = self.propose(request.request.take(), command::Body::ReleaseLock(request)).await?;
        Ok(self.respond(expect_arm!(ReleaseLock, body)?))
    }

    async fn force_release(
        &self,
        request: Request<ForceReleaseLockRequest>,
    ) -> Result<Response<ForceReleaseLockResponse>, Status> {
        let mut request = request.into_inner();
        checked(check_id("name", &request.name))?;
        let body = self.propose(request.request.take(), command::Body::ForceReleaseLock(request)).await?;
        Ok(self.respond(expect_arm!(ForceReleaseLock, body)?))
    }

    async fn get(&self, request: Request<GetLockRequest>) -> Result<Response<GetLockResponse>, Status> {
        let request = request.into_inner();
        checked(check_id("name", &request.name))?;
        let response = self
            .read(request.consistency(), |view| {
                let lock = view.rooms.locks.get(&request.name).cloned();
                Ok(GetLockResponse { lock, now_ms: view.head.now_ms, rev: view.head.rev })
            })
            .await?;
        Ok(self.respond(response))
    }

    async fn list(&self, request: Request<ListLocksRequest>) -> Result<Response<ListLocksResponse>, Status> {
        let request = request.into_inner();
        let limit = rows_wanted("limit", request.limit, LIST_DEFAULT, LIST_MAX)?;
        let response = self
            .read(request.consistency(), |view| {
                let locks = view.rooms.locks.list(&request.prefix, &request.after, limit);
                let locks = locks.into_iter().cloned().collect();
                Ok(ListLocksResponse { locks, now_ms: view.head.now_ms, rev: view.head.rev })
            })
            .await?;
        Ok(self.respond(response))
    }

    async fn acquire_scope(
        &self,
        request: Request<AcquireScopeRequest>,
    ) -> Result<Response<AcquireScopeResponse>, Status> {
        let mut request = request.into_inner();
        checked(check_id("realm", &request.realm))?;
        checked(check_id("session_id", &request.session_id))?;
        check_owner(&request.owner)?;
        let body = self.propose(request.request.take(), command::Body::AcquireScope(request)).await?;
        Ok(self.respond(expect_arm!(AcquireScope, body)?))
    }

    async fn release_scope(
        &self,
        request: Request<ReleaseScopeRequest>,
    ) -> Result<Response<ReleaseScopeResponse>, Status> {
        let mut request = request.into_inner();
        checked(check_id("id", &request.id))?;
        let body = self.propose(request.request.take(), command::Body::ReleaseScope(request)).await?;
        Ok(self.respond(expect_arm!(ReleaseScope, body)?))
    }

    async fn force_release_scope(
        &self,
        request: Request<ForceReleaseScopeRequest>,
    ) -> Result<Response<ForceReleaseScopeResponse>, Status> {
        let mut request = request.into_inner();
        checked(check_id("id", &request.id))?;
        let body = self.propose(request.request.take(), command::Body::ForceReleaseScope(request)).await?;
        Ok(self.respond(expect_arm!(ForceReleaseScope, body)?))
    }

    async fn list_scopes(&self, request: Request<ListScopesRequest>) -> Result<Response<ListScopesResponse>, Status> {
        let request = request.into_inner();
        let response = self
            .read(request.consistency(), |view| {
                let leases = view.rooms.locks.overlapping(&request.realm, &request.globs)?;
                let leases = leases.into_iter().cloned().collect();
                Ok(ListScopesResponse { leases, now_ms: view.head.now_ms, rev: view.head.rev })
            })
            .await?;
        Ok(self.respond(response))
    }
}

/// Empty is the session itself.
fn check_owner(owner: &str) -> Result<(), Status> {
    if owner.is_empty() { Ok(()) } else { checked(check_id("owner", owner)) }
}

impl Door {
    /// Asks once; who has to wait stands in line in the state, and this call looks on until that ends.
    async fn acquire_or_wait(&self, mut request: AcquireLockRequest) -> Result<AcquireLockResponse, Status> {
        let deadline = Instant::now() + Duration::from_millis(request.wait_ms) + SLACK;
        let changed = self.hub().await?.lock_changed(&request.name);
        let id = request.request.take();
        let body = self.propose(id, command::Body::AcquireLock(request.clone())).await?;
        let asked = expect_arm!(AcquireLock, body)?;
        if asked.holder.is_some() {
            return Ok(asked);
        }
        let mut sure_until = Instant::now() + SURE;
        loop {
            // Listening before looking: a grant in between is not missed.
            let mut wake = Box::pin(changed.notified());
            wake.as_mut().enable();
            if let Some(grant) = self.read(Consistency::Stale, |view| granted(&view, &request, asked.rev)).await? {
                return Ok(grant);
            }
            let now = Instant::now();
            if now >= deadline {
                return Err(self.in_line(&request, "and nothing has ended the wait, though its time is up"));
            }
            if now >= sure_until {
                if let Err(status) = self.fresh().await {
                    return Err(self.in_line(&request, &format!("and this node is cut off: {}", status.message())));
                }
                sure_until = Instant::now() + SURE;
                continue;
            }
            tokio::select! {
                () = wake => {}
                () = tokio::time::sleep_until(deadline.min(now + RECHECK)) => {}
                // A call that stays on would hold up the stop. Asked elsewhere, the owner has its place still.
                _reason = self.core.closing.wait() => return Err(self.in_line(&request, "and this node is stopping")),
            }
        }
    }

    /// The owner waits, and may be granted the lock yet: no refusal.
    fn in_line(&self, request: &AcquireLockRequest, why: &str) -> Status {
        let message = format!("the owner stands in line for lock {:?}, {why}", request.name);
        status::not_proposed(&ProposeError::Unknown(message), self.core.leader_hint())
    }
}

/// What became of a wait that was answered at `asked_rev`: the grant, nothing yet, or why it is over.
fn granted(view: &View<'_>, request: &AcquireLockRequest, asked_rev: u64) -> Outcome<Option<AcquireLockResponse>> {
    // Another node's answer, not applied here yet. What the owner held before that is not the grant.
    if view.head.rev < asked_rev {
        return Ok(None);
    }
    let AcquireLockRequest { name, session_id, owner, wait_ms, .. } = request;
    let locks = &view.rooms.locks;
    if let Some(holder) = locks.grant_of(name, session_id, owner) {
        let (rev, now_ms) = (holder.token, view.head.now_ms);
        return Ok(Some(AcquireLockResponse { holder: Some(holder.clone()), position: 0, rev, now_ms }));
    }
    if locks.position_of(name, session_id, owner).is_some() {
        return Ok(None);
    }
    if view.rooms.sessions.get(session_id).is_none() {
        return Err(not_found("session_id", format!("session {session_id:?} has ended, and its wait with it")));
    }
    let held = held_by(locks.get(name));
    let message = format!("lock {name:?} was not granted within {wait_ms} ms, or its wait was ended; {held}");
    Err(precondition("wait_ms", message))
}

/// Who is in the way, for people.
fn held_by(lock: Option<&Lock>) -> String {
    let Some(LockHolder { session_id, owner, token, .. }) = lock.and_then(|lock| lock.holders.first()) else {
        return "nobody holds it now".to_owned();
    };
    let by = if owner == session_id { session_id.clone() } else { format!("{session_id}/{owner}") };
    format!("it is held by {by} under token {token}")
}

#[cfg(test)]
mod tests {
    use quorate_proto::log::{Command, Tick, answer};
    use quorate_proto::v1::{CloseSessionRequest, OpenSessionRequest};
    use quorate_raft::apply::Machine;
    use quorate_raft::error::Error;

    use super::*;

    const WAIT_MS: u64 = 1_000;

    fn apply(machine: &mut Machine, now_ms: u64, body: command::Body) -> u64 {
        let command = Command { body: Some(body), ..Command::default() };
        let answer = machine.apply(now_ms, 0, vec![command]).unwrap().remove(0);
        assert!(!matches!(answer.body, Some(answer::Body::Rejected(_))), "{answer:?}");
        answer.rev
    }

    fn wanted(session_id: &str) -> AcquireLockRequest {
        AcquireLockRequest {
            name: "db".to_owned(),
            session_id: session_id.to_owned(),
            wait_ms: WAIT_MS,
            ..AcquireLockRequest::default()
        }
    }

    /// Session `a` holds the lock, `b` waits for it; and the revs of both.
    fn one_waits() -> (Machine, u64, u64) {
        let mut machine = Machine::in_memory();
        for session_id in ["a", "b"] {
            let request = OpenSessionRequest {
                session_id: session_id.to_owned(),
                ttl_ms: 10_000,
                ..OpenSessionRequest::default()
            };
            apply(&mut machine, 0, command::Body::OpenSession(request));
        }
        let held = apply(&mut machine, 0, command::Body::AcquireLock(wanted("a")));
        let asked = apply(&mut machine, 0, command::Body::AcquireLock(wanted("b")));
        (machine, held, asked)
    }

    /// What the call of session `b` is told that was answered at `asked_rev`: a token, or the field of a refusal.
    fn told(machine: &Machine, asked_rev: u64) -> Result<Option<u64>, String> {
        let view = View { rooms: machine.rooms(), rows: &machine.rows, head: &machine.head };
        match granted(&view, &wanted("b"), asked_rev) {
            Ok(grant) => Ok(grant.map(|grant| grant.rev)),
            Err(Error::Rejected(rejection)) => Err(format!("{}: {}", rejection.field, rejection.message)),
            Err(Error::Fatal(fatal)) => panic!("{fatal}"),
        }
    }

    #[test]
    fn who_waits_is_told_of_the_grant() {
        let (mut machine, held, asked) = one_waits();
        assert_eq!(told(&machine, asked), Ok(None));
        let release = ReleaseLockRequest { name: "db".to_owned(), token: held, ..ReleaseLockRequest::default() };
        let released = apply(&mut machine, 10, command::Body::ReleaseLock(release));
        assert_eq!(told(&machine, asked), Ok(Some(released)));
        let view = View { rooms: machine.rooms(), rows: &machine.rows, head: &machine.head };
        let grant = granted(&view, &wanted("b"), asked).unwrap().unwrap();
        assert_eq!((grant.holder.map(|holder| holder.token), grant.now_ms), (Some(released), 10));
    }

    #[test]
    fn a_wait_whose_time_is_up_says_who_holds_the_lock() {
        let (mut machine, held, asked) = one_waits();
        apply(&mut machine, WAIT_MS, command::Body::Tick(Tick {}));
        let refusal = told(&machine, asked).unwrap_err();
        assert!(refusal.starts_with("wait_ms: "), "{refusal}");
        assert!(refusal.ends_with(&format!("held by a under token {held}")), "{refusal}");
    }

    #[test]
    fn a_wait_ends_with_its_session() {
        let (mut machine, _, asked) = one_waits();
        let close = CloseSessionRequest { session_id: "b".to_owned() };
        apply(&mut machine, 10, command::Body::CloseSession(close));
        assert!(told(&machine, asked).unwrap_err().starts_with("session_id: "));
    }

    #[test]
    fn a_node_that_is_behind_says_neither_yes_nor_no() {
        let (machine, held, asked) = one_waits();
        // It would see nobody in line, or a grant from before.
        assert_eq!(told(&Machine::in_memory(), asked), Ok(None));
        let view = View { rooms: machine.rooms(), rows: &machine.rows, head: &machine.head };
        assert!(granted(&view, &wanted("a"), asked + 1).unwrap().is_none());
        assert_eq!(granted(&view, &wanted("a"), asked).unwrap().map(|grant| grant.rev), Some(held));
    }
}
