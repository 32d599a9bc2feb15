//! Dead messages: what a subscription gave up on, kept until somebody redrives or purges it. A dead message stands for
//! itself: it has its own copy of payload and blob, and counts in the totals.
//!
//! A redriven message is published anew into its subscription alone, under a new number: in the order of its key it
//! comes after what overtook it.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use quorate_proto::v1::{DeadMessage, PurgeDeadRequest, PurgeDeadResponse, RedriveDeadRequest, RedriveDeadResponse};

use super::{Bus, Sub, messages, publish, subscribe};
use crate::error::{Fatal, Outcome, exhausted, invalid, not_found};
use crate::state::{Ctx, Out, Rooms, blobs, check_id};
use crate::storage::keys::{Key, Table};
use crate::storage::rows::Rows;

/// The most dead messages that one request redrives or purges.
pub const MAX_DEAD: usize = 1_024;
/// How many bytes of them it reads: it stops behind the one that reaches it.
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
    let chosen = choose(&*out.txn, &req.subscription, &req.seqs, room)?;
    let bus = &mut rooms.bus;
    let redriven = chosen.len() as u64;
    for (seq, dead) in chosen {
        let mut message = dead.message.unwrap_or_default();
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
    for (seq, _) in chosen {
        remove(bus, out, &req.subscription, seq)?;
        bus.count_dead(&req.subscription, -1)?;
    }
    Ok(PurgeDeadResponse { purged, left: bus.sub(&req.subscription)?.dead, rev: ctx.rev })
}

/// Keeps a dead message.
pub(super) fn write(bus: &mut Bus, out: &mut Out<'_, '_>, dead: &DeadMessage) -> Result<(), Fatal> {
    let Some(message) = &dead.message else {
        return Err(Fatal::Corrupt(format!("a dead message of {:?} that is none", dead.subscription)));
    };
    if let Some(blob) = &message.blob {
        blobs::hold(out, blob)?;
    }
    let row = Bytes::from(dead.encode_to_vec());
    messages::count_in(bus, row.len());
    out.txn.put_bytes(&key(&dead.subscription, message.seq), row);
    bus.count_dead(&dead.subscription, 1)
}

/// Removes the row. The caller counts: a subscription that goes has done so before.
pub(super) fn remove(bus: &mut Bus, out: &mut Out<'_, '_>, name: &str, seq: u64) -> Result<(), Fatal> {
    let corrupt = || Fatal::Corrupt(format!("no dead message {seq} of {name:?} to remove"));
    let row = out.txn.get_bytes(key(name, seq).as_bytes())?.ok_or_else(corrupt)?;
    messages::count_out(bus, row.len());
    if let Some(blob) = DeadMessage::decode(row)?.message.and_then(|message| message.blob) {
        blobs::release(out, &blob)?;
    }
    out.txn.delete(&key(name, seq));
    Ok(())
}

fn existing<'a>(bus: &'a Bus, name: &str) -> Outcome<&'a Sub> {
    check_id("subscription", name)?;
    match bus.subs.get(name) {
        Some(sub) if sub.row.removing => Err(subscribe::being_removed("subscription", name)),
        Some(sub) => Ok(sub),
        None => Err(not_found("subscription", format!("no subscription {name:?} exists"))),
    }
}

/// Those that are named, all of which must be there, or the oldest; fewer if they are large or there is no room.
fn choose(rows: &dyn Rows, name: &str, seqs: &[u64], room: usize) -> Outcome<Vec<(u64, DeadMessage)>> {
    if seqs.len() > MAX_DEAD {
        return Err(invalid("seqs", format!("seqs must be at most {MAX_DEAD}; got {}", seqs.len())));
    }
    let most = room.min(MAX_DEAD);
    let (mut chosen, mut bytes) = (Vec::new(), 0);
    if seqs.is_empty() {
        let prefix = Key::table(Table::DeadMessage).text(name);
        rows.scan(prefix.as_bytes(), &prefix.prefix_end(), &mut |key, value| {
            bytes += value.len();
            chosen.push((number_in(key)?, DeadMessage::decode(value)?));
            Ok(chosen.len() < most && bytes < MAX_DEAD_BYTES)
        })?;
        return Ok(chosen);
    }
    let mut seen = BTreeSet::new();
    for (i, seq) in seqs.iter().enumerate() {
        let field = format!("seqs[{i}]");
        if !seen.insert(seq) {
            return Err(invalid(&field, format!("{field}: {seq} is named twice")));
        }
        let Some(row) = rows.get_bytes(key(name, *seq).as_bytes())? else {
            return Err(not_found(&field, format!("subscription {name:?} has no dead message {seq}")));
        };
        if chosen.len() < most && bytes < MAX_DEAD_BYTES {
            bytes += row.len();
            chosen.push((*seq, DeadMessage::decode(row).map_err(Fatal::from)?));
        }
    }
    chosen.sort_unstable_by_key(|(seq, _)| *seq);
    Ok(chosen)
}

fn key(name: &str, seq: u64) -> Key {
    Key::table(Table::DeadMessage).text(name).number(seq)
}

/// The subscription in the key of a dead message: tag, name, zero, number.
pub(super) fn name_in(key: &[u8]) -> Result<&str, Fatal> {
    let name = key.split_last_chunk::<8>().and_then(|(front, _)| front.strip_suffix(&[0_u8])?.get(1..));
    name.and_then(|name| std::str::from_utf8(name).ok()).ok_or_else(|| not_a_key(key))
}

fn number_in(key: &[u8]) -> Result<u64, Fatal> {
    let (_, number) = key.split_last_chunk::<8>().ok_or_else(|| not_a_key(key))?;
    Ok(u64::from_be_bytes(*number))
}

pub(super) fn not_a_key(key: &[u8]) -> Fatal {
    Fatal::Corrupt(format!("not the key of a message in a subscription: {key:?}"))
}
