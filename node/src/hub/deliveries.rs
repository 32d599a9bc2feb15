//! What the streams of consumers are told: what was delivered to them, and what was taken away again.
//!
//! Owns one line of news for each consumer that has a stream here; the newest stream of a consumer counts. A line is
//! bounded: a stream that is not read while deadlines pass would pile up news for ever. What does not fit is dropped,
//! and the stream looks at what its consumer holds, which says it all.
//!
//! Deliberately absent: the messages. News name them; the stream reads them from the state when it sends them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::{Hub, KEYS_BEFORE_SWEEP};

/// News that may wait for one stream. A consumer holds at most 1,024 deliveries and gets the next only for an answered
/// one: more than that waits only where deliveries end by themselves, unread.
const MOST_NEWS: usize = 4_096;

/// What the stream of a consumer is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeliveryNews {
    /// It was given a message.
    Delivered { seq: u64, token: u64 },
    /// A delivery was taken away.
    Gone { seq: u64, token: u64 },
    /// The consumer is one no more.
    ConsumerGone,
    /// The state was replaced, or news were dropped: look at what it holds.
    LookAgain,
}

impl Hub {
    /// Tells the consumer's stream from now on; an earlier stream of the same consumer ends.
    pub(crate) fn consume(self: &Arc<Self>, subscription: &str, consumer_id: &str) -> Told {
        let (news, dropped) = self.consumers.listen(subscription, consumer_id);
        Told { news, dropped, _hub: self.clone() }
    }
}

/// The receiving end of one stream's news.
pub(crate) struct Told {
    news: mpsc::Receiver<DeliveryNews>,
    dropped: Arc<AtomicBool>,
    /// A hub that nobody listens in is forgotten.
    _hub: Arc<Hub>,
}

impl Told {
    /// What comes next; `None`: a newer stream took over. Nothing is lost if the future is dropped.
    ///
    /// What was dropped may be noticed only by the next call: call again every now and then.
    pub(crate) async fn next(&mut self) -> Option<DeliveryNews> {
        if self.dropped.swap(false, Ordering::Relaxed) {
            // The look shows what these say.
            while self.news.try_recv().is_ok() {}
            return Some(DeliveryNews::LookAgain);
        }
        self.news.recv().await
    }
}

/// The streams of this node's consumers.
#[derive(Default)]
pub(super) struct Consumers {
    streams: Mutex<HashMap<String, Line>>,
}

struct Line {
    news: mpsc::Sender<DeliveryNews>,
    dropped: Arc<AtomicBool>,
}

impl Line {
    fn tell(&self, news: DeliveryNews) {
        // A stream that is gone comes again and looks at what its consumer holds.
        if let Err(mpsc::error::TrySendError::Full(_)) = self.news.try_send(news) {
            self.dropped.store(true, Ordering::Relaxed);
        }
    }
}

impl Consumers {
    fn listen(&self, subscription: &str, consumer_id: &str) -> (mpsc::Receiver<DeliveryNews>, Arc<AtomicBool>) {
        let (sender, news) = mpsc::channel(MOST_NEWS);
        let dropped = Arc::new(AtomicBool::new(false));
        let mut streams = self.streams.lock();
        if streams.len() > KEYS_BEFORE_SWEEP {
            streams.retain(|_, line| !line.news.is_closed());
        }
        streams.insert(key(subscription, consumer_id), Line { news: sender, dropped: dropped.clone() });
        (news, dropped)
    }

    /// Tells the consumer's stream, if it has one here.
    pub(super) fn tell(&self, subscription: &str, consumer_id: &str, news: DeliveryNews) {
        if let Some(line) = self.streams.lock().get(&key(subscription, consumer_id)) {
            line.tell(news);
        }
    }

    /// Tells every stream.
    pub(super) fn tell_everybody(&self, news: DeliveryNews) {
        self.streams.lock().values().for_each(|line| line.tell(news));
    }
}

/// Ids hold no zero byte.
fn key(subscription: &str, consumer_id: &str) -> String {
    format!("{subscription}\0{consumer_id}")
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    const fn delivered(seq: u64) -> DeliveryNews {
        DeliveryNews::Delivered { seq, token: 100 + seq }
    }

    /// What the stream is told without waiting.
    fn told_now(told: &mut Told) -> Option<Option<DeliveryNews>> {
        told.next().now_or_never()
    }

    #[test]
    fn each_consumer_is_told_its_own_news_in_order() {
        let hub = Arc::new(Hub::new());
        let (mut ours, mut theirs) = (hub.consume("s", "a"), hub.consume("s", "b"));
        hub.consumers.tell("s", "a", delivered(1));
        hub.consumers.tell("s", "b", delivered(2));
        hub.consumers.tell("s", "a", DeliveryNews::Gone { seq: 1, token: 101 });
        hub.consumers.tell("other", "a", delivered(3));
        assert_eq!(told_now(&mut ours), Some(Some(delivered(1))));
        assert_eq!(told_now(&mut ours), Some(Some(DeliveryNews::Gone { seq: 1, token: 101 })));
        assert_eq!(told_now(&mut ours), None);
        assert_eq!(told_now(&mut theirs), Some(Some(delivered(2))));
        assert_eq!(told_now(&mut theirs), None);
    }

    #[test]
    fn the_newest_stream_of_a_consumer_counts() {
        let hub = Arc::new(Hub::new());
        let mut old = hub.consume("s", "a");
        hub.consumers.tell("s", "a", delivered(1));
        let mut new = hub.consume("s", "a");
        hub.consumers.tell("s", "a", delivered(2));
        assert_eq!(told_now(&mut old), Some(Some(delivered(1))));
        assert_eq!(told_now(&mut old), Some(None));
        assert_eq!(told_now(&mut new), Some(Some(delivered(2))));
    }

    #[test]
    fn a_stream_that_does_not_keep_up_is_told_to_look_again_and_goes_on() {
        let hub = Arc::new(Hub::new());
        let mut told = hub.consume("s", "a");
        for seq in 0..=MOST_NEWS as u64 {
            hub.consumers.tell("s", "a", delivered(seq));
        }
        assert_eq!(told_now(&mut told), Some(Some(DeliveryNews::LookAgain)));
        assert_eq!(told_now(&mut told), None);
        hub.consumers.tell("s", "a", delivered(7));
        assert_eq!(told_now(&mut told), Some(Some(delivered(7))));
    }

    #[test]
    fn a_full_line_is_not_dropped_from() {
        let hub = Arc::new(Hub::new());
        let mut told = hub.consume("s", "a");
        for seq in 0..MOST_NEWS as u64 {
            hub.consumers.tell("s", "a", delivered(seq));
        }
        for seq in 0..MOST_NEWS as u64 {
            assert_eq!(told_now(&mut told), Some(Some(delivered(seq))));
        }
        assert_eq!(told_now(&mut told), None);
    }
}
