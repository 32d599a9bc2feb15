//! Checkpoints: milestones that were reached, with the counts at that time.
//!
//! A key is `u64::MAX - rev`, project, epic, feature, milestone: newest first, and one command may reach several. A
//! milestone that is undone (a task is redriven, or purged) and reached again is written again.

use std::collections::BTreeSet;

use quorate_proto::v1::{Checkpoint, StatusCounts, TaskStatus};

use super::Step;
use super::counts;
use super::tree::{Leaf, Tree};
use crate::error::Fatal;
use crate::state::{Ctx, Out};
use crate::storage::keys::{Key, Table};
use crate::storage::rows::{self, Rows};

/// How many completed tasks of a project lie between two checkpoints.
pub const CHECKPOINT_EVERY: u64 = 10;
/// How many checkpoints are kept, over all projects.
pub const MAX_CHECKPOINTS: usize = 10_000;

/// The keys of all kept checkpoints.
pub(super) fn rebuild(rows: &dyn Rows) -> Result<BTreeSet<Key>, Fatal> {
    let mut kept = BTreeSet::new();
    rows::scan_prefix::<Checkpoint>(rows, &Key::table(Table::Checkpoint), |_, checkpoint| {
        kept.insert(key(&checkpoint));
        Ok(true)
    })?;
    Ok(kept)
}

/// The milestones that this step reached. The tree has taken the step already.
pub(super) fn reached(tree: &Tree, leaf: &Leaf<'_>, ctx: &Ctx, step: Step) -> Vec<Checkpoint> {
    let mut reached = Vec::new();
    if !counts::is_ended(step.to) {
        return reached;
    }
    if let Some(counts) = tree.project(leaf).filter(|counts| completes_ten(counts, step)) {
        let milestone = format!("tasks:{}", counts.completed);
        reached.push(checkpoint(ctx, &leaf.project, "", "", milestone, counts));
    }
    if let Some(counts) = tree.feature(leaf).filter(|counts| !leaf.feature.is_empty() && completes_all(counts, step)) {
        reached.push(checkpoint(ctx, &leaf.project, &leaf.epic, &leaf.feature, "feature".to_owned(), counts));
    }
    if let Some(counts) = tree.epic(leaf).filter(|counts| !leaf.epic.is_empty() && completes_all(counts, step)) {
        reached.push(checkpoint(ctx, &leaf.project, &leaf.epic, "", "epic".to_owned(), counts));
    }
    reached
}

/// Writes a checkpoint, and lets the oldest go if there are too many.
pub(super) fn keep(kept: &mut BTreeSet<Key>, out: &mut Out<'_, '_>, checkpoint: &Checkpoint) {
    let key = key(checkpoint);
    out.txn.put(&key, checkpoint);
    kept.insert(key);
    if kept.len() > MAX_CHECKPOINTS
        && let Some(oldest) = kept.pop_last()
    {
        out.txn.delete(&oldest);
    }
}

/// Of all projects or one, newest first.
pub(super) fn list(rows: &dyn Rows, project: &str, limit: usize) -> Result<Vec<Checkpoint>, Fatal> {
    let mut found = Vec::new();
    rows::scan_prefix::<Checkpoint>(rows, &Key::table(Table::Checkpoint), |_, checkpoint| {
        if found.len() >= limit {
            return Ok(false);
        }
        if project.is_empty() || project == checkpoint.project {
            found.push(checkpoint);
        }
        Ok(true)
    })?;
    Ok(found)
}

fn completes_ten(counts: &StatusCounts, step: Step) -> bool {
    step.to == TaskStatus::Completed && counts.completed > 0 && counts.completed.is_multiple_of(CHECKPOINT_EVERY)
}

/// The last one that was on its way has ended. One that never was on its way changes nothing: all had ended before it.
fn completes_all(counts: &StatusCounts, step: Step) -> bool {
    let was_live = step.from != TaskStatus::Unspecified && !counts::is_ended(step.from);
    was_live && counts::live(counts) == 0 && counts.completed > 0
}

fn checkpoint(
    ctx: &Ctx,
    project: &str,
    epic: &str,
    feature: &str,
    milestone: String,
    counts: &StatusCounts,
) -> Checkpoint {
    Checkpoint {
        rev: ctx.rev,
        at_ms: ctx.now_ms,
        project: project.to_owned(),
        epic: epic.to_owned(),
        feature: feature.to_owned(),
        milestone,
        counts: Some(*counts),
    }
}

fn key(checkpoint: &Checkpoint) -> Key {
    Key::table(Table::Checkpoint)
        .number(u64::MAX - checkpoint.rev)
        .text(&checkpoint.project)
        .text(&checkpoint.epic)
        .text(&checkpoint.feature)
        .text(&checkpoint.milestone)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::rows::MemoryRows;
    use crate::storage::txn::Txn;

    fn at(rev: u64, project: &str) -> Checkpoint {
        Checkpoint { rev, project: project.to_owned(), milestone: "epic".to_owned(), ..Checkpoint::default() }
    }

    #[test]
    fn the_oldest_goes_when_there_are_too_many() {
        let rows = MemoryRows::default();
        let mut txn = Txn::new(&rows, 0);
        let mut kept = BTreeSet::new();
        let most = u64::try_from(MAX_CHECKPOINTS).expect("a number");
        for rev in 1..=most + 2 {
            let out = &mut Out { txn: &mut txn, effects: &mut Vec::new() };
            keep(&mut kept, out, &at(rev, if rev % 2 == 0 { "even" } else { "odd" }));
        }
        assert_eq!(kept, rebuild(&txn).expect("rows that can be read"));
        let listed = list(&txn, "", usize::MAX).expect("rows that can be read");
        assert_eq!(listed.len(), MAX_CHECKPOINTS);
        assert_eq!(listed.first().map(|newest| newest.rev), Some(most + 2));
        assert_eq!(listed.last().map(|oldest| oldest.rev), Some(3));
        let even = list(&txn, "even", 2).expect("rows that can be read");
        assert_eq!(even.iter().map(|checkpoint| checkpoint.rev).collect::<Vec<_>>(), [most + 2, most]);
    }

    #[test]
    fn one_command_may_reach_the_same_milestone_in_two_projects() {
        assert_ne!(key(&at(7, "a")), key(&at(7, "b")));
    }
}
