//! One subscription of the model, with the ledger of what became of its messages.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use quorate_proto::v1::{
    AckItem, AckKind, BusMessage, Consumer, DeadMessage, DeliveryFailure, Overflow, PendingDelivery, Subscription,
    SubscriptionCounts, SubscriptionSpec,
};
use quorate_raft::state::bus;

use super::view::View;
use super::{At, is_past};

/// Where a message is in a subscription, or how it left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Waiting,
    InFlight,
    Acked,
    Dead,
    Expired,
    Dropped,
}

/// One subscription.
#[derive(Debug, Clone)]
pub(super) struct Queue {
    pub(super) row: Subscription,
    pub(super) counts: SubscriptionCounts,
    pub(super) pending: BTreeMap<u64, PendingDelivery>,
    /// Those that are in it and those that are dead.
    pub(super) messages: BTreeMap<u64, BusMessage>,
    pub(super) dead: BTreeMap<u64, DeadMessage>,
    pub(super) consumers: BTreeMap<String, Consumer>,
    fates: BTreeMap<u64, Fate>,
    /// Messages that count as dropped and never were in it.
    turned_away: u64,
}

impl Queue {
    pub(super) fn new(at: At, spec: SubscriptionSpec) -> Self {
        let row =
            Subscription { spec: Some(spec), created_at_ms: at.now_ms, created_rev: at.rev, ..Subscription::default() };
        Queue {
            row,
            counts: SubscriptionCounts::default(),
            pending: BTreeMap::new(),
            messages: BTreeMap::new(),
            dead: BTreeMap::new(),
            consumers: BTreeMap::new(),
            fates: BTreeMap::new(),
            turned_away: 0,
        }
    }

    pub(super) fn spec(&self) -> &SubscriptionSpec {
        self.row.spec.as_ref().expect("a specification")
    }

    pub(super) fn is_full(&self) -> bool {
        self.pending.len() as u64 >= self.spec().max_messages
    }

    pub(super) fn drops_oldest(&self) -> bool {
        self.spec().overflow() == Overflow::DropOldest
    }

    pub(super) fn those(&self, wanted: impl Fn(&PendingDelivery) -> bool) -> Vec<u64> {
        self.pending.values().filter(|row| wanted(row)).map(|row| row.seq).collect()
    }

    /// The dead messages that are named; all, if none is.
    pub(super) fn chosen(&self, seqs: &[u64]) -> Vec<u64> {
        if seqs.is_empty() { self.dead.keys().copied().collect() } else { seqs.to_vec() }
    }

    /// The only way from one fate to another.
    fn turn(&mut self, seq: u64, to: Fate) {
        use Fate::{Acked, Dead, Dropped, Expired, InFlight, Waiting};
        let from = self.fates.insert(seq, to);
        let may = match to {
            Waiting => matches!(from, None | Some(InFlight)),
            InFlight | Dropped => from == Some(Waiting),
            Acked | Dead => from == Some(InFlight),
            Expired => matches!(from, Some(Waiting | InFlight)),
        };
        assert!(may, "message {seq} of {:?} went from {from:?} to {to:?}", self.spec().name);
    }

    fn leave(&mut self, seq: u64, how: Fate) {
        self.turn(seq, how);
        self.pending.remove(&seq);
        if !self.dead.contains_key(&seq) {
            self.messages.remove(&seq);
        }
    }

    /// Lets go of a dead message, and gives it back.
    pub(super) fn forget_dead(&mut self, seq: u64) -> BusMessage {
        self.dead.remove(&seq).expect("a dead message");
        self.messages.remove(&seq).expect("the message of a dead one")
    }

    pub(super) fn turn_away(&mut self) {
        self.counts.dropped += 1;
        self.turned_away += 1;
    }

    /// Whether one more may enter; the oldest that waits makes way for it.
    pub(super) fn make_room(&mut self) -> bool {
        if !self.is_full() || !self.drops_oldest() {
            return true;
        }
        match self.those(|row| row.consumer_id.is_empty()).first() {
            Some(oldest) => {
                self.counts.dropped += 1;
                self.leave(*oldest, Fate::Dropped);
                true
            }
            None => {
                self.turn_away();
                false
            }
        }
    }

    pub(super) fn enter(&mut self, at: At, message: &BusMessage) {
        let row = PendingDelivery {
            subscription: self.spec().name.clone(),
            seq: message.seq,
            priority: message.priority,
            order_key: message.order_key.clone(),
            expires_at_ms: message.expires_at_ms,
            not_before_ms: later(at, message.delay_ms),
            ..PendingDelivery::default()
        };
        self.turn(message.seq, Fate::Waiting);
        self.pending.insert(message.seq, row);
        self.messages.insert(message.seq, message.clone());
        self.counts.published += 1;
    }

    pub(super) fn ack(&mut self, at: At, item: &AckItem) {
        let seq = item.seq;
        let reason = if item.reason.is_empty() { "no reason given" } else { item.reason.as_str() };
        match item.kind() {
            AckKind::Ack => {
                self.counts.acked += 1;
                self.leave(seq, Fate::Acked);
            }
            AckKind::Nack => self.fail(at, seq, reason, Some(item.delay_ms).filter(|delay_ms| *delay_ms > 0)),
            AckKind::Reject => self.bury(at, failed(at, &self.pending[&seq], reason), reason.to_owned()),
            AckKind::Release => self.give_back(at, seq),
            AckKind::Extend => {
                let deadline_ms = later(at, self.spec().ack_wait_ms);
                self.pending.get_mut(&seq).expect("a delivery").deadline_ms = deadline_ms;
            }
            AckKind::Unspecified => panic!("an acknowledgement of no kind: {item:?}"),
        }
    }

    pub(super) fn give_back(&mut self, at: At, seq: u64) {
        self.come_back(at, waiting(&self.pending[&seq]));
    }

    pub(super) fn fail(&mut self, at: At, seq: u64, reason: &str, pause_ms: Option<u64>) {
        let mut next = failed(at, &self.pending[&seq], reason);
        if next.attempts >= self.spec().max_attempts {
            let why = format!("deliveries that failed: {}; the last one: {reason}", next.attempts);
            return self.bury(at, next, why);
        }
        let pauses = &self.spec().backoff_ms;
        let usual_ms = pauses[pauses.len().min(next.attempts as usize) - 1];
        next.not_before_ms = later(at, pause_ms.unwrap_or(usual_ms));
        self.come_back(at, next);
    }

    /// What is too old does not wait again.
    fn come_back(&mut self, at: At, next: PendingDelivery) {
        if is_past(next.expires_at_ms, at.now_ms) {
            return self.expire(next.seq);
        }
        self.turn(next.seq, Fate::Waiting);
        self.pending.insert(next.seq, next);
    }

    fn expire(&mut self, seq: u64) {
        self.counts.expired += 1;
        self.leave(seq, Fate::Expired);
    }

    fn bury(&mut self, at: At, next: PendingDelivery, reason: String) {
        self.counts.dead += 1;
        if !self.spec().drop_dead {
            let dead = DeadMessage {
                subscription: next.subscription,
                message: None,
                reason,
                failures: next.failures,
                dead_at_ms: at.now_ms,
                seq: next.seq,
            };
            self.dead.insert(next.seq, dead);
        }
        self.leave(next.seq, Fate::Dead);
    }

    pub(super) fn tick(&mut self, at: At) {
        for seq in self.those(|row| row.consumer_id.is_empty() && is_past(row.expires_at_ms, at.now_ms)) {
            self.expire(seq);
        }
        for seq in self.those(|row| is_past(row.deadline_ms, at.now_ms)) {
            let row = &self.pending[&seq];
            let reason = format!("no ack within {} ms", row.deadline_ms - row.since_ms);
            self.fail(at, seq, &reason, None);
        }
        for row in self.pending.values_mut().filter(|row| is_past(row.not_before_ms, at.now_ms)) {
            row.not_before_ms = 0;
        }
    }

    /// Gives what is ready to whoever has room, one by one.
    pub(super) fn assign(&mut self, at: At) {
        while let (Some(seq), Some(consumer_id)) = (self.next_ready(), self.next_consumer()) {
            if is_past(self.pending[&seq].expires_at_ms, at.now_ms) {
                self.expire(seq);
                continue;
            }
            let deadline_ms = later(at, self.spec().ack_wait_ms);
            let row = PendingDelivery {
                consumer_id,
                token: at.rev,
                since_ms: at.now_ms,
                deadline_ms,
                ..self.pending[&seq].clone()
            };
            self.counts.redelivered += u64::from(row.attempts > 0);
            self.turn(seq, Fate::InFlight);
            self.pending.insert(seq, row);
        }
    }

    /// Of what waits for nothing, and is the oldest of its key: the highest priority, then the oldest.
    fn next_ready(&self) -> Option<u64> {
        let is_head = |row: &PendingDelivery| {
            row.order_key.is_empty()
                || !self.pending.range(..row.seq).any(|(_, other)| other.order_key == row.order_key)
        };
        let ready = self.pending.values().filter(|row| row.consumer_id.is_empty() && row.not_before_ms == 0);
        ready.filter(|row| is_head(row)).min_by_key(|row| (Reverse(row.priority), row.seq)).map(|row| row.seq)
    }

    /// Of those with room: who holds the fewest, then who was served longest ago.
    fn next_consumer(&self) -> Option<String> {
        let turn = |consumer: &Consumer| {
            let tokens = self.pending.values().filter(|row| row.consumer_id == consumer.consumer_id);
            let tokens: Vec<u64> = tokens.map(|row| row.token).collect();
            let served = tokens.iter().max().copied().unwrap_or_default();
            let id = consumer.consumer_id.clone();
            (tokens.len() < consumer.credit as usize).then_some((tokens.len(), served, id))
        };
        self.consumers.values().filter_map(turn).min().map(|(_, _, id)| id)
    }

    pub(super) fn check_ledger(&self, name: &str, view: &View) {
        let those = |fate: Fate| -> BTreeSet<u64> {
            self.fates.iter().filter(|(_, is)| **is == fate).map(|(seq, _)| *seq).collect()
        };
        let rows = view.pending.values().filter(|row| row.subscription == name);
        let (waiting, held): (Vec<_>, Vec<_>) = rows.partition(|row| row.consumer_id.is_empty());
        let seqs = |rows: Vec<&PendingDelivery>| -> BTreeSet<u64> { rows.into_iter().map(|row| row.seq).collect() };
        assert_eq!(seqs(waiting), those(Fate::Waiting), "what waits in {name:?}");
        assert_eq!(seqs(held), those(Fate::InFlight), "what is in flight of {name:?}");
        let dead = view.dead.keys().filter(|(of, _)| of == name).map(|(_, seq)| *seq);
        assert!(dead.collect::<BTreeSet<u64>>().is_subset(&those(Fate::Dead)), "dead messages of {name:?}");
        let counts = view.counts.get(name).copied().unwrap_or_default();
        let counted = [counts.published, counts.acked, counts.dead, counts.expired, counts.dropped - self.turned_away];
        let [acked, dead, expired, dropped] =
            [Fate::Acked, Fate::Dead, Fate::Expired, Fate::Dropped].map(|fate| those(fate).len() as u64);
        assert_eq!(counted, [self.fates.len() as u64, acked, dead, expired, dropped], "what became of {name:?}");
    }
}

/// So much later; 0 stays 0.
pub(super) fn later(at: At, ms: u64) -> u64 {
    if ms == 0 { 0 } else { at.now_ms + ms }
}

/// The row once nobody has it.
fn waiting(row: &PendingDelivery) -> PendingDelivery {
    PendingDelivery {
        not_before_ms: 0,
        consumer_id: String::new(),
        token: 0,
        deadline_ms: 0,
        since_ms: 0,
        ..row.clone()
    }
}

/// The row after one more delivery that failed.
fn failed(at: At, row: &PendingDelivery, reason: &str) -> PendingDelivery {
    let attempt = row.attempts + 1;
    let (consumer_id, reason) = (row.consumer_id.clone(), reason.to_owned());
    let failure = DeliveryFailure { attempt, at_ms: at.now_ms, consumer_id, reason };
    let failures = row.failures.iter().cloned().chain([failure]);
    let failures = failures.skip((row.failures.len() + 1).saturating_sub(bus::MAX_FAILURES)).collect();
    PendingDelivery { attempts: attempt, failures, ..waiting(row) }
}
