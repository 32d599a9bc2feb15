//! Progress: how far the work is, milestones on the way, and how it stood minute by minute.
//!
//! ```text
//!   tasks ──moved──▶ tree         project ▶ epic ▶ feature, each with a count a status
//!                    checkpoints  every tenth completed task of a project; each feature and epic that is done
//!   ──attempt_ended─▶ samples     the minute being filled, and seven days of minutes before it
//! ```
//!
//! Owns the Rollup, Checkpoint, Sample and ProgressTotals rows. A Rollup row counts ended tasks only: those that live are
//! counted from their own rows at open, so that a task on its way costs this room no write. The ProgressTotals row is the
//! minute being filled, with the ended tasks of all; it is written when a task or an attempt ends and when a minute begins.
//!
//! Invariants:
//! - the tree and the totals count every task there is, live or ended, until it is purged;
//! - a branch of the tree exists exactly while a task is counted in it.
//!
//! Deliberately absent: shares and rates. Whoever shows the counts divides them.

mod checkpoints;
mod counts;
mod samples;
mod tree;

use std::collections::BTreeSet;

use quorate_proto::v1::{Checkpoint, ProjectProgress, Sample, StatusCounts, Task, TaskSpec, TaskStatus};

pub use self::checkpoints::{CHECKPOINT_EVERY, MAX_CHECKPOINTS};
pub use self::samples::KEPT_SAMPLES;
use self::samples::Samples;
use self::tree::{Leaf, Tree};
use crate::error::Fatal;
use crate::state::{Ctx, Out, Rooms};
use crate::storage::keys::{Key, Table};
use crate::storage::rows::{self, Rows};

/// The most different combinations of project, epic and feature that tasks may have: they are in memory.
pub const MAX_LEAVES: usize = 100_000;

/// The indexes of this room.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Progress {
    tree: Tree,
    /// Keys of the kept checkpoints, newest first.
    checkpoints: BTreeSet<Key>,
    samples: Samples,
}

/// A change of a task's status. `Unspecified` is "not there": before it was submitted, or after it was purged.
#[derive(Debug, Clone, Copy)]
struct Step {
    from: TaskStatus,
    to: TaskStatus,
    touched: bool,
}

impl Progress {
    /// Builds every index from the rows.
    pub fn rebuild(rows: &dyn Rows) -> Result<Self, Fatal> {
        let mut tree = Tree::default();
        let mut samples = Samples::rebuild(rows)?;
        rows::scan_prefix::<StatusCounts>(rows, &Key::table(Table::Rollup), |key, ended| {
            tree.change(&tree::split_key(key)?, |counts| counts::add_all(counts, &ended));
            Ok(true)
        })?;
        rows::scan_prefix::<Task>(rows, &Key::table(Table::LiveTask), |_, task| {
            let status = task.status();
            samples.count_live(status);
            if let Some(leaf) = task.spec.as_ref().and_then(Leaf::of) {
                tree.change(&leaf, |counts| counts::add(counts, status));
            }
            Ok(true)
        })?;
        Ok(Progress { tree, checkpoints: checkpoints::rebuild(rows)?, samples })
    }

    /// Whether a task with these names can be counted. Submission asks before it creates anything; a request of many new
    /// names may go beyond [`MAX_LEAVES`] by what it brings.
    pub fn has_room(&self, project: &str, epic: &str, feature: &str) -> bool {
        match Leaf::named(project, epic, feature) {
            Some(leaf) => self.tree.leaves() < MAX_LEAVES || self.tree.feature(&leaf).is_some(),
            None => true,
        }
    }

    /// Every project with its epics and features, or the one of this name.
    pub fn projects(&self, filter: &str) -> Vec<ProjectProgress> {
        self.tree.report(filter)
    }

    /// How many tasks stand where, those of no project included.
    pub fn totals(&self) -> StatusCounts {
        self.samples.totals()
    }

    /// Of the completed tasks, those that no person had to touch.
    pub fn completed_unaided(&self) -> u64 {
        self.samples.completed_unaided()
    }

    /// Checkpoints of all projects or of one, newest first.
    pub fn checkpoints(rows: &dyn Rows, project: &str, limit: usize) -> Result<Vec<Checkpoint>, Fatal> {
        checkpoints::list(rows, project, limit)
    }

    /// The samples in `[from_ms, before_ms)`, oldest first, the minute being filled included.
    pub fn history(&self, rows: &dyn Rows, from_ms: u64, before_ms: u64, limit: usize) -> Result<Vec<Sample>, Fatal> {
        self.samples.history(rows, from_ms, before_ms, limit)
    }
}

/// A task's status changed. `Unspecified` stands for "not there": as `from` when it is created, as `to` when it is
/// purged. `touched`: a person had a hand in it; a task is purged with what it was completed with.
pub fn moved(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    spec: &TaskSpec,
    from: TaskStatus,
    to: TaskStatus,
    touched: bool,
) {
    let step = Step { from, to, touched };
    let agents = agent_count(rooms);
    let Progress { tree, checkpoints: kept, samples } = &mut rooms.progress;
    samples.moved(out, ctx, agents, step);
    let Some(leaf) = Leaf::of(spec) else { return };
    tree.change(&leaf, |counts| counts::shift(counts, from, to));
    if counts::is_ended(from) || counts::is_ended(to) {
        tree.store(out, &leaf);
    }
    for checkpoint in checkpoints::reached(tree, &leaf, ctx, step) {
        checkpoints::keep(kept, out, &checkpoint);
    }
}

/// An attempt ended, however it ended.
pub fn attempt_ended(rooms: &mut Rooms, out: &mut Out<'_, '_>, ctx: &Ctx) {
    let agents = agent_count(rooms);
    rooms.progress.samples.attempt_ended(out, ctx, agents);
}

fn agent_count(rooms: &Rooms) -> u32 {
    u32::try_from(rooms.agents.len()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
