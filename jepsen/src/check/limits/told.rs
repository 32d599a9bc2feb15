//! What a record says of limits: the arguments and answers of the workload `limits`.
//!
//! Deliberately absent: judgement.

use serde::{Deserialize, Serialize};

/// `limit`, on the concurrency key that it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Limit {
    pub(crate) max: u64,
}

/// `submit`: the task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Submit {
    pub(crate) id: String,
    /// Its concurrency keys.
    pub(crate) keys: Vec<String>,
}

/// `claim`: the answer. Without an id there was nothing to do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Claimed {
    pub(crate) id: Option<String>,
    /// The place in the log of the grant.
    pub(crate) token: u64,
}

/// `complete`: what was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Complete {
    pub(crate) id: String,
    pub(crate) token: u64,
}

/// `complete`: the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Completed {
    pub(crate) accepted: bool,
}

/// One try at a task, by the cluster's own account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Try {
    pub(crate) id: String,
    pub(crate) token: u64,
    pub(crate) started_at_ms: u64,
    /// 0: it runs.
    pub(crate) ended_at_ms: u64,
    pub(crate) is_completed: bool,
}

/// `attempts`: one page of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attempts {
    pub(crate) attempts: Vec<Try>,
    /// Another page comes.
    pub(crate) more: bool,
}

/// One task at the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Standing {
    pub(crate) id: String,
    pub(crate) keys: Vec<String>,
    pub(crate) is_completed: bool,
}

/// `tasks`: one page of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tasks {
    pub(crate) tasks: Vec<Standing>,
    /// Another page comes.
    pub(crate) more: bool,
}
