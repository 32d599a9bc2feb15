//! A lock that is held: extended while it has a TTL, given back when it is dropped.

use std::sync::Arc;
use std::time::Duration;

use quorate_proto::v1::{Fence, FenceKind, LockHolder, ReleaseLockRequest};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::Locks;
use super::grant::{Grant, extension};
use crate::background::in_background;
use crate::call::Outcome;
use crate::error::Error;
use crate::sessions::Session;

/// A lock that is held. Dropping it gives the lock back in the background; [`LockGuard::release`] says whether that was
/// in time.
#[derive(Debug)]
#[must_use = "dropping the guard gives the lock back"]
pub struct LockGuard {
    locks: Locks,
    session: Session,
    name: String,
    holder: LockHolder,
    /// When the cluster ends it, extended or not, by the local clock.
    forced_at: Option<Instant>,
    /// An extension was refused, or came too late.
    expired: Arc<watch::Sender<bool>>,
    keeper: Option<AbortHandle>,
    is_given_back: bool,
}

impl LockGuard {
    pub(super) fn of(locks: Locks, session: Session, grant: Grant) -> Self {
        let expired = Arc::new(watch::Sender::new(false));
        let (forced_at, term) = (grant.forced_at(), grant.ttl().zip(grant.ends()));
        let Grant { name, holder, .. } = grant;
        let keeper = term.map(|term| {
            let (locks, name, expired) = (locks.clone(), name.clone(), Arc::clone(&expired));
            tokio::spawn(keep(locks, name, holder.token, term, expired)).abort_handle()
        });
        LockGuard { locks, session, name, holder, forced_at, expired, keeper, is_given_back: false }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The rev of the grant: larger than that of any earlier one.
    pub fn token(&self) -> u64 {
        self.holder.token
    }

    /// Who holds it within the session.
    pub fn owner(&self) -> &str {
        &self.holder.owner
    }

    /// What makes a write happen only while this grant is held: `client.fenced([guard.fence()])?`.
    pub fn fence(&self) -> Fence {
        Fence { kind: FenceKind::Lock as i32, name: self.name.clone(), token: self.holder.token }
    }

    /// Resolves when the grant is over for all this client knows: its session has ended, an extension was refused, or it
    /// was held for as long as it may be. Of a force by an operator, or the end of the attempt that it hangs on, only a
    /// grant with a TTL hears. The fence needs no telling.
    pub async fn lost(&self) {
        let mut expired = self.expired.subscribe();
        while self.is_held() {
            tokio::select! {
                () = self.session.ended() => {}
                // The sender lives in this very guard, so a change is the only thing this can bring.
                _changed = expired.changed() => {}
                () = at(self.forced_at) => {}
            }
        }
    }

    /// Whether, for all this client knows, it is held.
    pub fn is_held(&self) -> bool {
        let is_forced = self.forced_at.is_some_and(|at| Instant::now() >= at);
        self.session.is_alive() && !*self.expired.borrow() && !is_forced
    }

    /// Gives it back. `Fenced`: the grant was over before, so that others may have held the lock meanwhile.
    pub async fn release(mut self) -> Result<(), Error> {
        let released = self.locks.release_with(Some(&self.session), self.giving_back()).await;
        // What may not have arrived is sent once more by dropping it.
        self.is_given_back = !matches!(released, Err(Error::Unavailable { .. } | Error::OutcomeUnknown { .. }));
        released.map(drop)
    }

    fn giving_back(&self) -> ReleaseLockRequest {
        ReleaseLockRequest { name: self.name.clone(), token: self.holder.token, ..ReleaseLockRequest::default() }
    }
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        if let Some(keeper) = &self.keeper {
            keeper.abort();
        }
        if self.is_given_back || !self.session.is_alive() {
            return;
        }
        let (locks, session, request) = (self.locks.clone(), self.session.clone(), self.giving_back());
        in_background(async move {
            let name = request.name.clone();
            if let Err(error) = locks.release_with(Some(&session), request).await {
                tracing::warn!(lock = name, %error, "a lock was not given back; it ends with its session at the latest");
            }
        });
    }
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

/// Extends the grant every third of its TTL, beginning when two thirds are left, until that is refused or its time is up.
/// The time counts from when the call that was answered was *sent*: the cluster cannot have started its own count before
/// that.
async fn keep(
    locks: Locks,
    name: String,
    token: u64,
    (ttl, mut ends): (Duration, Instant),
    expired: Arc<watch::Sender<bool>>,
) {
    let left = ends.saturating_duration_since(Instant::now());
    let mut next = Instant::now() + left.saturating_sub(ttl * 2 / 3);
    loop {
        sleep_until(next.min(ends)).await;
        if Instant::now() >= ends {
            break;
        }
        match timeout_at(ends, locks.extend_by(extension(ttl, ends), &name, token)).await {
            Ok(Outcome { result: Ok(_), sent, .. }) => ends = ends.max(sent + ttl),
            Ok(Outcome { result: Err(error @ (Error::Unavailable { .. } | Error::OutcomeUnknown { .. })), .. }) => {
                tracing::warn!(lock = name, %error, "an extension failed");
            }
            Ok(_) | Err(_) => break,
        }
        next = Instant::now() + ttl / 3;
    }
    tracing::warn!(lock = name, token, "a lock was lost");
    expired.send_replace(true);
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    const TTL: Duration = Duration::from_secs(60);

    fn guard(session: &Session, holder: LockHolder) -> LockGuard {
        let locks = Locks { client: session.client().clone() };
        let grant = Grant::told("deploy".to_owned(), holder, 0, Instant::now());
        LockGuard::of(locks, session.clone(), grant)
    }

    #[tokio::test]
    async fn a_lock_is_lost_with_its_session() {
        let session = Session::alone(TTL, Instant::now());
        let guard = guard(&session, LockHolder { token: 7, ..LockHolder::default() });
        assert!(guard.is_held());
        let (lost, ()) = tokio::join!(timeout(TTL, guard.lost()), async { session.lost() });
        assert!(lost.is_ok() && !guard.is_held());
    }

    #[tokio::test]
    async fn one_that_nobody_can_extend_is_lost_when_its_time_is_up() {
        let session = Session::alone(TTL, Instant::now());
        let holder = LockHolder { token: 7, ttl_ms: 200, expires_at_ms: 200, ..LockHolder::default() };
        let guard = guard(&session, holder);
        timeout(TTL / 6, guard.lost()).await.unwrap();
        assert!(!guard.is_held() && session.is_alive());
    }

    #[tokio::test]
    async fn one_that_was_held_for_as_long_as_it_may_be_is_lost() {
        let session = Session::alone(TTL, Instant::now());
        let holder = LockHolder { token: 7, acquired_at_ms: 1_000, forced_at_ms: 1_050, ..LockHolder::default() };
        let guard = guard(&session, holder);
        timeout(TTL / 6, guard.lost()).await.unwrap();
        assert!(!guard.is_held());
    }

    #[tokio::test]
    async fn its_fence_names_the_grant() {
        let session = Session::alone(TTL, Instant::now());
        let fence = guard(&session, LockHolder { token: 7, ..LockHolder::default() }).fence();
        assert_eq!((fence.kind(), fence.name.as_str(), fence.token), (FenceKind::Lock, "deploy", 7));
    }
}
