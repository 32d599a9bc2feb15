//! The cluster itself.

use quorate_proto::v1::change_members_request::Change;
use quorate_proto::v1::cluster_client::ClusterClient;
use quorate_proto::v1::{
    ChangeMembersRequest, ClusterStatusRequest, ClusterStatusResponse, JoinInfoRequest, JoinInfoResponse,
    MemberAddress, MembersChange, MembersStep, NodeStatusRequest, NodeStatusResponse, RaiseFeatureLevelRequest,
    RaiseFeatureLevelResponse, ReplaceMember, SnapshotRequest, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse,
};
use tokio::time::{Instant, timeout, timeout_at};

use crate::call::{Plan, Repeat};
use crate::channels::Channel;
use crate::client::Client;
use crate::error::{Error, Failure, classify};
use crate::reopen::{Items, News, Opening, Reopened, items};

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

    /// What a new node must know.
    pub async fn join_info(&self) -> Result<JoinInfoResponse, Error> {
        let ask = |channel: Channel| async move { ClusterClient::new(channel).join_info(JoinInfoRequest {}).await };
        self.client.call(Plan::READ, ask).await
    }

    /// Lets commands in that only newer nodes understand; 0: the highest level that every member understands. There is no
    /// way back.
    pub async fn raise_feature_level(&self, level: u32) -> Result<RaiseFeatureLevelResponse, Error> {
        let raise = |channel: Channel| async move {
            ClusterClient::new(channel).raise_feature_level(RaiseFeatureLevelRequest { level }).await
        };
        self.client.call(Plan::SAFE, raise).await
    }

    /// Lets a node in that was started with `join`: it learns first, and votes once it has caught up.
    pub fn add_member(&self, node_id: u64, address: impl Into<String>) -> MembersChanges {
        self.change(Change::Add(member(node_id, address.into())))
    }

    /// Lets a node go. Its number is never used again.
    pub fn remove_member(&self, node_id: u64) -> MembersChanges {
        self.change(Change::RemoveNodeId(node_id))
    }

    /// Lets a node in, and another go in the same change of the voters. The old one may be dead.
    pub fn replace_member(&self, old_node_id: u64, node_id: u64, address: impl Into<String>) -> MembersChanges {
        let new_member = Some(member(node_id, address.into()));
        self.change(Change::Replace(ReplaceMember { old_node_id, new_member }))
    }

    fn change(&self, change: Change) -> MembersChanges {
        let request = ChangeMembersRequest { change: Some(change) };
        MembersChanges { client: self.client.clone(), request, stream: Reopened::new(), is_over: false }
    }
}

fn member(node_id: u64, address: String) -> MemberAddress {
    MemberAddress { node_id, address, voter: true }
}

/// A change of the members, step by step. Nothing is asked before [`MembersChanges::next`]. What was begun goes on even if
/// this is dropped.
#[derive(Debug)]
pub struct MembersChanges {
    client: Client,
    request: ChangeMembersRequest,
    stream: Reopened<MembersChange>,
    is_over: bool,
}

impl MembersChanges {
    /// The next step; `None` after the last one, which is `DONE`. When the leader changes it goes on at the new one, and a
    /// step that was told may be told again.
    ///
    /// An error is the end: `Rejected`, it cannot be done; `Unavailable`, nobody has said anything for twice the time that
    /// a call may take. Asking for the same change again goes on with it.
    pub async fn next(&mut self) -> Option<Result<MembersChange, Error>> {
        let patience = self.client.config().call_timeout * 2;
        let deadline = Instant::now() + patience;
        while !self.is_over {
            let (client, request) = (&self.client, &self.request);
            let open = || -> Opening<MembersChange> { Box::pin(open(client.clone(), request.clone())) };
            match timeout_at(deadline, self.stream.next(open)).await {
                Ok(Ok(News::Opened)) => {}
                Ok(Ok(News::Item(change))) => {
                    self.is_over = change.step() == MembersStep::Done;
                    return Some(Ok(change));
                }
                Ok(Err(error)) => {
                    self.is_over = true;
                    return Some(Err(error));
                }
                Err(_) => {
                    self.is_over = true;
                    let message = format!("no word of the change within {patience:?}; asking again goes on with it");
                    return Some(Err(Error::Unavailable { message, last: String::new() }));
                }
            }
        }
        None
    }

    /// Waits until the change is done.
    pub async fn done(mut self) -> Result<(), Error> {
        while let Some(step) = self.next().await {
            step?;
        }
        Ok(())
    }
}

async fn open(client: Client, request: ChangeMembersRequest) -> Result<Items<MembersChange>, Error> {
    let opened = client
        .call_in_full(Plan::SAFE, |channel| {
            let request = request.clone();
            async move { ClusterClient::new(channel).change_members(request).await }
        })
        .await;
    Ok(items(&client, opened.node, opened.result?))
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
