//! The rows of messages: written once, shared by the subscriptions that keep them, removed with the last of those.
//!
//! A payload has a row of its own, so what moves a message never writes it again. The totals count every copy that is
//! stored: messages, and the dead ones, which stand for themselves.

use bytes::Bytes;
use prost::Message;
use quorate_proto::v1::BusMessage;

use super::Bus;
use crate::error::Fatal;
use crate::state::{Out, blobs};
use crate::storage::keys::{Key, Table};
use crate::storage::rows::{self, Rows};

/// The most that the coordinator's stamps add to a message.
pub(super) const STAMP_BYTES: u64 = 36;

/// Stores a message that so many subscriptions keep.
pub(super) fn write(bus: &mut Bus, out: &mut Out<'_, '_>, mut message: BusMessage, keepers: u64) -> Result<(), Fatal> {
    let seq = message.seq;
    let payload = std::mem::take(&mut message.payload);
    if let Some(blob) = &message.blob {
        blobs::hold(out, blob)?;
    }
    let row = Bytes::from(message.encode_to_vec());
    count_in(bus, row.len() + payload.len());
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
    if let Some(keepers) = out.txn.get_bytes(refs_key(seq).as_bytes())? {
        let keepers = <[u8; 8]>::try_from(keepers.as_ref()).map_err(|_| corrupt(seq, "has a count that is none"))?;
        match u64::from_be_bytes(keepers) {
            0 | 1 => return Err(corrupt(seq, "has a count below 2")),
            2 => out.txn.delete(&refs_key(seq)),
            more => put_refs(out, seq, more - 1),
        }
        return Ok(());
    }
    let row = out.txn.get_bytes(key(seq).as_bytes())?.ok_or_else(|| corrupt(seq, "is kept but has no row"))?;
    let payload = out.txn.get_bytes(payload_key(seq).as_bytes())?;
    count_out(bus, row.len() + payload.as_ref().map_or(0, Bytes::len));
    if let Some(blob) = &BusMessage::decode(row)?.blob {
        blobs::release(out, blob)?;
    }
    out.txn.delete(&key(seq));
    if payload.is_some() {
        out.txn.delete(&payload_key(seq));
    }
    Ok(())
}

/// A message with its payload.
pub(super) fn whole(rows: &dyn Rows, seq: u64) -> Result<BusMessage, Fatal> {
    let message: Option<BusMessage> = rows::get(rows, &key(seq))?;
    let mut message = message.ok_or_else(|| corrupt(seq, "is kept but has no row"))?;
    message.payload = rows.get_bytes(payload_key(seq).as_bytes())?.unwrap_or_default();
    Ok(message)
}

/// One more copy is stored.
pub(super) fn count_in(bus: &mut Bus, bytes: usize) {
    bus.totals.messages += 1;
    bus.totals.bytes += bytes as u64;
    bus.moved.totals = true;
}

/// One less.
pub(super) fn count_out(bus: &mut Bus, bytes: usize) {
    bus.totals.messages = bus.totals.messages.saturating_sub(1);
    bus.totals.bytes = bus.totals.bytes.saturating_sub(bytes as u64);
    bus.moved.totals = true;
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
