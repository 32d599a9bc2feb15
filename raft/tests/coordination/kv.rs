//! What must hold of documents and of the rows beside them.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;
use quorate_proto::log::KvTotals;
use quorate_proto::v1::KvEntry;
use quorate_raft::storage::keys::{Key, Table};
use quorate_raft::storage::rows;

use super::is_past;
use super::kv_model::{KvModel, earlier_since_ms, weight};
use super::view::{View, number, raw};

pub(crate) fn totals(view: &View) -> KvTotals {
    let row = rows::get::<KvTotals>(&view.rows, &Key::table(Table::KvTotals)).expect("a row that can be read");
    row.unwrap_or_default()
}

/// Whether a tick at that time sweeps.
pub(crate) fn sweeps(view: &View, now_ms: u64) -> bool {
    is_past(totals(view).sweep_at_ms, now_ms)
}

pub(crate) fn check(view: &View) {
    check_totals(view);
    check_ends(view);
    for entry in view.documents.values() {
        let leased = entry.session_id.is_empty() || view.sessions.contains_key(&entry.session_id);
        assert!(leased, "its session has ended: {entry:?}");
        assert!(!entry.deleted && entry.superseded_at_ms == 0, "says what only a history does: {entry:?}");
        assert!(entry.create_rev <= entry.mod_rev && entry.version > 0, "{entry:?}");
    }
    check_versions(view);
}

fn check_totals(view: &View) {
    let bytes: u64 = view.documents.values().map(weight).sum();
    let counted = totals(view);
    assert_eq!((counted.keys, counted.bytes), (view.documents.len() as u64, bytes), "totals of the documents");
}

/// What goes by itself has a row that says so, and nothing else has.
fn check_ends(view: &View) {
    let leased = view.documents.values().filter(|entry| !entry.session_id.is_empty());
    let leased: BTreeMap<Vec<u8>, u64> =
        leased.map(|entry| (pair(&entry.session_id, &entry.key), burden(entry))).collect();
    let rows = raw(&view.rows, Table::KvLease).map(|(key, burden)| (key.to_vec(), number(burden)));
    assert_eq!(rows.collect::<BTreeMap<Vec<u8>, u64>>(), leased, "documents of sessions");
    let ending = view.documents.values().filter(|entry| entry.expires_at_ms > 0);
    let ending: BTreeSet<(u64, Vec<u8>)> =
        ending.map(|entry| (entry.expires_at_ms, format!("{}\0", entry.key).into_bytes())).collect();
    let rows = raw(&view.rows, Table::KvExpiry).map(|(key, _)| (number(&key[..8]), key[8..].to_vec()));
    assert_eq!(rows.collect::<BTreeSet<(u64, Vec<u8>)>>(), ending, "documents that have an end");
}

/// Session and key, each followed by a zero.
fn pair(session_id: &str, key: &str) -> Vec<u8> {
    format!("{session_id}\0{key}\0").into_bytes()
}

/// What it costs to remove: its row, and a KiB for each chunk.
fn burden(entry: &KvEntry) -> u64 {
    let chunks = entry.blob.as_ref().map_or(0, |blob| blob.chunks.len());
    (entry.encoded_len() + 1_024 * chunks) as u64
}

/// The newest row of a key is its document or its removal, and nothing else is its newest. The later a version, the
/// later its rev.
fn check_versions(view: &View) {
    let mut by_key: BTreeMap<&str, Vec<&KvEntry>> = BTreeMap::new();
    for entry in view.versions.values().chain(view.documents.values()) {
        by_key.entry(entry.key.as_str()).or_default().push(entry);
    }
    for (key, versions) in by_key {
        assert!(versions.is_sorted_by(|a, b| a.version < b.version && a.mod_rev < b.mod_rev), "{versions:?}");
        let newest = versions.last().map(|entry| (entry.version, entry.deleted));
        let document = view.documents.get(key).map(|entry| (entry.version, false));
        let removal = view.versions.values().rfind(|entry| entry.key == key && entry.deleted);
        let removal = removal.map(|entry| (entry.version, true));
        assert_eq!(newest, document.or(removal), "the newest of {key:?}: {versions:?}");
    }
}

/// Of a number that is too large nothing is left once the sweep came by, nor of what is too old.
pub(crate) fn check_kept(view: &View, model: &KvModel, now_ms: u64, everything_is_swept: bool) {
    if sweeps(view, now_ms) {
        return;
    }
    let mut any_ages = false;
    for entry in view.versions.values() {
        let (most, age_ms) = model.policy(&entry.key);
        let of_key = view.versions.values().chain(view.documents.values()).filter(|other| other.key == entry.key);
        let newest = of_key.map(|other| other.version).max().unwrap_or_default();
        assert!(entry.version + most >= newest, "one too many, and no sweep is due: {entry:?}");
        any_ages |= age_ms.is_some();
        let is_old = age_ms.is_some_and(|age_ms| earlier_since_ms(entry) + age_ms <= now_ms);
        assert!(!(is_old && everything_is_swept), "too old: {entry:?}");
    }
    assert!(!any_ages || totals(view).sweep_at_ms > 0, "what will be too old, and no sweep is planned");
}
