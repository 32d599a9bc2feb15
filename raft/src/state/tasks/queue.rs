//! The ready queues: which task comes next for whom.
//!
//! One ordered queue for each pin and requirement set: tasks that need the same capabilities stand in one line, so a
//! claim looks at the heads of the lines it may serve and never at a task it cannot do. A task pinned to an agent
//! stands in a line of that agent's, which other agents never look at.
//!
//! A line exists while a live task needs it, ready or not; [`MAX_SETS`] bounds the lines of one pin, so the cost of a
//! claim does not grow with the number of tasks.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

use quorate_proto::v1::{Agent, QueueDepth, Task, TaskSpec};

use crate::state::agents;

/// How many different requirement sets live tasks may have: those that any agent may do, and for each agent those
/// pinned to it.
pub const MAX_SETS: usize = 1_024;
/// The highest priority.
pub const MAX_PRIORITY: u32 = 10;
/// The priority of a task that asks for none.
pub const DEFAULT_PRIORITY: u32 = 5;

/// The pin of a task that any agent may do.
const NO_PIN: &str = "";

/// The queue's order: higher priority first, then older, then as the request listed them. The id only names the task.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    rank: u8,
    created_rev: u64,
    created_position: u32,
    id: Arc<str>,
}

impl Place {
    fn of(task: &Task) -> Self {
        Place {
            rank: rank(priority(task)),
            created_rev: task.created_rev,
            created_position: task.created_position,
            id: Arc::from(task.id.as_str()),
        }
    }
}

/// A task's priority. Stored tasks have theirs filled in.
fn priority(task: &Task) -> u32 {
    task.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(DEFAULT_PRIORITY).min(MAX_PRIORITY)
}

/// Smaller comes first.
fn rank(priority: u32) -> u8 {
    u8::MAX - u8::try_from(priority).unwrap_or(u8::MAX)
}

/// The tasks of one pin that need the same capabilities.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Line {
    /// Live tasks that belong here, ready or not.
    live: u64,
    /// The ready ones, with the time of their creation.
    ready: BTreeMap<Place, u64>,
}

type Lines = BTreeMap<Vec<String>, Line>;

/// Every line.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Queues {
    by_pin: BTreeMap<String, Lines>,
}

impl Queues {
    /// A live task belongs to the line of its requirements from now on.
    pub(super) fn admit(&mut self, spec: &TaskSpec) {
        self.line(spec).live += 1;
    }

    /// The task ended: its line may go with it.
    pub(super) fn dismiss(&mut self, spec: &TaskSpec) {
        let Some(lines) = self.by_pin.get_mut(&spec.agent_id) else {
            return;
        };
        if let Some(line) = lines.get_mut(&spec.required_capabilities) {
            line.live = line.live.saturating_sub(1);
            if line.live == 0 {
                lines.remove(&spec.required_capabilities);
            }
        }
        if lines.is_empty() {
            self.by_pin.remove(&spec.agent_id);
        }
    }

    /// Puts a ready task in its line.
    pub(super) fn insert(&mut self, task: &Task) {
        if let Some(spec) = &task.spec {
            self.line(spec).ready.insert(Place::of(task), task.created_at_ms);
        }
    }

    /// Takes a task out of its line.
    pub(super) fn remove(&mut self, task: &Task) {
        if let Some(line) = self.line_of(task) {
            line.ready.remove(&Place::of(task));
        }
    }

    /// Whether the task stands in its line.
    pub(super) fn contains(&self, task: &Task) -> bool {
        task.spec
            .as_ref()
            .and_then(|spec| self.by_pin.get(&spec.agent_id)?.get(&spec.required_capabilities))
            .is_some_and(|line| line.ready.contains_key(&Place::of(task)))
    }

    /// How many tasks are ready.
    pub(super) fn len(&self) -> usize {
        self.by_pin.values().flat_map(BTreeMap::values).map(|line| line.ready.len()).sum()
    }

    /// How many requirement sets a pin has.
    pub(super) fn sets(&self, pin: &str) -> usize {
        self.by_pin.get(pin).map_or(0, BTreeMap::len)
    }

    /// Whether a live task has these requirements already.
    pub(super) fn has_set(&self, pin: &str, capabilities: &[String]) -> bool {
        self.by_pin.get(pin).is_some_and(|lines| lines.contains_key(capabilities))
    }

    /// Whether anything is ready that the agent may do.
    pub(super) fn any(&self, agent: &Agent) -> bool {
        self.served_by(agent).next().is_some()
    }

    /// The best tasks for the agent, at most `limit`: the heads of its lines, merged.
    pub(super) fn best(&self, agent: &Agent, limit: usize) -> Vec<Arc<str>> {
        let mut lines: Vec<_> = self.served_by(agent).map(|line| line.ready.keys()).collect();
        let mut heads: BinaryHeap<Reverse<(&Place, usize)>> = BinaryHeap::with_capacity(lines.len());
        for (i, line) in lines.iter_mut().enumerate() {
            heads.extend(line.next().map(|place| Reverse((place, i))));
        }
        let mut best = Vec::new();
        while best.len() < limit
            && let Some(Reverse((place, i))) = heads.pop()
        {
            best.push(Arc::clone(&place.id));
            heads.extend(lines[i].next().map(|place| Reverse((place, i))));
        }
        best
    }

    /// How long each line is, empty ones left out.
    pub(super) fn depths(&self) -> Vec<QueueDepth> {
        let lines = self.by_pin.iter().flat_map(|(pin, lines)| lines.iter().map(move |(set, line)| (pin, set, line)));
        lines.filter_map(|(pin, set, line)| depth(pin, set, line)).collect()
    }

    /// The lines with something in them that the agent may serve.
    fn served_by<'a>(&'a self, agent: &'a Agent) -> impl Iterator<Item = &'a Line> {
        [NO_PIN, agent.id.as_str()]
            .into_iter()
            .filter_map(move |pin| self.by_pin.get(pin))
            .flatten()
            .filter(move |(set, line)| !line.ready.is_empty() && agents::offers(agent, set))
            .map(|(_, line)| line)
    }

    fn line(&mut self, spec: &TaskSpec) -> &mut Line {
        let lines = self.by_pin.entry(spec.agent_id.clone()).or_default();
        lines.entry(spec.required_capabilities.clone()).or_default()
    }

    fn line_of(&mut self, task: &Task) -> Option<&mut Line> {
        let spec = task.spec.as_ref()?;
        self.by_pin.get_mut(&spec.agent_id)?.get_mut(&spec.required_capabilities)
    }
}

/// The oldest stands first in the line of one of the few priorities.
fn depth(pin: &str, set: &[String], line: &Line) -> Option<QueueDepth> {
    let (first, _) = line.ready.first_key_value()?;
    let oldest = (0..=MAX_PRIORITY)
        .filter_map(|priority| {
            let from = Place { rank: rank(priority), created_rev: 0, created_position: 0, id: Arc::from("") };
            let (place, created_at_ms) = line.ready.range(from..).next()?;
            (place.rank == rank(priority)).then_some(*created_at_ms)
        })
        .min()?;
    Some(QueueDepth {
        required_capabilities: set.to_vec(),
        agent_id: pin.to_owned(),
        ready: line.ready.len() as u64,
        highest_priority: u32::from(u8::MAX - first.rank),
        oldest_created_at_ms: oldest,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(id: &str, priority: u32, created_rev: u64, capabilities: &[&str], pin: &str) -> Task {
        let spec = TaskSpec {
            priority: Some(priority),
            required_capabilities: capabilities.iter().map(|name| (*name).to_owned()).collect(),
            agent_id: pin.to_owned(),
            ..TaskSpec::default()
        };
        Task { id: id.to_owned(), spec: Some(spec), created_rev, created_at_ms: created_rev * 10, ..Task::default() }
    }

    fn queues(tasks: &[Task]) -> Queues {
        let mut queues = Queues::default();
        for task in tasks {
            queues.admit(task.spec.as_ref().expect("a spec"));
            queues.insert(task);
        }
        queues
    }

    fn agent(id: &str, capabilities: &[&str]) -> Agent {
        let capabilities = capabilities.iter().map(|name| (*name).to_owned()).collect();
        Agent { id: id.to_owned(), capabilities, ..Agent::default() }
    }

    fn best(queues: &Queues, agent: &Agent, limit: usize) -> Vec<String> {
        queues.best(agent, limit).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn lines_merge_by_priority_then_age_then_id() {
        let queues = queues(&[
            task("low-old", 1, 1, &["rust"], ""),
            task("mid-young", 5, 9, &["go"], ""),
            task("mid-old-b", 5, 2, &["rust"], ""),
            task("mid-old-a", 5, 2, &["go", "rust"], ""),
            task("high", 10, 8, &[], ""),
        ]);
        let all = agent("a", &["go", "rust"]);
        assert_eq!(best(&queues, &all, 10), ["high", "mid-old-a", "mid-old-b", "mid-young", "low-old"]);
        assert_eq!(best(&queues, &all, 2), ["high", "mid-old-a"]);
        assert_eq!(best(&queues, &agent("a", &["rust"]), 10), ["high", "mid-old-b", "low-old"]);
    }

    #[test]
    fn a_pinned_task_is_seen_by_its_agent_only_and_still_needs_the_capabilities() {
        let queues = queues(&[task("mine", 5, 1, &["rust"], "a"), task("any", 5, 2, &["rust"], "")]);
        assert_eq!(best(&queues, &agent("a", &["rust"]), 10), ["mine", "any"]);
        assert_eq!(best(&queues, &agent("b", &["rust"]), 10), ["any"]);
        assert!(!queues.any(&agent("a", &["go"])));
    }

    #[test]
    fn depth_names_the_highest_priority_and_the_oldest_task() {
        let queues = queues(&[task("high", 9, 5, &["rust"], ""), task("low", 2, 3, &["rust"], "")]);
        let depths = queues.depths();
        assert_eq!(depths.len(), 1);
        assert_eq!((depths[0].ready, depths[0].highest_priority, depths[0].oldest_created_at_ms), (2, 9, 30));
    }

    #[test]
    fn a_line_goes_with_its_last_task() {
        let only = task("t", 5, 1, &["rust"], "");
        let mut queues = queues(std::slice::from_ref(&only));
        queues.remove(&only);
        assert!(queues.has_set("", &["rust".to_owned()]));
        queues.dismiss(only.spec.as_ref().expect("a spec"));
        assert_eq!(queues, Queues::default());
    }
}
