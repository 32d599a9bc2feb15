//! Documents: written, read, listed, brought back; and what is kept of them.

use quorate_proto::log::command;
use quorate_proto::v1::kv_server::Kv;
use quorate_proto::v1::{
    DeleteKvPolicyRequest, DeleteKvPolicyResponse, KvDeleteRequest, KvDeleteResponse, KvGetRequest, KvGetResponse,
    KvHistoryRequest, KvHistoryResponse, KvListRequest, KvListResponse, KvPutRequest, KvPutResponse, KvRollbackRequest,
    ListKvPoliciesRequest, ListKvPoliciesResponse, SetKvPolicyRequest, SetKvPolicyResponse,
};
use quorate_raft::state::kv::{MAX_KEY_BYTES, MAX_PAGE};
use tonic::{Request, Response, Status};

use super::{Door, at_most, expect_arm, status};

#[tonic::async_trait]
impl Kv for Door {
    async fn put(&self, request: Request<KvPutRequest>) -> Result<Response<KvPutResponse>, Status> {
        let mut request = request.into_inner();
        check_key(&request.key)?;
        if let Some(blob) = &request.blob {
            self.core.blobs.ensure_all(&[("blob".to_owned(), blob.clone())]).await?;
        }
        let body = self.propose(request.request.take(), command::Body::KvPut(request)).await?;
        Ok(self.respond(expect_arm!(KvPut, body)?))
    }

    async fn get(&self, request: Request<KvGetRequest>) -> Result<Response<KvGetResponse>, Status> {
        let request = request.into_inner();
        check_key(&request.key)?;
        let found = self
            .read(request.consistency(), |view| {
                let entry = view.rooms.kv.get(view.rows, &request.key, request.version)?;
                Ok(entry.map(|entry| KvGetResponse { entry: Some(entry), rev: view.head.rev }))
            })
            .await?;
        found.map(|response| self.respond(response)).ok_or_else(|| not_there(&request))
    }

    async fn delete(&self, request: Request<KvDeleteRequest>) -> Result<Response<KvDeleteResponse>, Status> {
        let mut request = request.into_inner();
        check_key(&request.key)?;
        let body = self.propose(request.request.take(), command::Body::KvDelete(request)).await?;
        Ok(self.respond(expect_arm!(KvDelete, body)?))
    }

    async fn list(&self, request: Request<KvListRequest>) -> Result<Response<KvListResponse>, Status> {
        let request = request.into_inner();
        at_most("limit", request.limit, MAX_PAGE as usize)?;
        let response = self
            .read(request.consistency(), |view| {
                let (entries, next) = view.rooms.kv.list(view.rows, &request)?;
                Ok(KvListResponse { entries, next, rev: view.head.rev })
            })
            .await?;
        Ok(self.respond(response))
    }

    async fn history(&self, request: Request<KvHistoryRequest>) -> Result<Response<KvHistoryResponse>, Status> {
        let request = request.into_inner();
        check_key(&request.key)?;
        at_most("limit", request.limit, MAX_PAGE as usize)?;
        let response = self
            .read(request.consistency(), |view| {
                let versions = view.rooms.kv.history(view.rows, &request)?;
                Ok(KvHistoryResponse { versions, rev: view.head.rev })
            })
            .await?;
        Ok(self.respond(response))
    }

    async fn rollback(&self, request: Request<KvRollbackRequest>) -> Result<Response<KvPutResponse>, Status> {
        let mut request = request.into_inner();
        check_key(&request.key)?;
        let body = self.propose(request.request.take(), command::Body::KvRollback(request)).await?;
        Ok(self.respond(expect_arm!(KvRollback, body)?))
    }

    async fn set_policy(&self, request: Request<SetKvPolicyRequest>) -> Result<Response<SetKvPolicyResponse>, Status> {
        let mut request = request.into_inner();
        let body = self.propose(request.request.take(), command::Body::SetKvPolicy(request)).await?;
        Ok(self.respond(expect_arm!(SetKvPolicy, body)?))
    }

    async fn delete_policy(
        &self,
        request: Request<DeleteKvPolicyRequest>,
    ) -> Result<Response<DeleteKvPolicyResponse>, Status> {
        let mut request = request.into_inner();
        let body = self.propose(request.request.take(), command::Body::DeleteKvPolicy(request)).await?;
        Ok(self.respond(expect_arm!(DeleteKvPolicy, body)?))
    }

    async fn list_policies(
        &self,
        request: Request<ListKvPoliciesRequest>,
    ) -> Result<Response<ListKvPoliciesResponse>, Status> {
        let response = self
            .read(request.into_inner().consistency(), |view| {
                let policies = view.rooms.kv.policies().cloned().collect();
                Ok(ListKvPoliciesResponse { policies, rev: view.head.rev })
            })
            .await?;
        Ok(self.respond(response))
    }
}

/// Keys are parts of rows' keys.
fn check_key(key: &str) -> Result<(), Status> {
    if (1..=MAX_KEY_BYTES).contains(&key.len()) && !key.contains('\0') {
        return Ok(());
    }
    let message = format!("key must be 1 to {MAX_KEY_BYTES} bytes without a NUL; got {} bytes", key.len());
    Err(status::invalid("key", message))
}

fn not_there(request: &KvGetRequest) -> Status {
    let KvGetRequest { key, version, .. } = request;
    if *version == 0 {
        return status::missing("key", format!("no document {key:?}"));
    }
    status::missing("version", format!("version {version} of {key:?} is not kept, is a removal, or never was"))
}
