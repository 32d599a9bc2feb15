//! Schedules: tasks that are submitted by the clock, each tick once in the cluster.
//!
//! Owns the Schedule and ScheduleRun rows. At most [`MAX_SCHEDULES`] exist, so all of them are in memory, with the ticks
//! of those that are not paused in order. Of runs, memory holds only which ones are kept: at most [`MAX_RUNS`] each.
//!
//! Invariants:
//! - a tick is done once: firing it names the schedule's epoch and its next tick, and moves that tick on;
//! - every change of the specification, and every pause, gives a new epoch, so what was prepared before it is refused.
//!
//! Deliberately absent: calendars and zones. The leader's node knows them and says which tick comes next, so replicas
//! that know different zones still agree. For the same reason ticks are not among the due things of a `Tick`.

mod checked;
mod fire;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use quorate_proto::v1::{
    CreateScheduleRequest, CreateScheduleResponse, DeleteScheduleRequest, DeleteScheduleResponse, PauseScheduleRequest,
    PauseScheduleResponse, RejectionCode, Schedule, ScheduleRun,
};

pub use self::checked::{
    DEFAULT_ATTEMPT_TIMEOUT_MS, DEFAULT_TOLERANCE_MS, MAX_CRON_BYTES, MAX_EVERY_MS, MAX_TEMPLATE_BYTES, MIN_EVERY_MS,
    SCHEDULE_LABEL, TICK_LABEL,
};
pub use self::fire::{fire, run_now};
use crate::effect::Effect;
use crate::error::{Fatal, Outcome, exhausted, invalid, not_found, reject};
use crate::state::{Ctx, Out, Rooms};
use crate::storage::keys::{Key, Table};
use crate::storage::rows::{self, Rows};

/// The most schedules that may exist at once.
pub const MAX_SCHEDULES: usize = 10_000;
/// How many runs of one schedule are kept.
pub const MAX_RUNS: usize = 1_000;

/// Every schedule, with its indexes.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Schedules {
    all: BTreeMap<String, Schedule>,
    /// The next tick of each schedule that is not paused.
    ticks: BTreeSet<(u64, String)>,
    /// The revs of the runs that are kept, oldest first.
    runs: BTreeMap<String, VecDeque<u64>>,
}

// A schedule holds no floating-point number, so its equality is total; the generated type need not say so.
impl Eq for Schedules {}

impl Schedules {
    /// Builds every index from the rows.
    pub fn rebuild(rows: &dyn Rows) -> Result<Self, Fatal> {
        let mut schedules = Schedules::default();
        rows::scan_prefix::<Schedule>(rows, &Key::table(Table::Schedule), |_, schedule| {
            schedules.put(schedule);
            Ok(true)
        })?;
        // The newest run of a schedule comes first.
        rows::scan_prefix::<ScheduleRun>(rows, &Key::table(Table::ScheduleRun), |_, run| {
            schedules.runs.entry(run.schedule_id).or_default().push_front(run.rev);
            Ok(true)
        })?;
        Ok(schedules)
    }

    /// One schedule.
    pub fn get(&self, id: &str) -> Option<&Schedule> {
        self.all.get(id)
    }

    /// One schedule, or the refusal that says that there is none.
    pub fn existing(&self, id: &str) -> Outcome<&Schedule> {
        self.get(id).ok_or_else(|| not_found("schedule_id", format!("no schedule {id:?} exists")))
    }

    /// Every schedule, by id.
    pub fn iter(&self) -> impl Iterator<Item = &Schedule> {
        self.all.values()
    }

    /// How many schedules exist.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether no schedule exists.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// When the next tick of any schedule is.
    pub fn next_tick_ms(&self) -> Option<u64> {
        self.ticks.first().map(|(tick_ms, _)| *tick_ms)
    }

    /// The schedules whose tick has come, the earliest tick first, at most `limit`.
    pub fn due(&self, now_ms: u64, limit: usize) -> Vec<&Schedule> {
        (self.ticks.iter())
            .take_while(|(tick_ms, _)| *tick_ms <= now_ms)
            .take(limit)
            .filter_map(|(_, id)| self.all.get(id))
            .collect()
    }

    /// The runs of one schedule, newest first, at most `limit`.
    pub fn history(&self, rows: &dyn Rows, id: &str, limit: usize) -> Outcome<Vec<ScheduleRun>> {
        self.existing(id)?;
        let mut runs = Vec::new();
        if limit > 0 {
            rows::scan_prefix::<ScheduleRun>(rows, &Key::table(Table::ScheduleRun).text(id), |_, run| {
                runs.push(run);
                Ok(runs.len() < limit)
            })?;
        }
        Ok(runs)
    }

    /// Replaces the schedule and what the indexes say of it.
    fn put(&mut self, schedule: Schedule) {
        if let Some(before) = self.all.remove(&schedule.id) {
            self.ticks.remove(&(before.next_tick_ms, before.id));
        }
        if !schedule.paused {
            self.ticks.insert((schedule.next_tick_ms, schedule.id.clone()));
        }
        self.all.insert(schedule.id.clone(), schedule);
    }
}

/// Creates a schedule, or gives an existing one a new specification. Its history, its pause and its last task stay.
pub fn create(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    req: CreateScheduleRequest,
) -> Outcome<CreateScheduleResponse> {
    let spec = checked::spec(req.spec)?;
    if req.first_tick_ms == 0 {
        return Err(invalid("first_tick_ms", "first_tick_ms must be set by the coordinator"));
    }
    let mut schedule = match rooms.schedules.get(&spec.schedule_id) {
        // The same once more: its next tick stays where it is.
        Some(known) if req.replace && known.spec.as_ref() == Some(&spec) => {
            return Ok(CreateScheduleResponse { schedule: Some(known.clone()), rev: ctx.rev });
        }
        Some(known) if req.replace => known.clone(),
        Some(_) => {
            let message = format!("schedule {:?} exists already; set replace to change it", spec.schedule_id);
            return Err(reject(RejectionCode::AlreadyExists, "spec.schedule_id", message));
        }
        None if rooms.schedules.len() >= MAX_SCHEDULES => {
            let message = format!("{MAX_SCHEDULES} schedules exist; delete some first");
            return Err(exhausted("spec.schedule_id", message));
        }
        None => Schedule { id: spec.schedule_id.clone(), created_at_ms: ctx.now_ms, ..Schedule::default() },
    };
    schedule.spec = Some(spec);
    schedule.next_tick_ms = req.first_tick_ms;
    schedule.epoch = ctx.rev;
    store(&mut rooms.schedules, out, &schedule);
    Ok(CreateScheduleResponse { schedule: Some(schedule), rev: ctx.rev })
}

/// Removes a schedule with its history. The tasks that it submitted stay.
pub fn delete(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    req: DeleteScheduleRequest,
) -> Outcome<DeleteScheduleResponse> {
    let id = req.schedule_id;
    rooms.schedules.existing(&id)?;
    for rev in rooms.schedules.runs.remove(&id).unwrap_or_default() {
        out.txn.delete(&run_key(&id, rev));
    }
    out.txn.delete(&schedule_key(&id));
    if let Some(before) = rooms.schedules.all.remove(&id) {
        rooms.schedules.ticks.remove(&(before.next_tick_ms, id));
    }
    out.effects.push(Effect::SchedulesChanged);
    Ok(DeleteScheduleResponse { rev: ctx.rev })
}

/// Pauses a schedule, or ends its pause. The next tick stays as it is: what fell into the pause is missed by then.
pub fn pause(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    req: PauseScheduleRequest,
) -> Outcome<PauseScheduleResponse> {
    let mut schedule = rooms.schedules.existing(&req.schedule_id)?.clone();
    if schedule.paused != req.paused {
        schedule.paused = req.paused;
        schedule.epoch = ctx.rev;
        store(&mut rooms.schedules, out, &schedule);
    }
    Ok(PauseScheduleResponse { schedule: Some(schedule), rev: ctx.rev })
}

/// The one place that writes a schedule's row.
fn store(schedules: &mut Schedules, out: &mut Out<'_, '_>, schedule: &Schedule) {
    out.txn.put(&schedule_key(&schedule.id), schedule);
    schedules.put(schedule.clone());
    out.effects.push(Effect::SchedulesChanged);
}

fn schedule_key(id: &str) -> Key {
    Key::table(Table::Schedule).text(id)
}

/// The newest run comes first.
fn run_key(id: &str, rev: u64) -> Key {
    Key::table(Table::ScheduleRun).text(id).number(u64::MAX - rev)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(id: &str, next_tick_ms: u64, paused: bool) -> Schedule {
        Schedule { id: id.to_owned(), next_tick_ms, paused, ..Schedule::default() }
    }

    fn due(schedules: &Schedules, now_ms: u64, limit: usize) -> Vec<&str> {
        schedules.due(now_ms, limit).into_iter().map(|schedule| schedule.id.as_str()).collect()
    }

    #[test]
    fn what_is_due_comes_in_the_order_of_its_ticks() {
        let mut schedules = Schedules::default();
        for (id, tick_ms, paused) in [("a", 300, false), ("b", 100, false), ("c", 50, true), ("d", 200, false)] {
            schedules.put(schedule(id, tick_ms, paused));
        }
        assert_eq!(schedules.next_tick_ms(), Some(100), "a paused one has no tick");
        assert_eq!(due(&schedules, 99, 10), Vec::<&str>::new());
        assert_eq!(due(&schedules, 200, 10), ["b", "d"]);
        assert_eq!(due(&schedules, 1_000, 2), ["b", "d"]);
        assert_eq!(schedules.iter().map(|schedule| schedule.id.as_str()).collect::<Vec<_>>(), ["a", "b", "c", "d"]);
    }

    #[test]
    fn a_schedule_has_one_tick_at_most() {
        let mut schedules = Schedules::default();
        schedules.put(schedule("a", 100, false));
        schedules.put(schedule("a", 200, false));
        assert_eq!((schedules.next_tick_ms(), schedules.ticks.len()), (Some(200), 1));
        schedules.put(schedule("a", 200, true));
        assert_eq!((schedules.next_tick_ms(), schedules.len()), (None, 1));
        schedules.put(schedule("a", 200, false));
        assert_eq!(schedules.next_tick_ms(), Some(200));
    }

    #[test]
    fn the_newest_run_has_the_smallest_key() {
        assert!(run_key("a", 7).as_bytes() < run_key("a", 6).as_bytes());
        assert!(run_key("a", 1).as_bytes() < run_key("b", 9).as_bytes());
    }
}
