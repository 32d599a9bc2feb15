//! The record of a run: what every client process asked, and what it was told, in the order the harness saw it.
//!
//! The file format is a contract with any checker, ours or another's: one JSON object a line,
//!
//! | field | meaning |
//! |---|---|
//! | `t` | nanoseconds of the harness's monotonic clock since the run began; never falling within a process |
//! | `p` | logical process; retired after an `info`, never used again |
//! | `ev` | `invoke`, `ok`, `fail` (certainly no effect), `info` (unknown: may take effect later, or never) |
//! | `f`, `key` | the operation and the object it is about; on completions too |
//! | `arg`, `res` | of `invoke`, and of `ok` |
//! | `rev` | of `ok`, where the server says so: the place in the log at which the operation took effect |
//! | `node` | optional: the node that was asked |
//!
//! A process has one operation open at a time. One that is open when the record ends counts as `info`.
//!
//! Deliberately absent: faults. They go to a file of their own (`crate::nemesis`), so that no checker can depend on them.

mod history;
mod writer;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use history::{History, Operation, Outcome};
pub use writer::{Answer, Process, Recorder};

/// What an event says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The operation begins.
    Invoke,
    /// It took effect, and this was the answer.
    Ok,
    /// It certainly had no effect.
    Fail,
    /// It may take effect at any later time, or never.
    Info,
}

/// One line of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    /// Nanoseconds since the run began.
    pub t: u64,
    /// Logical process.
    pub p: u64,
    /// What this says.
    pub ev: Phase,
    /// The operation's name.
    pub f: String,
    /// The object it is about.
    pub key: String,
    /// What was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arg: Option<Value>,
    /// What was answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub res: Option<Value>,
    /// Where in the log it took effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rev: Option<u64>,
    /// Who was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<u64>,
}
