//! Namespaces: created, bounded, removed.

use quorate_proto::log::command;
use quorate_proto::v1::namespaces_server::Namespaces;
use quorate_proto::v1::{
    Consistency, DeleteNamespaceRequest, DeleteNamespaceResponse, ListNamespacesRequest, ListNamespacesResponse,
    NamespaceInfo, SetNamespaceRequest, SetNamespaceResponse,
};
use quorate_raft::state::namespaces::{check_name, usage};
use tonic::{Request, Response, Status};

use super::{Door, checked, expect_arm};

#[tonic::async_trait]
impl Namespaces for Door {
    async fn set(&self, request: Request<SetNamespaceRequest>) -> Result<Response<SetNamespaceResponse>, Status> {
        let mut request = request.into_inner();
        checked(check_name(&request.name))?;
        let body = self.propose(request.request.take(), command::Body::SetNamespace(request)).await?;
        Ok(self.respond(expect_arm!(SetNamespace, body)?))
    }

    async fn delete(
        &self,
        request: Request<DeleteNamespaceRequest>,
    ) -> Result<Response<DeleteNamespaceResponse>, Status> {
        let mut request = request.into_inner();
        checked(check_name(&request.name))?;
        let body = self.propose(request.request.take(), command::Body::DeleteNamespace(request)).await?;
        Ok(self.respond(expect_arm!(DeleteNamespace, body)?))
    }

    async fn list(&self, request: Request<ListNamespacesRequest>) -> Result<Response<ListNamespacesResponse>, Status> {
        if request.into_inner().consistency() != Consistency::Stale {
            self.fresh().await?;
        }
        let response = self.core.replica.read(|whole| {
            let namespaces = (whole.namespaces.iter())
                .map(|part| NamespaceInfo { namespace: Some(part.row.clone()), usage: Some(usage(&part.rooms)) })
                .collect();
            ListNamespacesResponse { namespaces, rev: whole.head.rev }
        });
        Ok(self.respond(response))
    }
}
