//! What a record says of breakers: the arguments and answers of the workload `breakers`.
//!
//! Deliberately absent: judgement.

use serde::{Deserialize, Serialize};

/// How a breaker stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    /// Everything passes.
    Closed,
    /// Nothing passes.
    Open,
    /// One call passes.
    HalfOpen,
}

/// `configure`: what was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Settings {
    pub(crate) threshold: u64,
    pub(crate) open_ms: u64,
    pub(crate) probe_timeout_ms: u64,
}

/// `ask`: the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Asked {
    pub(crate) allowed: bool,
    pub(crate) state: State,
    /// 0: it is no probe.
    pub(crate) probe_token: u64,
    pub(crate) retry_after_ms: u64,
}

/// `report`: what was said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Word {
    pub(crate) ok: bool,
    /// 0: it was no probe.
    pub(crate) probe_token: u64,
}

/// `report`: how the breaker stands now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reported {
    pub(crate) state: State,
    /// In a row.
    pub(crate) failures: u64,
}
