//! The ready queues: which task comes next for whom.
//!
//! Tasks with equal needs stand in one line, so a claim looks at the heads of the lines it may serve and never at a task
//! it cannot do. A task pinned to an agent stands in a line of that agent's, which other agents never look at.
//!
//! Among the heads the order is: the band (the priority, raised by ageing; or by weight, where the policy says so), then
//! the turn of the share, then age. Deliberately absent: limits and breakers. Whoever picks says which lines are open.
//!
//! A line exists while a live task needs it, ready or not; [`MAX_SETS`] bounds the lines of one pin, so the cost of a
//! claim does not grow with the number of tasks.

use std::collections::BTreeMap;
use std::sync::Arc;

use quorate_proto::v1::{Agent, BandOrder, DispatchPolicy, QueueDepth, Task, TaskSpec};

use super::needs::Needs;
use super::turns::Turns;

/// How many different needs live tasks may have: those that any agent may do, and for each agent those pinned to it.
pub const MAX_SETS: usize = 4_096;
/// The highest priority.
pub const MAX_PRIORITY: u32 = 10;
/// The priority of a task that asks for none.
pub const DEFAULT_PRIORITY: u32 = 5;

/// The pin of a task that any agent may do.
pub(super) const NO_PIN: &str = "";

/// The order inside a line: higher priority first, then older, then as the request listed them. The id only names it.
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

    fn priority(&self) -> u8 {
        u8::MAX - self.rank
    }
}

/// A task's priority. Stored tasks have theirs filled in.
pub(super) fn priority(task: &Task) -> u32 {
    task.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(DEFAULT_PRIORITY).min(MAX_PRIORITY)
}

/// Smaller comes first.
fn rank(priority: u32) -> u8 {
    u8::MAX - u8::try_from(priority).unwrap_or(u8::MAX)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    created_at_ms: u64,
    ready_since_ms: u64,
}

/// The tasks of one pin with the same needs.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Line {
    /// Live tasks that belong here, ready or not.
    live: u64,
    ready: BTreeMap<Place, Stamp>,
}

impl Line {
    /// The first of each priority.
    fn heads(&self) -> impl Iterator<Item = (&Place, Stamp)> {
        let mut from = Some(0_u8);
        std::iter::from_fn(move || {
            let start = Place { rank: from?, created_rev: 0, created_position: 0, id: Arc::from("") };
            let (place, stamp) = self.ready.range(start..).next()?;
            from = place.rank.checked_add(1);
            Some((place, *stamp))
        })
    }
}

/// Every line.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Queues {
    by_pin: BTreeMap<String, BTreeMap<Needs, Line>>,
    /// How many live tasks each share has.
    shares: BTreeMap<String, u64>,
}

/// Names a line.
#[derive(Debug, Clone)]
pub(super) struct LineKey {
    pub(super) pin: String,
    pub(super) needs: Needs,
}

/// How the heads of lines are compared.
#[derive(Clone, Copy)]
pub(super) struct Order<'a> {
    pub(super) policy: &'a DispatchPolicy,
    pub(super) turns: &'a Turns,
    pub(super) now_ms: u64,
}

/// A head that may go, and where it stands. Smaller goes first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Candidate<'a> {
    band_key: u128,
    share_key: u128,
    /// Its birth. The priority is in the band already, perhaps raised.
    age: (u64, u32),
    place: &'a Place,
    pub(super) band: u8,
    pub(super) pin: &'a str,
    pub(super) needs: &'a Needs,
}

impl Candidate<'_> {
    pub(super) fn task_id(&self) -> Arc<str> {
        Arc::clone(&self.place.id)
    }
}

impl Queues {
    /// A live task belongs to the line of its needs from now on.
    pub(super) fn admit(&mut self, spec: &TaskSpec) {
        self.line(spec).live += 1;
        *self.shares.entry(spec.share.clone()).or_default() += 1;
    }

    /// The task ended: its line may go with it.
    pub(super) fn dismiss(&mut self, spec: &TaskSpec) {
        if let Some(live) = self.shares.get_mut(&spec.share) {
            *live = live.saturating_sub(1);
            if *live == 0 {
                self.shares.remove(&spec.share);
            }
        }
        let Some(lines) = self.by_pin.get_mut(&spec.agent_id) else {
            return;
        };
        let needs = Needs::of(spec);
        if let Some(line) = lines.get_mut(&needs) {
            line.live = line.live.saturating_sub(1);
            if line.live == 0 {
                lines.remove(&needs);
            }
        }
        if lines.is_empty() {
            self.by_pin.remove(&spec.agent_id);
        }
    }

    /// Puts a ready task in its line.
    pub(super) fn insert(&mut self, task: &Task) {
        if let Some(spec) = &task.spec {
            let stamp = Stamp { created_at_ms: task.created_at_ms, ready_since_ms: task.ready_since_ms };
            self.line(spec).ready.insert(Place::of(task), stamp);
        }
    }

    /// Takes a task out of its line.
    pub(super) fn remove(&mut self, task: &Task) {
        if let Some(spec) = &task.spec
            && let Some(line) = self.by_pin.get_mut(&spec.agent_id).and_then(|lines| lines.get_mut(&Needs::of(spec)))
        {
            line.ready.remove(&Place::of(task));
        }
    }

    /// Whether the task stands in its line.
    pub(super) fn contains(&self, task: &Task) -> bool {
        self.line_of(task).is_some_and(|line| line.ready.contains_key(&Place::of(task)))
    }

    /// How many ready tasks of its own line stand before this one.
    pub(super) fn ahead_in_line(&self, task: &Task, most: usize) -> usize {
        self.line_of(task).map_or(0, |line| line.ready.range(..Place::of(task)).take(most).count())
    }

    /// How many tasks are ready.
    pub(super) fn len(&self) -> usize {
        self.by_pin.values().flat_map(BTreeMap::values).map(|line| line.ready.len()).sum()
    }

    /// How many lines a pin has.
    pub(super) fn sets(&self, pin: &str) -> usize {
        self.by_pin.get(pin).map_or(0, BTreeMap::len)
    }

    /// Whether a live task has these needs already.
    pub(super) fn has_set(&self, pin: &str, needs: &Needs) -> bool {
        self.by_pin.get(pin).is_some_and(|lines| lines.contains_key(needs))
    }

    /// Whether more than one share has live tasks: only then turns matter.
    pub(super) fn many_shares(&self) -> bool {
        self.shares.len() > 1
    }

    /// Ready tasks by share, and by concurrency key.
    pub(super) fn ready_where(&self, wanted: impl Fn(&str, &Needs) -> bool) -> u64 {
        self.lines().filter(|(pin, needs, _)| wanted(pin, needs)).map(|(_, _, line)| line.ready.len() as u64).sum()
    }

    /// The shares with live tasks.
    pub(super) fn shares(&self) -> impl Iterator<Item = &str> {
        self.shares.keys().map(String::as_str)
    }

    /// The head that the agent takes next, of the lines that are open.
    pub(super) fn best_for<'a>(
        &'a self,
        agent: &'a Agent,
        order: Order<'a>,
        open: impl Fn(&Needs) -> bool,
    ) -> Option<Candidate<'a>> {
        [NO_PIN, agent.id.as_str()]
            .into_iter()
            .filter_map(|pin| self.by_pin.get_key_value(pin))
            .flat_map(|(pin, lines)| lines.iter().map(move |(needs, line)| (pin.as_str(), needs, line)))
            .filter(|(_, needs, line)| !line.ready.is_empty() && needs.fit(agent) && open(needs))
            .filter_map(|(pin, needs, line)| self.candidate(pin, needs, line, order))
            .min()
    }

    /// The lines with something in them: those that any agent may serve, and those of these pins.
    pub(super) fn waiting_lines<'p>(&self, pins: impl Iterator<Item = &'p str>) -> Vec<LineKey> {
        [NO_PIN]
            .into_iter()
            .chain(pins)
            .filter_map(|pin| self.by_pin.get_key_value(pin))
            .flat_map(|(pin, lines)| lines.iter().map(move |(needs, line)| (pin, needs, line)))
            .filter(|(_, _, line)| !line.ready.is_empty())
            .map(|(pin, needs, _)| LineKey { pin: pin.clone(), needs: needs.clone() })
            .collect()
    }

    /// The head of a line, if something stands in it.
    pub(super) fn head<'a>(&'a self, key: &LineKey, order: Order<'a>) -> Option<Candidate<'a>> {
        let (pin, lines) = self.by_pin.get_key_value(&key.pin)?;
        let (needs, line) = lines.get_key_value(&key.needs)?;
        self.candidate(pin, needs, line, order)
    }

    /// How long each line is, empty ones left out.
    pub(super) fn depths(&self) -> Vec<QueueDepth> {
        self.lines().filter_map(|(pin, needs, line)| depth(pin, needs, line)).collect()
    }

    fn candidate<'a>(&self, pin: &'a str, needs: &'a Needs, line: &'a Line, order: Order<'a>) -> Option<Candidate<'a>> {
        let weighted = order.policy.order() == BandOrder::Weighted;
        let of = |(place, stamp): (&'a Place, Stamp)| {
            let band = aged(place.priority(), stamp.ready_since_ms, order);
            let band_key =
                if weighted { order.turns.band_start(band) } else { u128::from(MAX_PRIORITY) - u128::from(band) };
            let share_key = if self.many_shares() { order.turns.share_start(band, &needs.share) } else { 0 };
            let age = (place.created_rev, place.created_position);
            Candidate { band_key, share_key, age, place, band, pin, needs }
        };
        if !weighted && order.policy.ageing_ms == 0 {
            return line.ready.first_key_value().map(|(place, stamp)| of((place, *stamp)));
        }
        line.heads().map(of).min()
    }

    fn lines(&self) -> impl Iterator<Item = (&str, &Needs, &Line)> {
        self.by_pin.iter().flat_map(|(pin, lines)| lines.iter().map(move |(needs, line)| (pin.as_str(), needs, line)))
    }

    fn line(&mut self, spec: &TaskSpec) -> &mut Line {
        self.by_pin.entry(spec.agent_id.clone()).or_default().entry(Needs::of(spec)).or_default()
    }

    fn line_of(&self, task: &Task) -> Option<&Line> {
        let spec = task.spec.as_ref()?;
        self.by_pin.get(&spec.agent_id)?.get(&Needs::of(spec))
    }
}

/// One priority higher for each ageing period that it has been ready.
fn aged(priority: u8, ready_since_ms: u64, order: Order<'_>) -> u8 {
    let top = u8::try_from(MAX_PRIORITY).unwrap_or(u8::MAX);
    let waited_ms = order.now_ms.saturating_sub(ready_since_ms);
    let raised = waited_ms.checked_div(order.policy.ageing_ms).unwrap_or(0).min(u64::from(top));
    priority.saturating_add(u8::try_from(raised).unwrap_or(top)).min(top)
}

fn depth(pin: &str, needs: &Needs, line: &Line) -> Option<QueueDepth> {
    let (first, _) = line.ready.first_key_value()?;
    Some(QueueDepth {
        required_capabilities: needs.capabilities.clone(),
        agent_id: pin.to_owned(),
        ready: line.ready.len() as u64,
        highest_priority: u32::from(first.priority()),
        // The oldest stands first in the line of one of the few priorities.
        oldest_created_at_ms: line.heads().map(|(_, stamp)| stamp.created_at_ms).min()?,
        agent_type: needs.agent_type.clone(),
        concurrency_keys: needs.keys.clone(),
        share: needs.share.clone(),
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
        let created_at_ms = created_rev * 10;
        let ready_since_ms = created_at_ms;
        Task { id: id.to_owned(), spec: Some(spec), created_rev, created_at_ms, ready_since_ms, ..Task::default() }
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

    /// The order in which the agent would take what there is.
    fn taken(tasks: &[Task], agent: &Agent, policy: DispatchPolicy, now_ms: u64) -> Vec<String> {
        let mut queues = queues(tasks);
        let turns = Turns::default();
        let mut taken = Vec::new();
        loop {
            let order = Order { policy: &policy, turns: &turns, now_ms };
            let Some(best) = queues.best_for(agent, order, |_| true).map(|best| best.task_id()) else {
                return taken;
            };
            taken.push(best.to_string());
            queues.remove(tasks.iter().find(|task| *task.id == *best).expect("a task of ours"));
        }
    }

    #[test]
    fn lines_merge_by_priority_then_age_then_id() {
        let tasks = [
            task("low-old", 1, 1, &["rust"], ""),
            task("mid-young", 5, 9, &["go"], ""),
            task("mid-old-b", 5, 2, &["rust"], ""),
            task("mid-old-a", 5, 2, &["go", "rust"], ""),
            task("high", 10, 8, &[], ""),
        ];
        let strict = DispatchPolicy::default();
        let all = taken(&tasks, &agent("a", &["go", "rust"]), strict, 0);
        assert_eq!(all, ["high", "mid-old-a", "mid-old-b", "mid-young", "low-old"]);
        assert_eq!(taken(&tasks, &agent("a", &["rust"]), strict, 0), ["high", "mid-old-b", "low-old"]);
    }

    #[test]
    fn a_pinned_task_is_seen_by_its_agent_only_and_still_needs_the_capabilities() {
        let tasks = [task("mine", 5, 1, &["rust"], "a"), task("any", 5, 2, &["rust"], "")];
        let strict = DispatchPolicy::default();
        assert_eq!(taken(&tasks, &agent("a", &["rust"]), strict, 0), ["mine", "any"]);
        assert_eq!(taken(&tasks, &agent("b", &["rust"]), strict, 0), ["any"]);
        assert!(taken(&tasks, &agent("a", &["go"]), strict, 0).is_empty());
    }

    #[test]
    fn a_task_that_has_waited_long_passes_a_younger_one_of_higher_priority() {
        // Ready since 10 ms and 9,990 ms.
        let tasks = [task("old", 3, 1, &[], ""), task("young", 5, 999, &[], "")];
        let ageing = DispatchPolicy { ageing_ms: 4_000, ..DispatchPolicy::default() };
        assert_eq!(taken(&tasks, &agent("a", &[]), ageing, 8_009), ["young", "old"]);
        assert_eq!(taken(&tasks, &agent("a", &[]), ageing, 8_010), ["old", "young"]);
        assert_eq!(taken(&tasks, &agent("a", &[]), DispatchPolicy::default(), 8_010), ["young", "old"]);
    }

    #[test]
    fn the_lowest_priority_is_a_head_too() {
        let tasks = [task("lowest", 0, 1, &[], "")];
        let ageing = DispatchPolicy { ageing_ms: 4_000, ..DispatchPolicy::default() };
        assert_eq!(taken(&tasks, &agent("a", &[]), ageing, 0), ["lowest"]);
        assert_eq!(queues(&tasks).depths().len(), 1);
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
        assert!(queues.has_set("", &Needs::of(only.spec.as_ref().expect("a spec"))));
        queues.dismiss(only.spec.as_ref().expect("a spec"));
        assert_eq!(queues, Queues::default());
    }
}
