//! Publishing: a message goes to every subscription that asks for its subject, all of a request's messages or none.
//!
//! Checking comes first and in full. In a transaction several requests are checked one by one before any of them
//! writes. Together they may overfill a subscription, by what they bring and no more: what was checked is accepted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::{BufMut, BytesMut};
use prost::Message;
use quorate_proto::v1::{BusMessage, PendingDelivery, PublishRequest, PublishResponse, Published};

use super::{Bus, checked, endings, load, messages, pending_key, subscribe, text_in};
use crate::error::{Error, Fatal, Outcome, exhausted, invalid, precondition};
use crate::faults::{Bug, planted};
use crate::state::{Ctx, Out, Rooms, check_id};
use crate::storage::keys::{Key, Table};
use crate::storage::rows::Rows;

/// The most messages of one request.
pub const MAX_PUBLISH: usize = 1_024;
/// The most subscriptions that one message may match.
pub const MAX_MATCHED: usize = 10_000;
/// The most copies that the messages of one request may make.
pub const MAX_PLACED: usize = 20_000;
/// How many steps through the patterns of all subscriptions the subjects of one request may take.
pub const MAX_VISITED: usize = 200_000;
/// How long a message id is remembered.
pub const REMEMBER_MS: u64 = 600_000;
/// How many of them are, at most: they are in memory.
pub const MAX_REMEMBERED: usize = 2_000_000;

/// For each message the subscriptions that it goes to.
type Plan = Vec<Vec<Arc<str>>>;

/// Publishes messages.
pub fn publish(rooms: &mut Rooms, out: &mut Out<'_, '_>, ctx: &Ctx, req: PublishRequest) -> Outcome<PublishResponse> {
    let plan = plan(rooms, &*out.txn, ctx, &req, "")?;
    subscribe::ensure(rooms, out, ctx, &req)?;
    Ok(write(rooms, out, ctx, req, plan)?)
}

/// Makes every refusal of a request, and writes nothing. `at` stands before the names of its fields. Tells how many
/// copies it would make: at most [`MAX_PLACED`], and whoever carries out several requests at once adds them up.
pub fn check_publish(rooms: &Rooms, rows: &dyn Rows, ctx: &Ctx, req: &PublishRequest, at: &str) -> Outcome<usize> {
    Ok(plan(rooms, rows, ctx, req, at)?.iter().map(Vec::len).sum())
}

/// Publishes what [`check_publish`] let pass, into a full subscription too.
pub fn do_publish(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    req: PublishRequest,
) -> Result<PublishResponse, Fatal> {
    subscribe::ensure(rooms, out, ctx, &req)?;
    // Not measured again: what the request before it created may have made the way a little longer.
    let mut visits = usize::MAX;
    let found = |message| find(&rooms.bus, message, None, &mut visits).unwrap_or_default();
    let plan = req.messages.iter().map(found).collect();
    write(rooms, out, ctx, req, plan)
}

/// Checks everything, and finds where each message goes. A duplicate goes nowhere.
fn plan(rooms: &Rooms, rows: &dyn Rows, ctx: &Ctx, req: &PublishRequest, at: &str) -> Outcome<Plan> {
    let field = format!("{at}messages");
    if !(1..=MAX_PUBLISH).contains(&req.messages.len()) {
        let message = format!("{field} must be 1 to {MAX_PUBLISH}; got {}", req.messages.len());
        return Err(invalid(&field, message));
    }
    for (i, message) in req.messages.iter().enumerate() {
        checked::message(&format!("{field}[{i}]."), message)?;
    }
    let ensured = check_ensured(rooms, req, at)?;
    let (mut load, mut visits) = (Load::default(), MAX_VISITED);
    let mut seen = BTreeSet::new();
    let mut plan = Vec::with_capacity(req.messages.len());
    for (i, message) in req.messages.iter().enumerate() {
        if seen.contains(message.id.as_str()) || known(rows, ctx, &message.id)?.is_some() {
            plan.push(Vec::new());
            continue;
        }
        let subject = format!("{field}[{i}].subject");
        let matched = find(&rooms.bus, message, ensured.as_ref(), &mut visits);
        let matched = matched.ok_or_else(|| too_many_ways(&subject, message))?;
        if matched.is_empty() && req.must_match {
            let message = format!("no subscription matches {:?}; must_match asks for one", message.subject);
            return Err(precondition(&subject, message));
        }
        load.add(&rooms.bus, &subject, message, &matched)?;
        if !matched.is_empty() && !message.id.is_empty() {
            seen.insert(message.id.as_str());
        }
        plan.push(matched);
    }
    check_remembered(&field, rooms.bus.ids.len(), seen.len())?;
    check_quotas(rooms, &field, load.messages, load.bytes)?;
    Ok(plan)
}

/// The subscription that the request would create.
fn check_ensured(rooms: &Rooms, req: &PublishRequest, at: &str) -> Outcome<Option<Arc<str>>> {
    let name = req.ensure_subscription.as_str();
    if name.is_empty() {
        return Ok(None);
    }
    let field = format!("{at}ensure_subscription");
    check_id(&field, name)?;
    let mut subjects = req.messages.iter().map(|message| message.subject.as_str());
    let first = subjects.next();
    if let Some(other) = subjects.find(|subject| Some(*subject) != first) {
        let message = format!("{field} takes messages of one subject; got {:?} and {other:?}", first.unwrap_or(""));
        return Err(invalid(&field, message));
    }
    match rooms.bus.subs.get(name) {
        Some(sub) if sub.row.removing => Err(subscribe::being_removed(&field, name)),
        Some(_) => Ok(None),
        None => {
            subscribe::check_room(&rooms.bus, &field)?;
            Ok(Some(Arc::from(name)))
        }
    }
}

/// What a request would add.
#[derive(Default)]
struct Load {
    messages: u64,
    bytes: u64,
    placed: usize,
    by_sub: BTreeMap<Arc<str>, usize>,
}

impl Load {
    fn add(&mut self, bus: &Bus, field: &str, message: &BusMessage, matched: &[Arc<str>]) -> Outcome<()> {
        if matched.is_empty() {
            return Ok(());
        }
        if matched.len() > MAX_MATCHED {
            let message = format!("more than {MAX_MATCHED} subscriptions match {:?}", message.subject);
            return Err(exhausted(field, message));
        }
        self.messages += 1;
        self.bytes += message.encoded_len() as u64 + messages::STAMP_BYTES;
        self.placed += matched.len();
        if self.placed > MAX_PLACED {
            let message = format!("more than {MAX_PLACED} copies would be made at once; publish fewer messages");
            return Err(exhausted(field, message));
        }
        for name in matched {
            // One that is still to be created holds more than any request brings.
            let Some(sub) = bus.subs.get(name).filter(|sub| !sub.rules.drops_oldest) else { continue };
            let more = self.by_sub.entry(Arc::clone(name)).or_default();
            *more += 1;
            if sub.queue.len() + *more > sub.rules.max_messages {
                let most = sub.rules.max_messages;
                let message = format!("subscription {name:?} is full: it keeps at most {most} messages");
                return Err(exhausted(field, message));
            }
        }
        Ok(())
    }
}

/// Whether the namespace may have so many messages more.
pub(super) fn check_quotas(rooms: &Rooms, field: &str, messages: u64, bytes: u64) -> Outcome<()> {
    let totals = &rooms.bus.totals;
    for (name, kept, more, most) in [
        ("max_messages", totals.messages, messages, rooms.quotas.max_messages),
        ("max_message_bytes", totals.bytes, bytes, rooms.quotas.max_message_bytes),
    ] {
        if most > 0 && more > 0 && kept.saturating_add(more) > most {
            let message = format!("the namespace's quota {name} is {most}: {kept} are kept, {more} would be added");
            return Err(exhausted(field, message));
        }
    }
    Ok(())
}

/// Whether so many ids more can be remembered.
fn check_remembered(field: &str, kept: usize, more: usize) -> Outcome<()> {
    if more > 0 && kept + more > MAX_REMEMBERED {
        let message = format!(
            "{field} bring {more} new ids, {kept} are remembered, and at most {MAX_REMEMBERED} can be; publish without \
             ids, or in a few minutes"
        );
        return Err(exhausted(field, message));
    }
    Ok(())
}

fn too_many_ways(field: &str, message: &BusMessage) -> Error {
    let what = format!("to find who asks for {:?} and the subjects before it takes", message.subject);
    let instead = "publish fewer messages at once, or have fewer patterns with * in many places";
    exhausted(field, format!("{what} more than {MAX_VISITED} steps through the patterns; {instead}"))
}

/// The subscriptions that a message goes to, and the one that is still to be created for it; of too many, one too many.
/// `None`: more steps than `visits` would be needed.
fn find(bus: &Bus, message: &BusMessage, ensured: Option<&Arc<str>>, visits: &mut usize) -> Option<Vec<Arc<str>>> {
    let mut found = bus.patterns.find(&message.subject, MAX_MATCHED, visits)?;
    found.extend(ensured.cloned());
    Some(found.into_iter().collect())
}

fn write(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    req: PublishRequest,
    plan: Plan,
) -> Result<PublishResponse, Fatal> {
    let mut published = Vec::with_capacity(req.messages.len());
    for (message, matched) in req.messages.into_iter().zip(plan) {
        // Looked up again: an earlier message of the request may have had the id.
        if let Some(seq) = known(&*out.txn, ctx, &message.id)? {
            published.push(Published { seq, matched: 0, duplicate: true });
            continue;
        }
        let id = message.id.clone();
        let one = place(&mut rooms.bus, out, ctx, message, &matched)?;
        if one.matched > 0 && !id.is_empty() {
            remember(&mut rooms.bus, out, ctx, &id, one.seq)?;
        }
        published.push(one);
    }
    Ok(PublishResponse { published, rev: ctx.rev })
}

/// Puts a message into these subscriptions. What nobody keeps leaves no trace, and has no number.
pub(super) fn place(
    bus: &mut Bus,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    mut message: BusMessage,
    matched: &[Arc<str>],
) -> Result<Published, Fatal> {
    let mut keepers = Vec::with_capacity(matched.len());
    for name in matched {
        if make_room(bus, out, name)? {
            keepers.push(name);
        }
    }
    if keepers.is_empty() {
        return Ok(Published::default());
    }
    let seq = bus.totals.next_seq.max(1);
    bus.totals.next_seq = seq + 1;
    message.seq = seq;
    message.published_at_ms = ctx.now_ms;
    message.expires_at_ms = after(ctx, message.ttl_ms);
    let pending = PendingDelivery {
        seq,
        priority: message.priority,
        order_key: message.order_key.clone(),
        expires_at_ms: message.expires_at_ms,
        not_before_ms: after(ctx, message.delay_ms),
        ..PendingDelivery::default()
    };
    messages::write(bus, out, message, keepers.len() as u64)?;
    for name in &keepers {
        let row = PendingDelivery { subscription: name.to_string(), ..pending.clone() };
        bus.change(name, |sub| sub.queue.enter(&row))?;
        bus.count(name, |counts| counts.published += 1)?;
        out.txn.put(&pending_key(name, seq), &row);
    }
    Ok(Published { seq, matched: u32::try_from(keepers.len()).unwrap_or(u32::MAX), duplicate: false })
}

/// Whether one more message may enter. Where all are in flight, the new one is the oldest that waits.
fn make_room(bus: &mut Bus, out: &mut Out<'_, '_>, name: &str) -> Result<bool, Fatal> {
    let sub = bus.sub(name)?;
    if !sub.is_full() || !sub.rules.drops_oldest {
        return Ok(true);
    }
    match sub.queue.oldest_waiting() {
        Some(seq) => {
            let row = load(&*out.txn, name, seq)?;
            endings::drop_oldest(bus, out, &row)?;
            Ok(true)
        }
        None => {
            bus.count(name, |counts| counts.dropped += 1)?;
            Ok(false)
        }
    }
}

/// So much later; 0 stays 0.
fn after(ctx: &Ctx, ms: u64) -> u64 {
    match ms {
        0 => 0,
        ms => ctx.now_ms.saturating_add(ms),
    }
}

/// The number of the message that had this id lately.
fn known(rows: &dyn Rows, ctx: &Ctx, id: &str) -> Result<Option<u64>, Fatal> {
    if id.is_empty() || planted(Bug::MessageIdIgnored) {
        return Ok(None);
    }
    let kept = rows.get_bytes(id_key(id).as_bytes())?.map(|value| split_value(id, &value)).transpose()?;
    Ok(kept.filter(|(_, until_ms)| *until_ms > ctx.now_ms).map(|(seq, _)| seq))
}

/// Its row may still be there from before, out of date.
fn remember(bus: &mut Bus, out: &mut Out<'_, '_>, ctx: &Ctx, id: &str, seq: u64) -> Result<(), Fatal> {
    if let Some(before) = out.txn.get_bytes(id_key(id).as_bytes())? {
        let (_, until_ms) = split_value(id, &before)?;
        bus.ids.remove(&(until_ms, Box::from(id)));
    }
    let until_ms = ctx.now_ms.saturating_add(REMEMBER_MS);
    let mut value = BytesMut::with_capacity(16);
    value.put_u64(seq);
    value.put_u64(until_ms);
    out.txn.put_bytes(&id_key(id), value.freeze());
    bus.ids.insert((until_ms, Box::from(id)));
    Ok(())
}

/// Forgets the id that is due first, if its time has come.
pub(super) fn forget_due(bus: &mut Bus, out: &mut Out<'_, '_>, ctx: &Ctx) -> bool {
    if bus.ids.first().is_none_or(|(until_ms, _)| *until_ms > ctx.now_ms) {
        return false;
    }
    if let Some((_, id)) = bus.ids.pop_first() {
        out.txn.delete(&id_key(&id));
    }
    true
}

fn id_key(id: &str) -> Key {
    Key::table(Table::MessageId).text(id)
}

/// The id and when it is forgotten, out of a MessageId row.
pub(super) fn split_id<'k>(key: &'k [u8], value: &[u8]) -> Result<(&'k str, u64), Fatal> {
    let id = text_in(key)?;
    let (_, until_ms) = split_value(id, value)?;
    Ok((id, until_ms))
}

fn split_value(id: &str, value: &[u8]) -> Result<(u64, u64), Fatal> {
    let corrupt = || Fatal::Corrupt(format!("the row of message id {id:?} is not 16 bytes"));
    let (seq, until_ms) = value.split_first_chunk::<8>().ok_or_else(corrupt)?;
    let until_ms = <[u8; 8]>::try_from(until_ms).map_err(|_| corrupt())?;
    Ok((u64::from_be_bytes(*seq), u64::from_be_bytes(until_ms)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_ids_are_remembered_and_no_more() {
        assert!(check_remembered("messages", MAX_REMEMBERED - 2, 2).is_ok());
        assert!(check_remembered("messages", MAX_REMEMBERED + 1, 0).is_ok(), "without ids");
        match check_remembered("messages", MAX_REMEMBERED - 2, 3) {
            Err(Error::Rejected(refusal)) => assert_eq!(refusal.field, "messages"),
            other => panic!("not refused: {other:?}"),
        }
    }
}
