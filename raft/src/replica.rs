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
use tokio::sync::mpsc::UnboundedSender;

use crate::apply::{Head, apply_batch};
use crate::effect::Effect;
use crate::error::Fatal;
use crate::state::Rooms;
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
    rooms: Rooms,
    db: Arc<StateDb>,
    head: Head,
}

/// What a reader sees: one point of the history.
pub struct View<'a> {
    /// The indexes.
    pub rooms: &'a Rooms,
    /// The rows.
    pub rows: &'a dyn Rows,
    /// Where it stands.
    pub head: &'a Head,
}

/// The applied state of this node.
pub struct Replica {
    applied: RwLock<Applied>,
    layout: Layout,
    snapshot: Mutex<Option<SnapshotDir>>,
    effects: UnboundedSender<Vec<Effect>>,
}

impl Replica {
    /// Opens the state under `root` and rebuilds every index. Effects of what is applied from now on go to `effects`.
    pub fn open(root: &Path, effects: UnboundedSender<Vec<Effect>>) -> Result<Self, Fatal> {
        let layout = Layout::open(root)?;
        let applied = open_generation(&layout.current_generation()?)?;
        let snapshot = layout.newest_snapshot()?;
        Ok(Replica { applied: RwLock::new(applied), layout, snapshot: Mutex::new(snapshot), effects })
    }

    /// Reads under the lock; keep it short.
    pub fn read<T>(&self, f: impl FnOnce(View<'_>) -> T) -> T {
        let applied = self.applied.read();
        f(View { rooms: &applied.rooms, rows: &*applied.db, head: &applied.head })
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
        let mut effects = Vec::new();
        let mut answers = Vec::with_capacity(entries.len());
        {
            let mut applied = self.applied.write();
            let Applied { rooms, db, head } = &mut *applied;
            let mut txn = Txn::new(&**db, head.digest);
            for entry in entries {
                head.applied = Some(entry.log_id);
                answers.push(match entry.content {
                    Content::Blank => Vec::new(),
                    Content::Membership(bytes) => {
                        head.membership = bytes;
                        Vec::new()
                    }
                    Content::Batch(payload) => apply_batch(rooms, &mut txn, head, payload, &mut effects)?,
                });
            }
            head.digest = txn.digest();
            let mut writes = txn.into_writes();
            let row = prost::Message::encode_to_vec(&head.to_row());
            writes.insert(Key::table(Table::Head).as_bytes().to_vec(), Some(row.into()));
            db.write(writes)?;
        }
        self.announce(effects);
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
        *self.applied.write() = next;
        current.retire();
        self.keep(kept, &covered)?;
        self.announce(vec![Effect::StateReplaced]);
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

    fn announce(&self, effects: Vec<Effect>) {
        // Nobody listens during tests and shutdown.
        if !effects.is_empty() && self.effects.send(effects).is_err() {
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
    let rooms = Rooms::rebuild(&db)?;
    Ok(Applied { rooms, db: Arc::new(db), head })
}
