//! Firing: a tick becomes a task, or a record that says why it did not.
//!
//! A tick is done once it is recorded, whatever came of it. One that is refused here was done by somebody else, or was
//! prepared before the schedule changed; whoever prepared it looks again.

use quorate_proto::log::FireSchedule;
use quorate_proto::v1::{
    KeyValue, Overlap, RejectionCode, RunOutcome, RunScheduleNowRequest, RunScheduleNowResponse, Schedule, ScheduleRun,
};

use super::{MAX_RUNS, SCHEDULE_LABEL, Schedules, TICK_LABEL, run_key, store};
use crate::effect::Effect;
use crate::error::{Error, Fatal, Outcome, reject};
use crate::faults::{Bug, planted};
use crate::state::{Ctx, Out, Rooms, check_id, tasks};

/// Does the next tick of a schedule, with those after it that the firing covers.
pub fn fire(rooms: &mut Rooms, out: &mut Out<'_, '_>, ctx: &Ctx, req: FireSchedule) -> Outcome<ScheduleRun> {
    let mut schedule = check_tick(&rooms.schedules, &req)?.clone();
    if !req.missed {
        check_id("task_id", &req.task_id)?;
    }
    let mut run = ScheduleRun { ticks: req.ticks.max(1), ..new_run(ctx, &schedule, req.tick_ms) };
    let outcome = if req.missed {
        RunOutcome::Missed
    } else {
        match start(rooms, out, ctx, &schedule, req.tick_ms, &req.task_id) {
            Ok(outcome) => outcome,
            // The template was good once. What refuses it now (a limit, a task that is gone) may be over by the next tick.
            Err(Error::Rejected(rejection)) => {
                run.error = rejection.message;
                RunOutcome::Refused
            }
            Err(fatal) => return Err(fatal),
        }
    };
    run.set_outcome(outcome);
    if outcome == RunOutcome::Fired {
        run.task_id = req.task_id;
        schedule.last_tick_ms = req.tick_ms;
    }
    let stays = planted(Bug::TickRepeated) && ctx.rev.is_multiple_of(5);
    schedule.next_tick_ms = if stays { req.tick_ms } else { req.next_tick_ms };
    record(&mut rooms.schedules, out, schedule, &run);
    Ok(run)
}

/// One run now, whatever the ticks and a pause say. Somebody waits for the answer, so a refused task refuses the run.
pub fn run_now(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    req: RunScheduleNowRequest,
) -> Outcome<RunScheduleNowResponse> {
    let schedule = rooms.schedules.existing(&req.schedule_id)?.clone();
    check_id("task_id", &req.task_id)?;
    let mut run = ScheduleRun { by_hand: true, ..new_run(ctx, &schedule, ctx.now_ms) };
    let outcome = start(rooms, out, ctx, &schedule, ctx.now_ms, &req.task_id)?;
    run.set_outcome(outcome);
    if outcome == RunOutcome::Fired {
        run.task_id = req.task_id;
    }
    record(&mut rooms.schedules, out, schedule, &run);
    Ok(RunScheduleNowResponse { run: Some(run), rev: ctx.rev })
}

/// The schedule, if it still stands as it did when the firing was prepared.
fn check_tick<'a>(schedules: &'a Schedules, req: &FireSchedule) -> Outcome<&'a Schedule> {
    let aborted = |field: &str, message: String| reject(RejectionCode::Aborted, field, message);
    let Some(schedule) = schedules.get(&req.schedule_id) else {
        return Err(aborted("schedule_id", format!("no schedule {:?} exists", req.schedule_id)));
    };
    if schedule.paused {
        return Err(aborted("schedule_id", format!("schedule {:?} is paused", schedule.id)));
    }
    if schedule.epoch != req.epoch {
        let message = format!("schedule {:?} is at epoch {}, not {}", schedule.id, schedule.epoch, req.epoch);
        return Err(aborted("epoch", message));
    }
    if schedule.next_tick_ms != req.tick_ms {
        let (next_ms, given_ms) = (schedule.next_tick_ms, req.tick_ms);
        return Err(aborted("tick_ms", format!("the next tick of {:?} is {next_ms}, not {given_ms}", schedule.id)));
    }
    if req.next_tick_ms <= req.tick_ms {
        return Err(aborted("next_tick_ms", format!("next_tick_ms must be after {}", req.tick_ms)));
    }
    Ok(schedule)
}

fn new_run(ctx: &Ctx, schedule: &Schedule, tick_ms: u64) -> ScheduleRun {
    ScheduleRun {
        schedule_id: schedule.id.clone(),
        tick_ms,
        fired_at_ms: ctx.now_ms,
        ticks: 1,
        rev: ctx.rev,
        ..ScheduleRun::default()
    }
}

/// Submits the task, unless the earlier one is in its way. A rejection left no write.
fn start(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    schedule: &Schedule,
    tick_ms: u64,
    task_id: &str,
) -> Outcome<RunOutcome> {
    let corrupt = |what: &str| Fatal::Corrupt(format!("schedule {:?} has no {what}", schedule.id));
    let spec = schedule.spec.as_ref().ok_or_else(|| corrupt("spec"))?;
    let mut task = spec.task.clone().ok_or_else(|| corrupt("template"))?;
    let earlier = schedule.last_task_id.as_str();
    let overlaps = !earlier.is_empty() && tasks::is_live(&*out.txn, earlier)?;
    let overlap = spec.overlap();
    match overlap {
        Overlap::Skip | Overlap::Unspecified if overlaps => return Ok(RunOutcome::Overlapped),
        Overlap::Queue if overlaps && !task.soft_dependencies.iter().any(|id| id == earlier) => {
            task.soft_dependencies.push(earlier.to_owned());
        }
        _ => {}
    }
    task.task_id = task_id.to_owned();
    for (key, value) in [(SCHEDULE_LABEL, schedule.id.clone()), (TICK_LABEL, tick_ms.to_string())] {
        task.labels.push(KeyValue { key: key.to_owned(), value });
    }
    tasks::submit_internal(rooms, out, ctx, task)?;
    // Only once the new one is accepted: a refused run ends nothing.
    if overlaps && overlap == Overlap::CancelPrevious {
        let reason = format!("the next run of schedule {} began", schedule.id);
        tasks::cancel_internal(rooms, out, ctx, earlier, &reason)?;
    }
    Ok(RunOutcome::Fired)
}

/// Keeps the run, counts it, and forgets the oldest beyond [`MAX_RUNS`].
fn record(schedules: &mut Schedules, out: &mut Out<'_, '_>, mut schedule: Schedule, run: &ScheduleRun) {
    match run.outcome() {
        RunOutcome::Fired => {
            schedule.runs = schedule.runs.saturating_add(1);
            schedule.last_task_id.clone_from(&run.task_id);
            out.effects.push(Effect::ScheduleFired {
                schedule_id: schedule.id.clone(),
                tick_ms: run.tick_ms,
                task_id: run.task_id.clone(),
                rev: run.rev,
            });
        }
        RunOutcome::Missed => schedule.missed = schedule.missed.saturating_add(run.ticks),
        RunOutcome::Overlapped => schedule.overlapped = schedule.overlapped.saturating_add(run.ticks),
        RunOutcome::Refused | RunOutcome::Unspecified => {}
    }
    let kept = schedules.runs.entry(schedule.id.clone()).or_default();
    kept.push_back(run.rev);
    if kept.len() > MAX_RUNS
        && let Some(oldest) = kept.pop_front()
    {
        out.txn.delete(&run_key(&schedule.id, oldest));
    }
    out.txn.put(&run_key(&schedule.id, run.rev), run);
    store(schedules, out, &schedule);
}
