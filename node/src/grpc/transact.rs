//! Transactions: several writes as one.

use quorate_proto::log::command;
use quorate_proto::v1::transact_op::Op;
use quorate_proto::v1::transact_server::Transact;
use quorate_proto::v1::{BlobRef, TransactRequest, TransactResponse};
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
        self.core.blobs.ensure_all(&blobs_in(&request)).await?;
        let body = self.propose(request.request.take(), command::Body::Transact(request)).await?;
        Ok(self.respond(expect_arm!(Transact, body)?))
    }
}

/// What is written beside the log, each with the field that refers to it.
fn blobs_in(request: &TransactRequest) -> Vec<(String, BlobRef)> {
    let mut blobs = Vec::new();
    for (i, op) in request.ops.iter().enumerate() {
        match &op.op {
            Some(Op::Put(put)) => blobs.extend(put.blob.clone().map(|blob| (format!("ops[{i}].put.blob"), blob))),
            Some(Op::Publish(publish)) => blobs.extend(blobs_of(&format!("ops[{i}].publish."), publish)),
            Some(Op::Delete(_) | Op::Ack(_)) | None => {}
        }
    }
    blobs
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

#[cfg(test)]
mod tests {
    use quorate_proto::v1::{BusMessage, KvDeleteRequest, KvPutRequest, PublishRequest, TransactOp};

    use super::*;

    #[test]
    fn every_blob_is_named_by_the_field_that_refers_to_it() {
        let blob = |size_bytes| Some(BlobRef { size_bytes, ..Default::default() });
        let messages = [None, blob(2), blob(3)].map(|blob| BusMessage { blob, ..Default::default() });
        let publish = PublishRequest { messages: messages.to_vec(), ..Default::default() };
        let ops = [
            Op::Delete(KvDeleteRequest::default()),
            Op::Put(KvPutRequest { blob: blob(1), ..Default::default() }),
            Op::Put(KvPutRequest::default()),
            Op::Publish(publish),
        ];
        let ops = ops.map(|op| TransactOp { op: Some(op) }).to_vec();
        let blobs = blobs_in(&TransactRequest { ops, ..Default::default() });
        let found: Vec<(&str, u64)> = blobs.iter().map(|(field, blob)| (field.as_str(), blob.size_bytes)).collect();
        let wanted =
            [("ops[1].put.blob", 1), ("ops[3].publish.messages[1].blob", 2), ("ops[3].publish.messages[2].blob", 3)];
        assert_eq!(found, wanted);
    }
}
