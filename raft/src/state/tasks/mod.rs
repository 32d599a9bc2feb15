//! Tasks: who does what, in which order, and what came of it.
//!
//! Owns the LiveTask, DoneTask, DeadTask, TaskBody, TaskResult, Attempt, AgentAttempt, Dependent, Child, TaskKey,
//! DoneCount, Aftermath, SharePass and BandPass rows. Memory holds indexes of live tasks only: a finished task leaves
//! memory and moves from LiveTask to DoneTask.
//!
//! ```text
//!            ┌── BLOCKED ──┐                                                       ┌─ accepted ─▶ COMPLETED
//!   submit ──┼── PENDING ──┴─▶ READY ── claim, push ──▶ IN_PROGRESS ──▶ REPORTED ──┤
//!            └── FAILED, SKIPPED  ▲                       │    │                   └─ rework ─▶ READY
//!                (dependency)     └─ backoff, lost, ──────┘    └──▶ COMPLETED | FAILED | TIMED_OUT
//!                                    released                       cancel, time-out: from any live status
//!   FAILED, TIMED_OUT ── redrive ──▶ BLOCKED | PENDING | READY
//! ```
//!
//! Invariants:
//! - every live task is in exactly one place: a ready line, the delayed set, the blocked set, the reported set, or the
//!   claims;
//! - a status changes in `moves` and nowhere else, along [`may_move`];
//! - an IN_PROGRESS task has one RUNNING attempt, which its agent's load counts; no other attempt of it is RUNNING;
//! - a Dependent row exists exactly while a live task waits for that dependency;
//! - what runs under a key, a type or in total never exceeds its limit by a grant (a limit may be lowered below it).
//!
//! Deliberately absent: who is connected. An agent with a standing order is assigned work here; its node delivers it.

mod aftermath;
mod attempts;
mod body;
mod cancel;
mod check;
mod claim;
mod cycle;
mod dead;
mod deadlock;
mod depend;
mod due;
mod evidence;
mod finish;
mod forget;
mod history;
mod moves;
mod needs;
mod plan;
mod push;
mod queue;
mod read;
mod release;
mod review;
mod running;
mod submit;
mod turns;
mod why;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use quorate_proto::v1::{LimitScope, RetryPolicy, Task, TaskStatus};

pub use self::aftermath::PER_COMMAND;
pub use self::attempts::{MAX_ERROR_BYTES, MAX_OUTPUT_BYTES};
pub use self::cancel::{cancel, cancel_internal};
pub use self::check::{
    DEFAULT_TIMEOUT_MS, MAX_CAPABILITIES, MAX_DEPENDENCIES, MAX_DESCRIPTION_BYTES, MAX_KEYS, MAX_LABELS,
    MAX_PAYLOAD_BYTES, MAX_TIMEOUT_MS, MAX_TITLE_BYTES, check_template,
};
pub use self::claim::{MAX_CLAIM, MAX_GRANTED_BYTES, MAX_SESSION_CLAIMS, claim};
pub use self::dead::{MAX_DEAD_LETTERS, purge, redrive};
pub use self::deadlock::{MAX_DEADLOCKS, resolve_deadlocks};
pub use self::depend::add_dependencies;
pub use self::due::run_due;
pub use self::finish::{MAX_RESULT_BYTES, finish};
pub use self::forget::{Cutoffs, MAX_FORGOTTEN, ended_before, forget};
pub use self::history::{DEFAULT_PAGE, MAX_EXAMINED, MAX_PAGE};
pub use self::moves::may_move;
pub use self::plan::{MAX_CHILDREN, MAX_DEPENDENTS, MAX_DEPTH, MAX_SUBMIT};
pub use self::push::{settle, standing_order};
pub use self::queue::{DEFAULT_PRIORITY, MAX_PRIORITY, MAX_SETS};
pub use self::read::claimable;
pub use self::read::holds;
pub use self::release::{deregister_agent, session_ended};
pub use self::review::decide;
pub use self::submit::{submit, submit_internal};
pub use self::why::why;
use crate::error::Fatal;
use crate::faults::{Bug, planted};
use crate::state::remove_from;
use crate::state::retries::policy as retry;
use crate::storage::keys::{Key, Table};
use crate::storage::rows::{self, Rows};

/// Number of statuses, the unspecified one included.
const STATUSES: usize = 11;

/// The indexes of live tasks.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Tasks {
    queues: queue::Queues,
    turns: turns::Turns,
    /// PENDING, by when they become ready.
    delayed: BTreeSet<(u64, Arc<str>)>,
    /// BLOCKED, with the dependencies each still waits for.
    blocked: BTreeMap<Arc<str>, BTreeSet<Arc<str>>>,
    /// For each task that is waited for, those that wait for it.
    waiting: BTreeMap<Arc<str>, BTreeSet<Arc<str>>>,
    /// REPORTED.
    reported: BTreeSet<Arc<str>>,
    /// IN_PROGRESS, by the session of the claim, with its token: oldest claim first.
    by_session: BTreeMap<String, BTreeSet<(u64, Arc<str>)>>,
    /// IN_PROGRESS, by the agent of the claim, with its token: oldest claim first.
    by_agent: BTreeMap<String, BTreeSet<(u64, Arc<str>)>>,
    /// IN_PROGRESS, by when the attempt is fenced.
    deadlines: BTreeSet<(u64, Arc<str>)>,
    /// Live, by when the task times out as a whole or in the queue.
    expiries: BTreeSet<(u64, Arc<str>)>,
    /// IN_PROGRESS and asked to stop, with when the attempt is fenced.
    stopping: BTreeMap<Arc<str>, u64>,
    running: running::Running,
    aftermath: aftermath::Aftermath,
    /// How many tasks have each status, ended ones included.
    counts: [u64; STATUSES],
}

impl Tasks {
    /// Builds every index from the rows.
    pub fn rebuild(rows: &dyn Rows) -> Result<Self, Fatal> {
        let mut tasks = Tasks {
            turns: turns::Turns::rebuild(rows)?,
            aftermath: aftermath::Aftermath::rebuild(rows)?,
            ..Tasks::default()
        };
        rows::scan_prefix::<Task>(rows, &Key::table(Table::LiveTask), |_, task| {
            let spec = task.spec.as_ref().ok_or_else(|| corrupt(&task.id, "has no spec"))?;
            tasks.queues.admit(spec);
            tasks.count_in(task.status());
            tasks.place(&task)?;
            Ok(true)
        })?;
        let dependents = Key::table(Table::Dependent);
        rows.scan(dependents.as_bytes(), &dependents.prefix_end(), &mut |key, _| {
            let (dependency, waiting) = split_pair(key)?;
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

    /// When a task is due next: a delay that is over, a time-out, or at once if others are still to hear of an end.
    pub fn next_due_ms(&self) -> Option<u64> {
        if !self.aftermath.is_empty() {
            return Some(0);
        }
        let timers = [&self.delayed, &self.deadlines, &self.expiries];
        timers.into_iter().filter_map(|timer| timer.first()).map(|(at_ms, _)| *at_ms).min()
    }

    /// How much runs under a limit.
    pub fn running_under(&self, scope: LimitScope, name: &str) -> u32 {
        self.running.under(scope, name)
    }

    /// Whether anything is ready.
    pub fn has_ready(&self) -> bool {
        self.count_of(TaskStatus::Ready) > 0
    }

    /// How many tasks are live.
    pub fn live(&self) -> usize {
        self.queues.len() + self.delayed.len() + self.blocked.len() + self.deadlines.len() + self.reported.len()
    }

    /// How many attempts the agent holds.
    pub fn held_by(&self, agent_id: &str) -> usize {
        self.by_agent.get(agent_id).map_or(0, BTreeSet::len)
    }

    /// The attempts the session holds, oldest first: task, token, and when it is fenced if it was asked to stop (else 0).
    pub fn held_by_session(&self, session_id: &str) -> impl Iterator<Item = (&str, u64, u64)> {
        let held = self.by_session.get(session_id).into_iter().flatten();
        held.map(|(token, id)| (&**id, *token, self.stopping.get(id).copied().unwrap_or_default()))
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
        if self.reported.contains(&id) {
            places.push(TaskStatus::Reported);
        }
        if fence_at_ms(task).is_some_and(|at_ms| self.deadlines.contains(&(at_ms, id))) {
            places.push(TaskStatus::InProgress);
        }
        places
    }

    /// Enters a task that is PENDING, READY or IN_PROGRESS. A BLOCKED one is entered by [`Tasks::wait_for`].
    fn place(&mut self, task: &Task) -> Result<(), Fatal> {
        let id: Arc<str> = Arc::from(task.id.as_str());
        if task.expires_at_ms > 0 {
            self.expiries.insert((task.expires_at_ms, Arc::clone(&id)));
        }
        match task.status() {
            TaskStatus::Pending => {
                self.delayed.insert((task.ready_at_ms, id));
            }
            TaskStatus::Ready => self.queues.insert(task),
            TaskStatus::Reported => {
                self.reported.insert(id);
            }
            TaskStatus::InProgress => {
                let no_claim = || corrupt(&task.id, "is in progress without a claim");
                let claim = task.claim.as_ref().ok_or_else(no_claim)?;
                self.running.add(task);
                if let Some(notice) = &task.cancel {
                    self.stopping.insert(Arc::clone(&id), notice.fence_at_ms);
                }
                self.deadlines.insert((fence_at_ms(task).ok_or_else(no_claim)?, Arc::clone(&id)));
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
        if task.expires_at_ms > 0 {
            self.expiries.remove(&(task.expires_at_ms, Arc::clone(&id)));
        }
        match task.status() {
            TaskStatus::Pending => {
                self.delayed.remove(&(task.ready_at_ms, id));
            }
            TaskStatus::Ready => self.queues.remove(task),
            TaskStatus::Reported => {
                self.reported.remove(&id);
            }
            TaskStatus::InProgress => {
                if let (Some(claim), Some(at_ms)) = (&task.claim, fence_at_ms(task)) {
                    self.running.remove(task);
                    self.stopping.remove(&id);
                    self.deadlines.remove(&(at_ms, Arc::clone(&id)));
                    remove_from(&mut self.by_agent, claim.agent_id.as_str(), &(claim.token, Arc::clone(&id)));
                    remove_from(&mut self.by_session, claim.session_id.as_str(), &(claim.token, id));
                }
            }
            TaskStatus::Blocked => {
                let open = self.blocked.remove(&id).unwrap_or_default();
                for dependency in &open {
                    remove_from(&mut self.waiting, &**dependency, &id);
                }
                return open.iter().map(ToString::to_string).collect();
            }
            _ => {}
        }
        Vec::new()
    }

    /// Notes that one task waits for another.
    fn wait_for(&mut self, dependency: &str, waiting: &str) {
        let waiting: Arc<str> = Arc::from(waiting);
        let dependency = match self.waiting.get_key_value(dependency) {
            Some((known, _)) => Arc::clone(known),
            None => Arc::from(dependency),
        };
        self.blocked.entry(Arc::clone(&waiting)).or_default().insert(Arc::clone(&dependency));
        self.waiting.entry(dependency).or_default().insert(waiting);
    }

    /// One dependency less; whether it was the last. A BLOCKED task that waits for nothing is about to move.
    fn waits_no_longer(&mut self, dependency: &str, waiting: &str) -> bool {
        remove_from(&mut self.waiting, dependency, &Arc::from(waiting));
        let Some(open) = self.blocked.get_mut(waiting) else { return false };
        open.remove(dependency);
        open.is_empty() || planted(Bug::DependencyIgnored)
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

fn is_ended(status: TaskStatus) -> bool {
    use TaskStatus::{Cancelled, Completed, Failed, Skipped, TimedOut};
    matches!(status, Completed | Failed | TimedOut | Cancelled | Skipped)
}

/// The task's retry policy. Stored tasks have theirs filled in.
fn policy(task: &Task) -> RetryPolicy {
    task.spec.as_ref().and_then(|spec| spec.retry.clone()).unwrap_or(retry::DEFAULT_POLICY)
}

/// Whether the failures counted so far leave a retry.
fn retry_allowed(task: &Task) -> bool {
    task.failures <= policy(task).max_retries
}

/// Whether those that wait for a task go on when it ends so.
fn unblocks(status: TaskStatus) -> bool {
    matches!(status, TaskStatus::Completed | TaskStatus::Skipped)
}

/// Whether a task that ended so is a dead letter.
fn is_dead(status: TaskStatus) -> bool {
    matches!(status, TaskStatus::Failed | TaskStatus::TimedOut)
}

/// When the running attempt is fenced: at its deadline, or when the grace of a cancel is over.
fn fence_at_ms(task: &Task) -> Option<u64> {
    let deadline_ms = task.claim.as_ref()?.deadline_ms;
    Some(task.cancel.as_ref().map_or(deadline_ms, |cancel| cancel.fence_at_ms.min(deadline_ms)))
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

/// A spawned task's key belongs to its parent.
fn idempotency_key(parent: &str, key: &str) -> Key {
    match parent {
        "" => Key::table(Table::TaskKey).text(key),
        parent => Key::table(Table::TaskKey).text(parent).text(key),
    }
}

fn dependent_key(dependency: &str, waiting: &str) -> Key {
    Key::table(Table::Dependent).text(dependency).text(waiting)
}

fn child_key(parent: &str, child: &str) -> Key {
    Key::table(Table::Child).text(parent).text(child)
}

fn dead_key(task_id: &str) -> Key {
    Key::table(Table::DeadTask).text(task_id)
}

fn count_key(status: TaskStatus) -> Key {
    Key::table(Table::DoneCount).number(status as u64)
}

/// Whether a task exists and has not ended.
pub fn is_live(rows: &dyn Rows, task_id: &str) -> Result<bool, Fatal> {
    Ok(rows.get_bytes(live_key(task_id).as_bytes())?.is_some())
}

/// A task wherever it is, without its body and result: most are asked for while they live.
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

/// The two ids out of a Dependent or Child key: tag, id, zero, id, zero.
fn split_pair(key: &[u8]) -> Result<(&str, &str), Fatal> {
    let corrupt = || Fatal::Corrupt(format!("not a key of two ids: {key:?}"));
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
