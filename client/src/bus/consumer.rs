//! One consumer of a subscription: its stream, opened again whenever it breaks, until it leaves or its session ends.
//!
//! A broken stream says nothing about what is held: that is the session's. The reader runs beside whoever consumes, so
//! that what the cluster takes away is not handed out because nobody looked.

use std::sync::Arc;

use quorate_proto::v1::consume_event::Event;
use quorate_proto::v1::{ConsumeEvent, ConsumeRequest, LeaveRequest, LeaveResponse};
use tokio::task::AbortHandle;

use super::acks::Acks;
use super::delivery::Delivery;
use super::inbox::Line;
use super::{Bus, stub};
use crate::background::in_background;
use crate::call::Plan;
use crate::error::Error;
use crate::reopen::{Items, News, Opening, Reopened, items};
use crate::requests::{identify, is_session_unknown, session_over};
use crate::sessions::Session;

/// Puts a consumer together.
#[derive(Debug, Clone)]
#[must_use = "nothing is consumed before start()"]
pub struct ConsumerBuilder {
    bus: Bus,
    session: Session,
    request: ConsumeRequest,
}

impl ConsumerBuilder {
    pub(super) fn new(bus: Bus, session: Session, subscription: String) -> Self {
        let request = ConsumeRequest {
            subscription,
            session_id: session.id().to_owned(),
            consumer_id: session.id().to_owned(),
            credit: 1,
        };
        ConsumerBuilder { bus, session, request }
    }

    /// How many messages it holds unacknowledged: 1 unless said otherwise, at most 1,024. With 1 the next comes when the
    /// one before is acknowledged.
    pub fn credit(mut self, credit: u32) -> Self {
        self.request.credit = credit;
        self
    }

    /// Its name within the subscription; the session's id unless said otherwise. A session that consumes a subscription
    /// twice at once needs two: of consumers of one name, the newest takes over.
    pub fn id(mut self, consumer_id: impl Into<String>) -> Self {
        self.request.consumer_id = consumer_id.into();
        self
    }

    /// Begins to consume, in the background. Whatever is wrong with it, [`Consumer::next`] says.
    pub fn start(self) -> Consumer {
        let ConsumerBuilder { bus, session, request } = self;
        let line = Arc::new(Line::new(request.credit));
        let reader = Reader { bus: bus.clone(), session: session.clone(), request: request.clone() };
        let heard = Arc::clone(&line);
        let reading = tokio::spawn(async move {
            let reason = reader.read(&heard).await;
            heard.with(|inbox| inbox.finish(reason));
        });
        let acks = Acks::start(bus.clone(), session.clone(), Arc::clone(&line));
        Consumer { bus, session, request, line, acks, reading: reading.abort_handle(), has_left: false }
    }
}

/// Consumes a subscription. It goes on by itself when its node fails. Dropping it leaves the subscription in the
/// background, with all that it holds; [`Consumer::close`] waits for what was said.
#[derive(Debug)]
pub struct Consumer {
    bus: Bus,
    session: Session,
    request: ConsumeRequest,
    line: Arc<Line>,
    acks: Acks,
    reading: AbortHandle,
    has_left: bool,
}

impl Consumer {
    /// The next delivery, each once. Nothing is lost if it is dropped and called again.
    ///
    /// An error is the end, and comes once: `Fenced`, the session has ended or a newer consumer of this name took over;
    /// `Rejected` with `NOT_FOUND`, there is no such subscription (any more). While no node can be reached it waits.
    pub async fn next(&mut self) -> Option<Result<Delivery, Error>> {
        let next = self.line.next().await?;
        Some(next.map(|sent| Delivery::of(sent, self.acks.clone(), Arc::clone(&self.line))))
    }

    /// Takes no more, waits until what was said of deliveries is answered, and leaves. What is still held goes to others
    /// at once and does not count as an attempt.
    pub async fn close(mut self) -> Result<(), Error> {
        self.reading.abort();
        self.acks.flush().await;
        let left = leave(&self.bus, &self.session, &self.request).await;
        // What may not have arrived is sent once more by dropping it.
        self.has_left = !matches!(left, Err(Error::Unavailable { .. } | Error::OutcomeUnknown { .. }));
        left.map(drop)
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.reading.abort();
        if self.has_left || !self.session.is_alive() {
            return;
        }
        let (bus, session, request, acks) =
            (self.bus.clone(), self.session.clone(), self.request.clone(), self.acks.clone());
        in_background(async move {
            acks.flush().await;
            if let Err(error) = leave(&bus, &session, &request).await {
                tracing::warn!(subscription = request.subscription, %error, "a consumer stays until its session ends");
            }
        });
    }
}

/// A consumer that is not there, or whose subscription is not, has left.
async fn leave(bus: &Bus, session: &Session, request: &ConsumeRequest) -> Result<LeaveResponse, Error> {
    let mut request = LeaveRequest {
        subscription: request.subscription.clone(),
        consumer_id: request.consumer_id.clone(),
        session_id: request.session_id.clone(),
        request: None,
    };
    let _under_way = identify(&mut request.request, Some(session));
    let left = bus
        .client
        .call(Plan::SAFE, |channel| {
            let request = request.clone();
            async move { stub(channel).leave(request).await }
        })
        .await;
    match left {
        Err(error) if error.is_not_found() => Ok(LeaveResponse::default()),
        left => left,
    }
}

/// Fills the inbox.
struct Reader {
    bus: Bus,
    session: Session,
    request: ConsumeRequest,
}

impl Reader {
    /// Reads until no more can come, and says why.
    async fn read(&self, line: &Line) -> Error {
        let mut stream = Reopened::new();
        let open = || -> Opening<ConsumeEvent> { Box::pin(open(self.bus.clone(), self.request.clone())) };
        loop {
            let news = tokio::select! {
                biased;
                () = self.session.ended() => return session_over(&self.session),
                news = stream.next(&open) => news,
            };
            match news {
                Ok(News::Opened) => line.with(|inbox| inbox.begin()),
                Ok(News::Item(ConsumeEvent { event, .. })) => take(line, event),
                Err(error) if is_session_unknown(&error) => {
                    self.session.lost();
                    return session_over(&self.session);
                }
                Err(error) => return error,
            }
        }
    }
}

async fn open(bus: Bus, request: ConsumeRequest) -> Result<Items<ConsumeEvent>, Error> {
    let opened = bus
        .client
        .call_in_full(Plan::SAFE, |channel| {
            let request = request.clone();
            async move { stub(channel).consume(request).await }
        })
        .await;
    Ok(items(&bus.client, opened.node, opened.result?))
}

fn take(line: &Line, event: Option<Event>) {
    line.with(|inbox| match event {
        Some(Event::Delivery(delivery)) => inbox.admit(delivery),
        // What it holds is sent anew, within the stream.
        Some(Event::Standing(false)) => inbox.begin(),
        Some(Event::Standing(true)) => inbox.standing(),
        Some(Event::Gone(gone)) => inbox.withdraw((gone.token, gone.seq)),
        // Something that a newer cluster says.
        None => {}
    });
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use quorate_proto::v1::{self, BusMessage, DeliveryGone};
    use tokio::time::{Instant, timeout};

    use super::*;

    const TTL: Duration = Duration::from_secs(60);

    fn consumer() -> (Session, Consumer) {
        let session = Session::alone(TTL, Instant::now());
        let bus = Bus { client: session.client().clone() };
        let consumer = bus.consume(&session, "builds").credit(2).start();
        (session, consumer)
    }

    fn delivered(token: u64, seq: u64) -> Option<Event> {
        let message = Some(BusMessage { seq, ..BusMessage::default() });
        Some(Event::Delivery(v1::Delivery { message, token, attempt: 1, ..v1::Delivery::default() }))
    }

    #[tokio::test]
    async fn what_comes_is_handed_out_and_what_goes_is_not() {
        let (_session, mut consumer) = consumer();
        take(&consumer.line, delivered(5, 1));
        take(&consumer.line, delivered(5, 2));
        take(&consumer.line, Some(Event::Gone(DeliveryGone { seq: 1, token: 5 })));
        let delivery = timeout(TTL, consumer.next()).await.unwrap().unwrap().unwrap();
        assert_eq!((delivery.message().seq, delivery.token(), delivery.attempt()), (2, 5, 1));
    }

    #[tokio::test]
    async fn what_a_renewed_list_leaves_out_is_not_handed_out() {
        let (_session, mut consumer) = consumer();
        consumer.line.with(|inbox| inbox.begin());
        take(&consumer.line, delivered(5, 1));
        take(&consumer.line, delivered(5, 2));
        take(&consumer.line, Some(Event::Standing(true)));
        // The first went meanwhile, and its end was not heard of.
        take(&consumer.line, Some(Event::Standing(false)));
        take(&consumer.line, delivered(5, 2));
        take(&consumer.line, Some(Event::Standing(true)));
        let delivery = timeout(TTL, consumer.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(delivery.message().seq, 2);
        assert!(timeout(Duration::from_millis(50), consumer.next()).await.is_err(), "and nothing else");
    }

    #[tokio::test]
    async fn a_consumer_ends_with_its_session_and_says_so_once() {
        let (session, mut consumer) = consumer();
        session.lost();
        let over = timeout(TTL, consumer.next()).await.unwrap();
        assert!(matches!(over, Some(Err(Error::Fenced { .. }))), "{over:?}");
        assert!(timeout(TTL, consumer.next()).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn one_that_nobody_answers_goes_on_trying() {
        let (_session, mut consumer) = consumer();
        // Longer than some calls.
        assert!(timeout(Duration::from_millis(300), consumer.next()).await.is_err());
    }

    #[tokio::test]
    async fn a_transaction_that_acknowledged_it_ends_a_delivery() {
        let (_session, mut consumer) = consumer();
        take(&consumer.line, delivered(5, 1));
        let delivery = timeout(TTL, consumer.next()).await.unwrap().unwrap().unwrap();
        delivery.ending().tell();
        take(&consumer.line, delivered(5, 1));
        assert!(timeout(Duration::from_millis(50), consumer.next()).await.is_err(), "sent before that was known");
    }
}
