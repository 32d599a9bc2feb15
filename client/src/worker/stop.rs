//! How a job hears that it should end.
//!
//! Two ways, so that neither has to be perfect: the standing order says it at once, with a reason; the session's
//! keep-alive says what is held and what is asked to stop, in case the order was cut off just then.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use quorate_proto::v1::{CancelNotice, HeldAttemptGone};
use tokio::sync::watch;
use tokio::time::Instant;

use super::known::Attempt;
use crate::sessions::Held;

/// The longest grace that is believed.
const LONGEST_GRACE: Duration = Duration::from_secs(3_600);

/// A request to stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stop {
    pub(super) reason: String,
    /// When the attempt is fenced, by the local clock.
    pub(super) fenced_at: Instant,
}

/// What a job has been told, if anything.
pub(super) type Told = Option<Stop>;

impl Stop {
    /// With this much time left to stop and say so.
    pub(super) fn within(grace: Duration, reason: impl Into<String>) -> Self {
        Stop { reason: reason.into(), fenced_at: Instant::now() + grace.min(LONGEST_GRACE) }
    }
}

impl From<HeldAttemptGone> for Stop {
    fn from(gone: HeldAttemptGone) -> Self {
        Stop::within(Duration::from_millis(gone.grace_ms), gone.reason)
    }
}

impl From<&CancelNotice> for Stop {
    fn from(notice: &CancelNotice) -> Self {
        Stop::within(left_until(notice.fence_at_ms), notice.reason.as_str())
    }
}

/// What one job hears.
#[derive(Debug, Clone)]
pub(super) struct StopSignal {
    attempt: Attempt,
    told: watch::Receiver<Told>,
    held: watch::Receiver<Held>,
}

impl StopSignal {
    pub(super) fn new(attempt: Attempt, told: watch::Receiver<Told>, held: watch::Receiver<Held>) -> Self {
        StopSignal { attempt, told, held }
    }

    /// Resolves when it is given.
    pub(super) async fn given(&self) {
        let (mut told, mut held) = (self.told.clone(), self.held.clone());
        // A sender that is gone says nothing more: the runtime is shutting down.
        tokio::select! {
            true = async { told.wait_for(Option::is_some).await.is_ok() } => {}
            true = async { held.wait_for(|held| self.ends(held)).await.is_ok() } => {}
            else => std::future::pending::<()>().await,
        }
    }

    pub(super) fn is_given(&self) -> bool {
        self.told.borrow().is_some() || self.ends(&self.held.borrow())
    }

    pub(super) fn reason(&self) -> Option<String> {
        if let Some(stop) = self.told.borrow().as_ref() {
            return Some(stop.reason.clone());
        }
        let held = self.held.borrow();
        let (task_id, token) = (self.attempt.0.as_str(), self.attempt.1);
        if held.has_lost(task_id, token) {
            return Some("the attempt is no longer this worker's".to_owned());
        }
        held.fenced_at_ms(task_id, token).map(|_| "the attempt was asked to stop".to_owned())
    }

    /// Zero if it is fenced already, or was not asked to stop.
    pub(super) fn grace_left(&self) -> Duration {
        let told = self.told.borrow().as_ref().map(|stop| stop.fenced_at);
        match told {
            Some(fenced_at) => fenced_at.saturating_duration_since(Instant::now()),
            None => {
                let fenced_at_ms = self.held.borrow().fenced_at_ms(&self.attempt.0, self.attempt.1);
                fenced_at_ms.map_or(Duration::ZERO, left_until)
            }
        }
    }

    fn ends(&self, held: &Held) -> bool {
        let (task_id, token) = (self.attempt.0.as_str(), self.attempt.1);
        held.has_lost(task_id, token) || held.fenced_at_ms(task_id, token).is_some()
    }
}

/// How long it is to a time of the cluster's. The clocks may differ a little, and so may the answer.
fn left_until(unix_ms: u64) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Duration::from_millis(unix_ms).saturating_sub(now).min(LONGEST_GRACE)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(60);

    fn signal() -> (StopSignal, watch::Sender<Told>, watch::Sender<Held>) {
        let (tell, told) = watch::channel(None);
        let (hold, held) = watch::channel(Held::default());
        (StopSignal::new(("t".to_owned(), 7), told, held), tell, hold)
    }

    fn in_a_minute_ms() -> u64 {
        let then = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + SOON;
        u64::try_from(then.as_millis()).unwrap()
    }

    #[tokio::test]
    async fn the_standing_order_gives_a_reason_and_a_grace() {
        let (signal, tell, _hold) = signal();
        assert!(!signal.is_given() && signal.reason().is_none());
        let gone = HeldAttemptGone { grace_ms: 60_000, reason: "not wanted".to_owned(), ..HeldAttemptGone::default() };
        tell.send_replace(Some(gone.into()));
        tokio::time::timeout(SOON, signal.given()).await.unwrap();
        assert_eq!(signal.reason().as_deref(), Some("not wanted"));
        assert!(signal.grace_left() > SOON / 2 && signal.grace_left() <= SOON);
    }

    #[tokio::test]
    async fn so_does_a_keep_alive_that_says_when_the_attempt_is_fenced() {
        let (signal, _tell, hold) = signal();
        hold.send_replace(Held::of(9, [("t", 7, 0)]));
        assert!(!signal.is_given());
        hold.send_replace(Held::of(10, [("t", 7, in_a_minute_ms())]));
        tokio::time::timeout(SOON, signal.given()).await.unwrap();
        assert!(signal.reason().is_some());
        assert!(signal.grace_left() > SOON / 2 && signal.grace_left() <= SOON);
    }

    #[tokio::test]
    async fn an_attempt_that_is_not_held_has_no_grace() {
        let (signal, _tell, hold) = signal();
        hold.send_replace(Held::of(10, []));
        tokio::time::timeout(SOON, signal.given()).await.unwrap();
        assert_eq!(signal.reason().as_deref(), Some("the attempt is no longer this worker's"));
        assert_eq!(signal.grace_left(), Duration::ZERO);
    }

    #[tokio::test]
    async fn no_grace_is_too_long_to_add_up() {
        let notice = CancelNotice { fence_at_ms: u64::MAX, ..CancelNotice::default() };
        assert!(Stop::from(&notice).fenced_at <= Instant::now() + LONGEST_GRACE);
    }
}
