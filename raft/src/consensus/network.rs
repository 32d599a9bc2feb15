//! Calls to peers: replication, votes, snapshots, over gRPC.
//!
//! Replication is one bidirectional stream per peer: requests are sent as they come and answers read in order, so the
//! wire is never idle for a round trip. A peer that stops answering while requests wait is given up after
//! `STALLED`, whatever TCP believes.
//!
//! Invariant: a failure to reach a peer is an error, never a granted pre-vote.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream::{self, BoxStream};
use futures::{FutureExt, Stream, StreamExt};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::impls::BasicNode;
use openraft::network::{Backoff, NetBackoff, NetSnapshot, NetStreamAppend, NetTransferLeader, NetVote, RPCOption};
use openraft::raft::{
    AppendEntriesRequest, SnapshotResponse, StreamAppendError, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RPCTypes, RaftNetworkFactory};
use parking_lot::Mutex;
use quorate_proto::peer as pb;
use quorate_proto::peer::peer_client::PeerClient;
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use super::types::{TypeConfig, Vote};
use super::wire;
use crate::storage::snapshot::{SnapshotDir, file_digest, list_files};

/// Metadata that names the caller's cluster; a node of another cluster refuses the call.
pub const CLUSTER_KEY: &str = "quorate-cluster";

/// Metadata that names the node a call is meant for; another that answers at its address refuses it.
pub const NODE_KEY: &str = "quorate-node";

/// A replication stream without an answer for this long, while some are owed, is broken.
const STALLED: Duration = Duration::from_secs(3);
const CONNECT: Duration = Duration::from_millis(500);
const CHUNK_BYTES: usize = 1 << 20;
/// The largest peer message: an append of several entries with large payloads.
pub const MAX_MESSAGE_BYTES: usize = 64 << 20;

type Rpc = RPCError<TypeConfig>;
type Snapshot = openraft::alias::SnapshotOf<TypeConfig, SnapshotDir>;

/// Connections to peers, one per address, made on first use.
#[derive(Clone)]
pub struct Peers {
    inner: Arc<PeersInner>,
}

struct PeersInner {
    this_node: u64,
    cluster: MetadataValue<Ascii>,
    channels: Mutex<BTreeMap<String, Channel>>,
}

impl Peers {
    /// Connections that speak for `this_node` of `cluster_id`.
    pub fn new(this_node: u64, cluster_id: &str) -> Result<Self, String> {
        let cluster = cluster_id.parse().map_err(|_| format!("cluster id {cluster_id:?} is not plain ASCII"))?;
        Ok(Peers { inner: Arc::new(PeersInner { this_node, cluster, channels: Mutex::default() }) })
    }

    /// A client for the peer at `address` (`host:port`).
    pub fn client(&self, address: &str) -> Result<PeerClient<Channel>, Status> {
        let mut channels = self.inner.channels.lock();
        let channel = match channels.get(address) {
            Some(channel) => channel.clone(),
            None => {
                let channel = connect(address)?;
                channels.insert(address.to_owned(), channel.clone());
                channel
            }
        };
        Ok(client(channel))
    }

    /// Wraps a message with what every peer call carries.
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert(CLUSTER_KEY, self.inner.cluster.clone());
        request
    }
}

fn connect(address: &str) -> Result<Channel, Status> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|e| Status::invalid_argument(format!("{address:?} is not host:port: {e}")))?;
    Ok(endpoint
        .connect_timeout(CONNECT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(1))
        .keep_alive_timeout(Duration::from_secs(2))
        .keep_alive_while_idle(true)
        .initial_stream_window_size(8 << 20)
        .initial_connection_window_size(16 << 20)
        .connect_lazy())
}

fn client(channel: Channel) -> PeerClient<Channel> {
    PeerClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES).max_encoding_message_size(MAX_MESSAGE_BYTES)
}

impl RaftNetworkFactory<TypeConfig> for Peers {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Peer {
        Peer { peers: self.clone(), target, address: node.addr.clone(), own_channel: None }
    }

    /// A snapshot is large: it gets a connection of its own, so that heartbeats and entries do not queue behind it.
    async fn new_snapshot_client(&mut self, target: u64, node: &BasicNode) -> Peer {
        let own_channel = connect(&node.addr).ok();
        Peer { peers: self.clone(), target, address: node.addr.clone(), own_channel }
    }
}

/// Calls to one peer.
pub struct Peer {
    peers: Peers,
    target: u64,
    address: String,
    own_channel: Option<Channel>,
}

impl Peer {
    fn client(&self) -> Result<PeerClient<Channel>, Rpc> {
        match &self.own_channel {
            Some(channel) => Ok(client(channel.clone())),
            None => self.peers.client(&self.address).map_err(|status| failure(&status)),
        }
    }

    fn timeout(&self, action: RPCTypes, timeout: Duration) -> Timeout<TypeConfig> {
        Timeout { action, id: self.peers.inner.this_node, target: self.target, timeout }
    }

    /// Wraps a message for this very peer.
    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = self.peers.request(message);
        request.metadata_mut().insert(NODE_KEY, self.target.into());
        request
    }

    /// One unary call within openraft's time budget.
    async fn call<T>(
        &self,
        action: RPCTypes,
        option: &RPCOption,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, Rpc> {
        match tokio::time::timeout(option.soft_ttl(), call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(failure(&status)),
            Err(_) => Err(self.timeout(action, option.soft_ttl()).into()),
        }
    }
}

/// A peer that cannot be reached is left alone for a while; any other failure is tried again soon.
fn failure(status: &Status) -> Rpc {
    match status.code() {
        Code::Unavailable | Code::PermissionDenied | Code::Unimplemented => Unreachable::new(status).into(),
        _ => NetworkError::new(status).into(),
    }
}

fn malformed(what: &str) -> Rpc {
    NetworkError::from_string(format!("a peer's answer lacks {what}")).into()
}

impl NetBackoff<TypeConfig> for Peer {
    fn backoff(&self) -> Option<Backoff> {
        Some(Backoff::new(std::iter::repeat(Duration::from_millis(100))))
    }
}

impl NetStreamAppend<TypeConfig> for Peer {
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> openraft::base::BoxFuture<'s, Result<BoxStream<'s, Result<StreamAppendResult<TypeConfig>, Rpc>>, Rpc>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        async move {
            let mut client = self.client()?;
            let owed = Arc::new(AtomicU64::new(0));
            let sent = owed.clone();
            let outbound = input.map(move |request| {
                sent.fetch_add(1, Ordering::Relaxed);
                append_request(&request)
            });
            let open = client.append(self.request(outbound));
            let answers = match tokio::time::timeout(STALLED.max(option.soft_ttl()), open).await {
                Ok(Ok(response)) => response.into_inner(),
                Ok(Err(status)) => return Err(failure(&status)),
                Err(_) => return Err(self.timeout(RPCTypes::AppendEntries, STALLED).into()),
            };
            let stalled = self.timeout(RPCTypes::AppendEntries, STALLED);
            let results = stream::unfold(Some(answers), move |state| {
                let (owed, stalled) = (owed.clone(), stalled.clone());
                async move {
                    let mut answers = state?;
                    match next_answer(&mut answers, &owed, stalled).await {
                        Some(Ok(result)) => Some((Ok(result), Some(answers))),
                        Some(Err(error)) => Some((Err(error), None)),
                        None => None,
                    }
                }
            });
            Ok(results.boxed())
        }
        .boxed()
    }
}

/// The next answer of a replication stream. Waits without limit while none is owed.
async fn next_answer(
    answers: &mut tonic::Streaming<pb::AppendReply>,
    owed: &AtomicU64,
    stalled: Timeout<TypeConfig>,
) -> Option<Result<StreamAppendResult<TypeConfig>, Rpc>> {
    loop {
        let owed_before = owed.load(Ordering::Relaxed);
        match tokio::time::timeout(STALLED, answers.message()).await {
            Ok(Ok(Some(reply))) => {
                owed.fetch_sub(1, Ordering::Relaxed);
                return Some(append_result(reply));
            }
            Ok(Ok(None)) => return None,
            Ok(Err(status)) => return Some(Err(failure(&status))),
            Err(_) if owed_before > 0 => return Some(Err(stalled.into())),
            Err(_) => {}
        }
    }
}

fn append_request(request: &AppendEntriesRequest<TypeConfig>) -> pb::AppendRequest {
    pb::AppendRequest {
        vote: Some(wire::vote(&request.vote)),
        prev_log_id: request.prev_log_id.as_ref().map(wire::log_id),
        entries: request.entries.iter().map(wire::entry).collect(),
        leader_commit: request.leader_commit.as_ref().map(wire::log_id),
    }
}

fn append_result(reply: pb::AppendReply) -> Result<StreamAppendResult<TypeConfig>, Rpc> {
    use pb::append_reply::Result as R;
    Ok(match reply.result.ok_or_else(|| malformed("its result"))? {
        R::Matched(matched) => Ok(matched.log_id.as_ref().map(wire::read_log_id)),
        R::Conflict(log_id) => Err(StreamAppendError::Conflict(wire::read_log_id(&log_id))),
        R::HigherVote(vote) => Err(StreamAppendError::HigherVote(wire::read_vote(&vote))),
    })
}

fn vote_request(rpc: &VoteRequest<TypeConfig>) -> pb::VoteRequest {
    pb::VoteRequest {
        vote: Some(wire::vote(&rpc.vote)),
        last_log_id: rpc.last_log_id.as_ref().map(wire::log_id),
        leadership_transfer: rpc.leadership_transfer,
    }
}

fn vote_response(reply: &pb::VoteReply) -> Result<VoteResponse<TypeConfig>, Rpc> {
    let vote = reply.vote.as_ref().map(wire::read_vote).ok_or_else(|| malformed("its vote"))?;
    Ok(VoteResponse::new(vote, reply.last_log_id.as_ref().map(wire::read_log_id), reply.granted))
}

impl NetVote<TypeConfig> for Peer {
    async fn vote(&mut self, rpc: VoteRequest<TypeConfig>, option: RPCOption) -> Result<VoteResponse<TypeConfig>, Rpc> {
        let mut client = self.client()?;
        let call = client.vote(self.request(vote_request(&rpc)));
        vote_response(&self.call(RPCTypes::Vote, &option, call).await?)
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, Rpc> {
        let mut client = self.client()?;
        let call = client.pre_vote(self.request(vote_request(&rpc)));
        vote_response(&self.call(RPCTypes::Vote, &option, call).await?)
    }
}

impl NetTransferLeader<TypeConfig> for Peer {
    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, Rpc> {
        let mut client = self.client()?;
        let message = pb::TransferLeaderRequest {
            from_leader: Some(wire::vote(req.from_leader())),
            to_node_id: *req.to_node_id(),
            last_log_id: req.last_log_id().map(wire::log_id),
        };
        let call = client.transfer_leader(self.request(message));
        let reply = self.call(RPCTypes::TransferLeader, &option, call).await?;
        if reply.refused.is_empty() {
            return Ok(Ok(()));
        }
        Err(NetworkError::from_string(reply.refused).into())
    }
}

impl NetSnapshot<TypeConfig> for Peer {
    type SnapshotData = SnapshotDir;

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let mut client = self.client().map_err(StreamingError::from)?;
        // Two pieces ahead: the reader of the disk never runs far in front of the network.
        let (pieces, outbound) = mpsc::channel(2);
        let reader = tokio::spawn(read_pieces(wire::vote(&vote), snapshot, pieces));
        let outbound = tokio_stream::wrappers::ReceiverStream::new(outbound);
        let call = client.install_snapshot(self.request(outbound));
        let reply = tokio::select! {
            closed = cancel => {
                reader.abort();
                return Err(StreamingError::Closed(closed));
            }
            reply = self.call(RPCTypes::InstallSnapshot, &option, call) => reply?,
        };
        let vote = reply.vote.as_ref().map(wire::read_vote).ok_or_else(|| malformed("its vote"))?;
        Ok(SnapshotResponse::new(vote))
    }
}

/// Reads a snapshot's files and sends them in pieces. An error ends the stream early: the receiver sees it is short.
async fn read_pieces(vote: pb::Vote, snapshot: Snapshot, pieces: mpsc::Sender<pb::SnapshotPiece>) {
    if let Err(error) = try_read_pieces(vote, &snapshot, &pieces).await {
        tracing::warn!(%error, "sending a snapshot ended early");
    }
}

async fn try_read_pieces(
    vote: pb::Vote,
    snapshot: &Snapshot,
    pieces: &mpsc::Sender<pb::SnapshotPiece>,
) -> std::io::Result<()> {
    let dir = snapshot.snapshot.path().to_owned();
    let listed = dir.clone();
    let files = tokio::task::spawn_blocking(move || -> Result<Vec<pb::SnapshotFile>, crate::error::Fatal> {
        let mut files = Vec::new();
        for (name, bytes) in list_files(&listed)? {
            let digest = file_digest(&listed.join(&name))?.to_be_bytes();
            files.push(pb::SnapshotFile { name, bytes, digest: Bytes::copy_from_slice(&digest) });
        }
        Ok(files)
    })
    .await??;
    let header =
        pb::SnapshotHeader { vote: Some(vote), meta: Some(wire::snapshot_meta(&snapshot.meta)), files: files.clone() };
    let gone = || std::io::Error::other("the connection was closed");
    pieces
        .send(pb::SnapshotPiece { piece: Some(pb::snapshot_piece::Piece::Header(header)) })
        .await
        .map_err(|_| gone())?;
    for (number, file) in files.iter().enumerate() {
        let mut reader = tokio::fs::File::open(dir.join(&file.name)).await?;
        let mut offset = 0;
        while offset < file.bytes {
            let want = CHUNK_BYTES.min((file.bytes - offset) as usize);
            let mut data = BytesMut::zeroed(want);
            reader.read_exact(&mut data).await?;
            let data = data.freeze();
            let crc32 = crc32fast::hash(&data);
            let chunk = pb::FileChunk { file: number as u32, offset, data, crc32 };
            pieces
                .send(pb::SnapshotPiece { piece: Some(pb::snapshot_piece::Piece::Chunk(chunk)) })
                .await
                .map_err(|_| gone())?;
            offset += want as u64;
        }
    }
    Ok(())
}
