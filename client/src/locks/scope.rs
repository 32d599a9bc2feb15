//! Scope leases: a set of globs that nobody else may hold a part of.
//!
//! Deliberately absent: waiting. Whoever is refused is told who is in the way, and can do something else first.

use quorate_proto::v1::{
    AcquireScopeRequest, AcquireScopeResponse, Fence, FenceKind, ListScopesResponse, LockMode, ReleaseScopeResponse,
    ScopeLease,
};
use tokio::time::sleep;

use super::{Locks, WITHDRAWALS, stub};
use crate::background::in_background;
use crate::call::Plan;
use crate::client::new_id;
use crate::error::Error;
use crate::sessions::Session;

/// No lease has it: tokens are revs.
const NO_TOKEN: u64 = 0;

/// Puts together how a scope lease is taken.
#[derive(Debug, Clone)]
#[must_use = "nothing is taken before acquire()"]
pub struct ScopeBuilder {
    locks: Locks,
    session: Session,
    request: AcquireScopeRequest,
}

impl ScopeBuilder {
    pub(super) fn new(locks: Locks, session: Session, realm: String, globs: Vec<String>) -> Self {
        let request = AcquireScopeRequest {
            // Chosen here, so that a lease whose taker did not hear of it can be given back.
            id: new_id("scope"),
            realm,
            globs,
            mode: LockMode::Exclusive as i32,
            session_id: session.id().to_owned(),
            // One of its own: leases of one owner may overlap, and two tasks of one session are two.
            owner: new_id("o"),
            ..AcquireScopeRequest::default()
        };
        ScopeBuilder { locks, session, request }
    }

    /// Its id, for others to look it up by. Drawn unless said otherwise.
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.request.id = id.into();
        self
    }

    /// Who within the session takes it. Leases of one owner may overlap. Unless said otherwise every builder is an owner
    /// of its own.
    pub fn owner(mut self, owner: impl Into<String>) -> Self {
        self.request.owner = owner.into();
        self
    }

    /// Together with other shared holders.
    pub fn shared(mut self) -> Self {
        self.request.mode = LockMode::Shared as i32;
        self
    }

    /// Ends with this attempt of a task too.
    pub fn for_task(mut self, task_id: impl Into<String>, token: u64) -> Self {
        self.request.task_id = task_id.into();
        self.request.task_token = token;
        self
    }

    /// For whoever looks at who holds it.
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.request.note = note.into();
        self
    }

    /// Takes all of it or nothing. `Rejected` with `FAILED_PRECONDITION`: somebody holds what overlaps (the message names
    /// who); with `INVALID_ARGUMENT`: a glob that does not parse.
    pub async fn acquire(self) -> Result<ScopeGuard, Error> {
        let mut taking = Taking { scope: &self, may_be_held: true };
        let answer = self.ask().await;
        // Who was refused has nothing to give back, and who was granted it has a guard for that.
        taking.may_be_held = matches!(answer, Err(Error::Unavailable { .. } | Error::OutcomeUnknown { .. }));
        let lease = answer?.lease.unwrap_or_default();
        Ok(ScopeGuard { locks: self.locks.clone(), session: self.session.clone(), lease, is_given_back: false })
    }

    async fn ask(&self) -> Result<AcquireScopeResponse, Error> {
        let under_way = self.session.begin();
        let request = AcquireScopeRequest { request: Some(under_way.id()), ..self.request.clone() };
        self.locks
            .client
            .call(Plan::SAFE, |channel| {
                let request = request.clone();
                async move { stub(channel).acquire_scope(request).await }
            })
            .await
    }
}

/// A lease that may have been granted without anybody hearing of it.
struct Taking<'a> {
    scope: &'a ScopeBuilder,
    may_be_held: bool,
}

impl Drop for Taking<'_> {
    fn drop(&mut self) {
        if self.may_be_held && self.scope.session.is_alive() {
            let ScopeBuilder { locks, session, request } = self.scope.clone();
            in_background(give_back_unheard(locks, session, request));
        }
    }
}

/// Tries to take it back until it was there to be taken back, or the last look found nothing.
async fn give_back_unheard(locks: Locks, session: Session, request: AcquireScopeRequest) {
    for pause in &WITHDRAWALS {
        sleep(*pause).await;
        if !session.is_alive() {
            return;
        }
        match take_back(&locks, &session, &request).await {
            Ok(true) => return,
            // Not there yet, or not there at all.
            Ok(false) => {}
            Err(error) => tracing::warn!(scope = request.id, %error, "could not look for a lease that nobody heard of"),
        }
    }
}

/// Shuts the door behind the calls that were given up, then looks for the lease by its id and owner, and gives it back by
/// the token that nobody was told. Whether there was one.
async fn take_back(locks: &Locks, session: &Session, request: &AcquireScopeRequest) -> Result<bool, Error> {
    // Under a request id of its own, which says that those of the calls that were given up are done: one that arrives
    // later is refused. Older requests that are under way meanwhile keep it from saying so: hence more than once.
    shut(locks.release_scope_with(Some(session), &request.id, NO_TOKEN).await)?;
    let found = locks.scopes(&request.realm, request.globs.clone()).await?;
    match token_of(&found, request) {
        Some(token) => locks.release_scope_with(Some(session), &request.id, token).await.map(|_| true),
        None => Ok(false),
    }
}

/// A release of nothing is refused, and the refusal is on record, with its request id.
fn shut(answer: Result<ReleaseScopeResponse, Error>) -> Result<(), Error> {
    match answer {
        Ok(_) | Err(Error::Fenced { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

fn token_of(found: &ListScopesResponse, request: &AcquireScopeRequest) -> Option<u64> {
    let is_ours = |lease: &&ScopeLease| {
        lease.id == request.id && lease.session_id == request.session_id && lease.owner == request.owner
    };
    found.leases.iter().find(is_ours).map(|lease| lease.token)
}

/// A scope lease that is held. Dropping it gives it back in the background; [`ScopeGuard::release`] says whether that was
/// in time.
#[derive(Debug)]
#[must_use = "dropping the guard gives the lease back"]
pub struct ScopeGuard {
    locks: Locks,
    session: Session,
    lease: ScopeLease,
    is_given_back: bool,
}

impl ScopeGuard {
    /// Its id.
    pub fn id(&self) -> &str {
        &self.lease.id
    }

    /// The rev of the grant: larger than that of any earlier one.
    pub fn token(&self) -> u64 {
        self.lease.token
    }

    /// The lease as it was granted.
    pub fn lease(&self) -> &ScopeLease {
        &self.lease
    }

    /// What makes a write happen only while this lease is held: `client.fenced([guard.fence()])?`.
    pub fn fence(&self) -> Fence {
        Fence { kind: FenceKind::Scope as i32, name: self.lease.id.clone(), token: self.lease.token }
    }

    /// Resolves when the lease is over for all this client knows: its session has ended. Of a force by an operator, or
    /// the end of the attempt that it hangs on, only the fence knows.
    pub async fn lost(&self) {
        self.session.ended().await;
    }

    /// Gives it back. `Fenced`: the lease was over before, so that others may have held it meanwhile.
    pub async fn release(mut self) -> Result<(), Error> {
        let released = self.locks.release_scope_with(Some(&self.session), &self.lease.id, self.lease.token).await;
        // What may not have arrived is sent once more by dropping it.
        self.is_given_back = !matches!(released, Err(Error::Unavailable { .. } | Error::OutcomeUnknown { .. }));
        released.map(drop)
    }
}

impl Drop for ScopeGuard {
    fn drop(&mut self) {
        if self.is_given_back || !self.session.is_alive() {
            return;
        }
        let (locks, session) = (self.locks.clone(), self.session.clone());
        let (id, token) = (self.lease.id.clone(), self.lease.token);
        in_background(async move {
            if let Err(error) = locks.release_scope_with(Some(&session), &id, token).await {
                tracing::warn!(scope = id, %error, "a scope was not given back; it ends with its session");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::*;

    #[tokio::test]
    async fn only_ones_own_lease_is_given_back() {
        let session = Session::alone(Duration::from_secs(60), Instant::now());
        let locks = Locks { client: session.client().clone() };
        let ours = locks.acquire_scope(&session, "repo:web", ["src/**"]).id("web").request;
        let lease = |owner: &str, token| ScopeLease {
            id: "web".to_owned(),
            session_id: ours.session_id.clone(),
            owner: owner.to_owned(),
            token,
            ..ScopeLease::default()
        };
        let found = |leases| ListScopesResponse { leases, ..ListScopesResponse::default() };
        assert_eq!(token_of(&found(vec![lease("another", 5)]), &ours), None);
        assert_eq!(token_of(&found(vec![lease("another", 5), lease(&ours.owner, 7)]), &ours), Some(7));
    }

    #[test]
    fn a_refusal_shuts_the_door_and_silence_does_not() {
        let stale = Error::Fenced { field: "token".to_owned(), message: "not held".to_owned() };
        assert!(shut(Err(stale)).is_ok());
        let unheard = Error::OutcomeUnknown { message: "lost".to_owned() };
        assert!(matches!(shut(Err(unheard)), Err(Error::OutcomeUnknown { .. })));
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_be_on_its_way_is_looked_for_more_than_once_while_the_session_lives() {
        let session = Session::alone(Duration::from_secs(60), Instant::now());
        let locks = Locks { client: session.client().clone() };
        let request = locks.acquire_scope(&session, "r", ["a"]).request;
        let began = Instant::now();
        give_back_unheard(locks.clone(), session.clone(), request.clone()).await;
        assert!(began.elapsed() >= WITHDRAWALS.iter().sum::<Duration>(), "looked for {:?}", began.elapsed());
        session.lost();
        let began = Instant::now();
        give_back_unheard(locks, session, request).await;
        assert!(began.elapsed() < WITHDRAWALS[1]);
    }

    #[tokio::test]
    async fn two_tasks_of_one_session_are_two_owners() {
        let session = Session::alone(Duration::from_secs(60), Instant::now());
        let locks = Locks { client: session.client().clone() };
        let owner = || locks.acquire_scope(&session, "r", ["a"]).request.owner;
        assert_ne!(owner(), owner());
    }
}
