//! Dispatch: limits, shares, the policy and the routing table, with what they do right now.

use quorate_proto::log::command;
use quorate_proto::v1::dispatch_server::Dispatch;
use quorate_proto::v1::{
    DeleteLimitRequest, DeleteLimitResponse, ExplainRouteRequest, ExplainRouteResponse, GetDispatchPolicyRequest,
    GetDispatchPolicyResponse, GetRoutesRequest, GetRoutesResponse, LimitUse, ListLimitsRequest, ListLimitsResponse,
    ListSharesRequest, ListSharesResponse, SetDispatchPolicyRequest, SetDispatchPolicyResponse, SetLimitRequest,
    SetLimitResponse, SetRoutesRequest, SetRoutesResponse, SetShareRequest, SetShareResponse,
};
use quorate_raft::state::agents::is_available;
use quorate_raft::state::check_id;
use quorate_raft::state::dispatch::{Routes, check_limit};
use quorate_raft::state::tasks::{MAX_DESCRIPTION_BYTES, MAX_TITLE_BYTES};
use tonic::{Request, Response, Status};

use super::{Door, checked, expect_arm, status};

#[tonic::async_trait]
impl Dispatch for Door {
    async fn set_limit(&self, request: Request<SetLimitRequest>) -> Result<Response<SetLimitResponse>, Status> {
        let mut request = request.into_inner();
        checked(check_limit(request.scope, &request.name).map(drop))?;
        let body = self.propose(request.request.take(), command::Body::SetLimit(request)).await?;
        Ok(self.respond(expect_arm!(SetLimit, body)?))
    }

    async fn delete_limit(
        &self,
        request: Request<DeleteLimitRequest>,
    ) -> Result<Response<DeleteLimitResponse>, Status> {
        let mut request = request.into_inner();
        checked(check_limit(request.scope, &request.name).map(drop))?;
        let body = self.propose(request.request.take(), command::Body::DeleteLimit(request)).await?;
        Ok(self.respond(expect_arm!(DeleteLimit, body)?))
    }

    async fn list_limits(&self, request: Request<ListLimitsRequest>) -> Result<Response<ListLimitsResponse>, Status> {
        let response = self
            .read(request.into_inner().consistency(), |view| {
                let tasks = &view.rooms.tasks;
                let limits = view.rooms.dispatch.limits().map(|limit| LimitUse {
                    limit: Some(limit.clone()),
                    running: tasks.running_under(limit.scope(), &limit.name),
                    waiting: tasks.waiting_under(limit.scope(), &limit.name),
                });
                Ok(ListLimitsResponse { limits: limits.collect(), rev: view.head.rev })
            })
            .await?;
        Ok(self.respond(response))
    }

    async fn set_share(&self, request: Request<SetShareRequest>) -> Result<Response<SetShareResponse>, Status> {
        let mut request = request.into_inner();
        checked(check_id("name", &request.name))?;
        let body = self.propose(request.request.take(), command::Body::SetShare(request)).await?;
        Ok(self.respond(expect_arm!(SetShare, body)?))
    }

    async fn list_shares(&self, request: Request<ListSharesRequest>) -> Result<Response<ListSharesResponse>, Status> {
        let response = self
            .read(request.into_inner().consistency(), |view| {
                let shares = view.rooms.tasks.share_use(&view.rooms.dispatch);
                Ok(ListSharesResponse { shares, rev: view.head.rev })
            })
            .await?;
        Ok(self.respond(response))
    }

    async fn set_policy(
        &self,
        request: Request<SetDispatchPolicyRequest>,
    ) -> Result<Response<SetDispatchPolicyResponse>, Status> {
        let mut request = request.into_inner();
        let body = self.propose(request.request.take(), command::Body::SetDispatchPolicy(request)).await?;
        Ok(self.respond(expect_arm!(SetDispatchPolicy, body)?))
    }

    async fn get_policy(
        &self,
        request: Request<GetDispatchPolicyRequest>,
    ) -> Result<Response<GetDispatchPolicyResponse>, Status> {
        let response = self
            .read(request.into_inner().consistency(), |view| {
                let policy = Some(*view.rooms.dispatch.policy());
                Ok(GetDispatchPolicyResponse { policy, rev: view.head.rev })
            })
            .await?;
        Ok(self.respond(response))
    }

    async fn set_routes(&self, request: Request<SetRoutesRequest>) -> Result<Response<SetRoutesResponse>, Status> {
        let mut request = request.into_inner();
        // What is costly to compile is refused here, once, instead of on every node.
        if let Some(table) = &request.table {
            checked(Routes::new(table.clone()).map(drop))?;
        }
        let body = self.propose(request.request.take(), command::Body::SetRoutes(request)).await?;
        Ok(self.respond(expect_arm!(SetRoutes, body)?))
    }

    async fn get_routes(&self, request: Request<GetRoutesRequest>) -> Result<Response<GetRoutesResponse>, Status> {
        let response = self
            .read(request.into_inner().consistency(), |view| {
                let table = Some(view.rooms.dispatch.routes().table().clone());
                Ok(GetRoutesResponse { table, rev: view.head.rev })
            })
            .await?;
        Ok(self.respond(response))
    }

    async fn explain_route(
        &self,
        request: Request<ExplainRouteRequest>,
    ) -> Result<Response<ExplainRouteResponse>, Status> {
        let request = request.into_inner();
        check_text("title", &request.title, MAX_TITLE_BYTES)?;
        check_text("description", &request.description, MAX_DESCRIPTION_BYTES)?;
        let response = self
            .read(request.consistency(), |view| {
                let routes = view.rooms.dispatch.routes();
                let routed = routes.route(&request.title, &request.description, &request.epic);
                let agents = view.rooms.agents.iter();
                let available = agents.filter(|agent| agent.agent_type == routed.agent_type && is_available(agent));
                let available_agents = u32::try_from(available.count()).unwrap_or(u32::MAX);
                Ok(ExplainRouteResponse {
                    agent_type: routed.agent_type,
                    by: routed.by,
                    matched: routed.matched,
                    tried: routed.tried,
                    version: routes.table().version,
                    available_agents,
                    rev: view.head.rev,
                })
            })
            .await?;
        Ok(self.respond(response))
    }
}

/// A text that no task could have is not explained.
fn check_text(field: &str, text: &str, most: usize) -> Result<(), Status> {
    if text.len() > most {
        return Err(status::invalid(field, format!("{field} must be at most {most} bytes; got {}", text.len())));
    }
    Ok(())
}
