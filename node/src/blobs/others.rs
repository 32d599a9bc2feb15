//! The three calls between members: keep a chunk, say which chunks you have, give me one. Both ends of each.
//!
//! Owns connections of its own: chunks are large, and the replication of the log must not queue behind them.
//!
//! Deliberately absent: passing a call on. A member answers for its own disk only.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use bytes::Bytes;
use parking_lot::Mutex;
use quorate_proto::peer as pb;
use quorate_raft::consensus::network::{NODE_KEY, Peers};
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use super::store::DiskError;
use super::{Blobs, CHUNK, ChunkHash, chunk_hash, of_disk};
use crate::config::Settings;
use crate::grpc::status;
use crate::roster::Roster;

/// Chunks on their way to one member at a time. A member that is slower than the majority costs this much memory, not
/// more: it gets what it missed later, if it is referred to.
const LANE: usize = 16;
/// How long a member may take to make a chunk durable, or to read one.
const CHUNK_CALL: Duration = Duration::from_secs(10);
/// How long it may take to look which chunks it has.
const LOOK_CALL: Duration = Duration::from_secs(5);
/// The most hashes that one look may name: what the largest blob has.
pub(super) const LOOK_MAX: usize = 256;

/// Why a chunk is not durable somewhere.
pub(super) enum Unstored {
    /// The disk there is full.
    Full,
    /// It cannot be said, for this reason.
    Failed(String),
}

impl From<DiskError> for Unstored {
    fn from(error: DiskError) -> Self {
        match error {
            DiskError::Full => Unstored::Full,
            DiskError::Fault(fatal) => Unstored::Failed(fatal.to_string()),
        }
    }
}

/// Another member.
#[derive(Clone)]
pub(super) struct Member {
    id: u64,
    address: String,
    /// Whether it counts towards a majority.
    pub(super) is_voter: bool,
    lane: Arc<Semaphore>,
}

/// Every member but this node.
pub(super) struct Others {
    this: u64,
    peers: Peers,
    roster: Arc<Roster>,
    /// What is on its way to each, whatever else about it changes.
    lanes: Mutex<BTreeMap<u64, Arc<Semaphore>>>,
}

impl Others {
    pub(super) fn new(settings: &Settings, roster: Arc<Roster>) -> anyhow::Result<Self> {
        let config = &settings.config;
        let peers = Peers::new(config.node_id, &config.cluster_id).map_err(|e| anyhow!(e))?;
        Ok(Others { this: config.node_id, peers, roster, lanes: Mutex::default() })
    }

    /// The others as they are now.
    pub(super) fn members(&self) -> Vec<Member> {
        let now = self.roster.now();
        let mut lanes = self.lanes.lock();
        lanes.retain(|id, _| now.addresses.contains_key(id));
        let others = now.addresses.iter().filter(|(id, _)| **id != self.this);
        others
            .map(|(id, address)| {
                let lane = lanes.entry(*id).or_insert_with(|| Arc::new(Semaphore::new(LANE))).clone();
                Member { id: *id, address: address.clone(), is_voter: now.voters.contains(id), lane }
            })
            .collect()
    }

    /// How many voters must have a chunk before it counts as kept, and whether this node is one of them.
    pub(super) fn quorum(&self) -> (usize, bool) {
        let now = self.roster.now();
        (now.majority(), now.voters.contains(&self.this))
    }

    /// Makes a chunk durable there. Once it is being sent, that goes on although nobody waits for it any more.
    pub(super) async fn store(&self, member: Member, chunk: ChunkHash, content: Bytes) -> Result<(), Unstored> {
        let stopping = || Unstored::Failed("this node is stopping".to_owned());
        let turn = member.lane.clone().acquire_owned().await.map_err(|_| stopping())?;
        let mut client = self.client(&member).map_err(Unstored::Failed)?;
        let message = pb::StoreChunkRequest { hash: Bytes::copy_from_slice(&chunk), data: content };
        let (id, request) = (member.id, self.request(&member, message));
        let sending = tokio::spawn(async move {
            let reply = within(CHUNK_CALL, id, client.store_chunk(request)).await;
            drop(turn);
            reply
        });
        match sending.await {
            Ok(Ok(pb::StoreChunkReply { full: false })) => Ok(()),
            Ok(Ok(pb::StoreChunkReply { full: true })) => Err(Unstored::Full),
            Ok(Err(reason)) => Err(Unstored::Failed(reason)),
            Err(_) => Err(stopping()),
        }
    }

    /// Which of the chunks are durable there, in the order asked for.
    pub(super) async fn held(&self, member: Member, chunks: &[ChunkHash]) -> Result<Vec<bool>, String> {
        let mut client = self.client(&member)?;
        let hashes = chunks.iter().map(|chunk| Bytes::copy_from_slice(chunk)).collect();
        let request = self.request(&member, pb::HasChunksRequest { hashes });
        let held = within(LOOK_CALL, member.id, client.has_chunks(request)).await?.held;
        if held.len() != chunks.len() {
            return Err(format!("node {} spoke of {} chunks when asked of {}", member.id, held.len(), chunks.len()));
        }
        Ok(held)
    }

    /// A chunk from there, not yet checked; `None`: it is not there.
    pub(super) async fn fetch(&self, member: Member, chunk: ChunkHash) -> Result<Option<Bytes>, String> {
        let mut client = self.client(&member)?;
        let request = self.request(&member, pb::FetchChunkRequest { hash: Bytes::copy_from_slice(&chunk) });
        let data = within(CHUNK_CALL, member.id, client.fetch_chunk(request)).await?.data;
        Ok(Some(data).filter(|data| !data.is_empty()))
    }

    fn client(&self, member: &Member) -> Result<Client, String> {
        self.peers.client(&member.address).map_err(|status| status.message().to_owned())
    }

    /// Wraps a message for this very member: one disk must not count for two.
    fn request<T>(&self, member: &Member, message: T) -> Request<T> {
        let mut request = self.peers.request(message);
        request.metadata_mut().insert(NODE_KEY, member.id.into());
        request
    }
}

type Client = pb::peer_client::PeerClient<tonic::transport::Channel>;

async fn within<T>(
    limit: Duration,
    node_id: u64,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, String> {
    match tokio::time::timeout(limit, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(format!("node {node_id}: {}", status.message())),
        Err(_) => Err(format!("node {node_id} did not answer within {limit:?}")),
    }
}

impl Blobs {
    /// Another member's chunk is to be kept here.
    pub(crate) async fn store_chunk(&self, request: pb::StoreChunkRequest) -> Result<pb::StoreChunkReply, Status> {
        let pb::StoreChunkRequest { hash, data } = request;
        let chunk = chunk_hash(&hash)?;
        if data.is_empty() || data.len() > CHUNK {
            return Err(status::invalid("data", format!("data must be 1 to {CHUNK} bytes; got {}", data.len())));
        }
        match self.on_disk(move |store| store.admit(&chunk, &data)).await {
            Ok(true) => Ok(pb::StoreChunkReply { full: false }),
            Ok(false) => Err(status::invalid("data", "data must have the hash that it is named by")),
            Err(DiskError::Full) => {
                tracing::warn!("no more chunks are kept here: the rest of the disk is for the log and the state");
                Ok(pb::StoreChunkReply { full: true })
            }
            Err(error) => Err(of_disk(&error)),
        }
    }

    /// Another member asks which chunks are here.
    pub(crate) async fn has_chunks(&self, request: pb::HasChunksRequest) -> Result<pb::HasChunksReply, Status> {
        let named = request.hashes.len();
        if named > LOOK_MAX {
            return Err(status::invalid("hashes", format!("hashes must be at most {LOOK_MAX}; got {named}")));
        }
        let chunks = request.hashes.iter().map(|hash| chunk_hash(hash)).collect::<Result<Vec<_>, _>>()?;
        let held = self.held_here(chunks).await.map_err(|error| of_disk(&error))?;
        Ok(pb::HasChunksReply { held })
    }

    /// Another member needs a chunk.
    pub(crate) async fn fetch_chunk(&self, request: pb::FetchChunkRequest) -> Result<pb::FetchChunkReply, Status> {
        let chunk = chunk_hash(&request.hash)?;
        let found = self.on_disk(move |store| store.read(&chunk)).await.map_err(|error| of_disk(&error))?;
        Ok(pb::FetchChunkReply { data: found.unwrap_or_default() })
    }

    /// Which of the chunks are durable here, in the order asked for. The grace of those begins anew.
    pub(super) async fn held_here(&self, chunks: Vec<ChunkHash>) -> Result<Vec<bool>, DiskError> {
        self.on_disk(move |store| chunks.iter().map(|chunk| store.touch(chunk)).collect()).await
    }
}
