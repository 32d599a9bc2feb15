//! What a backup holds. It exists once its manifest does.
//!
//! Invariant: a manifest is believed only whole: of a version that is known, under its own name, every hash a hash and
//! every file name plain. Whoever removes what no manifest names must not guess.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, bail, ensure};
use chrono::{DateTime, Utc};
use futures::FutureExt;
use serde::{Deserialize, Serialize};

use super::target::Target;
use super::{Job, run_all};

/// The version that this binary writes, and the highest that it reads.
pub(super) const FORMAT_VERSION: u32 = 1;

/// What stands for the newest one wherever a backup is named.
pub(crate) const LATEST: &str = "latest";

/// A backup.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) format_version: u32,
    /// When and at which rev: names sort by time.
    pub(crate) id: String,
    pub(crate) cluster_id: String,
    /// Everything up to this rev is in it.
    pub(crate) rev: u64,
    pub(crate) applied_term: u64,
    pub(crate) applied_index: u64,
    /// By the cluster's clock.
    pub(crate) taken_at_ms: u64,
    pub(crate) quorate_version: String,
    pub(crate) feature_level: u32,
    /// Of all rows, as `quorate cluster status --digest` shows it.
    pub(crate) full_digest: String,
    pub(crate) files: Vec<StateFile>,
    pub(crate) chunks: Vec<Chunk>,
}

/// A file of the state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StateFile {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    pub(crate) blake3: String,
}

/// A chunk of a blob, as its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Chunk {
    pub(crate) blake3: String,
    pub(crate) bytes: u64,
}

impl Manifest {
    /// Every object that it names, with its size, each once.
    pub(crate) fn objects(&self) -> BTreeMap<&str, u64> {
        let files = self.files.iter().map(|file| (file.blake3.as_str(), file.bytes));
        files.chain(self.chunks.iter().map(|chunk| (chunk.blake3.as_str(), chunk.bytes))).collect()
    }

    /// The size of all of it.
    pub(crate) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).chain(self.chunks.iter().map(|chunk| chunk.bytes)).sum()
    }

    fn check(&self, id: &str) -> anyhow::Result<()> {
        ensure!(self.id == id, "it calls itself {:?}", self.id);
        if let Some(hash) = self.objects().into_keys().find(|hash| !is_hash(hash)) {
            bail!("{hash:?} is not a hash");
        }
        match self.files.iter().find(|file| !is_plain(&file.name)) {
            Some(file) => bail!("{:?} is not the name of a file of the state", file.name),
            None => Ok(()),
        }
    }
}

fn is_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// A name that stays in the directory that it is written to.
fn is_plain(name: &str) -> bool {
    let known = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    !name.is_empty() && !name.starts_with('.') && name.bytes().all(known)
}

/// `20261121T183000Z-000000004711`
pub(super) fn id_of(taken_at_ms: u64, rev: u64) -> String {
    let at = i64::try_from(taken_at_ms).ok().and_then(DateTime::<Utc>::from_timestamp_millis).unwrap_or_default();
    format!("{}-{rev:012}", at.format("%Y%m%dT%H%M%SZ"))
}

/// Where a manifest lies.
pub(super) fn path_of(id: &str) -> String {
    format!("backups/{id}.json")
}

fn parse(id: &str, content: &[u8]) -> anyhow::Result<Manifest> {
    #[derive(Deserialize)]
    struct Version {
        format_version: u32,
    }
    let Version { format_version } = serde_json::from_slice(content)?;
    ensure!(
        (1..=FORMAT_VERSION).contains(&format_version),
        "it has format {format_version}, this binary knows up to {FORMAT_VERSION}: use the newer binary"
    );
    let manifest: Manifest = serde_json::from_slice(content)?;
    manifest.check(id)?;
    Ok(manifest)
}

/// One backup, by its name or as the newest.
pub(crate) async fn load(target: &Target, id: &str) -> anyhow::Result<Manifest> {
    match id {
        LATEST => newest(target).await,
        id => named(target, id).await,
    }
}

async fn named(target: &Target, id: &str) -> anyhow::Result<Manifest> {
    ensure!(is_plain(id), "{id:?} is not the name of a backup: see `quorate backup list`");
    let path = path_of(id);
    let Some(content) = target.read(&path).await? else { bail!("there is no backup {id} in {}", target.url()) };
    parse(id, &content).with_context(|| format!("{} is not a manifest", target.shown(&path)))
}

/// The newest one, if all are of one cluster: a target may be shared, and to restore another's is no small mistake.
async fn newest(target: &Target) -> anyhow::Result<Manifest> {
    let mut all = list(target).await?;
    let clusters: BTreeSet<&str> = all.iter().map(|manifest| manifest.cluster_id.as_str()).collect();
    ensure!(
        clusters.len() <= 1,
        "{} has backups of several clusters, {}: name the one you mean, see `quorate backup list`",
        target.url(),
        clusters.iter().copied().collect::<Vec<_>>().join(", ")
    );
    all.pop().with_context(|| format!("there is no backup in {}", target.url()))
}

/// The names of all backups, oldest first.
async fn names(target: &Target) -> anyhow::Result<Vec<String>> {
    let found = target.list("backups").await?;
    let mut names: Vec<String> =
        found.iter().filter_map(|found| found.name.strip_suffix(".json")).map(str::to_owned).collect();
    names.sort();
    Ok(names)
}

/// All backups, oldest first. One that cannot be read fails the whole: a list with a gap says that it is not there.
pub(crate) async fn list(target: &Target) -> anyhow::Result<Vec<Manifest>> {
    let mut manifests = Vec::new();
    let source = target.clone();
    let loads = names(target).await?.into_iter().map(move |id| -> Job<Manifest> {
        let target = source.clone();
        async move { named(&target, &id).await }.boxed()
    });
    run_all(loads, |manifest| manifests.push(manifest)).await?;
    manifests.sort_by(|a: &Manifest, b: &Manifest| a.id.cmp(&b.id));
    Ok(manifests)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let blake3 = blake3::hash(b"table").to_hex().to_string();
        Manifest {
            format_version: FORMAT_VERSION,
            id: id_of(1_795_285_800_000, 4_711),
            cluster_id: "c".to_owned(),
            rev: 4_711,
            applied_term: 1,
            applied_index: 9,
            taken_at_ms: 1_795_285_800_000,
            quorate_version: "0.1.0".to_owned(),
            feature_level: 2,
            full_digest: String::new(),
            files: vec![StateFile { name: "000012.sst".to_owned(), bytes: 5, blake3 }],
            chunks: Vec::new(),
        }
    }

    fn refusal(id: &str, manifest: &Manifest) -> String {
        format!("{:#}", parse(id, &serde_json::to_vec(manifest).unwrap()).unwrap_err())
    }

    #[test]
    fn a_name_says_when_and_at_which_rev() {
        assert_eq!(id_of(1_795_285_800_000, 4_711), "20261121T183000Z-000000004711");
        assert!(id_of(999_000, u64::MAX) < id_of(1_000_000, 0), "names sort by time");
    }

    #[test]
    fn a_manifest_is_believed_only_whole() {
        let good = manifest();
        assert_eq!(parse(&good.id, &serde_json::to_vec(&good).unwrap()).unwrap(), good);
        assert!(refusal("other", &good).contains("calls itself"));
        let newer = Manifest { format_version: FORMAT_VERSION + 1, ..good.clone() };
        assert!(refusal(&good.id, &newer).contains("newer binary"));
        for name in ["../CURRENT", "/etc/passwd", "", "a/b", "..", ".hidden"] {
            let file = StateFile { name: name.to_owned(), ..good.files[0].clone() };
            let bad = Manifest { files: vec![file], ..good.clone() };
            assert!(refusal(&good.id, &bad).contains("name of a file"), "{name}");
        }
        let chunk = Chunk { blake3: "../../LOCK.json".to_owned(), bytes: 1 };
        assert!(refusal(&good.id, &Manifest { chunks: vec![chunk], ..good.clone() }).contains("not a hash"));
    }
}
