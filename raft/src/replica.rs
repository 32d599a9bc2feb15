//! The applied state of this node: rooms, rows and head, behind one lock.
//!
//! One writer, the state-machine adapter. Readers see the state exactly as it stood after some entry: apply holds the
//! lock until its rows are written. Deliberately absent: whether a read is fresh enough. That is the reader's question
//! to consensus.

use std::collections::{BTreeSet, VecDeque};
use std::fs;
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
use crate::faults::{Bug, crash_point, planted};
use crate::history;
use crate::state::namespaces::{Namespaces, Part};
use crate::state::{Rooms, blobs};
use crate::storage::keys::{Key, Table};
use crate::storage::rows::Rows;
use crate::storage::snapshot::{Layout, SnapshotDir, read_head};
use crate::storage::space::SpaceRows;
use crate::storage::state_db::StateDb;
use crate::storage::txn::{Txn, Writes};

/// How much is collected of several entries before it is written.
const APPLY_BYTES: usize = 32 << 20;

/// The running digest is remembered about so many revs apart, so many times.
const DIGEST_EVERY: u64 = 1_024;
const DIGESTS_KEPT: usize = 64;

/// How many times its own size the compaction of one table may take for a while.
const COMPACTION_SPREAD: u64 = 4;

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
    digests: Digests,
}

/// The running digest as it was at the newest revs that every replica looks at. Where entries end is the same everywhere,
/// how many of them are written at once is not.
#[derive(Default)]
struct Digests(VecDeque<(u64, u128)>);

impl Digests {
    /// An entry has ended here: the first one at or after a multiple counts.
    fn note(&mut self, rev_before: u64, rev: u64, digest: u128) {
        if rev / DIGEST_EVERY == rev_before / DIGEST_EVERY {
            return;
        }
        if self.0.len() == DIGESTS_KEPT {
            self.0.pop_front();
        }
        self.0.push_back((rev, digest));
    }
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

/// How much of the event history one look goes through, at most. A rev that it has begun it finishes.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Rows: a rev has one in each namespace where it changed something.
    pub rows: usize,
    /// Bytes read, whoever they are about.
    pub read_bytes: usize,
    /// Bytes of the events that pass.
    pub bytes: usize,
}

/// The applied state of this node.
pub struct Replica {
    applied: RwLock<Applied>,
    layout: Layout,
    write_buffer_bytes: u64,
    snapshot: Mutex<Option<SnapshotDir>>,
    taking: Mutex<()>,
    happened: UnboundedSender<Vec<Happened>>,
    rev: watch::Sender<u64>,
}

impl Replica {
    /// Opens the state under `root` and rebuilds every index. Effects of what is applied from now on go to `happened`.
    pub fn open(root: &Path, write_buffer_bytes: u64, happened: UnboundedSender<Vec<Happened>>) -> Result<Self, Fatal> {
        let layout = Layout::open(root)?;
        let applied = open_generation(&layout.current_generation()?, write_buffer_bytes)?;
        let snapshot = Mutex::new(layout.newest_snapshot()?);
        let rev = watch::Sender::new(applied.head.rev);
        Ok(Replica {
            applied: RwLock::new(applied),
            layout,
            write_buffer_bytes,
            snapshot,
            taking: Mutex::default(),
            happened,
            rev,
        })
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

    /// Looks through the rows of one namespace while apply goes on: what is read later may be newer. `None`: it does not exist.
    pub fn look_in<T>(&self, namespace: &str, f: impl FnOnce(&dyn Rows) -> T) -> Option<T> {
        let (db, number) = {
            let applied = self.applied.read();
            (applied.db.clone(), applied.namespaces.get(namespace)?.row.number)
        };
        Some(f(&SpaceRows::new(&*db, number)))
    }

    /// Tells the newest applied rev, and every later one.
    pub fn revs(&self) -> watch::Receiver<u64> {
        self.rev.subscribe()
    }

    /// The event history of one namespace from `from_rev` on: what `wanted` passes, until one of the bounds is reached.
    /// It reads the disk, for as long as the bounds allow. Apply goes on meanwhile. `None`: the namespace does not exist.
    pub fn events(
        &self,
        namespace: &str,
        from_rev: u64,
        bounds: Bounds,
        mut wanted: impl FnMut(&Event) -> bool,
    ) -> Result<Option<Page>, Fatal> {
        let (db, number, mut page) = {
            let applied = self.applied.read();
            let Some(part) = applied.namespaces.get(namespace) else { return Ok(None) };
            let Head { rev, events_compacted_rev, .. } = applied.head;
            let page = Page { through_rev: rev, compacted_rev: events_compacted_rev, ..Page::default() };
            (applied.db.clone(), part.row.number, page)
        };
        let newest = page.through_rev;
        let (mut last, mut rows, mut read_bytes, mut bytes) = (0, 0, 0, 0);
        db.scan_events(from_rev, &mut |rev, value| {
            let is_full = rows >= bounds.rows || read_bytes >= bounds.read_bytes || bytes >= bounds.bytes;
            // What was applied since belongs to the next page, and so does what does not fit. A rev that changed several
            // namespaces is not divided: the page after it would show the part before the cut once more.
            if rev > newest || (is_full && rev != last) {
                page.through_rev = newest.min(rev - 1);
                return Ok(false);
            }
            (last, rows, read_bytes) = (rev, rows + 1, read_bytes + value.len());
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

    /// Gives back the disk space of what was compacted, and says up to where that was.
    pub fn drop_compacted_events(&self) -> Result<u64, Fatal> {
        let (db, through_rev) = {
            let applied = self.applied.read();
            (applied.db.clone(), applied.head.events_compacted_rev)
        };
        // What says that they are gone must not be forgotten in a crash.
        db.flush()?;
        db.drop_event_files(through_rev)?;
        Ok(through_rev)
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

    /// The running digest at about the newest multiples of 1,024 revs that this node has passed since it was started or
    /// given a snapshot, oldest first. Two replicas that have the same rev here must have the same digest with it.
    pub fn digests(&self) -> Vec<(u64, u128)> {
        self.applied.read().digests.0.iter().copied().collect()
    }

    /// The directories of the state.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Bytes the state takes on disk and in write buffers.
    pub fn size_bytes(&self) -> u64 {
        self.applied.read().db.size_bytes()
    }

    /// Bytes in write buffers: what a flush writes, before compression.
    pub fn unflushed_bytes(&self) -> u64 {
        self.applied.read().db.unflushed_bytes()
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
            let Applied { namespaces, db, head, digests } = &mut *applied;
            let mut txn = Txn::new(&**db, head.digest);
            for entry in entries {
                // Between two entries the state is whole: it may be written in as many steps as memory asks for.
                if txn.bytes() > APPLY_BYTES {
                    write(db, txn, head)?;
                    txn = Txn::new(&**db, head.digest);
                }
                let rev_before = head.rev;
                head.applied = Some(entry.log_id);
                answers.push(match entry.content {
                    Content::Blank => Vec::new(),
                    Content::Membership(bytes) => {
                        head.membership = bytes;
                        Vec::new()
                    }
                    Content::Batch(payload) => apply_batch(namespaces, &mut txn, head, payload, &mut happened)?,
                });
                digests.note(rev_before, head.rev, txn.digest());
            }
            write(db, txn, head)?;
            self.rev.send_replace(head.rev);
        }
        self.announce(happened);
        Ok(answers)
    }

    /// Takes a snapshot of what is applied now and makes it the current one.
    pub fn take_snapshot(&self) -> Result<(SnapshotDir, Head), Fatal> {
        let _one_at_a_time = self.taking.lock();
        let db = self.applied.read().db.clone();
        let (snapshot, head) = self.layout.take_snapshot(&db)?;
        self.keep(snapshot.clone(), &head)?;
        Ok((snapshot, head))
    }

    /// Writes the tables anew without what was removed, some at a time, each time followed by a new snapshot: the old one
    /// would hold on to what was replaced. Before each table `has_room` is asked whether so many bytes may be taken
    /// meanwhile; says whether it always was so. Apply goes on.
    pub fn compact(&self, mut has_room: impl FnMut(u64) -> bool) -> Result<bool, Fatal> {
        let db = self.applied.read().db.clone();
        db.flush()?;
        let mut replaced = 0;
        for table in db.tables()? {
            // The keys of one table may be spread over several others.
            let needed = table.bytes.saturating_mul(COMPACTION_SPREAD);
            if !has_room(needed) && replaced > 0 {
                self.take_snapshot()?;
                replaced = 0;
            }
            if !has_room(needed) {
                return Ok(false);
            }
            db.compact(&table)?;
            replaced += table.bytes;
        }
        self.take_snapshot()?;
        Ok(true)
    }

    /// A copy of what is applied now, of links like any snapshot, for whoever carries it elsewhere. It is nobody else's,
    /// and goes with its last handle.
    pub fn checkpoint_for_backup(&self) -> Result<SnapshotDir, Fatal> {
        let db = self.applied.read().db.clone();
        let dir = SnapshotDir::new(self.layout.new_incoming()?);
        dir.retire();
        // RocksDB wants to make the directory itself.
        fs::remove_dir(dir.path())?;
        db.checkpoint(dir.path())?;
        Ok(dir)
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
        crash_point("install.adopted");
        let current = self.applied.read().db.clone();
        let (path, name) = self.layout.next_generation(current.path(), kept.path())?;
        crash_point("install.linked");
        let next = open_generation(&path, self.write_buffer_bytes)?;
        if planted(Bug::SnapshotWithoutTable) {
            let documents = Key::table(Table::Kv);
            let gone = vec![(documents.as_bytes().to_vec(), documents.prefix_end())];
            next.db.write(Writes { ranges_gone: gone, ..Writes::default() })?;
        }
        self.layout.point_to(&name)?;
        crash_point("install.pointed");
        let mut names: BTreeSet<Arc<str>> = next.namespaces.iter().map(|part| part.name.clone()).collect();
        {
            let mut applied = self.applied.write();
            // Whoever listens in a namespace that is gone has to hear of it too.
            names.extend(applied.namespaces.iter().map(|part| part.name.clone()));
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

/// Writes a batch with the head that belongs to it.
fn write(db: &StateDb, txn: Txn<'_>, head: &mut Head) -> Result<(), Fatal> {
    head.digest = txn.digest();
    let mut writes = txn.into_writes();
    let row = prost::Message::encode_to_vec(&head.to_row());
    writes.rows.insert(Key::table(Table::Head).as_bytes().to_vec(), Some(row.into()));
    db.write(writes)
}

fn index_of(head: &Head) -> Option<u64> {
    head.applied.map(|(_, index)| index)
}

fn open_generation(path: &Path, write_buffer_bytes: u64) -> Result<Applied, Fatal> {
    let db = StateDb::open(path, write_buffer_bytes)?;
    let head = read_head(&db)?;
    let namespaces = Namespaces::rebuild(&db)?;
    Ok(Applied { namespaces, db: Arc::new(db), head, digests: Digests::default() })
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use quorate_proto::log::{Batch, Command, Tick, answer, command};
    use quorate_proto::v1::{KvPutRequest, SetNamespaceRequest};
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    use super::*;

    const UNBOUNDED: Bounds = Bounds { rows: usize::MAX, read_bytes: usize::MAX, bytes: usize::MAX };

    fn opened(root: &Path) -> (Replica, UnboundedReceiver<Vec<Happened>>) {
        let (sender, happened) = unbounded_channel();
        (Replica::open(root, 4 << 20, sender).unwrap(), happened)
    }

    /// Applies one command as an entry of its own.
    fn apply(replica: &Replica, now_ms: u64, namespace: &str, body: command::Body) {
        let index = replica.head().applied.map_or(1, |(_, index)| index + 1);
        let command = Command { namespace: namespace.to_owned(), body: Some(body), ..Command::default() };
        let batch = Batch { now_ms, entropy: 0, commands: vec![command.encode_to_vec().into()] };
        let entry = Applicable { log_id: (1, index), content: Content::Batch(batch.encode_to_vec().into()) };
        let answers = replica.apply(vec![entry]).unwrap();
        assert!(!matches!(answers[0][0].body, Some(answer::Body::Rejected(_))), "{answers:?}");
    }

    fn create(replica: &Replica, namespace: &str) {
        let request = SetNamespaceRequest { name: namespace.to_owned(), ..SetNamespaceRequest::default() };
        apply(replica, 0, "", command::Body::SetNamespace(request));
    }

    /// A document that is there for a second.
    fn put(replica: &Replica, namespace: &str, key: &str) {
        let request = KvPutRequest { key: key.to_owned(), ttl_ms: 1_000, ..KvPutRequest::default() };
        apply(replica, 0, namespace, command::Body::KvPut(request));
    }

    /// The namespace at rev 1, a document in each at revs 2 and 3, the end of both at rev 4.
    fn two_namespaces(root: &Path) -> Replica {
        let (replica, _) = opened(root);
        create(&replica, "other");
        put(&replica, "default", "a");
        put(&replica, "other", "b");
        apply(&replica, 5_000, "", command::Body::Tick(Tick {}));
        replica
    }

    #[test]
    fn a_rev_of_several_namespaces_is_in_one_page() {
        let dir = tempfile::tempdir().unwrap();
        let replica = two_namespaces(dir.path());
        for (namespace, revs) in [("default", [2, 4]), ("other", [3, 4])] {
            let (mut next, mut seen) = (1, Vec::new());
            while next <= 4 {
                let bounds = Bounds { rows: 1, ..UNBOUNDED };
                let page = replica.events(namespace, next, bounds, |_| true).unwrap().unwrap();
                assert!(page.through_rev >= next, "no page is without progress");
                seen.extend(page.events.into_iter().map(|(rev, _)| rev));
                next = page.through_rev + 1;
            }
            assert_eq!(seen, revs, "{namespace}");
        }
    }

    #[test]
    fn digests_are_those_of_revs_and_not_of_writes() {
        let revs = |digests: &Digests| digests.0.iter().map(|(rev, _)| *rev).collect::<Vec<_>>();
        let mut digests = Digests::default();
        for (before, rev) in [(0, 1_023), (1_023, 1_023), (1_023, 1_030), (1_030, 2_047), (2_047, 5_000)] {
            digests.note(before, rev, 0);
        }
        assert_eq!(revs(&digests), [1_030, 5_000]);
        (5..100).for_each(|at| digests.note(at * 1_024 - 1, at * 1_024, 0));
        assert_eq!(revs(&digests), (36..100).map(|at| at * 1_024).collect::<Vec<_>>(), "the oldest go");
    }

    #[test]
    fn replicas_that_write_differently_agree_on_digests() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (one, two) = (opened(one.path()).0, opened(two.path()).0);
        let entries = || {
            (1..=30_u64).map(|index| {
                let key = |n: u32| KvPutRequest { key: format!("{n}"), ..KvPutRequest::default() };
                let command = |n: u32| Command { body: Some(command::Body::KvPut(key(n))), ..Command::default() };
                let commands = (0..100).map(|n| command(n).encode_to_vec().into()).collect();
                let batch = Batch { now_ms: 0, entropy: 0, commands };
                Applicable { log_id: (1, index), content: Content::Batch(batch.encode_to_vec().into()) }
            })
        };
        one.apply(entries().collect()).unwrap();
        entries().for_each(|entry| drop(two.apply(vec![entry]).unwrap()));
        let revs: Vec<u64> = one.digests().iter().map(|(rev, _)| *rev).collect();
        assert_eq!(revs, [1_100, 2_100]);
        assert_eq!(one.digests(), two.digests());
    }

    #[test]
    fn a_checkpoint_stands_still_and_goes_with_its_last_handle() {
        let dir = tempfile::tempdir().unwrap();
        let replica = two_namespaces(dir.path());
        let checkpoint = replica.checkpoint_for_backup().unwrap();
        put(&replica, "default", "later");
        assert_eq!((checkpoint.head().unwrap().rev, replica.head().rev), (4, 5));
        let path = checkpoint.path().to_owned();
        let other = checkpoint.clone();
        drop(checkpoint);
        assert!(path.exists());
        drop(other);
        assert!(!path.exists());
    }

    #[test]
    fn what_does_not_pass_is_bounded_too() {
        let dir = tempfile::tempdir().unwrap();
        let replica = two_namespaces(dir.path());
        let look = |bounds| {
            let page = replica.events("default", 1, bounds, |_| false).unwrap().unwrap();
            assert!(page.events.is_empty());
            page.through_rev
        };
        assert_eq!(look(UNBOUNDED), 4);
        assert_eq!(look(Bounds { bytes: 1, ..UNBOUNDED }), 4, "nothing passes");
        assert_eq!(look(Bounds { read_bytes: 1, ..UNBOUNDED }), 2);
        assert_eq!(look(Bounds { rows: 2, ..UNBOUNDED }), 3);
        assert!(replica.events("nowhere", 1, UNBOUNDED, |_| true).unwrap().is_none());
    }

    #[test]
    fn a_replaced_state_is_told_where_it_was_and_where_it_is() {
        let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (replica, mut happened) = opened(ours.path());
        create(&replica, "gone");
        let (other, _) = opened(theirs.path());
        create(&other, "new");
        create(&other, "newer");
        let (snapshot, _) = other.take_snapshot().unwrap();
        while happened.try_recv().is_ok() {}
        replica.install_snapshot(&snapshot).unwrap();
        let told = happened.try_recv().unwrap();
        assert!(told.iter().all(|happened| happened.effect == Effect::StateReplaced), "{told:?}");
        let names: Vec<&str> = told.iter().map(|happened| &*happened.namespace).collect();
        assert_eq!(names, ["default", "gone", "new", "newer"]);
    }
}
