//! A place for backups: a directory that a node can reach (`file:///mnt/nas/quorate`), or a bucket of an S3-compatible
//! store (`s3://bucket/prefix`; credentials, region and endpoint from the environment, as `AWS_*`).
//!
//! Invariants:
//! - An object is there whole or not at all. In a directory it is also synced before it counts as written.
//! - A directory is never created: one that is missing may be a share that is not mounted, and the backup would lie on
//!   the node's own disk.
//!
//! Deliberately absent: what the objects mean.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, anyhow, bail, ensure};
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::aws::AmazonS3Builder;
use object_store::buffered::BufWriter;
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::{Error as StoreError, ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Files up to this size go in one piece, larger ones in pieces of it.
const PIECE_BYTES: usize = 8 << 20;
/// How much of a file is read at once.
const READ_BYTES: usize = 1 << 20;

/// A place for backups. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    url: String,
    store: Arc<dyn ObjectStore>,
    /// What every name in a bucket begins with; empty in a directory.
    prefix: String,
    /// The directory, if it is one.
    dir: Option<PathBuf>,
}

/// An object that is there.
#[derive(Debug)]
pub(super) struct Found {
    /// The last part of its name.
    pub(super) name: String,
    pub(super) bytes: u64,
}

/// What a URL says.
#[derive(Debug, PartialEq, Eq)]
enum Place<'u> {
    Dir(&'u Path),
    Bucket { name: &'u str, prefix: &'u str },
}

/// Whether this can be a target; the message says what can.
pub(crate) fn check_url(url: &str) -> Result<(), String> {
    place(url).map(|_| ())
}

fn place(url: &str) -> Result<Place<'_>, String> {
    let wrong = || {
        format!(
            "a target is file:///DIR or s3://BUCKET/PREFIX, the prefix of letters, digits and the characters ._-/; \
             got {url:?}"
        )
    };
    if let Some(path) = url.strip_prefix("file://") {
        return if path.starts_with('/') { Ok(Place::Dir(Path::new(path))) } else { Err(wrong()) };
    }
    let (name, prefix) = match url.strip_prefix("s3://").ok_or_else(wrong)? {
        bucket if !bucket.contains('/') => (bucket, ""),
        rest => rest.split_once('/').unwrap_or((rest, "")),
    };
    let prefix = prefix.trim_matches('/');
    let plain = |text: &str, more: &[u8]| text.bytes().all(|b| b.is_ascii_alphanumeric() || more.contains(&b));
    let no_steps = prefix.is_empty() || prefix.split('/').all(|part| !matches!(part, "" | "." | ".."));
    if name.is_empty() || !plain(name, b".-_") || !plain(prefix, b"._-/") || !no_steps {
        return Err(wrong());
    }
    Ok(Place::Bucket { name, prefix })
}

/// Where an object lies.
pub(super) fn object_path(hash: &str) -> String {
    format!("objects/{}/{hash}", hash.get(..2).unwrap_or_default())
}

impl Target {
    /// Finds the place. A bucket is not asked before the first call.
    pub(crate) fn open(url: &str) -> anyhow::Result<Self> {
        let url = url.to_owned();
        match place(&url).map_err(|message| anyhow!(message))? {
            Place::Dir(dir) => {
                let dir = dir.to_owned();
                let there = std::fs::metadata(&dir)
                    .with_context(|| format!("{}: create it, or mount what belongs there", dir.display()))?;
                ensure!(there.is_dir(), "{} is not a directory", dir.display());
                let store = LocalFileSystem::new_with_prefix(&dir)?.with_fsync(true);
                Ok(Target { url, store: Arc::new(store), prefix: String::new(), dir: Some(dir) })
            }
            Place::Bucket { name, prefix } => {
                // Whoever came first has chosen it for this process.
                let _chosen_already = rustls::crypto::ring::default_provider().install_default();
                let store = AmazonS3Builder::from_env().with_bucket_name(name).build()?;
                let prefix = prefix.to_owned();
                Ok(Target { url, store: Arc::new(store), prefix, dir: None })
            }
        }
    }

    /// As it was named.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// The content of an object; `None`: there is none.
    pub(super) async fn read(&self, path: &str) -> anyhow::Result<Option<Bytes>> {
        match self.stream(path).await? {
            Some(mut pieces) => {
                let mut content = Vec::new();
                while let Some(piece) = pieces.try_next().await? {
                    content.extend_from_slice(&piece);
                }
                Ok(Some(content.into()))
            }
            None => Ok(None),
        }
    }

    /// The same, piece by piece.
    pub(super) async fn stream(&self, path: &str) -> anyhow::Result<Option<BoxStream<'static, anyhow::Result<Bytes>>>> {
        self.check_there().await?;
        let what = self.shown(path);
        match self.store.get(&self.at(path)).await {
            Ok(found) => {
                let pieces = found.into_stream();
                Ok(Some(pieces.map(move |piece| piece.with_context(|| format!("cannot read {what}"))).boxed()))
            }
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {what}")),
        }
    }

    /// Writes an object, or replaces it.
    pub(super) async fn write(&self, path: &str, content: Bytes) -> anyhow::Result<()> {
        self.check_there().await?;
        let written = self.store.put(&self.at(path), content.into()).await;
        written.with_context(|| format!("cannot write {}", self.shown(path)))?;
        Ok(())
    }

    /// Writes an object unless there is one; says whether it did.
    pub(super) async fn create(&self, path: &str, content: Bytes) -> anyhow::Result<bool> {
        self.check_there().await?;
        match self.store.put_opts(&self.at(path), content.into(), PutOptions::from(PutMode::Create)).await {
            Ok(_) => Ok(true),
            Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => Ok(false),
            Err(error) => Err(error).with_context(|| format!("cannot write {}", self.shown(path))),
        }
    }

    /// Sends a file as the object that is named by its hash. A file that has another by now is not kept.
    pub(super) async fn send_file(&self, file: &Path, hash: &str) -> anyhow::Result<u64> {
        self.check_there().await?;
        let path = object_path(hash);
        let mut writer = BufWriter::with_capacity(self.store.clone(), self.at(&path), PIECE_BYTES);
        match copy(file, &mut writer, hash).await {
            Ok(bytes) => {
                writer.shutdown().await.with_context(|| format!("cannot write {}", self.shown(&path)))?;
                Ok(bytes)
            }
            Err(error) => {
                if let Err(error) = writer.abort().await {
                    tracing::debug!(%error, "what was sent of a file could not be taken back");
                }
                Err(error.context(format!("cannot write {}", self.shown(&path))))
            }
        }
    }

    /// What lies in a folder and below it.
    pub(super) async fn list(&self, folder: &str) -> anyhow::Result<Vec<Found>> {
        self.check_there().await?;
        let listed = self.store.list(Some(&self.at(folder)));
        let found = listed
            .map_ok(|meta| Found { name: meta.location.filename().unwrap_or_default().to_owned(), bytes: meta.size });
        found.try_collect::<Vec<_>>().await.with_context(|| format!("cannot list {}", self.shown(folder)))
    }

    /// Every object with its size, by hash.
    pub(super) async fn objects(&self) -> anyhow::Result<BTreeMap<String, u64>> {
        Ok(self.list("objects").await?.into_iter().map(|found| (found.name, found.bytes)).collect())
    }

    /// Removes objects; one that is gone already is no error.
    pub(super) async fn remove(&self, paths: Vec<String>) -> anyhow::Result<()> {
        self.check_there().await?;
        let paths: Vec<Result<ObjectPath, StoreError>> = paths.into_iter().map(|path| Ok(self.at(&path))).collect();
        let mut removed = self.store.delete_stream(stream::iter(paths).boxed());
        while let Some(one) = removed.next().await {
            match one {
                Ok(_) | Err(StoreError::NotFound { .. }) => {}
                Err(error) => return Err(error).with_context(|| format!("cannot remove from {}", self.url)),
            }
        }
        Ok(())
    }

    /// How people see an object.
    pub(super) fn shown(&self, path: &str) -> String {
        format!("{}/{path}", self.url.trim_end_matches('/'))
    }

    fn at(&self, path: &str) -> ObjectPath {
        if self.prefix.is_empty() { path.into() } else { format!("{}/{path}", self.prefix).into() }
    }

    /// The store would create a directory that is gone, and list it as empty.
    async fn check_there(&self) -> anyhow::Result<()> {
        let Some(dir) = &self.dir else { return Ok(()) };
        match tokio::fs::metadata(dir).await {
            Ok(there) if there.is_dir() => Ok(()),
            Ok(_) => bail!("{} is not a directory any more", dir.display()),
            Err(error) => Err(error).with_context(|| format!("{} cannot be reached any more", dir.display())),
        }
    }
}

/// Reads the file into the writer, and checks on the way that it is what it is named by.
async fn copy(file: &Path, writer: &mut BufWriter, hash: &str) -> anyhow::Result<u64> {
    let mut source = tokio::fs::File::open(file).await?;
    let (mut hasher, mut bytes) = (blake3::Hasher::new(), 0);
    loop {
        let mut piece = Vec::with_capacity(READ_BYTES);
        if (&mut source).take(READ_BYTES as u64).read_to_end(&mut piece).await? == 0 {
            break;
        }
        hasher.update(&piece);
        bytes += piece.len() as u64;
        writer.put(piece.into()).await?;
    }
    let found = hasher.finalize().to_hex();
    ensure!(found.as_str() == hash, "{} has changed while it was read: the disk is not to be trusted", file.display());
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_a_directory_or_a_bucket() {
        assert_eq!(place("file:///mnt/nas"), Ok(Place::Dir(Path::new("/mnt/nas"))));
        assert_eq!(place("s3://bucket"), Ok(Place::Bucket { name: "bucket", prefix: "" }));
        assert_eq!(place("s3://bucket/a/b/"), Ok(Place::Bucket { name: "bucket", prefix: "a/b" }));
        for wrong in ["", "/mnt/nas", "file://nas/x", "s3://", "s3:///x", "s3://b/a//b", "s3://b/../c", "gs://b/x"] {
            assert!(check_url(wrong).unwrap_err().contains("s3://BUCKET"), "{wrong}");
        }
    }

    #[tokio::test]
    async fn what_is_written_is_read_listed_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let target = Target::open(&format!("file://{}", dir.path().display())).unwrap();
        assert!(target.read("backups/a.json").await.unwrap().is_none());
        assert!(target.list("backups").await.unwrap().is_empty());
        assert!(target.create("backups/a.json", Bytes::from_static(b"one")).await.unwrap());
        assert!(!target.create("backups/a.json", Bytes::from_static(b"two")).await.unwrap());
        assert_eq!(target.read("backups/a.json").await.unwrap().unwrap(), b"one".as_slice());
        let listed = target.list("backups").await.unwrap();
        assert_eq!((listed.len(), listed[0].name.as_str(), listed[0].bytes), (1, "a.json", 3));
        let names = ["backups/a.json", "backups/never.json"].map(str::to_owned);
        target.remove(names.into()).await.unwrap();
        assert!(target.list("backups").await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_file_is_sent_only_as_what_it_is_named_by() {
        let dir = tempfile::tempdir().unwrap();
        let target = Target::open(&format!("file://{}", dir.path().display())).unwrap();
        let (outside, content) = (tempfile::tempdir().unwrap(), vec![7_u8; PIECE_BYTES + READ_BYTES + 1]);
        let file = outside.path().join("file");
        std::fs::write(&file, &content).unwrap();
        let other = blake3::hash(b"something else").to_hex();
        let error = target.send_file(&file, &other).await.unwrap_err();
        assert!(format!("{error:#}").contains("has changed"), "{error:#}");
        assert!(target.objects().await.unwrap().is_empty());
        let hash = blake3::hash(&content).to_hex();
        assert_eq!(target.send_file(&file, &hash).await.unwrap(), content.len() as u64);
        assert_eq!(target.read(&object_path(&hash)).await.unwrap().unwrap(), content);
    }

    #[tokio::test]
    async fn a_directory_that_is_gone_is_an_error_and_does_not_come_back() {
        let outer = tempfile::tempdir().unwrap();
        let dir = outer.path().join("share");
        let url = format!("file://{}", dir.display());
        assert!(format!("{:#}", Target::open(&url).unwrap_err()).contains("create it, or mount"));
        std::fs::create_dir(&dir).unwrap();
        let target = Target::open(&url).unwrap();
        std::fs::remove_dir(&dir).unwrap();
        assert!(target.write("LOCK.json", Bytes::new()).await.is_err());
        assert!(target.list("backups").await.is_err());
        assert!(!dir.exists());
    }
}
