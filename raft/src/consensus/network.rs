//! Calls to peers: replication, votes, snapshots, over gRPC.
//!
//! Replication is one bidirectional stream per peer: requests are sent as they come and answers read in order, so the
//! wire is never idle for a round trip. A peer that stops answering while requests wait is given up after
//! `STALLED`, whatever TCP believes.
//!
//! Every replication stream opens with what the peer has acknowledged to this leader ([`ACKNOWLEDGED_KEY`]). A peer that has
//! less has a damaged disk and stops ([`super::server::lost_entries`]); if it answers instead that it lacks entries which it
//! acknowledged, openraft does not hear of it: it would take that for a fault of its own and count on what is gone.
//!
//! Invariant: a failure to reach a peer is an error, never a granted pre-vote.

use std::collections::BTreeMap;
use std::path::Path;
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
use openraft::{ErrorSubject, ErrorVerb, OptionalSend, RPCTypes, RaftNetworkFactory, StorageError};
use parking_lot::Mutex;
use quorate_proto::peer as pb;
use quorate_proto::peer::peer_client::PeerClient;
use tokio::io::AsyncReadExt;
use tokio::sync::{mpsc, oneshot};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use xxhash_rust::xxh3::Xxh3;

use super::carried::Carried;
use super::types::{LogId, TypeConfig, Vote};
use super::wire;
use crate::error::Fatal;
use crate::storage::snapshot::{FileDigest, SnapshotDir};

/// Metadata that names the caller's cluster; a node of another cluster refuses the call.
pub const CLUSTER_KEY: &str = "quorate-cluster";

/// Metadata that names the node a call is meant for; another that answers at its address refuses it.
pub const NODE_KEY: &str = "quorate-node";

/// Metadata that says what the peer has acknowledged to the leader that calls: the leader's term and the highest index, as
/// `term:index`.
pub const ACKNOWLEDGED_KEY: &str = "quorate-acknowledged";

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
    carried: Carried,
    acknowledged: Mutex<BTreeMap<u64, Acknowledged>>,
}

/// What a peer has acknowledged to this node, as the leader of one term.
#[derive(Debug, Clone, Copy, Default)]
struct Acknowledged {
    term: u64,
    index: u64,
    /// The log says once that entries are gone, however often it is tried.
    told: bool,
}

impl Peers {
    /// Connections that speak for `this_node` of `cluster_id`.
    pub fn new(this_node: u64, cluster_id: &str) -> Result<Self, String> {
        let cluster = cluster_id.parse().map_err(|_| format!("cluster id {cluster_id:?} is not plain ASCII"))?;
        let (channels, acknowledged) = (Mutex::default(), Mutex::default());
        Ok(Peers {
            inner: Arc::new(PeersInner { this_node, cluster, channels, acknowledged, carried: Carried::default() }),
        })
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

    /// Whether a snapshot is on its way to a peer, or a peer reads on from one.
    pub fn carries_snapshot(&self) -> bool {
        self.inner.carried.puts_off_now()
    }

    /// Wraps a message with what every peer call carries.
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert(CLUSTER_KEY, self.inner.cluster.clone());
        request
    }

    /// A member has lost its disk and said so: what it acknowledged does not count any more.
    pub fn forget_acknowledged(&self, target: u64) {
        self.inner.acknowledged.lock().remove(&target);
    }

    /// Takes note of what a peer acknowledges to the leader of this term.
    fn acknowledged(&self, target: u64, term: u64, log_id: Option<&LogId>) {
        let Some(index) = log_id.map(|log_id| log_id.index) else { return };
        let mut all = self.inner.acknowledged.lock();
        let known = all.entry(target).or_default();
        if known.term < term {
            *known = Acknowledged { term, index, told: false };
        } else if known.term == term {
            known.index = known.index.max(index);
        }
    }

    /// A peer says that it lacks the entry at `missing`. If it acknowledged that to the leader of this very term, who never
    /// takes anything back, its log has lost it.
    fn check_conflict(&self, target: u64, term: u64, missing: &LogId) -> Result<(), Unreachable<TypeConfig>> {
        let mut all = self.inner.acknowledged.lock();
        let Some(known) = all.get_mut(&target).filter(|known| known.term == term && missing.index <= known.index)
        else {
            return Ok(());
        };
        let (missing, index) = (missing.index, known.index);
        let message = format!("node {target} lacks entry {missing} of those that it acknowledged, up to {index}");
        if !known.told {
            known.told = true;
            tracing::error!("{message}: its data is damaged; stop it and run `quorate cluster rebuild` there");
        }
        Err(Unreachable::from_string(message))
    }

    fn acknowledged_metadata(&self, target: u64) -> Option<MetadataValue<Ascii>> {
        let known = self.inner.acknowledged.lock().get(&target).copied()?;
        format!("{}:{}", known.term, known.index).parse().ok()
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
            let term = Arc::new(AtomicU64::new(0));
            let (sent, leaders) = (owed.clone(), term.clone());
            let outbound = input.map(move |request| {
                sent.fetch_add(1, Ordering::Relaxed);
                leaders.store(request.vote.leader_id.term, Ordering::Relaxed);
                append_request(&request)
            });
            let mut request = self.request(outbound);
            if let Some(acknowledged) = self.peers.acknowledged_metadata(self.target) {
                request.metadata_mut().insert(ACKNOWLEDGED_KEY, acknowledged);
            }
            let open = client.append(request);
            let answers = match tokio::time::timeout(STALLED.max(option.soft_ttl()), open).await {
                Ok(Ok(response)) => response.into_inner(),
                Ok(Err(status)) => return Err(failure(&status)),
                Err(_) => return Err(self.timeout(RPCTypes::AppendEntries, STALLED).into()),
            };
            let stalled = self.timeout(RPCTypes::AppendEntries, STALLED);
            let (peers, target) = (self.peers.clone(), self.target);
            let results = stream::unfold(Some(answers), move |state| {
                let (owed, stalled) = (owed.clone(), stalled.clone());
                let (peers, term) = (peers.clone(), term.clone());
                async move {
                    let mut answers = state?;
                    let answer = next_answer(&mut answers, &owed, stalled).await;
                    match answer.map(|answer| heard(&peers, target, term.load(Ordering::Relaxed), answer)) {
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

/// Takes note of an answer, and holds back one that cannot be true of a sound log.
fn heard(
    peers: &Peers,
    target: u64,
    term: u64,
    answer: Result<StreamAppendResult<TypeConfig>, Rpc>,
) -> Result<StreamAppendResult<TypeConfig>, Rpc> {
    match &answer {
        Ok(Ok(matched)) => peers.acknowledged(target, term, matched.as_ref()),
        Ok(Err(StreamAppendError::Conflict(missing))) => peers.check_conflict(target, term, missing)?,
        Ok(Err(StreamAppendError::HigherVote(_))) | Err(_) => {}
    }
    answer
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
        let _carrying = self.peers.inner.carried.begin();
        // Two pieces ahead: the reader of the disk never runs far in front of the network.
        let (pieces, outbound) = mpsc::channel(2);
        let (damage, mut damaged) = oneshot::channel();
        let reader = tokio::spawn(read_pieces(wire::vote(&vote), snapshot, pieces, damage));
        let outbound = tokio_stream::wrappers::ReceiverStream::new(outbound);
        let call = client.install_snapshot(self.request(outbound));
        let reply = tokio::select! {
            closed = cancel => {
                reader.abort();
                return Err(StreamingError::Closed(closed));
            }
            reply = self.call(RPCTypes::InstallSnapshot, &option, call) => match (reply, damaged.try_recv()) {
                // The receiver complains of a snapshot that is short; why it is, only the reader knows.
                (_, Ok(fatal)) => return Err(damaged_here(fatal).into()),
                (reply, Err(_)) => reply?,
            },
        };
        let vote = reply.vote.as_ref().map(wire::read_vote).ok_or_else(|| malformed("its vote"))?;
        Ok(SnapshotResponse::new(vote))
    }
}

/// This node's own files are not what they were: openraft stops it.
fn damaged_here(fatal: Fatal) -> StorageError<TypeConfig> {
    StorageError::from_io_error(ErrorSubject::Snapshot(None), ErrorVerb::Read, fatal.into())
}

/// Why a snapshot was not sent to its end.
enum NotSent {
    /// The peer is gone or does not want it.
    Refused,
    /// It cannot be sent to anybody.
    Damaged(Fatal),
}

impl From<Fatal> for NotSent {
    fn from(error: Fatal) -> Self {
        NotSent::Damaged(error)
    }
}

impl From<std::io::Error> for NotSent {
    fn from(error: std::io::Error) -> Self {
        NotSent::Damaged(error.into())
    }
}

/// Reads a snapshot's files and sends them in pieces. An error ends the stream early: the receiver sees it is short.
async fn read_pieces(
    vote: pb::Vote,
    snapshot: Snapshot,
    pieces: mpsc::Sender<pb::SnapshotPiece>,
    damage: oneshot::Sender<Fatal>,
) {
    match try_read_pieces(vote, &snapshot, &pieces).await {
        Ok(()) => {}
        Err(NotSent::Refused) => tracing::warn!("sending a snapshot ended early: the connection was closed"),
        Err(NotSent::Damaged(fatal)) => {
            tracing::error!(%fatal, "a snapshot cannot be sent");
            if damage.send(fatal).is_err() {
                tracing::debug!("the snapshot was not wanted any more");
            }
        }
    }
}

async fn try_read_pieces(
    vote: pb::Vote,
    snapshot: &Snapshot,
    pieces: &mpsc::Sender<pb::SnapshotPiece>,
) -> Result<(), NotSent> {
    let dir = snapshot.snapshot.clone();
    let files = tokio::task::spawn_blocking(move || dir.files()).await.map_err(std::io::Error::other)??;
    let listed = |file: &FileDigest| pb::SnapshotFile {
        name: file.name.clone(),
        bytes: file.bytes,
        digest: Bytes::copy_from_slice(&file.digest.to_be_bytes()),
    };
    let header = pb::SnapshotHeader {
        vote: Some(vote),
        meta: Some(wire::snapshot_meta(&snapshot.meta)),
        files: files.iter().map(listed).collect(),
    };
    send(pieces, pb::snapshot_piece::Piece::Header(header)).await?;
    for (number, file) in files.iter().enumerate() {
        send_file(number as u32, file, snapshot.snapshot.path(), pieces).await?;
    }
    Ok(())
}

async fn send(pieces: &mpsc::Sender<pb::SnapshotPiece>, piece: pb::snapshot_piece::Piece) -> Result<(), NotSent> {
    pieces.send(pb::SnapshotPiece { piece: Some(piece) }).await.map_err(|_| NotSent::Refused)
}

/// Sends one file, unless it is not what it was when the snapshot was taken: then its last piece stays here.
async fn send_file(
    number: u32,
    file: &FileDigest,
    dir: &Path,
    pieces: &mpsc::Sender<pb::SnapshotPiece>,
) -> Result<(), NotSent> {
    let path = dir.join(&file.name);
    let damaged = || Fatal::Corrupt(format!("{} is not what it was when the snapshot was taken", path.display()));
    let mut reader = tokio::fs::File::open(&path).await?;
    if reader.metadata().await?.len() != file.bytes {
        return Err(damaged().into());
    }
    let mut hash = Xxh3::new();
    let mut offset = 0;
    while offset < file.bytes {
        let want = CHUNK_BYTES.min((file.bytes - offset) as usize);
        let mut data = BytesMut::zeroed(want);
        reader.read_exact(&mut data).await?;
        hash.update(&data);
        if offset + want as u64 == file.bytes && hash.digest128() != file.digest {
            return Err(damaged().into());
        }
        let data = data.freeze();
        let crc32 = crc32fast::hash(&data);
        send(pieces, pb::snapshot_piece::Piece::Chunk(pb::FileChunk { file: number, offset, data, crc32 })).await?;
        offset += want as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::storage::snapshot::{file_digest, write_digests};

    fn at(index: u64) -> LogId {
        LogId::new_term_index(1, index)
    }

    fn conflict(index: u64) -> Result<StreamAppendResult<TypeConfig>, Rpc> {
        Ok(Err(StreamAppendError::Conflict(at(index))))
    }

    #[test]
    fn a_peer_that_lacks_what_it_acknowledged_is_held_back() {
        let peers = Peers::new(1, "test").unwrap();
        let is_heard = |target, term, answer| heard(&peers, target, term, answer).is_ok();
        assert!(is_heard(2, 5, conflict(9)), "it has acknowledged nothing yet");
        assert!(
            is_heard(2, 5, Ok(Ok(Some(at(7))))) && is_heard(2, 5, Ok(Ok(Some(at(3))))) && is_heard(2, 5, Ok(Ok(None)))
        );
        assert!(is_heard(2, 5, conflict(8)), "it never had that one");
        assert!(!is_heard(2, 5, conflict(7)) && !is_heard(2, 5, conflict(1)));
        assert!(is_heard(3, 5, conflict(7)), "another peer");
        assert!(is_heard(2, 6, conflict(7)), "another leader may have taken it back");
        assert_eq!(peers.acknowledged_metadata(2).unwrap(), "5:7");
        assert!(is_heard(2, 6, Ok(Ok(Some(at(2))))) && is_heard(2, 6, conflict(7)));
        assert_eq!(peers.acknowledged_metadata(2).unwrap(), "6:2");
    }

    #[test]
    fn a_lost_disk_may_begin_again() {
        let peers = Peers::new(1, "test").unwrap();
        assert!(heard(&peers, 2, 5, Ok(Ok(Some(at(7))))).is_ok());
        peers.forget_acknowledged(2);
        assert!(heard(&peers, 2, 5, conflict(0)).is_ok());
        assert!(peers.acknowledged_metadata(2).is_none());
    }

    #[tokio::test]
    async fn a_file_that_has_changed_is_not_sent_to_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("000001.sst");
        fs::write(&path, "as it was").unwrap();
        let digest = file_digest(&path).unwrap();
        write_digests(dir.path(), &[FileDigest { name: "000001.sst".to_owned(), bytes: 9, digest }]).unwrap();
        for (content, is_sound) in [("as it was", true), ("as it is.", false), ("as it", false)] {
            fs::write(&path, content).unwrap();
            let snapshot = Snapshot { meta: Default::default(), snapshot: SnapshotDir::new(dir.path().to_owned()) };
            let (pieces, mut sent) = mpsc::channel(8);
            let result = try_read_pieces(pb::Vote::default(), &snapshot, &pieces).await;
            assert_eq!(result.is_ok(), is_sound, "{content}");
            drop(pieces);
            let mut count = 0;
            while sent.recv().await.is_some() {
                count += 1;
            }
            assert_eq!(count, if is_sound { 2 } else { 1 }, "{content}");
        }
    }
}
