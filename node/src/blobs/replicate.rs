//! Onto a majority: one chunk, and every chunk of what is about to be referred to.
//!
//! A chunk counts as kept once it is durable on a majority of the voters, this node or not among them. Any majority
//! that is asked for it later has one of those in it. So nobody waits for the slowest member, unless it may be the only
//! one that has something.
//!
//! Deliberately absent: which members have what. Files are looked at, not remembered.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use quorate_proto::v1::{BlobRef, RejectionCode};
use tokio::time::timeout;
use tonic::Status;

use super::others::{LOOK_MAX, Unstored};
use super::{Blobs, ChunkHash, checked, chunk_hash, of_disk, refused, shown};
use crate::grpc::status;

/// How long a member is waited for that may not be needed.
pub(super) const PATIENCE: Duration = Duration::from_millis(500);

impl Blobs {
    /// Makes a chunk durable on a majority. What is on its way to the others by then goes on by itself.
    pub(super) async fn spread(&self, chunk: ChunkHash, content: Bytes) -> Result<(), Status> {
        let (majority, is_voter) = self.others.quorum();
        let mut storing: FuturesUnordered<BoxFuture<'_, (bool, Result<(), Unstored>)>> = FuturesUnordered::new();
        storing.push(self.store_here(chunk, content.clone()).map(move |stored| (is_voter, stored)).boxed());
        for member in self.others.members() {
            let counts = member.is_voter;
            storing.push(self.others.store(member, chunk, content.clone()).map(move |stored| (counts, stored)).boxed());
        }
        let (mut held, mut full, mut reasons) = (0, false, Vec::new());
        while let Some((counts, outcome)) = storing.next().await {
            match outcome {
                Ok(()) => held += usize::from(counts),
                Err(Unstored::Full) => full = true,
                Err(Unstored::Failed(reason)) => reasons.push(reason),
            }
            if held >= majority {
                return Ok(());
            }
        }
        if full {
            let message = "no majority of the nodes has room for more blobs".to_owned();
            return Err(refused(RejectionCode::ResourceExhausted, "", message));
        }
        Err(status::unavailable(&format!("no majority of the nodes could keep a chunk: {}", reasons.join("; "))))
    }

    async fn store_here(&self, chunk: ChunkHash, content: Bytes) -> Result<(), Unstored> {
        self.on_disk(move |store| store.write(&chunk, &content)).await.map_err(Unstored::from)
    }

    /// Makes sure, before references to them are proposed, that a majority has the blobs, and keeps having them for the
    /// hour that the proposal has. Chunks that too few have are brought to the others. Each blob comes with the field
    /// that refers to it.
    pub(crate) async fn ensure_all(&self, blobs: &[(String, BlobRef)]) -> Result<(), Status> {
        let chunks = distinct_chunks(blobs)?;
        for set in chunks.chunks(LOOK_MAX) {
            self.ensure_set(set).await?;
        }
        Ok(())
    }

    async fn ensure_set(&self, set: &[(ChunkHash, &str)]) -> Result<(), Status> {
        let chunks: Vec<ChunkHash> = set.iter().map(|(chunk, _)| *chunk).collect();
        let (majority, _) = self.others.quorum();
        let tally = Tally::of(self.ask(&chunks), chunks.len(), majority).await?;
        if tally.reports < majority {
            return Err(status::unavailable("no majority of the nodes could be asked whether it has the blob"));
        }
        // Before anything is brought. What a majority was asked for in vain was never acknowledged.
        if let Some(position) = tally.holders.iter().position(|holders| *holders == 0) {
            let (chunk, field) = &set[position];
            return Err(not_stored(field, chunk));
        }
        for ((chunk, field), holders) in set.iter().zip(tally.holders) {
            if holders < majority {
                let content = self.obtain(*chunk).await?.ok_or_else(|| not_stored(field, chunk))?;
                self.spread(*chunk, content).await?;
            }
        }
        Ok(())
    }

    /// Asks every voter which of the chunks it has.
    fn ask<'a>(&'a self, chunks: &'a [ChunkHash]) -> Reports<'a> {
        let reports: Reports<'a> = FuturesUnordered::new();
        if self.others.quorum().1 {
            let here = self.held_here(chunks.to_vec());
            reports.push(async move { here.await.map(Some).map_err(|error| of_disk(&error)) }.boxed());
        }
        for member in self.others.members().into_iter().filter(|member| member.is_voter) {
            let there = async move {
                match self.others.held(member, chunks).await {
                    Ok(held) => Ok(Some(held)),
                    Err(reason) => {
                        tracing::debug!(reason, "a member could not be asked which chunks it has");
                        Ok(None)
                    }
                }
            };
            reports.push(there.boxed());
        }
        reports
    }
}

/// What each member has, in the order asked for; `None` of one that cannot be asked.
type Reports<'a> = FuturesUnordered<BoxFuture<'a, Result<Option<Vec<bool>>, Status>>>;

/// The reports, added up.
#[derive(Debug)]
struct Tally {
    /// How many members have each chunk.
    holders: Vec<usize>,
    /// How many members were heard.
    reports: usize,
}

impl Tally {
    /// Complete enough to act on: it ends once every chunk is seen on a majority. If some are not, it ends a little
    /// after a majority was heard and each was seen somewhere, and otherwise with the last report.
    async fn of(mut reports: Reports<'_>, chunks: usize, majority: usize) -> Result<Tally, Status> {
        let mut tally = Tally { holders: vec![0; chunks], reports: 0 };
        tally.add(&mut reports, |tally| tally.reports >= majority && tally.fewest() > 0).await?;
        // Whoever has just been sent a chunk need not be brought it again.
        let rest = tally.add(&mut reports, |tally| tally.fewest() >= majority);
        timeout(PATIENCE, rest).await.unwrap_or(Ok(()))?;
        Ok(tally)
    }

    async fn add(&mut self, reports: &mut Reports<'_>, is_enough: impl Fn(&Tally) -> bool) -> Result<(), Status> {
        while !is_enough(self) {
            let Some(report) = reports.next().await else { break };
            let Some(held) = report? else { continue };
            self.reports += 1;
            for (holders, is_held) in self.holders.iter_mut().zip(held) {
                *holders += usize::from(is_held);
            }
        }
        Ok(())
    }

    /// How many have the chunk that the fewest have.
    fn fewest(&self) -> usize {
        self.holders.iter().copied().min().unwrap_or(0)
    }
}

/// Every chunk once, with the first field that refers to it.
fn distinct_chunks(blobs: &[(String, BlobRef)]) -> Result<Vec<(ChunkHash, &str)>, Status> {
    let mut chunks = BTreeMap::new();
    for (field, blob) in blobs {
        checked(field, blob)?;
        for chunk in &blob.chunks {
            chunks.entry(chunk_hash(chunk)?).or_insert(field.as_str());
        }
    }
    Ok(chunks.into_iter().collect())
}

fn not_stored(field: &str, chunk: &ChunkHash) -> Status {
    let message = format!(
        "{field} must be stored before it is referred to, with Blobs.Put within the last hour: no node that answered \
         has chunk {}",
        shown(chunk)
    );
    refused(RejectionCode::FailedPrecondition, field, message)
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use futures::future::join_all;
    use tokio::time::{Instant, sleep};
    use tonic::Code;

    use super::*;
    use crate::blobs::testing::blobs;

    fn small(content: &'static [u8]) -> (ChunkHash, Bytes, BlobRef) {
        let chunk = ChunkHash::from(blake3::hash(content));
        let hash = Bytes::copy_from_slice(&chunk);
        let blob = BlobRef { hash: hash.clone(), size_bytes: content.len() as u64, chunks: vec![hash] };
        (chunk, Bytes::from_static(content), blob)
    }

    /// References to them, as messages have.
    fn in_messages<const N: usize>(blobs: [BlobRef; N]) -> Vec<(String, BlobRef)> {
        let named = |(i, blob): (usize, BlobRef)| (format!("messages[{i}].blob"), blob);
        blobs.into_iter().enumerate().map(named).collect()
    }

    fn field(refused: &Status) -> &str {
        refused.metadata().get(status::FIELD_KEY).unwrap().to_str().unwrap()
    }

    fn at_once(held: &[bool]) -> BoxFuture<'static, Result<Option<Vec<bool>>, Status>> {
        ready(Ok(Some(held.to_vec()))).boxed()
    }

    #[tokio::test]
    async fn a_node_alone_is_its_own_majority() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = blobs(dir.path(), 1);
        blobs.ensure_all(&[]).await.unwrap();
        let (stored, missing) = (small(b"stored"), small(b"missing"));
        blobs.spread(stored.0, stored.1).await.unwrap();
        let wanted = in_messages([stored.2, missing.2]);
        let refused = blobs.ensure_all(&wanted).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert_eq!(field(&refused), "messages[1].blob");
        assert!(refused.message().starts_with("messages[1].blob must be stored"), "{refused}");
        blobs.spread(missing.0, missing.1).await.unwrap();
        blobs.ensure_all(&wanted).await.unwrap();
    }

    #[tokio::test]
    async fn more_chunks_than_one_look_may_name_are_looked_for_in_several() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = blobs(dir.path(), 1);
        let mut wanted = Vec::new();
        for number in 0..=LOOK_MAX {
            let content = Bytes::copy_from_slice(&number.to_be_bytes());
            let chunk = ChunkHash::from(blake3::hash(&content));
            let hash = Bytes::copy_from_slice(&chunk);
            let blob = BlobRef { hash: hash.clone(), size_bytes: content.len() as u64, chunks: vec![hash] };
            wanted.push((chunk, content, (format!("messages[{number}].blob"), blob)));
        }
        // By their hashes, as they are looked for: the second look is for the last one.
        wanted.sort_by_key(|(chunk, ..)| *chunk);
        let references: Vec<(String, BlobRef)> = wanted.iter().map(|(.., reference)| reference.clone()).collect();
        let storing = wanted[..LOOK_MAX].iter().map(|(chunk, content, _)| blobs.spread(*chunk, content.clone()));
        assert!(join_all(storing).await.iter().all(Result::is_ok));
        blobs.ensure_all(&references[..LOOK_MAX]).await.unwrap();
        let refused = blobs.ensure_all(&references).await.unwrap_err();
        assert_eq!(field(&refused), references[LOOK_MAX].0);
    }

    #[tokio::test]
    async fn what_only_a_minority_has_is_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = blobs(dir.path(), 3);
        let (chunk, content, blob) = small(b"content");
        assert_eq!(blobs.spread(chunk, content).await.unwrap_err().code(), Code::Unavailable);
        assert_eq!(blobs.ensure_all(&in_messages([blob])).await.unwrap_err().code(), Code::Unavailable);
    }

    #[tokio::test]
    async fn a_malformed_reference_is_refused_before_anybody_is_asked() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = blobs(dir.path(), 3);
        let (_, _, blob) = small(b"content");
        let short = BlobRef { chunks: Vec::new(), ..blob.clone() };
        let refused = blobs.ensure_all(&in_messages([blob, short])).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert_eq!(field(&refused), "messages[1].blob");
    }

    #[test]
    fn a_chunk_is_asked_for_once_and_named_by_the_first_who_refers_to_it() {
        let (one, other) = (small(b"one"), small(b"other"));
        let blobs = in_messages([one.2.clone(), other.2, one.2]);
        let mut chunks = distinct_chunks(&blobs).unwrap();
        chunks.sort_by_key(|(_, field)| *field);
        assert_eq!(chunks, [(one.0, "messages[0].blob"), (other.0, "messages[1].blob")]);
    }

    #[tokio::test]
    async fn nobody_waits_for_the_slowest_once_a_majority_has_everything() {
        let reports: Reports<'_> = [pending().boxed(), at_once(&[true; 2]), at_once(&[true; 2])].into_iter().collect();
        let began = Instant::now();
        let tally = Tally::of(reports, 2, 2).await.unwrap();
        assert_eq!((tally.holders, tally.reports), (vec![2, 2], 2));
        assert!(began.elapsed() < PATIENCE);
    }

    #[tokio::test]
    async fn somebody_slow_is_waited_for_a_little_if_a_chunk_is_on_too_few() {
        let slow = sleep(PATIENCE / 10).map(|()| Ok(Some(vec![true, true]))).boxed();
        let reports: Reports<'_> = [at_once(&[true, true]), at_once(&[true, false]), slow].into_iter().collect();
        assert_eq!(Tally::of(reports, 2, 2).await.unwrap().holders, [3, 2]);
        let reports: Reports<'_> =
            [at_once(&[true, true]), at_once(&[true, false]), pending().boxed()].into_iter().collect();
        assert_eq!(Tally::of(reports, 2, 2).await.unwrap().holders, [2, 1]);
    }

    #[tokio::test]
    async fn what_nobody_has_yet_been_seen_to_have_is_looked_for_with_everybody() {
        let late = sleep(PATIENCE * 2).map(|()| Ok(Some(vec![true]))).boxed();
        let reports: Reports<'_> = [at_once(&[false]), at_once(&[false]), late].into_iter().collect();
        assert_eq!(Tally::of(reports, 1, 2).await.unwrap().holders, [1]);
        let gone = ready(Ok(None)).boxed();
        let reports: Reports<'_> = [at_once(&[false]), gone].into_iter().collect();
        let tally = Tally::of(reports, 1, 2).await.unwrap();
        assert_eq!((tally.holders, tally.reports), (vec![0], 1));
    }
}
