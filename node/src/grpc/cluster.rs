//! The cluster itself: status, handover, snapshots on demand.

use std::time::Duration;

use futures::future::join_all;
use openraft::ServerState;
use openraft::async_runtime::watch::WatchReceiver;
use quorate_proto::v1::cluster_client::ClusterClient;
use quorate_proto::v1::cluster_server::Cluster;
use quorate_proto::v1::{
    ClusterStatusRequest, ClusterStatusResponse, NodeStatusRequest, NodeStatusResponse, SnapshotRequest,
    SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
};
use tonic::transport::Endpoint;
use tonic::{Request, Response, Status};

use super::{Door, status};
use crate::core::Core;

/// How long a peer may take to say how it is.
const ASK: Duration = Duration::from_secs(1);
/// How long a node looks whether it is ready before it says that it is not: well within what a peer may take.
const QUICK: Duration = Duration::from_millis(400);
/// How long a handover or a snapshot may take before the caller is told that it goes on without being waited for.
const WAIT: Duration = Duration::from_secs(10);

#[tonic::async_trait]
impl Cluster for Door {
    async fn status(&self, _: Request<ClusterStatusRequest>) -> Result<Response<ClusterStatusResponse>, Status> {
        let settings = &self.core.settings;
        let nodes = settings.members.iter().map(|(id, address)| async move {
            if *id == settings.config.node_id {
                return node_status(&self.core, false).await;
            }
            match tokio::time::timeout(ASK, ask(address)).await {
                Ok(Ok(status)) => Ok(status),
                Ok(Err(error)) => Ok(unreachable(*id, address, error.message())),
                Err(_) => Ok(unreachable(*id, address, "did not answer within 1 s")),
            }
        });
        let nodes = join_all(nodes).await.into_iter().collect::<Result<Vec<_>, Status>>()?;
        let leader_id = self.core.metrics().current_leader.unwrap_or(0);
        let cluster_id = settings.config.cluster_id.clone();
        Ok(Response::new(ClusterStatusResponse { cluster_id, leader_id, nodes }))
    }

    async fn node_status(&self, request: Request<NodeStatusRequest>) -> Result<Response<NodeStatusResponse>, Status> {
        Ok(Response::new(node_status(&self.core, request.into_inner().full_digest).await?))
    }

    async fn transfer_leader(
        &self,
        request: Request<TransferLeaderRequest>,
    ) -> Result<Response<TransferLeaderResponse>, Status> {
        let wanted = request.into_inner().to_node_id;
        let leader_id = hand_over(&self.core, wanted).await.map_err(|message| {
            let mut status = Status::failed_precondition(message);
            status::hint(status.metadata_mut(), self.core.leader_hint());
            status
        })?;
        Ok(Response::new(TransferLeaderResponse { leader_id }))
    }

    async fn snapshot(&self, _: Request<SnapshotRequest>) -> Result<Response<SnapshotResponse>, Status> {
        let applied = self.core.metrics().last_applied;
        self.core.raft.trigger().snapshot().await.map_err(|e| Status::unavailable(e.to_string()))?;
        let Some(applied) = applied else { return Ok(Response::new(SnapshotResponse::default())) };
        let waiting = self.core.raft.wait(Some(WAIT));
        let covered = waiting.metrics(
            |metrics| metrics.snapshot.is_some_and(|snapshot| snapshot >= applied),
            "a snapshot of what was applied",
        );
        let metrics = covered.await.map_err(|e| Status::deadline_exceeded(format!("the snapshot goes on: {e}")))?;
        Ok(Response::new(SnapshotResponse { snapshot_index: metrics.snapshot.map_or(0, |id| id.index) }))
    }
}

async fn ask(address: &str) -> Result<NodeStatusResponse, Status> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|e| Status::unavailable(format!("{address}: {e}")))?
        .connect_timeout(ASK);
    let channel = endpoint.connect().await.map_err(|e| Status::unavailable(format!("cannot connect: {e}")))?;
    Ok(ClusterClient::new(channel).node_status(NodeStatusRequest { full_digest: false }).await?.into_inner())
}

/// The term a member knows of, 0 if it belongs to no cluster yet. `None`: it cannot be asked, or another answers there.
pub(crate) async fn term_of(node_id: u64, address: &str) -> Option<u64> {
    let answer = tokio::time::timeout(ASK, ask(address)).await.ok()?.ok()?;
    (answer.node_id == node_id).then_some(answer.term.max(u64::from(answer.last_log_index > 0)))
}

fn unreachable(node_id: u64, address: &str, reason: &str) -> NodeStatusResponse {
    NodeStatusResponse {
        node_id,
        address: address.to_owned(),
        role: "unreachable".to_owned(),
        reason: reason.to_owned(),
        ..NodeStatusResponse::default()
    }
}

/// This node's view of itself.
async fn node_status(core: &Core, full_digest: bool) -> Result<NodeStatusResponse, Status> {
    let metrics = core.metrics();
    let (head, sessions) = core.replica.read(|whole| {
        let sessions = whole.namespaces.iter().map(|part| part.rooms.sessions.len() as u64).sum();
        (whole.head.clone(), sessions)
    });
    let full = if full_digest {
        let replica = core.replica.clone();
        let hashed = tokio::task::spawn_blocking(move || replica.full_digest()).await;
        Some(hashed.map_err(|e| Status::internal(e.to_string()))?.map_err(|fatal| status::fault(&fatal))?)
    } else {
        None
    };
    // One rev for both digests: that of the rows that were hashed.
    let rev = full.map_or(head.rev, |(rev, _)| rev);
    let digest = if rev == head.rev { format!("{:032x}", head.digest) } else { String::new() };
    let ready = crate::http::ready(core, QUICK).await;
    let role = match metrics.state {
        ServerState::Leader => "leader",
        ServerState::Follower => "follower",
        ServerState::Learner => "learner",
        ServerState::Candidate => "candidate",
        ServerState::Shutdown => "stopping",
    };
    Ok(NodeStatusResponse {
        node_id: metrics.id,
        address: core.settings.advertised().to_owned(),
        role: role.to_owned(),
        leader_id: metrics.current_leader.unwrap_or(0),
        term: metrics.current_term,
        last_log_index: metrics.last_log_index.unwrap_or(0),
        applied_index: head.applied.map_or(0, |(_, index)| index),
        rev,
        snapshot_index: metrics.snapshot.map_or(0, |id| id.index),
        purged_index: metrics.purged.map_or(0, |id| id.index),
        digest,
        full_digest: full.map(|(_, digest)| format!("{digest:032x}")).unwrap_or_default(),
        ready: ready.is_ok(),
        reason: ready.err().unwrap_or_default(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        sessions,
        uptime_ms: u64::try_from(core.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        log_bytes: core.log.size_bytes(),
        state_bytes: core.replica.size_bytes(),
    })
}

/// Hands leadership to `wanted`, or to the most caught-up voter; returns who leads then.
pub(crate) async fn hand_over(core: &Core, wanted: u64) -> Result<u64, String> {
    let metrics = core.metrics();
    let this = metrics.id;
    if metrics.current_leader != Some(this) {
        return Err("this node does not lead".to_owned());
    }
    let replication = metrics.replication.clone().unwrap_or_default();
    let voters: Vec<u64> = metrics.membership_config.voter_ids().filter(|id| *id != this).collect();
    let target = if wanted == 0 {
        voters.iter().copied().max_by_key(|id| replication.get(id).cloned().flatten())
    } else {
        voters.iter().copied().find(|id| *id == wanted)
    };
    let Some(target) = target else {
        return Err(match wanted {
            0 => "there is no other voter".to_owned(),
            _ => format!("node {wanted} is not another voter of this cluster; voters are {voters:?}"),
        });
    };
    core.raft.trigger().transfer_leader(target).await.map_err(|e| e.to_string())?;
    let mut watch = core.raft.metrics();
    let moved = tokio::time::timeout(WAIT, async {
        loop {
            let leader = watch.borrow_watched().current_leader;
            if let Some(leader) = leader
                && leader != this
            {
                return Some(leader);
            }
            watch.changed().await.ok()?;
        }
    });
    moved.await.ok().flatten().ok_or_else(|| format!("node {target} did not take over within {WAIT:?}"))
}
