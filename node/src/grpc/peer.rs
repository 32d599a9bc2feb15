//! Calls from other nodes of this cluster. A caller of another cluster is refused before anything is read.

use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt};
use prost::Message;
use quorate_proto::peer as pb;
use quorate_proto::peer::peer_server::{Peer, PeerServer};
use quorate_raft::apply::is_the_leaders;
use quorate_raft::consensus::network::{CLUSTER_KEY, MAX_MESSAGE_BYTES, NODE_KEY};
use quorate_raft::consensus::{server, wire};
use quorate_raft::state::namespaces::DEFAULT;
use tonic::metadata::MetadataMap;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::{Request, Response, Status, Streaming};

use super::sessions::keep_alive_here;
use super::status;
use crate::core::Core;
use crate::disk::{self, Growth};
use crate::{joining, neighbours};

/// The peer service behind its check.
pub(super) fn service(core: Arc<Core>) -> InterceptedService<PeerServer<PeerDoor>, SameCluster> {
    let cluster_id = core.settings.config.cluster_id.clone();
    let node_id = core.settings.config.node_id.to_string();
    let service = PeerServer::new(PeerDoor { core })
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    InterceptedService::new(service, SameCluster { cluster_id, node_id })
}

/// Lets only this cluster's nodes in.
#[derive(Clone)]
pub(super) struct SameCluster {
    cluster_id: String,
    node_id: String,
}

impl Interceptor for SameCluster {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        // An address that leads to another node than the caller means would let one disk speak for two members.
        let meant = request.metadata().get(NODE_KEY).and_then(|value| value.to_str().ok());
        if meant.is_some_and(|meant| meant != self.node_id) {
            return Err(Status::permission_denied(format!(
                "this is node {}, not the one that was meant",
                self.node_id
            )));
        }
        let caller = request.metadata().get(CLUSTER_KEY).and_then(|value| value.to_str().ok());
        if caller == Some(self.cluster_id.as_str()) {
            return Ok(request);
        }
        let caller = caller.unwrap_or("none");
        tracing::warn!(caller, "a node of another cluster called");
        Err(Status::permission_denied(format!("this node is of cluster {}, the caller of {caller}", self.cluster_id)))
    }
}

/// What is committed must be applied by every replica, for ever. A command that this leader does not know (the caller is
/// newer), or that only a leader may say, does not get that far.
fn vetted(core: &Core, command: Bytes) -> Result<(Bytes, Growth), Status> {
    use quorate_proto::log::command::Body;
    let mut decoded = quorate_proto::log::Command::decode(command.clone())
        .map_err(|error| status::invalid("command", format!("the command does not decode: {error}")))?;
    let growth = decoded.body.as_ref().map_or(Growth::Grows, disk::growth);
    if let Some(body) = &decoded.body {
        core.proposer.check_level(body).map_err(|error| status::not_proposed(&error, None))?;
    }
    match &mut decoded.body {
        Some(body) if is_the_leaders(body) => {
            Err(status::invalid("command", "only a leader says this, and only of itself"))
        }
        // The leader's clock counts, not that of the node that was asked.
        Some(Body::CreateSchedule(request)) => {
            super::schedules::stamp(core, request)?;
            Ok((decoded.encode_to_vec().into(), growth))
        }
        Some(_) => Ok((command, growth)),
        None => Err(status::unavailable("the leader is older than this command; try again when it is upgraded")),
    }
}

/// What peer calls stand on.
#[derive(Clone)]
pub(super) struct PeerDoor {
    core: Arc<Core>,
}

impl PeerDoor {
    /// Hands a replication stream to consensus. It would last as long as the leader does, so this node's stop ends it.
    fn replicate(
        &self,
        requests: impl Stream<Item = Result<pb::AppendRequest, Status>> + Send + 'static,
    ) -> BoxStream<'static, Result<pb::AppendReply, Status>> {
        let closing = self.core.closing.clone();
        let (requests, reason) = disk::while_there_is_room(self.core.disk.clone(), requests);
        server::append(&self.core.raft, requests).chain(reason).take_until(async move { closing.wait().await }).boxed()
    }

    fn log_is_empty(&self) -> bool {
        self.core.metrics().last_log_index.is_none_or(|index| index == 0)
    }

    /// A node that has forgotten its votes must not prop up a leader that was deposed with one of them. Before it follows
    /// anybody it asks enough of the others that every majority it may have been part of is heard, and from then on
    /// follows nobody of an older term than they knew.
    async fn may_follow(&self, leader: Option<&pb::Vote>) -> Result<(), Status> {
        if self.core.joined() {
            return Ok(());
        }
        let known = self.core.floor.lock().clone();
        let floor = match known {
            Some(floor) => floor,
            None => {
                let floor = joining::ask_for_floor(&self.core).await.map_err(|reason| status::unavailable(&reason))?;
                *self.core.floor.lock() = Some(floor.clone());
                floor
            }
        };
        let term = leader.map_or(0, |vote| vote.term);
        if term < floor.term {
            let message = format!("term {term} is over: the others knew of term {}", floor.term);
            return Err(status::unavailable(&message));
        }
        Ok(())
    }

    /// Replication reaches an empty log that was not empty when the leader last looked: says so before it sees it.
    async fn tell_of_lost_disk(&self, first: &pb::AppendRequest) -> Result<(), Status> {
        if !self.log_is_empty() || first.prev_log_id.is_none_or(|previous| previous.index == 0) {
            return Ok(());
        }
        let leader_id = first.vote.map_or(0, |vote| vote.node_id);
        let Some(address) = self.address_of(leader_id) else {
            return Err(status::invalid("vote", format!("node {leader_id} is not a member")));
        };
        tracing::info!(leader = leader_id, "this node's log is empty; telling the leader");
        let node_id = self.core.settings.config.node_id;
        let mut leader = self.core.peers.client(&address)?;
        leader.rejoin(self.core.peers.request(pb::RejoinRequest { node_id })).await?;
        Ok(())
    }

    /// A log that ends before what it has acknowledged to this very leader has lost something: its node takes no further part.
    async fn check_log(&self, metadata: &MetadataMap) -> Result<(), Status> {
        let lost = server::lost_entries(&self.core.log, metadata).await.map_err(|fatal| status::fault(&fatal))?;
        let Some(fault) = lost else { return Ok(()) };
        self.core.fence(&fault);
        Err(status::unavailable(&fault))
    }

    /// An empty log names no members: then the others have.
    fn address_of(&self, node_id: u64) -> Option<String> {
        let members = self.core.members();
        let told = || self.core.floor.lock().as_ref().and_then(|floor| floor.addresses.get(&node_id).cloned());
        members.get(&node_id).cloned().or_else(told)
    }

    /// A node that has forgotten its votes (a wiped disk) gives none until it has caught up. A request from an empty log
    /// to an empty log is a cluster's very first election: there is nothing to have forgotten.
    fn may_vote(&self, request: &pb::VoteRequest) -> Result<(), Status> {
        if self.core.joined() {
            return Ok(());
        }
        if self.log_is_empty() && request.last_log_id.is_none_or(|last| last.index == 0) {
            return self.core.set_joined().map_err(|e| Status::internal(format!("{e:#}")));
        }
        Err(status::unavailable("this node has not caught up with its cluster yet and does not vote"))
    }
}

#[tonic::async_trait]
impl Peer for PeerDoor {
    type AppendStream = BoxStream<'static, Result<pb::AppendReply, Status>>;

    async fn append(
        &self,
        request: Request<Streaming<pb::AppendRequest>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        if self.core.joined() {
            self.check_log(request.metadata()).await?;
            return Ok(Response::new(self.replicate(request.into_inner())));
        }
        let mut requests = request.into_inner();
        let Some(first) = requests.message().await? else { return Ok(Response::new(stream::empty().boxed())) };
        self.may_follow(first.vote.as_ref()).await?;
        self.tell_of_lost_disk(&first).await?;
        let requests = stream::once(std::future::ready(Ok(first))).chain(requests);
        Ok(Response::new(self.replicate(requests)))
    }

    async fn vote(&self, request: Request<pb::VoteRequest>) -> Result<Response<pb::VoteReply>, Status> {
        self.may_vote(request.get_ref())?;
        Ok(Response::new(server::vote(&self.core.raft, request.get_ref()).await?))
    }

    async fn pre_vote(&self, request: Request<pb::VoteRequest>) -> Result<Response<pb::VoteReply>, Status> {
        self.may_vote(request.get_ref())?;
        Ok(Response::new(server::pre_vote(&self.core.raft, request.get_ref()).await?))
    }

    async fn transfer_leader(
        &self,
        request: Request<pb::TransferLeaderRequest>,
    ) -> Result<Response<pb::TransferLeaderReply>, Status> {
        self.may_follow(request.get_ref().from_leader.as_ref()).await?;
        if !self.core.joined() {
            return Err(status::unavailable("this node has not caught up with its cluster yet and does not lead"));
        }
        Ok(Response::new(server::transfer_leader(&self.core.raft, request.get_ref()).await?))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<pb::SnapshotPiece>>,
    ) -> Result<Response<pb::SnapshotReply>, Status> {
        if !self.core.disk.takes_entries() {
            return Err(disk::full());
        }
        let layout = self.core.replica.layout();
        let receiving = server::begin_snapshot(layout, request.into_inner()).await?;
        self.may_follow(receiving.vote()).await?;
        Ok(Response::new(receiving.install(&self.core.raft).await?))
    }

    /// Proposed here or not at all: a command is passed on once.
    async fn forward(&self, request: Request<pb::ForwardRequest>) -> Result<Response<pb::ForwardReply>, Status> {
        let command = request.into_inner().command;
        let (command, growth) = vetted(&self.core, command)?;
        match self.core.proposer.propose_here(command, growth, None).await {
            Ok(answer) => Ok(Response::new(pb::ForwardReply { answer: answer.encode_to_vec().into() })),
            Err(error) => Err(status::not_proposed(&error, self.core.leader_hint())),
        }
    }

    async fn read_index(&self, _: Request<pb::ReadIndexRequest>) -> Result<Response<pb::ReadIndexReply>, Status> {
        match crate::reads::read_index(&self.core.raft).await {
            Ok(log_id) => Ok(Response::new(pb::ReadIndexReply { log_id: Some(wire::log_id(&log_id)) })),
            Err(message) => Err(status::not_readable(&message, self.core.leader_hint())),
        }
    }

    async fn rejoin(&self, request: Request<pb::RejoinRequest>) -> Result<Response<pb::RejoinReply>, Status> {
        let node_id = request.into_inner().node_id;
        tracing::warn!(node_id, "a member has lost its disk and begins again from nothing");
        server::rejoin(&self.core.raft, node_id).await?;
        self.core.peers.forget_acknowledged(node_id);
        Ok(Response::new(pb::RejoinReply {}))
    }

    async fn keep_alive(
        &self,
        request: Request<pb::PeerKeepAliveRequest>,
    ) -> Result<Response<pb::PeerKeepAliveReply>, Status> {
        let request = request.into_inner();
        // A deadline is found by the name of its namespace, so the one that need not be named is named here.
        let namespace = if request.namespace.is_empty() { DEFAULT } else { request.namespace.as_str() };
        let response = keep_alive_here(&self.core, &namespace.into(), &request.session_id).await?;
        Ok(Response::new(pb::PeerKeepAliveReply { response: Some(response) }))
    }

    async fn health(&self, _: Request<pb::HealthRequest>) -> Result<Response<pb::HealthReply>, Status> {
        Ok(Response::new(neighbours::own(&self.core)))
    }

    async fn store_chunk(
        &self,
        request: Request<pb::StoreChunkRequest>,
    ) -> Result<Response<pb::StoreChunkReply>, Status> {
        Ok(Response::new(self.core.blobs.store_chunk(request.into_inner()).await?))
    }

    async fn has_chunks(&self, request: Request<pb::HasChunksRequest>) -> Result<Response<pb::HasChunksReply>, Status> {
        Ok(Response::new(self.core.blobs.has_chunks(request.into_inner()).await?))
    }

    async fn fetch_chunk(
        &self,
        request: Request<pb::FetchChunkRequest>,
    ) -> Result<Response<pb::FetchChunkReply>, Status> {
        Ok(Response::new(self.core.blobs.fetch_chunk(request.into_inner()).await?))
    }
}
