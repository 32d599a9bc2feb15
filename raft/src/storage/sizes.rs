//! How many bytes RocksDB says that column families take, and how many it may take for itself.

use rocksdb::{ColumnFamily, DB};

/// What RocksDB writes about itself, for people and for its next start, is begun anew at this size. Without a bound it grows
/// with every flush, for as long as the node runs.
pub(super) const CHATTER_BYTES: usize = 512 << 10;

/// Tables on disk and write buffers.
pub(super) const ALL: [&str; 2] = ["rocksdb.total-sst-files-size", "rocksdb.size-all-mem-tables"];
/// Write buffers that are not flushed yet.
pub(super) const UNFLUSHED: [&str; 1] = ["rocksdb.cur-size-all-mem-tables"];

/// The sum of these properties over these families. What RocksDB does not say counts as nothing.
pub(super) fn sum<'f>(db: &DB, families: impl IntoIterator<Item = &'f ColumnFamily>, properties: &[&str]) -> u64 {
    let of = |family| properties.iter().filter_map(move |name| db.property_int_value_cf(family, *name).ok().flatten());
    families.into_iter().flat_map(of).sum()
}
