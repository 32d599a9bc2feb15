//! A chunk from whoever has it, and a blob on its way out.
//!
//! What had to be fetched from another member stays here, if there is room: this node should have had it.
//!
//! Invariant: at most two chunks of each reader that has its turn are in memory, the one that is being sent and the
//! next. A reader that takes them too slowly loses its turn, and is told so: what it has is not the whole.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, Stream, StreamExt};
use quorate_proto::v1::{BlobRef, GetBlobRequest, GetBlobResponse};
use quorate_raft::state::blobs::CHUNK_BYTES;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::Status;

use super::pace::Pace;
use super::replicate::PATIENCE;
use super::store::DiskError;
use super::{Blobs, ChunkHash, checked, chunk_hash, of_disk, shown};
use crate::grpc::status;

/// The most that one message of an answer brings.
const PIECE_BYTES: usize = 256 << 10;

/// How a chunk that is not here was looked for elsewhere.
pub(super) enum Fetched {
    /// It is here now.
    Kept(Bytes),
    /// It was found, and this disk has no room for it.
    NoRoom(Bytes),
    /// None of the members that answered has it, and so many did.
    Nowhere {
        /// Members that answered.
        answered: usize,
    },
}

impl Blobs {
    /// The blob, or the part of it that is asked for, from its beginning on.
    pub(crate) fn get(
        self: &Arc<Self>,
        request: &GetBlobRequest,
    ) -> Result<impl Stream<Item = Result<GetBlobResponse, Status>> + Send + use<>, Status> {
        let Some(blob) = &request.blob else { return Err(status::invalid("blob", "blob must be set")) };
        checked("blob", blob)?;
        let parts = parts(blob, request.offset, request.length)?;
        let size = parts.iter().map(|part| part.range.len()).sum::<usize>();
        let (reader, pieces) = mpsc::channel(1);
        tokio::spawn(give(self.clone(), parts, reader));
        Ok(stream(pieces, size))
    }

    /// A chunk's content, from here or from another member; `None`: all were asked, and none has it.
    pub(crate) async fn obtain(&self, chunk: ChunkHash) -> Result<Option<Bytes>, Status> {
        let here = self.on_disk(move |store| store.read(&chunk)).await.map_err(|error| of_disk(&error))?;
        if here.is_some() {
            return Ok(here);
        }
        let others = self.others.members().len();
        match self.fetch(chunk).await {
            Ok(Fetched::Kept(content) | Fetched::NoRoom(content)) => Ok(Some(content)),
            Ok(Fetched::Nowhere { answered }) if answered == others => Ok(None),
            Ok(Fetched::Nowhere { answered }) => {
                let chunk = shown(&chunk);
                let message = format!("chunk {chunk} is not here, and {answered} of {others} other nodes answered");
                Err(status::unavailable(&message))
            }
            Err(error) => Err(of_disk(&error)),
        }
    }

    /// Asks the other members for a chunk, and keeps it here. The next one is asked once one has it not, or is slow.
    pub(super) async fn fetch(&self, chunk: ChunkHash) -> Result<Fetched, DiskError> {
        let (mut members, mut answered) = (self.others.members().into_iter(), 0);
        let mut asked: FuturesUnordered<BoxFuture<'_, Result<Option<Bytes>, String>>> = FuturesUnordered::new();
        loop {
            if let Some(member) = members.next() {
                asked.push(self.others.fetch(member, chunk).boxed());
            }
            match timeout(PATIENCE, asked.next()).await {
                Ok(Some(Ok(Some(content)))) => {
                    if let Some(fetched) = self.keep(chunk, content).await? {
                        return Ok(fetched);
                    }
                }
                Ok(Some(Ok(None))) => answered += 1,
                Ok(Some(Err(reason))) => tracing::debug!(reason, "a member could not be asked for a chunk"),
                Ok(None) => return Ok(Fetched::Nowhere { answered }),
                Err(_slow) => {}
            }
        }
    }

    /// Keeps what a member gave; `None`: it is not what was asked for.
    async fn keep(&self, chunk: ChunkHash, content: Bytes) -> Result<Option<Fetched>, DiskError> {
        let arrived = content.clone();
        match self.on_disk(move |store| store.admit(&chunk, &arrived)).await {
            Ok(true) => Ok(Some(Fetched::Kept(content))),
            // Content is checked before room is looked for.
            Err(DiskError::Full) => Ok(Some(Fetched::NoRoom(content))),
            Ok(false) => {
                tracing::error!(chunk = shown(&chunk), "a member gave something else than was asked for");
                Ok(None)
            }
            Err(fault) => Err(fault),
        }
    }

    async fn read(&self, part: &Part) -> Result<Bytes, Status> {
        let Some(content) = self.obtain(part.chunk).await? else {
            let message = format!("no node has chunk {} of the blob", shown(&part.chunk));
            return Err(status::missing("blob", message));
        };
        if content.len() != part.chunk_bytes {
            let (chunk, wanted) = (shown(&part.chunk), part.chunk_bytes);
            let message = format!("blob must be what Put returned: chunk {chunk} is not of {wanted} bytes");
            return Err(status::invalid("blob", message));
        }
        Ok(content.slice(part.range.clone()))
    }
}

/// What is wanted of one chunk.
#[derive(Debug, PartialEq)]
struct Part {
    chunk: ChunkHash,
    /// How long the whole chunk must be.
    chunk_bytes: usize,
    range: Range<usize>,
}

/// Divides a part of a blob by its chunks. A length of 0 is all that follows the offset.
fn parts(blob: &BlobRef, offset: u64, length: u64) -> Result<Vec<Part>, Status> {
    let size = blob.size_bytes;
    if offset >= size {
        return Err(status::invalid("offset", format!("offset must be below the blob's size, {size}; got {offset}")));
    }
    if length > size - offset {
        let message = format!("length must be at most {} from offset {offset} on; got {length}", size - offset);
        return Err(status::invalid("length", message));
    }
    let end = if length == 0 { size } else { offset + length };
    let mut parts = Vec::new();
    for (begin, chunk) in (0..size).step_by(CHUNK_BYTES as usize).zip(&blob.chunks) {
        let chunk_end = size.min(begin + CHUNK_BYTES);
        let (from, to) = (offset.max(begin), end.min(chunk_end));
        if from < to {
            let range = (from - begin) as usize..(to - begin) as usize;
            parts.push(Part { chunk: chunk_hash(chunk)?, chunk_bytes: (chunk_end - begin) as usize, range });
        }
    }
    Ok(parts)
}

/// Waits for a turn and reads what is wanted, as fast as the reader takes it. This is a task of its own because nobody
/// asks a stream for more while the other end takes nothing: it could not give up its turn.
async fn give(blobs: Arc<Blobs>, parts: Vec<Part>, reader: mpsc::Sender<Result<Bytes, Status>>) {
    let turn = tokio::select! {
        turn = blobs.downloads.acquire() => turn,
        () = reader.closed() => return,
    };
    let Ok(_turn) = turn else { return };
    let mut pace = Pace::new();
    for part in parts {
        let mut rest = match blobs.read(&part).await {
            Ok(content) => content,
            Err(error) => {
                let _told_or_gone = pace.wait(reader.send(Err(error))).await;
                return;
            }
        };
        while !rest.is_empty() {
            let data = rest.split_to(rest.len().min(PIECE_BYTES));
            let bytes = data.len();
            match pace.wait(reader.send(Ok(data))).await {
                Some(Ok(())) => pace.moved(bytes),
                // It is gone, or too slow.
                Some(Err(_)) | None => return,
            }
        }
    }
}

/// The pieces of so many bytes in all. If they end before that, the reader must not take them for the whole.
fn stream(
    mut pieces: mpsc::Receiver<Result<Bytes, Status>>,
    size: usize,
) -> impl Stream<Item = Result<GetBlobResponse, Status>> + Send {
    async_stream::try_stream! {
        let mut missing = size;
        while missing > 0 {
            let piece = pieces.recv().await.ok_or_else(too_slow)?;
            let data = piece?;
            missing = missing.saturating_sub(data.len());
            yield GetBlobResponse { data };
        }
    }
}

fn too_slow() -> Status {
    status::unavailable("the blob was read too slowly and was given up: get the rest, from the offset that came")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::TryStreamExt;
    use tonic::Code;

    use super::*;
    use crate::blobs::testing::blobs;
    use crate::blobs::{CHUNK, DOWNLOADS};

    /// Stores content on a node that is alone.
    async fn put(blobs: &Blobs, content: &[u8]) -> BlobRef {
        let mut blob = BlobRef {
            hash: Bytes::copy_from_slice(blake3::hash(content).as_bytes()),
            size_bytes: content.len() as u64,
            chunks: Vec::new(),
        };
        for chunk in content.chunks(CHUNK) {
            let hash = ChunkHash::from(blake3::hash(chunk));
            blobs.spread(hash, Bytes::copy_from_slice(chunk)).await.unwrap();
            blob.chunks.push(Bytes::copy_from_slice(&hash));
        }
        blob
    }

    async fn get(blobs: &Arc<Blobs>, blob: &BlobRef, offset: u64, length: u64) -> Result<Vec<u8>, Status> {
        let request = GetBlobRequest { blob: Some(blob.clone()), offset, length };
        let pieces: Vec<GetBlobResponse> = blobs.get(&request)?.try_collect().await?;
        assert!(pieces.iter().all(|piece| (1..=PIECE_BYTES).contains(&piece.data.len())));
        Ok(pieces.iter().flat_map(|piece| piece.data.to_vec()).collect())
    }

    #[tokio::test]
    async fn any_part_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = blobs(dir.path(), 1);
        let content: Vec<u8> = (0..CHUNK * 2 + 5).map(|at| (at % 251) as u8).collect();
        let blob = put(&blobs, &content).await;
        let (chunk, size) = (CHUNK as u64, content.len() as u64);
        for (offset, length) in [(0, 0), (0, 1), (chunk - 1, 2), (chunk, chunk), (1, size - 1), (size - 1, 1), (5, 0)] {
            let end = if length == 0 { size } else { offset + length };
            let wanted = &content[offset as usize..end as usize];
            assert!(get(&blobs, &blob, offset, length).await.unwrap() == wanted, "{length} bytes from {offset} on");
        }
    }

    #[tokio::test]
    async fn a_part_beyond_the_end_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = blobs(dir.path(), 1);
        let blob = put(&blobs, b"12345").await;
        for (offset, length) in [(5, 0), (6, 1), (4, 2), (1, u64::MAX)] {
            let refused = get(&blobs, &blob, offset, length).await.unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument, "{length} bytes from {offset} on");
        }
    }

    #[tokio::test]
    async fn what_nobody_has_is_not_found_and_a_false_size_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = blobs(dir.path(), 1);
        let blob = put(&blobs, b"12345").await;
        let longer = BlobRef { size_bytes: 6, ..blob.clone() };
        assert_eq!(get(&blobs, &longer, 0, 0).await.unwrap_err().code(), Code::InvalidArgument);
        let other = BlobRef { chunks: vec![Bytes::from(vec![7; 32])], ..blob };
        assert_eq!(get(&blobs, &other, 0, 0).await.unwrap_err().code(), Code::NotFound);
    }

    #[tokio::test]
    async fn what_somebody_may_have_who_cannot_be_reached_is_not_called_missing() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = blobs(dir.path(), 3);
        let hash = Bytes::from(vec![7; 32]);
        let blob = BlobRef { hash: hash.clone(), size_bytes: 5, chunks: vec![hash] };
        assert_eq!(get(&blobs, &blob, 0, 0).await.unwrap_err().code(), Code::Unavailable);
    }

    #[tokio::test]
    async fn a_part_that_breaks_off_is_not_taken_for_the_whole() {
        let (reader, pieces) = mpsc::channel(1);
        reader.send(Ok(Bytes::from_static(b"123"))).await.unwrap();
        drop(reader);
        let mut pieces = Box::pin(stream(pieces, 5));
        assert_eq!(pieces.next().await.unwrap().unwrap().data, b"123".as_slice());
        assert_eq!(pieces.next().await.unwrap().unwrap_err().code(), Code::Unavailable);
        assert!(pieces.next().await.is_none());
    }

    #[tokio::test]
    async fn a_reader_that_leaves_gives_its_turn_back() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = blobs(dir.path(), 1);
        let blob = put(&blobs, &vec![1; CHUNK]).await;
        let mut pieces = Box::pin(blobs.get(&GetBlobRequest { blob: Some(blob), offset: 0, length: 0 }).unwrap());
        pieces.next().await.unwrap().unwrap();
        assert_eq!(blobs.downloads.available_permits(), DOWNLOADS - 1);
        drop(pieces);
        let all = timeout(Duration::from_secs(10), blobs.downloads.acquire_many(DOWNLOADS as u32)).await;
        assert!(all.is_ok(), "the turn is still taken");
    }
}
