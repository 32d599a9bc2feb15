//! Calls from peers: each translated and handed to openraft.
//!
//! Deliberately absent: the gRPC service itself and the check that the caller belongs to this cluster; both are the
//! node's, which serves this beside its public API.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::time::Duration;

use futures::{Stream, StreamExt};
use openraft::raft::{AppendEntriesRequest, StreamAppendError, TransferLeaderRequest, VoteRequest, VoteResponse};
use quorate_proto::peer as pb;
use tonic::metadata::MetadataMap;
use tonic::{Status, Streaming};

use super::log_storage::LogStorage;
use super::network::ACKNOWLEDGED_KEY;
use super::types::{Raft, SnapshotMeta, TypeConfig};
use super::wire;
use crate::error::Fatal;
use crate::faults::crash_point;
use crate::storage::dir::sync_dir;
use crate::storage::snapshot::{FileDigest, Layout, SnapshotDir, file_digest, write_digests};

/// A snapshot that is being installed makes the log short for a moment. What is lost is still lost after this.
const SECOND_LOOK: Duration = Duration::from_secs(1);

fn bad(error: impl std::fmt::Display) -> Status {
    Status::invalid_argument(error.to_string())
}

fn stopped(error: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("this node is stopping: {error}"))
}

fn read_append(request: pb::AppendRequest) -> Result<AppendEntriesRequest<TypeConfig>, Fatal> {
    Ok(AppendEntriesRequest {
        vote: wire::require_vote(request.vote.as_ref())?,
        prev_log_id: request.prev_log_id.as_ref().map(wire::read_log_id),
        entries: request.entries.into_iter().map(wire::read_entry).collect::<Result<_, _>>()?,
        leader_commit: request.leader_commit.as_ref().map(wire::read_log_id),
    })
}

/// The request, or the end of the stream.
fn readable(request: Result<pb::AppendRequest, Status>) -> Option<AppendEntriesRequest<TypeConfig>> {
    match request.map(read_append) {
        Ok(Ok(request)) => Some(request),
        Ok(Err(error)) => {
            tracing::error!(%error, "a replication message was malformed");
            None
        }
        Err(status) => {
            tracing::debug!(%status, "a replication stream ended");
            None
        }
    }
}

/// Serves one replication stream. A message that does not decode ends it; the leader starts another.
pub fn append(
    raft: &Raft,
    requests: impl Stream<Item = Result<pb::AppendRequest, Status>> + Send + 'static,
) -> impl Stream<Item = Result<pb::AppendReply, Status>> + Send + 'static {
    use pb::append_reply::Result as R;
    let requests = requests.scan((), |(), request| std::future::ready(readable(request)));
    raft.stream_append(requests).map(|result| {
        let result = match result.map_err(stopped)? {
            Ok(log_id) => R::Matched(pb::Matched { log_id: log_id.as_ref().map(wire::log_id) }),
            Err(StreamAppendError::Conflict(log_id)) => R::Conflict(wire::log_id(&log_id)),
            Err(StreamAppendError::HigherVote(vote)) => R::HigherVote(wire::vote(&vote)),
        };
        Ok(pb::AppendReply { result: Some(result) })
    })
}

/// Whether this node's log lacks what it has acknowledged to the leader that opens a replication stream with this metadata,
/// and what to say then. Only the leader of a later term may have taken entries back, and it is not listened to any more
/// once its vote is known here.
pub async fn lost_entries(log: &LogStorage, metadata: &MetadataMap) -> Result<Option<String>, Fatal> {
    let said = metadata.get(ACKNOWLEDGED_KEY).and_then(|value| value.to_str().ok()).and_then(|said| {
        let (term, index) = said.split_once(':')?;
        Some((term.parse().ok()?, index.parse().ok()?))
    });
    let Some((term, index)) = said else { return Ok(None) };
    if !log.has_lost(term, index)? {
        return Ok(None);
    }
    tokio::time::sleep(SECOND_LOOK).await;
    let lost = log.has_lost(term, index)?;
    Ok(lost.then(|| {
        format!("this node's log has lost entries that it had acknowledged to the leader of term {term}, up to {index}")
    }))
}

fn read_vote(request: &pb::VoteRequest) -> Result<VoteRequest<TypeConfig>, Status> {
    let vote = wire::require_vote(request.vote.as_ref()).map_err(bad)?;
    let mut read = VoteRequest::new(vote, request.last_log_id.as_ref().map(wire::read_log_id));
    read.leadership_transfer = request.leadership_transfer;
    Ok(read)
}

fn vote_reply(response: &VoteResponse<TypeConfig>) -> pb::VoteReply {
    pb::VoteReply {
        vote: Some(wire::vote(&response.vote)),
        granted: response.vote_granted,
        last_log_id: response.last_log_id.as_ref().map(wire::log_id),
    }
}

/// A candidate asks for this node's vote.
pub async fn vote(raft: &Raft, request: &pb::VoteRequest) -> Result<pb::VoteReply, Status> {
    Ok(vote_reply(&raft.vote(read_vote(request)?).await.map_err(stopped)?))
}

/// A would-be candidate asks whether it would get this node's vote.
pub async fn pre_vote(raft: &Raft, request: &pb::VoteRequest) -> Result<pb::VoteReply, Status> {
    Ok(vote_reply(&raft.pre_vote(read_vote(request)?).await.map_err(stopped)?))
}

/// The leader hands its office to this node.
pub async fn transfer_leader(
    raft: &Raft,
    request: &pb::TransferLeaderRequest,
) -> Result<pb::TransferLeaderReply, Status> {
    let from = wire::require_vote(request.from_leader.as_ref()).map_err(bad)?;
    let last = request.last_log_id.as_ref().map(wire::read_log_id);
    let request = TransferLeaderRequest::new(from, request.to_node_id, last);
    let refused = match raft.handle_transfer_leader(request).await.map_err(stopped)? {
        Ok(()) => String::new(),
        Err(error) => error.to_string(),
    };
    Ok(pb::TransferLeaderReply { refused })
}

/// A member's disk was lost: its log may fall back once, to nothing. Without this word a follower that has less than it
/// once acknowledged is a fault, and openraft stops the leader over it.
pub async fn rejoin(raft: &Raft, node_id: u64) -> Result<(), Status> {
    let allowed = raft.trigger().allow_next_revert(&node_id, true).await.map_err(stopped)?;
    allowed.map_err(|refused| Status::unavailable(refused.to_string()))
}

/// A whole snapshot that the leader sends. It is verified piece by piece and file by file before openraft hears of it.
pub struct IncomingSnapshot {
    pieces: Streaming<pb::SnapshotPiece>,
    receiving: Receiving,
}

/// Reads a snapshot's header: who sends it, and what will come.
pub async fn begin_snapshot(
    layout: &Layout,
    mut pieces: Streaming<pb::SnapshotPiece>,
) -> Result<IncomingSnapshot, Status> {
    let first = pieces.message().await?.and_then(|p| p.piece);
    let Some(pb::snapshot_piece::Piece::Header(header)) = first else {
        return Err(bad("a snapshot begins with its header"));
    };
    let receiving = Receiving::begin(layout, header).map_err(bad)?;
    Ok(IncomingSnapshot { pieces, receiving })
}

impl IncomingSnapshot {
    /// The sender's vote.
    pub fn vote(&self) -> Option<&pb::Vote> {
        self.receiving.header.vote.as_ref()
    }

    /// Receives the files and hands the whole to openraft.
    pub async fn install(mut self, raft: &Raft) -> Result<pb::SnapshotReply, Status> {
        let vote = wire::require_vote(self.vote()).map_err(bad)?;
        let mut receiving = self.receiving;
        while let Some(piece) = self.pieces.message().await? {
            let Some(pb::snapshot_piece::Piece::Chunk(chunk)) = piece.piece else {
                return Err(bad("a snapshot has one header, then chunks"));
            };
            receiving = tokio::task::spawn_blocking(move || receiving.write(&chunk).map(|()| receiving))
                .await
                .map_err(stopped)?
                .map_err(bad)?;
        }
        let (snapshot, meta) =
            tokio::task::spawn_blocking(move || receiving.finish()).await.map_err(stopped)?.map_err(bad)?;
        tracing::info!(covers = ?meta.last_log_id, "received a snapshot");
        let snapshot = openraft::storage::Snapshot { meta, snapshot };
        let response = raft.install_full_snapshot(vote, snapshot).await.map_err(stopped)?;
        Ok(pb::SnapshotReply { vote: Some(wire::vote(&response.vote)) })
    }
}

/// The files of a snapshot that is being received. They go with this, unless they are adopted.
struct Receiving {
    dir: SnapshotDir,
    header: pb::SnapshotHeader,
    open: Option<(u32, File)>,
}

impl Receiving {
    fn begin(layout: &Layout, header: pb::SnapshotHeader) -> Result<Self, Fatal> {
        for file in &header.files {
            // A plain name: no separator, no way out of the directory.
            let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            if file.name.is_empty() || file.name.starts_with('.') || !file.name.chars().all(plain) {
                return Err(Fatal::Corrupt(format!("{:?} is not a snapshot file's name", file.name)));
            }
        }
        let dir = SnapshotDir::new(layout.new_incoming()?);
        // Adoption moves the directory away; whatever else happens, it is removed.
        dir.retire();
        Ok(Receiving { dir, header, open: None })
    }

    fn write(&mut self, chunk: &pb::FileChunk) -> Result<(), Fatal> {
        if crc32fast::hash(&chunk.data) != chunk.crc32 {
            return Err(Fatal::Corrupt("a snapshot chunk does not match its checksum".to_owned()));
        }
        if self.open.as_ref().is_none_or(|(number, _)| *number != chunk.file) {
            self.close()?;
            let file = self.header.files.get(chunk.file as usize);
            let file = file.ok_or_else(|| Fatal::Corrupt("a snapshot chunk names no file of the header".to_owned()))?;
            self.open = Some((chunk.file, File::create(self.dir.path().join(&file.name))?));
        }
        if let Some((_, file)) = &mut self.open {
            file.seek(SeekFrom::Start(chunk.offset))?;
            file.write_all(&chunk.data)?;
        }
        Ok(())
    }

    fn close(&mut self) -> Result<(), Fatal> {
        if let Some((_, file)) = self.open.take() {
            crash_point("receive.before-sync");
            file.sync_all()?;
        }
        Ok(())
    }

    /// Checks every file against the header, makes all durable, and reads from the snapshot itself what it covers.
    fn finish(mut self) -> Result<(SnapshotDir, SnapshotMeta), Fatal> {
        self.close()?;
        let mut files = Vec::with_capacity(self.header.files.len());
        for file in &self.header.files {
            let path = self.dir.path().join(&file.name);
            if file.bytes == 0 {
                File::create(&path)?.sync_all()?;
            }
            let digest = file_digest(&path)?;
            if digest.to_be_bytes() != file.digest.as_ref() {
                return Err(Fatal::Corrupt(format!("snapshot file {} does not match its digest", file.name)));
            }
            files.push(FileDigest { name: file.name.clone(), bytes: file.bytes, digest });
        }
        crash_point("receive.checked");
        write_digests(self.dir.path(), &files)?;
        sync_dir(self.dir.path())?;
        let meta = super::state_machine::meta(&self.dir.head()?)?;
        let promised = self.header.meta.and_then(|m| m.last_log_id).as_ref().map(wire::read_log_id);
        if meta.last_log_id != promised {
            return Err(Fatal::Corrupt(format!("the snapshot covers {:?}, not {promised:?}", meta.last_log_id)));
        }
        Ok((self.dir, meta))
    }
}
