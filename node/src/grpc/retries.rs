//! Retry profiles: named retry policies.

use quorate_proto::log::command;
use quorate_proto::v1::retries_server::Retries;
use quorate_proto::v1::{
    DeleteRetryProfileRequest, DeleteRetryProfileResponse, ListRetryProfilesRequest, ListRetryProfilesResponse,
    SetRetryProfileRequest, SetRetryProfileResponse,
};
use quorate_raft::state::check_id;
use tonic::{Request, Response, Status};

use super::{Door, checked, expect_arm};

#[tonic::async_trait]
impl Retries for Door {
    async fn set_profile(
        &self,
        request: Request<SetRetryProfileRequest>,
    ) -> Result<Response<SetRetryProfileResponse>, Status> {
        let mut request = request.into_inner();
        checked(check_id("name", &request.name))?;
        let body = self.propose(request.request.take(), command::Body::SetRetryProfile(request)).await?;
        Ok(self.respond(expect_arm!(SetRetryProfile, body)?))
    }

    async fn delete_profile(
        &self,
        request: Request<DeleteRetryProfileRequest>,
    ) -> Result<Response<DeleteRetryProfileResponse>, Status> {
        let mut request = request.into_inner();
        checked(check_id("name", &request.name))?;
        let body = self.propose(request.request.take(), command::Body::DeleteRetryProfile(request)).await?;
        Ok(self.respond(expect_arm!(DeleteRetryProfile, body)?))
    }

    async fn list_profiles(
        &self,
        request: Request<ListRetryProfilesRequest>,
    ) -> Result<Response<ListRetryProfilesResponse>, Status> {
        let response = self
            .read(request.into_inner().consistency(), |view| {
                let profiles = view.rooms.retries.list();
                Ok(ListRetryProfilesResponse { profiles, rev: view.head.rev })
            })
            .await?;
        Ok(self.respond(response))
    }
}
