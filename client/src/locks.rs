//! Locks: who holds what. [`Locks::lock`] takes one and holds it by a guard; so does [`Locks::acquire_scope`] with globs.
//!
//! Deliberately absent: safety by the guard alone. A process that was paused does not know that its time is up; what is
//! written under a lock carries its [fence](LockGuard::fence).

mod acquire;
mod grant;
mod guard;
mod scope;

use std::time::Duration;

use quorate_proto::v1::locks_client::LocksClient;
use quorate_proto::v1::{
    ExtendLockRequest, ExtendLockResponse, ForceReleaseLockRequest, ForceReleaseLockResponse, ForceReleaseScopeRequest,
    ForceReleaseScopeResponse, GetLockRequest, GetLockResponse, ListLocksRequest, ListLocksResponse, ListScopesRequest,
    ListScopesResponse, ReleaseLockRequest, ReleaseLockResponse, ReleaseScopeRequest, ReleaseScopeResponse,
};

use crate::call::{Outcome, Plan};
use crate::channels::Channel;
use crate::client::Client;
use crate::error::Error;
use crate::requests::{identify, judged, removed};
use crate::sessions::Session;

pub use acquire::LockBuilder;
pub use guard::LockGuard;
pub use scope::{ScopeBuilder, ScopeGuard};

/// The pauses before each look for something that has to be taken back while the call that may have taken it is perhaps
/// still on its way.
static WITHDRAWALS: [Duration; 3] = [Duration::ZERO, Duration::from_secs(1), Duration::from_secs(5)];

/// Who holds what.
#[derive(Debug, Clone)]
pub struct Locks {
    pub(crate) client: Client,
}

fn stub(channel: Channel) -> LocksClient<Channel> {
    LocksClient::new(channel)
        .max_decoding_message_size(crate::MAX_MESSAGE_BYTES * 4)
        .max_encoding_message_size(crate::MAX_MESSAGE_BYTES)
}

/// A release that finds nothing to release, after an attempt of unknown outcome, finds that attempt's work.
fn released<T: Default>(outcome: Outcome<T>, identified: bool) -> Result<T, Error> {
    if matches!(&outcome.result, Err(error) if error.fence_is_over()) {
        // It is about the caller's fence, and says nothing of the grant.
        return judged(outcome, identified);
    }
    match outcome.result {
        Err(Error::Fenced { .. }) if outcome.doubt => Ok(T::default()),
        _ => removed(outcome),
    }
}

impl Locks {
    /// Begins to take a lock: `locks.lock(&session, "deploy").wait(limit).acquire()`. The guard gives it back when it is
    /// dropped, and the cluster does when the session ends.
    pub fn lock(&self, session: &Session, name: impl Into<String>) -> LockBuilder {
        LockBuilder::new(self.clone(), session.clone(), name.into())
    }

    /// Begins to take everything in a realm that any of the globs matches: all of it or nothing, at once or not at all.
    /// Which globs there are says `proto/quorate/v1/locks.proto`.
    pub fn acquire_scope(
        &self,
        session: &Session,
        realm: impl Into<String>,
        globs: impl IntoIterator<Item = impl Into<String>>,
    ) -> ScopeBuilder {
        let globs = globs.into_iter().map(Into::into).collect();
        ScopeBuilder::new(self.clone(), session.clone(), realm.into(), globs)
    }

    /// One lock with its holders and who waits for it. `lock` is not set if nobody does either.
    pub async fn get(&self, name: &str) -> Result<GetLockResponse, Error> {
        let request = GetLockRequest { name: name.to_owned(), consistency: 0 };
        self.client
            .call(Plan::READ, |channel| {
                let request = request.clone();
                async move { stub(channel).get(request).await }
            })
            .await
    }

    /// A page of the locks that are held or waited for, by name.
    pub async fn list(&self, request: ListLocksRequest) -> Result<ListLocksResponse, Error> {
        self.client
            .call(Plan::READ, |channel| {
                let request = request.clone();
                async move { stub(channel).list(request).await }
            })
            .await
    }

    /// Moves the end of a grant with a TTL to now + TTL; a guard does so by itself. `Fenced`: the grant is over.
    pub async fn extend(&self, name: &str, token: u64) -> Result<ExtendLockResponse, Error> {
        self.extend_by(Plan::SAFE, name, token).await.result
    }

    /// Gives a grant back by its token, and the lock to who is next. `Fenced`: the grant is over.
    pub async fn release(&self, name: &str, token: u64) -> Result<ReleaseLockResponse, Error> {
        let request = ReleaseLockRequest { name: name.to_owned(), token, ..ReleaseLockRequest::default() };
        self.release_with(None, request).await
    }

    /// Ends every grant of a lock, whoever holds it: they are fenced from then on. A call of unknown outcome is not
    /// repeated, or it could end the next holder's grant as well.
    pub async fn force_release(&self, name: &str, reason: &str) -> Result<ForceReleaseLockResponse, Error> {
        let request = ForceReleaseLockRequest { name: name.to_owned(), reason: reason.to_owned(), request: None };
        self.client
            .call(Plan::UNSAFE, |channel| {
                let request = request.clone();
                async move { stub(channel).force_release(request).await }
            })
            .await
    }

    /// Who holds what overlaps with these globs; a plain path is a glob. An empty realm and no globs: every lease.
    pub async fn scopes(
        &self,
        realm: &str,
        globs: impl IntoIterator<Item = impl Into<String>>,
    ) -> Result<ListScopesResponse, Error> {
        let globs = globs.into_iter().map(Into::into).collect();
        let request = ListScopesRequest { realm: realm.to_owned(), globs, consistency: 0 };
        self.client
            .call(Plan::READ, |channel| {
                let request = request.clone();
                async move { stub(channel).list_scopes(request).await }
            })
            .await
    }

    /// Gives a scope lease back by its token. `Fenced`: the lease is over.
    pub async fn release_scope(&self, id: &str, token: u64) -> Result<ReleaseScopeResponse, Error> {
        self.release_scope_with(None, id, token).await
    }

    /// Ends a scope lease, whoever holds it: its holder is fenced from then on. A call of unknown outcome is not
    /// repeated, or it could end a later lease of the same id.
    pub async fn force_release_scope(&self, id: &str, reason: &str) -> Result<ForceReleaseScopeResponse, Error> {
        self.force_release_scope_by(Plan::UNSAFE, id, reason).await
    }

    async fn extend_by(&self, plan: Plan, name: &str, token: u64) -> Outcome<ExtendLockResponse> {
        let request = ExtendLockRequest { name: name.to_owned(), token, ttl_ms: 0, request: None };
        self.client
            .call_in_full(plan, |channel| {
                let request = request.clone();
                async move { stub(channel).extend(request).await }
            })
            .await
    }

    async fn release_with(
        &self,
        session: Option<&Session>,
        mut request: ReleaseLockRequest,
    ) -> Result<ReleaseLockResponse, Error> {
        let _under_way = identify(&mut request.request, session);
        let outcome = self
            .client
            .call_in_full(Plan::SAFE, |channel| {
                let request = request.clone();
                async move { stub(channel).release(request).await }
            })
            .await;
        released(outcome, request.request.is_some())
    }

    async fn release_scope_with(
        &self,
        session: Option<&Session>,
        id: &str,
        token: u64,
    ) -> Result<ReleaseScopeResponse, Error> {
        let mut request = ReleaseScopeRequest { id: id.to_owned(), token, request: None };
        let _under_way = identify(&mut request.request, session);
        let outcome = self
            .client
            .call_in_full(Plan::SAFE, |channel| {
                let request = request.clone();
                async move { stub(channel).release_scope(request).await }
            })
            .await;
        released(outcome, request.request.is_some())
    }

    async fn force_release_scope_by(
        &self,
        plan: Plan,
        id: &str,
        reason: &str,
    ) -> Result<ForceReleaseScopeResponse, Error> {
        let request = ForceReleaseScopeRequest { id: id.to_owned(), reason: reason.to_owned(), request: None };
        self.client
            .call(plan, |channel| {
                let request = request.clone();
                async move { stub(channel).force_release_scope(request).await }
            })
            .await
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[test]
    fn a_release_that_may_have_happened_and_finds_another_grant_has_happened() {
        let fenced = |field: &str, doubt| {
            let result = Err(Error::Fenced { field: field.to_owned(), message: "the grant is over".to_owned() });
            Outcome::<ReleaseLockResponse> { result, sent: Instant::now(), doubt, node: None }
        };
        assert!(matches!(released(fenced("token", false), true), Err(Error::Fenced { .. })));
        assert_eq!(released(fenced("token", true), true).unwrap(), ReleaseLockResponse::default());
        // It was the caller's fence: by one id, the first attempt was refused as well.
        assert!(matches!(released(fenced("fence", true), true), Err(Error::Fenced { .. })));
        assert!(matches!(released(fenced("fence", true), false), Err(Error::OutcomeUnknown { .. })));
    }
}
