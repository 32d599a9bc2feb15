//! The two ways a command can end other than well.
//!
//! [`Rejection`] is an answer: deterministic, the same on every replica, and it changed nothing. [`Fatal`] is not an
//! answer: a replica that meets one cannot know whether it still agrees with the others, so the process stops.
//! Nothing in between exists, and nothing here is retried.

use quorate_proto::v1::{Rejection, RejectionCode};

/// A fault this replica cannot reason about. The node logs it and stops.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Fatal {
    /// RocksDB or the file system failed.
    #[error("storage failed: {0}")]
    Storage(String),
    /// A stored row or a log entry does not decode, or says something impossible.
    #[error("corrupt data: {0}")]
    Corrupt(String),
    /// A log entry holds a command this binary does not know.
    #[error("unknown command in the log: {0}; this binary is older than the one that wrote it")]
    UnknownCommand(String),
    /// The cluster lets in commands that this binary does not know.
    #[error(
        "the cluster runs at feature level {level}, this binary understands up to {understood}: use the newer binary"
    )]
    #[allow(missing_docs)]
    TooOld { level: u32, understood: u32 },
}

impl From<rocksdb::Error> for Fatal {
    fn from(e: rocksdb::Error) -> Self {
        Fatal::Storage(e.to_string())
    }
}

impl From<std::io::Error> for Fatal {
    fn from(e: std::io::Error) -> Self {
        Fatal::Storage(e.to_string())
    }
}

impl From<prost::DecodeError> for Fatal {
    fn from(e: prost::DecodeError) -> Self {
        Fatal::Corrupt(e.to_string())
    }
}

impl From<Fatal> for std::io::Error {
    fn from(e: Fatal) -> Self {
        std::io::Error::other(e.to_string())
    }
}

/// Why a command did not succeed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Refused, with a reason for the caller.
    #[error("rejected: {}", .0.message)]
    Rejected(Rejection),
    /// The node must stop.
    #[error(transparent)]
    Fatal(#[from] Fatal),
}

/// What a room's function returns.
pub type Outcome<T> = Result<T, Error>;

/// Refuses a command: the code, the request field at fault ("" if none), and one sentence for a person.
pub fn reject(code: RejectionCode, field: &str, message: impl Into<String>) -> Error {
    Error::Rejected(Rejection { code: code as i32, field: field.to_owned(), message: message.into() })
}

/// Refuses a malformed request.
pub fn invalid(field: &str, message: impl Into<String>) -> Error {
    reject(RejectionCode::InvalidArgument, field, message)
}

/// Refuses because something named does not exist.
pub fn not_found(field: &str, message: impl Into<String>) -> Error {
    reject(RejectionCode::NotFound, field, message)
}

/// Refuses because the state does not allow it now.
pub fn precondition(field: &str, message: impl Into<String>) -> Error {
    reject(RejectionCode::FailedPrecondition, field, message)
}

/// Refuses because a limit is reached.
pub fn exhausted(field: &str, message: impl Into<String>) -> Error {
    reject(RejectionCode::ResourceExhausted, field, message)
}
