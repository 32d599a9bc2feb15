//! The log: entries by index, and a few small facts beside them (vote, purge point), in RocksDB.
//!
//! One thread writes. It takes everything that waits, writes it as one batch with one fsync, then reports each
//! completion in order: group commit. Votes, appends, truncations and purges pass through the same queue, so none can
//! overtake another.
//!
//! The newest entries stay in memory, visible before `append` returns: replication and apply read the disk only when
//! they are far behind. An entry leaves memory only after it is on disk.
//!
//! Invariant: after the first failed write nothing more is written and every waiter gets the error. Nobody retries an
//! fsync: what the disk holds is unknown then, and the process stops.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use rocksdb::{
    ColumnFamilyDescriptor, DB, DBCompressionType, DBRecoveryMode, Direction, FlushOptions, IteratorMode, Options,
    ReadOptions, WriteBatch, WriteOptions,
};
use tokio::sync::watch;

use crate::error::Fatal;
use crate::faults::{Bug, crash_point, planted};
use crate::storage::sizes;

const ENTRIES: &str = "entries";
const META: &str = "meta";
const QUEUE_LEN: usize = 4_096;
/// Beyond this much, entries that are on disk leave memory.
const CACHE_BYTES: usize = 64 << 20;
/// One group is cut here, so that a single fsync stays short.
const GROUP_BYTES: usize = 8 << 20;
/// Fewer writes than these say nothing about how fast the disk is.
const FEWEST_SYNCS: usize = 8;
/// How far back [`LogDb::sync_times`] looks, and how many writes it remembers at most.
const SYNC_WINDOW: Duration = Duration::from_secs(5);
const SYNCS_KEPT: usize = 4_096;
/// A synced write that takes longer counts before it has ended.
const HANGS: Duration = Duration::from_secs(1);

/// Called once, when the write is durable or has failed.
pub type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

enum Op {
    Append { entries: Vec<(u64, Bytes)>, done: Done },
    Meta { key: &'static str, value: Bytes, sync: bool, done: Option<Done> },
    Truncate { from: u64, to: u64, done: Done },
    Purge { first_kept: u64, meta: (&'static str, Bytes), done: Done },
}

#[derive(Default)]
struct Cache {
    /// Consecutive entries up to the last one.
    tail: VecDeque<(u64, Bytes)>,
    bytes: usize,
    /// Everything up to here is on disk.
    flushed: Option<u64>,
    /// The smallest index that was not purged.
    first: u64,
}

struct Shared {
    db: DB,
    cache: Mutex<Cache>,
    failed: Mutex<Option<String>>,
    /// When the newest synced writes ended, and how long each took, in microseconds.
    syncs: Mutex<VecDeque<(Instant, u64)>>,
    /// When the synced write began that is under way.
    syncing: Mutex<Option<Instant>>,
    /// Every entry below this one is on disk; `None` once the log has failed.
    durable: watch::Sender<Option<u64>>,
}

/// How far the log is durable, for whoever must not be ahead of it.
#[derive(Clone, Debug)]
pub struct Durable(watch::Receiver<Option<u64>>);

impl Durable {
    /// Waits until the entry is on disk.
    pub async fn reach(&mut self, index: u64) -> io::Result<()> {
        let reached = self.0.wait_for(|end| end.is_none_or(|end| end > index)).await;
        match reached.map(|end| *end) {
            Ok(Some(_)) => Ok(()),
            Ok(None) | Err(_) => Err(io::Error::other("the log has failed")),
        }
    }
}

/// The log of one node. Cheap to clone; the last handle stops the writer.
#[derive(Clone)]
pub struct LogDb {
    shared: Arc<Shared>,
    writer: Arc<Writer>,
}

struct Writer {
    queue: Option<SyncSender<Op>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.queue.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the log writer panicked");
        }
    }
}

impl LogDb {
    /// Opens or creates the log in `path`. A torn last write, never acknowledged, is dropped; damage before it refuses
    /// to open. `first` is the smallest index not purged.
    pub fn open(
        path: &Path,
        write_buffer_bytes: u64,
        first: impl FnOnce(&dyn Fn(&str) -> Option<Bytes>) -> u64,
    ) -> Result<Self, Fatal> {
        let (db_options, cf_options) = options(write_buffer_bytes);
        let families = [ENTRIES, META].map(|name| ColumnFamilyDescriptor::new(name, cf_options.clone()));
        let db = DB::open_cf_descriptors(&db_options, path, families)?;
        let meta = |key: &str| cf(&db, META).ok().and_then(|m| db.get_cf(m, key).ok().flatten()).map(Bytes::from);
        let first = first(&meta);
        let cache = Mutex::new(Cache { first, ..Cache::default() });
        let on_disk = last_on_disk(&db)?.map_or(first, |(index, _)| first.max(index + 1));
        let (failed, syncs, syncing) = (Mutex::default(), Mutex::default(), Mutex::default());
        let durable = watch::Sender::new(Some(on_disk));
        let shared = Arc::new(Shared { db, cache, failed, syncs, syncing, durable });
        let (queue, jobs) = sync_channel(QUEUE_LEN);
        let thread = std::thread::Builder::new().name("log-writer".to_owned()).spawn({
            let shared = shared.clone();
            move || write_loop(&shared, &jobs)
        })?;
        Ok(LogDb { shared, writer: Arc::new(Writer { queue: Some(queue), thread: Some(thread) }) })
    }

    /// How far the log is durable.
    pub fn durable(&self) -> Durable {
        Durable(self.shared.durable.subscribe())
    }

    /// A fact beside the log, as last written to disk.
    pub fn meta(&self, key: &str) -> Result<Option<Bytes>, Fatal> {
        Ok(self.shared.db.get_cf(cf(&self.shared.db, META)?, key)?.map(Bytes::from))
    }

    /// Writes a fact. With `done`, synced and reported; without, it rides on the next sync.
    pub fn put_meta(&self, key: &'static str, value: Bytes, done: Option<Done>) {
        self.send(Op::Meta { key, value, sync: done.is_some(), done });
    }

    /// Appends consecutive entries; readable when this returns, durable when `done` is called.
    pub fn append(&self, entries: Vec<(u64, Bytes)>, done: Done) {
        {
            let mut cache = self.shared.cache.lock();
            for (index, bytes) in &entries {
                cache.bytes += bytes.len();
                cache.tail.push_back((*index, bytes.clone()));
            }
        }
        if planted(Bug::AckBeforeWrite) {
            move_mark(&self.shared, |end| end.max(entries.last().map_or(0, |(last, _)| last + 1)));
            done(Ok(()));
            return self.send(Op::Append { entries, done: Box::new(|_| {}) });
        }
        self.send(Op::Append { entries, done });
    }

    /// Removes every entry from `from` on, to the end.
    pub fn truncate(&self, from: u64, done: Done) -> Result<(), Fatal> {
        let Some((last, _)) = self.last()? else {
            done(Ok(()));
            return Ok(());
        };
        {
            let mut cache = self.shared.cache.lock();
            while cache.tail.back().is_some_and(|(index, _)| *index >= from) {
                if let Some((_, bytes)) = cache.tail.pop_back() {
                    cache.bytes -= bytes.len();
                }
            }
        }
        self.send(Op::Truncate { from, to: last, done });
        Ok(())
    }

    /// Removes every entry below `first_kept`, and writes the fact that says so in the same batch.
    pub fn purge(&self, first_kept: u64, meta: (&'static str, Bytes), done: Done) {
        {
            let mut cache = self.shared.cache.lock();
            cache.first = cache.first.max(first_kept);
            while cache.tail.front().is_some_and(|(index, _)| *index < first_kept) {
                if let Some((_, bytes)) = cache.tail.pop_front() {
                    cache.bytes -= bytes.len();
                }
            }
        }
        self.send(Op::Purge { first_kept, meta, done });
    }

    /// The last entry, if the log holds any.
    pub fn last(&self) -> Result<Option<(u64, Bytes)>, Fatal> {
        let first = {
            let cache = self.shared.cache.lock();
            if let Some(last) = cache.tail.back() {
                return Ok(Some(last.clone()));
            }
            cache.first
        };
        Ok(last_on_disk(&self.shared.db)?.filter(|(index, _)| *index >= first))
    }

    /// The entries of `range` that the log holds, in order, stopping after about `max_bytes` (but never before one).
    pub fn read(&self, range: Range<u64>, max_bytes: usize) -> Result<Vec<(u64, Bytes)>, Fatal> {
        // Memory first, under one lock: what it does not hold below its first entry is on disk.
        let (cached, disk_end, first) = {
            let cache = self.shared.cache.lock();
            let tail_first = cache.tail.front().map_or(u64::MAX, |(index, _)| *index);
            let skip = range.start.saturating_sub(tail_first) as usize;
            let start_in_tail = range.start.max(tail_first);
            let take = range.end.saturating_sub(start_in_tail) as usize;
            let cached: Vec<_> = if tail_first == u64::MAX {
                Vec::new()
            } else {
                cache.tail.iter().skip(skip).take(take).cloned().collect()
            };
            (cached, range.end.min(tail_first), cache.first)
        };
        let mut found = Vec::new();
        let mut bytes = 0;
        if range.start < disk_end {
            bytes = self.read_disk(range.start.max(first)..disk_end, max_bytes, &mut found)?;
        }
        for (index, value) in cached {
            if bytes >= max_bytes && !found.is_empty() {
                break;
            }
            bytes += value.len();
            found.push((index, value));
        }
        Ok(found)
    }

    fn read_disk(&self, range: Range<u64>, max: usize, found: &mut Vec<(u64, Bytes)>) -> Result<usize, Fatal> {
        let db = &self.shared.db;
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(range.end.to_be_bytes());
        let start = range.start.to_be_bytes();
        let from = IteratorMode::From(&start, Direction::Forward);
        let mut bytes = 0;
        for item in db.iterator_cf_opt(cf(db, ENTRIES)?, options, from) {
            let (key, value) = item?;
            bytes += value.len();
            found.push((decode_index(&key)?, Bytes::from(value)));
            if bytes >= max {
                break;
            }
        }
        Ok(bytes)
    }

    /// Bytes on disk and in write buffers, as RocksDB estimates them.
    pub fn size_bytes(&self) -> u64 {
        let db = &self.shared.db;
        sizes::sum(db, cf(db, ENTRIES), &sizes::ALL)
    }

    /// How long synced writes of the last seconds took, in microseconds: half of them at most the first number, all but
    /// one in a hundred at most the second. Zeros: there were none.
    pub fn sync_times(&self) -> (u64, u64) {
        let now = now();
        // A disk that hangs ends no write, and is as slow as the one that it has not ended.
        let hangs = self.shared.syncing.lock().map(|began| now.saturating_duration_since(began));
        if let Some(hangs) = hangs.filter(|hangs| *hangs >= HANGS) {
            let micros = u64::try_from(hangs.as_micros()).unwrap_or(u64::MAX);
            return (micros, micros);
        }
        let syncs = self.shared.syncs.lock();
        let recent = syncs.iter().filter(|(ended, _)| now.saturating_duration_since(*ended) <= SYNC_WINDOW);
        let mut times: Vec<u64> = recent.map(|(_, micros)| *micros).collect();
        drop(syncs);
        // Few writes say more about what else the disk did than about the disk.
        if times.len() < FEWEST_SYNCS {
            return (0, 0);
        }
        times.sort_unstable();
        (percentile(&times, 50), percentile(&times, 99))
    }

    /// Bytes in write buffers: they are on disk once, and twice while they are flushed.
    pub fn unflushed_bytes(&self) -> u64 {
        let db = &self.shared.db;
        sizes::sum(db, [cf(db, ENTRIES), cf(db, META)].into_iter().flatten(), &sizes::UNFLUSHED)
    }

    /// Gives back the space of what was purged.
    pub fn compact(&self) -> Result<(), Fatal> {
        let db = &self.shared.db;
        let families = [cf(db, ENTRIES)?, cf(db, META)?];
        db.flush_cfs_opt(&families, &FlushOptions::default())?;
        for family in families {
            db.compact_range_cf::<&[u8], &[u8]>(family, None, None);
        }
        Ok(())
    }

    fn send(&self, op: Op) {
        let Some(queue) = &self.writer.queue else { return };
        // A full queue means the disk is far behind: waiting here is the back-pressure. It never holds a lock.
        match queue.try_send(op) {
            Ok(()) => {}
            Err(TrySendError::Full(op)) => {
                if queue.send(op).is_err() {
                    tracing::error!("the log writer is gone");
                }
            }
            Err(TrySendError::Disconnected(op)) => {
                finish(op, &Err(io::Error::other("the log writer is gone")));
            }
        }
    }
}

fn write_loop(shared: &Shared, jobs: &Receiver<Op>) {
    while let Ok(first) = jobs.recv() {
        let mut group = vec![first];
        let mut bytes = size_of_op(&group[0]);
        while bytes < GROUP_BYTES {
            let Ok(op) = jobs.try_recv() else { break };
            bytes += size_of_op(&op);
            group.push(op);
        }
        let result = write_group(shared, &group);
        if let Err(error) = &result {
            tracing::error!(%error, "the log could not be written: this node stops");
            *shared.failed.lock() = Some(error.to_string());
            shared.durable.send_replace(None);
        }
        for op in group {
            if result.is_ok() {
                note_flushed(shared, &op);
            }
            finish(op, &result);
        }
    }
}

fn write_group(shared: &Shared, group: &[Op]) -> io::Result<()> {
    if let Some(error) = shared.failed.lock().clone() {
        return Err(io::Error::other(error));
    }
    let db = &shared.db;
    let (entries_cf, meta_cf) = (cf(db, ENTRIES)?, cf(db, META)?);
    let mut batch = WriteBatch::default();
    let mut sync = false;
    for op in group {
        match op {
            Op::Append { entries, .. } => {
                entries.iter().for_each(|(index, value)| batch.put_cf(entries_cf, index.to_be_bytes(), value));
                sync = true;
            }
            Op::Meta { key, value, sync: wants_sync, .. } => {
                batch.put_cf(meta_cf, key, value);
                sync |= *wants_sync && !planted(Bug::VoteUnsynced);
            }
            Op::Truncate { from, to, .. } => {
                (*from..=*to).for_each(|index| batch.delete_cf(entries_cf, index.to_be_bytes()));
                sync = true;
            }
            Op::Purge { first_kept, meta: (key, value), .. } => {
                batch.delete_range_cf(entries_cf, 0u64.to_be_bytes(), first_kept.to_be_bytes());
                batch.put_cf(meta_cf, key, value);
            }
        }
    }
    let mut options = WriteOptions::default();
    options.set_sync(sync && !planted(Bug::LogUnsynced));
    let began = now();
    crash_point("log.before-write");
    *shared.syncing.lock() = sync.then_some(began);
    let written = db.write_opt(batch, &options).map_err(|e| io::Error::other(e.to_string()));
    *shared.syncing.lock() = None;
    crash_point("log.after-write");
    if !planted(Bug::WriteErrorIgnored) {
        written?;
    }
    if sync {
        note_sync(shared, began);
    }
    Ok(())
}

/// How long the disk takes is told to operators and is no part of the state.
#[allow(clippy::disallowed_methods)]
fn now() -> Instant {
    Instant::now()
}

fn note_sync(shared: &Shared, began: Instant) {
    let ended = now();
    let micros = u64::try_from((ended - began).as_micros()).unwrap_or(u64::MAX);
    let mut syncs = shared.syncs.lock();
    if syncs.len() == SYNCS_KEPT {
        syncs.pop_front();
    }
    // Nought says that there was no write at all.
    syncs.push_back((ended, micros.max(1)));
}

/// The nearest rank: the smallest of `sorted` that so many percent of them do not exceed.
fn percentile(sorted: &[u64], percent: usize) -> u64 {
    let rank = (sorted.len() * percent).div_ceil(100);
    rank.checked_sub(1).and_then(|at| sorted.get(at)).copied().unwrap_or(0)
}

fn finish(op: Op, result: &io::Result<()>) {
    let copy = || match result {
        Ok(()) => Ok(()),
        Err(e) => Err(io::Error::other(e.to_string())),
    };
    match op {
        Op::Append { done, .. } | Op::Truncate { done, .. } | Op::Purge { done, .. } => done(copy()),
        Op::Meta { done: Some(done), .. } => done(copy()),
        Op::Meta { done: None, .. } => {}
    }
}

/// Keeps track of what is on disk, and lets the oldest of it go when memory holds too much. Whoever truncates waits for
/// it before appending again, so the mark never covers an entry that is not yet written.
fn note_flushed(shared: &Shared, op: &Op) {
    let mut cache = shared.cache.lock();
    match op {
        Op::Append { entries, .. } => {
            let last = entries.last().map(|(index, _)| *index);
            cache.flushed = cache.flushed.max(last);
            move_mark(shared, |end| end.max(last.map_or(0, |last| last + 1)));
        }
        Op::Truncate { from, .. } => {
            cache.flushed = cache.flushed.min(from.checked_sub(1));
            move_mark(shared, |end| end.min(*from));
        }
        Op::Purge { first_kept, .. } => move_mark(shared, |end| end.max(*first_kept)),
        Op::Meta { .. } => {}
    }
    while cache.bytes > CACHE_BYTES && cache.tail.len() > 1 {
        let Some((index, _)) = cache.tail.front() else { break };
        if Some(*index) > cache.flushed {
            break;
        }
        if let Some((_, bytes)) = cache.tail.pop_front() {
            cache.bytes -= bytes.len();
        }
    }
}

/// A log that has failed stays so.
fn move_mark(shared: &Shared, to: impl FnOnce(u64) -> u64) {
    shared.durable.send_if_modified(|mark| {
        let Some(before) = *mark else { return false };
        let after = to(before);
        *mark = Some(after);
        after != before
    });
}

fn last_on_disk(db: &DB) -> Result<Option<(u64, Bytes)>, Fatal> {
    let last = db.iterator_cf(cf(db, ENTRIES)?, IteratorMode::End).next().transpose()?;
    last.map(|(key, value)| Ok((decode_index(&key)?, Bytes::from(value)))).transpose()
}

fn size_of_op(op: &Op) -> usize {
    match op {
        Op::Append { entries, .. } => entries.iter().map(|(_, bytes)| bytes.len() + 32).sum(),
        _ => 32,
    }
}

fn decode_index(key: &[u8]) -> Result<u64, Fatal> {
    key.try_into().map(u64::from_be_bytes).map_err(|_| Fatal::Corrupt("a log key is not 8 bytes".to_owned()))
}

fn cf<'a>(db: &'a DB, name: &str) -> Result<&'a rocksdb::ColumnFamily, Fatal> {
    db.cf_handle(name).ok_or_else(|| Fatal::Corrupt(format!("the log has no column family {name}")))
}

/// Everything that takes space follows the size of a write buffer, so that a small disk can hold a small log.
fn options(write_buffer_bytes: u64) -> (Options, Options) {
    let mut cf = Options::default();
    cf.set_compression_type(DBCompressionType::Lz4);
    cf.set_write_buffer_size(usize::try_from(write_buffer_bytes).unwrap_or(usize::MAX));
    cf.set_target_file_size_base(write_buffer_bytes);
    cf.set_max_bytes_for_level_base(write_buffer_bytes.saturating_mul(4));
    let mut db = Options::default();
    db.create_if_missing(true);
    db.create_missing_column_families(true);
    db.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    db.set_track_and_verify_wals_in_manifest(true);
    db.set_max_total_wal_size(write_buffer_bytes.saturating_mul(4));
    db.set_max_open_files(256);
    db.set_keep_log_file_num(2);
    db.set_max_log_file_size(sizes::CHATTER_BYTES);
    db.set_max_manifest_file_size(sizes::CHATTER_BYTES);
    db.set_max_background_jobs(2);
    (db, cf)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_one_of_the_values() {
        assert_eq!(percentile(&[], 50), 0);
        assert_eq!((percentile(&[7], 50), percentile(&[7], 99)), (7, 7));
        let hundred: Vec<u64> = (1..=100).collect();
        assert_eq!((percentile(&hundred, 50), percentile(&hundred, 99)), (50, 99));
        assert_eq!(percentile(&[1, 2, 3], 50), 2);
    }
}
