//! What tests of the state machine share: a state read from its rows, and what must hold of any state.
//!
//! Everything is computed anew from the rows, as slowly as it likes. Of the indexes it asks only what it compares, and
//! whether a breaker admits, which is a function of one row and the time.

// Not every test uses all of it, and helpers of a test are tests too.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use prost::Message;
use quorate_proto::log::Command;
use quorate_proto::v1::{
    Agent, AgentStatus, Attempt, AttemptOutcome, Breaker, BreakerState, EventKind, Limit, LimitScope, Review,
    StatusCounts, Task, TaskSpec, TaskStatsResponse, TaskStatus,
};
use quorate_raft::apply::Machine;
use quorate_raft::effect::Effect;
use quorate_raft::history;
use quorate_raft::state::breakers::{self, Admission};
use quorate_raft::state::namespaces::Namespaces;
use quorate_raft::state::tasks as tasks_room;
use quorate_raft::storage::keys::{Key, Table};
use quorate_raft::storage::rows::{self, MemoryRows};

/// Who asks a breaker without being a task.
pub(crate) const CALLER: &str = "caller";

/// Counts by the number of a status.
type Counts = [u64; 11];

pub(crate) fn session_id(n: u8) -> String {
    format!("s{n}")
}

pub(crate) fn agent_id(n: u8) -> String {
    format!("a{n}")
}

pub(crate) fn task_id(n: u8) -> String {
    format!("t{n:03}")
}

/// Each bit a capability.
pub(crate) fn capabilities(bits: u8) -> Vec<String> {
    ["rust", "review"].iter().enumerate().filter(|(i, _)| (bits >> i) & 1 == 1).map(|(_, c)| (*c).to_owned()).collect()
}

pub(crate) fn is_ended(status: TaskStatus) -> bool {
    use TaskStatus::{Cancelled, Completed, Failed, Skipped, TimedOut};
    matches!(status, Completed | Failed | TimedOut | Cancelled | Skipped)
}

/// Whether those that need a task that ended so go on.
pub(crate) fn ended_well(status: TaskStatus) -> bool {
    matches!(status, TaskStatus::Completed | TaskStatus::Skipped)
}

/// Whether a tick would have something to do.
pub(crate) fn is_due(machine: &Machine) -> bool {
    machine.rooms().next_due_ms().is_some_and(|at_ms| at_ms <= machine.head.now_ms)
}

/// Every row of a table.
pub(crate) fn scan<M: Message + Default>(rows: &MemoryRows, table: Table) -> Vec<M> {
    let mut found = Vec::new();
    rows::scan_prefix::<M>(rows, &Key::table(table), |_, row| {
        found.push(row);
        Ok(true)
    })
    .expect("rows that can be read");
    found
}

/// Every key of a table.
pub(crate) fn keys(rows: &MemoryRows, table: Table) -> BTreeSet<Vec<u8>> {
    rows.0.keys().filter(|key| key.first() == Some(&(table as u8))).cloned().collect()
}

/// Every task, live or ended, by id.
pub(crate) fn tasks(rows: &MemoryRows) -> BTreeMap<String, Task> {
    let (live, ended) = (scan::<Task>(rows, Table::LiveTask), scan::<Task>(rows, Table::DoneTask));
    assert!(live.iter().all(|task| !is_ended(task.status())), "an ended task among the live ones");
    assert!(ended.iter().all(|task| is_ended(task.status())), "a live task among the ended ones");
    let count = live.len() + ended.len();
    let all: BTreeMap<String, Task> = live.into_iter().chain(ended).map(|task| (task.id.clone(), task)).collect();
    assert_eq!(all.len(), count, "a task is live and ended at once");
    all
}

/// Every attempt by task, oldest first.
pub(crate) fn attempts(rows: &MemoryRows) -> BTreeMap<String, Vec<Attempt>> {
    let mut attempts: BTreeMap<String, Vec<Attempt>> = BTreeMap::new();
    for attempt in scan::<Attempt>(rows, Table::Attempt) {
        attempts.entry(attempt.task_id.clone()).or_default().push(attempt);
    }
    attempts
}

/// Everything but the record of answered requests.
pub(crate) fn without_requests(rows: &MemoryRows) -> MemoryRows {
    let rest = rows.0.iter().filter(|(key, _)| key.first() != Some(&(Table::Request as u8)));
    MemoryRows(rest.map(|(key, value)| (key.clone(), value.clone())).collect())
}

/// The indexes are those that a start would build.
pub(crate) fn check_indexes(machine: &Machine) {
    let rebuilt = Namespaces::rebuild(&machine.rows).expect("rows that can be read");
    assert_eq!(rebuilt, machine.namespaces, "indexes differ from the rows");
}

/// The event history of the default namespace, applied to nothing, gives its objects; nothing in it is out of order.
pub(crate) fn check_history(machine: &Machine) {
    let mut replayed: BTreeMap<(String, String), Bytes> = BTreeMap::new();
    for ((rev, _), row) in machine.events.iter().filter(|((_, namespace), _)| *namespace == 0) {
        let stored = history::decode(row).expect("a row of the history");
        let mut seen = BTreeSet::new();
        for event in stored.events {
            assert_eq!(event.rev, *rev);
            let object = (event.room.clone(), event.key.clone());
            assert!(seen.insert(object.clone()), "two events of one object at rev {rev}: {object:?}");
            match event.kind() {
                EventKind::Put => replayed.insert(object, event.value),
                EventKind::Delete => replayed.remove(&object),
                EventKind::Unspecified => panic!("an event of no kind: {event:?}"),
            };
        }
    }
    let objects = history::objects(&machine.rows).expect("rows that can be read");
    let objects: BTreeMap<(String, String), Bytes> =
        objects.into_iter().map(|((room, key), value)| ((room.to_owned(), key), value)).collect();
    assert_eq!(replayed, objects, "the history does not give the objects");
}

/// The same log again gives the same rows, digest, indexes and history.
pub(crate) fn check_replay(machine: &Machine, log: &[(u64, Command)], entropy: u64) {
    let mut again = Machine::in_memory();
    for (now_ms, command) in log {
        again.apply(*now_ms, entropy, vec![command.clone()]).expect("no fatal error");
    }
    assert_eq!(again.digest(), machine.digest());
    assert_eq!(again.rows, machine.rows);
    assert_eq!(again.namespaces, machine.namespaces);
    assert_eq!(again.events, machine.events);
    check_history(machine);
}

/// Several commands in one entry see each other's writes, and twice the same entries give the same state.
pub(crate) fn check_batched(log: &[(u64, Command)], entropy: u64, check: impl Fn(&Machine)) {
    let mut machines = [Machine::in_memory(), Machine::in_memory()];
    for chunk in log.chunks(5) {
        let now_ms = chunk.iter().map(|(now_ms, _)| *now_ms).max().unwrap_or_default();
        for machine in &mut machines {
            let commands = chunk.iter().map(|(_, command)| command.clone()).collect();
            machine.apply(now_ms, entropy, commands).expect("no fatal error");
        }
        check(&machines[0]);
    }
    let [one, other] = machines;
    assert_eq!(one.digest(), other.digest());
    assert_eq!(one.rows, other.rows);
    assert_eq!(one.namespaces, other.namespaces);
    check_history(&one);
}

pub(crate) fn spec(task: &Task) -> &TaskSpec {
    task.spec.as_ref().expect("a spec")
}

/// What the task must not start before: each COMPLETED or SKIPPED.
pub(crate) fn hard(task: &Task) -> impl Iterator<Item = &String> {
    spec(task).dependencies.iter().chain(&spec(task).pending_dependencies)
}

/// Whether a running task counts against a limit.
pub(crate) fn counts_under(task: &Task, scope: LimitScope, name: &str) -> bool {
    let Some(claim) = &task.claim else { return false };
    match scope {
        LimitScope::Total => true,
        LimitScope::AgentType => claim.agent_type == name,
        LimitScope::Key => spec(task).concurrency_keys.iter().any(|key| key == name),
        LimitScope::Unspecified => false,
    }
}

/// A state, read from its rows.
pub(crate) struct View<'a> {
    pub(crate) machine: &'a Machine,
    pub(crate) tasks: BTreeMap<String, Task>,
    pub(crate) agents: Vec<Agent>,
    pub(crate) attempts: BTreeMap<String, Vec<Attempt>>,
    /// Dependency, and who waits for it.
    pub(crate) edges: BTreeSet<(String, String)>,
    pub(crate) limits: Vec<Limit>,
}

impl<'a> View<'a> {
    pub(crate) fn of(machine: &'a Machine) -> Self {
        let rows = &machine.rows;
        View {
            machine,
            tasks: tasks(rows),
            agents: scan(rows, Table::Agent),
            attempts: attempts(rows),
            edges: keys(rows, Table::Dependent).iter().map(|key| edge(key)).collect(),
            limits: scan(rows, Table::Limit),
        }
    }

    pub(crate) fn live(&self) -> impl Iterator<Item = &Task> {
        self.tasks.values().filter(|task| !is_ended(task.status()))
    }

    pub(crate) fn status(&self, task_id: &str) -> Option<TaskStatus> {
        self.tasks.get(task_id).map(|task| task.status())
    }

    /// Whether everybody has heard of every end.
    pub(crate) fn is_told(&self) -> bool {
        keys(&self.machine.rows, Table::Aftermath).is_empty()
    }

    pub(crate) fn running_under(&self, scope: LimitScope, name: &str) -> usize {
        self.tasks.values().filter(|task| counts_under(task, scope, name)).count()
    }

    /// Everything that must hold whatever happened before.
    pub(crate) fn check(&self) {
        self.check_places();
        self.check_attempts();
        self.check_edges();
        self.check_counts();
        self.check_evidence();
        self.check_probes();
        self.check_idle();
    }

    fn check_places(&self) {
        let room = &self.machine.rooms().tasks;
        assert_eq!(room.live(), self.live().count());
        let mut held: BTreeMap<&str, usize> = BTreeMap::new();
        for task in self.tasks.values() {
            let status = task.status();
            let expected = if is_ended(status) { Vec::new() } else { vec![status] };
            assert_eq!(room.places(task), expected, "{task:?}");
            let runs = status == TaskStatus::InProgress;
            assert_eq!(task.claim.is_some(), runs, "{task:?}");
            assert!(runs || task.cancel.is_none(), "asked to stop, but does not run: {task:?}");
            if let Some(claim) = &task.claim {
                *held.entry(claim.agent_id.as_str()).or_default() += 1;
            }
        }
        for agent in &self.agents {
            let held = held.remove(agent.id.as_str()).unwrap_or_default();
            assert_eq!((agent.load as usize, room.held_by(&agent.id)), (held, held), "{agent:?}");
        }
        assert!(held.is_empty(), "attempts of agents that have no record: {held:?}");
        let is_dead = |task: &&Task| matches!(task.status(), TaskStatus::Failed | TaskStatus::TimedOut);
        let dead = self.tasks.values().filter(is_dead);
        let dead: BTreeSet<_> =
            dead.map(|task| Key::table(Table::DeadTask).text(&task.id).as_bytes().to_vec()).collect();
        assert_eq!(keys(&self.machine.rows, Table::DeadTask), dead, "dead letters");
    }

    /// One runs exactly while its task does, under the token of the claim; tokens rise; each is found by its agent.
    fn check_attempts(&self) {
        let mut by_agent = BTreeSet::new();
        for (task_id, attempts) in &self.attempts {
            let task = self.tasks.get(task_id).unwrap_or_else(|| panic!("attempts of {task_id}, which is not there"));
            assert_eq!(attempts.len(), task.attempts as usize, "{task:?}");
            assert!(attempts.is_sorted_by(|a, b| a.token < b.token), "tokens do not rise: {attempts:?}");
            for attempt in attempts {
                let key = Key::table(Table::AgentAttempt).text(&attempt.agent_id).number(u64::MAX - attempt.token);
                by_agent.insert(key.text(task_id).as_bytes().to_vec());
            }
        }
        assert_eq!(keys(&self.machine.rows, Table::AgentAttempt), by_agent, "attempts by agent");
        for task in self.tasks.values() {
            let attempts = self.attempts.get(&task.id).into_iter().flatten();
            let running: Vec<u64> =
                attempts.filter(|a| a.outcome() == AttemptOutcome::Running).map(|a| a.token).collect();
            let claimed: Vec<u64> = task.claim.iter().map(|claim| claim.token).collect();
            assert_eq!(running, claimed, "running attempts, and the claim: {task:?}");
        }
    }

    /// Who has a row waits; who waits has one; and what is waited for is still to come.
    fn check_edges(&self) {
        let mut open: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        let told = self.is_told();
        for (dependency, waiting) in &self.edges {
            open.entry(waiting).or_default().insert(dependency);
            let task = self.tasks.get(waiting).unwrap_or_else(|| panic!("{waiting} waits, but is not there"));
            assert_eq!(task.status(), TaskStatus::Blocked, "waits for {dependency}: {task:?}");
            let status = self.status(dependency);
            let soft = spec(task).soft_dependencies.contains(dependency);
            if told {
                let over = status.is_some_and(|status| ended_well(status) || (soft && is_ended(status)));
                assert!(!over, "{waiting} still waits for {dependency}, which is {status:?}");
            }
            // Whoever waits for a parent may wait for what it spawned.
            let spawned = self.tasks.get(dependency).is_some_and(|task| !task.parent_id.is_empty());
            assert!(soft || spawned || hard(task).any(|id| id == dependency), "{waiting} never named {dependency}");
        }
        for task in self.live() {
            let found = self.machine.rooms().tasks.open_dependencies(task);
            let found: BTreeSet<&str> = found.iter().map(String::as_str).collect();
            let rows = open.remove(task.id.as_str()).unwrap_or_default();
            assert_eq!(found, rows, "{task:?}");
            assert_eq!(rows.is_empty(), task.status() != TaskStatus::Blocked, "{task:?}");
        }
    }

    fn check_counts(&self) {
        let (mut all, mut named, mut unaided) = (Counts::default(), Counts::default(), 0);
        for task in self.tasks.values() {
            let (status, spec) = (task.status(), spec(task));
            all[status as usize] += 1;
            if [&spec.project, &spec.epic, &spec.feature].iter().any(|name| !name.is_empty()) {
                named[status as usize] += 1;
            }
            unaided += u64::from(status == TaskStatus::Completed && !task.touched);
        }
        let (tasks, progress) = (&self.machine.rooms().tasks, &self.machine.rooms().progress);
        assert_eq!(of_stats(&tasks.stats()), all, "counts of the tasks");
        assert_eq!(of_counts(Some(progress.totals())), all, "totals of the progress");
        assert_eq!(progress.completed_unaided(), unaided, "completed unaided");
        let mut sums = [Counts::default(); 3];
        for project in progress.projects("") {
            add(&mut sums[0], of_counts(project.counts));
            for epic in project.epics {
                add(&mut sums[1], of_counts(epic.counts));
                epic.features.iter().for_each(|feature| add(&mut sums[2], of_counts(feature.counts)));
            }
        }
        assert_eq!(sums, [named; 3], "sums over projects, epics and features");
    }

    /// What is COMPLETED has what it asked for, from this attempt and from others than its author.
    fn check_evidence(&self) {
        for task in self.tasks.values() {
            let (status, Some(policy)) = (task.status(), &spec(task).evidence) else { continue };
            if !matches!(status, TaskStatus::Completed | TaskStatus::Reported) {
                continue;
            }
            for kind in &policy.artifacts {
                assert!(task.artifacts.iter().any(|artifact| artifact.kind == *kind), "no {kind}: {task:?}");
            }
            for name in &policy.checks {
                let last = task.checks.iter().rev().find(|check| check.name == *name);
                assert!(last.is_some_and(|check| check.exit_code == 0), "{name} did not pass: {task:?}");
            }
            for review in &task.reviews {
                assert_ne!(review.reviewer, task.author_agent_id, "{task:?}");
                self.check_review(task, review);
            }
            let accepted = |person: bool| {
                let of = |review: &&Review| review.accepted && review.person == person;
                task.reviews.iter().filter(of).count()
            };
            let asked = (policy.agent_reviews as usize, policy.person_reviews as usize);
            let enough = accepted(false) >= asked.0 && accepted(true) >= asked.1;
            assert_eq!(enough, status == TaskStatus::Completed, "acceptance: {task:?}");
        }
    }

    /// An agent's review is of the attempt that was reported, not of an earlier one. It may have been purged since.
    fn check_review(&self, task: &Task, review: &Review) {
        let Some(made) = self.tasks.get(&review.review_task_id) else { return };
        let attempts = self.attempts.get(&task.id).into_iter().flatten();
        let reported = attempts.filter(|attempt| attempt.number == task.reported_attempt).map(|attempt| attempt.token);
        assert_eq!(made.review_of, task.id, "{review:?}");
        assert!(reported.max().is_some_and(|token| made.created_rev > token), "a review of an earlier try: {task:?}");
    }

    /// A breaker that a task probes is probed by one that runs.
    fn check_probes(&self) {
        if is_due(self.machine) {
            return;
        }
        for breaker in scan::<Breaker>(&self.machine.rows, Table::Breaker) {
            let Some(probe) = &breaker.probe else { continue };
            assert_eq!(breaker.state(), BreakerState::HalfOpen, "{breaker:?}");
            let claim = self.tasks.get(&probe.holder).and_then(|task| task.claim.as_ref());
            let probes = claim.is_some_and(|c| c.token == probe.token && c.probes.contains(&breaker.name));
            assert!(probes || probe.holder == CALLER, "nobody probes {breaker:?}");
        }
    }

    /// A claim finds work exactly if there is some; and no task waits beside an agent that stands ready for it.
    fn check_idle(&self) {
        let (rooms, now_ms) = (self.machine.rooms(), self.machine.head.now_ms);
        let settled = !is_due(self.machine) && !self.machine.effects().any(|effect| *effect == Effect::WorkLeft);
        for agent in &self.agents {
            let mut ready = self.tasks.values().filter(|task| task.status() == TaskStatus::Ready);
            let could = ready.find(|task| self.may_take(agent, task));
            let claimable = tasks_room::claimable(rooms, now_ms, &agent.id);
            assert_eq!(claimable, could.is_some(), "{agent:?} and {could:?}");
            let idle = agent.standing && settled && could.is_some();
            assert!(!idle, "idle: {agent:?} stands, and could take {could:?}");
        }
    }

    fn may_take(&self, agent: &Agent, task: &Task) -> bool {
        let spec = spec(task);
        let free = agent.status() == AgentStatus::Available && agent.load < agent.capacity;
        let fits = (spec.agent_id.is_empty() || spec.agent_id == agent.id)
            && (spec.agent_type.is_empty() || spec.agent_type == agent.agent_type)
            && spec.required_capabilities.iter().all(|name| agent.capabilities.contains(name))
            && spec.required_labels.iter().all(|label| agent.metadata.contains(label))
            && !spec.excluded_agents.contains(&agent.id);
        let room = self.limits.iter().all(|limit| {
            let counts = match limit.scope() {
                LimitScope::Total => true,
                LimitScope::AgentType => limit.name == agent.agent_type,
                LimitScope::Key => spec.concurrency_keys.contains(&limit.name),
                LimitScope::Unspecified => false,
            };
            !counts || self.running_under(limit.scope(), &limit.name) < limit.max as usize
        });
        let own = breakers::agent_breaker(&agent.id);
        let now_ms = self.machine.head.now_ms;
        let admits =
            |name: &String| !matches!(self.machine.rooms().breakers.admission(name, now_ms), Admission::No { .. });
        free && fits && room && spec.uses.iter().chain([&own]).all(admits)
    }
}

/// The two ids out of a Dependent key: tag, id, zero, id, zero.
fn edge(key: &[u8]) -> (String, String) {
    let text = std::str::from_utf8(&key[1..]).expect("two ids");
    let (dependency, waiting) = text.split_once('\0').expect("two ids");
    (dependency.to_owned(), waiting.trim_end_matches('\0').to_owned())
}

fn add(sum: &mut Counts, more: Counts) {
    sum.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
}

fn of_counts(counts: Option<StatusCounts>) -> Counts {
    let c = counts.unwrap_or_default();
    let ended = [c.completed, c.failed, c.timed_out, c.cancelled];
    let [completed, failed, timed_out, cancelled] = ended;
    [0, c.pending, c.ready, c.blocked, c.in_progress, completed, failed, timed_out, cancelled, c.reported, c.skipped]
}

fn of_stats(s: &TaskStatsResponse) -> Counts {
    of_counts(Some(StatusCounts {
        pending: s.pending,
        ready: s.ready,
        blocked: s.blocked,
        in_progress: s.in_progress,
        reported: s.reported,
        completed: s.completed,
        failed: s.failed,
        timed_out: s.timed_out,
        cancelled: s.cancelled,
        skipped: s.skipped,
    }))
}
