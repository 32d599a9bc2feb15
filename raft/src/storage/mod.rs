//! RocksDB, and nothing of the domain.
//!
//! Two databases: `log/` (synced before any acknowledgement: the truth) and `state/` (no write-ahead log: what it loses
//! in a crash is applied again from the log). The invariant between them: the log is never purged beyond what a
//! snapshot covers, and taking a snapshot flushes the state.

pub mod dir;
pub mod found;
pub mod keys;
pub mod log_db;
pub mod rows;
mod sizes;
pub mod snapshot;
pub mod space;
pub mod state_db;
pub mod txn;
