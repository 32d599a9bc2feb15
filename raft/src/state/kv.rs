//! Documents: what agents must not lose and others may read, with the versions each had before.
//!
//! ```text
//!   put, rollback                      delete, its session ends, its time is over
//!        │                                               │
//!        ▼            the one before it                  ▼
//!   Kv: key ─────────────────────────────▶ KvVersion: key, newest first; a removal is one of them
//!                                               └─▶ gone: too many (at the next write) or too old (by the sweep)
//! ```
//!
//! Owns the Kv, KvVersion, KvPolicy, KvTotals, KvLease and KvExpiry rows. Documents stay in RocksDB. In memory are the
//! totals, the policies, and of the keys only those that go by themselves: with a session, or at a time. Those have a
//! row of their own beside the document's, so that opening the state reads them and not every document.
//!
//! Invariants:
//! - the versions of a key are numbered without a gap from 1, removals included, for as long as one of its rows is
//!   kept: if there is no document, the newest KvVersion row is its removal, and it is the last of its rows to go;
//! - a row holds its blob: a document that becomes an earlier version takes the reference with it;
//! - a key is in KvLease and KvExpiry, and in the indexes, exactly if its document says so;
//! - one function writes documents and versions (`write::store`).
//!
//! Deliberately absent: reading the clock. A document stands until a tick removes it, whatever its time says.

mod checked;
mod due;
mod merge;
mod plan;
mod policies;
mod read;
mod write;

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;
use quorate_proto::log::KvTotals;
use quorate_proto::v1::{
    KvDeleteRequest, KvDeleteResponse, KvEntry, KvPolicy, KvPutRequest, KvPutResponse, KvRollbackRequest,
};

pub use self::checked::{
    MAX_CONTENT_TYPE_BYTES, MAX_KEY_BYTES, MAX_LABEL_VALUE_BYTES, MAX_LABELS, MAX_NAME_BYTES, MAX_TTL_MS,
    MAX_VALUE_BYTES,
};
pub use self::due::{run_due, session_ended};
pub use self::merge::MAX_DEPTH;
pub(crate) use self::plan::{Growth, Planned, check_condition, check_delete, check_put};
pub use self::policies::{DEFAULT_MAX_AGE_MS, DEFAULT_VERSIONS, MAX_POLICIES, delete_policy, set_policy};
pub use self::read::{DEFAULT_PAGE, MAX_EXAMINED, MAX_PAGE};
pub(crate) use self::write::{do_delete, do_put};
use crate::error::{Fatal, Outcome};
use crate::state::{Ctx, Out, Rooms};
use crate::storage::keys::{Key, Table};
use crate::storage::rows::{self, Rows};

/// The keys that go with one session, and what they weigh when they go.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Leased {
    keys: BTreeSet<String>,
    burden: u64,
}

impl Leased {
    fn add(&mut self, key: &str, burden: u64) {
        self.keys.insert(key.to_owned());
        self.burden += burden;
    }

    fn remove(&mut self, key: &str, burden: u64) {
        self.keys.remove(key);
        self.burden = self.burden.saturating_sub(burden);
    }
}

/// What is in memory of the documents.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Kv {
    /// As its row has it.
    totals: KvTotals,
    policies: BTreeMap<String, KvPolicy>,
    /// What goes with a session, by session.
    leases: BTreeMap<String, Leased>,
    /// Keys that go at a time.
    expiries: BTreeSet<(u64, String)>,
}

impl Kv {
    /// Builds every index from the rows; no document is read.
    pub fn rebuild(rows: &dyn Rows) -> Result<Self, Fatal> {
        let mut kv = Kv { totals: rows::get(rows, &totals_key())?.unwrap_or_default(), ..Kv::default() };
        rows::scan_prefix::<KvPolicy>(rows, &Key::table(Table::KvPolicy), |_, policy| {
            kv.policies.insert(policy.prefix.clone(), policy);
            Ok(true)
        })?;
        let leases = Key::table(Table::KvLease);
        rows.scan(leases.as_bytes(), &leases.prefix_end(), &mut |row, value| {
            let (session_id, key) = split_lease(row)?;
            let burden = <[u8; 8]>::try_from(value).map_err(|_| misshapen(row))?;
            kv.leases.entry(session_id.to_owned()).or_default().add(key, u64::from_be_bytes(burden));
            Ok(true)
        })?;
        let expiries = Key::table(Table::KvExpiry);
        rows.scan(expiries.as_bytes(), &expiries.prefix_end(), &mut |row, _| {
            let (at_ms, key) = split_expiry(row)?;
            kv.expiries.insert((at_ms, key.to_owned()));
            Ok(true)
        })?;
        Ok(kv)
    }

    /// How many documents there are, and how many bytes: keys, values and blobs, earlier versions not counted.
    pub fn totals(&self) -> (u64, u64) {
        (self.totals.keys, self.totals.bytes)
    }

    /// When a document goes by itself next, or versions are to be looked through.
    pub fn next_due_ms(&self) -> Option<u64> {
        let expiry_ms = self.expiries.first().map(|(at_ms, _)| *at_ms);
        let sweep_ms = Some(self.totals.sweep_at_ms).filter(|at_ms| *at_ms > 0);
        expiry_ms.into_iter().chain(sweep_ms).min()
    }
}

/// Writes one document.
pub fn put(rooms: &mut Rooms, out: &mut Out<'_, '_>, ctx: &Ctx, req: KvPutRequest) -> Outcome<KvPutResponse> {
    let planned = check_put(rooms, &*out.txn, ctx, &req, "")?;
    Growth::of(&planned).check(rooms, "")?;
    let entry = do_put(rooms, out, ctx, planned)?;
    Ok(KvPutResponse { entry: Some(entry), rev: ctx.rev })
}

/// Removes one document; its history stays.
pub fn delete(rooms: &mut Rooms, out: &mut Out<'_, '_>, ctx: &Ctx, req: KvDeleteRequest) -> Outcome<KvDeleteResponse> {
    let planned = check_delete(&*out.txn, ctx, &req, "")?;
    let deleted = do_delete(rooms, out, ctx, planned)?;
    Ok(KvDeleteResponse { deleted, rev: ctx.rev })
}

/// Writes an earlier version anew, as the newest. It stays then, whatever became of the earlier one.
pub fn rollback(rooms: &mut Rooms, out: &mut Out<'_, '_>, ctx: &Ctx, req: KvRollbackRequest) -> Outcome<KvPutResponse> {
    let planned = plan::check_rollback(&*out.txn, ctx, &req)?;
    Growth::of(&planned).check(rooms, "")?;
    let entry = do_put(rooms, out, ctx, planned)?;
    Ok(KvPutResponse { entry: Some(entry), rev: ctx.rev })
}

/// The document of this key.
fn current(rows: &dyn Rows, key: &str) -> Result<Option<KvEntry>, Fatal> {
    rows::get(rows, &kv_key(key))
}

/// The number of the newest earlier version or removal; 0 if none is kept.
fn newest_kept(rows: &dyn Rows, key: &str) -> Result<u64, Fatal> {
    let prefix = versions_key(key);
    let mut newest = 0;
    rows.scan(prefix.as_bytes(), &prefix.prefix_end(), &mut |row, _| {
        newest = split_version(row)?;
        Ok(false)
    })?;
    Ok(newest)
}

/// What a document weighs in the totals.
fn weight(entry: &KvEntry) -> u64 {
    let blob = entry.blob.as_ref().map_or(0, |blob| blob.size_bytes);
    (entry.key.len() as u64).saturating_add(entry.value.len() as u64).saturating_add(blob)
}

/// What it costs to write or remove a document, in bytes: its row, and each chunk of its blob as so many more.
///
/// Everything that goes at once is bounded by it. A batch of writes is in memory as a whole: what a session's end
/// removes must fit, on every replica and at every replay.
fn burden(entry: &KvEntry) -> u64 {
    const CHUNK_BURDEN: u64 = 1_024;
    let chunks = entry.blob.as_ref().map_or(0, |blob| blob.chunks.len());
    entry.encoded_len() as u64 + CHUNK_BURDEN * chunks as u64
}

fn kv_key(key: &str) -> Key {
    Key::table(Table::Kv).text(key)
}

fn versions_key(key: &str) -> Key {
    Key::table(Table::KvVersion).text(key)
}

fn version_key(key: &str, version: u64) -> Key {
    versions_key(key).number(u64::MAX - version)
}

fn policy_key(prefix: &str) -> Key {
    Key::table(Table::KvPolicy).text(prefix)
}

fn totals_key() -> Key {
    Key::table(Table::KvTotals)
}

fn lease_key(session_id: &str, key: &str) -> Key {
    Key::table(Table::KvLease).text(session_id).text(key)
}

fn expiry_key(at_ms: u64, key: &str) -> Key {
    Key::table(Table::KvExpiry).number(at_ms).text(key)
}

/// The version out of a KvVersion row's key.
fn split_version(row: &[u8]) -> Result<u64, Fatal> {
    let number = row.last_chunk::<8>().ok_or_else(|| misshapen(row))?;
    Ok(u64::MAX - u64::from_be_bytes(*number))
}

/// Session and key out of a KvLease row's key.
fn split_lease(row: &[u8]) -> Result<(&str, &str), Fatal> {
    text(row.get(1..).unwrap_or_default()).and_then(|text| text.split_once('\0')).ok_or_else(|| misshapen(row))
}

/// Time and key out of a KvExpiry row's key.
fn split_expiry(row: &[u8]) -> Result<(u64, &str), Fatal> {
    let (at_ms, key) = row.get(1..).and_then(|rest| rest.split_first_chunk::<8>()).ok_or_else(|| misshapen(row))?;
    Ok((u64::from_be_bytes(*at_ms), text(key).ok_or_else(|| misshapen(row))?))
}

/// Text without the zero byte that ends it.
fn text(bytes: &[u8]) -> Option<&str> {
    bytes.strip_suffix(&[0_u8]).and_then(|bytes| std::str::from_utf8(bytes).ok())
}

fn misshapen(row: &[u8]) -> Fatal {
    Fatal::Corrupt(format!("not a key of the documents' tables: {row:?}"))
}
