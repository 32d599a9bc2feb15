//! What stands where in one subscription, and who may take it.
//!
//! ```text
//!   enter ──▶ ready ──▶ in flight ──▶ leave          ready:     by priority, then age
//!     │         ▲ ▲         │                        delayed:   until a time
//!     ├─▶ delayed ┘◀────────┘                        behind:    an older message of its order key has not left
//!     └─▶ behind ─┘
//! ```
//!
//! A message stands where its row says: with a consumer, until a time, or else behind or ready, by its key. So the
//! whole is rebuilt from the rows, and memory holds of a waiting message only its priority and its number.
//!
//! Invariants:
//! - a message is in exactly one of the four places;
//! - of one order key only the oldest is ready or in flight: it leaves before the next one moves;
//! - `free` holds the consumers with fewer deliveries than credit, and no others.
//!
//! Deliberately absent: the rows. Whoever moves a message writes its row.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use quorate_proto::v1::{Consumer, PendingDelivery};

use super::MAX_PRIORITY;
use crate::error::Fatal;
use crate::faults::{Bug, planted};

/// Smaller goes first.
type Rank = u8;

/// A delivery under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) token: u64,
    pub(super) consumer_id: Arc<str>,
}

/// A consumer and what it holds, in the order in which it was assigned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) row: Consumer,
    held: BTreeSet<(u64, Rank, u64)>,
}

impl Member {
    /// Number and token of each delivery.
    pub(super) fn held(&self) -> impl ExactSizeIterator<Item = (u64, u64)> {
        self.held.iter().map(|(token, _, seq)| (*seq, *token))
    }

    /// How many deliveries it may have: its credit, or what it holds since before that was lowered.
    pub(super) fn reach(&self) -> usize {
        self.held.len().max(self.row.credit as usize)
    }

    fn has_room(&self) -> bool {
        self.held.len() < self.row.credit as usize
    }

    /// Fewest in flight first, then who was served longest ago.
    fn turn(&self, id: &Arc<str>) -> Turn {
        (self.held.len(), self.held.last().map_or(0, |(token, ..)| *token), Arc::clone(id))
    }
}

type Turn = (usize, u64, Arc<str>);

/// What is due in a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// The message is too old.
    Expiry(u64),
    /// The delivery was not acknowledged in time.
    Deadline(u64),
    /// The pause is over.
    Delay(u64),
}

/// The indexes of one subscription.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Queue {
    ready: BTreeSet<(Rank, u64)>,
    delayed: BTreeSet<u64>,
    behind: BTreeMap<u64, Rank>,
    in_flight: BTreeMap<u64, Held>,
    /// Every message with an order key, wherever it stands.
    keyed: BTreeSet<(Arc<str>, u64)>,
    /// Of those that are delayed, in flight, or waiting in any way.
    delays: BTreeSet<(u64, u64)>,
    deadlines: BTreeSet<(u64, u64)>,
    expiries: BTreeSet<(u64, u64)>,
    consumers: BTreeMap<Arc<str>, Member>,
    free: BTreeSet<Turn>,
}

impl Queue {
    /// A message is kept from now on. Rows enter in the order of their numbers.
    pub(super) fn enter(&mut self, row: &PendingDelivery) -> Result<(), Fatal> {
        if !row.order_key.is_empty() {
            let key = self.shared(&row.order_key);
            self.keyed.insert((key, row.seq));
        }
        self.place(row)
    }

    /// It is kept no longer: the next of its key may go.
    pub(super) fn leave(&mut self, row: &PendingDelivery) {
        self.unplace(row);
        if row.order_key.is_empty() {
            return;
        }
        self.keyed.remove(&(Arc::from(row.order_key.as_str()), row.seq));
        if let Some(head) = self.head_of(&row.order_key)
            && let Some(rank) = self.behind.remove(&head)
        {
            self.ready.insert((rank, head));
        }
    }

    /// Its row changes.
    pub(super) fn replace(&mut self, before: &PendingDelivery, after: &PendingDelivery) -> Result<(), Fatal> {
        self.unplace(before);
        self.place(after)
    }

    /// A consumer is there, or has another credit.
    pub(super) fn join(&mut self, row: Consumer) {
        let id: Arc<str> = Arc::from(row.consumer_id.as_str());
        self.change_member(&id, |member| {
            let held = member.map(|member| member.held).unwrap_or_default();
            Some(Member { row, held })
        });
    }

    /// A consumer is gone. What it held has been taken from it.
    pub(super) fn part(&mut self, consumer_id: &str) {
        self.change_member(&Arc::from(consumer_id), |_| None);
    }

    /// How many messages it keeps, delivered ones included.
    pub(super) fn len(&self) -> usize {
        self.waiting() + self.delayed.len() + self.in_flight.len()
    }

    /// How many wait for a consumer or behind an older one.
    pub(super) fn waiting(&self) -> usize {
        self.ready.len() + self.behind.len()
    }

    pub(super) fn delayed(&self) -> usize {
        self.delayed.len()
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// The delivery of a message that is under way.
    pub(super) fn held(&self, seq: u64) -> Option<&Held> {
        self.in_flight.get(&seq)
    }

    pub(super) fn member(&self, consumer_id: &str) -> Option<&Member> {
        self.consumers.get(consumer_id)
    }

    /// Every consumer, by id.
    pub(super) fn members(&self) -> impl ExactSizeIterator<Item = &Member> {
        self.consumers.values()
    }

    /// The message that goes next, and to whom.
    pub(super) fn next_pair(&self) -> Option<(u64, Arc<str>)> {
        let (_, seq) = self.ready.first()?;
        let (_, _, consumer_id) = self.free.first()?;
        Some((*seq, Arc::clone(consumer_id)))
    }

    /// The oldest message that is not in flight.
    pub(super) fn oldest_waiting(&self) -> Option<u64> {
        let ready = (0..=rank(0)).filter_map(|rank| self.ready.range((rank, 0)..=(rank, u64::MAX)).next());
        let delayed = self.delayed.first().copied();
        let behind = self.behind.first_key_value().map(|(seq, _)| *seq);
        ready.map(|(_, seq)| *seq).chain(delayed).chain(behind).min()
    }

    /// The oldest message, wherever it stands.
    pub(super) fn oldest(&self) -> Option<u64> {
        let in_flight = self.in_flight.first_key_value().map(|(seq, _)| *seq);
        self.oldest_waiting().into_iter().chain(in_flight).min()
    }

    /// When something is due next.
    pub(super) fn next_due_ms(&self) -> Option<u64> {
        let timers = [&self.expiries, &self.deadlines, &self.delays];
        timers.into_iter().filter_map(|timer| timer.first()).map(|(at_ms, _)| *at_ms).min()
    }

    /// The next thing that is due. What is too old goes before it could be delivered once more.
    pub(super) fn due(&self, now_ms: u64) -> Option<Due> {
        let first = |timer: &BTreeSet<(u64, u64)>| timer.first().filter(|(at_ms, _)| *at_ms <= now_ms).map(|due| due.1);
        first(&self.expiries)
            .map(Due::Expiry)
            .or_else(|| first(&self.deadlines).map(Due::Deadline))
            .or_else(|| first(&self.delays).map(Due::Delay))
    }

    fn place(&mut self, row: &PendingDelivery) -> Result<(), Fatal> {
        let (seq, rank) = (row.seq, rank(row.priority));
        if !row.consumer_id.is_empty() {
            return self.hold(row, rank);
        }
        if row.expires_at_ms > 0 {
            self.expiries.insert((row.expires_at_ms, seq));
        }
        if row.not_before_ms > 0 {
            self.delayed.insert(seq);
            self.delays.insert((row.not_before_ms, seq));
        } else if row.order_key.is_empty() || self.head_of(&row.order_key) == Some(seq) || planted(Bug::OrderIgnored) {
            self.ready.insert((rank, seq));
        } else {
            self.behind.insert(seq, rank);
        }
        Ok(())
    }

    fn hold(&mut self, row: &PendingDelivery, rank: Rank) -> Result<(), Fatal> {
        let Some((id, _)) = self.consumers.get_key_value(row.consumer_id.as_str()) else {
            let (seq, name, id) = (row.seq, &row.subscription, &row.consumer_id);
            return Err(Fatal::Corrupt(format!("message {seq} of {name:?} is with {id:?}, who is no consumer")));
        };
        let consumer_id = Arc::clone(id);
        self.change_member(&consumer_id, |member| {
            member.map(|mut member| {
                member.held.insert((row.token, rank, row.seq));
                member
            })
        });
        if row.deadline_ms > 0 {
            self.deadlines.insert((row.deadline_ms, row.seq));
        }
        self.in_flight.insert(row.seq, Held { token: row.token, consumer_id });
        Ok(())
    }

    fn unplace(&mut self, row: &PendingDelivery) {
        let (seq, rank) = (row.seq, rank(row.priority));
        if let Some(held) = self.in_flight.remove(&seq) {
            self.deadlines.remove(&(row.deadline_ms, seq));
            self.change_member(&held.consumer_id, |member| {
                member.map(|mut member| {
                    member.held.remove(&(held.token, rank, seq));
                    member
                })
            });
            return;
        }
        self.expiries.remove(&(row.expires_at_ms, seq));
        if self.delayed.remove(&seq) {
            self.delays.remove(&(row.not_before_ms, seq));
        } else if !self.ready.remove(&(rank, seq)) {
            self.behind.remove(&seq);
        }
    }

    /// The one place where a consumer changes: its turn changes with it.
    fn change_member(&mut self, id: &Arc<str>, change: impl FnOnce(Option<Member>) -> Option<Member>) {
        let before = self.consumers.remove(id);
        if let Some(before) = &before {
            self.free.remove(&before.turn(id));
        }
        if let Some(after) = change(before) {
            if after.has_room() {
                self.free.insert(after.turn(id));
            }
            self.consumers.insert(Arc::clone(id), after);
        }
    }

    /// The oldest message of a key.
    fn head_of(&self, key: &str) -> Option<u64> {
        let key: Arc<str> = Arc::from(key);
        let (from, to) = ((Arc::clone(&key), 0), (key, u64::MAX));
        self.keyed.range(from..=to).next().map(|(_, seq)| *seq)
    }

    /// The key as its messages share it.
    fn shared(&self, key: &str) -> Arc<str> {
        let new: Arc<str> = Arc::from(key);
        let known = self.keyed.range((Arc::clone(&new), 0)..).next().filter(|(known, _)| *known == new);
        known.map(|(known, _)| Arc::clone(known)).unwrap_or(new)
    }
}

fn rank(priority: u32) -> Rank {
    u8::try_from(MAX_PRIORITY.saturating_sub(priority)).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(seq: u64, priority: u32, key: &str) -> PendingDelivery {
        PendingDelivery { seq, priority, order_key: key.to_owned(), ..PendingDelivery::default() }
    }

    fn consumer(id: &str, credit: u32) -> Consumer {
        Consumer { consumer_id: id.to_owned(), credit, ..Consumer::default() }
    }

    fn with(row: &PendingDelivery, id: &str, token: u64) -> PendingDelivery {
        PendingDelivery { consumer_id: id.to_owned(), token, ..row.clone() }
    }

    /// Assigns what can be, and tells what went to whom.
    fn assign(queue: &mut Queue, rows: &mut BTreeMap<u64, PendingDelivery>, token: u64) -> Vec<String> {
        let mut assigned = Vec::new();
        while let Some((seq, id)) = queue.next_pair() {
            let before = rows.remove(&seq).expect("a row");
            let after = with(&before, &id, token);
            queue.replace(&before, &after).expect("a consumer");
            rows.insert(seq, after);
            assigned.push(format!("{seq}>{id}"));
        }
        assigned
    }

    fn filled(all: &[PendingDelivery]) -> (Queue, BTreeMap<u64, PendingDelivery>) {
        let mut queue = Queue::default();
        all.iter().for_each(|row| queue.enter(row).expect("nobody has it"));
        (queue, all.iter().map(|row| (row.seq, row.clone())).collect())
    }

    #[test]
    fn higher_priority_first_then_age_and_never_beyond_the_credit() {
        let (mut queue, mut rows) = filled(&[row(1, 0, ""), row(2, 5, ""), row(3, 10, ""), row(4, 5, "")]);
        queue.join(consumer("a", 3));
        assert_eq!(assign(&mut queue, &mut rows, 1), ["3>a", "2>a", "4>a"]);
        assert_eq!(queue.member("a").expect("joined").held().collect::<Vec<_>>(), [(3, 1), (2, 1), (4, 1)]);
        assert_eq!((queue.waiting(), queue.in_flight(), queue.len()), (1, 3, 4));
        queue.leave(&rows[&2]);
        assert_eq!(assign(&mut queue, &mut rows, 2), ["1>a"]);
    }

    #[test]
    fn the_least_burdened_consumer_goes_first_then_who_was_served_longest_ago() {
        let (mut queue, mut rows) = filled(&[row(1, 0, ""), row(2, 0, ""), row(3, 0, "")]);
        queue.join(consumer("b", 2));
        queue.join(consumer("a", 2));
        assert_eq!(assign(&mut queue, &mut rows, 1), ["1>a", "2>b", "3>a"]);
        queue.leave(&rows[&1]);
        rows.insert(4, row(4, 0, ""));
        queue.enter(&rows[&4]).expect("nobody has it");
        assert_eq!(assign(&mut queue, &mut rows, 2)[0], "4>a", "both hold one of token 1: by id");
    }

    #[test]
    fn of_a_key_only_the_oldest_moves() {
        let (mut queue, mut rows) = filled(&[row(1, 0, "k"), row(2, 9, "k"), row(3, 0, "l"), row(4, 9, "k")]);
        queue.join(consumer("a", 9));
        assert_eq!(assign(&mut queue, &mut rows, 1), ["1>a", "3>a"]);
        // Back after a pause: the others of its key still wait.
        let paused = PendingDelivery { not_before_ms: 5, ..row(1, 0, "k") };
        queue.replace(&rows[&1], &paused).expect("nobody has it");
        assert_eq!((queue.next_pair(), queue.due(4), queue.due(5)), (None, None, Some(Due::Delay(1))));
        queue.leave(&paused);
        assert_eq!(assign(&mut queue, &mut rows, 2), ["2>a"]);
        // One that waits behind goes: nothing else changes.
        queue.leave(&rows[&4]);
        assert_eq!(queue.next_pair(), None);
        queue.leave(&rows[&2]);
        queue.leave(&rows[&3]);
        queue.part("a");
        assert_eq!(queue, Queue::default());
    }

    #[test]
    fn the_oldest_waiting_is_found_wherever_it_stands() {
        let delayed = PendingDelivery { not_before_ms: 9, ..row(2, 3, "") };
        let (mut queue, mut rows) = filled(&[row(1, 0, "k"), delayed.clone(), row(3, 0, "k"), row(4, 10, "")]);
        assert_eq!(queue.oldest_waiting(), Some(1));
        queue.leave(&rows[&4]);
        queue.join(consumer("a", 1));
        assert_eq!(assign(&mut queue, &mut rows, 1), ["1>a"]);
        assert_eq!((queue.oldest_waiting(), queue.oldest()), (Some(2), Some(1)));
        queue.leave(&delayed);
        assert_eq!(queue.oldest_waiting(), Some(3));
        queue.leave(&rows[&3]);
        assert_eq!((queue.oldest_waiting(), queue.oldest()), (None, Some(1)));
    }

    #[test]
    fn a_delivery_does_not_expire_and_a_waiting_message_has_no_deadline() {
        let old = PendingDelivery { expires_at_ms: 7, ..row(1, 0, "") };
        let (mut queue, _) = filled(std::slice::from_ref(&old));
        queue.join(consumer("a", 1));
        assert_eq!((queue.next_due_ms(), queue.due(7)), (Some(7), Some(Due::Expiry(1))));
        let held = PendingDelivery { deadline_ms: 9, ..with(&old, "a", 1) };
        queue.replace(&old, &held).expect("a consumer");
        assert_eq!((queue.next_due_ms(), queue.due(9)), (Some(9), Some(Due::Deadline(1))));
        assert!(queue.enter(&with(&row(2, 0, ""), "nobody", 1)).is_err());
    }
}
