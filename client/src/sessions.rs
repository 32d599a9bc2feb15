//! Sessions: the one lease, kept alive in the background.
//!
//! Deliberately absent: a new session in place of a lost one. What hung on the old one is gone or soon will be, and only
//! its holder knows what that was, and whether it is worth taking up again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use quorate_proto::v1::sessions_client::SessionsClient;
use quorate_proto::v1::{self, CloseSessionRequest, KeepAliveRequest, OpenSessionRequest, RequestId};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::call::{Outcome, Plan};
use crate::client::{Client, new_id};
use crate::error::Error;

/// A keep-alive attempt gets a third of the TTL, but never less than a slow round trip takes.
const SHORTEST_ATTEMPT: Duration = Duration::from_millis(300);
/// More request ids than a handle draws while the cluster's rev grows by one. The epoch is a rev.
const SEQUENCES_PER_REV: u64 = 1 << 20;

/// Opens sessions.
#[derive(Debug, Clone)]
pub struct Sessions {
    pub(crate) client: Client,
}

impl Sessions {
    /// Opens a session and keeps it alive until every handle to it is gone. `ttl`: 1 s to 1 h.
    pub async fn open(&self, ttl: Duration) -> Result<Session, Error> {
        // Chosen here, so that a resend resumes the same session instead of opening a second.
        let (opened, sent) = self.open_as(new_id("s"), ttl).await?;
        Ok(Session::start(self.client.clone(), opened.id, opened.epoch, ttl, sent, Window::default()))
    }

    /// Takes over a session whose handles are gone, with all that it holds: those of a process that died, or of this one
    /// after it was without word from the cluster for too long. Refused as not found if it has ended.
    ///
    /// Requests that were under way through the earlier handles count as answered with the first through this one. Should
    /// somebody close the session at this very moment, what comes is a new one of its name that holds nothing.
    pub async fn resume(&self, id: &str, ttl: Duration) -> Result<Session, Error> {
        let request = KeepAliveRequest { session_id: id.to_owned() };
        // An unknown id would be opened as a new session. One that is alive now is so for its TTL.
        self.client
            .call(Plan::SAFE, |channel| {
                let request = request.clone();
                async move { SessionsClient::new(channel).keep_alive(request).await }
            })
            .await?;
        let (opened, sent) = self.open_as(id.to_owned(), ttl).await?;
        let window = Window::after_epoch(opened.epoch);
        Ok(Session::start(self.client.clone(), opened.id, opened.epoch, ttl, sent, window))
    }

    /// The session, and when the call was sent that was answered.
    async fn open_as(&self, session_id: String, ttl: Duration) -> Result<(v1::Session, Instant), Error> {
        let request = OpenSessionRequest {
            session_id,
            ttl_ms: u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX),
            client: self.client.config().client_name.clone(),
        };
        let opened = self
            .client
            .call_in_full(Plan::SAFE, |channel| {
                let request = request.clone();
                async move { SessionsClient::new(channel).open(request).await }
            })
            .await;
        Ok((opened.result?.session.unwrap_or_default(), opened.sent))
    }
}

/// A live lease. Cheap to clone; it is kept alive as long as a handle exists.
#[derive(Debug, Clone)]
pub struct Session {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    client: Client,
    id: String,
    epoch: u64,
    ttl: Duration,
    window: Mutex<Window>,
    lease: Arc<Lease>,
    keeper: AbortHandle,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

/// What the session's handles and its keeper both know.
#[derive(Debug)]
struct Lease {
    /// When it is over unless it is renewed.
    deadline: Mutex<Instant>,
    /// It is over already.
    ended: watch::Sender<bool>,
    /// What the cluster said at the latest keep-alive.
    held: watch::Sender<Held>,
}

/// The attempts that a session held at some rev.
#[derive(Debug, Default)]
pub(crate) struct Held {
    rev: u64,
    /// Each with the time at which it is fenced, 0 if it was not asked to stop.
    attempts: BTreeMap<(String, u64), u64>,
}

impl Held {
    /// Whether the cluster took this attempt away: it was granted by then, and is not held.
    pub(crate) fn has_lost(&self, task_id: &str, token: u64) -> bool {
        token <= self.rev && !self.attempts.contains_key(&(task_id.to_owned(), token))
    }

    /// When the attempt is fenced, by the cluster's clock, if it was asked to stop.
    pub(crate) fn fenced_at_ms(&self, task_id: &str, token: u64) -> Option<u64> {
        self.attempts.get(&(task_id.to_owned(), token)).copied().filter(|fenced_at_ms| *fenced_at_ms > 0)
    }
}

impl Lease {
    fn deadline(&self) -> Instant {
        *self.deadline.lock()
    }

    /// The deadline counts from when the call that was answered was *sent*: the cluster cannot have started its own
    /// count before that. A lease that is over stays over, whatever the answer says: somebody may have been told.
    fn renew(&self, sent: Instant, ttl: Duration) -> bool {
        let mut deadline = self.deadline.lock();
        if *self.ended.borrow() || Instant::now() >= *deadline {
            return false;
        }
        *deadline = (*deadline).max(sent + ttl);
        true
    }

    fn is_held(&self) -> bool {
        !*self.ended.borrow() && Instant::now() < self.deadline()
    }
}

/// A request id under way. Reported as answered when it is dropped, so that a call that is given up leaks nothing.
#[derive(Debug)]
pub(crate) struct UnderWay {
    session: Session,
    id: RequestId,
}

impl UnderWay {
    pub(crate) fn id(&self) -> RequestId {
        self.id.clone()
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.session.done(self.id.sequence);
    }
}

/// Which request ids are under way: everything below the oldest of them is answered.
#[derive(Debug, Default)]
struct Window {
    next: u64,
    open: BTreeSet<u64>,
}

impl Window {
    /// Of a session that was resumed: no sequence that an earlier handle may have used is used again.
    fn after_epoch(epoch: u64) -> Self {
        Window { next: epoch.saturating_mul(SEQUENCES_PER_REV), ..Window::default() }
    }

    fn begin(&mut self) -> (u64, u64) {
        self.next += 1;
        self.open.insert(self.next);
        (self.next, self.open.first().copied().unwrap_or(self.next))
    }

    fn end(&mut self, sequence: u64) {
        self.open.remove(&sequence);
    }
}

impl Session {
    fn start(client: Client, id: String, epoch: u64, ttl: Duration, sent: Instant, window: Window) -> Self {
        let lease = Arc::new(Lease {
            deadline: Mutex::new(sent + ttl),
            ended: watch::Sender::new(false),
            held: watch::Sender::default(),
        });
        let keeper = tokio::spawn(keep_alive(client.clone(), id.clone(), ttl, Arc::clone(&lease))).abort_handle();
        Session { inner: Arc::new(Inner { client, id, epoch, ttl, window: Mutex::new(window), lease, keeper }) }
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.inner.id
    }

    /// Grows when a session is resumed.
    pub fn epoch(&self) -> u64 {
        self.inner.epoch
    }

    /// Its time to live.
    pub fn ttl(&self) -> Duration {
        self.inner.ttl
    }

    /// Whether, for all this client knows, the lease is held.
    pub fn is_alive(&self) -> bool {
        self.inner.lease.is_held()
    }

    /// Resolves when the lease is lost: the cluster said so, or a full TTL passed without word from it.
    pub async fn ended(&self) {
        let mut ended = self.inner.lease.ended.subscribe();
        while self.is_alive() {
            tokio::select! {
                // The sender lives in this very handle, so a change is the only thing this can bring.
                _changed = ended.changed() => {}
                () = sleep_until(self.inner.lease.deadline()) => {}
            }
        }
    }

    /// The cluster said that the session is gone: there is no point in waiting for the keeper to hear it too.
    pub(crate) fn lost(&self) {
        self.inner.lease.ended.send_replace(true);
    }

    /// What the session holds, news with every keep-alive.
    pub(crate) fn held(&self) -> watch::Receiver<Held> {
        self.inner.lease.held.subscribe()
    }

    /// A fresh request id: a resend with it has no second effect. Report it with [`Session::done`] once answered.
    pub fn next_request(&self) -> RequestId {
        let (sequence, done_below) = self.inner.window.lock().begin();
        RequestId { session_id: self.inner.id.clone(), sequence, done_below }
    }

    /// As [`Session::next_request`], done when dropped.
    pub(crate) fn begin(&self) -> UnderWay {
        UnderWay { session: self.clone(), id: self.next_request() }
    }

    /// The request was answered: the cluster may forget its answer.
    pub fn done(&self, sequence: u64) {
        self.inner.window.lock().end(sequence);
    }

    /// Ends the session at once: its claims go back to the queue. It counts as ended even if the call fails, since
    /// nobody keeps it alive any longer.
    pub async fn close(&self) -> Result<(), Error> {
        self.inner.keeper.abort();
        let request = CloseSessionRequest { session_id: self.inner.id.clone() };
        let closed = self
            .inner
            .client
            .call(Plan::SAFE, |channel| {
                let request = request.clone();
                async move { SessionsClient::new(channel).close(request).await }
            })
            .await;
        self.lost();
        match closed {
            Ok(_) => Ok(()),
            // Ended already, perhaps by an earlier delivery of this very call.
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Renews the lease every third of its TTL. A call that fails is repeated until the lease is over: whoever cannot
/// reach the cluster has nothing better to do.
async fn keep_alive(client: Client, id: String, ttl: Duration, lease: Arc<Lease>) {
    loop {
        let deadline = lease.deadline();
        sleep_until(deadline.min(Instant::now() + ttl / 3)).await;
        if Instant::now() >= deadline {
            break;
        }
        let request = KeepAliveRequest { session_id: id.clone() };
        let attempt_limit = Some((ttl / 3).max(SHORTEST_ATTEMPT));
        let renewal = client.call_in_full(Plan { attempt_limit, until: Some(deadline), ..Plan::SAFE }, |channel| {
            let request = request.clone();
            async move { SessionsClient::new(channel).keep_alive(request).await }
        });
        match timeout_at(deadline, renewal).await {
            Ok(Outcome { result: Ok(kept), sent, .. }) => {
                if !lease.renew(sent, ttl) {
                    break;
                }
                let attempts =
                    kept.held.into_iter().map(|held| ((held.task_id, held.token), held.fence_at_ms)).collect();
                lease.held.send_replace(Held { rev: kept.rev, attempts });
            }
            Ok(Outcome { result: Err(error), .. }) if !error.is_not_found() => {
                tracing::warn!(session = id, %error, "a keep-alive failed");
            }
            Ok(_) | Err(_) => break,
        }
    }
    tracing::warn!(session = id, "the session has ended");
    lease.ended.send_replace(true);
}

#[cfg(test)]
impl Held {
    /// What was held at a rev: task, token, and when it is fenced.
    pub(crate) fn of<'a>(rev: u64, attempts: impl IntoIterator<Item = (&'a str, u64, u64)>) -> Self {
        let attempts = attempts.into_iter().map(|(id, token, fence_at_ms)| ((id.to_owned(), token), fence_at_ms));
        Held { rev, attempts: attempts.collect() }
    }
}

#[cfg(test)]
impl Session {
    /// A session that no cluster knows of, as if opened at `sent`.
    pub(crate) fn alone(ttl: Duration, sent: Instant) -> Self {
        // Nobody listens on port 1: every call is refused, and ends soon.
        let mut config = crate::Config::new(["127.0.0.1:1"]);
        config.call_timeout = Duration::from_millis(50);
        #[allow(clippy::unwrap_used)]
        let client = Client::connect(config).unwrap();
        Session::start(client, "s-alone".to_owned(), 1, ttl, sent, Window::default())
    }

    pub(crate) fn client(&self) -> &Client {
        &self.inner.client
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_is_lost_if_it_was_granted_by_then_and_is_not_held() {
        let held = Held::of(10, [("t", 7, 0)]);
        assert!(!held.has_lost("t", 7));
        assert!(held.has_lost("t", 5), "given up and granted again");
        assert!(held.has_lost("u", 9));
        assert!(!held.has_lost("u", 11), "granted after the cluster looked");
        assert!(!Held::default().has_lost("t", 7), "nothing is known yet");
    }

    #[test]
    fn an_attempt_that_was_asked_to_stop_is_held_until_it_is_fenced() {
        let held = Held::of(10, [("t", 7, 5_000), ("u", 8, 0)]);
        assert_eq!((held.fenced_at_ms("t", 7), held.fenced_at_ms("u", 8)), (Some(5_000), None));
        assert!(!held.has_lost("t", 7) && held.fenced_at_ms("t", 6).is_none());
    }

    #[test]
    fn done_below_is_the_oldest_request_under_way() {
        let mut window = Window::default();
        assert_eq!(window.begin(), (1, 1));
        assert_eq!(window.begin(), (2, 1));
        window.end(2);
        assert_eq!(window.begin(), (3, 1), "1 is still under way");
        window.end(1);
        assert_eq!(window.begin(), (4, 3));
        window.end(3);
        window.end(4);
        assert_eq!(window.begin(), (5, 5));
    }

    #[test]
    fn a_resumed_session_uses_no_request_id_twice() {
        let mut window = Window::after_epoch(7);
        let (first, done_below) = window.begin();
        assert!(first > 6 * SEQUENCES_PER_REV + 1_000_000 && done_below == first, "{first}");
        let (later, _) = Window::after_epoch(8).begin();
        assert!(later - first >= SEQUENCES_PER_REV);
    }

    const TTL: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_lease_is_held_until_its_deadline_by_the_local_clock() {
        let held = Session::alone(TTL, Instant::now());
        assert!(held.is_alive());
        let over = Session::alone(Duration::from_secs(1), Instant::now() - Duration::from_secs(1));
        assert!(!over.is_alive());
        tokio::time::timeout(TTL, over.ended()).await.unwrap();
    }

    #[tokio::test]
    async fn nobody_to_renew_it_ends_a_lease() {
        let session = Session::alone(Duration::from_millis(200), Instant::now());
        tokio::time::timeout(TTL, session.ended()).await.unwrap();
        assert!(!session.is_alive());
    }

    #[tokio::test]
    async fn a_closed_session_has_ended() {
        let session = Session::alone(TTL, Instant::now());
        let watching = session.clone();
        let ended = tokio::spawn(async move { watching.ended().await });
        assert!(session.close().await.is_err(), "there is nobody to close it");
        assert!(!session.is_alive());
        tokio::time::timeout(TTL, ended).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_renewal_counts_from_when_it_was_sent_and_never_shortens() {
        let opened = Instant::now();
        let session = Session::alone(TTL, opened);
        let lease = &session.inner.lease;
        assert!(lease.renew(opened + TTL / 3, TTL));
        assert_eq!(lease.deadline(), opened + TTL / 3 + TTL);
        assert!(lease.renew(opened, TTL));
        assert_eq!(lease.deadline(), opened + TTL / 3 + TTL);
    }

    #[tokio::test]
    async fn a_lease_that_is_over_is_not_renewed() {
        let now = Instant::now();
        let session = Session::alone(TTL, now.checked_sub(TTL).unwrap());
        assert!(!session.inner.lease.renew(now, TTL));
        assert!(!session.is_alive());
    }

    #[tokio::test]
    async fn a_request_given_up_is_done() {
        let session = Session::alone(TTL, Instant::now());
        let first = session.begin();
        let second = session.begin();
        assert_eq!((second.id().sequence, second.id().done_below), (2, 1));
        drop(first);
        drop(second);
        assert_eq!(session.next_request().done_below, 3);
    }
}
