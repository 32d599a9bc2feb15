//! openraft, and nothing else of ours: the only module that knows the library.
//!
//! - [`types`]: the type configuration and its aliases
//! - [`wire`]: openraft's types to and from the peer protocol
//! - [`log_storage`]: the log over [`crate::storage::log_db`]
//! - [`state_machine`]: apply and snapshots over [`crate::replica`]
//! - [`network`]: calls to peers; [`server`]: calls from peers
//!
//! Deliberately absent: what a command means. An entry's payload is bytes here.

mod carried;
pub mod log_storage;
pub mod network;
pub mod server;
pub mod state_machine;
pub mod types;
pub mod wire;
