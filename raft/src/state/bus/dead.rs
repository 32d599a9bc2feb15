//! Dead messages: what a subscription gave up on, kept until somebody redrives or purges it. The row says why; the
//! message stays the row that it was, which the subscription goes on keeping. So to bury a message costs the same
//! however large it is.
//!
//! A redriven message is published anew into its subscription alone, under a new number: in the order of its key it
//! comes after what overtook it. That copies it, so how much one request redrives is bounded by its size too.

use std::collections::BTreeSet;
use std::sync::Arc;

use prost::Message;
use quorate_proto::v1::{
    BusMessage, DeadMessage, PurgeDeadRequest, PurgeDeadResponse, RedriveDeadRequest, RedriveDeadResponse,
};

use super::{Bus, Sub, messages, numbers, publish, subscribe};
use crate::error::{Fatal, Outcome, exhausted, invalid, not_found};
use crate::state::{Ctx, Out, Rooms, check_id};
use crate::storage::keys::{Key, Table};
use crate::storage::rows::Rows;

/// The most dead messages that one request redrives or purges.
pub const MAX_DEAD: usize = 1_024;
/// How many bytes of them a request redrives: it stops behind the one that reaches it.
pub const MAX_DEAD_BYTES: usize = 32 * 1_048_576;

/// Sends dead messages back into their subscription, the oldest first, as many as there is room for.
pub fn redrive_dead(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    req: RedriveDeadRequest,
) -> Outcome<RedriveDeadResponse> {
    let sub = existing(&rooms.bus, &req.subscription)?;
    let room = sub.rules.max_messages.saturating_sub(sub.queue.len());
    if room == 0 {
        let message = format!("subscription {:?} is full: acknowledge or remove something first", req.subscription);
        return Err(exhausted("subscription", message));
    }
    let name = Arc::clone(&sub.name);
    let chosen = choose(&*out.txn, &req.subscription, &req.seqs, room.min(MAX_DEAD))?;
    let chosen = copies(rooms, &*out.txn, chosen)?;
    let bus = &mut rooms.bus;
    let redriven = chosen.len() as u64;
    for (seq, mut message) in chosen {
        message.delay_ms = 0;
        // The new copy refers to the blob before the dead one lets go of it.
        publish::place(bus, out, ctx, message, std::slice::from_ref(&name))?;
        remove(bus, out, &name, seq)?;
        bus.count_dead(&name, -1)?;
    }
    Ok(RedriveDeadResponse { redriven, left: bus.sub(&name)?.dead, rev: ctx.rev })
}

/// Removes dead messages, the oldest first.
pub fn purge_dead(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    req: PurgeDeadRequest,
) -> Outcome<PurgeDeadResponse> {
    existing(&rooms.bus, &req.subscription)?;
    let chosen = choose(&*out.txn, &req.subscription, &req.seqs, MAX_DEAD)?;
    let bus = &mut rooms.bus;
    let purged = chosen.len() as u64;
    for seq in chosen {
        remove(bus, out, &req.subscription, seq)?;
        bus.count_dead(&req.subscription, -1)?;
    }
    Ok(PurgeDeadResponse { purged, left: bus.sub(&req.subscription)?.dead, rev: ctx.rev })
}

/// Keeps a dead message. Its subscription keeps the message already, and goes on doing so.
pub(super) fn write(bus: &mut Bus, out: &mut Out<'_, '_>, dead: &DeadMessage) -> Result<(), Fatal> {
    out.txn.put(&key(&dead.subscription, dead.seq), dead);
    bus.count_dead(&dead.subscription, 1)
}

/// The subscription lets go of it. The caller counts: a subscription that goes has done so before.
pub(super) fn remove(bus: &mut Bus, out: &mut Out<'_, '_>, name: &str, seq: u64) -> Result<(), Fatal> {
    out.txn.delete(&key(name, seq));
    messages::release(bus, out, seq)
}

fn existing<'a>(bus: &'a Bus, name: &str) -> Outcome<&'a Sub> {
    check_id("subscription", name)?;
    match bus.subs.get(name) {
        Some(sub) if sub.row.removing => Err(subscribe::being_removed("subscription", name)),
        Some(sub) => Ok(sub),
        None => Err(not_found("subscription", format!("no subscription {name:?} exists"))),
    }
}

/// Those that are named, all of which must be there, or the oldest; at most so many, those that are named first.
fn choose(rows: &dyn Rows, name: &str, seqs: &[u64], most: usize) -> Outcome<Vec<u64>> {
    if seqs.len() > MAX_DEAD {
        return Err(invalid("seqs", format!("seqs must be at most {MAX_DEAD}; got {}", seqs.len())));
    }
    if seqs.is_empty() {
        return Ok(numbers(rows, Table::DeadMessage, name, 0, most)?);
    }
    let mut seen = BTreeSet::new();
    for (i, seq) in seqs.iter().enumerate() {
        let field = format!("seqs[{i}]");
        if !seen.insert(seq) {
            return Err(invalid(&field, format!("{field}: {seq} is named twice")));
        }
        if rows.get_bytes(key(name, *seq).as_bytes())?.is_none() {
            return Err(not_found(&field, format!("subscription {name:?} has no dead message {seq}")));
        }
    }
    Ok(seqs.iter().take(most).copied().collect())
}

/// What is published anew, the oldest first: the first of these, fewer if they are large. Of a message that others keep
/// too this is one more, for which the quotas must have room.
fn copies(rooms: &Rooms, rows: &dyn Rows, seqs: Vec<u64>) -> Outcome<Vec<(u64, BusMessage)>> {
    let mut chosen = Vec::with_capacity(seqs.len());
    let (mut bytes, mut more, mut more_bytes) = (0, 0, 0);
    for seq in seqs {
        let message = messages::whole(rows, seq)?;
        let size = message.encoded_len();
        if messages::shared_by(rows, seq)?.is_some() {
            more += 1;
            more_bytes += size as u64 + messages::STAMP_BYTES;
            match publish::check_quotas(rooms, "subscription", more, more_bytes) {
                Err(refusal) if chosen.is_empty() => return Err(refusal),
                Err(_) => break,
                Ok(()) => {}
            }
        }
        bytes += size;
        chosen.push((seq, message));
        if bytes >= MAX_DEAD_BYTES {
            break;
        }
    }
    chosen.sort_unstable_by_key(|(seq, _)| *seq);
    Ok(chosen)
}

fn key(name: &str, seq: u64) -> Key {
    Key::table(Table::DeadMessage).text(name).number(seq)
}
