//! Lines about progress, all of them reads.
//!
//! `projects [NAME]`: a line for each project, epic (indented once) and feature (twice), "-" for an empty name.
//! `checkpoints [PROJECT] limit=`: newest first. `history from= before= limit=`. `totals`: all tasks, and how many of the
//! completed ones nobody touched.

use quorate_proto::log::{answer, command};
use quorate_proto::v1::{Checkpoint, Sample, StatusCounts};
use quorate_raft::apply::Machine;
use quorate_raft::state::progress::Progress;

use super::Line;

pub(crate) fn body(_line: &Line<'_>) -> Option<command::Body> {
    None
}

pub(crate) fn show(_body: &answer::Body) -> Option<String> {
    None
}

pub(crate) fn read(machine: &Machine, _now_ms: u64, line: &Line<'_>) -> Option<String> {
    let (progress, rows) = (&machine.rooms().progress, &machine.rows);
    let limit = line.small("limit", 100) as usize;
    match line.verb {
        "projects" => Some(lines(show_projects(progress, &line.id()))),
        "checkpoints" => {
            let found = Progress::checkpoints(rows, &line.id(), limit).expect("rows that can be read");
            Some(lines(found.iter().map(show_checkpoint).collect()))
        }
        "history" => {
            let (from, before) = (line.number("from", 0), line.number("before", u64::MAX));
            let found = progress.history(rows, from, before, limit).expect("rows that can be read");
            Some(lines(found.iter().map(show_sample).collect()))
        }
        "totals" => Some(format!("{} unaided={}", show_counts(Some(&progress.totals())), progress.completed_unaided())),
        _ => None,
    }
}

fn show_projects(progress: &Progress, filter: &str) -> Vec<String> {
    let mut shown = Vec::new();
    for project in progress.projects(filter) {
        shown.push(format!("{} {}", name(&project.project), show_counts(project.counts.as_ref())));
        for epic in project.epics {
            shown.push(format!("  {} {}", name(&epic.epic), show_counts(epic.counts.as_ref())));
            for feature in epic.features {
                shown.push(format!("    {} {}", name(&feature.feature), show_counts(feature.counts.as_ref())));
            }
        }
    }
    shown
}

fn show_checkpoint(checkpoint: &Checkpoint) -> String {
    let Checkpoint { at_ms, project, epic, feature, milestone, counts, .. } = checkpoint;
    let place = [project, epic, feature].map(|part| name(part)).join("/");
    format!("{milestone} {place} at={at_ms} {}", show_counts(counts.as_ref()))
}

fn show_sample(sample: &Sample) -> String {
    let Sample { at_ms, counts, agents, attempts_ended, completed_unaided } = sample;
    let counts = show_counts(counts.as_ref());
    format!("{at_ms} {counts} agents={agents} attempts={attempts_ended} unaided={completed_unaided}")
}

fn show_counts(counts: Option<&StatusCounts>) -> String {
    let counts = counts.copied().unwrap_or_default();
    let named = [
        ("pending", counts.pending),
        ("ready", counts.ready),
        ("blocked", counts.blocked),
        ("in_progress", counts.in_progress),
        ("reported", counts.reported),
        ("completed", counts.completed),
        ("failed", counts.failed),
        ("timed_out", counts.timed_out),
        ("cancelled", counts.cancelled),
        ("skipped", counts.skipped),
    ];
    let shown: Vec<String> = named.iter().filter(|(_, n)| *n > 0).map(|(name, n)| format!("{name}={n}")).collect();
    if shown.is_empty() { "none".to_owned() } else { shown.join(" ") }
}

fn name(name: &str) -> &str {
    if name.is_empty() { "-" } else { name }
}

fn lines(lines: Vec<String>) -> String {
    if lines.is_empty() { "none".to_owned() } else { lines.join("\n") }
}
