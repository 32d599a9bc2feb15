//! What must hold of one schedule. Each rule adds what it finds.
//!
//! Deliberately absent: what depends on more than one schedule.

use std::collections::{BTreeMap, BTreeSet};

use super::story::{Story, is_covered};
use super::told::{Fate, Missed, Overlap, Run};
use crate::check::Finding;
use crate::record::{Operation, Outcome};

/// Each tick comes once, in its turn: the next one follows those that the run before stands for. Gives what could not
/// be told, since nobody read it.
pub(super) fn one_after_another(story: &Story<'_>, findings: &mut Vec<Finding>) -> Option<String> {
    let covered = story.covered();
    let (name, interval_ms) = (story.name, story.terms.interval_ms);
    let (created, first_tick_ms) = story.created;
    let mut unseen = None;
    let clock = story.by_clock();
    if let (Some((first, by)), Some(first_tick_ms)) = (clock.first(), first_tick_ms) {
        if is_covered(&covered, 0, first.rev) {
            findings.extend(step(story, first_tick_ms, first, &[created, *by]));
        } else {
            unseen = hole(story, first_tick_ms, first, &[created, *by], findings);
        }
    }
    for pair in clock.windows(2) {
        let [(before, by), (after, and_by)] = pair else { continue };
        let due_ms = next_of(before, interval_ms);
        if is_covered(&covered, before.rev, after.rev) || after.tick_ms <= before.tick_ms {
            findings.extend(step(story, due_ms, after, &[*by, *and_by]));
        } else {
            unseen = unseen.or(hole(story, due_ms, after, &[*by, *and_by], findings));
        }
    }
    let Some(stand) = &story.stand else { return unseen };
    if let Some((last, by)) = clock.iter().rfind(|(run, _)| run.rev <= stand.rev)
        && stand.is.next_tick_ms != next_of(last, interval_ms)
    {
        let (next, due) = (stand.is.next_tick_ms, next_of(last, interval_ms));
        let text = format!("{name}: after the run of tick {} comes {due}, and {next} is said to come", last.tick_ms);
        findings.push(Finding::new(text, [*by, stand.operation]));
    }
    unseen
}

fn next_of(run: &Run, interval_ms: u64) -> u64 {
    run.tick_ms.saturating_add(run.ticks.saturating_mul(interval_ms))
}

/// What is wrong if this run comes where that tick is due.
fn step(story: &Story<'_>, due_ms: u64, run: &Run, operations: &[usize]) -> Option<Finding> {
    let (name, tick_ms, rev) = (story.name, run.tick_ms, run.rev);
    if tick_ms == due_ms {
        return None;
    }
    let is_on_grid = tick_ms.abs_diff(due_ms).is_multiple_of(story.terms.interval_ms.max(1));
    let text = if !is_on_grid {
        format!("{name}: tick {tick_ms} (rev {rev}) is none of its times; {due_ms} was due")
    } else if tick_ms < due_ms {
        format!("{name}: tick {tick_ms} came once more at rev {rev}; {due_ms} was due")
    } else {
        format!("{name}: tick {due_ms} never came; after it came {tick_ms} (rev {rev})")
    };
    Some(Finding::new(text, operations.iter().copied()))
}

/// Runs that nobody read, before this one: where each tick brings a task, the tasks show them.
fn hole(
    story: &Story<'_>,
    due_ms: u64,
    run: &Run,
    operations: &[usize],
    findings: &mut Vec<Finding>,
) -> Option<String> {
    let interval_ms = story.terms.interval_ms.max(1);
    let (Some(tasks), Missed::All, Overlap::Queue | Overlap::Allow) =
        (&story.tasks, story.terms.missed, story.terms.overlap)
    else {
        return Some(format!("{}: nobody read what came from tick {due_ms} to {}", story.name, run.tick_ms));
    };
    let read_by_hand = story.runs.values().map(|(run, _)| run).filter(|run| run.by_hand);
    let by_hand = story.by_hand.iter().map(|(_, run)| run).chain(read_by_hand);
    let by_hand: BTreeSet<&str> = by_hand.map(|run| run.task_id.as_str()).collect();
    let mut brought: BTreeMap<u64, u64> = BTreeMap::new();
    for task in tasks.is.iter().filter(|task| !by_hand.contains(task.id.as_str())) {
        if (due_ms..run.tick_ms).contains(&task.tick_ms) && (task.tick_ms - due_ms).is_multiple_of(interval_ms) {
            *brought.entry(task.tick_ms).or_default() += 1;
        }
    }
    let mut wrong = |text: String| {
        let operations = operations.iter().copied().chain([tasks.operation]);
        findings.push(Finding::new(format!("{}: {text}", story.name), operations));
    };
    let expected = run.tick_ms.saturating_sub(due_ms) / interval_ms;
    let missing = expected.saturating_sub(brought.len() as u64);
    if missing > 0 {
        wrong(format!("{missing} ticks from {due_ms} to {} brought no task", run.tick_ms));
    }
    if let Some((tick_ms, count)) = brought.iter().find(|(_, count)| **count > 1)
        && story.unknown_by_hand == 0
    {
        wrong(format!("tick {tick_ms} brought {count} tasks"));
    }
    None
}

/// What came of a tick is what the policies say.
pub(super) fn policies(story: &Story<'_>, findings: &mut Vec<Finding>) {
    for (run, by) in story.runs.values() {
        if let Some(what) = against_policy(story, run) {
            let text = format!("{}: {what}: {run:?}", story.name);
            findings.push(Finding::new(text, [story.created.0, *by]));
        }
    }
    only_first_without_overlap(story, findings);
}

fn against_policy(story: &Story<'_>, run: &Run) -> Option<&'static str> {
    let terms = &story.terms;
    let last_ms = run.tick_ms.saturating_add(run.ticks.saturating_sub(1).saturating_mul(terms.interval_ms));
    let late_ms = |tick_ms: u64| run.fired_at_ms.saturating_sub(tick_ms);
    let too_early = run.fired_at_ms < last_ms;
    let brought_task = run.task_id.is_empty() != (run.fate == Fate::Fired);
    match (run.fate, run.ticks) {
        _ if run.ticks == 0 => Some("it stands for no tick"),
        _ if too_early => Some("before its time"),
        _ if !brought_task => Some("a run has a task if it fired, and only then"),
        (Fate::Missed, _) if terms.missed != Missed::Skip => Some("missed, which this schedule never is"),
        (Fate::Missed, _) if late_ms(last_ms) <= terms.tolerance_ms => Some("missed within the tolerance"),
        (Fate::Missed, _) if run.by_hand => Some("missed by hand"),
        (Fate::Missed, _) => None,
        (Fate::Overlapped, _) if terms.overlap != Overlap::Skip => Some("overlapped, which this schedule allows"),
        (_, 2..) if run.by_hand => Some("by hand, for more than one tick"),
        (_, 2..) if terms.missed != Missed::Once => Some("one run for many ticks, where each has its own"),
        (_, 2..) if late_ms(run.tick_ms) <= terms.tolerance_ms => Some("one run for many, though none was too late"),
        _ => None,
    }
}

/// Nobody ends these tasks, so where overlaps are skipped nothing fires after the first.
fn only_first_without_overlap(story: &Story<'_>, findings: &mut Vec<Finding>) {
    let Some(tasks) = &story.tasks else { return };
    if story.terms.overlap != Overlap::Skip {
        return;
    }
    let alive: BTreeSet<&str> = tasks.is.iter().filter(|task| !task.is_ended).map(|task| task.id.as_str()).collect();
    let mut fired = story.runs.values().filter(|(run, _)| run.fate == Fate::Fired);
    let Some((first, by)) = fired.find(|(run, _)| alive.contains(run.task_id.as_str())) else { return };
    if let Some((second, and_by)) = fired.next() {
        let (name, task) = (story.name, &first.task_id);
        let text = format!("{name}: rev {} fired while {task}, of rev {}, had not ended", second.rev, first.rev);
        findings.push(Finding::new(text, [*by, *and_by, tasks.operation]));
    }
}

/// Nothing that was read once is gone or comes later, and what was acknowledged by hand is there.
pub(super) fn nothing_vanishes(story: &Story<'_>, findings: &mut Vec<Finding>) {
    findings.extend(story.conflicts.iter().cloned());
    let mut shown: BTreeMap<usize, BTreeSet<u64>> = BTreeMap::new();
    for (operation, rev) in &story.shown {
        shown.entry(*operation).or_default().insert(*rev);
    }
    let none = BTreeSet::new();
    for reading in &story.readings {
        let shown = shown.get(&reading.operation).unwrap_or(&none);
        if reading.from_rev > reading.to_rev {
            continue;
        }
        let mut there = story.runs.range(reading.from_rev..=reading.to_rev);
        if let Some((rev, (_, by))) = there.find(|(rev, _)| !shown.contains(rev)) {
            let text = format!("{}: the run of rev {rev} is not in a reading of rev {}", story.name, reading.to_rev);
            findings.push(Finding::new(text, [*by, reading.operation]));
        }
    }
    let covered = story.covered();
    for (operation, run) in &story.by_hand {
        match story.runs.get(&run.rev) {
            Some((kept, _)) if kept == run => {}
            None if !is_covered(&covered, run.rev, run.rev) => {}
            kept => {
                let kept = kept.map(|(kept, _)| kept);
                let text = format!("{}: by hand came {run:?}, and there is {kept:?}", story.name);
                findings.push(Finding::new(text, [*operation]));
            }
        }
    }
}

/// By hand there are as many runs as were asked for.
pub(super) fn by_hand_as_asked(story: &Story<'_>, findings: &mut Vec<Finding>) {
    let acknowledged: BTreeSet<u64> = story.by_hand.iter().map(|(_, run)| run.rev).collect();
    if acknowledged.len() < story.by_hand.len() {
        let text = format!("{}: two runs by hand were told of one rev", story.name);
        findings.push(Finding::new(text, story.by_hand.iter().map(|(operation, _)| *operation)));
    }
    let unasked = story.runs.values().filter(|(run, _)| run.by_hand && !acknowledged.contains(&run.rev));
    let unasked: Vec<usize> = unasked.map(|(_, by)| *by).collect();
    if unasked.len() as u64 > story.unknown_by_hand {
        let (count, unknown) = (unasked.len(), story.unknown_by_hand);
        let text = format!("{}: {count} runs by hand that nobody was told of, from {unknown} calls", story.name);
        findings.push(Finding::new(text, unasked));
    }
}

/// Every run has its task, every task its run, and both say the same.
pub(super) fn tasks(story: &Story<'_>, findings: &mut Vec<Finding>) {
    let Some(tasks) = &story.tasks else { return };
    let mut by_id = BTreeMap::new();
    for task in &tasks.is {
        if by_id.insert(task.id.as_str(), task).is_some() {
            findings.push(Finding::new(format!("{}: task {} is there twice", story.name, task.id), [tasks.operation]));
        }
    }
    let mut named: BTreeMap<&str, (u64, usize)> = BTreeMap::new();
    for (run, by) in story.runs.values().filter(|(run, _)| run.fate == Fate::Fired) {
        let mut wrong = |text: String, other: usize| {
            findings.push(Finding::new(format!("{}: {text}", story.name), [*by, other, tasks.operation]));
        };
        if let Some((rev, and_by)) = named.insert(&run.task_id, (run.rev, *by)) {
            wrong(format!("task {} is that of rev {rev} and of rev {}", run.task_id, run.rev), and_by);
        }
        match by_id.get(run.task_id.as_str()) {
            None if run.rev > tasks.rev => {}
            None => wrong(format!("the task {} of tick {} is gone", run.task_id, run.tick_ms), *by),
            Some(task) if (task.schedule.as_str(), task.tick_ms, task.rev) == (story.name, run.tick_ms, run.rev) => {}
            Some(task) => wrong(format!("the task of tick {}, rev {}, is {task:?}", run.tick_ms, run.rev), *by),
        }
    }
    let covered = story.covered();
    let mut unnamed = tasks.is.iter().filter(|task| !named.contains_key(task.id.as_str()));
    if let Some(task) = unnamed.find(|task| is_covered(&covered, task.rev, task.rev)) {
        let text = format!("{}: task {} of tick {} is that of no run", story.name, task.id, task.tick_ms);
        findings.push(Finding::new(text, [tasks.operation]));
    }
}

/// What the schedule counts is what there is. Only where every run was read.
pub(super) fn counts(story: &Story<'_>, findings: &mut Vec<Finding>) {
    let Some(stand) = &story.stand else { return };
    if !is_covered(&story.covered(), 0, stand.rev) {
        return;
    }
    let runs = || story.runs.range(..=stand.rev).map(|(_, (run, _))| run);
    let ticks = |fate: Fate| runs().filter(|run| run.fate == fate).map(|run| run.ticks).sum::<u64>();
    let fired = runs().filter(|run| run.fate == Fate::Fired).count() as u64;
    let there = (fired, ticks(Fate::Missed), ticks(Fate::Overlapped));
    let told = (stand.is.fired, stand.is.missed, stand.is.overlapped);
    if there != told {
        let text = format!("{}: fired, missed, overlapped: it counts {told:?}, and there are {there:?}", story.name);
        findings.push(Finding::new(text, [stand.operation]));
    }
}

/// While it is paused the clock brings nothing.
pub(super) fn pauses(story: &Story<'_>, findings: &mut Vec<Finding>) {
    let unknown = |operation: &&(&Operation, bool)| operation.0.outcome == Outcome::Info && !operation.1;
    let resumed_perhaps: Vec<usize> = story.pauses.iter().filter(unknown).map(|(open, _)| open.began_at).collect();
    let mut acknowledged: Vec<(u64, bool, &Operation)> =
        story.pauses.iter().filter_map(|(operation, paused)| Some((operation.rev()?, *paused, *operation))).collect();
    acknowledged.sort_unstable_by_key(|(rev, _, _)| *rev);
    for pair in acknowledged.windows(2) {
        let [(from, true, pausing), (to, _, after)] = pair else { continue };
        if resumed_perhaps.iter().any(|began_at| *began_at < after.ended_at) {
            continue;
        }
        if to <= from {
            continue;
        }
        let within = story.runs.range(from + 1..*to).find(|(_, (run, _))| !run.by_hand);
        if let Some((rev, (run, by))) = within {
            let text = format!("{}: tick {} came at rev {rev}, in a pause of rev {from}", story.name, run.tick_ms);
            findings.push(Finding::new(text, [pausing.id, after.id, *by]));
        }
    }
}
