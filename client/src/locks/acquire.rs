//! Taking a lock: at once, or after a place in line.
//!
//! A wait is made of calls of at most 10 s under one owner, which keeps the place whichever node serves them. Each asks
//! for a place that outlasts it, so that a failover does not lose it; but not for the whole wait, so that who dies does
//! not stand in line for an hour. Whoever gives up withdraws, in the background: a lock that is granted to somebody who
//! has gone helps nobody.
//!
//! A grant that took long to be heard of may be over by then. It is extended, or, having no TTL, asked about once more,
//! before there is a guard for it.

use std::time::Duration;

use quorate_proto::v1::{
    AcquireLockRequest, AcquireLockResponse, LockHolder, LockMode, RejectionCode, ReleaseLockRequest,
};
use tokio::time::{Instant, sleep, timeout};

use super::grant::{Grant, extension};
use super::guard::LockGuard;
use super::{Locks, WITHDRAWALS, stub};
use crate::background::in_background;
use crate::call::{Outcome, Plan};
use crate::client::{millis, new_id};
use crate::error::Error;
use crate::sessions::Session;

/// The longest that one call waits.
const PIECE: Duration = Duration::from_secs(10);
/// How long a place in line outlasts the call that asked for it, at most. The longest failover fits in between.
const PLACE: Duration = Duration::from_secs(30);
/// Whoever waits for longer waits for ever; and a clock can still count it.
const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 86_400);

/// How the next call of a wait goes.
#[derive(Debug, PartialEq, Eq)]
struct Piece {
    /// How long it lasts.
    hold: Duration,
    /// How long its place in line lasts.
    place: Duration,
    /// The cluster's own answer is waited for, which says who holds the lock.
    is_last: bool,
}

fn piece(left: Duration) -> Piece {
    Piece { hold: left.min(PIECE), place: left.min(PLACE), is_last: left <= PIECE }
}

/// Puts together how a lock is taken.
#[derive(Debug, Clone)]
#[must_use = "nothing is taken before acquire()"]
pub struct LockBuilder {
    locks: Locks,
    session: Session,
    request: AcquireLockRequest,
    wait: Duration,
}

impl LockBuilder {
    pub(super) fn new(locks: Locks, session: Session, name: String) -> Self {
        let request = AcquireLockRequest {
            name,
            session_id: session.id().to_owned(),
            // One of its own: two tasks of one session would otherwise be one owner, and both be told that they hold it.
            owner: new_id("o"),
            mode: LockMode::Exclusive as i32,
            ..AcquireLockRequest::default()
        };
        LockBuilder { locks, session, request, wait: Duration::ZERO }
    }

    /// Who within the session takes it. Unless said otherwise every builder is an owner of its own; one owner that asks
    /// twice gets the same grant twice, and the first guard that goes, or wait that is given up, ends it for both.
    pub fn owner(mut self, owner: impl Into<String>) -> Self {
        self.request.owner = owner.into();
        self
    }

    /// Together with other shared holders.
    pub fn shared(mut self) -> Self {
        self.request.mode = LockMode::Shared as i32;
        self
    }

    /// Waits in line for so long if others hold it. Without it, a lock that is held is refused at once.
    pub fn wait(mut self, limit: Duration) -> Self {
        self.wait = limit;
        self
    }

    /// Ends so long after it was last extended, which the guard does every third of it: 100 ms to 24 h. Without it the
    /// grant lives with its session, at no cost; a TTL ends it sooner if this process hangs but its session lives.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.request.ttl_ms = millis(ttl);
        self
    }

    /// Ends after so long, extended or not: at most 7 days; 5 min unless said otherwise. Then the holder is fenced.
    pub fn max_hold(mut self, limit: Duration) -> Self {
        self.request.max_hold_ms = millis(limit);
        self
    }

    /// Ends with this attempt of a task too; and, unless [`LockBuilder::max_hold`] is set, not before it.
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

    /// Takes it. `Rejected` with `FAILED_PRECONDITION`: others hold it and the wait is over (the message names who), or
    /// the wait would have closed a circle; with `NOT_FOUND`: the session has ended. `Fenced`: it was granted and over
    /// again before this client could make sure of it. Dropping it withdraws from the line.
    pub async fn acquire(self) -> Result<LockGuard, Error> {
        let deadline = Instant::now() + self.wait.min(FOR_EVER);
        let mut place = Place::new(&self);
        let mut is_asked_again = false;
        loop {
            place.is_asking = true;
            let asked_at = Instant::now();
            let piece = piece(deadline.saturating_duration_since(asked_at));
            let asked = self.ask(&piece);
            let outcome = if piece.is_last {
                asked.await
            } else {
                // Not as the call's own limit: that would count as the node's failure.
                match timeout(piece.hold, asked).await {
                    Ok(outcome) => outcome,
                    Err(_) => continue,
                }
            };
            // A resend may have been answered as an earlier attempt was.
            let since = if outcome.doubt { asked_at } else { outcome.sent };
            let (holder, now_ms) = place.answered(&outcome.result)?;
            let mut grant = Grant::told(self.request.name.clone(), holder, now_ms, since);
            match grant.ttl() {
                Some(ttl) if grant.is_aged() => match self.extend(&mut grant, ttl).await {
                    Ok(()) => {}
                    Err(error) if may_be_had_again(&error) && Instant::now() < deadline => continue,
                    Err(error) => return Err(error),
                },
                // Whoever asks for what he has is told how it stands.
                None if grant.is_aged() && !is_asked_again => {
                    is_asked_again = true;
                    continue;
                }
                _ => {}
            }
            place.is_open = false;
            return Ok(LockGuard::of(self.locks.clone(), self.session.clone(), grant));
        }
    }

    async fn extend(&self, grant: &mut Grant, ttl: Duration) -> Result<(), Error> {
        let until = Instant::now() + ttl.min(self.locks.client.config().call_timeout);
        let extended = self.locks.extend_by(extension(ttl, until), &grant.name, grant.holder.token).await;
        grant.extended(&extended.result?, extended.sent);
        Ok(())
    }

    async fn ask(&self, piece: &Piece) -> Outcome<AcquireLockResponse> {
        let under_way = self.session.begin();
        let wait_ms = millis(piece.place);
        let request = AcquireLockRequest { wait_ms, request: Some(under_way.id()), ..self.request.clone() };
        let plan = Plan { hold: piece.place, ..Plan::SAFE };
        self.locks
            .client
            .call_in_full(plan, |channel| {
                let request = request.clone();
                async move { stub(channel).acquire(request).await }
            })
            .await
    }
}

/// What has to be taken back if nothing comes of it: a place in line, or a grant that nobody heard of.
struct Place {
    locks: Locks,
    session: Session,
    request: ReleaseLockRequest,
    /// The cluster may know of it.
    is_open: bool,
    /// A call may still be on its way.
    is_asking: bool,
    /// It is taken by waiting.
    waits: bool,
    /// It was granted.
    is_granted: bool,
}

impl Place {
    fn new(builder: &LockBuilder) -> Self {
        let request = ReleaseLockRequest {
            name: builder.request.name.clone(),
            token: 0,
            session_id: builder.request.session_id.clone(),
            owner: builder.request.owner.clone(),
            request: None,
        };
        let (locks, session, waits) = (builder.locks.clone(), builder.session.clone(), !builder.wait.is_zero());
        Place { locks, session, request, is_open: true, is_asking: true, waits, is_granted: false }
    }

    /// The grant and the cluster's time, if that is what the answer brings. Until there is a guard it stays to be taken
    /// back.
    fn answered(&mut self, answer: &Result<AcquireLockResponse, Error>) -> Result<(LockHolder, u64), Error> {
        match answer {
            Ok(AcquireLockResponse { holder: Some(holder), now_ms, .. }) => {
                (self.is_asking, self.is_granted) = (false, true);
                Ok((holder.clone(), *now_ms))
            }
            Ok(AcquireLockResponse { position, .. }) => {
                self.is_asking = false;
                let name = &self.request.name;
                Err(Error::TimedOut {
                    message: format!("lock {name} was not granted in time; place {position} in line"),
                })
            }
            Err(error @ (Error::Rejected { .. } | Error::Fenced { .. } | Error::Config { .. })) => {
                self.is_asking = false;
                // Who is refused at once never had a place; who waited, or was granted it before, may still have one.
                self.is_open = self.is_granted || (self.waits && is_wait_over(error));
                Err(error.clone())
            }
            Err(error) => Err(error.clone()),
        }
    }
}

/// Whether it is the grant that is over, and not the caller's right to speak of it.
fn may_be_had_again(error: &Error) -> bool {
    matches!(error, Error::Fenced { .. }) && !error.fence_is_over()
}

/// Whether it is the wait that came to nothing. What is refused for another reason was never in line, and a withdrawal
/// would end what the same owner holds already.
fn is_wait_over(error: &Error) -> bool {
    matches!(error, Error::Rejected { code: RejectionCode::FailedPrecondition, field, .. } if field == "wait_ms")
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.is_open || !self.session.is_alive() {
            return;
        }
        let (locks, session, request) = (self.locks.clone(), self.session.clone(), self.request.clone());
        let attempts = if self.is_asking { &WITHDRAWALS[..] } else { &WITHDRAWALS[..1] };
        in_background(withdraw(locks, session, request, attempts));
    }
}

/// Under a request id of its own, which says that those of the calls that were given up are done: one that arrives later
/// is refused.
async fn withdraw(locks: Locks, session: Session, request: ReleaseLockRequest, pauses: &'static [Duration]) {
    for pause in pauses {
        sleep(*pause).await;
        match locks.release_with(Some(&session), request.clone()).await {
            Ok(_) => return,
            // Not there yet, or not there any more.
            Err(error) if error.is_not_found() => {}
            Err(error) => tracing::warn!(lock = request.name, %error, "could not withdraw from the line"),
        }
        if !session.is_alive() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(60);

    fn builder() -> LockBuilder {
        let session = Session::alone(TTL, Instant::now());
        Locks { client: session.client().clone() }.lock(&session, "deploy")
    }

    #[test]
    fn a_wait_is_cut_into_calls_whose_places_outlast_them_but_not_the_wait() {
        let first = piece(Duration::from_secs(3_600));
        assert_eq!(first, Piece { hold: PIECE, place: PLACE, is_last: false });
        let before_last = piece(Duration::from_secs(15));
        assert_eq!(before_last, Piece { hold: PIECE, place: Duration::from_secs(15), is_last: false });
        let last = piece(Duration::from_secs(5));
        assert_eq!((last.hold, last.place, last.is_last), (Duration::from_secs(5), Duration::from_secs(5), true));
        assert_eq!(piece(Duration::ZERO), Piece { hold: Duration::ZERO, place: Duration::ZERO, is_last: true });
    }

    #[tokio::test]
    async fn every_builder_is_an_owner_of_its_own_unless_it_is_told_who_it_is() {
        let (one, other) = (builder(), builder());
        assert_ne!(one.request.owner, other.request.owner);
        assert_eq!(one.owner("me").request.owner, "me");
    }

    #[tokio::test]
    async fn what_the_cluster_may_know_of_is_taken_back_and_a_grant_is_not() {
        let builder = builder();
        let waiting = builder.clone().wait(TTL);
        let rejected = |field: &str| {
            let (code, message) = (RejectionCode::FailedPrecondition, "held by another".to_owned());
            Err(Error::Rejected { code, field: field.to_owned(), message })
        };
        let mut refused = Place::new(&builder);
        assert!(refused.is_open, "dropped before it is answered");
        assert!(refused.answered(&rejected("name")).is_err() && !refused.is_open);
        let mut other_mode = Place::new(&waiting);
        assert!(other_mode.answered(&rejected("mode")).is_err() && !other_mode.is_open);
        let mut waited = Place::new(&waiting);
        assert!(waited.answered(&rejected("wait_ms")).is_err());
        assert!(waited.is_open && !waited.is_asking);
        let mut unknown = Place::new(&builder);
        let lost = Err(Error::OutcomeUnknown { message: "lost".to_owned() });
        assert!(unknown.answered(&lost).is_err() && unknown.is_open && unknown.is_asking);
        let mut granted = Place::new(&builder);
        let holder = LockHolder { token: 7, ..LockHolder::default() };
        let answer =
            Ok(AcquireLockResponse { holder: Some(holder), rev: 7, now_ms: 1_000, ..AcquireLockResponse::default() });
        let (holder, now_ms) = granted.answered(&answer).unwrap();
        assert_eq!((holder.token, now_ms), (7, 1_000));
        assert!(granted.is_open && !granted.is_asking, "until there is a guard");
        assert!(granted.answered(&rejected("name")).is_err() && granted.is_open, "asked about once more");
        granted.is_open = false;
    }

    #[test]
    fn a_grant_that_is_over_may_be_had_again_but_not_under_a_fence_that_is() {
        let fenced = |field: &str| Error::Fenced { field: field.to_owned(), message: "over".to_owned() };
        assert!(may_be_had_again(&fenced("token")));
        assert!(!may_be_had_again(&fenced("fence")));
        assert!(!may_be_had_again(&Error::OutcomeUnknown { message: "lost".to_owned() }));
    }

    #[tokio::test]
    async fn a_wait_that_is_given_up_leaves_no_request_under_way() {
        let builder = builder();
        let session = builder.session.clone();
        let waiting = builder.wait(Duration::from_secs(3_600)).acquire();
        // Polled once and dropped: the call is under way by then.
        assert!(futures::FutureExt::now_or_never(waiting).is_none());
        assert_eq!(session.next_request().done_below, 2);
    }
}
