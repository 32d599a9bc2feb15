//! What the consumers of one subscription were given, against what was published.
//!
//! | must hold | seen by |
//! |---|---|
//! | nothing acknowledged is lost | each accepted message was given to somebody who acknowledged it |
//! | nothing is made up, nothing is there twice | each message has an origin that was tried, and no other message has it |
//! | nobody is given what another holds | of a message, tokens and attempts rise together, and the acknowledged one is the last |
//! | order | of a key, all tokens of a message are below those of the next, and first deliveries come in that order |
//!
//! A consumer that is killed may have been given, or have acknowledged, more than it could say. So a message counts as
//! acknowledged if that was begun: what became of it, the subscription's own counters tell.
//!
//! Deliberately absent: calls. What was seen is written down by whoever saw it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use anyhow::{Context, Result, ensure};
use quorate_client::v1::BusMessage;

/// The faults that a message shows of many.
const SHOWN: usize = 5;

/// Who published a message, and its number among those.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    /// The publisher.
    pub producer: u32,
    /// From 0.
    pub n: u32,
}

impl Origin {
    /// Reads what [`Origin`] looks like in a payload.
    pub fn read(payload: &[u8]) -> Option<Self> {
        let (producer, n) = std::str::from_utf8(payload).ok()?.split_once('.')?;
        Some(Self { producer: producer.parse().ok()?, n: n.parse().ok()? })
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.producer, self.n)
    }
}

/// What publishers know.
#[derive(Debug, Default)]
pub struct Publications {
    /// What was accepted, with its number.
    pub accepted: BTreeMap<Origin, u64>,
    /// What may be there or not.
    pub unknown: BTreeSet<Origin>,
    /// Messages that were published again and had been there.
    pub duplicates: u64,
    /// Calls that got no answer in time.
    pub unanswered: u64,
}

impl Publications {
    /// What another publisher knows.
    pub fn add(&mut self, other: Self) {
        self.accepted.extend(other.accepted);
        self.unknown.extend(other.unknown);
        self.duplicates += other.duplicates;
        self.unanswered += other.unanswered;
    }
}

/// One message.
#[derive(Clone, Copy, Debug)]
struct Seen {
    origin: Origin,
    key: usize,
    first_token: u64,
    last_token: u64,
    /// At the last token.
    attempt: u32,
    /// Somebody began to acknowledge it.
    is_asked: bool,
    /// The token under which that was accepted; 0: not that anybody knows.
    acked: u64,
}

impl Seen {
    /// It was given to somebody once more.
    fn again(&mut self, origin: Origin, token: u64, attempt: u32) -> Result<(), String> {
        if origin != self.origin {
            return Err(format!("it was {} and is {origin}", self.origin));
        }
        if token == self.last_token {
            return Err(format!("handed out twice under token {token}"));
        }
        if (token > self.last_token) != (attempt > self.attempt) || attempt == self.attempt {
            let (last, was) = (self.last_token, self.attempt);
            return Err(format!("attempt {was} has token {last} and attempt {attempt} has {token}"));
        }
        // One that was given away may be heard of late.
        self.first_token = self.first_token.min(token);
        if token > self.last_token {
            (self.last_token, self.attempt) = (token, attempt);
        }
        Ok(())
    }
}

/// One order key.
#[derive(Clone, Copy, Debug)]
struct OrderKey {
    number: usize,
    /// The newest message of it that was given to somebody.
    newest: u64,
}

/// What the consumers of one subscription were given.
#[derive(Debug, Default)]
pub struct Deliveries {
    seen: BTreeMap<u64, Seen>,
    keys: BTreeMap<String, OrderKey>,
    faults: Vec<String>,
    again: u64,
    nacked: u64,
}

impl Deliveries {
    /// A consumer was given a message: to be called before anything is said of it.
    pub fn delivered(&mut self, message: &BusMessage, token: u64, attempt: u32) {
        let seq = message.seq;
        let Some(origin) = Origin::read(&message.payload) else {
            return self.faults.push(format!("message {seq} says {:?}", message.payload));
        };
        if let Some(seen) = self.seen.get_mut(&seq) {
            self.again += 1;
            if let Err(fault) = seen.again(origin, token, attempt) {
                self.faults.push(format!("message {seq}: {fault}"));
            }
            return;
        }
        let key = self.keyed(&message.order_key, seq);
        let seen = Seen { origin, key, first_token: token, last_token: token, attempt, is_asked: false, acked: 0 };
        self.seen.insert(seq, seen);
    }

    /// The number of the key whose next message this is.
    fn keyed(&mut self, name: &str, seq: u64) -> usize {
        let number = self.keys.len();
        let key = self.keys.entry(name.to_owned()).or_insert(OrderKey { number, newest: 0 });
        if seq < key.newest {
            self.faults.push(format!("{name}: message {seq} came after {}", key.newest));
        }
        key.newest = key.newest.max(seq);
        key.number
    }

    /// A consumer is about to acknowledge a message.
    pub fn asking(&mut self, seq: u64) {
        if let Some(seen) = self.seen.get_mut(&seq) {
            seen.is_asked = true;
        }
    }

    /// The acknowledgement was accepted.
    pub fn acknowledged(&mut self, seq: u64, token: u64) {
        match self.seen.get_mut(&seq) {
            Some(seen) if seen.acked == 0 => seen.acked = token,
            _ => self.faults.push(format!("message {seq} was acknowledged again under token {token}")),
        }
    }

    /// A failure was accepted.
    pub fn nacked(&mut self) {
        self.nacked += 1;
    }

    /// How many failures were accepted.
    pub fn nacks(&self) -> u64 {
        self.nacked
    }

    /// How many messages were given to somebody.
    pub fn len(&self) -> usize {
        self.seen.len()
    }

    /// Whether nobody was given anything.
    pub fn is_empty(&self) -> bool {
        self.seen.is_empty()
    }

    /// The numbers of all that was given to somebody.
    pub fn numbers(&self) -> impl Iterator<Item = u64> {
        self.seen.keys().copied()
    }

    /// What there was, in a few words.
    pub fn summary(&self) -> String {
        let unheard = self.seen.values().filter(|seen| seen.acked == 0).count();
        let (messages, again, nacked) = (self.seen.len(), self.again, self.nacked);
        format!("{messages} messages, {again} delivered again, {nacked} nacked, {unheard} acknowledged unheard")
    }

    /// Fails unless everything holds that the table above says. To be asked when the subscription is empty.
    pub fn check(&self, published: &Publications) -> Result<()> {
        let shown = &self.faults[..self.faults.len().min(SHOWN)];
        ensure!(self.faults.is_empty(), "{} faults: {shown:?}", self.faults.len());
        self.check_nothing_lost(published)?;
        self.check_nothing_made_up(published)?;
        for (seq, seen) in &self.seen {
            ensure!(seen.is_asked, "message {seq} ({}) went without an acknowledgement", seen.origin);
            let is_last = seen.acked == 0 || seen.acked == seen.last_token;
            ensure!(is_last, "message {seq} was acknowledged and then delivered: {seen:?}");
        }
        self.check_order()
    }

    fn check_nothing_lost(&self, published: &Publications) -> Result<()> {
        for (origin, seq) in &published.accepted {
            let seen = self.seen.get(seq).with_context(|| format!("{origin}, message {seq}, was lost"))?;
            ensure!(seen.origin == *origin, "message {seq} was {origin} and is {}", seen.origin);
        }
        Ok(())
    }

    fn check_nothing_made_up(&self, published: &Publications) -> Result<()> {
        let mut origins = BTreeSet::new();
        for (seq, seen) in &self.seen {
            let origin = seen.origin;
            ensure!(origins.insert(origin), "{origin} is there twice, the second time as message {seq}");
            let is_tried = published.accepted.contains_key(&origin) || published.unknown.contains(&origin);
            ensure!(is_tried, "nobody published {origin}, message {seq}");
        }
        Ok(())
    }

    fn check_order(&self) -> Result<()> {
        let mut before: BTreeMap<usize, (u64, &Seen)> = BTreeMap::new();
        for (seq, seen) in &self.seen {
            if let Some((earlier, last)) = before.insert(seen.key, (*seq, seen)) {
                let in_turn = last.last_token < seen.first_token;
                ensure!(in_turn, "message {seq} moved before {earlier} of its key: {seen:?} {last:?}");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(seq: u64, n: u32, key: &str) -> BusMessage {
        let origin = Origin { producer: 1, n };
        BusMessage { seq, order_key: key.to_owned(), payload: origin.to_string().into(), ..Default::default() }
    }

    /// Three messages were accepted, of one more nobody knows.
    fn published() -> Publications {
        let accepted = (0..3).map(|n| (Origin { producer: 1, n }, u64::from(n) + 10)).collect();
        let unknown = BTreeSet::from([Origin { producer: 1, n: 3 }]);
        Publications { accepted, unknown, ..Default::default() }
    }

    fn take(deliveries: &mut Deliveries, message: &BusMessage, token: u64, attempt: u32) {
        deliveries.delivered(message, token, attempt);
        deliveries.asking(message.seq);
        deliveries.acknowledged(message.seq, token);
    }

    /// All is well: one of them failed once, one was acknowledged unheard.
    fn good() -> Deliveries {
        let mut deliveries = Deliveries::default();
        deliveries.delivered(&message(10, 0, "a"), 100, 1);
        take(&mut deliveries, &message(11, 1, "b"), 100, 1);
        take(&mut deliveries, &message(10, 0, "a"), 110, 2);
        deliveries.delivered(&message(12, 2, "a"), 120, 1);
        deliveries.asking(12);
        deliveries
    }

    #[test]
    fn an_origin_reads_as_it_is_written() {
        let origin = Origin { producer: 3, n: 17 };
        assert_eq!(Origin::read(origin.to_string().as_bytes()), Some(origin));
        assert_eq!(Origin::read(b"3"), None);
        assert_eq!(Origin::read(b"\xff.1"), None);
    }

    #[test]
    fn what_failed_and_came_again_is_no_fault_nor_what_nobody_heard_of() {
        good().check(&published()).unwrap();
        let mut with_unknown = good();
        take(&mut with_unknown, &message(13, 3, "b"), 130, 1);
        with_unknown.check(&published()).unwrap();
        let mut heard_late = good();
        take(&mut heard_late, &message(13, 3, "b"), 130, 2);
        heard_late.delivered(&message(13, 3, "b"), 105, 1);
        heard_late.check(&published()).unwrap();
        assert_eq!((heard_late.len(), heard_late.again), (4, 2));
    }

    #[test]
    fn each_fault_is_found() {
        type Fault = fn(&mut Deliveries);
        let faults: [(&str, Fault); 10] = [
            ("lost", |all| {
                all.seen.remove(&11);
            }),
            ("never acknowledged", |all| all.delivered(&message(13, 3, "b"), 130, 1)),
            ("nobody published it", |all| take(all, &message(13, 4, "b"), 130, 1)),
            ("there twice", |all| take(all, &message(13, 1, "b"), 130, 1)),
            ("twice under one token", |all| all.delivered(&message(12, 2, "a"), 120, 1)),
            ("another attempt that does not say so", |all| all.delivered(&message(12, 2, "a"), 130, 1)),
            ("delivered after it was acknowledged", |all| all.delivered(&message(11, 1, "b"), 130, 2)),
            ("acknowledged twice", |all| all.acknowledged(11, 100)),
            ("before an older one of its key is done", |all| take(all, &message(13, 3, "a"), 120, 1)),
            ("another message of that number", |all| all.delivered(&message(12, 3, "a"), 130, 2)),
        ];
        for (what, plant) in faults {
            let mut deliveries = good();
            plant(&mut deliveries);
            assert!(deliveries.check(&published()).is_err(), "{what}");
        }
    }

    #[test]
    fn the_first_deliveries_of_a_key_come_in_order() {
        let mut deliveries = good();
        take(&mut deliveries, &message(14, 3, "b"), 150, 1);
        take(&mut deliveries, &message(13, 4, "b"), 140, 1);
        let mut published = published();
        published.unknown.insert(Origin { producer: 1, n: 4 });
        let error = deliveries.check(&published).unwrap_err().to_string();
        assert!(error.contains("13 came after 14"), "{error}");
    }
}
