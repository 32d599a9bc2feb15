//! Blobs: what is too large for the log. Any node takes and gives them; nothing here is proposed.

use futures::StreamExt;
use futures::stream::BoxStream;
use quorate_proto::v1::blobs_server::Blobs;
use quorate_proto::v1::{GetBlobRequest, GetBlobResponse, PutBlobRequest, PutBlobResponse};
use tonic::{Request, Response, Status, Streaming};

use super::Door;

#[tonic::async_trait]
impl Blobs for Door {
    async fn put(&self, request: Request<Streaming<PutBlobRequest>>) -> Result<Response<PutBlobResponse>, Status> {
        let blob = self.core.blobs.put(request.into_inner()).await?;
        Ok(Response::new(PutBlobResponse { blob: Some(blob) }))
    }

    type GetStream = BoxStream<'static, Result<GetBlobResponse, Status>>;

    async fn get(&self, request: Request<GetBlobRequest>) -> Result<Response<Self::GetStream>, Status> {
        Ok(Response::new(self.core.blobs.get(request.get_ref())?.boxed()))
    }
}
