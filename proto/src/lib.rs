//! The contract of Quorate, generated from the `.proto` files beside this crate, and nothing else.
//!
//! - [`v1`]: the public API, one file per room. Its messages are also the stored rows.
//! - [`log`]: what a log entry holds.
//! - [`peer`]: node to node.
//!
//! Deliberately absent: logic, validation, conversions. A message is checked at the edge, by the handler that receives it.

// Comments come from the .proto files, which are not written for rustdoc's link checker.
#![allow(rustdoc::all, missing_docs, clippy::all)]

/// The public API.
pub mod v1 {
    tonic::include_proto!("quorate.v1");
}

/// What a log entry holds.
pub mod log {
    tonic::include_proto!("quorate.log");
}

/// Node to node.
pub mod peer {
    tonic::include_proto!("quorate.peer");
}
