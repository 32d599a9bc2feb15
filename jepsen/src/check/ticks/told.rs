//! What a record says of schedules: the arguments and answers of the workload `schedules`.
//!
//! Deliberately absent: judgement.

use serde::{Deserialize, Serialize};

/// What becomes of ticks that nobody could use in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Missed {
    /// They are recorded as missed.
    Skip,
    /// One run stands for all of them.
    Once,
    /// A run for each.
    All,
}

/// What becomes of a tick while the task of an earlier run has not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Overlap {
    /// It is recorded as overlapped.
    Skip,
    /// Its task waits.
    Queue,
    /// Both run.
    Allow,
}

/// `create`: what was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Terms {
    pub(crate) interval_ms: u64,
    pub(crate) missed: Missed,
    pub(crate) overlap: Overlap,
    pub(crate) tolerance_ms: u64,
}

/// `create`: the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Created {
    pub(crate) first_tick_ms: u64,
}

/// `pause`: what was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pause {
    pub(crate) paused: bool,
}

/// What came of a tick, or of a run by hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Fate {
    /// It brought a task.
    Fired,
    /// Nobody could use it in time.
    Missed,
    /// An earlier task had not ended.
    Overlapped,
    /// Its task was refused.
    Refused,
}

/// One run, as the history of a schedule has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) rev: u64,
    pub(crate) tick_ms: u64,
    pub(crate) fired_at_ms: u64,
    pub(crate) fate: Fate,
    pub(crate) task_id: String,
    /// How many ticks it stands for.
    pub(crate) ticks: u64,
    pub(crate) by_hand: bool,
}

/// `run_now`: the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ran {
    pub(crate) run: Run,
}

/// `look`: how many runs were asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Look {
    pub(crate) limit: usize,
}

/// `look`: the newest runs, in any order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Runs {
    pub(crate) runs: Vec<Run>,
}

/// `ticks`: a schedule as it stands at the end. The runs are read by a `look`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stand {
    pub(crate) next_tick_ms: u64,
    /// Runs that brought a task, by hand or not.
    pub(crate) fired: u64,
    /// Ticks.
    pub(crate) missed: u64,
    /// Ticks, and runs by hand.
    pub(crate) overlapped: u64,
}

/// A task that a schedule brought.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Brought {
    pub(crate) id: String,
    /// By its labels.
    pub(crate) schedule: String,
    pub(crate) tick_ms: u64,
    /// Of its submission.
    pub(crate) rev: u64,
    /// Somebody ended it.
    pub(crate) is_ended: bool,
}

/// `tasks`: all that a schedule brought.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tasks {
    pub(crate) tasks: Vec<Brought>,
}
