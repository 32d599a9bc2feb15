//! Reads. A page ends when it is full, heavy enough, or has looked at enough rows: no list holds a node up, however
//! much there is. A page may therefore be short, even empty, and still name a next one.

use bytes::Bytes;
use prost::Message;
use quorate_proto::v1::{KvEntry, KvHistoryRequest, KvListRequest};

use super::{Kv, checked, current, kv_key, misshapen, text, version_key, versions_key};
use crate::error::{Fatal, Outcome};
use crate::storage::keys::{Key, Table};
use crate::storage::rows::{self, Rows};

/// The page size if the request names none.
pub const DEFAULT_PAGE: u32 = 100;
/// The largest page.
pub const MAX_PAGE: u32 = 1_000;
/// How many rows a page looks at.
pub const MAX_EXAMINED: usize = 20_000;

/// How many bytes of rows it looks at.
const MAX_EXAMINED_BYTES: usize = 64 << 20;
/// How heavy a page may be: what a gRPC message may, less what is around the entries.
const MAX_PAGE_BYTES: usize = (4 << 20) - (64 << 10);
/// What is around one entry, at most.
const ENTRY_FRAME_BYTES: usize = 8;

impl Kv {
    /// One document; of an earlier version that is kept, if `version` is not 0.
    pub fn get(&self, rows: &dyn Rows, key: &str, wanted: u64) -> Result<Option<KvEntry>, Fatal> {
        if wanted == 0 { current(rows, key) } else { version(rows, key, wanted) }
    }

    /// Documents by key, and where the next page begins; empty: this was the last.
    pub fn list(&self, rows: &dyn Rows, req: &KvListRequest) -> Outcome<(Vec<KvEntry>, String)> {
        checked::prefix("prefix", &req.prefix)?;
        let table = || Key::table(Table::Kv);
        let prefix = table().bytes(req.prefix.as_bytes());
        let from = prefix.clone().max(table().bytes(req.from.as_bytes()));
        let mut to = prefix.prefix_end();
        if !req.to.is_empty() {
            to = to.min(table().bytes(req.to.as_bytes()).as_bytes().to_vec());
        }
        let mut page = Page::new(req.limit);
        let mut next = String::new();
        if from.as_bytes() < to.as_slice() {
            rows.scan(from.as_bytes(), &to, &mut |row, value| {
                if !page.look(value) {
                    next = key_of(row)?.to_owned();
                    return Ok(false);
                }
                let mut entry = KvEntry::decode(value)?;
                if !matches(req, &entry) {
                    return Ok(true);
                }
                if req.keys_only {
                    entry.value = Bytes::new();
                }
                if !page.add(entry) {
                    next = key_of(row)?.to_owned();
                    return Ok(false);
                }
                Ok(true)
            })?;
        }
        Ok((page.found, next))
    }

    /// The versions of one key, newest first: the document, what it was before, and its removals.
    pub fn history(&self, rows: &dyn Rows, req: &KvHistoryRequest) -> Outcome<Vec<KvEntry>> {
        checked::key("key", &req.key)?;
        let before = if req.before_version == 0 { u64::MAX } else { req.before_version };
        let mut page = Page::new(req.limit);
        let add = |page: &mut Page, mut entry: KvEntry| {
            if req.without_values {
                entry.value = Bytes::new();
            }
            page.add(entry)
        };
        if let Some(entry) = current(rows, &req.key)?
            && entry.version < before
        {
            add(&mut page, entry);
        }
        let from = version_key(&req.key, before - 1);
        rows.scan(from.as_bytes(), &versions_key(&req.key).prefix_end(), &mut |_, value| {
            Ok(page.look(value) && add(&mut page, KvEntry::decode(value)?))
        })?;
        Ok(page.found)
    }
}

/// A version that is kept and is not a removal: the document's own, or an earlier one.
pub(super) fn version(rows: &dyn Rows, key: &str, wanted: u64) -> Result<Option<KvEntry>, Fatal> {
    if let Some(entry) = rows::get::<KvEntry>(rows, &version_key(key, wanted))? {
        return Ok(Some(entry).filter(|entry| !entry.deleted));
    }
    Ok(rows::get::<KvEntry>(rows, &kv_key(key))?.filter(|entry| entry.version == wanted))
}

fn matches(req: &KvListRequest, entry: &KvEntry) -> bool {
    entry.updated_at_ms >= req.updated_from_ms && (req.project_id.is_empty() || req.project_id == entry.project_id)
}

/// The key out of a Kv row's key.
fn key_of(row: &[u8]) -> Result<&str, Fatal> {
    text(row.get(1..).unwrap_or_default()).ok_or_else(|| misshapen(row))
}

/// What a page has, and how much it may still have and look at.
struct Page {
    found: Vec<KvEntry>,
    left: usize,
    bytes: usize,
    rows: usize,
    read: usize,
}

impl Page {
    fn new(limit: u32) -> Self {
        let left = match limit {
            0 => DEFAULT_PAGE,
            limit => limit.min(MAX_PAGE),
        };
        Page {
            found: Vec::new(),
            left: left as usize,
            bytes: MAX_PAGE_BYTES,
            rows: MAX_EXAMINED,
            read: MAX_EXAMINED_BYTES,
        }
    }

    /// Whether one more row may be looked at.
    fn look(&mut self, value: &[u8]) -> bool {
        if self.left == 0 || self.rows == 0 || self.read == 0 {
            return false;
        }
        self.rows -= 1;
        self.read = self.read.saturating_sub(value.len());
        true
    }

    /// Whether the entry had room; a page that has none yet has room for any.
    fn add(&mut self, entry: KvEntry) -> bool {
        let size = entry.encoded_len() + ENTRY_FRAME_BYTES;
        if size > self.bytes && !self.found.is_empty() {
            return false;
        }
        self.left = self.left.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(size);
        self.found.push(entry);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::rows::MemoryRows;

    fn stored(entries: impl IntoIterator<Item = KvEntry>) -> MemoryRows {
        let row = |entry: KvEntry| (kv_key(&entry.key).as_bytes().to_vec(), Bytes::from(entry.encode_to_vec()));
        MemoryRows(entries.into_iter().map(row).collect())
    }

    fn entry(key: String, bytes: usize, project_id: &str) -> KvEntry {
        KvEntry { key, value: vec![b'x'; bytes].into(), project_id: project_id.to_owned(), ..KvEntry::default() }
    }

    /// Every key, page by page, and how many pages it took.
    fn all(rows: &MemoryRows, mut req: KvListRequest) -> (Vec<String>, usize) {
        let (mut keys, mut pages) = (Vec::new(), 0);
        loop {
            let (page, next) = Kv::default().list(rows, &req).unwrap();
            pages += 1;
            let bytes: usize = page.iter().map(|entry| entry.encoded_len() + ENTRY_FRAME_BYTES).sum();
            assert!(bytes <= MAX_PAGE_BYTES, "a page of {bytes} bytes");
            keys.extend(page.into_iter().map(|entry| entry.key));
            if next.is_empty() {
                return (keys, pages);
            }
            req.from = next;
        }
    }

    #[test]
    fn heavy_pages_end_early_and_none_is_lost() {
        let names: Vec<String> = (0..10).map(|n| format!("k{n}")).collect();
        let rows = stored(names.iter().map(|name| entry(name.clone(), 1 << 20, "")));
        assert_eq!(all(&rows, KvListRequest::default()), (names.clone(), 4));
        let light = KvListRequest { keys_only: true, ..KvListRequest::default() };
        assert_eq!(all(&rows, light), (names, 1));
    }

    #[test]
    fn a_page_looks_at_so_many_rows() {
        let mut entries: Vec<KvEntry> = (0..MAX_EXAMINED).map(|n| entry(format!("a{n:05}"), 1, "other")).collect();
        entries.push(entry("b".to_owned(), 1, "mine"));
        let req = KvListRequest { project_id: "mine".to_owned(), ..KvListRequest::default() };
        assert_eq!(all(&stored(entries), req), (vec!["b".to_owned()], 2));
    }

    #[test]
    fn ranges_go_by_bytes() {
        let names = ["a", "a!", "a/1", "a/2", "a/20", "b", "é"];
        let rows = stored(names.map(|name| entry(name.to_owned(), 1, "")));
        let list = |prefix: &str, from: &str, to: &str| {
            let (prefix, from, to) = (prefix.to_owned(), from.to_owned(), to.to_owned());
            all(&rows, KvListRequest { prefix, from, to, ..KvListRequest::default() }).0.join(" ")
        };
        assert_eq!(list("", "", ""), "a a! a/1 a/2 a/20 b é");
        assert_eq!(list("a/", "", ""), "a/1 a/2 a/20");
        assert_eq!(list("a/", "a/2", ""), "a/2 a/20");
        assert_eq!(list("a/", "a", "a/2"), "a/1");
        assert_eq!(list("", "a!", "b"), "a! a/1 a/2 a/20");
        assert_eq!(list("a/", "b", ""), "");
        assert_eq!(list("", "b", "a"), "");
    }
}
