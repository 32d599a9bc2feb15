//! Whether a backup is whole, and bringing one here.
//!
//! Everything is compared with the manifest: every object by its hash, and the state by the digest of its rows, which
//! is computed anew from what was brought. What is wrong is said of all objects, not of the first.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use futures::{FutureExt, TryStreamExt};
use quorate_raft::storage::dir::sync_dir;
use tokio::io::AsyncWriteExt;

use super::contents::{self, Contents};
use super::manifest::{self, Manifest};
use super::target::{Target, object_path};
use super::{Job, Progress, on_disk, run_all};

/// The most faults that are told in full.
const TOLD: usize = 10;

/// An object, and where it is to be written.
struct Wanted {
    hash: String,
    bytes: u64,
    to: Option<PathBuf>,
}

/// Brings a backup here: the files of the state into `into`, chunks of blobs, as they are and each named by its hash,
/// into `chunks_into`. Both must exist. All of it is checked, and is durable on success.
pub(crate) async fn download(
    target: &Target,
    id: &str,
    into: &Path,
    chunks_into: &Path,
    progress: &mut Progress<'_>,
) -> anyhow::Result<Manifest> {
    let manifest = manifest::load(target, id).await?;
    fetch(target, &manifest, wanted(&manifest, into, Some(chunks_into)), progress).await?;
    for dir in [into, chunks_into] {
        let dir = dir.to_owned();
        on_disk(move || sync_dir(&dir)).await?;
    }
    check_state(&manifest, into).await?;
    Ok(manifest)
}

/// Checks a backup. `quick`: only that everything is there and has the right size.
pub(crate) async fn verify(
    target: &Target,
    id: &str,
    quick: bool,
    progress: &mut Progress<'_>,
) -> anyhow::Result<Manifest> {
    let manifest = manifest::load(target, id).await?;
    if quick {
        let there = target.objects().await?;
        let wrong = manifest.objects().into_iter().filter(|(hash, bytes)| there.get(*hash) != Some(bytes));
        complain(&manifest, wrong.map(|(hash, _)| format!("{} is not there whole", object_path(hash))).collect())?;
        return Ok(manifest);
    }
    let dir = tempfile::tempdir().context("no place to look at the state")?;
    fetch(target, &manifest, wanted(&manifest, dir.path(), None), progress).await?;
    check_state(&manifest, dir.path()).await?;
    Ok(manifest)
}

/// Every file of the state, and every chunk.
fn wanted(manifest: &Manifest, into: &Path, chunks_into: Option<&Path>) -> Vec<Wanted> {
    let files = manifest.files.iter().map(|file| {
        let to = Some(into.join(&file.name));
        Wanted { hash: file.blake3.clone(), bytes: file.bytes, to }
    });
    let chunks = manifest.chunks.iter().map(|chunk| {
        let to = chunks_into.map(|dir| dir.join(&chunk.blake3));
        Wanted { hash: chunk.blake3.clone(), bytes: chunk.bytes, to }
    });
    files.chain(chunks).collect()
}

/// Brings all that is wanted, and says what could not be brought whole.
async fn fetch(
    target: &Target,
    manifest: &Manifest,
    wanted: Vec<Wanted>,
    progress: &mut Progress<'_>,
) -> anyhow::Result<()> {
    let total = manifest.bytes();
    let (mut done_bytes, mut wrong) = (0, Vec::new());
    progress(0, total);
    let target = target.clone();
    let jobs = wanted.into_iter().map(move |wanted| -> Job<(u64, Option<String>)> {
        let target = target.clone();
        async move {
            let fault = bring(&target, &wanted).await.err().map(|error| format!("{error:#}"));
            Ok((wanted.bytes, fault))
        }
        .boxed()
    });
    run_all(jobs, |(bytes, fault)| {
        done_bytes += bytes;
        wrong.extend(fault);
        progress(done_bytes, total);
    })
    .await?;
    complain(manifest, wrong)
}

async fn bring(target: &Target, wanted: &Wanted) -> anyhow::Result<()> {
    let path = object_path(&wanted.hash);
    let what = target.shown(&path);
    let Some(mut pieces) = target.stream(&path).await? else { bail!("{what} is not there") };
    let mut file = match &wanted.to {
        Some(to) => Some(tokio::fs::File::create(to).await.with_context(|| format!("cannot write {}", to.display()))?),
        None => None,
    };
    let (mut hasher, mut bytes) = (blake3::Hasher::new(), 0);
    while let Some(piece) = pieces.try_next().await? {
        hasher.update(&piece);
        bytes += piece.len() as u64;
        if let Some(file) = &mut file {
            file.write_all(&piece).await?;
        }
    }
    let found = hasher.finalize().to_hex();
    ensure!(
        bytes == wanted.bytes && found.as_str() == wanted.hash,
        "{what} is damaged: remove it, and the next backup sends it again if it is still in use"
    );
    if let Some(mut file) = file {
        file.flush().await?;
        file.sync_all().await?;
    }
    Ok(())
}

/// Fails if something is wrong.
fn complain(manifest: &Manifest, wrong: Vec<String>) -> anyhow::Result<()> {
    let more = wrong.len().saturating_sub(TOLD);
    if wrong.is_empty() {
        return Ok(());
    }
    let told = wrong.into_iter().take(TOLD).collect::<Vec<_>>().join("; ");
    match more {
        0 => bail!("backup {} is not whole: {told}", manifest.id),
        _ => bail!("backup {} is not whole: {told}; and {more} more", manifest.id),
    }
}

/// Opens a copy of the state, made of links, and compares it with the manifest: whoever opens a database leaves files.
async fn check_state(manifest: &Manifest, dir: &Path) -> anyhow::Result<()> {
    let dir = dir.to_owned();
    let found = on_disk(move || -> std::io::Result<Contents> {
        let copy = tempfile::tempdir_in(&dir)?;
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                fs::hard_link(entry.path(), copy.path().join(entry.file_name()))?;
            }
        }
        Ok(contents::read(copy.path())?)
    });
    let found = found.await.with_context(|| format!("the state of backup {} does not open", manifest.id))?;
    let id = &manifest.id;
    let digest = &found.full_digest;
    ensure!(*digest == manifest.full_digest, "the rows of backup {id} have digest {digest}: they are not those it had");
    ensure!(found.head.rev == manifest.rev, "backup {id} stands at rev {}: it is another's", found.head.rev);
    let named: BTreeSet<&str> = manifest.chunks.iter().map(|chunk| chunk.blake3.as_str()).collect();
    let mut chunks = found.chunks.iter().map(|chunk| blake3::Hash::from(*chunk).to_hex());
    match chunks.find(|chunk| !named.contains(chunk.as_str())) {
        Some(chunk) => bail!("rows of backup {id} refer to chunk {chunk}, which is not in it"),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::create::send_for_test;
    use super::super::testing::{State, target};
    use super::*;

    async fn backed_up(dir: &Path) -> (Target, Manifest) {
        let (target, state) = (target(dir), State::new());
        let (manifest, _) = send_for_test(&target, state.checkpoint().path(), Some(State::CHUNK), 1_000).await.unwrap();
        (target, manifest)
    }

    #[tokio::test]
    async fn what_is_brought_is_what_was_sent() {
        let dir = tempfile::tempdir().unwrap();
        let (target, manifest) = backed_up(dir.path()).await;
        let (into, chunks) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut told = Vec::new();
        let mut progress = |done: u64, total: u64| told.push((done, total));
        let brought = download(&target, "latest", into.path(), chunks.path(), &mut progress).await.unwrap();
        assert_eq!(brought, manifest);
        assert_eq!(told.last(), Some(&(manifest.bytes(), manifest.bytes())));
        let names: BTreeSet<String> =
            fs::read_dir(into.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        let files: BTreeSet<String> = manifest.files.iter().map(|file| file.name.clone()).collect();
        assert_eq!(names, files, "the look has left nothing behind");
        let chunk = chunks.path().join(&manifest.chunks[0].blake3);
        assert_eq!(fs::read(chunk).unwrap(), State::CHUNK);
    }

    #[tokio::test]
    async fn damage_is_found_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let (target, manifest) = backed_up(dir.path()).await;
        let table = manifest.files.iter().find(|file| file.name.ends_with(".sst")).unwrap();
        let path = object_path(&table.blake3);
        let mut content = target.read(&path).await.unwrap().unwrap().to_vec();
        let good = content.clone();
        let middle = content.len() / 2;
        content[middle] ^= 1;
        target.write(&path, content.into()).await.unwrap();
        verify(&target, &manifest.id, true, &mut |_, _| {}).await.unwrap();
        let error = verify(&target, &manifest.id, false, &mut |_, _| {}).await.unwrap_err().to_string();
        assert!(error.contains(&table.blake3) && error.contains("damaged"), "{error}");
        target.write(&path, good[1..].to_vec().into()).await.unwrap();
        let error = verify(&target, &manifest.id, true, &mut |_, _| {}).await.unwrap_err().to_string();
        assert!(error.contains(&table.blake3), "{error}");
        target.remove(vec![path.clone()]).await.unwrap();
        let error = verify(&target, &manifest.id, false, &mut |_, _| {}).await.unwrap_err().to_string();
        assert!(error.contains("is not there"), "{error}");
        target.write(&path, good.into()).await.unwrap();
        verify(&target, &manifest.id, false, &mut |_, _| {}).await.unwrap();
    }

    #[tokio::test]
    async fn a_manifest_that_tells_of_another_state_is_found_out() {
        let dir = tempfile::tempdir().unwrap();
        let (target, manifest) = backed_up(dir.path()).await;
        let told = |manifest: &Manifest| serde_json::to_vec(manifest).unwrap();
        let others = [
            (Manifest { full_digest: "0".repeat(32), ..manifest.clone() }, "digest"),
            (Manifest { rev: manifest.rev + 1, ..manifest.clone() }, "stands at rev"),
            (Manifest { chunks: Vec::new(), ..manifest.clone() }, "refer to chunk"),
        ];
        for (other, reason) in others {
            target.write(&manifest::path_of(&other.id), told(&other).into()).await.unwrap();
            let error = verify(&target, "latest", false, &mut |_, _| {}).await.unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
        assert!(verify(&target, "19700101T000000Z-1", true, &mut |_, _| {}).await.is_err());
    }
}
