//! Questions and their answers.
//!
//! A requester has a subscription of its own, which goes with its session. What is asked through it carries that subject
//! as `reply_to`, and a correlation id by which the answer finds who waits for it.
//!
//! Invariant: an answer is handed out once. One that comes before anybody waits for it is kept for a while: as many and
//! as much as [`MOST_EARLY`] and [`MOST_EARLY_BYTES`] say, the newest.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use quorate_proto::v1::{BusMessage, PublishRequest, SubscriptionSpec};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::Bus;
use super::consumer::Consumer;
use crate::background::in_background;
use crate::client::new_id;
use crate::error::Error;
use crate::sessions::Session;

/// How many answers are on their way at once.
const CREDIT: u32 = 256;
/// How many answers are kept that nobody waits for.
const MOST_EARLY: usize = 1_024;
/// How much of them is kept.
const MOST_EARLY_BYTES: usize = 16 << 20;

impl Bus {
    /// Somebody who asks, for as long as the session lives. Cheap to clone; what it asks goes over one subscription.
    pub async fn requester(&self, session: &Session) -> Result<Requester, Error> {
        // One of its own: consumers of a shared one would take each other's answers.
        let subject = format!("reply.{}.{}", token_of(session.id()), new_id("r"));
        let spec = SubscriptionSpec {
            name: subject.clone(),
            patterns: vec![subject.clone()],
            session_id: session.id().to_owned(),
            drop_dead: true,
            ..SubscriptionSpec::default()
        };
        self.subscribe(spec).await?;
        let replies = Arc::new(Mutex::new(Replies::default()));
        let consumer = self.consume(session, subject.as_str()).credit(CREDIT).start();
        let collecting = tokio::spawn(collect(consumer, Arc::clone(&replies))).abort_handle();
        let (bus, session) = (self.clone(), session.clone());
        Ok(Requester { inner: Arc::new(Inner { bus, session, subject, replies, collecting }) })
    }

    /// Asks once and waits for the answer. Who asks more than once is better off with a [`Requester`]: this makes one and
    /// takes it down again.
    pub async fn request(&self, session: &Session, message: BusMessage, limit: Duration) -> Result<BusMessage, Error> {
        let answered = timeout(limit, async { self.requester(session).await?.request(message, limit).await }).await;
        answered.unwrap_or_else(|_| Err(timed_out(limit)))
    }
}

/// Asks, and hears the answers.
#[derive(Debug, Clone)]
pub struct Requester {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    bus: Bus,
    session: Session,
    subject: String,
    replies: Arc<Mutex<Replies>>,
    collecting: AbortHandle,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.collecting.abort();
        if !self.session.is_alive() {
            return;
        }
        let (bus, subject) = (self.bus.clone(), self.subject.clone());
        in_background(async move {
            if let Err(error) = bus.unsubscribe(&subject).await {
                tracing::debug!(subject, %error, "a reply subscription stays until its session ends");
            }
        });
    }
}

impl Requester {
    /// Where its answers go. A message that is published by other means is answered here if this is its `reply_to`.
    pub fn subject(&self) -> &str {
        &self.inner.subject
    }

    /// Asks, and waits for the answer. `TimedOut`: there was none in time; a later one is kept for a while.
    /// `Rejected` with `FAILED_PRECONDITION`: nobody subscribes to what was asked. `Fenced`: the session has ended. Once
    /// its subscription is gone it asks nothing any more, and says why.
    pub async fn request(&self, mut message: BusMessage, limit: Duration) -> Result<BusMessage, Error> {
        let Inner { bus, session, subject, replies, .. } = &*self.inner;
        let over = replies.lock().over.clone();
        if let Some(over) = over {
            return Err(over);
        }
        message.reply_to = subject.clone();
        if message.correlation_id.is_empty() {
            message.correlation_id = new_id("c");
        }
        // Before it is asked: the answer may be quicker than the publisher's own.
        let expected = self.expect(&message.correlation_id);
        let request = PublishRequest { messages: vec![message], must_match: true, ..PublishRequest::default() };
        let answered = timeout(limit, async {
            bus.publish_all(Some(session), request).await?;
            expected.answer().await
        });
        answered.await.unwrap_or_else(|_| Err(timed_out(limit)))
    }

    /// Waits for the answer to something that was sent by other means with this correlation id and with
    /// [`Requester::subject`] as its `reply_to`. One that has come already is returned at once.
    pub async fn wait_for(&self, correlation_id: &str, limit: Duration) -> Result<BusMessage, Error> {
        let answered = timeout(limit, self.expect(correlation_id).answer()).await;
        answered.unwrap_or_else(|_| Err(timed_out(limit)))
    }

    fn expect(&self, correlation_id: &str) -> Expected {
        let receiver = self.inner.replies.lock().expect(correlation_id);
        let (replies, correlation_id) = (Arc::clone(&self.inner.replies), correlation_id.to_owned());
        Expected { replies, correlation_id, receiver }
    }
}

fn timed_out(limit: Duration) -> Error {
    Error::TimedOut { message: format!("no answer came within {limit:?}") }
}

fn unheard() -> Error {
    Error::OutcomeUnknown { message: "nobody listens for answers any more".to_owned() }
}

/// A session's id as one token of a subject.
fn token_of(session_id: &str) -> String {
    session_id.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect()
}

/// Hands out what comes, until no more can come.
async fn collect(mut consumer: Consumer, replies: Arc<Mutex<Replies>>) {
    while let Some(next) = consumer.next().await {
        match next {
            Ok(delivery) => {
                replies.lock().arrive(delivery.message().clone());
                delivery.ack_unheard();
            }
            Err(error) => replies.lock().close(error),
        }
    }
}

/// An answer that is waited for.
struct Expected {
    replies: Arc<Mutex<Replies>>,
    correlation_id: String,
    receiver: oneshot::Receiver<BusMessage>,
}

impl Expected {
    async fn answer(mut self) -> Result<BusMessage, Error> {
        let heard = (&mut self.receiver).await;
        heard.map_err(|_| self.replies.lock().over.clone().unwrap_or_else(unheard))
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        self.receiver.close();
        let mut replies = self.replies.lock();
        replies.forget(&self.correlation_id);
        // It came just when nobody waited any longer.
        if let Ok(message) = self.receiver.try_recv() {
            replies.arrive(message);
        }
    }
}

/// Who waits for what, and what nobody waits for yet.
#[derive(Debug, Default)]
struct Replies {
    waiting: BTreeMap<String, VecDeque<oneshot::Sender<BusMessage>>>,
    early: VecDeque<BusMessage>,
    early_bytes: usize,
    /// Why no more will come.
    over: Option<Error>,
}

impl Replies {
    fn expect(&mut self, correlation_id: &str) -> oneshot::Receiver<BusMessage> {
        let (sender, receiver) = oneshot::channel();
        let early = self.early.iter().position(|message| message.correlation_id == correlation_id);
        if let Some(message) = early.and_then(|place| self.early.remove(place)) {
            self.early_bytes -= message.payload.len();
            // The receiver is right here.
            drop(sender.send(message));
        } else if self.over.is_none() {
            self.waiting.entry(correlation_id.to_owned()).or_default().push_back(sender);
        }
        receiver
    }

    fn arrive(&mut self, mut message: BusMessage) {
        if let Some(mut senders) = self.waiting.remove(&message.correlation_id) {
            while let Some(sender) = senders.pop_front() {
                let correlation_id = message.correlation_id.clone();
                match sender.send(message) {
                    Ok(()) => {
                        if !senders.is_empty() {
                            self.waiting.insert(correlation_id, senders);
                        }
                        return;
                    }
                    Err(unheard) => message = unheard,
                }
            }
        }
        self.early_bytes += message.payload.len();
        self.early.push_back(message);
        while self.early.len() > MOST_EARLY || self.early_bytes > MOST_EARLY_BYTES {
            let Some(oldest) = self.early.pop_front() else { break };
            self.early_bytes -= oldest.payload.len();
        }
    }

    /// Somebody does not wait any longer.
    fn forget(&mut self, correlation_id: &str) {
        let Some(senders) = self.waiting.get_mut(correlation_id) else { return };
        senders.retain(|sender| !sender.is_closed());
        if senders.is_empty() {
            self.waiting.remove(correlation_id);
        }
    }

    /// No more will come, for this reason.
    fn close(&mut self, reason: Error) {
        self.over = Some(reason);
        self.waiting.clear();
    }
}

#[cfg(test)]
mod tests {
    use quorate_proto::v1::RejectionCode;
    use tokio::time::Instant;

    use super::*;

    fn answer(correlation_id: &str, payload: &'static str) -> BusMessage {
        BusMessage { correlation_id: correlation_id.to_owned(), payload: payload.into(), ..BusMessage::default() }
    }

    fn expected(replies: &Arc<Mutex<Replies>>, correlation_id: &str) -> Expected {
        let receiver = replies.lock().expect(correlation_id);
        Expected { replies: Arc::clone(replies), correlation_id: correlation_id.to_owned(), receiver }
    }

    #[tokio::test]
    async fn an_answer_finds_who_waits_for_it_whichever_comes_first() {
        let replies = Arc::new(Mutex::new(Replies::default()));
        let waiting = expected(&replies, "c-1");
        replies.lock().arrive(answer("c-2", "early"));
        replies.lock().arrive(answer("c-1", "awaited"));
        assert_eq!(waiting.answer().await.unwrap().payload, "awaited");
        assert_eq!(expected(&replies, "c-2").answer().await.unwrap().payload, "early");
        let replies = replies.lock();
        assert!(replies.waiting.is_empty() && replies.early.is_empty() && replies.early_bytes == 0);
    }

    #[test]
    fn who_gives_up_leaves_nothing_behind_and_takes_nothing_away() {
        let replies = Arc::new(Mutex::new(Replies::default()));
        let (gone, stays) = (expected(&replies, "c-1"), expected(&replies, "c-1"));
        drop(gone);
        replies.lock().arrive(answer("c-1", "first"));
        replies.lock().arrive(answer("c-1", "second"));
        // It came, and was not read: somebody else may ask for it.
        drop(stays);
        assert!(replies.lock().waiting.is_empty());
        let early: Vec<_> = replies.lock().early.iter().map(|message| message.payload.clone()).collect();
        assert_eq!(early, ["second", "first"]);
    }

    #[test]
    fn only_so_much_is_kept_that_nobody_waits_for() {
        let mut replies = Replies::default();
        for _ in 0..MOST_EARLY + 5 {
            replies.arrive(answer("c-1", "x"));
        }
        assert_eq!((replies.early.len(), replies.early_bytes), (MOST_EARLY, MOST_EARLY));
        let large = BusMessage { payload: vec![0_u8; MOST_EARLY_BYTES].into(), ..answer("c-2", "") };
        replies.arrive(large);
        assert_eq!((replies.early.len(), replies.early_bytes), (1, MOST_EARLY_BYTES));
    }

    #[tokio::test]
    async fn nobody_waits_for_what_cannot_come_and_everybody_hears_why() {
        let replies = Arc::new(Mutex::new(Replies::default()));
        let before = expected(&replies, "c-1");
        replies.lock().arrive(answer("c-2", "early"));
        replies.lock().close(gone());
        assert!(before.answer().await.unwrap_err().is_not_found());
        assert!(expected(&replies, "c-1").answer().await.unwrap_err().is_not_found());
        assert_eq!(expected(&replies, "c-2").answer().await.unwrap().payload, "early", "it had come");
    }

    #[tokio::test]
    async fn one_whose_subscription_is_gone_says_so_though_its_session_lives() {
        let session = Session::alone(Duration::from_secs(60), Instant::now());
        let bus = Bus { client: session.client().clone() };
        let replies = Arc::new(Mutex::new(Replies::default()));
        let collecting = tokio::spawn(std::future::pending::<()>()).abort_handle();
        let inner = Inner {
            bus,
            session: session.clone(),
            subject: "reply.s".to_owned(),
            replies: replies.clone(),
            collecting,
        };
        let requester = Requester { inner: Arc::new(inner) };
        replies.lock().close(gone());
        let refused = requester.request(BusMessage::default(), Duration::from_secs(60)).await;
        assert!(refused.unwrap_err().is_not_found() && session.is_alive());
        assert!(requester.wait_for("c-1", Duration::from_secs(60)).await.unwrap_err().is_not_found());
    }

    fn gone() -> Error {
        let message = "no subscription reply.s".to_owned();
        Error::Rejected { code: RejectionCode::NotFound, field: "subscription".to_owned(), message }
    }

    #[test]
    fn a_sessions_id_is_one_token() {
        assert_eq!(token_of("s-01f.a/b"), "s-01f_a_b");
    }
}
