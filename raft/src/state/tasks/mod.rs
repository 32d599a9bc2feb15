//! Tasks: who does what, in which order, and what came of it.
//!
//! Owns the LiveTask, DoneTask, Attempt, AgentAttempt, Dependent, TaskKey and DoneCount rows. Memory holds indexes of
//! live tasks only: a finished task leaves memory and moves from LiveTask to DoneTask.
//!
//! ```text
//!              ┌─────────── BLOCKED ───────────┐
//!   submit ────┼─────────── PENDING ──────▶ READY ──claim──▶ IN_PROGRESS ──▶ COMPLETED | FAILED | TIMED_OUT
//!              └─ FAILED       ▲              ▲                  │
//!                              └── backoff ───┴── lost, released ┘        cancel: from any live status
//! ```
//!
//! Invariants:
//! - every live task is in exactly one place: a ready line, the delayed set, the blocked set, or the claims;
//! - a status changes in `moves` and nowhere else, along [`may_move`];
//! - an IN_PROGRESS task has one RUNNING attempt, which its agent's load counts; no other attempt of it is RUNNING;
//! - a Dependent row exists exactly while a live task waits for that dependency.
//!
//! Deliberately absent: who is asked. Agents come for work; the node wakes those that wait.

mod attempts;
mod check;
mod claim;
mod cycle;
mod due;
mod finish;
mod history;
mod moves;
mod queue;
mod read;
mod release;
mod retry;
mod submit;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use quorate_proto::v1::{Task, TaskStatus};

pub use self::attempts::{MAX_ERROR_BYTES, MAX_OUTPUT_BYTES};
pub use self::check::{
    DEFAULT_TIMEOUT_MS, MAX_CAPABILITIES, MAX_DEPENDENCIES, MAX_DESCRIPTION_BYTES, MAX_LABELS, MAX_PAYLOAD_BYTES,
    MAX_RETRIES, MAX_TIMEOUT_MS, MAX_TITLE_BYTES,
};
pub use self::claim::{MAX_CLAIM, MAX_GRANTED_BYTES, MAX_SESSION_CLAIMS, claim};
pub use self::due::run_due;
pub use self::finish::{MAX_RESULT_BYTES, finish};
pub use self::history::{DEFAULT_PAGE, MAX_EXAMINED, MAX_PAGE};
pub use self::moves::may_move;
pub use self::queue::{DEFAULT_PRIORITY, MAX_PRIORITY, MAX_SETS};
pub use self::release::{cancel, deregister_agent, session_ended};
pub use self::retry::{DEFAULT_BASE_MS, DEFAULT_CAP_MS, DEFAULT_POLICY};
pub use self::submit::{MAX_DEPENDENTS, MAX_SUBMIT, submit};
use crate::error::Fatal;
use crate::storage::keys::{Key, Table};
use crate::storage::rows::{self, Rows};

/// Number of statuses, the unspecified one included.
const STATUSES: usize = 9;

/// The indexes of live tasks.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Tasks {
    queues: queue::Queues,
    /// PENDING, by when they become ready.
    delayed: BTreeSet<(u64, Arc<str>)>,
    /// BLOCKED, with the number of dependencies not completed.
    blocked: BTreeMap<Arc<str>, u32>,
    /// For each task not completed, those that wait for it.
    waiting: BTreeMap<Arc<str>, BTreeSet<Arc<str>>>,
    /// IN_PROGRESS, by the session of the claim, with its token: oldest claim first.
    by_session: BTreeMap<String, BTreeSet<(u64, Arc<str>)>>,
    /// IN_PROGRESS, by the agent of the claim, with its token: oldest claim first.
    by_agent: BTreeMap<String, BTreeSet<(u64, Arc<str>)>>,
    /// IN_PROGRESS, by when the attempt times out.
    deadlines: BTreeSet<(u64, Arc<str>)>,
    /// How many tasks have each status, ended ones included.
    counts: [u64; STATUSES],
}

impl Tasks {
    /// Builds every index from the rows.
    pub fn rebuild(rows: &dyn Rows) -> Result<Self, Fatal> {
        let mut tasks = Tasks::default();
        rows::scan_prefix::<Task>(rows, &Key::table(Table::LiveTask), |_, task| {
            let spec = task.spec.as_ref().ok_or_else(|| corrupt(&task.id, "has no spec"))?;
            tasks.queues.admit(spec);
            tasks.count_in(task.status());
            tasks.place(&task)?;
            Ok(true)
        })?;
        let dependents = Key::table(Table::Dependent);
        rows.scan(dependents.as_bytes(), &dependents.prefix_end(), &mut |key, _| {
            let (dependency, waiting) = split_dependent_key(key)?;
            tasks.wait_for(dependency, waiting);
            Ok(true)
        })?;
        let counts = Key::table(Table::DoneCount);
        rows.scan(counts.as_bytes(), &counts.prefix_end(), &mut |key, value| {
            let (status, count) = split_count_row(key, value)?;
            tasks.counts[status] = count;
            Ok(true)
        })?;
        Ok(tasks)
    }

    /// When a task is due next: a delay that is over, or an attempt that times out.
    pub fn next_due_ms(&self) -> Option<u64> {
        let delayed = self.delayed.first().map(|(at_ms, _)| *at_ms);
        let deadline = self.deadlines.first().map(|(at_ms, _)| *at_ms);
        [delayed, deadline].into_iter().flatten().min()
    }

    /// How many tasks are live.
    pub fn live(&self) -> usize {
        self.queues.len() + self.delayed.len() + self.blocked.len() + self.deadlines.len()
    }

    /// How many attempts the agent holds.
    pub fn held_by(&self, agent_id: &str) -> usize {
        self.by_agent.get(agent_id).map_or(0, BTreeSet::len)
    }

    /// The attempts the session holds, as task and token, oldest first.
    pub fn held_by_session(&self, session_id: &str) -> impl Iterator<Item = (&str, u64)> {
        self.by_session.get(session_id).into_iter().flatten().map(|(token, id)| (&**id, *token))
    }

    /// Every place that holds the task, by the status it stands for: one for a live task, none for an ended one.
    pub fn places(&self, task: &Task) -> Vec<TaskStatus> {
        let id: Arc<str> = Arc::from(task.id.as_str());
        let mut places = Vec::new();
        if self.delayed.contains(&(task.ready_at_ms, Arc::clone(&id))) {
            places.push(TaskStatus::Pending);
        }
        if self.queues.contains(task) {
            places.push(TaskStatus::Ready);
        }
        if self.blocked.contains_key(&id) {
            places.push(TaskStatus::Blocked);
        }
        if task.claim.as_ref().is_some_and(|claim| self.deadlines.contains(&(claim.deadline_ms, id))) {
            places.push(TaskStatus::InProgress);
        }
        places
    }

    /// Enters a task that is PENDING, READY or IN_PROGRESS. A BLOCKED one is entered by [`Tasks::wait_for`].
    fn place(&mut self, task: &Task) -> Result<(), Fatal> {
        let id: Arc<str> = Arc::from(task.id.as_str());
        match task.status() {
            TaskStatus::Pending => {
                self.delayed.insert((task.ready_at_ms, id));
            }
            TaskStatus::Ready => self.queues.insert(task),
            TaskStatus::InProgress => {
                let claim = task.claim.as_ref().ok_or_else(|| corrupt(&task.id, "is in progress without a claim"))?;
                self.deadlines.insert((claim.deadline_ms, Arc::clone(&id)));
                self.by_agent.entry(claim.agent_id.clone()).or_default().insert((claim.token, Arc::clone(&id)));
                self.by_session.entry(claim.session_id.clone()).or_default().insert((claim.token, id));
            }
            TaskStatus::Blocked => {}
            status => return Err(corrupt(&task.id, &format!("is live and {status:?}"))),
        }
        Ok(())
    }

    /// Takes a task out of its place; gives the dependencies a BLOCKED one still waited for.
    fn unplace(&mut self, task: &Task) -> Vec<String> {
        let id: Arc<str> = Arc::from(task.id.as_str());
        match task.status() {
            TaskStatus::Pending => {
                self.delayed.remove(&(task.ready_at_ms, id));
            }
            TaskStatus::Ready => self.queues.remove(task),
            TaskStatus::InProgress => {
                if let Some(claim) = &task.claim {
                    self.deadlines.remove(&(claim.deadline_ms, Arc::clone(&id)));
                    remove_from(&mut self.by_agent, claim.agent_id.as_str(), &(claim.token, Arc::clone(&id)));
                    remove_from(&mut self.by_session, claim.session_id.as_str(), &(claim.token, id));
                }
            }
            TaskStatus::Blocked => {
                let open = self.open_dependencies(task);
                for dependency in &open {
                    remove_from(&mut self.waiting, dependency.as_str(), &id);
                }
                self.blocked.remove(&id);
                return open;
            }
            _ => {}
        }
        Vec::new()
    }

    /// Notes that one task waits for another.
    fn wait_for(&mut self, dependency: &str, waiting: &str) {
        let waiting: Arc<str> = Arc::from(waiting);
        *self.blocked.entry(Arc::clone(&waiting)).or_default() += 1;
        match self.waiting.get_mut(dependency) {
            Some(ids) => {
                ids.insert(waiting);
            }
            None => {
                self.waiting.insert(Arc::from(dependency), BTreeSet::from([waiting]));
            }
        }
    }

    fn count_in(&mut self, status: TaskStatus) {
        if let Some(count) = self.counts.get_mut(status as usize) {
            *count += 1;
        }
    }

    fn count_out(&mut self, status: TaskStatus) {
        if let Some(count) = self.counts.get_mut(status as usize) {
            *count = count.saturating_sub(1);
        }
    }

    fn count_of(&self, status: TaskStatus) -> u64 {
        self.counts.get(status as usize).copied().unwrap_or_default()
    }
}

/// Removes from a set of the index, and the set with its last member: an index never keeps what a rebuild would not.
fn remove_from<K, Q, V>(index: &mut BTreeMap<K, BTreeSet<V>>, key: &Q, value: &V)
where
    K: Ord + std::borrow::Borrow<Q>,
    Q: Ord + ?Sized,
    V: Ord,
{
    if let Some(values) = index.get_mut(key) {
        values.remove(value);
        if values.is_empty() {
            index.remove(key);
        }
    }
}

fn is_ended(status: TaskStatus) -> bool {
    matches!(status, TaskStatus::Completed | TaskStatus::Failed | TaskStatus::TimedOut | TaskStatus::Cancelled)
}

/// A status as people write it.
fn status_name(status: TaskStatus) -> &'static str {
    status.as_str_name().trim_start_matches("TASK_STATUS_")
}

fn corrupt(task_id: &str, what: &str) -> Fatal {
    Fatal::Corrupt(format!("task {task_id:?} {what}"))
}

fn live_key(task_id: &str) -> Key {
    Key::table(Table::LiveTask).text(task_id)
}

fn done_key(task_id: &str) -> Key {
    Key::table(Table::DoneTask).text(task_id)
}

fn idempotency_key(key: &str) -> Key {
    Key::table(Table::TaskKey).text(key)
}

fn dependent_key(dependency: &str, waiting: &str) -> Key {
    Key::table(Table::Dependent).text(dependency).text(waiting)
}

fn count_key(status: TaskStatus) -> Key {
    Key::table(Table::DoneCount).number(status as u64)
}

/// A task wherever it is: most are asked for while they live.
fn load(rows: &dyn Rows, task_id: &str) -> Result<Option<Task>, Fatal> {
    match rows::get(rows, &live_key(task_id))? {
        Some(task) => Ok(Some(task)),
        None => rows::get(rows, &done_key(task_id)),
    }
}

/// A task that an index says is live.
fn load_live(rows: &dyn Rows, task_id: &str) -> Result<Task, Fatal> {
    rows::get(rows, &live_key(task_id))?.ok_or_else(|| corrupt(task_id, "is in an index but has no live row"))
}

/// The two ids out of a Dependent key: tag, id, zero, id, zero.
fn split_dependent_key(key: &[u8]) -> Result<(&str, &str), Fatal> {
    let corrupt = || Fatal::Corrupt(format!("not a dependent key: {key:?}"));
    let text = key.get(1..).and_then(|ids| ids.strip_suffix(&[0_u8])).ok_or_else(corrupt)?;
    std::str::from_utf8(text).ok().and_then(|text| text.split_once('\0')).ok_or_else(corrupt)
}

/// The status and how many ended so, out of a DoneCount row.
fn split_count_row(key: &[u8], value: &[u8]) -> Result<(usize, u64), Fatal> {
    let corrupt = || Fatal::Corrupt(format!("not a count of ended tasks: {key:?} = {value:?}"));
    let (_, status) = key.split_last_chunk::<8>().ok_or_else(corrupt)?;
    let status = usize::try_from(u64::from_be_bytes(*status)).map_err(|_| corrupt())?;
    let count = <[u8; 8]>::try_from(value).map_err(|_| corrupt())?;
    if status >= STATUSES {
        return Err(corrupt());
    }
    Ok((status, u64::from_be_bytes(count)))
}
