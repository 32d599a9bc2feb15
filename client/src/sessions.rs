//! Sessions: the one lease, kept alive in the background.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use quorate_proto::v1::sessions_client::SessionsClient;
use quorate_proto::v1::{CloseSessionRequest, KeepAliveRequest, OpenSessionRequest, RequestId};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};

use crate::call::Plan;
use crate::client::{Client, new_id};
use crate::error::Error;

/// Opens sessions.
#[derive(Debug, Clone)]
pub struct Sessions {
    pub(crate) client: Client,
}

impl Sessions {
    /// Opens a session and keeps it alive until every handle to it is gone. `ttl`: 1 s to 1 h.
    pub async fn open(&self, ttl: Duration) -> Result<Session, Error> {
        let request = OpenSessionRequest {
            // Chosen here, so that a resend resumes the same session instead of opening a second.
            session_id: new_id("s"),
            ttl_ms: u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX),
            client: self.client.config().client_name.clone(),
        };
        let sent = Instant::now();
        let opened = self
            .client
            .call(Plan::SAFE, |channel| {
                let request = request.clone();
                async move { SessionsClient::new(channel).open(request).await }
            })
            .await?;
        let session = opened.session.unwrap_or_default();
        Ok(Session::start(self.client.clone(), session.id, session.epoch, ttl, sent))
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
    ended: watch::Receiver<bool>,
    keeper: AbortHandle,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

/// Which request ids are under way: everything below the oldest of them is answered.
#[derive(Debug, Default)]
struct Window {
    next: u64,
    open: BTreeSet<u64>,
}

impl Window {
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
    fn start(client: Client, id: String, epoch: u64, ttl: Duration, sent: Instant) -> Self {
        let (tell, ended) = watch::channel(false);
        let keeper = tokio::spawn(keep_alive(client.clone(), id.clone(), ttl, sent, tell)).abort_handle();
        let window = Mutex::new(Window::default());
        Session { inner: Arc::new(Inner { client, id, epoch, ttl, window, ended, keeper }) }
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
        !*self.inner.ended.borrow()
    }

    /// Resolves when the lease is lost: the cluster said so, or a full TTL passed without word from it.
    pub async fn ended(&self) {
        let mut ended = self.inner.ended.clone();
        // The keeper tells before it goes; if it is gone without a word the runtime is shutting down.
        if ended.wait_for(|ended| *ended).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// A fresh request id: a resend with it has no second effect. Report it with [`Session::done`] once answered.
    pub fn next_request(&self) -> RequestId {
        let (sequence, done_below) = self.inner.window.lock().begin();
        RequestId { session_id: self.inner.id.clone(), sequence, done_below }
    }

    /// The request was answered: the cluster may forget its answer.
    pub fn done(&self, sequence: u64) {
        self.inner.window.lock().end(sequence);
    }

    /// Ends the session at once: its claims go back to the queue.
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
        match closed {
            Ok(_) => Ok(()),
            // Ended already, perhaps by an earlier delivery of this very call.
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Renews the lease every third of its TTL. The deadline counts from when the last good call was *sent*: the cluster
/// cannot have started its own count before that.
async fn keep_alive(client: Client, id: String, ttl: Duration, sent: Instant, tell: watch::Sender<bool>) {
    let mut deadline = sent + ttl;
    loop {
        sleep(ttl / 3).await;
        let request = KeepAliveRequest { session_id: id.clone() };
        let sent = Instant::now();
        let renewal = client.call(Plan::SAFE, |channel| {
            let request = request.clone();
            async move { SessionsClient::new(channel).keep_alive(request).await }
        });
        match tokio::time::timeout_at(deadline, renewal).await {
            Ok(Ok(_)) => deadline = sent + ttl,
            Ok(Err(error)) if !error.is_not_found() && Instant::now() < deadline => {
                tracing::warn!(session = id, %error, "a keep-alive failed");
            }
            Ok(Err(_)) | Err(_) => break,
        }
    }
    tracing::warn!(session = id, "the session has ended");
    tell.send_replace(true);
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
