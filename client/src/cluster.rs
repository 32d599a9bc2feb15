//! The cluster itself.

use quorate_proto::v1::cluster_client::ClusterClient;
use quorate_proto::v1::{
    ClusterStatusRequest, ClusterStatusResponse, NodeStatusRequest, NodeStatusResponse, SnapshotRequest,
    SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
};
use tokio::time::timeout;

use crate::call::{Plan, Repeat};
use crate::client::Client;
use crate::error::{Error, Failure, classify};

/// Operating the cluster.
#[derive(Debug, Clone)]
pub struct Cluster {
    pub(crate) client: Client,
}

impl Cluster {
    /// Every node as the contacted one sees it.
    pub async fn status(&self) -> Result<ClusterStatusResponse, Error> {
        self.client
            .call(
                Plan::READ,
                |channel| async move { ClusterClient::new(channel).status(ClusterStatusRequest {}).await },
            )
            .await
    }

    /// One node's own view. `full_digest` hashes every stored row.
    pub async fn node_status(&self, endpoint: &str, full_digest: bool) -> Result<NodeStatusResponse, Error> {
        let channel = self.client.channels().to(endpoint)?.channel;
        let request = NodeStatusRequest { full_digest };
        one_attempt(&self.client, endpoint, Repeat::Read, ClusterClient::new(channel).node_status(request)).await
    }

    /// Hands leadership over; 0 means the most caught-up voter. Asked of whoever leads.
    pub async fn transfer_leader(&self, to_node_id: u64) -> Result<TransferLeaderResponse, Error> {
        let status = self.status().await?;
        let leader = status.nodes.iter().find(|node| node.node_id == status.leader_id);
        let endpoint = leader.map(|node| node.address.clone()).ok_or_else(|| Error::Unavailable {
            message: "no leader is known at the moment".to_owned(),
            last: String::new(),
        })?;
        let channel = self.client.channels().to(&endpoint)?.channel;
        let request = TransferLeaderRequest { to_node_id };
        let mut stub = ClusterClient::new(channel);
        one_attempt(&self.client, &endpoint, Repeat::Unsafe, stub.transfer_leader(request)).await
    }

    /// Takes a snapshot on one node now.
    pub async fn snapshot(&self, endpoint: &str) -> Result<SnapshotResponse, Error> {
        let channel = self.client.channels().to(endpoint)?.channel;
        let mut stub = ClusterClient::new(channel);
        one_attempt(&self.client, endpoint, Repeat::Unsafe, stub.snapshot(SnapshotRequest {})).await
    }
}

/// A call that is about one particular node: nobody else can answer it.
async fn one_attempt<T>(
    client: &Client,
    endpoint: &str,
    repeat: Repeat,
    attempt: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, Error> {
    let limit = client.config().call_timeout;
    let failure = match timeout(limit, attempt).await {
        Ok(Ok(response)) => return Ok(response.into_inner()),
        Ok(Err(status)) => classify(&status),
        Err(_) => Failure::Unknown(format!("{endpoint} did not answer within {limit:?}")),
    };
    Err(match failure {
        Failure::Final(error) => error,
        Failure::Unknown(message) if repeat != Repeat::Read => Error::OutcomeUnknown { message },
        Failure::NoEffect(last) | Failure::Unknown(last) => {
            Error::Unavailable { message: format!("{endpoint} could not take the call"), last }
        }
    })
}
