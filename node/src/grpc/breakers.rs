//! Breakers: what is broken.

use quorate_proto::log::command;
use quorate_proto::v1::breakers_server::Breakers;
use quorate_proto::v1::{
    AcquireBreakerRequest, AcquireBreakerResponse, BreakerState, ConfigureBreakerRequest, ConfigureBreakerResponse,
    ForceBreakerRequest, ForceBreakerResponse, GetBreakerRequest, GetBreakerResponse, ListBreakersRequest,
    ListBreakersResponse, ReportBreakerRequest, ReportBreakerResponse,
};
use quorate_raft::state::breakers::check_name;
use tonic::{Request, Response, Status};

use super::{Door, checked, expect_arm, status};

const LIST_MAX: usize = 10_000;

#[tonic::async_trait]
impl Breakers for Door {
    async fn acquire(
        &self,
        request: Request<AcquireBreakerRequest>,
    ) -> Result<Response<AcquireBreakerResponse>, Status> {
        let mut request = request.into_inner();
        checked(check_name(&request.name))?;
        let body = self.propose(request.request.take(), command::Body::AcquireBreaker(request)).await?;
        Ok(self.respond(expect_arm!(AcquireBreaker, body)?))
    }

    async fn report(&self, request: Request<ReportBreakerRequest>) -> Result<Response<ReportBreakerResponse>, Status> {
        let mut request = request.into_inner();
        checked(check_name(&request.name))?;
        let body = self.propose(request.request.take(), command::Body::ReportBreaker(request)).await?;
        Ok(self.respond(expect_arm!(ReportBreaker, body)?))
    }

    async fn configure(
        &self,
        request: Request<ConfigureBreakerRequest>,
    ) -> Result<Response<ConfigureBreakerResponse>, Status> {
        let mut request = request.into_inner();
        if !request.name.is_empty() {
            checked(check_name(&request.name))?;
        }
        let body = self.propose(request.request.take(), command::Body::ConfigureBreaker(request)).await?;
        Ok(self.respond(expect_arm!(ConfigureBreaker, body)?))
    }

    async fn force(&self, request: Request<ForceBreakerRequest>) -> Result<Response<ForceBreakerResponse>, Status> {
        let mut request = request.into_inner();
        checked(check_name(&request.name))?;
        let body = self.propose(request.request.take(), command::Body::ForceBreaker(request)).await?;
        Ok(self.respond(expect_arm!(ForceBreaker, body)?))
    }

    async fn get(&self, request: Request<GetBreakerRequest>) -> Result<Response<GetBreakerResponse>, Status> {
        let request = request.into_inner();
        checked(check_name(&request.name))?;
        let found = self
            .read(request.consistency(), |view| {
                let breakers = &view.rooms.breakers;
                let Some(breaker) = breakers.get(&request.name).cloned() else { return Ok(None) };
                let effective = Some(breakers.effective(&request.name));
                Ok(Some(GetBreakerResponse { breaker: Some(breaker), effective, rev: view.head.rev }))
            })
            .await?;
        found
            .map(|response| self.respond(response))
            .ok_or_else(|| Status::not_found(format!("nothing was said of a breaker {}", request.name)))
    }

    async fn list(&self, request: Request<ListBreakersRequest>) -> Result<Response<ListBreakersResponse>, Status> {
        let request = request.into_inner();
        if BreakerState::try_from(request.state).is_err() {
            let message = format!("state must be CLOSED, OPEN or HALF_OPEN, or be left out; got {}", request.state);
            return Err(status::invalid("state", message));
        }
        let response = self
            .read(request.consistency(), |view| {
                let breakers = &view.rooms.breakers;
                let wanted = breakers.iter().filter(|breaker| request.state == 0 || breaker.state == request.state);
                Ok(ListBreakersResponse {
                    breakers: wanted.take(LIST_MAX).cloned().collect(),
                    defaults: Some(breakers.defaults().clone()),
                    rev: view.head.rev,
                })
            })
            .await?;
        Ok(self.respond(response))
    }
}
