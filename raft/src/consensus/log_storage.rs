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

use bytes::Bytes;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{EntryPayload, OptionalSend, RaftLogReader};
use parking_lot::Mutex;
use prost::Message;
use quorate_proto::peer as pb;
use tokio::sync::oneshot;

use super::state_machine::applicable;
use super::types::{Entry, LogId, TypeConfig, Vote};
use super::wire;
use crate::error::Fatal;
use crate::replica::Replica;
use crate::storage::log_db::{Done, Durable, LogDb};
use crate::storage::state_db::SMALL_BUFFER_BYTES;

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
    pub fn open(path: &Path, write_buffer_bytes: u64) -> Result<Self, Fatal> {
        let db = LogDb::open(path, write_buffer_bytes, |meta| {
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

    /// Makes a log in `path`, which does not exist, that begins after the entry `upto` (term and index), of a node that
    /// voted for itself in that term: whatever it writes comes after everything that the state holds.
    pub fn begin(path: &Path, node_id: u64, upto: (u64, u64)) -> Result<(), Fatal> {
        let (term, index) = upto;
        let upto: Bytes = pb::LogId { term, index }.encode_to_vec().into();
        let vote = pb::Vote { term, node_id, committed: false };
        let db = LogDb::open(path, SMALL_BUFFER_BYTES, |_| 0)?;
        db.put_meta(PURGED, upto.clone(), None);
        db.put_meta(COMMITTED, upto, None);
        // The last write is synced, and with it those before.
        let (done, written) = std::sync::mpsc::channel();
        let done: Done = Box::new(move |result| drop(done.send(result)));
        db.put_meta(VOTE, vote.encode_to_vec().into(), Some(done));
        Ok(written.recv().map_err(io::Error::other)??)
    }

    /// How far the log is durable.
    pub fn durable(&self) -> Durable {
        self.db.durable()
    }

    /// Bytes in write buffers.
    pub fn unflushed_bytes(&self) -> u64 {
        self.db.unflushed_bytes()
    }

    /// Gives back the space of what was purged.
    pub fn compact(&self) -> Result<(), Fatal> {
        self.db.compact()
    }

    /// Bytes the log takes on disk and in write buffers.
    pub fn size_bytes(&self) -> u64 {
        self.db.size_bytes()
    }

    /// How long synced writes of the last 5 s took, in microseconds: the median, and all but one in a hundred. Zeros:
    /// there were none.
    pub fn sync_times(&self) -> (u64, u64) {
        self.db.sync_times()
    }

    /// Whether this log, which acknowledged everything up to `index` to the leader of `term`, has less, although no later
    /// leader can have taken it back. The vote is looked at last: it is written before anything is taken back.
    pub(super) fn has_lost(&self, term: u64, index: u64) -> Result<bool, Fatal> {
        let last = self.last_index()?;
        let voted = self.meta.lock().vote.map(|vote| vote.leader_id.term);
        Ok(last < Some(index) && voted == Some(term))
    }

    fn last_index(&self) -> Result<Option<u64>, Fatal> {
        let last = self.db.last()?.map(|(index, _)| index);
        Ok(last.max(self.meta.lock().purged.map(|purged| purged.index)))
    }

    /// The log holds everything that the state has applied and that was known to be committed, unless a snapshot, put in
    /// force just before a crash, covers it. Otherwise it has lost entries: others may count on them.
    pub fn check(&self, replica: &Replica) -> Result<(), Fatal> {
        let applied = replica.head().applied.map(|(_, index)| index);
        let snapshot = replica.current_snapshot()?.and_then(|(_, head)| head.applied).map(|(_, index)| index);
        let last = self.last_index()?.max(snapshot);
        let committed = self.meta.lock().committed.map(|committed| committed.index);
        for (what, index) in [("applied", applied), ("committed", committed)] {
            if let Some(index) = index.filter(|index| last < Some(*index)) {
                let last = last.map_or_else(|| "is empty".to_owned(), |last| format!("ends at {last}"));
                return Err(Fatal::Corrupt(format!(
                    "the log {last}, but entry {index} was {what}: it has lost entries"
                )));
            }
        }
        Ok(())
    }

    /// Applies every entry after those that the state has, for a cluster of one, where an entry is committed once it is
    /// durable. `None`, and nothing was applied: there is more than one voter, and only they together know.
    pub fn replay_alone(&self, replica: &Replica, node_id: u64) -> Result<Option<u64>, Fatal> {
        let head = replica.head();
        if wire::decode_stored_membership(head.membership)?.membership().voter_ids().any(|id| id != node_id) {
            return Ok(None);
        }
        let first = head.applied.map_or(0, |(_, index)| index + 1);
        let mut alone = true;
        self.visit(first, &mut |entries| {
            let of_others = |entry: &Entry| match &entry.payload {
                EntryPayload::Membership(found) => found.voter_ids().any(|id| id != node_id),
                EntryPayload::Blank | EntryPayload::Normal(_) => false,
            };
            alone &= !entries.iter().any(of_others);
            Ok(())
        })?;
        if !alone {
            return Ok(None);
        }
        let mut count = 0;
        self.visit(first, &mut |entries| {
            count += entries.len() as u64;
            replica.apply(entries.into_iter().map(|entry| applicable(&entry.log_id, entry.payload)).collect())?;
            Ok(())
        })?;
        Ok(Some(count))
    }

    /// Every entry from `first` on, some at a time.
    fn visit(&self, first: u64, visit: &mut dyn FnMut(Vec<Entry>) -> Result<(), Fatal>) -> Result<(), Fatal> {
        let mut next = first;
        loop {
            let entries = self.read(next..u64::MAX, READ_BYTES)?;
            let (Some(begin), Some(end)) = (entries.first(), entries.last()) else { break };
            if begin.log_id.index != next {
                return Err(Fatal::Corrupt(format!("the log lacks entry {next}, which was not applied yet")));
            }
            next = end.log_id.index + 1;
            visit(entries)?;
        }
        match self.last_index()? {
            Some(last) if last >= next => Err(Fatal::Corrupt(format!("the log lacks entry {next}"))),
            _ => Ok(()),
        }
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
