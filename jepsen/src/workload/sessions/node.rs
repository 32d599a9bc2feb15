//! Single calls at single nodes: what is sent once is taken once at most, and each attempt is recorded as what it is.
//!
//! Deliberately absent: retries, and a search for the leader. Nodes pass on what they cannot do themselves.

use std::time::Duration;

use anyhow::Result;
use quorate_client::v1::kv_client::KvClient;
use quorate_client::v1::sessions_client::SessionsClient;
use quorate_client::v1::{
    CloseSessionRequest, KeepAliveRequest, KvGetRequest, KvListRequest, KvPutRequest, OpenSessionRequest, Session,
};
use serde_json::json;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::coordination::only;
use crate::record::Answer;
use crate::rng::Rng;
use crate::workload::Context;
use crate::workload::direct::effect;

/// The most documents that are there at once.
const PAGE: u32 = 1_000;

/// A node of the cluster.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) id: u64,
    channel: Channel,
}

/// Every node, node 1 first.
pub(super) fn all(context: &Context) -> Result<Vec<Node>> {
    let nodes = context.endpoints.iter().zip(1..);
    nodes.map(|(endpoint, id)| Ok(Node { id, channel: only(endpoint)? })).collect()
}

/// Any of them.
pub(super) fn any(nodes: &[Node], rng: &mut Rng) -> Result<Node> {
    let place = usize::try_from(rng.below(nodes.len() as u64)).unwrap_or_default();
    nodes.get(place).cloned().ok_or_else(|| anyhow::anyhow!("there is no node"))
}

impl Node {
    fn sessions(&self) -> SessionsClient<Channel> {
        SessionsClient::new(self.channel.clone())
    }

    fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone())
    }

    /// Opens a session, or resumes a live one.
    pub(super) async fn open(&self, session_id: &str, ttl: Duration) -> Result<(Session, u64), Status> {
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        let request = OpenSessionRequest { session_id: session_id.to_owned(), ttl_ms, ..Default::default() };
        let opened = self.sessions().open(request).await?.into_inner();
        Ok((opened.session.unwrap_or_default(), opened.rev))
    }

    /// Renews a session, if it lives.
    pub(super) async fn keep_alive(&self, session_id: &str) -> Answer {
        let request = KeepAliveRequest { session_id: session_id.to_owned() };
        alive(self.sessions().keep_alive(request).await.map(drop))
    }

    /// Ends a session, if it lives.
    pub(super) async fn close(&self, session_id: &str) -> Answer {
        let request = CloseSessionRequest { session_id: session_id.to_owned() };
        alive(self.sessions().close(request).await.map(drop))
    }

    /// Writes the document that goes with a session.
    pub(super) async fn put(&self, key: String, session_id: &str) -> Answer {
        let session_id = session_id.to_owned();
        let request = KvPutRequest { key, value: "here".into(), session_id, ..Default::default() };
        match self.kv().put(request).await {
            Ok(put) => Answer::at(put.into_inner().rev, json!({})),
            Err(status) => effect(&status),
        }
    }

    /// Whether a document is there; `None`: nobody says.
    pub(super) async fn is_present(&self, key: String) -> Option<bool> {
        match self.kv().get(KvGetRequest { key, ..Default::default() }).await {
            Ok(_) => Some(true),
            Err(status) if status.code() == Code::NotFound => Some(false),
            Err(_) => None,
        }
    }

    /// The rest of the key of every document whose key begins so; `None`: nobody says, or there are too many.
    pub(super) async fn present(&self, prefix: &str) -> Option<Vec<String>> {
        let request = KvListRequest { prefix: prefix.to_owned(), limit: PAGE, keys_only: true, ..Default::default() };
        let page = self.kv().list(request).await.ok()?.into_inner();
        let rest = |key: &str| key.strip_prefix(prefix).map(str::to_owned);
        page.next.is_empty().then(|| page.entries.iter().filter_map(|entry| rest(&entry.key)).collect())
    }
}

/// What the answer to a call says about a session.
fn alive(answer: Result<(), Status>) -> Answer {
    match answer {
        Ok(()) => Answer::ok(json!({ "alive": true })),
        Err(status) if status.code() == Code::NotFound => Answer::ok(json!({ "alive": false })),
        Err(status) => effect(&status),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_that_is_not_found_is_not_alive() {
        assert_eq!(alive(Err(Status::not_found("ended"))), Answer::ok(json!({ "alive": false })));
        assert_eq!(alive(Ok(())), Answer::ok(json!({ "alive": true })));
        assert_eq!(alive(Err(Status::cancelled("timed out"))), Answer::Info);
    }
}
