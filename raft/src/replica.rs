//! The applied state of this node: rooms, rows and head, behind one lock.
//!
//! One writer, the state-machine adapter. Readers see the state exactly as it stood after some entry: apply holds the
//! lock until its rows are written. Deliberately absent: whether a read is fresh enough. That is the reader's question
//! to consensus.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use quorate_proto::log::Answer;
use quorate_proto::v1::Event;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;

use crate::apply::{Happened, Head, apply_batch};
use crate::effect::Effect;
use crate::error::Fatal;
use crate::history;
use crate::state::namespaces::{Namespaces, Part};
use crate::state::{Rooms, blobs};
use crate::storage::keys::{Key, Table};
use crate::storage::rows::Rows;
use crate::storage::snapshot::{Layout, SnapshotDir, read_head};
use crate::storage::state_db::StateDb;
use crate::storage::txn::Txn;

/// What one committed entry asks of the state.
#[derive(Debug)]
pub struct Applicable {
    /// Its term and index.
    pub log_id: (u64, u64),
    /// What it carries.
    pub content: Content,
}

/// What an entry may carry.
#[derive(Debug)]
pub enum Content {
    /// Nothing: a new leader's first entry.
    Blank,
    /// An encoded batch of commands.
    Batch(Bytes),
    /// An encoded membership.
    Membership(Bytes),
}

struct Applied {
    namespaces: Namespaces,
    db: Arc<StateDb>,
    head: Head,
}

/// What a reader sees of one namespace: one point of the history.
pub struct View<'a> {
    /// The indexes.
    pub rooms: &'a Rooms,
    /// The rows.
    pub rows: &'a dyn Rows,
    /// Where it stands.
    pub head: &'a Head,
}

/// What a reader sees of the whole cluster.
pub struct Whole<'a> {
    /// Every namespace.
    pub namespaces: &'a Namespaces,
    /// The rows of all of them, and the cluster's own.
    pub rows: &'a dyn Rows,
    /// Where it stands.
    pub head: &'a Head,
}

/// A part of the event history.
#[derive(Debug, Default)]
pub struct Page {
    /// By rev; the namespace is known.
    pub events: Vec<(u64, Vec<Event>)>,
    /// Everything up to this rev was looked at.
    pub through_rev: u64,
    /// The history up to this rev is gone.
    pub compacted_rev: u64,
}

/// The applied state of this node.
pub struct Replica {
    applied: RwLock<Applied>,
    layout: Layout,
    snapshot: Mutex<Option<SnapshotDir>>,
    happened: UnboundedSender<Vec<Happened>>,
    rev: watch::Sender<u64>,
}

impl Replica {
    /// Opens the state under `root` and rebuilds every index. Effects of what is applied from now on go to `happened`.
    pub fn open(root: &Path, happened: UnboundedSender<Vec<Happened>>) -> Result<Self, Fatal> {
        let layout = Layout::open(root)?;
        let applied = open_generation(&layout.current_generation()?)?;
        let snapshot = layout.newest_snapshot()?;
        let rev = watch::Sender::new(applied.head.rev);
        Ok(Replica { applied: RwLock::new(applied), layout, snapshot: Mutex::new(snapshot), happened, rev })
    }

    /// Reads under the lock; keep it short.
    pub fn read<T>(&self, f: impl FnOnce(Whole<'_>) -> T) -> T {
        let applied = self.applied.read();
        f(Whole { namespaces: &applied.namespaces, rows: &*applied.db, head: &applied.head })
    }

    /// Reads one namespace under the lock; keep it short. `None`: it does not exist.
    pub fn read_in<T>(&self, namespace: &str, f: impl FnOnce(View<'_>) -> T) -> Option<T> {
        let applied = self.applied.read();
        let part = applied.namespaces.get(namespace)?;
        Some(f(View { rooms: &part.rooms, rows: &part.rows(&*applied.db), head: &applied.head }))
    }

    /// Tells the newest applied rev, and every later one.
    pub fn revs(&self) -> watch::Receiver<u64> {
        self.rev.subscribe()
    }

    /// The event history of one namespace from `from_rev` on: what `wanted` passes, until that is `max_bytes` or rather more,
    /// or `max_revs` were looked at. Apply goes on meanwhile. `None`: the namespace does not exist.
    pub fn events(
        &self,
        namespace: &str,
        from_rev: u64,
        max_revs: usize,
        max_bytes: usize,
        mut wanted: impl FnMut(&Event) -> bool,
    ) -> Result<Option<Page>, Fatal> {
        let (db, number, mut page) = {
            let applied = self.applied.read();
            let Some(part) = applied.namespaces.get(namespace) else { return Ok(None) };
            let Head { rev, events_compacted_rev, .. } = applied.head;
            let page = Page { through_rev: rev, compacted_rev: events_compacted_rev, ..Page::default() };
            (applied.db.clone(), part.row.number, page)
        };
        let (newest, mut looked, mut bytes) = (page.through_rev, 0, 0);
        db.scan_events(from_rev, &mut |rev, value| {
            // What was applied since belongs to the next page, and so does what does not fit.
            if rev > newest || looked >= max_revs || bytes >= max_bytes {
                page.through_rev = newest.min(rev - 1);
                return Ok(false);
            }
            looked += 1;
            let stored = history::decode(value)?;
            if stored.namespace == number {
                let events: Vec<Event> = stored.events.into_iter().filter(&mut wanted).collect();
                bytes += events.iter().map(prost::Message::encoded_len).sum::<usize>();
                if !events.is_empty() {
                    page.events.push((rev, events));
                }
            }
            Ok(true)
        })?;
        // What was compacted meanwhile may be missing from the page.
        page.compacted_rev = self.applied.read().head.events_compacted_rev;
        Ok(Some(page))
    }

    /// About how many bytes the event history takes.
    pub fn events_bytes(&self) -> Result<u64, Fatal> {
        let db = self.applied.read().db.clone();
        db.events_bytes()
    }

    /// The first event at or after `from_rev`, of any namespace: its rev and its time.
    pub fn first_event(&self, from_rev: u64) -> Result<Option<(u64, u64)>, Fatal> {
        let db = self.applied.read().db.clone();
        let mut first = None;
        db.scan_events(from_rev, &mut |rev, value| {
            first = history::decode(value)?.events.first().map(|event| (rev, event.at_ms));
            Ok(first.is_none())
        })?;
        Ok(first)
    }

    /// Whether a row of any namespace refers to the chunk.
    pub fn is_chunk_referenced(&self, chunk: &[u8]) -> Result<bool, Fatal> {
        self.read(|whole| {
            for part in whole.namespaces.iter() {
                if blobs::is_referenced(&part.rows(whole.rows), chunk)? {
                    return Ok(true);
                }
            }
            Ok(false)
        })
    }

    /// Chunks that rows refer to, at most `limit`, and where to go on: after the namespace and chunk named.
    pub fn chunks_after(&self, cursor: Option<(u64, [u8; 32])>, limit: usize) -> Result<Vec<(u64, [u8; 32])>, Fatal> {
        self.read(|whole| {
            let mut parts: Vec<&Part> = whole.namespaces.iter().collect();
            parts.sort_by_key(|part| part.row.number);
            let mut chunks = Vec::new();
            for part in parts.into_iter().filter(|part| cursor.is_none_or(|(number, _)| part.row.number >= number)) {
                let after = cursor.filter(|(number, _)| part.row.number == *number).map(|(_, chunk)| chunk);
                let rows = part.rows(whole.rows);
                chunks.extend(
                    blobs::chunks(&rows, after, limit - chunks.len())?.into_iter().map(|c| (part.row.number, c)),
                );
                if chunks.len() >= limit {
                    break;
                }
            }
            Ok(chunks)
        })
    }

    /// Where the state stands.
    pub fn head(&self) -> Head {
        self.applied.read().head.clone()
    }

    /// The directories of the state.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Bytes the state takes on disk and in write buffers.
    pub fn size_bytes(&self) -> u64 {
        self.applied.read().db.size_bytes()
    }

    /// Makes what is applied durable, so that the next start has nothing to apply again.
    pub fn flush(&self) -> Result<(), Fatal> {
        let db = self.applied.read().db.clone();
        db.flush()
    }

    /// A hash over every row but the head, and the rev it belongs to. Apply goes on meanwhile.
    pub fn full_digest(&self) -> Result<(u64, u128), Fatal> {
        let applied = self.applied.read();
        let (rev, db) = (applied.head.rev, applied.db.clone());
        Ok((rev, db.full_digest(Table::Head as u8, || drop(applied))?))
    }

    /// Applies consecutive entries as one write; the answers are per entry.
    pub fn apply(&self, entries: Vec<Applicable>) -> Result<Vec<Vec<Answer>>, Fatal> {
        let mut happened = Vec::new();
        let mut answers = Vec::with_capacity(entries.len());
        {
            let mut applied = self.applied.write();
            let Applied { namespaces, db, head } = &mut *applied;
            let mut txn = Txn::new(&**db, head.digest);
            for entry in entries {
                head.applied = Some(entry.log_id);
                answers.push(match entry.content {
                    Content::Blank => Vec::new(),
                    Content::Membership(bytes) => {
                        head.membership = bytes;
                        Vec::new()
                    }
                    Content::Batch(payload) => apply_batch(namespaces, &mut txn, head, payload, &mut happened)?,
                });
            }
            head.digest = txn.digest();
            let mut writes = txn.into_writes();
            let row = prost::Message::encode_to_vec(&head.to_row());
            writes.rows.insert(Key::table(Table::Head).as_bytes().to_vec(), Some(row.into()));
            db.write(writes)?;
            self.rev.send_replace(head.rev);
        }
        self.announce(happened);
        Ok(answers)
    }

    /// Takes a snapshot of what is applied now and makes it the current one.
    pub fn take_snapshot(&self) -> Result<(SnapshotDir, Head), Fatal> {
        let db = self.applied.read().db.clone();
        let (snapshot, head) = self.layout.take_snapshot(&db)?;
        self.keep(snapshot.clone(), &head)?;
        Ok((snapshot, head))
    }

    /// The newest snapshot, with what it covers.
    pub fn current_snapshot(&self) -> Result<Option<(SnapshotDir, Head)>, Fatal> {
        let snapshot = self.snapshot.lock().clone();
        snapshot.map(|snapshot| snapshot.head().map(|head| (snapshot, head))).transpose()
    }

    /// Replaces the whole state by a received snapshot. A crash anywhere in it leaves the old state or the new one.
    pub fn install_snapshot(&self, snapshot: &SnapshotDir) -> Result<(), Fatal> {
        let covered = snapshot.head()?;
        let kept = self.layout.adopt_snapshot(snapshot.path(), &covered)?;
        let current = self.applied.read().db.clone();
        let (path, name) = self.layout.next_generation(current.path(), kept.path())?;
        let next = open_generation(&path)?;
        self.layout.point_to(&name)?;
        let names: Vec<Arc<str>> = next.namespaces.iter().map(|part| part.name.clone()).collect();
        {
            let mut applied = self.applied.write();
            *applied = next;
            self.rev.send_replace(applied.head.rev);
        }
        current.retire();
        self.keep(kept, &covered)?;
        let replaced = |namespace| Happened { namespace, effect: Effect::StateReplaced };
        self.announce(names.into_iter().map(replaced).collect());
        Ok(())
    }

    /// The newer of two snapshots is the current one: one that was being taken may be done only after a later one was
    /// installed, and the log has been purged up to that.
    fn keep(&self, snapshot: SnapshotDir, head: &Head) -> Result<(), Fatal> {
        let mut current = self.snapshot.lock();
        match current.as_ref() {
            Some(old) if old.path() == snapshot.path() => {}
            Some(old) if index_of(&old.head()?) > index_of(head) => snapshot.retire(),
            _ => {
                if let Some(old) = current.replace(snapshot) {
                    old.retire();
                }
            }
        }
        Ok(())
    }

    fn announce(&self, happened: Vec<Happened>) {
        // Nobody listens during tests and shutdown.
        if !happened.is_empty() && self.happened.send(happened).is_err() {
            tracing::trace!("effects without a listener");
        }
    }
}

fn index_of(head: &Head) -> Option<u64> {
    head.applied.map(|(_, index)| index)
}

fn open_generation(path: &Path) -> Result<Applied, Fatal> {
    let db = StateDb::open(path)?;
    let head = read_head(&db)?;
    let namespaces = Namespaces::rebuild(&db)?;
    Ok(Applied { namespaces, db: Arc::new(db), head })
}
