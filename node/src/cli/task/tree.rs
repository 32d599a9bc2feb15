//! A task's family drawn: what it waits for, what it spawned, and so on down.
//!
//! Looked up level by level and bounded in depth and number, so that a large graph gives a short answer. A task that
//! appears twice is drawn out once.

use std::collections::{BTreeMap, BTreeSet};

use clap::Args;
use futures::future::join_all;
use quorate_client::v1::{ListTasksRequest, Task, TaskSpec, TaskStatus};
use quorate_client::{Error, Tasks};
use serde_json::{Value, json};

use crate::cli::exit::Failure;
use crate::cli::output::{plain, short};
use crate::cli::{Context, view};

pub(super) const EXAMPLES: &str = "\
EXAMPLES:
  quorate task tree report
      what report waits for (\"after\") and what it spawned (\"spawned\"), each with its status:
      ✓ completed  ▶ in progress  ? reported  ○ ready or pending  … blocked
      ✗ failed or timed out  - skipped  ■ cancelled
  quorate task tree report --depth 1
      the next ones only";

/// More tasks than this are not drawn.
const MOST_TASKS: usize = 500;
/// Calls at one time.
const AT_ONCE: usize = 32;
/// Of one parent.
const MOST_CHILDREN: u32 = 200;

/// Flags of `quorate task tree`.
#[derive(Args)]
pub(crate) struct TreeArgs {
    /// The task at the top
    #[arg(value_name = "ID")]
    id: String,
    /// How many levels below it
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u8).range(1..=32))]
    depth: u8,
}

pub(super) async fn run(context: &Context, args: &TreeArgs) -> Result<(), Failure> {
    let tasks = context.client.tasks();
    let root = tasks.get(&args.id).await?.task.ok_or_else(|| Failure::not_found(format!("no task {}", args.id)))?;
    let family = Family::gather(&tasks, root, args.depth).await?;
    let tree = family.grow("", &args.id, args.depth, &mut BTreeSet::new());
    if family.is_cut {
        context.out.note(&format!("only a part is shown: {MOST_TASKS} tasks, {MOST_CHILDREN} children of each"));
    }
    context.out.show(|| tree.json(), || tree.text())
}

/// The tasks around one.
#[derive(Default)]
struct Family {
    tasks: BTreeMap<String, Task>,
    children: BTreeMap<String, Vec<String>>,
    /// There is more than what was looked up.
    is_cut: bool,
}

impl Family {
    async fn gather(tasks: &Tasks, root: Task, depth: u8) -> Result<Self, Error> {
        let mut family = Self::default();
        let mut level = BTreeMap::from([(root.id.clone(), root)]);
        for _ in 0..depth {
            let mut next = family.children_of(tasks, &level).await?;
            let wanted = family.unknown_dependencies(&level, &next);
            next.extend(look_up(tasks, &wanted).await?);
            family.tasks.append(&mut level);
            next.retain(|id, _| !family.tasks.contains_key(id));
            level = next;
            if level.is_empty() || family.tasks.len() + level.len() >= MOST_TASKS {
                family.is_cut |= !level.is_empty();
                break;
            }
        }
        family.tasks.append(&mut level);
        Ok(family)
    }

    /// Notes the children of each, and gives them.
    async fn children_of(
        &mut self,
        tasks: &Tasks,
        level: &BTreeMap<String, Task>,
    ) -> Result<BTreeMap<String, Task>, Error> {
        let parents: Vec<&str> = level.values().filter(|task| task.children > 0).map(|task| task.id.as_str()).collect();
        let mut found = BTreeMap::new();
        for parents in parents.chunks(AT_ONCE) {
            if found.len() >= MOST_TASKS {
                self.is_cut = true;
                break;
            }
            let calls = parents.iter().map(|parent| {
                let request =
                    ListTasksRequest { parent_id: (*parent).to_owned(), limit: MOST_CHILDREN, ..Default::default() };
                tasks.list(request)
            });
            for (parent, page) in parents.iter().zip(join_all(calls).await) {
                let page = page?;
                self.is_cut |= !page.next_page_token.is_empty();
                let ids = page.tasks.iter().map(|task| task.id.clone()).collect();
                self.children.insert((*parent).to_owned(), ids);
                found.extend(page.tasks.into_iter().map(|task| (task.id.clone(), task)));
            }
        }
        Ok(found)
    }

    fn unknown_dependencies(
        &mut self,
        level: &BTreeMap<String, Task>,
        next: &BTreeMap<String, Task>,
    ) -> BTreeSet<String> {
        let mut wanted = BTreeSet::new();
        for (_, id) in level.values().filter_map(|task| task.spec.as_ref()).flat_map(dependencies) {
            let is_known = self.tasks.contains_key(id) || level.contains_key(id) || next.contains_key(id);
            if is_known || wanted.contains(id) {
                continue;
            }
            if wanted.len() >= MOST_TASKS {
                self.is_cut = true;
                break;
            }
            wanted.insert(id.to_owned());
        }
        wanted
    }

    /// The branch of one task; `drawn` are those that stand elsewhere already.
    fn grow(&self, relation: &'static str, id: &str, depth: u8, drawn: &mut BTreeSet<String>) -> Branch {
        let task = self.tasks.get(id);
        let mut branch = Branch {
            relation,
            id: id.to_owned(),
            status: task.map(Task::status),
            title: task.map(|task| view::spec_of(task).title).unwrap_or_default(),
            drawn_above: false,
            below: Vec::new(),
        };
        let (Some(task), Some(depth)) = (task, depth.checked_sub(1)) else { return branch };
        if !drawn.insert(id.to_owned()) {
            branch.drawn_above = true;
            return branch;
        }
        for (relation, dependency) in task.spec.as_ref().into_iter().flat_map(dependencies) {
            branch.below.push(self.grow(relation, dependency, depth, drawn));
        }
        for child in self.children.get(id).into_iter().flatten() {
            branch.below.push(self.grow("spawned", child, depth, drawn));
        }
        branch
    }
}

/// What a task waits for, and how.
fn dependencies(spec: &TaskSpec) -> impl Iterator<Item = (&'static str, &str)> {
    let hard = spec.dependencies.iter().map(|id| ("after", id.as_str()));
    let pending = spec.pending_dependencies.iter().map(|id| ("after, once there,", id.as_str()));
    let soft = spec.soft_dependencies.iter().map(|id| ("after the end of", id.as_str()));
    hard.chain(pending).chain(soft)
}

/// Those of the tasks that exist: one may have been purged, or is still to be submitted.
async fn look_up(tasks: &Tasks, ids: &BTreeSet<String>) -> Result<BTreeMap<String, Task>, Error> {
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let mut found = BTreeMap::new();
    for ids in ids.chunks(AT_ONCE) {
        for answer in join_all(ids.iter().map(|id| tasks.get(id))).await {
            match answer {
                Ok(answer) => found.extend(answer.task.map(|task| (task.id.clone(), task))),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(found)
}

/// One line, and what hangs below it.
struct Branch {
    /// To the task above; empty for the first.
    relation: &'static str,
    id: String,
    /// `None`: there is no such task, or it was not looked up.
    status: Option<TaskStatus>,
    title: String,
    drawn_above: bool,
    below: Vec<Branch>,
}

impl Branch {
    fn json(&self) -> Value {
        json!({
            "id": self.id,
            "relation": self.relation,
            "status": self.status.map(|status| view::task_status(status as i32)),
            "title": self.title,
            "drawn_above": self.drawn_above,
            "below": self.below.iter().map(Branch::json).collect::<Vec<_>>(),
        })
    }

    fn text(&self) -> String {
        let mut lines = vec![self.line()];
        self.draw_below("", &mut lines);
        lines.join("\n")
    }

    fn draw_below(&self, indent: &str, lines: &mut Vec<String>) {
        for (at, branch) in self.below.iter().enumerate() {
            let is_last = at + 1 == self.below.len();
            let (corner, deeper) = if is_last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
            lines.push(format!("{indent}{corner}{}", branch.line()));
            branch.draw_below(&format!("{indent}{deeper}"), lines);
        }
    }

    /// `after ✓ build (completed) compile it`
    fn line(&self) -> String {
        let relation = if self.relation.is_empty() { String::new() } else { format!("{} ", self.relation) };
        let status = self.status.map_or_else(|| "not there".into(), |status| view::task_status(status as i32));
        let title = short(&self.title, 60);
        let above = if self.drawn_above { " (see above)" } else { "" };
        plain(&format!("{relation}{} {} ({status}) {title}{above}", mark(self.status), self.id))
    }
}

fn mark(status: Option<TaskStatus>) -> &'static str {
    match status {
        Some(TaskStatus::Completed) => "✓",
        Some(TaskStatus::InProgress) => "▶",
        Some(TaskStatus::Reported) => "?",
        Some(TaskStatus::Ready | TaskStatus::Pending) => "○",
        Some(TaskStatus::Blocked) => "…",
        Some(TaskStatus::Failed | TaskStatus::TimedOut) => "✗",
        Some(TaskStatus::Skipped) => "-",
        Some(TaskStatus::Cancelled) => "■",
        Some(TaskStatus::Unspecified) | None => "·",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn family() -> Family {
        let task = |id: &str, status: TaskStatus, dependencies: &[&str]| {
            let dependencies = dependencies.iter().map(|id| (*id).to_owned()).collect();
            let spec = TaskSpec { title: format!("do {id}"), dependencies, ..Default::default() };
            let task = Task { id: id.into(), status: status as i32, spec: Some(spec), ..Default::default() };
            (id.to_owned(), task)
        };
        let tasks = BTreeMap::from([
            task("top", TaskStatus::Blocked, &["a", "b"]),
            task("a", TaskStatus::Completed, &[]),
            task("b", TaskStatus::InProgress, &["a", "lost"]),
            task("b1", TaskStatus::Ready, &[]),
        ]);
        Family { tasks, children: BTreeMap::from([("b".into(), vec!["b1".into()])]), is_cut: false }
    }

    #[test]
    fn dependencies_and_children_hang_below_and_repeat_once() {
        let text = family().grow("", "top", 6, &mut BTreeSet::new()).text();
        let expected = "\
… top (blocked) do top
├─ after ✓ a (completed) do a
└─ after ▶ b (in_progress) do b
   ├─ after ✓ a (completed) do a (see above)
   ├─ after · lost (not there)
   └─ spawned ○ b1 (ready) do b1";
        assert_eq!(text, expected);
    }

    #[test]
    fn depth_is_bounded_even_in_a_circle() {
        let mut family = family();
        let tree = family.grow("", "top", 1, &mut BTreeSet::new());
        assert_eq!(tree.below.len(), 2);
        assert!(tree.below.iter().all(|branch| branch.below.is_empty()));
        if let Some(spec) = family.tasks.get_mut("a").and_then(|task| task.spec.as_mut()) {
            spec.dependencies.push("top".into());
        }
        let text = family.grow("", "top", 32, &mut BTreeSet::new()).text();
        assert!(text.contains("after … top (blocked) do top (see above)"), "{text}");
    }

    #[test]
    fn a_program_gets_the_same_tree() {
        let view = family().grow("", "top", 6, &mut BTreeSet::new()).json();
        assert_eq!(view["below"][1]["below"][1]["status"], Value::Null);
        assert_eq!(view["below"][1]["below"][2]["relation"], "spawned");
        assert_eq!(view["below"][1]["below"][0]["drawn_above"], true);
    }
}
