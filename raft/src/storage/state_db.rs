//! The state's rows in RocksDB.
//!
//! Written without a write-ahead log: the Raft log is one already. After a crash the database is as it was at its last
//! flush, head row included, and apply goes on from there. Every apply batch is one [`rocksdb::WriteBatch`].
//!
//! The event history is a column family of its own: it is written once and removed by the range, so it needs no filters
//! and does not stand between rows that are read. Both are flushed as one (`atomic_flush`): without a write-ahead log, a
//! crash must not leave rows without their events.

use std::path::Path;

use bytes::Bytes;
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, DB, DBCompressionType, Direction, FlushOptions, IteratorMode, Options,
    ReadOptions, WriteBatch, WriteOptions,
};
use xxhash_rust::xxh3::Xxh3;

use crate::error::Fatal;
use crate::faults::crash_point;
use crate::storage::dir::DirHandle;
use crate::storage::rows::{Rows, Visit};
use crate::storage::sizes;
use crate::storage::txn::Writes;

/// Looks at one row of the event history, rev and value; `false` ends the scan.
pub type VisitEvents<'v> = dyn FnMut(u64, &[u8]) -> Result<bool, Fatal> + 'v;

const ROWS: &str = "default";
const EVENTS: &str = "events";

/// The cache of blocks is four write buffers large, and not larger than this.
const BLOCK_CACHE_BYTES: u64 = 256 << 20;
/// For a database that is only looked into, or opened for a moment.
pub const SMALL_BUFFER_BYTES: u64 = 4 << 20;

/// One file of rows.
#[derive(Debug, Clone)]
pub struct TableFile {
    family: String,
    first: Vec<u8>,
    last: Vec<u8>,
    /// What it takes on disk.
    pub bytes: u64,
}

/// One open generation of the state.
pub struct StateDb {
    // Before the directory: fields drop in order, and the database must be closed when its files go.
    db: DB,
    dir: DirHandle,
}

impl std::fmt::Debug for StateDb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StateDb({})", self.dir.path().display())
    }
}

impl StateDb {
    /// Opens or creates the database in `path`.
    pub fn open(path: &Path, write_buffer_bytes: u64) -> Result<Self, Fatal> {
        let rows = options(write_buffer_bytes);
        let families = [(ROWS, rows.clone()), (EVENTS, event_options(write_buffer_bytes))];
        let db = DB::open_cf_with_opts(&rows, path, families)?;
        Ok(StateDb { db, dir: DirHandle::new(path.to_owned()) })
    }

    /// Opens without the right to write: to look into a snapshot.
    pub fn open_read_only(path: &Path) -> Result<Self, Fatal> {
        let mut options = options(SMALL_BUFFER_BYTES);
        options.create_if_missing(false);
        options.create_missing_column_families(false);
        let db = DB::open_cf_for_read_only(&options, path, [ROWS, EVENTS], false)?;
        Ok(StateDb { db, dir: DirHandle::new(path.to_owned()) })
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Removes the files once the last reader is gone.
    pub fn retire(&self) {
        self.dir.retire();
    }

    /// Writes one apply batch.
    pub fn write(&self, writes: Writes) -> Result<(), Fatal> {
        let events = self.events()?;
        let mut batch = WriteBatch::default();
        for (key, value) in writes.rows {
            match value {
                Some(value) => batch.put(key, value),
                None => batch.delete(key),
            }
        }
        // After the rows: what earlier commands of the batch wrote there goes too.
        for (from, to) in writes.ranges_gone {
            batch.delete_range(from, to);
        }
        for ((rev, space), value) in writes.events {
            batch.put_cf(events, [rev.to_be_bytes(), space.to_be_bytes()].as_flattened(), value);
        }
        if let Some(through_rev) = writes.events_gone {
            batch.delete_range_cf(events, 0_u64.to_be_bytes(), through_rev.saturating_add(1).to_be_bytes());
        }
        let mut unlogged = WriteOptions::default();
        unlogged.disable_wal(true);
        crash_point("state.before-write");
        self.db.write_opt(batch, &unlogged)?;
        crash_point("state.after-write");
        Ok(())
    }

    /// The event history from `from_rev` on, by rev, until `visit` returns `false`.
    pub fn scan_events(&self, from_rev: u64, visit: &mut VisitEvents<'_>) -> Result<(), Fatal> {
        let mut read = ReadOptions::default();
        read.fill_cache(false);
        let from = from_rev.to_be_bytes();
        let rows = self.db.iterator_cf_opt(self.events()?, read, IteratorMode::From(&from, Direction::Forward));
        for item in rows {
            let (key, value) = item?;
            let (rev, _space) = (key.split_first_chunk::<8>())
                .ok_or_else(|| Fatal::Corrupt(format!("not a key of the event history: {key:?}")))?;
            if !visit(u64::from_be_bytes(*rev), &value)? {
                break;
            }
        }
        Ok(())
    }

    /// Gives back the space of whole files of the event history up to `through_rev`, instead of waiting for them to be
    /// compacted. That the history up to there is gone must be durable already: files go at once and for good.
    pub fn drop_event_files(&self, through_rev: u64) -> Result<(), Fatal> {
        Ok(self.db.delete_file_in_range_cf(self.events()?, 0_u64.to_be_bytes(), through_rev.to_be_bytes())?)
    }

    /// About how many bytes the event history takes on disk and in write buffers.
    pub fn events_bytes(&self) -> Result<u64, Fatal> {
        let events = self.events()?;
        let sizes = ["rocksdb.estimate-live-data-size", "rocksdb.size-all-mem-tables"];
        let mut bytes = 0;
        for name in sizes {
            bytes += self.db.property_int_value_cf(events, name)?.unwrap_or_default();
        }
        Ok(bytes)
    }

    fn events(&self) -> Result<&ColumnFamily, Fatal> {
        self.db.cf_handle(EVENTS).ok_or_else(|| Fatal::Corrupt("the state has no event history".to_owned()))
    }

    /// Flushes, then links every file into the new directory `target`.
    pub fn checkpoint(&self, target: &Path) -> Result<(), Fatal> {
        crash_point("checkpoint.before");
        rocksdb::checkpoint::Checkpoint::new(&self.db)?.create_checkpoint(target)?;
        crash_point("checkpoint.after");
        Ok(())
    }

    /// Makes everything written so far durable.
    pub fn flush(&self) -> Result<(), Fatal> {
        Ok(self.db.flush_cfs_opt(&[self.rows()?, self.events()?], &FlushOptions::default())?)
    }

    fn rows(&self) -> Result<&ColumnFamily, Fatal> {
        self.db.cf_handle(ROWS).ok_or_else(|| Fatal::Corrupt("the state has no rows".to_owned()))
    }

    /// The tables, each with its family, its first and last key, and how many bytes it takes.
    pub fn tables(&self) -> Result<Vec<TableFile>, Fatal> {
        let files = self.db.live_files()?.into_iter();
        let tables = files.map(|file| TableFile {
            family: file.column_family_name,
            first: file.start_key.unwrap_or_default(),
            last: file.end_key.unwrap_or_default(),
            bytes: file.size as u64,
        });
        let mut tables: Vec<TableFile> = tables.collect();
        tables.sort_by(|a, b| (&a.family, &a.first).cmp(&(&b.family, &b.first)));
        Ok(tables)
    }

    /// Writes the keys of one table anew, in every level, without what was removed.
    pub fn compact(&self, table: &TableFile) -> Result<(), Fatal> {
        let family = if table.family == EVENTS { self.events()? } else { self.rows()? };
        self.db.compact_range_cf(family, Some(&table.first), Some(&table.last));
        Ok(())
    }

    /// Bytes in write buffers.
    pub fn unflushed_bytes(&self) -> u64 {
        sizes::sum(&self.db, [self.rows(), self.events()].into_iter().flatten(), &sizes::UNFLUSHED)
    }

    /// Bytes on disk and in write buffers, as RocksDB estimates them.
    pub fn size_bytes(&self) -> u64 {
        sizes::sum(&self.db, [self.rows(), self.events()].into_iter().flatten(), &sizes::ALL)
    }

    /// A hash over all rows except those under `skip`, in key order. The rows are those of the moment when `fixed` is
    /// called; writers may go on from then.
    pub fn full_digest(&self, skip: u8, fixed: impl FnOnce()) -> Result<u128, Fatal> {
        let mut hash = Xxh3::new();
        let mut read = ReadOptions::default();
        read.fill_cache(false);
        // An iterator sees the database as it was when it was made.
        let rows = self.db.iterator_opt(IteratorMode::Start, read);
        fixed();
        for item in rows {
            let (key, value) = item?;
            if key.first() == Some(&skip) {
                continue;
            }
            hash.update(&(key.len() as u64).to_be_bytes());
            hash.update(&key);
            hash.update(&(value.len() as u64).to_be_bytes());
            hash.update(&value);
        }
        Ok(hash.digest128())
    }
}

impl Rows for StateDb {
    fn get_bytes(&self, key: &[u8]) -> Result<Option<Bytes>, Fatal> {
        Ok(self.db.get(key)?.map(Bytes::from))
    }

    fn scan(&self, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> Result<(), Fatal> {
        if from >= to {
            return Ok(());
        }
        let mut read = ReadOptions::default();
        read.set_iterate_upper_bound(to);
        for item in self.db.iterator_opt(IteratorMode::From(from, Direction::Forward), read) {
            let (key, value) = item?;
            if !visit(&key, &value)? {
                break;
            }
        }
        Ok(())
    }
}

fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// Everything that takes space follows the size of a write buffer, so that a small disk can hold a small state.
fn options(write_buffer_bytes: u64) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&Cache::new_lru_cache(size(write_buffer_bytes.saturating_mul(4).min(BLOCK_CACHE_BYTES))));
    table.set_bloom_filter(10.0, false);
    table.set_format_version(5);
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_atomic_flush(true);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_block_based_table_factory(&table);
    set_sizes(&mut options, write_buffer_bytes);
    options.set_max_open_files(512);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(sizes::CHATTER_BYTES);
    options.set_max_manifest_file_size(sizes::CHATTER_BYTES);
    options.set_max_background_jobs(2);
    options
}

/// Written in order, read in order, removed by the range: no filter and a small buffer.
fn event_options(write_buffer_bytes: u64) -> Options {
    let mut options = Options::default();
    options.set_compression_type(DBCompressionType::Lz4);
    set_sizes(&mut options, write_buffer_bytes / 2);
    options
}

fn set_sizes(options: &mut Options, write_buffer_bytes: u64) {
    options.set_write_buffer_size(size(write_buffer_bytes));
    options.set_target_file_size_base(write_buffer_bytes);
    options.set_max_bytes_for_level_base(write_buffer_bytes.saturating_mul(4));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_rocksdb_says_of_itself_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let db = StateDb::open(dir.path(), SMALL_BUFFER_BYTES).unwrap();
        for n in 0_u32..500 {
            let rows = [(n.to_be_bytes().to_vec(), Some(Bytes::from_static(b"row")))].into();
            db.write(Writes { rows, ..Writes::default() }).unwrap();
            db.flush().unwrap();
        }
        let files = std::fs::read_dir(dir.path()).unwrap().map(Result::unwrap);
        let chatter = files.filter(|file| file.file_name().to_string_lossy().starts_with("LOG"));
        let bytes: u64 = chatter.map(|file| file.metadata().unwrap().len()).sum();
        // The one that is written, and the one before.
        let most = 2 * sizes::CHATTER_BYTES as u64 + (64 << 10);
        assert!(bytes <= most, "{bytes} bytes after 500 flushes");
    }
}
