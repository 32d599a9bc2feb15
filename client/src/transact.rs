//! Transactions: several writes as one, all or none.

use quorate_proto::v1::transact_client::TransactClient;
use quorate_proto::v1::{
    AckKind, BusMessage, KvCondition, KvDeleteRequest, KvPutRequest, PublishRequest, TransactOp, TransactRequest,
    TransactResponse, kv_condition, transact_op,
};

use crate::bus::{Delivery, Ending};
use crate::channels::Channel;
use crate::client::Client;
use crate::error::Error;
use crate::requests::{identify, judged, plan};
use crate::sessions::Session;
use crate::tasks::check_size;
use crate::{bus, kv};

fn stub(channel: Channel) -> TransactClient<Channel> {
    TransactClient::new(channel)
        .max_decoding_message_size(crate::MAX_MESSAGE_BYTES)
        .max_encoding_message_size(crate::MAX_MESSAGE_BYTES)
}

impl Client {
    /// Makes several writes as one. `Rejected`: a condition does not hold, or one of them was refused (the field says
    /// which); `Fenced`: a delivery that it acknowledges is somebody else's. Nothing was written then. Without a session,
    /// or a request id of the caller's own, a call of unknown outcome is not repeated.
    pub async fn transact(
        &self,
        session: Option<&Session>,
        mut request: TransactRequest,
    ) -> Result<TransactResponse, Error> {
        offload(self, &mut request).await?;
        let _under_way = identify(&mut request.request, session);
        check_size(&request)?;
        let identified = request.request.is_some();
        let outcome = self
            .call_in_full(plan(request.request.as_ref()), |channel| {
                let request = request.clone();
                async move { stub(channel).run(request).await }
            })
            .await;
        judged(outcome, identified)
    }
}

/// Puts what is too large for the log beside it.
async fn offload(client: &Client, request: &mut TransactRequest) -> Result<(), Error> {
    for op in &mut request.ops {
        match &mut op.op {
            Some(transact_op::Op::Put(put)) => kv::offload(client, put).await?,
            Some(transact_op::Op::Publish(publish)) => {
                for message in &mut publish.messages {
                    bus::offload(client, message).await?;
                }
            }
            Some(transact_op::Op::Delete(_) | transact_op::Op::Ack(_)) | None => {}
        }
    }
    Ok(())
}

/// Puts a transaction together:
/// `Transaction::new().put(kv.put("n", "1").if_rev(7)).ack(&delivery).run(&client, &session)`.
#[derive(Debug, Clone, Default)]
#[must_use = "nothing is written before run()"]
pub struct Transaction {
    request: TransactRequest,
    acknowledged: Vec<Ending>,
}

impl Transaction {
    /// An empty one. It takes 1 to 128 writes and up to 128 conditions; no two may write the same key or acknowledge the
    /// same delivery.
    pub fn new() -> Self {
        Transaction::default()
    }

    /// Only if this holds, whether or not the key is written.
    pub fn when(mut self, condition: KvCondition) -> Self {
        self.request.conditions.push(condition);
        self
    }

    /// Only if this is the key's `mod_rev`; with 0, only if there is no such key.
    pub fn when_rev(self, key: impl Into<String>, mod_rev: u64) -> Self {
        self.when(KvCondition { key: key.into(), test: Some(kv_condition::Test::ModRev(mod_rev)) })
    }

    /// Only if there is such a key, or with `exists` false only if there is none.
    pub fn when_exists(self, key: impl Into<String>, exists: bool) -> Self {
        self.when(KvCondition { key: key.into(), test: Some(kv_condition::Test::Exists(exists)) })
    }

    /// Writes a document: what [`Kv::put`](crate::Kv::put) begins, or a request as it stands. The session of a put that
    /// was given one for its request id does not count here.
    pub fn put(self, put: impl Into<KvPutRequest>) -> Self {
        self.op(transact_op::Op::Put(put.into()))
    }

    /// Removes a document: what [`Kv::delete`](crate::Kv::delete) begins, or a request as it stands.
    pub fn delete(self, delete: impl Into<KvDeleteRequest>) -> Self {
        self.op(transact_op::Op::Delete(delete.into()))
    }

    /// Acknowledges a delivery: it is never delivered again, if and only if the rest happens.
    pub fn ack(mut self, delivery: &Delivery) -> Self {
        self.acknowledged.push(delivery.ending());
        self.op(transact_op::Op::Ack(delivery.item(AckKind::Ack)))
    }

    /// Publishes one message.
    pub fn publish(self, message: BusMessage) -> Self {
        self.publish_all(PublishRequest { messages: vec![message], ..PublishRequest::default() })
    }

    /// Publishes messages, with every option.
    pub fn publish_all(self, request: PublishRequest) -> Self {
        self.op(transact_op::Op::Publish(request))
    }

    /// Makes all of it happen, or nothing: see [`Client::transact`].
    pub async fn run<'a>(
        self,
        client: &Client,
        session: impl Into<Option<&'a Session>>,
    ) -> Result<TransactResponse, Error> {
        let Transaction { request, acknowledged } = self;
        let done = client.transact(session.into(), request).await;
        if done.is_ok() {
            acknowledged.iter().for_each(Ending::tell);
        }
        done
    }

    fn op(mut self, op: transact_op::Op) -> Self {
        self.request.ops.push(TransactOp { op: Some(op) });
        self
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use quorate_proto::v1::RejectionCode;
    use tokio::time::Instant;

    use super::*;
    use crate::kv::Kv;

    #[tokio::test]
    async fn what_is_put_together_is_what_is_sent_in_order() {
        let session = Session::alone(Duration::from_secs(60), Instant::now());
        let kv = Kv { client: session.client().clone() };
        let transaction = Transaction::new()
            .when_rev("a", 7)
            .when_exists("b", false)
            .put(kv.put("a", "1").if_rev(7))
            .delete(kv.delete("c"))
            .publish(BusMessage { subject: "s".to_owned(), ..BusMessage::default() });
        let request = transaction.request;
        assert_eq!(request.conditions[0].test, Some(kv_condition::Test::ModRev(7)));
        assert_eq!(request.conditions[1].test, Some(kv_condition::Test::Exists(false)));
        let kinds: Vec<&str> = request
            .ops
            .iter()
            .map(|op| match &op.op {
                Some(transact_op::Op::Put(put)) if put.if_mod_rev == 7 => "put",
                Some(transact_op::Op::Delete(delete)) if delete.key == "c" => "delete",
                Some(transact_op::Op::Publish(publish)) if publish.messages.len() == 1 => "publish",
                _ => "wrong",
            })
            .collect();
        assert_eq!(kinds, ["put", "delete", "publish"]);
    }

    #[tokio::test]
    async fn what_no_message_carries_is_refused_and_leaves_no_request_under_way() {
        let session = Session::alone(Duration::from_secs(60), Instant::now());
        let client = session.client().clone();
        let kv = Kv { client: client.clone() };
        let mut transaction = Transaction::new();
        for key in 0..17 {
            transaction = transaction.put(kv.put(key.to_string(), vec![0_u8; 1 << 20]));
        }
        let refused = transaction.run(&client, &session).await;
        assert!(matches!(refused, Err(Error::Rejected { code: RejectionCode::InvalidArgument, .. })), "{refused:?}");
        assert_eq!(session.next_request().done_below, 2);
    }
}
