//! The cluster itself: status, handover, snapshots on demand, who is in it, which commands it understands.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use futures::future::join_all;
use futures::stream::{self, BoxStream};
use openraft::ServerState;
use openraft::async_runtime::watch::WatchReceiver;
use quorate_proto::log::{Answer, RaiseFeatureLevel, answer, command};
use quorate_proto::v1::cluster_client::ClusterClient;
use quorate_proto::v1::cluster_server::Cluster;
use quorate_proto::v1::{
    ChangeMembersRequest, ClusterInfo, ClusterStatusRequest, ClusterStatusResponse, JoinInfoRequest, JoinInfoResponse,
    MemberAddress, MembersChange, NodeStatusRequest, NodeStatusResponse, RaiseFeatureLevelRequest,
    RaiseFeatureLevelResponse, SnapshotRequest, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
};
use quorate_raft::error::{Error, precondition};
use quorate_raft::level;
use quorate_raft::state::cluster;
use quorate_raft::state::namespaces::DEFAULT;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::Endpoint;
use tonic::{Request, Response, Status};

use super::{Door, status};
use crate::core::Core;
use crate::members::{self, Stopped};
use crate::propose::ProposeError;

/// How long a peer may take to say how it is.
const ASK: Duration = Duration::from_secs(1);
/// How long a node looks whether it is ready before it says that it is not: well within what a peer may take.
const QUICK: Duration = Duration::from_millis(400);
/// How long a handover or a snapshot may take before the caller is told that it goes on without being waited for.
const WAIT: Duration = Duration::from_secs(10);

#[tonic::async_trait]
impl Cluster for Door {
    type ChangeMembersStream = BoxStream<'static, Result<MembersChange, Status>>;

    async fn status(&self, _: Request<ClusterStatusRequest>) -> Result<Response<ClusterStatusResponse>, Status> {
        let this = self.core.settings.config.node_id;
        let (members, voters) = (self.core.members(), self.core.voters());
        let voters = &voters;
        let nodes = members.iter().map(|(id, address)| async move {
            if *id == this {
                return node_status(&self.core, false).await;
            }
            let silent = |reason: &str| unreachable(*id, address, voters.contains(id), reason);
            Ok(match tokio::time::timeout(ASK, ask(address)).await {
                Ok(Ok(status)) => status,
                Ok(Err(error)) => silent(error.message()),
                Err(_) => silent("did not answer within 1 s"),
            })
        });
        let nodes = join_all(nodes).await.into_iter().collect::<Result<Vec<_>, Status>>()?;
        let info = self.info()?;
        Ok(Response::new(ClusterStatusResponse {
            cluster_id: self.core.settings.config.cluster_id.clone(),
            leader_id: self.core.metrics().current_leader.unwrap_or(0),
            nodes,
            feature_level: info.feature_level,
            retired_node_ids: info.retired_node_ids,
        }))
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
        let snapshot_index = take_snapshot(&self.core).await?;
        Ok(Response::new(SnapshotResponse { snapshot_index }))
    }

    /// From what this node knows, at once: a node with an empty disk asks for it when nobody may lead yet. A number
    /// that was used meanwhile is refused when it is added.
    async fn join_info(&self, _: Request<JoinInfoRequest>) -> Result<Response<JoinInfoResponse>, Status> {
        let (members, voters) = (self.core.members(), self.core.voters());
        let retired = self.info()?.retired_node_ids;
        let highest = members.keys().chain(self.core.settings.members.keys()).chain(&retired).max().copied();
        let members = members.into_iter().map(|(node_id, address)| {
            let voter = voters.contains(&node_id);
            MemberAddress { node_id, address, voter }
        });
        Ok(self.respond(JoinInfoResponse {
            cluster_id: self.core.settings.config.cluster_id.clone(),
            next_node_id: highest.unwrap_or(0) + 1,
            members: members.collect(),
        }))
    }

    async fn change_members(
        &self,
        request: Request<ChangeMembersRequest>,
    ) -> Result<Response<Self::ChangeMembersStream>, Status> {
        let change = members::change_of(request.into_inner()).map_err(|error| refused(&error))?;
        self.leads()?;
        let (listener, steps) = mpsc::unbounded_channel();
        let made = members::start(&self.core, change, listener);
        let door = self.clone();
        // The steps end when the change has, for whatever reason; then comes the reason, unless it is done.
        let end = stream::once(async move {
            match made.await {
                Ok(Ok(())) => None,
                Ok(Err(stopped)) => Some(Err(door.stopped(stopped))),
                Err(_) => Some(Err(door.not_now("this node is stopping"))),
            }
        });
        let steps = UnboundedReceiverStream::new(steps).map(Ok);
        Ok(Response::new(steps.chain(end.filter_map(std::future::ready)).boxed()))
    }

    async fn raise_feature_level(
        &self,
        request: Request<RaiseFeatureLevelRequest>,
    ) -> Result<Response<RaiseFeatureLevelResponse>, Status> {
        let term = self.leads()?;
        self.fresh().await?;
        let in_use = self.info()?.feature_level;
        let Some(_members) = self.core.members_change.hold() else {
            return Err(self.not_now("the members are being changed; repeat it when that is done"));
        };
        let understood = self.understood().await;
        let level = level_to_raise(request.into_inner().level, in_use, &understood).map_err(|e| refused(&e))?;
        if level == in_use {
            let rev = self.core.replica.head().rev;
            return Ok(self.respond(RaiseFeatureLevelResponse { level, rev }));
        }
        let body = command::Body::RaiseFeatureLevel(RaiseFeatureLevel { level });
        match self.core.proposer.propose_as_leader(DEFAULT, body, term).await {
            Ok(Answer { body: Some(answer::Body::Rejected(rejection)), .. }) => Err(status::rejected(&rejection)),
            Ok(Answer { rev, .. }) => Ok(self.respond(RaiseFeatureLevelResponse { level, rev })),
            Err(error) => Err(status::not_proposed(&error, self.core.leader_hint())),
        }
    }
}

impl Door {
    /// The cluster's own row as this node has applied it; all zero before it was named.
    fn info(&self) -> Result<ClusterInfo, Status> {
        let info = self.core.replica.read(|whole| cluster::get(whole.rows));
        info.map(Option::unwrap_or_default).map_err(|fatal| self.fault(&fatal))
    }

    /// The term in which this node leads; else who does.
    fn leads(&self) -> Result<u64, Status> {
        self.core.office().ok_or_else(|| self.not_now("this node does not lead"))
    }

    fn not_now(&self, message: &str) -> Status {
        status::not_proposed(&ProposeError::NotNow(message.to_owned()), self.core.leader_hint())
    }

    fn stopped(&self, stopped: Stopped) -> Status {
        match stopped {
            Stopped::Refused(Error::Rejected(rejection)) => status::rejected(&rejection),
            Stopped::Refused(Error::Fatal(fatal)) => self.fault(&fatal),
            // What is done is passed over when it is asked for again: as good as no effect.
            Stopped::Again(message) => self.not_now(&message),
        }
    }

    /// The highest level that each member understands, asked now: one may have gone back to an older binary a moment ago.
    /// `None` for one that does not answer.
    async fn understood(&self) -> BTreeMap<u64, Option<u32>> {
        let this = self.core.settings.config.node_id;
        let asked = self.core.members().into_iter().map(|(id, address)| async move {
            if id == this {
                return (id, Some(level::understood()));
            }
            // One that does not know of levels understands the first.
            (id, status_of(id, &address).await.map(|status| status.feature_level.max(1)))
        });
        join_all(asked).await.into_iter().collect()
    }
}

fn refused(error: &Error) -> Status {
    match error {
        Error::Rejected(rejection) => status::rejected(rejection),
        Error::Fatal(fatal) => status::fault(fatal),
    }
}

/// The level to go to: the one that is asked for, or the highest that every member understands. Asking for the one in
/// use changes nothing.
fn level_to_raise(asked: u32, in_use: u32, understood: &BTreeMap<u64, Option<u32>>) -> Result<u32, Error> {
    if let Some((silent, _)) = understood.iter().find(|(_, level)| level.is_none()) {
        let message =
            format!("node {silent} does not answer, so nobody knows what it understands; bring it back first");
        return Err(precondition("level", message));
    }
    let oldest = understood.iter().filter_map(|(id, level)| level.map(|level| (level, *id))).min();
    let Some((highest, oldest)) = oldest else {
        return Err(precondition("level", "no member is known yet"));
    };
    let level = if asked == 0 { highest.max(in_use) } else { asked };
    if level > highest && level != in_use {
        let message = format!("node {oldest} understands level {highest}, not {level}; upgrade it first");
        return Err(precondition("level", message));
    }
    if level < in_use {
        return Err(precondition("level", format!("the cluster runs at level {in_use}, and there is no way back")));
    }
    Ok(level)
}

/// How the node at an address is, by its own word.
async fn ask(address: &str) -> Result<NodeStatusResponse, Status> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|e| Status::unavailable(format!("{address}: {e}")))?
        .connect_timeout(ASK);
    let channel = endpoint.connect().await.map_err(|e| Status::unavailable(format!("cannot connect: {e}")))?;
    Ok(ClusterClient::new(channel).node_status(NodeStatusRequest { full_digest: false }).await?.into_inner())
}

/// How a member is, by its own word. `None`: it does not answer in time, or another answers there.
pub(crate) async fn status_of(node_id: u64, address: &str) -> Option<NodeStatusResponse> {
    let answer = tokio::time::timeout(ASK, ask(address)).await.ok()?.ok()?;
    (answer.node_id == node_id).then_some(answer)
}

/// The term a node knows of, 0 if it belongs to no cluster yet.
pub(crate) fn term_of(status: &NodeStatusResponse) -> u64 {
    status.term.max(u64::from(status.last_log_index > 0))
}

fn unreachable(node_id: u64, address: &str, voter: bool, reason: &str) -> NodeStatusResponse {
    NodeStatusResponse {
        node_id,
        address: address.to_owned(),
        role: "unreachable".to_owned(),
        reason: reason.to_owned(),
        voter,
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
    let voter_ids: Vec<u64> = metrics.membership_config.voter_ids().collect();
    let (sync_p50_us, sync_p99_us) = core.log.sync_times();
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
        voter: voter_ids.contains(&metrics.id),
        feature_level: level::understood(),
        disk: Some(core.disk.now()),
        sync_p50_us,
        sync_p99_us,
        voter_ids,
    })
}

/// Takes a snapshot of what is applied, and says which index it covers; 0: nothing is applied.
pub(crate) async fn take_snapshot(core: &Core) -> Result<u64, Status> {
    let applied = core.metrics().last_applied;
    core.raft.trigger().snapshot().await.map_err(|e| Status::unavailable(e.to_string()))?;
    let Some(applied) = applied else { return Ok(0) };
    let waiting = core.raft.wait(Some(WAIT));
    let covered = waiting.metrics(
        |metrics| metrics.snapshot.is_some_and(|snapshot| snapshot >= applied),
        "a snapshot of what was applied",
    );
    let metrics = covered.await.map_err(|e| Status::deadline_exceeded(format!("the snapshot goes on: {e}")))?;
    Ok(metrics.snapshot.map_or(0, |id| id.index))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn message(outcome: Result<u32, Error>) -> String {
        match outcome {
            Err(Error::Rejected(rejection)) => rejection.message,
            other => panic!("not refused: {other:?}"),
        }
    }

    #[test]
    fn the_level_is_one_that_every_member_understands() {
        let all = BTreeMap::from([(1, Some(3)), (2, Some(2)), (3, Some(3))]);
        assert_eq!(level_to_raise(0, 1, &all).unwrap(), 2);
        assert_eq!(level_to_raise(2, 1, &all).unwrap(), 2);
        assert_eq!(level_to_raise(2, 2, &all).unwrap(), 2, "it may be asked for again");
        assert_eq!(level_to_raise(0, 2, &all).unwrap(), 2);
        let newer = message(level_to_raise(3, 1, &all));
        assert!(newer.contains("node 2 understands level 2"), "{newer}");
        assert!(message(level_to_raise(1, 2, &all)).contains("no way back"));
        let silent = BTreeMap::from([(1, Some(2)), (2, None)]);
        assert!(message(level_to_raise(0, 1, &silent)).contains("node 2 does not answer"));
    }
}
