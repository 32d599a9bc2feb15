//! Taking a backup: a checkpoint, what it holds, and what of that the target lacks.
//!
//! The checkpoint is this node's own, so nothing that happens meanwhile changes it. A chunk that a row of it refers to
//! may be released and removed here while it is on its way: then it is fetched from another member, and if none has it
//! any more, the backup fails and the next one does without that row.
//!
//! Deliberately absent: when it is done ([`super::schedule`]), and by whom: whoever leads.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use quorate_proto::v1::BackupRecord;
use quorate_raft::state::blobs::CHUNK_BYTES;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::contents::{self, ChunkHash, Contents};
use super::manifest::{self, Chunk, FORMAT_VERSION, Manifest, StateFile, id_of};
use super::target::{Target, object_path};
use super::{Job, Progress, lock, on_disk, open, run_all};
use crate::core::Core;

/// How often a backup looks whether its node still leads.
const LOOK: Duration = Duration::from_millis(500);

/// One backup at a time on a node: two would share its disk and its network, and the target's lock lets in one only.
static TURN: Semaphore = Semaphore::const_new(1);

/// The right to take a backup on this node; `None`: one is being taken.
pub(crate) fn turn() -> Option<SemaphorePermit<'static>> {
    TURN.try_acquire().ok()
}

/// Gives a chunk's content, from wherever it is. `None`: it is nowhere.
type FetchChunk = Arc<dyn Fn(ChunkHash) -> Fetching + Send + Sync>;
type Fetching = BoxFuture<'static, anyhow::Result<Option<Bytes>>>;

/// A backup that was taken.
#[derive(Debug)]
struct Taken {
    manifest: Manifest,
    /// What had to be sent; the rest was there.
    sent_bytes: u64,
}

/// Takes a backup as the leader of `term`, and says how that went. It ends when the node stops or leads no more.
pub(crate) async fn take(core: &Arc<Core>, url: &str, term: u64, progress: &mut Progress<'_>) -> BackupRecord {
    let began_ms = core.clock.now_ms();
    let taken = match while_leading(core, term, open(url)).await {
        Ok(target) => {
            let who = who(core);
            let work = while_leading(core, term, create(core, &target, progress));
            lock::holding(&target, &who, work).await
        }
        Err(error) => Err(error),
    };
    let tried = BackupRecord {
        target: url.to_owned(),
        began_ms,
        ended_ms: core.clock.now_ms(),
        node_id: core.settings.config.node_id,
        ..BackupRecord::default()
    };
    match taken {
        Ok(Taken { manifest, sent_bytes }) => {
            let bytes = manifest.bytes();
            tracing::info!(id = manifest.id, to = url, bytes, sent_bytes, "a backup was taken");
            BackupRecord { id: manifest.id, rev: manifest.rev, bytes, sent_bytes, ..tried }
        }
        Err(error) => {
            let error = format!("{error:#}");
            tracing::warn!(to = url, error, "a backup failed");
            BackupRecord { error, ..tried }
        }
    }
}

/// What the lock of a target says of its holder.
pub(super) fn who(core: &Core) -> String {
    let node = &core.settings.config;
    format!("node {} of cluster {}", node.node_id, node.cluster_id)
}

/// Does the work unless there is a reason to stop.
pub(super) async fn while_leading<T>(
    core: &Core,
    term: u64,
    work: impl Future<Output = anyhow::Result<T>> + Send,
) -> anyhow::Result<T> {
    let over = async {
        loop {
            tokio::select! {
                _reason = core.stop.wait() => return "this node is stopping",
                () = tokio::time::sleep(LOOK) => if core.office() != Some(term) {
                    return "this node does not lead any more";
                }
            }
        }
    };
    tokio::select! {
        result = work => result,
        reason = over => Err(anyhow!(reason)),
    }
}

async fn create(core: &Arc<Core>, target: &Target, progress: &mut Progress<'_>) -> anyhow::Result<Taken> {
    let replica = core.replica.clone();
    // It removes itself when the last one lets go of it.
    let checkpoint = on_disk(move || replica.checkpoint_for_backup()).await?;
    let reading = checkpoint.clone();
    let mut contents = on_disk(move || contents::read(reading.path())).await?;
    if contents.cluster.cluster_id.is_empty() {
        contents.cluster.cluster_id.clone_from(&core.settings.config.cluster_id);
    }
    let blobs = core.blobs.clone();
    let fetch: FetchChunk = Arc::new(move |chunk: ChunkHash| -> Fetching {
        let blobs = blobs.clone();
        async move { blobs.obtain(chunk).await.map_err(|status| anyhow!("{}", status.message())) }.boxed()
    });
    send(target, checkpoint.path(), contents, &fetch, core.clock.now_ms(), progress).await
}

/// A part of a backup that is in the target now.
enum Sent {
    File(u64),
    Chunk(Chunk),
}

/// Sends what the target lacks, and then the manifest.
async fn send(
    target: &Target,
    dir: &Path,
    contents: Contents,
    fetch: &FetchChunk,
    now_ms: u64,
    progress: &mut Progress<'_>,
) -> anyhow::Result<Taken> {
    let known = target.objects().await?;
    let Contents { head, cluster, full_digest, files, chunks: referenced } = contents;
    let is_there = |file: &StateFile| known.get(&file.blake3) == Some(&file.bytes);
    let mut named = BTreeSet::new();
    let missing: Vec<StateFile> =
        files.iter().filter(|file| !is_there(file) && named.insert(file.blake3.clone())).cloned().collect();
    let (mut chunks, mut unsent) = (Vec::new(), Vec::new());
    for hash in referenced {
        let blake3 = hex(&hash);
        match known.get(&blake3) {
            Some(&bytes) if (1..=CHUNK_BYTES).contains(&bytes) => chunks.push(Chunk { blake3, bytes }),
            _ => unsent.push(hash),
        }
    }
    // How long a chunk is, is known when it has been read.
    let total = missing.iter().map(|file| file.bytes).sum::<u64>() + unsent.len() as u64 * CHUNK_BYTES;
    let (mut done_bytes, mut sent_bytes) = (0, 0);
    progress(0, total);
    let jobs = jobs(target, dir, fetch, missing, unsent);
    run_all(jobs, |sent| {
        let (bytes, counted) = match &sent {
            Sent::File(bytes) => (*bytes, *bytes),
            Sent::Chunk(chunk) => (chunk.bytes, CHUNK_BYTES),
        };
        sent_bytes += bytes;
        done_bytes += counted;
        progress(done_bytes, total);
        if let Sent::Chunk(chunk) = sent {
            chunks.push(chunk);
        }
    })
    .await?;
    chunks.sort_by(|a, b| a.blake3.cmp(&b.blake3));
    let (applied_term, applied_index) = head.applied.unwrap_or_default();
    let manifest = Manifest {
        format_version: FORMAT_VERSION,
        id: id_of(now_ms, head.rev),
        cluster_id: cluster.cluster_id,
        rev: head.rev,
        applied_term,
        applied_index,
        taken_at_ms: now_ms,
        quorate_version: env!("CARGO_PKG_VERSION").to_owned(),
        feature_level: cluster.feature_level,
        full_digest,
        files,
        chunks,
    };
    publish(target, &manifest).await?;
    Ok(Taken { manifest, sent_bytes })
}

fn jobs(
    target: &Target,
    dir: &Path,
    fetch: &FetchChunk,
    files: Vec<StateFile>,
    chunks: Vec<ChunkHash>,
) -> impl Iterator<Item = Job<Sent>> + Send + use<> {
    let (to_files, to_chunks, dir, fetch) = (target.clone(), target.clone(), dir.to_owned(), fetch.clone());
    let files = files.into_iter().map(move |file| -> Job<Sent> {
        let (target, path) = (to_files.clone(), dir.join(&file.name));
        async move { Ok(Sent::File(target.send_file(&path, &file.blake3).await?)) }.boxed()
    });
    let chunks = chunks.into_iter().map(move |hash| -> Job<Sent> {
        let (target, fetch) = (to_chunks.clone(), fetch.clone());
        async move { Ok(Sent::Chunk(send_chunk(&target, hash, &fetch).await?)) }.boxed()
    });
    files.chain(chunks)
}

async fn send_chunk(target: &Target, hash: ChunkHash, fetch: &FetchChunk) -> anyhow::Result<Chunk> {
    let blake3 = hex(&hash);
    let Some(content) = fetch(hash).await.with_context(|| format!("chunk {blake3} of a blob"))? else {
        bail!("chunk {blake3} of a blob is on no node: what refers to it cannot be backed up");
    };
    ensure!(*blake3::hash(&content).as_bytes() == hash, "chunk {blake3} of a blob is damaged");
    let bytes = content.len() as u64;
    target.write(&object_path(&blake3), content).await?;
    Ok(Chunk { blake3, bytes })
}

/// Makes the backup exist, if all of it is there.
async fn publish(target: &Target, manifest: &Manifest) -> anyhow::Result<()> {
    let there = target.objects().await?;
    for (hash, bytes) in manifest.objects() {
        let found = there.get(hash).copied();
        let path = object_path(hash);
        ensure!(found == Some(bytes), "{} is not there as it was sent: {bytes} bytes, {found:?}", target.shown(&path));
    }
    let is_new = target.create(&manifest::path_of(&manifest.id), serde_json::to_vec(manifest)?.into()).await?;
    ensure!(is_new, "another backup has the name {} already", manifest.id);
    let written = manifest::load(target, &manifest.id).await?;
    ensure!(written == *manifest, "the manifest of {} reads other than it was written", manifest.id);
    Ok(())
}

fn hex(hash: &ChunkHash) -> String {
    blake3::Hash::from(*hash).to_hex().to_string()
}

/// For the tests of the engine: the backup of a checkpoint, without a node.
#[cfg(test)]
pub(super) async fn send_for_test(
    target: &Target,
    dir: &Path,
    chunk: Option<&'static [u8]>,
    now_ms: u64,
) -> anyhow::Result<(Manifest, u64)> {
    let fetch: FetchChunk =
        Arc::new(move |_: ChunkHash| -> Fetching { async move { Ok(chunk.map(Bytes::from_static)) }.boxed() });
    let taken = send(target, dir, contents::read(dir)?, &fetch, now_ms, &mut |_, _| {}).await?;
    Ok((taken.manifest, taken.sent_bytes))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{State, target};
    use super::*;

    #[tokio::test]
    async fn what_an_earlier_backup_sent_is_not_sent_again() {
        let (dir, state) = (tempfile::tempdir().unwrap(), State::new());
        let target = target(dir.path());
        let checkpoint = state.checkpoint();
        let (first, sent) = send_for_test(&target, checkpoint.path(), Some(State::CHUNK), 1_000).await.unwrap();
        assert!(sent > 0 && sent <= first.bytes(), "{sent} of {}", first.bytes());
        assert_eq!(first.chunks.len(), 1, "the other namespace refers to one");
        let (second, sent) = send_for_test(&target, checkpoint.path(), None, 2_000).await.unwrap();
        assert_eq!((second.bytes(), sent), (first.bytes(), 0));
        assert_eq!(manifest::list(&target).await.unwrap(), [first, second]);
    }

    #[tokio::test]
    async fn a_chunk_that_is_nowhere_is_named_and_no_backup_comes_of_it() {
        let (dir, state) = (tempfile::tempdir().unwrap(), State::new());
        let target = target(dir.path());
        let error = send_for_test(&target, state.checkpoint().path(), None, 1_000).await.unwrap_err();
        let hash = blake3::hash(State::CHUNK).to_hex();
        assert!(format!("{error:#}").contains(&format!("chunk {hash} of a blob is on no node")), "{error:#}");
        let error = send_for_test(&target, state.checkpoint().path(), Some(b"other"), 1_000).await.unwrap_err();
        assert!(format!("{error:#}").contains("is damaged"), "{error:#}");
        assert!(manifest::list(&target).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_target_that_cannot_be_written_to_holds_no_half_of_a_backup() {
        let (outer, state) = (tempfile::tempdir().unwrap(), State::new());
        let dir = outer.path().join("share");
        std::fs::create_dir(&dir).unwrap();
        let target = target(&dir);
        // A file where a folder must be: it stops the superuser too, whom no mode of a directory stops.
        std::fs::write(dir.join("objects"), b"").unwrap();
        assert!(send_for_test(&target, state.checkpoint().path(), Some(State::CHUNK), 1_000).await.is_err());
        assert!(manifest::list(&target).await.unwrap().is_empty());
        std::fs::remove_dir_all(&dir).unwrap();
        assert!(send_for_test(&target, state.checkpoint().path(), Some(State::CHUNK), 1_000).await.is_err());
        assert!(!dir.exists());
    }
}
