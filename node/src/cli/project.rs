//! `quorate project`: how far the work is, drawn as a tree of projects, epics and features.

use clap::Subcommand;
use quorate_client::v1::{EpicProgress, ProjectProgress, StatusCounts};
use serde_json::{Value, json};

use super::Context;
use super::exit::Failure;
use super::output::{plain, short};

const STATUS_EXAMPLES: &str = "\
EXAMPLES:
  quorate project status
      every project, with a bar for each epic and feature
  quorate project status website
      one of them
  quorate project status website -o json
      for a program

A bar is full when every task is completed. Cancelled and skipped tasks are no longer owed and do not count.";

const BAR_WIDTH: usize = 20;
const LONGEST_NAME: usize = 48;

/// `quorate project …`
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Show projects with their epics and features, and how far each is
    #[command(after_help = STATUS_EXAMPLES)]
    Status {
        /// The project; without it, all of them
        #[arg(value_name = "PROJECT")]
        project: Option<String>,
    },
}

/// Does what the arguments say.
pub(crate) async fn run(context: &Context, command: Command) -> Result<(), Failure> {
    let Command::Status { project } = command;
    let wanted = project.unwrap_or_default();
    let answer = context.client.progress().projects(&wanted).await?;
    if answer.projects.is_empty() && !wanted.is_empty() {
        return Err(Failure::not_found(format!("no task belongs to a project {wanted:?}")));
    }
    context.out.show(
        || json!({ "projects": answer.projects.iter().map(view).collect::<Vec<_>>(), "rev": answer.rev }),
        || text(&answer.projects),
    )
}

/// The counts as JSON, by status.
pub(crate) fn counts_view(counts: &StatusCounts) -> Value {
    json!({
        "pending": counts.pending,
        "blocked": counts.blocked,
        "ready": counts.ready,
        "in_progress": counts.in_progress,
        "reported": counts.reported,
        "completed": counts.completed,
        "failed": counts.failed,
        "timed_out": counts.timed_out,
        "cancelled": counts.cancelled,
        "skipped": counts.skipped,
    })
}

/// Tasks that are on their way but not being worked on.
pub(crate) fn waiting(counts: &StatusCounts) -> u64 {
    counts.pending + counts.ready + counts.blocked
}

/// Tasks that ended badly.
pub(crate) fn failed(counts: &StatusCounts) -> u64 {
    counts.failed + counts.timed_out
}

/// Tasks that count: neither cancelled nor skipped.
fn owed(counts: &StatusCounts) -> u64 {
    waiting(counts) + counts.in_progress + counts.reported + counts.completed + failed(counts)
}

fn all(counts: &StatusCounts) -> u64 {
    owed(counts) + counts.cancelled + counts.skipped
}

/// How many epics, features and tasks; what has no name is not counted as one.
fn sizes(project: &ProjectProgress) -> (usize, usize, u64) {
    let epics = project.epics.iter().filter(|epic| !epic.epic.is_empty()).count();
    let features = project.epics.iter().flat_map(|epic| &epic.features).filter(|f| !f.feature.is_empty()).count();
    (epics, features, all(&project.counts.unwrap_or_default()))
}

fn view(project: &ProjectProgress) -> Value {
    let (epics, features, tasks) = sizes(project);
    json!({
        "project": project.project,
        "epics": epics,
        "features": features,
        "tasks": tasks,
        "counts": counts_view(&project.counts.unwrap_or_default()),
        "tree": project.epics.iter().map(epic_view).collect::<Vec<_>>(),
    })
}

fn epic_view(epic: &EpicProgress) -> Value {
    let features: Vec<Value> = (epic.features.iter())
        .map(|one| json!({ "feature": one.feature, "counts": counts_view(&one.counts.unwrap_or_default()) }))
        .collect();
    json!({ "epic": epic.epic, "counts": counts_view(&epic.counts.unwrap_or_default()), "features": features })
}

fn text(projects: &[ProjectProgress]) -> String {
    if projects.is_empty() {
        return "no task belongs to a project".to_owned();
    }
    projects.iter().map(project_text).collect::<Vec<_>>().join("\n\n")
}

fn project_text(project: &ProjectProgress) -> String {
    let (epics, features, tasks) = sizes(project);
    let counts = project.counts.unwrap_or_default();
    let name = name(&project.project, "(no project)");
    let mut text = format!(
        "{name}: {}, {}, {}\n{}  {}",
        many(epics as u64, "epic"),
        many(features as u64, "feature"),
        many(tasks, "task"),
        bar(&counts),
        standing(&counts)
    );
    let branches = branches(project);
    let width = branches.iter().map(|(label, _)| label.chars().count()).max().unwrap_or_default();
    for (label, counts) in branches {
        text.push_str(&format!("\n{label:<width$}  {}  {}/{}", bar(&counts), counts.completed, owed(&counts)));
        if failed(&counts) > 0 {
            text.push_str(&format!("  {} failed", failed(&counts)));
        }
    }
    text
}

/// The lines below a project. A level of which nothing has a name is left out.
fn branches(project: &ProjectProgress) -> Vec<(String, StatusCounts)> {
    let mut lines = Vec::new();
    let epics_named = project.epics.iter().any(|epic| !epic.epic.is_empty());
    for (at, epic) in project.epics.iter().enumerate() {
        let last_epic = at + 1 == project.epics.len();
        let (mut stem, mut indent) = (String::new(), String::new());
        if epics_named {
            stem.push_str(if last_epic { "└─ " } else { "├─ " });
            indent.push_str(if last_epic { "   " } else { "│  " });
            lines.push((format!("{stem}{}", name(&epic.epic, "(no epic)")), epic.counts.unwrap_or_default()));
        }
        if epic.features.iter().all(|one| one.feature.is_empty()) {
            continue;
        }
        for (at, one) in epic.features.iter().enumerate() {
            let stem = if at + 1 == epic.features.len() { "└─ " } else { "├─ " };
            let label = format!("{indent}{stem}{}", name(&one.feature, "(no feature)"));
            lines.push((label, one.counts.unwrap_or_default()));
        }
    }
    lines
}

/// `████████░░░░░░░░░░░░  41%`
fn bar(counts: &StatusCounts) -> String {
    let (done, owed) = (counts.completed, owed(counts));
    if owed == 0 {
        return format!("{}    -", "·".repeat(BAR_WIDTH));
    }
    // Rounded down: nothing looks complete that is not.
    let permille = u128::from(done) * 1_000 / u128::from(owed);
    let full = usize::try_from(permille).unwrap_or(1_000) * BAR_WIDTH / 1_000;
    format!("{}{} {:>3}%", "█".repeat(full), "░".repeat(BAR_WIDTH - full), permille / 10)
}

/// `50 completed, 3 in progress, 2 failed`; what is zero is left out.
fn standing(counts: &StatusCounts) -> String {
    let named = [
        ("completed", counts.completed),
        ("in progress", counts.in_progress),
        ("to be accepted", counts.reported),
        ("ready", counts.ready),
        ("pending", counts.pending),
        ("blocked", counts.blocked),
        ("failed", failed(counts)),
        ("cancelled", counts.cancelled),
        ("skipped", counts.skipped),
    ];
    let shown: Vec<String> = named.iter().filter(|(_, n)| *n > 0).map(|(word, n)| format!("{n} {word}")).collect();
    shown.join(", ")
}

fn many(count: u64, word: &str) -> String {
    if count == 1 { format!("1 {word}") } else { format!("{count} {word}s") }
}

fn name(given: &str, none: &str) -> String {
    if given.is_empty() { none.to_owned() } else { short(&plain(given), LONGEST_NAME) }
}

#[cfg(test)]
mod tests {
    use quorate_client::v1::FeatureProgress;

    use super::*;

    fn counts(completed: u64, ready: u64) -> Option<StatusCounts> {
        Some(StatusCounts { completed, ready, ..StatusCounts::default() })
    }

    fn feature(name: &str, completed: u64, ready: u64) -> FeatureProgress {
        FeatureProgress { feature: name.to_owned(), counts: counts(completed, ready) }
    }

    #[test]
    fn a_plan_of_many_epics_is_counted() {
        // 10 epics, 35 features, 122 tasks: five epics of four features and five of three; the last takes what is left.
        let mut left = 122;
        let epics: Vec<EpicProgress> = (0..10)
            .map(|e| {
                let names = if e < 5 { 0..4 } else { 0..3 };
                let features: Vec<FeatureProgress> = (names.map(|f| format!("F{e}{f}")))
                    .map(|name| {
                        let tasks = if name == "F92" { left } else { 3 };
                        left -= tasks;
                        feature(&name, 0, tasks)
                    })
                    .collect();
                EpicProgress { epic: format!("E{e}"), counts: None, features }
            })
            .collect();
        let project = ProjectProgress { project: "plan".to_owned(), counts: counts(0, 122), epics };
        assert_eq!((sizes(&project), left), ((10, 35, 122), 0));
        assert!(text(&[project]).starts_with("plan: 10 epics, 35 features, 122 tasks\n"));
    }

    #[test]
    fn a_tree_is_drawn_with_bars() {
        let epic = |epic: &str, features| EpicProgress { epic: epic.to_owned(), counts: counts(1, 3), features };
        let project = ProjectProgress {
            project: "p".to_owned(),
            counts: counts(2, 6),
            epics: vec![epic("", vec![feature("", 1, 3)]), epic("e", vec![feature("f", 1, 0), feature("gg", 0, 3)])],
        };
        let expected = "\
p: 1 epic, 2 features, 8 tasks
█████░░░░░░░░░░░░░░░  25%  2 completed, 6 ready
├─ (no epic)  █████░░░░░░░░░░░░░░░  25%  1/4
└─ e          █████░░░░░░░░░░░░░░░  25%  1/4
   ├─ f       ████████████████████ 100%  1/1
   └─ gg      ░░░░░░░░░░░░░░░░░░░░   0%  0/3";
        assert_eq!(project_text(&project), expected);
    }

    #[test]
    fn what_was_cancelled_is_not_owed() {
        let counts = StatusCounts { completed: 1, cancelled: 5, skipped: 5, ..StatusCounts::default() };
        assert!(bar(&counts).ends_with("100%"));
        assert!(bar(&StatusCounts { cancelled: 1, ..StatusCounts::default() }).ends_with(" -"));
        assert!(bar(&StatusCounts { completed: 999, failed: 1, ..StatusCounts::default() }).ends_with(" 99%"));
    }
}
