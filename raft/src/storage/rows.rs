//! Reading rows, wherever they are: RocksDB, an open transaction, or memory in tests.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use prost::Message;

use crate::error::Fatal;
use crate::storage::keys::Key;

/// Looks at one row, key and value; `false` ends the scan.
pub type Visit<'v> = dyn FnMut(&[u8], &[u8]) -> Result<bool, Fatal> + 'v;

/// Rows that can be read in key order.
pub trait Rows {
    /// The value of one key.
    fn get_bytes(&self, key: &[u8]) -> Result<Option<Bytes>, Fatal>;

    /// Calls `visit` for the rows in `[from, to)` in key order until it returns `false`.
    fn scan(&self, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> Result<(), Fatal>;
}

/// Reads and decodes one row.
pub fn get<M: Message + Default>(rows: &(impl Rows + ?Sized), key: &Key) -> Result<Option<M>, Fatal> {
    rows.get_bytes(key.as_bytes())?.map(|bytes| M::decode(bytes).map_err(Fatal::from)).transpose()
}

/// Decodes every row under `prefix` in key order, until `visit` returns `false`.
pub fn scan_prefix<M: Message + Default>(
    rows: &(impl Rows + ?Sized),
    prefix: &Key,
    mut visit: impl FnMut(&[u8], M) -> Result<bool, Fatal>,
) -> Result<(), Fatal> {
    let end = prefix.prefix_end();
    rows.scan(prefix.as_bytes(), &end, &mut |key, value| visit(key, M::decode(value)?))
}

/// Rows in memory: the store of tests, and of nothing else.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct MemoryRows(pub BTreeMap<Vec<u8>, Bytes>);

impl Rows for MemoryRows {
    fn get_bytes(&self, key: &[u8]) -> Result<Option<Bytes>, Fatal> {
        Ok(self.0.get(key).cloned())
    }

    fn scan(&self, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> Result<(), Fatal> {
        if from >= to {
            return Ok(());
        }
        for (key, value) in self.0.range::<[u8], _>((Bound::Included(from), Bound::Excluded(to))) {
            if !visit(key, value)? {
                break;
            }
        }
        Ok(())
    }
}
