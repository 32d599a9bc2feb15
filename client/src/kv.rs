//! Documents: versioned values by key. [`Kv::put`] and [`Kv::delete`] begin a write; everything else is one call.
//!
//! What is larger than the log takes goes beside it by itself, and comes back by [`Kv::value`].

mod write;

use bytes::Bytes;
use quorate_proto::v1::kv_client::KvClient;
use quorate_proto::v1::{
    DeleteKvPolicyRequest, DeleteKvPolicyResponse, KvEntry, KvGetRequest, KvHistoryRequest, KvHistoryResponse,
    KvListRequest, KvListResponse, KvPolicy, KvPutResponse, KvRollbackRequest, ListKvPoliciesRequest,
    ListKvPoliciesResponse, SetKvPolicyRequest, SetKvPolicyResponse,
};

use crate::call::Plan;
use crate::channels::Channel;
use crate::client::Client;
use crate::error::Error;
use crate::requests::{identify, judged, removed};
use crate::sessions::Session;

pub(crate) use write::offload;
pub use write::{KvDelete, KvPut};

/// Versioned documents.
#[derive(Debug, Clone)]
pub struct Kv {
    pub(crate) client: Client,
}

fn stub(channel: Channel) -> KvClient<Channel> {
    KvClient::new(channel)
        .max_decoding_message_size(crate::MAX_MESSAGE_BYTES * 4)
        .max_encoding_message_size(crate::MAX_MESSAGE_BYTES)
}

impl Kv {
    /// Begins a write: `kv.put("plans/7", text).if_rev(entry.mod_rev).send()`.
    pub fn put(&self, key: impl Into<String>, value: impl Into<Bytes>) -> KvPut {
        KvPut::new(self.client.clone(), key.into(), value.into())
    }

    /// Begins a removal: `kv.delete("plans/7").send()`. The history stays.
    pub fn delete(&self, key: impl Into<String>) -> KvDelete {
        KvDelete::new(self.client.clone(), key.into())
    }

    /// The document; `None` if there is none. One that lies beside the log has a `blob` instead of a value:
    /// [`Kv::value`] has both.
    pub async fn get(&self, key: &str) -> Result<Option<KvEntry>, Error> {
        self.get_version(key, 0).await
    }

    /// A version of the document, 0 for the current one; `None` if it is not kept, or never was.
    pub async fn get_version(&self, key: &str, version: u64) -> Result<Option<KvEntry>, Error> {
        let request = KvGetRequest { key: key.to_owned(), version, consistency: 0 };
        let found = self
            .client
            .call(Plan::READ, |channel| {
                let request = request.clone();
                async move { stub(channel).get(request).await }
            })
            .await;
        match found {
            Ok(found) => Ok(found.entry),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What an entry holds, from beside the log if it lies there. Not found: no node that can be reached has it.
    pub async fn value(&self, entry: &KvEntry) -> Result<Bytes, Error> {
        match &entry.blob {
            Some(blob) => self.client.blobs().get(blob).await,
            None => Ok(entry.value.clone()),
        }
    }

    /// A page of a range of keys, in order.
    pub async fn list(&self, request: KvListRequest) -> Result<KvListResponse, Error> {
        self.client
            .call(Plan::READ, |channel| {
                let request = request.clone();
                async move { stub(channel).list(request).await }
            })
            .await
    }

    /// A page of the versions of one key, newest first; a removal is one of them.
    pub async fn history(&self, request: KvHistoryRequest) -> Result<KvHistoryResponse, Error> {
        self.client
            .call(Plan::READ, |channel| {
                let request = request.clone();
                async move { stub(channel).history(request).await }
            })
            .await
    }

    /// Writes an earlier version anew, as the newest. Not found: it is not kept any more, or is a removal. Without a
    /// session and without `if_mod_rev`, a call of unknown outcome is not repeated.
    pub async fn rollback(
        &self,
        session: Option<&Session>,
        mut request: KvRollbackRequest,
    ) -> Result<KvPutResponse, Error> {
        let _under_way = identify(&mut request.request, session);
        let identified = request.request.is_some();
        let outcome = self
            .client
            .call_in_full(write::plan(identified, request.if_mod_rev), |channel| {
                let request = request.clone();
                async move { stub(channel).rollback(request).await }
            })
            .await;
        judged(outcome, identified)
    }

    /// Says what is kept of the keys under a prefix; the longest prefix counts.
    pub async fn set_policy(&self, policy: KvPolicy) -> Result<SetKvPolicyResponse, Error> {
        let request = SetKvPolicyRequest { policy: Some(policy), request: None };
        self.client
            .call(Plan::SAFE, |channel| {
                let request = request.clone();
                async move { stub(channel).set_policy(request).await }
            })
            .await
    }

    /// Removes a policy: the next shorter prefix counts again.
    pub async fn delete_policy(&self, prefix: &str) -> Result<DeleteKvPolicyResponse, Error> {
        let request = DeleteKvPolicyRequest { prefix: prefix.to_owned(), request: None };
        let outcome = self
            .client
            .call_in_full(Plan::SAFE, |channel| {
                let request = request.clone();
                async move { stub(channel).delete_policy(request).await }
            })
            .await;
        removed(outcome)
    }

    /// Every policy, by prefix.
    pub async fn policies(&self) -> Result<ListKvPoliciesResponse, Error> {
        let request = ListKvPoliciesRequest { consistency: 0 };
        self.client.call(Plan::READ, |channel| async move { stub(channel).list_policies(request).await }).await
    }
}
