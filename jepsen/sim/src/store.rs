//! openraft's log over [`Disk`], with production's rules and production's codec.
//!
//! Votes, appends, truncations and purges share one queue. The commit point is written without waiting for it. A vote
//! and a truncation are awaited. An entry can be read before `append` returns.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use futures::channel::oneshot;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use quorate_raft::consensus::types::{Entry, LogId, Vote};
use quorate_raft::consensus::wire;

use crate::disk::{Disk, Done, Op, Stored, applied_index};
use crate::invariants::hash_of;
use crate::types::SimConfig;
use crate::world::World;

/// The log of one process.
#[derive(Clone)]
pub(crate) struct Store {
    world: Arc<World>,
    disk: Disk,
    node: u64,
    epoch: u64,
}

impl Store {
    /// The log of the process that runs now.
    pub(crate) fn new(world: Arc<World>, disk: Disk, node: u64) -> Self {
        let epoch = disk.epoch();
        Store { world, disk, node, epoch }
    }

    /// Writes and waits until it is durable.
    async fn write(&self, op: Op) -> io::Result<()> {
        let (done, written) = oneshot::channel();
        // Whoever waits goes away only with the whole node.
        let done: Done = Box::new(move |result| drop(done.send(result)));
        self.disk.write(self.epoch, op, Some(done))?;
        written.await.unwrap_or_else(|_| Err(io::Error::other("this process has crashed")))
    }

    fn check_appended(&self, entries: &[Stored]) {
        let Some(first) = entries.first() else { return };
        let before = first.id.index.checked_sub(1);
        let mut previous = before.and_then(|index| self.disk.peek(|seen| seen.term_at(index)));
        for entry in entries {
            let appended = self.world.invariants.lock().appended(entry.id, previous, hash_of(&entry.bytes));
            self.world.check(appended);
            previous = Some(entry.id.leader_id.term);
        }
    }

    fn check_purge(&self, upto: &LogId) {
        let (state, _) = self.disk.saved();
        if applied_index(&state) < Some(upto.index) {
            self.world.violated(format!(
                "node {} purges its log up to {}, and its durable state ends at {:?}",
                self.node,
                upto.index,
                applied_index(&state)
            ));
        }
    }
}

impl RaftLogReader<SimConfig> for Store {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let found: Vec<Stored> = self.disk.read(self.epoch, |seen| {
            let (start, end) = (range.start_bound().cloned(), range.end_bound().cloned());
            let is_empty = match (start, end) {
                (Bound::Included(start), Bound::Excluded(end)) => start >= end,
                (Bound::Included(start), Bound::Included(end)) => start > end,
                _ => false,
            };
            if is_empty { Vec::new() } else { seen.log.range((start, end)).map(|(_, stored)| stored.clone()).collect() }
        })?;
        found.into_iter().map(|stored| Ok(wire::decode_entry(stored.bytes)?)).collect()
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        self.disk.read(self.epoch, |seen| seen.vote)
    }
}

impl RaftLogStorage<SimConfig> for Store {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<SimConfig>, io::Error> {
        self.disk.read(self.epoch, |seen| LogState { last_purged_log_id: seen.purged, last_log_id: seen.last() })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.write(Op::Vote(*vote)).await?;
        let saved = self.world.invariants.lock().voted(self.node, vote);
        self.world.check(saved);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        match committed {
            Some(id) => self.disk.write(self.epoch, Op::Committed(id), None),
            None => Ok(()),
        }
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        self.disk.read(self.epoch, |seen| seen.committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<SimConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Stored> =
            entries.into_iter().map(|entry| Stored { id: entry.log_id, bytes: wire::encode_entry(&entry) }).collect();
        self.check_appended(&entries);
        let done: Done = Box::new(move |result| callback.io_completed(result));
        self.disk.write(self.epoch, Op::Append(entries), Some(done))
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        self.write(Op::Truncate(last_log_id.map_or(0, |id| id.index.saturating_add(1)))).await
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        if self.disk.read(self.epoch, |seen| seen.purged.is_some_and(|purged| purged >= log_id))? {
            return Ok(());
        }
        self.check_purge(&log_id);
        self.write(Op::Purge(log_id)).await
    }
}
