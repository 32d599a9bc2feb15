//! The rows of messages: written once, shared by the subscriptions that keep them, alive or dead, removed with the last
//! of those.
//!
//! A payload has a row of its own, so what moves a message never writes it again; how long it is stands in the message,
//! so what removes one does not read it either. The totals count a message once, as long as its row is there.

use bytes::Bytes;
use prost::Message;
use quorate_proto::v1::BusMessage;

use super::Bus;
use crate::error::Fatal;
use crate::state::{Out, blobs};
use crate::storage::keys::{Key, Table};
use crate::storage::rows::{self, Rows};

/// The most that the coordinator's stamps add to a message.
pub(super) const STAMP_BYTES: u64 = 43;

/// Stores a message that so many subscriptions keep.
pub(super) fn write(bus: &mut Bus, out: &mut Out<'_, '_>, mut message: BusMessage, keepers: u64) -> Result<(), Fatal> {
    let seq = message.seq;
    let payload = std::mem::take(&mut message.payload);
    message.payload_bytes = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    if let Some(blob) = &message.blob {
        blobs::hold(out, blob)?;
    }
    let row = Bytes::from(message.encode_to_vec());
    bus.totals.messages += 1;
    bus.totals.bytes += (row.len() + payload.len()) as u64;
    bus.moved.totals = true;
    out.txn.put_bytes(&key(seq), row);
    if !payload.is_empty() {
        out.txn.put_bytes(&payload_key(seq), payload);
    }
    if keepers > 1 {
        put_refs(out, seq, keepers);
    }
    Ok(())
}

/// One subscription less keeps it. The last one takes the message along.
pub(super) fn release(bus: &mut Bus, out: &mut Out<'_, '_>, seq: u64) -> Result<(), Fatal> {
    if let Some(keepers) = shared_by(&*out.txn, seq)? {
        match keepers {
            2 => out.txn.delete(&refs_key(seq)),
            more => put_refs(out, seq, more - 1),
        }
        return Ok(());
    }
    let row = out.txn.get_bytes(key(seq).as_bytes())?.ok_or_else(|| corrupt(seq, "is kept but has no row"))?;
    let row_bytes = row.len() as u64;
    let message = BusMessage::decode(row)?;
    bus.totals.messages = bus.totals.messages.saturating_sub(1);
    bus.totals.bytes = bus.totals.bytes.saturating_sub(row_bytes + u64::from(message.payload_bytes));
    bus.moved.totals = true;
    if let Some(blob) = &message.blob {
        blobs::release(out, blob)?;
    }
    out.txn.delete(&key(seq));
    if message.payload_bytes > 0 {
        out.txn.delete(&payload_key(seq));
    }
    Ok(())
}

/// A message without its payload.
pub(super) fn light(rows: &dyn Rows, seq: u64) -> Result<BusMessage, Fatal> {
    rows::get(rows, &key(seq))?.ok_or_else(|| corrupt(seq, "is kept but has no row"))
}

/// A message with its payload.
pub(super) fn whole(rows: &dyn Rows, seq: u64) -> Result<BusMessage, Fatal> {
    let mut message = light(rows, seq)?;
    if message.payload_bytes > 0 {
        let payload = rows.get_bytes(payload_key(seq).as_bytes())?;
        message.payload = payload.ok_or_else(|| corrupt(seq, "has lost its payload"))?;
    }
    Ok(message)
}

/// How many subscriptions keep it, if it is not one alone.
pub(super) fn shared_by(rows: &dyn Rows, seq: u64) -> Result<Option<u64>, Fatal> {
    let Some(keepers) = rows.get_bytes(refs_key(seq).as_bytes())? else { return Ok(None) };
    let keepers = <[u8; 8]>::try_from(keepers.as_ref()).map_err(|_| corrupt(seq, "has a count that is none"))?;
    match u64::from_be_bytes(keepers) {
        0 | 1 => Err(corrupt(seq, "has a count below 2")),
        several => Ok(Some(several)),
    }
}

fn put_refs(out: &mut Out<'_, '_>, seq: u64, keepers: u64) {
    out.txn.put_bytes(&refs_key(seq), Bytes::copy_from_slice(&keepers.to_be_bytes()));
}

fn key(seq: u64) -> Key {
    Key::table(Table::Message).number(seq)
}

fn payload_key(seq: u64) -> Key {
    Key::table(Table::MessagePayload).number(seq)
}

fn refs_key(seq: u64) -> Key {
    Key::table(Table::MessageRefs).number(seq)
}

fn corrupt(seq: u64, what: &str) -> Fatal {
    Fatal::Corrupt(format!("message {seq} {what}"))
}
