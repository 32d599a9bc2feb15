//! What must hold of the bus, from its rows alone.

use std::collections::{BTreeMap, BTreeSet};

use quorate_proto::log::BusTotals;
use quorate_proto::log::command::Body as B;
use quorate_proto::v1::{PendingDelivery, Subscription, SubscriptionSpec, TransactRequest, transact_op};
use quorate_raft::state::bus::MAX_FAILURES;
use quorate_raft::storage::keys::{Key, Table};
use quorate_raft::storage::rows;

use super::view::{View, number, raw};
use super::{At, is_past};

/// `left`: the last command could have assigned more than one may.
pub(crate) fn check(view: &View, left: bool) {
    check_messages(view);
    check_totals(view);
    for row in view.pending.values() {
        check_pending(view, row);
    }
    for (name, sub) in &view.subs {
        assert!(!sub.removing, "so few messages are removed at once: {sub:?}");
        let session_id = &spec(sub).session_id;
        assert!(session_id.is_empty() || view.sessions.contains_key(session_id), "its session has ended: {sub:?}");
        let ready = of(view, name).find(|row| is_ready(view, row));
        assert!(left || ready.is_none() || !has_room(view, name), "{ready:?} waits, and a consumer has room");
    }
    for consumer in view.consumers.values() {
        assert!(view.subs.contains_key(&consumer.subscription), "{consumer:?}");
        assert!(view.sessions.contains_key(&consumer.session_id), "its session has ended: {consumer:?}");
        assert_eq!(consumer.in_flight, 0, "is not stored: {consumer:?}");
    }
    for (key, dead) in &view.dead {
        assert!(view.subs.contains_key(&key.0) && !view.pending.contains_key(key), "dead, and not: {dead:?}");
        assert_eq!(dead.message, None, "is not stored: {dead:?}");
    }
    assert!(view.counts.keys().all(|name| view.subs.contains_key(name)), "counters of no subscription");
}

/// A message is there exactly while a subscription keeps it, alive or dead, and it is counted how many do.
fn check_messages(view: &View) {
    let mut keepers: BTreeMap<u64, u64> = BTreeMap::new();
    for (_, seq) in view.pending.keys().chain(view.dead.keys()) {
        *keepers.entry(*seq).or_default() += 1;
    }
    let kept: BTreeSet<u64> = keepers.keys().copied().collect();
    assert_eq!(view.messages.keys().copied().collect::<BTreeSet<u64>>(), kept, "messages, and who keeps them");
    let several: BTreeMap<u64, u64> = keepers.into_iter().filter(|(_, keepers)| *keepers > 1).collect();
    let counted = raw(&view.rows, Table::MessageRefs).map(|(seq, keepers)| (number(seq), number(keepers)));
    assert_eq!(counted.collect::<BTreeMap<u64, u64>>(), several, "who keeps a message together");
}

/// A message counts once, with its payload.
fn check_totals(view: &View) {
    let row = rows::get::<BusTotals>(&view.rows, &Key::table(Table::BusTotals)).expect("a row that can be read");
    let totals = row.unwrap_or_default();
    let tables = [Table::Message, Table::MessagePayload];
    let stored = tables.into_iter().flat_map(|table| raw(&view.rows, table));
    let bytes: u64 = stored.map(|(_, value)| value.len() as u64).sum();
    assert_eq!((totals.messages, totals.bytes), (view.messages.len() as u64, bytes), "totals of the bus");
    let last = view.messages.keys().max();
    assert!(last.is_none_or(|last| *last < totals.next_seq), "a number that was not given out: {last:?}");
}

fn check_pending(view: &View, row: &PendingDelivery) {
    let message = &view.messages[&row.seq];
    let said = (row.priority, row.order_key.as_str(), row.expires_at_ms);
    assert_eq!(said, (message.priority, message.order_key.as_str(), message.expires_at_ms), "{row:?}");
    let remembered = row.attempts.min(MAX_FAILURES as u32);
    let numbers = row.failures.iter().map(|failure| failure.attempt);
    assert!(numbers.eq(row.attempts + 1 - remembered..=row.attempts), "not the last failures: {row:?}");
    assert!(row.failures.is_sorted_by_key(|failure| failure.at_ms), "{row:?}");
    if row.consumer_id.is_empty() {
        assert_eq!((row.token, row.deadline_ms, row.since_ms), (0, 0, 0), "nobody has it: {row:?}");
    } else {
        let consumer = (row.subscription.clone(), row.consumer_id.clone());
        assert!(view.consumers.contains_key(&consumer), "with nobody that there is: {row:?}");
        assert!(row.token > 0 && row.not_before_ms == 0, "{row:?}");
    }
    // What was delivered once was the oldest of its key, and nothing older can have come.
    if !row.consumer_id.is_empty() || row.attempts > 0 {
        assert!(is_head(view, row), "not the oldest of its key: {row:?}");
    }
}

/// What holds of it if that was the state before the command.
pub(crate) fn check_since(before: &View, after: &View, at: At, body: &B) {
    for row in after.pending.values() {
        let was = before.pending.get(&(row.subscription.clone(), row.seq));
        let most = spec(&after.subs[&row.subscription]).max_attempts;
        let lowered = was.is_some_and(|was| was.attempts == row.attempts);
        assert!(row.attempts < most || lowered, "tried {} times of {most}: {row:?}", row.attempts);
        let is_new = row.token == at.rev;
        let is_same = was.is_some_and(|was| (was.token, &was.consumer_id) == (row.token, &row.consumer_id));
        assert!(row.consumer_id.is_empty() || is_new || is_same, "assigned, but not by this command: {row:?}");
    }
    for consumer in after.consumers.values() {
        let held = |view: &View| {
            of(view, &consumer.subscription).filter(|row| row.consumer_id == consumer.consumer_id).count()
        };
        let (was, is, most) = (held(before), held(after), consumer.credit as usize);
        assert!(is <= most.max(was), "holds {is}: {consumer:?}");
        let given = of(after, &consumer.subscription)
            .filter(|row| row.consumer_id == consumer.consumer_id && row.token == at.rev)
            .count();
        assert!(given == 0 || is <= most, "given {given}, and holds {is}: {consumer:?}");
    }
    for (name, sub) in &after.subs {
        check_order(before, after, at, name);
        check_capacity(before, after, name, body);
        if let Some(was) = before.subs.get(name).filter(|was| was.created_rev == sub.created_rev) {
            assert_eq!(was.created_at_ms, sub.created_at_ms, "{sub:?}");
            let counters = |view: &View| {
                let counts = view.counts.get(name).copied().unwrap_or_default();
                let left = [counts.acked, counts.dead, counts.expired, counts.dropped];
                left.into_iter().chain([counts.published, counts.redelivered])
            };
            let rise = counters(before).zip(counters(after)).all(|(was, is)| was <= is);
            assert!(rise, "a counter of {name:?} went back");
        }
    }
}

/// Nothing that this command assigned comes after what is still ready, by priority and then age. What is ready may have
/// become so late: while assigning, an older one of its key was found too old.
fn check_order(before: &View, after: &View, at: At, name: &str) {
    let turn = |row: &PendingDelivery| (u32::MAX - row.priority, row.seq);
    let Some(last) = of(after, name).filter(|row| row.token == at.rev).max_by_key(|row| turn(row)) else { return };
    for ready in of(after, name).filter(|row| is_ready(after, row)) {
        let mut older = of(before, name).filter(|row| row.order_key == ready.order_key && row.seq < ready.seq);
        let late = !ready.order_key.is_empty() && older.any(|row| is_past(row.expires_at_ms, at.now_ms));
        assert!(late || turn(last) < turn(ready), "{last:?} was assigned before {ready:?}");
    }
}

/// A subscription never gets fuller than it may be. More is in it only if that was lowered, or by what one transaction
/// brings.
fn check_capacity(before: &View, after: &View, name: &str, body: &B) {
    let count = |view: &View| of(view, name).count() as u64;
    let (was, is, most) = (count(before), count(after), spec(&after.subs[name]).max_messages);
    let brought = match body {
        B::Transact(req) => brought(req),
        _ => 0,
    };
    assert!(is <= most.max(was) + brought, "{is} of {most} messages are in {name:?}; it had {was}");
}

fn brought(req: &TransactRequest) -> u64 {
    let messages = req.ops.iter().map(|op| match &op.op {
        Some(transact_op::Op::Publish(publish)) => publish.messages.len() as u64,
        _ => 0,
    });
    messages.sum()
}

fn spec(sub: &Subscription) -> &SubscriptionSpec {
    sub.spec.as_ref().expect("a specification")
}

/// What is in a subscription, the oldest first.
fn of<'v>(view: &'v View, name: &str) -> impl Iterator<Item = &'v PendingDelivery> + use<'v> {
    let range = (name.to_owned(), 0)..=(name.to_owned(), u64::MAX);
    view.pending.range(range).map(|(_, row)| row)
}

fn is_head(view: &View, row: &PendingDelivery) -> bool {
    let mut older = of(view, &row.subscription).filter(|other| other.seq < row.seq);
    row.order_key.is_empty() || !older.any(|other| other.order_key == row.order_key)
}

fn is_ready(view: &View, row: &PendingDelivery) -> bool {
    row.consumer_id.is_empty() && row.not_before_ms == 0 && is_head(view, row)
}

fn has_room(view: &View, name: &str) -> bool {
    let mut consumers = view.consumers.values().filter(|consumer| consumer.subscription == name);
    consumers.any(|consumer| {
        let held = of(view, name).filter(|row| row.consumer_id == consumer.consumer_id).count();
        held < consumer.credit as usize
    })
}
