//! Onto a majority: one chunk, and every chunk of what is about to be referred to.
//!
//! A chunk counts as kept once it is durable on a majority of the members, this node or not among them. Any majority
//! that is asked for it later has one of those in it.
//!
//! Deliberately absent: which members have what. Files are looked at, not remembered.

use std::collections::BTreeSet;

use bytes::Bytes;
use futures::future::{BoxFuture, join_all};
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use quorate_proto::v1::{BlobRef, RejectionCode};
use tonic::Status;

use super::others::Unstored;
use super::{Blobs, ChunkHash, checked, chunk_hash, of_disk, refused, shown};
use crate::grpc::status;

impl Blobs {
    /// Makes a chunk durable on a majority. What is on its way to the others by then goes on by itself.
    pub(super) async fn spread(&self, chunk: ChunkHash, content: Bytes) -> Result<(), Status> {
        let mut storing: FuturesUnordered<BoxFuture<'_, Result<(), Unstored>>> = FuturesUnordered::new();
        storing.push(self.store_here(chunk, content.clone()).boxed());
        for member in self.others.members() {
            storing.push(self.others.store(member, chunk, content.clone()).boxed());
        }
        let (mut held, mut full, mut reasons) = (0, false, Vec::new());
        while let Some(outcome) = storing.next().await {
            match outcome {
                Ok(()) => held += 1,
                Err(Unstored::Full) => full = true,
                Err(Unstored::Failed(reason)) => reasons.push(reason),
            }
            if held >= self.majority {
                return Ok(());
            }
        }
        if full {
            let message = "no majority of the nodes has room for it: a disk is full".to_owned();
            return Err(refused(RejectionCode::ResourceExhausted, "", message));
        }
        Err(status::unavailable(&format!("no majority of the nodes could keep a chunk: {}", reasons.join("; "))))
    }

    async fn store_here(&self, chunk: ChunkHash, content: Bytes) -> Result<(), Unstored> {
        self.on_disk(move |store| store.write(&chunk, &content)).await.map_err(Unstored::from)
    }

    /// Makes sure, before a reference to it is proposed, that a majority has the blob, and keeps having it for the hour
    /// that the proposal has. A chunk that too few have is brought to the others.
    pub(crate) async fn ensure(&self, blob: &BlobRef) -> Result<(), Status> {
        let chunks = distinct_chunks(blob)?;
        let asked = self.others.members().iter().map(|member| self.others.held(member, &chunks));
        let (here, there) = tokio::join!(self.held_here(chunks.clone()), join_all(asked));
        let mut reports = vec![here.map_err(|error| of_disk(&error))?];
        reports.extend(there.into_iter().flatten());
        if reports.len() < self.majority {
            return Err(status::unavailable("no majority of the nodes could be asked whether it has the blob"));
        }
        for (position, chunk) in chunks.iter().enumerate() {
            let holders = reports.iter().filter(|held| held[position]).count();
            if holders >= self.majority {
                continue;
            }
            let content = if holders == 0 { None } else { self.obtain(*chunk).await? };
            let Some(content) = content else { return Err(not_stored(chunk)) };
            self.spread(*chunk, content).await?;
        }
        Ok(())
    }
}

fn distinct_chunks(blob: &BlobRef) -> Result<Vec<ChunkHash>, Status> {
    checked(blob)?;
    let chunks = blob.chunks.iter().map(|chunk| chunk_hash(chunk)).collect::<Result<BTreeSet<_>, _>>()?;
    Ok(chunks.into_iter().collect())
}

fn not_stored(chunk: &ChunkHash) -> Status {
    let message = format!(
        "blob must be stored before it is referred to, with Blobs.Put within the last hour: no node has chunk {}",
        shown(chunk)
    );
    refused(RejectionCode::FailedPrecondition, "blob", message)
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;
    use crate::blobs::testing::blobs;

    fn small(content: &'static [u8]) -> (ChunkHash, Bytes, BlobRef) {
        let chunk = ChunkHash::from(blake3::hash(content));
        let hash = Bytes::copy_from_slice(&chunk);
        let blob = BlobRef { hash: hash.clone(), size_bytes: content.len() as u64, chunks: vec![hash] };
        (chunk, Bytes::from_static(content), blob)
    }

    #[tokio::test]
    async fn a_node_alone_is_its_own_majority() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = blobs(dir.path(), 1);
        let (chunk, content, blob) = small(b"content");
        let refused = blobs.ensure(&blob).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert_eq!(refused.metadata().get(status::FIELD_KEY).unwrap(), "blob");
        blobs.spread(chunk, content).await.unwrap();
        blobs.ensure(&blob).await.unwrap();
    }

    #[tokio::test]
    async fn what_only_a_minority_has_is_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = blobs(dir.path(), 3);
        let (chunk, content, blob) = small(b"content");
        assert_eq!(blobs.spread(chunk, content).await.unwrap_err().code(), Code::Unavailable);
        assert_eq!(blobs.ensure(&blob).await.unwrap_err().code(), Code::Unavailable);
    }

    #[tokio::test]
    async fn a_malformed_reference_is_refused_before_anybody_is_asked() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = blobs(dir.path(), 3);
        let (_, _, blob) = small(b"content");
        let short = BlobRef { chunks: Vec::new(), ..blob };
        assert_eq!(blobs.ensure(&short).await.unwrap_err().code(), Code::InvalidArgument);
    }
}
