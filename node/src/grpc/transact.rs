//! Transactions: several writes as one.

use quorate_proto::log::command;
use quorate_proto::v1::transact_op::Op;
use quorate_proto::v1::transact_server::Transact;
use quorate_proto::v1::{TransactRequest, TransactResponse};
use quorate_raft::state::bus::MAX_PUBLISH;
use quorate_raft::state::transact::{MAX_CONDITIONS, MAX_OPS};
use tonic::{Request, Response, Status};

use super::bus::{blobs_of, check_count};
use super::{Door, expect_arm, status};

#[tonic::async_trait]
impl Transact for Door {
    async fn run(&self, request: Request<TransactRequest>) -> Result<Response<TransactResponse>, Status> {
        let mut request = request.into_inner();
        check_shape(&request)?;
        for op in &request.ops {
            match &op.op {
                Some(Op::Put(put)) => {
                    if let Some(blob) = &put.blob {
                        self.core.blobs.ensure(blob).await?;
                    }
                }
                Some(Op::Publish(publish)) => {
                    for blob in blobs_of(publish) {
                        self.core.blobs.ensure(blob).await?;
                    }
                }
                Some(Op::Delete(_) | Op::Ack(_)) | None => {}
            }
        }
        let body = self.propose(request.request.take(), command::Body::Transact(request)).await?;
        Ok(self.respond(expect_arm!(Transact, body)?))
    }
}

/// How many there are of what is looked at one by one here. The room checks the rest.
fn check_shape(request: &TransactRequest) -> Result<(), Status> {
    check_count("ops", request.ops.len(), MAX_OPS)?;
    if request.conditions.len() > MAX_CONDITIONS {
        let message = format!("conditions must be at most {MAX_CONDITIONS}; got {}", request.conditions.len());
        return Err(status::invalid("conditions", message));
    }
    for (i, op) in request.ops.iter().enumerate() {
        if let Some(Op::Publish(publish)) = &op.op {
            check_count(&format!("ops[{i}].publish.messages"), publish.messages.len(), MAX_PUBLISH)?;
        }
    }
    Ok(())
}
