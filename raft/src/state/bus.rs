//! The bus: what is said, who asked to hear it, and what became of it.
//!
//! Owns the Subscription, SubscriptionCounts, Consumer, Message, MessagePayload, MessageRefs, MessageId, Pending,
//! DeadMessage and BusTotals rows. A message is one row, however many subscriptions keep it; each of them has a Pending
//! row of it, or a DeadMessage row once it gave up on it, and the last one takes the message along. Memory holds the
//! subscriptions with their consumers, and of each message that waits where it stands (`queue`), not the message.
//!
//! ```text
//!   publish ─▶ waits ─▶ with a consumer ─┬─ ack ──────────────▶ gone
//!                ▲                       ├─ reject ───────────▶ dead ── redrive ──▶ published anew
//!                │                       │                       ▲
//!                └── pause, attempts left┴─ nack, no ack in time,┘ no attempts left
//!                                           session ended
//! ```
//!
//! Invariants:
//! - a Message row exists exactly while a Pending or a DeadMessage row of its number does, and MessageRefs says how
//!   many, if several; a subscription has one of the two, and a blob is the Message row's alone;
//! - a consumer holds at most its credit, unless that was lowered since; a message is with at most one of them;
//! - a delivery is known by its message and its token, the rev that assigned it: what was superseded moves nothing;
//! - `attempts` of a message never reaches the most its subscription allows: it is dead instead;
//! - a subscription's counters are a row of their own, which is there once one of them moved.
//!
//! Every command ends with [`settle()`], which assigns what can be and writes the counters that the command moved.
//!
//! Deliberately absent: who is connected. A consumer is a record of its session; its node delivers what it holds.

mod acks;
mod checked;
mod consumers;
mod dead;
mod due;
mod emit;
mod endings;
mod messages;
mod publish;
mod queue;
mod read;
mod settle;
mod subject;
mod subscribe;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use prost::Message;
use quorate_proto::log::BusTotals;
use quorate_proto::v1::{Consumer, Overflow, PendingDelivery, Subscription, SubscriptionCounts, SubscriptionSpec};

pub use self::acks::{MAX_ACKS, ack, check_ack, do_ack};
pub use self::checked::{
    DEFAULT_ATTEMPTS, DEFAULT_BACKOFF_MS, DEFAULT_MAX_MESSAGES, MAX_ATTEMPTS, MAX_BACKOFFS, MAX_MESSAGES, MAX_METADATA,
    MAX_METADATA_VALUE_BYTES, MAX_PATTERNS, MAX_PAUSE_MS, MAX_PAYLOAD_BYTES, MAX_PRIORITY, MAX_REASON_BYTES,
    MAX_TEXT_BYTES, MAX_TTL_MS,
};
pub use self::consumers::{
    MAX_CONSUMERS, MAX_CREDIT, MAX_SESSION_CONSUMERS, MAX_SESSION_CREDIT, consume, leave, session_ended,
};
pub use self::dead::{MAX_DEAD, MAX_DEAD_BYTES, purge_dead, redrive_dead};
pub use self::due::run_due;
pub use self::emit::emit;
pub use self::endings::MAX_FAILURES;
pub use self::publish::{
    MAX_MATCHED, MAX_PLACED, MAX_PUBLISH, MAX_REMEMBERED, MAX_VISITED, REMEMBER_MS, check_publish, do_publish, publish,
};
pub use self::settle::{ASSIGN_PER_COMMAND, settle};
pub use self::subject::{MAX_SUBJECT_BYTES, MAX_TOKENS, check_pattern, check_subject, token_of};
pub use self::subscribe::{MAX_SESSION_SUBSCRIPTIONS, MAX_SUBSCRIPTIONS, REMOVE_PER_COMMAND, subscribe, unsubscribe};
use crate::error::Fatal;
use crate::state::remove_from;
use crate::storage::keys::{Key, Table};
use crate::storage::rows::{self, Rows};

/// A subscription and the id of one of its consumers.
type ConsumerKey = (Arc<str>, Arc<str>);

/// Every subscription, with what stands where.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Bus {
    subs: BTreeMap<Arc<str>, Sub>,
    patterns: subject::Patterns,
    /// Those with a message that is ready and a consumer that has room.
    assignable: BTreeSet<Arc<str>>,
    /// When something is due in which.
    due: BTreeSet<(u64, Arc<str>)>,
    /// Those of which rows are left to remove.
    removing: BTreeSet<Arc<str>>,
    /// Those that go with a session.
    ephemeral: BTreeMap<String, BTreeSet<Arc<str>>>,
    /// Subscription and id of each session's consumers.
    by_session: BTreeMap<String, BTreeSet<ConsumerKey>>,
    /// Remembered message ids, by when each is forgotten.
    ids: BTreeSet<(u64, Box<str>)>,
    dead_total: u64,
    totals: BusTotals,
    /// What this command moved and has not written yet: empty after [`settle()`].
    moved: Moved,
}

// No row holds a floating-point number, so their equality is total; the generated types just do not say so.
impl Eq for Bus {}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Moved {
    /// Whose counters.
    counts: BTreeSet<Arc<str>>,
    totals: bool,
}

/// One subscription.
#[derive(Debug, Clone, PartialEq)]
struct Sub {
    name: Arc<str>,
    row: Subscription,
    counts: SubscriptionCounts,
    rules: Rules,
    queue: queue::Queue,
    /// How many dead messages it has.
    dead: u64,
    /// Nothing, unless it is being removed.
    left: Left,
    /// What `assignable` and `due` say of it.
    noted: Noted,
}

/// What its specification means.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rules {
    max_attempts: u32,
    backoff_ms: Vec<u64>,
    ack_wait_ms: u64,
    max_messages: usize,
    drops_oldest: bool,
    drops_dead: bool,
}

/// What is left of a subscription that goes: the lowest number in each table. Without it every step would begin with
/// all the rows that those before it removed.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Left {
    pending: Option<u64>,
    dead: Option<u64>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Noted {
    assignable: bool,
    due_ms: Option<u64>,
}

impl Rules {
    fn of(spec: &SubscriptionSpec) -> Self {
        Rules {
            max_attempts: spec.max_attempts,
            backoff_ms: spec.backoff_ms.clone(),
            ack_wait_ms: spec.ack_wait_ms,
            max_messages: usize::try_from(spec.max_messages).unwrap_or(usize::MAX),
            drops_oldest: spec.overflow() == Overflow::DropOldest,
            drops_dead: spec.drop_dead,
        }
    }

    /// How long a message rests after so many failed deliveries.
    fn pause_ms(&self, attempts: u32) -> u64 {
        let at = (attempts as usize).saturating_sub(1).min(self.backoff_ms.len().saturating_sub(1));
        self.backoff_ms.get(at).copied().unwrap_or_default()
    }
}

impl Sub {
    fn new(row: Subscription) -> Result<Self, Fatal> {
        let Some(spec) = &row.spec else {
            return Err(Fatal::Corrupt("a subscription without a specification".to_owned()));
        };
        Ok(Sub {
            name: Arc::from(spec.name.as_str()),
            rules: Rules::of(spec),
            row,
            counts: SubscriptionCounts::default(),
            queue: queue::Queue::default(),
            dead: 0,
            left: Left::default(),
            noted: Noted::default(),
        })
    }

    fn patterns(&self) -> &[String] {
        self.row.spec.as_ref().map(|spec| spec.patterns.as_slice()).unwrap_or_default()
    }

    fn session_id(&self) -> &str {
        self.row.spec.as_ref().map_or("", |spec| &spec.session_id)
    }

    fn is_full(&self) -> bool {
        self.queue.len() >= self.rules.max_messages
    }

    /// When a delivery that begins or is extended now has failed; 0: not before its session ends.
    fn deadline_ms(&self, now_ms: u64) -> u64 {
        match self.rules.ack_wait_ms {
            0 => 0,
            wait_ms => now_ms.saturating_add(wait_ms),
        }
    }
}

impl Bus {
    /// Builds every index from the rows.
    pub fn rebuild(rows: &dyn Rows) -> Result<Self, Fatal> {
        let mut bus = Bus { totals: rows::get(rows, &totals_key())?.unwrap_or_default(), ..Bus::default() };
        rows::scan_prefix::<Subscription>(rows, &Key::table(Table::Subscription), |_, row| {
            bus.add(Sub::new(row)?);
            Ok(true)
        })?;
        let prefix = Key::table(Table::SubscriptionCounts);
        rows.scan(prefix.as_bytes(), &prefix.prefix_end(), &mut |key, value| {
            bus.sub_mut(text_in(key)?)?.counts = SubscriptionCounts::decode(value)?;
            Ok(true)
        })?;
        rows::scan_prefix::<Consumer>(rows, &Key::table(Table::Consumer), |_, row| {
            bus.join(row)?;
            Ok(true)
        })?;
        // Both come in the order of their numbers.
        rows::scan_prefix::<PendingDelivery>(rows, &Key::table(Table::Pending), |_, row| {
            let sub = bus.sub_mut(&row.subscription)?;
            if sub.row.removing {
                sub.left.pending.get_or_insert(row.seq);
            } else {
                bus.change(&row.subscription, |sub| sub.queue.enter(&row))?;
            }
            Ok(true)
        })?;
        let prefix = Key::table(Table::DeadMessage);
        rows.scan(prefix.as_bytes(), &prefix.prefix_end(), &mut |key, _| {
            let (name, seq) = (name_in(key)?, number_in(key)?);
            let sub = bus.sub_mut(name)?;
            if sub.row.removing {
                sub.left.dead.get_or_insert(seq);
            } else {
                bus.count_dead(name, 1)?;
            }
            Ok(true)
        })?;
        let prefix = Key::table(Table::MessageId);
        rows.scan(prefix.as_bytes(), &prefix.prefix_end(), &mut |key, value| {
            let (id, until_ms) = publish::split_id(key, value)?;
            bus.ids.insert((until_ms, Box::from(id)));
            Ok(true)
        })?;
        Ok(bus)
    }

    /// When something is due next: at once if a subscription is being removed. What can be assigned has no time: see
    /// [`Bus::has_work_left`].
    pub fn next_due_ms(&self) -> Option<u64> {
        if !self.removing.is_empty() {
            return Some(0);
        }
        let queues = self.due.first().map(|(at_ms, _)| *at_ms);
        let ids = self.ids.first().map(|(at_ms, _)| *at_ms);
        [queues, ids].into_iter().flatten().min()
    }

    /// Whether more can be assigned than the last command did.
    pub fn has_work_left(&self) -> bool {
        !self.assignable.is_empty()
    }

    /// A subscription that an index names.
    fn sub(&self, name: &str) -> Result<&Sub, Fatal> {
        self.subs.get(name).ok_or_else(|| no_sub(name))
    }

    fn sub_mut(&mut self, name: &str) -> Result<&mut Sub, Fatal> {
        self.subs.get_mut(name).ok_or_else(|| no_sub(name))
    }

    /// Enters a subscription as its row stands, with nothing in it.
    fn add(&mut self, sub: Sub) {
        let name = Arc::clone(&sub.name);
        if sub.row.removing {
            self.removing.insert(Arc::clone(&name));
        } else {
            for pattern in sub.patterns() {
                self.patterns.insert(pattern, &name);
            }
            if !sub.session_id().is_empty() {
                self.ephemeral.entry(sub.session_id().to_owned()).or_default().insert(Arc::clone(&name));
            }
        }
        self.subs.insert(name, sub);
    }

    /// Nothing comes to it from its patterns any more, and no session takes it along.
    fn detach(&mut self, name: &str) {
        let Some(sub) = self.subs.get(name) else { return };
        for pattern in sub.patterns() {
            self.patterns.remove(pattern, name);
        }
        remove_from(&mut self.ephemeral, sub.session_id(), &sub.name);
    }

    /// A consumer is there, or has another credit.
    fn join(&mut self, row: Consumer) -> Result<(), Fatal> {
        let name = Arc::clone(&self.sub(&row.subscription)?.name);
        let of_session = self.by_session.entry(row.session_id.clone()).or_default();
        of_session.insert((Arc::clone(&name), Arc::from(row.consumer_id.as_str())));
        self.change(&name, |sub| {
            sub.queue.join(row);
            Ok(())
        })
    }

    /// The one way to a subscription's queue: what is due and what can be assigned is noted anew.
    fn change<T>(&mut self, name: &str, change: impl FnOnce(&mut Sub) -> Result<T, Fatal>) -> Result<T, Fatal> {
        let sub = self.subs.get_mut(name).ok_or_else(|| no_sub(name))?;
        let done = change(sub)?;
        let noted = Noted { assignable: sub.queue.next_pair().is_some(), due_ms: sub.queue.next_due_ms() };
        let before = std::mem::replace(&mut sub.noted, noted);
        if before.assignable != noted.assignable {
            if noted.assignable {
                self.assignable.insert(Arc::clone(&sub.name));
            } else {
                self.assignable.remove(name);
            }
        }
        if before.due_ms != noted.due_ms {
            if let Some(at_ms) = before.due_ms {
                self.due.remove(&(at_ms, Arc::clone(&sub.name)));
            }
            if let Some(at_ms) = noted.due_ms {
                self.due.insert((at_ms, Arc::clone(&sub.name)));
            }
        }
        Ok(done)
    }

    /// Moves a subscription's counters.
    fn count(&mut self, name: &str, count: impl FnOnce(&mut SubscriptionCounts)) -> Result<(), Fatal> {
        let sub = self.subs.get_mut(name).ok_or_else(|| no_sub(name))?;
        count(&mut sub.counts);
        if !self.moved.counts.contains(name) {
            self.moved.counts.insert(Arc::clone(&sub.name));
        }
        Ok(())
    }

    /// So many more dead messages, or fewer.
    fn count_dead(&mut self, name: &str, more: i64) -> Result<(), Fatal> {
        let sub = self.subs.get_mut(name).ok_or_else(|| no_sub(name))?;
        sub.dead = sub.dead.saturating_add_signed(more);
        self.dead_total = self.dead_total.saturating_add_signed(more);
        Ok(())
    }
}

fn no_sub(name: &str) -> Fatal {
    Fatal::Corrupt(format!("no subscription {name:?}, but something is kept for it"))
}

fn sub_key(name: &str) -> Key {
    Key::table(Table::Subscription).text(name)
}

fn counts_key(name: &str) -> Key {
    Key::table(Table::SubscriptionCounts).text(name)
}

fn pending_key(name: &str, seq: u64) -> Key {
    Key::table(Table::Pending).text(name).number(seq)
}

fn totals_key() -> Key {
    Key::table(Table::BusTotals)
}

/// A message that an index says is in the subscription.
fn load(rows: &dyn Rows, name: &str, seq: u64) -> Result<PendingDelivery, Fatal> {
    let corrupt = || Fatal::Corrupt(format!("message {seq} is in an index of {name:?} but has no row there"));
    rows::get(rows, &pending_key(name, seq))?.ok_or_else(corrupt)
}

/// The numbers of a subscription's rows in a table, from one on, the lowest first, at most so many.
fn numbers(rows: &dyn Rows, table: Table, name: &str, from: u64, most: usize) -> Result<Vec<u64>, Fatal> {
    let prefix = Key::table(table).text(name);
    let end = prefix.prefix_end();
    let mut found = Vec::new();
    if most > 0 {
        rows.scan(prefix.number(from).as_bytes(), &end, &mut |key, _| {
            found.push(number_in(key)?);
            Ok(found.len() < most)
        })?;
    }
    Ok(found)
}

/// The text in a key of tag, text, zero.
fn text_in(key: &[u8]) -> Result<&str, Fatal> {
    let text = key.strip_suffix(&[0_u8]).and_then(|front| front.get(1..));
    text.and_then(|text| std::str::from_utf8(text).ok())
        .ok_or_else(|| Fatal::Corrupt(format!("not the key of something with a name: {key:?}")))
}

/// The subscription in a key of tag, name, zero, number.
fn name_in(key: &[u8]) -> Result<&str, Fatal> {
    let (front, _) = key.split_last_chunk::<8>().ok_or_else(|| not_a_key(key))?;
    text_in(front)
}

/// The number in such a key.
fn number_in(key: &[u8]) -> Result<u64, Fatal> {
    let (_, number) = key.split_last_chunk::<8>().ok_or_else(|| not_a_key(key))?;
    Ok(u64::from_be_bytes(*number))
}

fn not_a_key(key: &[u8]) -> Fatal {
    Fatal::Corrupt(format!("not the key of a message in a subscription: {key:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_pause_repeats() {
        let spec = SubscriptionSpec { backoff_ms: vec![1, 2, 4], ..SubscriptionSpec::default() };
        let rules = Rules::of(&spec);
        assert_eq!([1, 2, 3, 4, 99].map(|attempts| rules.pause_ms(attempts)), [1, 2, 4, 4, 4]);
        assert_eq!(Rules::of(&SubscriptionSpec::default()).pause_ms(1), 0);
    }
}
