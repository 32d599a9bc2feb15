//! Schedules: created, paused, run by hand, looked at. Ticks are the leader's loop's.

use quorate_proto::log::command;
use quorate_proto::v1::schedules_server::Schedules;
use quorate_proto::v1::{
    Consistency, CreateScheduleRequest, CreateScheduleResponse, DeleteScheduleRequest, DeleteScheduleResponse,
    GetScheduleRequest, GetScheduleResponse, ListAttemptsRequest, ListSchedulesRequest, ListSchedulesResponse,
    PauseScheduleRequest, PauseScheduleResponse, PreviewScheduleRequest, PreviewScheduleResponse,
    RunScheduleNowRequest, RunScheduleNowResponse, Schedule, ScheduleHistoryRequest, ScheduleHistoryResponse,
    ScheduleRun, ScheduleSpec,
};
use quorate_raft::error::Outcome;
use quorate_raft::replica::View;
use quorate_raft::state::check_id;
use quorate_raft::state::schedules::MAX_RUNS;
use tonic::{Request, Response, Status};

use super::{Door, checked, expect_arm, new_id, rows_wanted, status};
use crate::calendar::{Calendar, Wrong};
use crate::core::Core;

const HISTORY_DEFAULT: usize = 100;
const PREVIEW_DEFAULT: usize = 5;
const PREVIEW_MAX: usize = 100;
/// No preview begins after the year 3000: calendars end somewhere.
const LATEST_MS: u64 = 32_503_680_000_000;
/// Runs whose tasks are looked up in one hold of the state.
const JOINED_AT_ONCE: usize = 32;

#[tonic::async_trait]
impl Schedules for Door {
    async fn create(
        &self,
        request: Request<CreateScheduleRequest>,
    ) -> Result<Response<CreateScheduleResponse>, Status> {
        let mut request = request.into_inner();
        stamp(&self.core, &mut request)?;
        let body = self.propose(request.request.take(), command::Body::CreateSchedule(request)).await?;
        Ok(self.respond(expect_arm!(CreateSchedule, body)?))
    }

    async fn delete(
        &self,
        request: Request<DeleteScheduleRequest>,
    ) -> Result<Response<DeleteScheduleResponse>, Status> {
        let mut request = request.into_inner();
        checked(check_id("schedule_id", &request.schedule_id))?;
        let body = self.propose(request.request.take(), command::Body::DeleteSchedule(request)).await?;
        Ok(self.respond(expect_arm!(DeleteSchedule, body)?))
    }

    async fn pause(&self, request: Request<PauseScheduleRequest>) -> Result<Response<PauseScheduleResponse>, Status> {
        let mut request = request.into_inner();
        checked(check_id("schedule_id", &request.schedule_id))?;
        let body = self.propose(request.request.take(), command::Body::PauseSchedule(request)).await?;
        Ok(self.respond(expect_arm!(PauseSchedule, body)?))
    }

    async fn run_now(
        &self,
        request: Request<RunScheduleNowRequest>,
    ) -> Result<Response<RunScheduleNowResponse>, Status> {
        let mut request = request.into_inner();
        checked(check_id("schedule_id", &request.schedule_id))?;
        request.task_id = new_id("t");
        let body = self.propose(request.request.take(), command::Body::RunScheduleNow(request)).await?;
        Ok(self.respond(expect_arm!(RunScheduleNow, body)?))
    }

    async fn get(&self, request: Request<GetScheduleRequest>) -> Result<Response<GetScheduleResponse>, Status> {
        let request = request.into_inner();
        checked(check_id("schedule_id", &request.schedule_id))?;
        let response = self
            .read(request.consistency(), |view| {
                let schedule = view.rooms.schedules.existing(&request.schedule_id)?.clone();
                Ok(GetScheduleResponse { schedule: Some(schedule), rev: view.head.rev })
            })
            .await?;
        Ok(self.respond(response))
    }

    async fn list(&self, request: Request<ListSchedulesRequest>) -> Result<Response<ListSchedulesResponse>, Status> {
        let request = request.into_inner();
        let response = self
            .read(request.consistency(), |view| {
                let schedules = view.rooms.schedules.iter().map(light).collect();
                Ok(ListSchedulesResponse { schedules, rev: view.head.rev })
            })
            .await?;
        Ok(self.respond(response))
    }

    async fn history(
        &self,
        request: Request<ScheduleHistoryRequest>,
    ) -> Result<Response<ScheduleHistoryResponse>, Status> {
        let request = request.into_inner();
        checked(check_id("schedule_id", &request.schedule_id))?;
        let limit = rows_wanted("limit", request.limit, HISTORY_DEFAULT, MAX_RUNS)?;
        let (mut runs, rev) = self
            .read(request.consistency(), |view| {
                let runs = view.rooms.schedules.history(view.rows, &request.schedule_id, limit)?;
                Ok((runs, view.head.rev))
            })
            .await?;
        // A thousand tasks and their attempts are much to read while apply waits.
        for some in runs.chunks_mut(JOINED_AT_ONCE) {
            self.read(Consistency::Stale, |view| some.iter_mut().try_for_each(|run| join_task(&view, run))).await?;
        }
        Ok(self.respond(ScheduleHistoryResponse { runs, rev }))
    }

    async fn preview(
        &self,
        request: Request<PreviewScheduleRequest>,
    ) -> Result<Response<PreviewScheduleResponse>, Status> {
        let request = request.into_inner();
        let calendar = calendar(request.spec.as_ref())?;
        let count = rows_wanted("count", request.count, PREVIEW_DEFAULT, PREVIEW_MAX)?;
        if request.from_ms > LATEST_MS {
            return Err(status::invalid("from_ms", format!("from_ms must be at most {LATEST_MS}, the year 3000")));
        }
        let from_ms = if request.from_ms == 0 { now_ms(&self.core) } else { request.from_ms };
        calendar.first_ms(from_ms).map_err(wrong)?;
        Ok(self.respond(PreviewScheduleResponse { ticks_ms: calendar.upcoming(from_ms, count) }))
    }
}

/// This node's time, never behind the state's.
fn now_ms(core: &Core) -> u64 {
    let state_ms = core.replica.read(|whole| whole.head.now_ms);
    core.clock.now_ms().max(state_ms)
}

/// The first tick of a schedule that another node was asked to create: the leader's clock counts.
pub(super) fn stamp(core: &Core, request: &mut CreateScheduleRequest) -> Result<(), Status> {
    let calendar = calendar(request.spec.as_ref())?;
    request.first_tick_ms = calendar.first_ms(now_ms(core)).map_err(wrong)?;
    Ok(())
}

fn calendar(spec: Option<&ScheduleSpec>) -> Result<Calendar, Status> {
    let spec = spec.ok_or_else(|| status::invalid("spec", "spec must be given"))?;
    Calendar::of(spec).map_err(wrong)
}

fn wrong(wrong: Wrong) -> Status {
    status::invalid(wrong.field, wrong.message)
}

/// For lists: thousands of them fit one answer only without what may be large.
fn light(schedule: &Schedule) -> Schedule {
    let mut light = schedule.clone();
    if let Some(task) = light.spec.as_mut().and_then(|spec| spec.task.as_mut()) {
        task.payload.clear();
        task.description.clear();
    }
    light
}

/// Adds how the run's task stands now; nothing if it was purged.
fn join_task(view: &View<'_>, run: &mut ScheduleRun) -> Outcome<()> {
    if run.task_id.is_empty() {
        return Ok(());
    }
    let Some(task) = view.rooms.tasks.get_light(view.rows, &run.task_id)? else { return Ok(()) };
    run.task_status = task.status;
    run.task_finished_at_ms = task.finished_at_ms;
    run.task_error = task.error;
    if task.attempts > 0 {
        let first = ListAttemptsRequest { task_id: run.task_id.clone(), limit: 1, ..ListAttemptsRequest::default() };
        let (attempts, _) = view.rooms.tasks.attempts(view.rows, &first)?;
        run.task_started_at_ms = attempts.first().map_or(0, |attempt| attempt.started_at_ms);
    }
    Ok(())
}
