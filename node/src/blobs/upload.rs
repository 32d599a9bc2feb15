//! A blob on its way in: cut into chunks as it comes, each sent on while the next is read.
//!
//! Invariant: at most one chunk that is being filled and [`IN_FLIGHT`] that are being stored are in memory; the sender
//! waits meanwhile. An upload that breaks off leaves chunks that nobody refers to, and those are removed in time.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use quorate_proto::v1::{BlobRef, PutBlobRequest};
use quorate_raft::state::blobs::MAX_BLOB_BYTES;
use tokio::task::JoinSet;
use tonic::{Status, Streaming};

use super::pace::Pace;
use super::{Blobs, CHUNK, ChunkHash, stopping};
use crate::grpc::status;

/// Chunks of one upload that are being stored at a time.
const IN_FLIGHT: usize = 4;

impl Blobs {
    /// Stores what the stream brings. A majority has all of it when this returns its reference.
    pub(crate) async fn put(self: &Arc<Self>, mut pieces: Streaming<PutBlobRequest>) -> Result<BlobRef, Status> {
        let _turn = self.uploads.acquire().await.map_err(|_| stopping())?;
        let mut pace = Pace::new();
        let mut upload = Upload::new(self.clone());
        while let Some(data) = next(&mut pieces, &mut pace).await? {
            upload.take(&data).await?;
        }
        upload.finish().await
    }
}

async fn next(pieces: &mut Streaming<PutBlobRequest>, pace: &mut Pace) -> Result<Option<Bytes>, Status> {
    let Some(piece) = pace.wait(pieces.message()).await else {
        return Err(status::unavailable("the upload came too slowly and was given up: put the blob again"));
    };
    let data = piece?.map(|piece| piece.data);
    pace.moved(data.as_ref().map_or(0, Bytes::len));
    Ok(data)
}

struct Upload {
    blobs: Arc<Blobs>,
    /// What does not fill a chunk yet.
    rest: BytesMut,
    whole: blake3::Hasher,
    blob: BlobRef,
    /// Dropped with the upload, which ends what is in it.
    storing: JoinSet<Result<(), Status>>,
}

impl Upload {
    fn new(blobs: Arc<Blobs>) -> Self {
        Upload {
            blobs,
            rest: BytesMut::new(),
            whole: blake3::Hasher::new(),
            blob: BlobRef::default(),
            storing: JoinSet::new(),
        }
    }

    async fn take(&mut self, data: &[u8]) -> Result<(), Status> {
        if data.len() > CHUNK {
            let message = format!("data must be at most {CHUNK} bytes a message; got {}", data.len());
            return Err(status::invalid("data", message));
        }
        self.blob.size_bytes += data.len() as u64;
        if self.blob.size_bytes > MAX_BLOB_BYTES {
            return Err(status::invalid("data", format!("a blob must be at most {MAX_BLOB_BYTES} bytes; got more")));
        }
        self.rest.extend_from_slice(data);
        while self.rest.len() >= CHUNK {
            let chunk = self.rest.split_to(CHUNK).freeze();
            self.store(chunk).await?;
        }
        Ok(())
    }

    async fn finish(mut self) -> Result<BlobRef, Status> {
        if self.blob.size_bytes == 0 {
            return Err(status::invalid("data", format!("a blob must be 1 to {MAX_BLOB_BYTES} bytes; got none")));
        }
        if !self.rest.is_empty() {
            let chunk = self.rest.split().freeze();
            self.store(chunk).await?;
        }
        while !self.storing.is_empty() {
            self.stored().await?;
        }
        self.blob.hash = Bytes::copy_from_slice(self.whole.finalize().as_bytes());
        Ok(self.blob)
    }

    /// Begins to store the next chunk, once there is room for one more.
    async fn store(&mut self, content: Bytes) -> Result<(), Status> {
        while self.storing.len() >= IN_FLIGHT {
            self.stored().await?;
        }
        let mut whole = std::mem::take(&mut self.whole);
        let hashing = tokio::task::spawn_blocking(move || {
            whole.update(&content);
            (whole, ChunkHash::from(blake3::hash(&content)), content)
        });
        let (whole, chunk, content) = hashing.await.map_err(|_| stopping())?;
        self.whole = whole;
        self.blob.chunks.push(Bytes::copy_from_slice(&chunk));
        let blobs = self.blobs.clone();
        self.storing.spawn(async move { blobs.spread(chunk, content).await });
        Ok(())
    }

    /// Waits until one of the chunks under way is stored.
    async fn stored(&mut self) -> Result<(), Status> {
        match self.storing.join_next().await {
            Some(stored) => stored.map_err(|_| stopping())?,
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;
    use crate::blobs::testing::blobs;

    async fn put(blobs: &Arc<Blobs>, content: &[u8], piece: usize) -> Result<BlobRef, Status> {
        let mut upload = Upload::new(blobs.clone());
        for data in content.chunks(piece) {
            upload.take(data).await?;
        }
        upload.finish().await
    }

    #[tokio::test]
    async fn a_blob_is_the_same_however_it_comes() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = blobs(dir.path(), 1);
        let content: Vec<u8> = (0..CHUNK * 2 + 5).map(|at| (at % 251) as u8).collect();
        let expected: Vec<Bytes> =
            content.chunks(CHUNK).map(|chunk| Bytes::copy_from_slice(blake3::hash(chunk).as_bytes())).collect();
        for piece in [CHUNK, CHUNK - 1, 300_000] {
            let blob = put(&blobs, &content, piece).await.unwrap();
            assert_eq!(blob.size_bytes, content.len() as u64);
            assert_eq!(blob.hash, blake3::hash(&content).as_bytes().as_slice());
            assert_eq!(blob.chunks, expected);
            blobs.ensure_all(&[("blob".to_owned(), blob)]).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_blob_ends_where_a_chunk_does() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = blobs(dir.path(), 1);
        let blob = put(&blobs, &vec![1; CHUNK * 2], CHUNK).await.unwrap();
        assert_eq!((blob.size_bytes, blob.chunks.len()), (2 * CHUNK as u64, 2));
        assert_eq!(blob.chunks[0], blob.chunks[1], "equal content has one name");
    }

    #[tokio::test]
    async fn what_is_empty_or_too_large_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = blobs(dir.path(), 1);
        assert_eq!(put(&blobs, b"", 1).await.unwrap_err().code(), Code::InvalidArgument);
        let piece = vec![0; CHUNK + 1];
        assert_eq!(put(&blobs, &piece, piece.len()).await.unwrap_err().code(), Code::InvalidArgument);
        let mut upload = Upload::new(blobs);
        upload.blob.size_bytes = MAX_BLOB_BYTES;
        assert_eq!(upload.take(b"x").await.unwrap_err().code(), Code::InvalidArgument);
    }

    #[tokio::test]
    async fn an_upload_without_a_majority_fails() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = blobs(dir.path(), 3);
        assert_eq!(put(&blobs, b"content", 7).await.unwrap_err().code(), Code::Unavailable);
    }
}
