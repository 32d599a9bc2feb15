//! openraft's log over [`LogDb`].
//!
//! Appends, votes, truncations and purges share the log's one queue, so they reach the disk in the order openraft
//! issued them, and completions are reported in that order. The commit point is written without a sync of its own: it
//! rides on the next append, and a lost one costs only some re-reading at start.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, Range, RangeBounds};
use std::path::Path;
use std::sync::Arc;

use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use parking_lot::Mutex;
use prost::Message;
use quorate_proto::peer as pb;
use tokio::sync::oneshot;

use super::types::{Entry, LogId, TypeConfig, Vote};
use super::wire;
use crate::error::Fatal;
use crate::storage::log_db::{Done, LogDb};

const VOTE: &str = "vote";
const COMMITTED: &str = "committed";
const PURGED: &str = "purged";

/// One replication read is cut at this size.
const READ_BYTES: usize = 2 << 20;

/// The log of this node, as openraft wants it.
#[derive(Clone)]
pub struct LogStorage {
    db: LogDb,
    meta: Arc<Mutex<Meta>>,
}

#[derive(Default, Clone)]
struct Meta {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
}

impl LogStorage {
    /// Opens or creates the log in `path`.
    pub fn open(path: &Path) -> Result<Self, Fatal> {
        let db = LogDb::open(path, |meta| {
            let purged = meta(PURGED).and_then(|bytes| pb::LogId::decode(bytes).ok());
            purged.map_or(0, |id| id.index + 1)
        })?;
        let decode = |key| -> Result<Option<LogId>, Fatal> {
            Ok(db.meta(key)?.map(pb::LogId::decode).transpose()?.map(|id| wire::read_log_id(&id)))
        };
        let meta = Meta {
            vote: db.meta(VOTE)?.map(pb::Vote::decode).transpose()?.map(|vote| wire::read_vote(&vote)),
            committed: decode(COMMITTED)?,
            purged: decode(PURGED)?,
        };
        Ok(LogStorage { db, meta: Arc::new(Mutex::new(meta)) })
    }

    /// Bytes the log takes on disk and in write buffers.
    pub fn size_bytes(&self) -> u64 {
        self.db.size_bytes()
    }

    fn read(&self, range: Range<u64>, max_bytes: usize) -> Result<Vec<Entry>, io::Error> {
        let found = self.db.read(range, max_bytes)?;
        let mut entries: Vec<Entry> = Vec::with_capacity(found.len());
        for (index, bytes) in found {
            let entry = wire::decode_entry(bytes)?;
            let follows = entries.last().is_none_or(|last| last.log_id.index + 1 == index);
            if entry.log_id.index != index || !follows {
                return Err(Fatal::Corrupt(format!("the log has a hole or a wrong entry at {index}")).into());
            }
            entries.push(entry);
        }
        Ok(entries)
    }
}

/// A completion, and the future that waits for it.
fn waiter() -> (Done, impl Future<Output = Result<(), io::Error>>) {
    let (tx, rx) = oneshot::channel();
    let done: Done = Box::new(move |result| {
        // The receiver goes away only with the whole node.
        if tx.send(result).is_err() {
            tracing::trace!("nobody waits for this write");
        }
    });
    (done, async move { rx.await.unwrap_or_else(|_| Err(io::Error::other("the log writer is gone"))) })
}

fn to_range(bounds: &impl RangeBounds<u64>) -> Range<u64> {
    let start = match bounds.start_bound() {
        Bound::Included(i) => *i,
        Bound::Excluded(i) => i.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match bounds.end_bound() {
        Bound::Included(i) => i.saturating_add(1),
        Bound::Excluded(i) => *i,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}

impl RaftLogReader<TypeConfig> for LogStorage {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        self.read(to_range(&range), usize::MAX)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.meta.lock().vote)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        self.read(start..end, READ_BYTES)
    }
}

impl RaftLogStorage<TypeConfig> for LogStorage {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let purged = self.meta.lock().purged;
        let last = match self.db.last()? {
            Some((_, bytes)) => Some(wire::decode_entry(bytes)?.log_id),
            None => None,
        };
        Ok(LogState { last_purged_log_id: purged, last_log_id: last.or(purged) })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let (done, written) = waiter();
        self.db.put_meta(VOTE, wire::vote(vote).encode_to_vec().into(), Some(done));
        written.await?;
        self.meta.lock().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        if let Some(id) = committed {
            self.db.put_meta(COMMITTED, wire::log_id(&id).encode_to_vec().into(), None);
        }
        self.meta.lock().committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.meta.lock().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries = entries.into_iter().map(|entry| (entry.log_id.index, wire::encode_entry(&entry))).collect();
        self.db.append(entries, Box::new(move |result| callback.io_completed(result)));
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        let (done, written) = waiter();
        self.db.truncate(last_log_id.map_or(0, |id| id.index + 1), done)?;
        written.await
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        {
            let mut meta = self.meta.lock();
            if meta.purged.is_some_and(|purged| purged >= log_id) {
                return Ok(());
            }
            meta.purged = Some(log_id);
        }
        let (done, written) = waiter();
        self.db.purge(log_id.index + 1, (PURGED, wire::log_id(&log_id).encode_to_vec().into()), done);
        written.await
    }
}
