//! What a record says of one subscription. What is not of this workload is passed by.
//!
//! Deliberately absent: any judgement.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::record::{Operation, Outcome};

/// What was asked of a publish.
#[derive(Debug, Deserialize)]
pub(super) struct Letter {
    pub(super) value: String,
    pub(super) order_key: String,
    #[serde(default)]
    pub(super) message_id: Option<String>,
}

/// What was answered.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct Published {
    pub(super) seq: u64,
    pub(super) duplicate: bool,
}

/// One publish.
#[derive(Debug)]
pub(super) struct Publish<'a> {
    pub(super) op: &'a Operation,
    pub(super) letter: Letter,
    /// `None`: refused, or nobody knows.
    pub(super) said: Option<Published>,
}

impl Publish<'_> {
    /// Whether it certainly had no effect.
    pub(super) fn is_refused(&self) -> bool {
        self.op.outcome == Outcome::Fail
    }
}

/// What a consumer was given.
#[derive(Debug, Deserialize)]
pub(super) struct Delivered {
    pub(super) seq: u64,
    pub(super) value: String,
    pub(super) order_key: String,
    pub(super) token: u64,
    pub(super) attempt: u32,
}

/// One delivery.
#[derive(Debug)]
pub(super) struct Receipt<'a> {
    pub(super) op: &'a Operation,
    pub(super) consumer: String,
    pub(super) delivered: Delivered,
}

/// An acknowledgement or its opposite.
#[derive(Debug)]
pub(super) struct Word<'a> {
    pub(super) op: &'a Operation,
    pub(super) is_ack: bool,
    pub(super) seq: u64,
    pub(super) token: u64,
    /// `None`: nobody knows.
    pub(super) accepted: Option<bool>,
}

/// A consumer gave back what it held, or may have.
#[derive(Debug)]
pub(super) struct Leave<'a> {
    pub(super) op: &'a Operation,
    pub(super) consumer: String,
}

/// A message that was given up on.
#[derive(Debug, Deserialize)]
pub(super) struct Dead {
    pub(super) seq: u64,
    pub(super) value: String,
    pub(super) attempts: u32,
}

/// What the subscription counted.
#[derive(Debug, Deserialize)]
pub(super) struct Counts {
    pub(super) published: u64,
    pub(super) acked: u64,
    pub(super) redelivered: u64,
    pub(super) dead: u64,
    pub(super) expired: u64,
    pub(super) dropped: u64,
}

/// What was left.
#[derive(Debug, Deserialize)]
pub(super) struct Left {
    pub(super) dead: Vec<Dead>,
    pub(super) waiting: u64,
    pub(super) counts: Counts,
}

/// The end of it.
#[derive(Debug)]
pub(super) struct End<'a> {
    pub(super) op: &'a Operation,
    pub(super) max_attempts: u32,
    pub(super) left: Left,
}

#[derive(Deserialize)]
struct ByConsumer {
    consumer: String,
}

#[derive(Deserialize)]
struct OfDelivery {
    seq: u64,
    token: u64,
}

#[derive(Deserialize)]
struct Accepted {
    accepted: bool,
}

#[derive(Deserialize)]
struct Allowed {
    max_attempts: u32,
}

/// All of one subscription.
#[derive(Debug, Default)]
pub(super) struct Subscription<'a> {
    pub(super) publishes: Vec<Publish<'a>>,
    pub(super) receipts: Vec<Receipt<'a>>,
    pub(super) words: Vec<Word<'a>>,
    pub(super) leaves: Vec<Leave<'a>>,
    pub(super) end: Option<End<'a>>,
}

impl<'a> Subscription<'a> {
    /// Reads the operations of one key. An error names the operation that is not what it should be.
    pub(super) fn read(operations: &[&'a Operation]) -> Result<Self, String> {
        let mut all = Self::default();
        for op in operations.iter().copied() {
            all.add(op)?;
        }
        Ok(all)
    }

    fn add(&mut self, op: &'a Operation) -> Result<(), String> {
        match (op.f.as_str(), op.res()) {
            ("publish", res) => {
                let said = res.map(|res| read(op, res)).transpose()?;
                self.publishes.push(Publish { op, letter: read(op, &op.arg)?, said });
            }
            ("receive", Some(res)) => {
                let ByConsumer { consumer } = read(op, &op.arg)?;
                self.receipts.push(Receipt { op, consumer, delivered: read(op, res)? });
            }
            ("ack" | "nack", res) => self.words.push(word(op, res)?),
            // One that failed gave nothing back.
            ("leave", _) if op.outcome != Outcome::Fail => {
                let ByConsumer { consumer } = read(op, &op.arg)?;
                self.leaves.push(Leave { op, consumer });
            }
            ("final", Some(res)) => {
                let Allowed { max_attempts } = read(op, &op.arg)?;
                self.end = Some(End { op, max_attempts, left: read(op, res)? });
            }
            _ => {}
        }
        Ok(())
    }

    /// Nothing here is of a subscription.
    pub(super) fn is_empty(&self) -> bool {
        self.publishes.is_empty() && self.receipts.is_empty() && self.words.is_empty() && self.end.is_none()
    }

    /// Every publish that was answered, and what the answer was.
    pub(super) fn acknowledged(&self) -> impl Iterator<Item = (&Publish<'a>, Published)> {
        self.publishes.iter().filter_map(|publish| Some((publish, publish.said?)))
    }
}

fn word<'a>(op: &'a Operation, res: Option<&Value>) -> Result<Word<'a>, String> {
    let OfDelivery { seq, token } = read(op, &op.arg)?;
    let said: Option<Accepted> = res.map(|res| read(op, res)).transpose()?;
    let accepted = match (said, &op.outcome) {
        (Some(said), _) => Some(said.accepted),
        (None, Outcome::Info) => None,
        (None, _) => Some(false),
    };
    Ok(Word { op, is_ack: op.f == "ack", seq, token, accepted })
}

fn read<T: DeserializeOwned>(op: &Operation, said: &Value) -> Result<T, String> {
    T::deserialize(said).map_err(|error| format!("operation {} ({}) says {said}: {error}", op.id, op.f))
}
