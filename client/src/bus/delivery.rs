//! One message under the token of its delivery.

use std::sync::Arc;
use std::time::Duration;

use quorate_proto::v1::{self, AckItem, AckKind, BusMessage};

use super::acks::Acks;
use super::inbox::{Key, Line, key_of};
use crate::client::millis;
use crate::error::Error;

/// What the cluster keeps of a reason, its beginning.
const REASON_BYTES: usize = 1_024;
/// The longest pause before another attempt that the cluster takes.
const LONGEST_DELAY: Duration = Duration::from_secs(86_400);

/// A message that was delivered to this consumer, and to nobody else until one of its methods, a deadline or the end of
/// the session says otherwise. Dropping it without a word says nothing: it stays this consumer's, and counts against its
/// credit.
///
/// A method that returns `Fenced` came too late: the message is somebody else's by then. One that returns
/// `OutcomeUnknown` was cut off by the end of the session.
#[derive(Debug)]
#[must_use = "a delivery that is not acknowledged stays in flight"]
pub struct Delivery {
    sent: v1::Delivery,
    message: BusMessage,
    key: Key,
    acks: Acks,
    line: Arc<Line>,
}

impl Delivery {
    pub(super) fn of(mut sent: v1::Delivery, acks: Acks, line: Arc<Line>) -> Self {
        let key = key_of(&sent);
        let message = sent.message.take().unwrap_or_default();
        Delivery { sent, message, key, acks, line }
    }

    /// The message. A payload that lies beside the log is had from [`Bus::payload`](crate::Bus::payload).
    pub fn message(&self) -> &BusMessage {
        &self.message
    }

    /// From 1. More than 1: somebody may have seen it before, and may have acted on it.
    pub fn attempt(&self) -> u32 {
        self.sent.attempt
    }

    /// The rev at which it was assigned: what the cluster knows it by, together with the message's seq.
    pub fn token(&self) -> u64 {
        self.sent.token
    }

    /// The subscription that it comes from.
    pub fn subscription(&self) -> &str {
        &self.sent.subscription
    }

    /// When it fails unless it is acknowledged or extended, in milliseconds since 1970 by the cluster's clock. 0: it
    /// lives with the session.
    pub fn deadline_ms(&self) -> u64 {
        self.sent.deadline_ms
    }

    /// Done: never delivered again.
    pub async fn ack(&self) -> Result<(), Error> {
        self.acks.say(self.item(AckKind::Ack)).await
    }

    /// Failed: again after the subscription's pause, until its attempts are used up.
    pub async fn nack(&self, reason: &str) -> Result<(), Error> {
        self.nack_after(reason, Duration::ZERO).await
    }

    /// Failed: again after this pause, at most a day; zero means the subscription's.
    pub async fn nack_after(&self, reason: &str, delay: Duration) -> Result<(), Error> {
        let delay_ms = millis(delay.min(LONGEST_DELAY));
        self.acks.say(AckItem { delay_ms, reason: head(reason), ..self.item(AckKind::Nack) }).await
    }

    /// Failed for good: dead at once.
    pub async fn reject(&self, reason: &str) -> Result<(), Error> {
        self.acks.say(AckItem { reason: head(reason), ..self.item(AckKind::Reject) }).await
    }

    /// Not begun: to anybody, at once, and not an attempt.
    pub async fn release(&self) -> Result<(), Error> {
        self.acks.say(self.item(AckKind::Release)).await
    }

    /// Still at it: the deadline starts anew.
    pub async fn extend(&self) -> Result<(), Error> {
        self.acks.say(self.item(AckKind::Extend)).await
    }

    /// As [`Delivery::ack`], for somebody who does not wait for the answer.
    pub(super) fn ack_unheard(&self) {
        drop(self.acks.ask(self.item(AckKind::Ack)));
    }

    /// What a transaction says that acknowledges it.
    pub(crate) fn item(&self, kind: AckKind) -> AckItem {
        AckItem {
            subscription: self.sent.subscription.clone(),
            seq: self.message.seq,
            token: self.sent.token,
            kind: kind as i32,
            ..AckItem::default()
        }
    }

    /// For whoever acknowledges it by other means.
    pub(crate) fn ending(&self) -> Ending {
        Ending { key: self.key, line: Arc::clone(&self.line) }
    }
}

/// Tells a consumer that a delivery is over.
#[derive(Debug, Clone)]
pub(crate) struct Ending {
    key: Key,
    line: Arc<Line>,
}

impl Ending {
    pub(crate) fn tell(&self) {
        self.line.with(|inbox| inbox.end(self.key));
    }
}

fn head(reason: &str) -> String {
    reason[..reason.floor_char_boundary(REASON_BYTES)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_cut_to_its_beginning() {
        assert_eq!(head("no"), "no");
        let wordy = "a".repeat(REASON_BYTES - 1) + "ä";
        assert_eq!(head(&wordy).len(), REASON_BYTES - 1);
    }
}
