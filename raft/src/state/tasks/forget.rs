//! Forgetting: tasks that ended long ago go with everything that is known of them, so that the disk holds no more than
//! the history that is wanted.
//!
//! The leader looks for them ([`ended_before`]), which costs nobody else anything, and names them in a command; the
//! command looks again at each. What is needed stays whoever names it: a task that a live one waits for, one whose
//! children have not ended, and one whose parent has not ended, for its idempotency key keeps the parent's next attempt
//! from doing the work twice.
//!
//! Deliberately absent: an index by the time of the end. States of earlier versions have none, and a look now and then
//! over the ended tasks needs none.

use prost::Message;
use quorate_proto::log::{ForgetTasks, Forgotten};
use quorate_proto::v1::Task;

use super::dead::{self, MAX_PURGED_ROWS};
use super::{done_key, is_dead, is_live};
use crate::error::{Fatal, Outcome, invalid};
use crate::state::{Ctx, Out, Rooms};
use crate::storage::keys::{Key, Table};
use crate::storage::rows::{self, Rows};

/// The most tasks that one command forgets.
pub const MAX_FORGOTTEN: usize = 500;

/// What ended before these times may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cutoffs {
    /// Completed, cancelled, skipped.
    pub ended_before_ms: u64,
    /// Failed or out of time.
    pub dead_before_ms: u64,
}

impl Cutoffs {
    fn is_past(self, task: &Task) -> bool {
        let before_ms = if is_dead(task.status()) { self.dead_before_ms } else { self.ended_before_ms };
        task.finished_at_ms < before_ms
    }
}

/// Removes those of the named tasks that ended before their time and are not needed; passes over the others.
pub fn forget(rooms: &mut Rooms, out: &mut Out<'_, '_>, ctx: &Ctx, req: ForgetTasks) -> Outcome<Forgotten> {
    if !(1..=MAX_FORGOTTEN).contains(&req.task_ids.len()) {
        let message = format!("task_ids must be 1 to {MAX_FORGOTTEN}; got {}", req.task_ids.len());
        return Err(invalid("task_ids", message));
    }
    let cutoffs = Cutoffs { ended_before_ms: req.ended_before_ms, dead_before_ms: req.dead_before_ms };
    let (mut tasks, mut left) = (0, MAX_PURGED_ROWS);
    for id in &req.task_ids {
        let Some(task) = rows::get::<Task>(&*out.txn, &done_key(id))? else { continue };
        let weight = dead::weight(&task);
        if weight > left || !cutoffs.is_past(&task) || is_needed(&*out.txn, &task)? {
            continue;
        }
        left -= weight;
        dead::remove(rooms, out, ctx, &task)?;
        tasks += 1;
    }
    Ok(Forgotten { tasks })
}

/// Ended tasks that may be forgotten in one command, by id, those after `after`; and after which to go on, `None` at
/// the end. Looks at `limit` ended tasks at most. One with more attempts and children than a command may remove is not
/// among them: it stays.
pub fn ended_before(
    rows: &dyn Rows,
    after: Option<&str>,
    limit: usize,
    cutoffs: Cutoffs,
) -> Result<(Vec<String>, Option<String>), Fatal> {
    let table = Key::table(Table::DoneTask);
    // The smallest key beyond another is that key and a zero.
    let from = after.map_or_else(|| table.clone(), |after| done_key(after).bytes(&[0]));
    let (mut found, mut last) = (Vec::new(), None);
    let (mut looked, mut left, mut is_cut) = (0, MAX_PURGED_ROWS, false);
    rows.scan(from.as_bytes(), &table.prefix_end(), &mut |_, value| {
        let task = Task::decode(value)?;
        let weight = dead::weight(&task);
        let goes = weight <= MAX_PURGED_ROWS && cutoffs.is_past(&task) && !is_needed(rows, &task)?;
        if looked >= limit || found.len() >= MAX_FORGOTTEN || (goes && weight > left) {
            is_cut = true;
            return Ok(false);
        }
        looked += 1;
        if goes {
            left -= weight;
            found.push(task.id.clone());
        }
        last = Some(task.id);
        Ok(true)
    })?;
    Ok((found, last.filter(|_| is_cut)))
}

fn is_needed(rows: &dyn Rows, task: &Task) -> Result<bool, Fatal> {
    if dead::needed(rows, task)?.is_some() {
        return Ok(true);
    }
    if task.parent_id.is_empty() {
        return Ok(false);
    }
    // A dead letter may be redriven, and then spawns its children anew: what they did must still be known.
    let parent = rows::get::<Task>(rows, &done_key(&task.parent_id))?;
    Ok(is_live(rows, &task.parent_id)? || parent.is_some_and(|parent| is_dead(parent.status())))
}
