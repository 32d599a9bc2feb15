//! What came to one consumer and is not over yet.
//!
//! A stream begins with everything that its consumer holds, and may bring that list anew later on. Most of it was handed
//! out already; some may have been acknowledged while the list was under way. Only what was never here is new. What the
//! list leaves out is over.
//!
//! Memory: what is held is bounded by the consumer's credit. Of what is over, as much is remembered as a list can still
//! name.

use std::collections::{BTreeSet, VecDeque};
use std::task::Poll;

use parking_lot::Mutex;
use quorate_proto::v1::Delivery;
use tokio::sync::Notify;

use crate::error::Error;

/// One delivery: its token and its message's seq.
pub(super) type Key = (u64, u64);

/// How many are remembered at least.
const SHORTEST_MEMORY: usize = 64;

pub(super) fn key_of(delivery: &Delivery) -> Key {
    (delivery.token, delivery.message.as_ref().map_or(0, |message| message.seq))
}

/// The inbox that a consumer, its stream and its deliveries share.
#[derive(Debug)]
pub(super) struct Line {
    inbox: Mutex<Inbox>,
    news: Notify,
}

impl Line {
    pub(super) fn new(credit: u32) -> Self {
        Line { inbox: Mutex::new(Inbox::new(credit)), news: Notify::new() }
    }

    pub(super) fn with<T>(&self, change: impl FnOnce(&mut Inbox) -> T) -> T {
        let changed = change(&mut self.inbox.lock());
        self.news.notify_one();
        changed
    }

    /// The next delivery, why there can be none, or that there is none. One reader at a time; nothing is lost if it is
    /// dropped.
    pub(super) async fn next(&self) -> Option<Result<Delivery, Error>> {
        loop {
            let next = self.inbox.lock().next();
            match next {
                Poll::Ready(next) => return next,
                Poll::Pending => self.news.notified().await,
            }
        }
    }
}

/// Whether more will come.
#[derive(Debug)]
enum Over {
    No,
    /// For this reason, which is told once.
    Because(Error),
    Told,
}

/// What came, and how it stands.
#[derive(Debug)]
pub(super) struct Inbox {
    waiting: VecDeque<Delivery>,
    /// Waiting or handed out, and not over for all that is known.
    held: BTreeSet<Key>,
    /// The last that were over.
    ended: VecDeque<Key>,
    /// What the list at the beginning of a stream has named so far; `None` once it is through.
    listed: Option<BTreeSet<Key>>,
    over: Over,
    memory: usize,
}

impl Inbox {
    fn new(credit: u32) -> Self {
        // Twice: the cluster may fill up the credit before the answer to what made room is here.
        let memory = credit as usize * 2 + SHORTEST_MEMORY;
        Inbox {
            waiting: VecDeque::new(),
            held: BTreeSet::new(),
            ended: VecDeque::new(),
            listed: None,
            over: Over::No,
            memory,
        }
    }

    /// A list begins: with another stream, or anew within one.
    pub(super) fn begin(&mut self) {
        self.listed = Some(BTreeSet::new());
    }

    /// Takes in what is new.
    pub(super) fn admit(&mut self, delivery: Delivery) {
        let key = key_of(&delivery);
        if let Some(listed) = &mut self.listed {
            listed.insert(key);
        }
        if self.held.contains(&key) || self.ended.contains(&key) {
            return;
        }
        self.held.insert(key);
        self.waiting.push_back(delivery);
        // More than can be unacknowledged: the end of some was said past this consumer.
        while self.held.len() > self.memory
            && let Some(oldest) = self.held.first().copied()
        {
            self.end(oldest);
        }
    }

    /// The list is through: what it did not name is over.
    pub(super) fn standing(&mut self) {
        let Some(listed) = self.listed.take() else { return };
        let unnamed: Vec<Key> = self.held.difference(&listed).copied().collect();
        unnamed.into_iter().for_each(|key| self.withdraw(key));
    }

    /// The cluster took it away. It is not handed out any more.
    pub(super) fn withdraw(&mut self, key: Key) {
        self.waiting.retain(|delivery| key_of(delivery) != key);
        self.end(key);
    }

    /// It was acknowledged, or is somebody else's.
    pub(super) fn end(&mut self, key: Key) {
        if self.held.remove(&key) {
            self.ended.push_back(key);
            if self.ended.len() > self.memory {
                self.ended.pop_front();
            }
        }
    }

    /// No more will come, for this reason; and what waits is not this consumer's any more.
    pub(super) fn finish(&mut self, reason: Error) {
        self.waiting.clear();
        if matches!(self.over, Over::No) {
            self.over = Over::Because(reason);
        }
    }

    fn next(&mut self) -> Poll<Option<Result<Delivery, Error>>> {
        if let Some(delivery) = self.waiting.pop_front() {
            return Poll::Ready(Some(Ok(delivery)));
        }
        match &self.over {
            Over::No => Poll::Pending,
            Over::Because(reason) => {
                let reason = reason.clone();
                self.over = Over::Told;
                Poll::Ready(Some(Err(reason)))
            }
            Over::Told => Poll::Ready(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use quorate_proto::v1::BusMessage;

    use super::*;

    fn delivery(token: u64, seq: u64) -> Delivery {
        Delivery { message: Some(BusMessage { seq, ..BusMessage::default() }), token, ..Delivery::default() }
    }

    fn fenced(message: &str) -> Error {
        Error::Fenced { field: String::new(), message: message.to_owned() }
    }

    fn handed_out(inbox: &mut Inbox) -> Vec<Key> {
        let mut keys = Vec::new();
        while let Poll::Ready(Some(Ok(delivery))) = inbox.next() {
            keys.push(key_of(&delivery));
        }
        keys
    }

    #[test]
    fn what_is_sent_again_is_handed_out_once() {
        let mut inbox = Inbox::new(2);
        inbox.admit(delivery(5, 1));
        inbox.admit(delivery(5, 2));
        assert_eq!(handed_out(&mut inbox), [(5, 1), (5, 2)]);
        inbox.end((5, 1));
        // The list was made before the first was acknowledged.
        inbox.begin();
        inbox.admit(delivery(5, 1));
        inbox.admit(delivery(5, 2));
        inbox.admit(delivery(6, 3));
        inbox.standing();
        assert_eq!(handed_out(&mut inbox), [(6, 3)]);
        inbox.admit(delivery(7, 1));
        assert_eq!(handed_out(&mut inbox), [(7, 1)], "another grant of the same message");
    }

    #[test]
    fn what_was_taken_away_is_not_handed_out() {
        let mut inbox = Inbox::new(2);
        inbox.admit(delivery(5, 1));
        inbox.admit(delivery(5, 2));
        inbox.withdraw((5, 1));
        inbox.begin();
        inbox.admit(delivery(9, 3));
        inbox.standing();
        assert_eq!(handed_out(&mut inbox), [(9, 3)], "the list does not name the second any more");
        inbox.admit(delivery(5, 2));
        assert!(handed_out(&mut inbox).is_empty());
    }

    #[test]
    fn news_before_the_first_list_is_through_takes_nothing_away() {
        let mut inbox = Inbox::new(2);
        inbox.begin();
        inbox.admit(delivery(5, 1));
        inbox.standing();
        inbox.admit(delivery(6, 2));
        inbox.standing();
        assert_eq!(handed_out(&mut inbox), [(5, 1), (6, 2)]);
    }

    #[test]
    fn only_so_much_is_remembered() {
        let mut inbox = Inbox::new(1);
        for token in 1..=1_000 {
            inbox.admit(delivery(token, token));
        }
        assert_eq!((inbox.held.len(), inbox.ended.len()), (66, 66));
        inbox.admit(delivery(1_000, 1_000));
        assert_eq!(handed_out(&mut inbox).len(), 1_000);
    }

    #[test]
    fn the_end_is_told_once_and_what_waited_is_not_handed_out() {
        let mut inbox = Inbox::new(1);
        inbox.admit(delivery(5, 1));
        inbox.finish(fenced("the session has ended"));
        assert!(matches!(inbox.next(), Poll::Ready(Some(Err(Error::Fenced { .. })))));
        inbox.finish(fenced("again"));
        assert!(matches!(inbox.next(), Poll::Ready(None)));
    }

    #[tokio::test]
    async fn a_reader_wakes_up_for_what_comes() {
        let line = Line::new(1);
        let (next, ()) = tokio::join!(line.next(), async { line.with(|inbox| inbox.admit(delivery(5, 1))) });
        assert!(matches!(next, Some(Ok(delivery)) if delivery.token == 5));
    }
}
