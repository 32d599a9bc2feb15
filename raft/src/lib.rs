//! What every replica agrees on.
//!
//! ```text
//!   apply ───── the only door into the state: one switch, time, request records, applied index
//!   ├─ level ── which commands a cluster of mixed binaries lets in
//!   ├─ state ── one room a domain: sessions, agents, tasks, cluster
//!   └─ storage  RocksDB: keys, transactions, log, snapshots; nothing of the domain
//!   replica ─── the applied state of this node, for whoever reads it
//!   consensus ─ openraft, and nowhere else: types, log and state-machine adapters, peer network
//!   faults ──── bugs and crashes on purpose, in builds that are made for it
//!   effect ──── hints to this process after a commit; error: a rejection is an answer, a fatal stops the node
//! ```
//!
//! Deliberately absent: servers, configuration, metrics. This crate never sees `node`.

pub mod apply;
pub mod consensus;
pub mod effect;
pub mod error;
pub mod faults;
pub mod history;
pub mod level;
pub mod replica;
pub mod state;
pub mod storage;
