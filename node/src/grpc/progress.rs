//! Progress: roll-ups, checkpoints, the past. Reads only.

use quorate_proto::v1::progress_server::Progress;
use quorate_proto::v1::{
    CheckpointsRequest, CheckpointsResponse, HistoryRequest, HistoryResponse, ProjectsRequest, ProjectsResponse,
};
use quorate_raft::state::progress;
use tonic::{Request, Response, Status};

use super::{Door, rows_wanted, status};

const CHECKPOINTS_DEFAULT: usize = 100;
const CHECKPOINTS_MAX: usize = 1_000;
const SAMPLES_DEFAULT: usize = 1_440;
const SAMPLES_MAX: usize = 10_080;

#[tonic::async_trait]
impl Progress for Door {
    async fn projects(&self, request: Request<ProjectsRequest>) -> Result<Response<ProjectsResponse>, Status> {
        let request = request.into_inner();
        let response = self
            .read(request.consistency(), |view| {
                let projects = view.rooms.progress.projects(&request.project);
                Ok(ProjectsResponse { projects, rev: view.head.rev })
            })
            .await?;
        Ok(self.respond(response))
    }

    async fn checkpoints(&self, request: Request<CheckpointsRequest>) -> Result<Response<CheckpointsResponse>, Status> {
        let request = request.into_inner();
        let limit = rows_wanted("limit", request.limit, CHECKPOINTS_DEFAULT, CHECKPOINTS_MAX)?;
        let response = self
            .read(request.consistency(), |view| {
                let checkpoints = progress::Progress::checkpoints(view.rows, &request.project, limit)?;
                Ok(CheckpointsResponse { checkpoints, rev: view.head.rev })
            })
            .await?;
        Ok(self.respond(response))
    }

    async fn history(&self, request: Request<HistoryRequest>) -> Result<Response<HistoryResponse>, Status> {
        let request = request.into_inner();
        let limit = rows_wanted("limit", request.limit, SAMPLES_DEFAULT, SAMPLES_MAX)?;
        let before_ms = if request.before_ms == 0 { u64::MAX } else { request.before_ms };
        if before_ms <= request.from_ms {
            let message = format!("before_ms must be 0 or later than from_ms {}; got {before_ms}", request.from_ms);
            return Err(status::invalid("before_ms", message));
        }
        let response = self
            .read(request.consistency(), |view| {
                let samples = view.rooms.progress.history(view.rows, request.from_ms, before_ms, limit)?;
                Ok(HistoryResponse { samples, rev: view.head.rev })
            })
            .await?;
        Ok(self.respond(response))
    }
}
