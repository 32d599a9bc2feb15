//! The one place that writes documents and their versions.

use bytes::Bytes;
use quorate_proto::v1::KvEntry;

use super::plan::Planned;
use super::{Kv, burden, due, expiry_key, kv_key, lease_key, totals_key, version_key, weight};
use crate::error::Fatal;
use crate::faults::{Bug, planted};
use crate::state::{Ctx, Out, Rooms, blobs};
use crate::storage::rows;

/// Writes what a put planned, and gives it back without its value.
pub(crate) fn do_put(rooms: &mut Rooms, out: &mut Out<'_, '_>, ctx: &Ctx, planned: Planned) -> Result<KvEntry, Fatal> {
    let entry = KvEntry { value: Bytes::new(), ..planned.after.clone() };
    if planted(Bug::PutLost) && ctx.rev.is_multiple_of(97) {
        return Ok(entry);
    }
    let mut planned = planned;
    planned.after.updated_at_ms += u64::from(planted(Bug::Drift));
    store(&mut rooms.kv, out, ctx, planned)?;
    put_totals(&rooms.kv, out);
    Ok(entry)
}

/// Removes what a removal planned, and tells whether there was anything.
pub(crate) fn do_delete(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    planned: Option<Planned>,
) -> Result<bool, Fatal> {
    let Some(planned) = planned else { return Ok(false) };
    store(&mut rooms.kv, out, ctx, planned)?;
    put_totals(&rooms.kv, out);
    Ok(true)
}

/// Writes the row of the totals. Whoever calls [`store`] does so once, when all is stored.
pub(super) fn put_totals(kv: &Kv, out: &mut Out<'_, '_>) {
    out.txn.put(&totals_key(), &kv.totals);
}

/// What was there becomes the newest earlier version, and what is one too many goes: a fixed number of rows.
pub(super) fn store(kv: &mut Kv, out: &mut Out<'_, '_>, ctx: &Ctx, planned: Planned) -> Result<(), Fatal> {
    let Planned { before, after, .. } = planned;
    let kept = kv.kept(&after.key);
    let document = Some(&after).filter(|after| !after.deleted);
    count(kv, before.as_ref(), document);
    move_lease(kv, out, before.as_ref(), document);
    move_expiry(kv, out, before.as_ref(), document);
    // Held before the old one is let go of: they may be the same.
    if let Some(blob) = document.and_then(|document| document.blob.as_ref()) {
        blobs::hold(out, blob)?;
    }
    match document {
        Some(document) => out.txn.put(&kv_key(&after.key), document),
        None => {
            out.txn.delete(&kv_key(&after.key));
            out.txn.put(&version_key(&after.key, after.version), &after);
            due::schedule(kv, ctx, &after, &kept);
        }
    }
    if let Some(mut before) = before {
        if kept.versions > 0 {
            before.superseded_at_ms = ctx.now_ms;
            out.txn.put(&version_key(&before.key, before.version), &before);
            due::schedule(kv, ctx, &before, &kept);
        } else if let Some(blob) = &before.blob {
            blobs::release(out, blob)?;
        }
    }
    match after.version.checked_sub(u64::from(kept.versions) + 1) {
        Some(out_of_window) if out_of_window > 0 => forget_version(out, &after.key, out_of_window),
        _ => Ok(()),
    }
}

/// Removes an earlier version, if it is kept.
pub(super) fn forget_version(out: &mut Out<'_, '_>, key: &str, version: u64) -> Result<(), Fatal> {
    let row = version_key(key, version);
    if let Some(entry) = rows::get::<KvEntry>(&*out.txn, &row)? {
        if let Some(blob) = &entry.blob {
            blobs::release(out, blob)?;
        }
        out.txn.delete(&row);
    }
    Ok(())
}

fn count(kv: &mut Kv, before: Option<&KvEntry>, document: Option<&KvEntry>) {
    let totals = &mut kv.totals;
    if let Some(before) = before {
        totals.keys = totals.keys.saturating_sub(1);
        totals.bytes = totals.bytes.saturating_sub(weight(before));
    }
    if let Some(document) = document {
        totals.keys += 1;
        totals.bytes = totals.bytes.saturating_add(weight(document));
    }
}

fn move_lease(kv: &mut Kv, out: &mut Out<'_, '_>, before: Option<&KvEntry>, document: Option<&KvEntry>) {
    let leased = |entry: &&KvEntry| !entry.session_id.is_empty();
    let (before, document) = (before.filter(leased), document.filter(leased));
    if let Some(KvEntry { session_id, key, .. }) = before
        && let Some(leased) = kv.leases.get_mut(session_id)
    {
        leased.remove(key, before.map_or(0, burden));
        if leased.keys.is_empty() {
            kv.leases.remove(session_id);
        }
    }
    if let Some(KvEntry { session_id, key, .. }) = document {
        kv.leases.entry(session_id.clone()).or_default().add(key, document.map_or(0, burden));
    }
    let row = |entry: &KvEntry| (lease_key(&entry.session_id, &entry.key), burden(entry));
    let (was, is) = (before.map(row), document.map(row));
    if let Some((was, _)) = &was
        && is.as_ref().is_none_or(|(is, _)| is != was)
    {
        out.txn.delete(was);
    }
    if let Some((key, burden)) = &is
        && is != was
    {
        out.txn.put_bytes(key, Bytes::copy_from_slice(&burden.to_be_bytes()));
    }
}

fn move_expiry(kv: &mut Kv, out: &mut Out<'_, '_>, before: Option<&KvEntry>, document: Option<&KvEntry>) {
    let has_end = |entry: &&KvEntry| entry.expires_at_ms > 0;
    let (before, document) = (before.filter(has_end), document.filter(has_end));
    if before.map(|entry| entry.expires_at_ms) == document.map(|entry| entry.expires_at_ms) {
        return;
    }
    if let Some(before) = before {
        kv.expiries.remove(&(before.expires_at_ms, before.key.clone()));
        out.txn.delete(&expiry_key(before.expires_at_ms, &before.key));
    }
    if let Some(document) = document {
        kv.expiries.insert((document.expires_at_ms, document.key.clone()));
        out.txn.put_bytes(&expiry_key(document.expires_at_ms, &document.key), Bytes::new());
    }
}
