//! What is done to a data directory while no node runs on it: making a node that was alone the first of a cluster, making
//! one from a backup, moving aside what is damaged. And what a start says of a directory that does not open.
//!
//! Every command here takes the directory's lock. A crash leaves the directory as it was, as it is to be, or marked so that
//! no node starts on it.
//!
//! Deliberately absent: repairing. A damaged log may have lost a vote, or entries that others count on; what is left of it
//! proves nothing. A node is made anew from the others, a cluster from a backup.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail, ensure};
use quorate_raft::consensus::log_storage::LogStorage;
use quorate_raft::consensus::wire;
use quorate_raft::error::Fatal;
use quorate_raft::replica::Replica;
use quorate_raft::storage::dir::sync_dir;
use quorate_raft::storage::found::{Founded, Founding, found};
use quorate_raft::storage::snapshot::{Layout, read_head};
use quorate_raft::storage::state_db::{SMALL_BUFFER_BYTES, StateDb};

use crate::backup::{self, Manifest, Progress, Target};
use crate::blobs;
use crate::data_dir::{self, DataDir, IDENTITY, LOCK, Unfinished};

/// What a cluster is made with.
pub(crate) struct NewCluster {
    pub(crate) cluster_id: String,
    pub(crate) node_id: u64,
    /// Where its first node is reached, `host:port`.
    pub(crate) address: String,
}

impl NewCluster {
    fn check(&self) -> anyhow::Result<()> {
        let NewCluster { cluster_id, node_id, address } = self;
        let name_fits = (1..=64).contains(&cluster_id.len())
            && cluster_id.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        ensure!(name_fits, "--cluster-id must be 1 to 64 letters, digits or . _ -; got {cluster_id:?}");
        ensure!(*node_id > 0, "--node-id must be 1 or more");
        let reachable = address.rsplit_once(':').is_some_and(|(host, port)| {
            !host.is_empty() && !["0.0.0.0", "[::]"].contains(&host) && port.parse::<u16>().is_ok_and(|port| port > 0)
        });
        ensure!(reachable, "--advertise must be the host:port at which other nodes reach this one; got {address:?}");
        Ok(())
    }

    fn founding(&self, bump_rev: u64, drop_backup_policy: bool) -> anyhow::Result<Founding> {
        let identity = data_dir::identity_of(&self.cluster_id, self.node_id)?;
        Ok(Founding {
            cluster_id: self.cluster_id.clone(),
            node_id: self.node_id,
            address: self.address.clone(),
            bump_rev,
            drop_backup_policy,
            files: vec![(IDENTITY.to_owned(), identity.into_bytes())],
        })
    }
}

/// Makes the directory of a node that was alone the first node of a cluster. Everything that it acknowledged stays: for a
/// cluster of one an entry is committed once it is durable. May be repeated.
pub(crate) fn adopt(path: &Path, cluster_id: &str, address: &str) -> anyhow::Result<(u64, Founded)> {
    let dir = DataDir::open_offline(path)?;
    let node_id = dir.node_id();
    let new = NewCluster { cluster_id: cluster_id.to_owned(), node_id, address: address.to_owned() };
    new.check()?;
    replay(path, node_id)?;
    // Nothing goes on elsewhere: its revs are those of the new cluster, and its policy is what the operator wants.
    let founded = found(path, &new.founding(0, false)?).context("the cluster could not be founded")?;
    Ok((node_id, founded))
}

/// Applies what the log has and the state has not, and closes both.
fn replay(path: &Path, node_id: u64) -> anyhow::Result<()> {
    let unheard = tokio::sync::mpsc::unbounded_channel().0;
    let log = LogStorage::open(&path.join("log"), SMALL_BUFFER_BYTES).map_err(|fatal| explain(path, "log", &fatal))?;
    let replica = Replica::open(path, SMALL_BUFFER_BYTES, unheard).map_err(|fatal| explain(path, "state", &fatal))?;
    log.check(&replica).map_err(|fatal| explain(path, "log", &fatal))?;
    let replayed = log.replay_alone(&replica, node_id).map_err(|fatal| explain(path, "log", &fatal))?;
    ensure!(
        replayed.is_some(),
        "{} belongs to a cluster in which others vote: let new nodes into that with `quorate cluster add`",
        path.display()
    );
    Ok(replica.flush()?)
}

/// Makes the first node of a new cluster from a backup, in a directory that does not exist yet.
pub(crate) async fn restore(
    target: &Target,
    id: &str,
    path: &Path,
    new: &NewCluster,
    bump_rev: u64,
    progress: &mut Progress<'_>,
) -> anyhow::Result<(Manifest, Founded)> {
    new.check()?;
    // It is named here, so that a newer one that comes meanwhile does not take its place.
    let chosen = backup::load(target, id).await?;
    ensure!(
        chosen.cluster_id != new.cluster_id,
        "--cluster-id {:?} is the backup's own: two clusters of one name would take each other's nodes for theirs",
        new.cluster_id
    );
    let _lock = DataDir::create(path, Unfinished::Restore)?;
    let generation = Layout::open(path)?.current_generation()?;
    let chunks = path.join("incoming-chunks");
    fs::create_dir_all(&generation)?;
    fs::create_dir_all(&chunks)?;
    // What comes down is, row by row, what the cluster held: that is checked before this returns.
    let manifest = backup::download(target, &chosen.id, &generation, &chunks, progress).await?;
    let (path, founding) = (path.to_owned(), new.founding(bump_rev, true)?);
    tokio::task::spawn_blocking(move || -> anyhow::Result<_> {
        blobs::import(&path, &chunks).context("the chunks of blobs could not be put in their place")?;
        fs::remove_dir_all(&chunks)?;
        let founded = found(&path, &founding).context("the cluster could not be founded")?;
        DataDir::finish(&path, Unfinished::Restore)?;
        Ok((manifest, founded))
    })
    .await?
}

/// Moves everything of a node but its identity aside, so that its next start rejoins the cluster from nothing. Says where
/// it was moved to.
pub(crate) fn rebuild(path: &Path, others_have_it: bool) -> anyhow::Result<PathBuf> {
    let mut dir = DataDir::open_offline(path)?;
    // The directory's own note is written at every change; the state on disk may be from before it.
    let noted = Some(dir.voters().clone()).filter(|voters| !voters.is_empty());
    match noted.unwrap_or_else(|| voters(path).unwrap_or_default()) {
        voters if voters == BTreeSet::from([dir.node_id()]) && !others_have_it => bail!(
            "node {} is the only voter of cluster {:?}: nobody else has its data. Restore a backup: `quorate restore`",
            dir.node_id(),
            dir.cluster_id()
        ),
        voters if !voters.is_empty() => {}
        _ if others_have_it => {}
        _ => bail!(
            "{} does not say any more who else belongs to cluster {:?}. If others run that have its data, repeat this with \
             --others-have-it",
            path.display(),
            dir.cluster_id()
        ),
    }
    DataDir::begin(path, Unfinished::Rebuild)?;
    dir.forget_joined()?;
    let aside = new_aside(path)?;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name();
        let stays = name == IDENTITY || name == LOCK || name == Unfinished::Rebuild.file();
        if !stays && !name.to_string_lossy().starts_with("damaged-") {
            fs::rename(entry.path(), aside.join(&name))?;
        }
    }
    sync_dir(&aside)?;
    sync_dir(path)?;
    DataDir::finish(path, Unfinished::Rebuild)?;
    Ok(aside)
}

/// The voters as the state last knew them. Nothing is changed by looking.
fn voters(path: &Path) -> anyhow::Result<BTreeSet<u64>> {
    let generation = fs::read_to_string(path.join("state").join("CURRENT"))?;
    let head = read_head(&StateDb::open_read_only(&path.join("state").join(generation.trim()))?)?;
    Ok(wire::decode_stored_membership(head.membership)?.membership().voter_ids().collect())
}

fn new_aside(path: &Path) -> anyhow::Result<PathBuf> {
    for number in 1_u32.. {
        let aside = path.join(format!("damaged-{number}"));
        match fs::create_dir(&aside) {
            Ok(()) => return Ok(aside),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).with_context(|| format!("{} cannot be created", aside.display())),
        }
    }
    bail!("{} is full of damaged data", path.display())
}

/// Why a part of a data directory does not open, and what to do about it.
pub(crate) fn explain(path: &Path, part: &str, fatal: &Fatal) -> anyhow::Error {
    let shown = path.display();
    let advice = match trouble(fatal) {
        Trouble::Full => format!("the disk is full: free some space and start again; what is in {shown} is sound"),
        Trouble::Denied => format!("the user that runs this may not read and write {shown}: give it the right to"),
        Trouble::InUse => "another process has it open: stop that one first".to_owned(),
        Trouble::Damaged => format!(
            "this node's data is damaged. If the others have a majority, make it anew from them: `quorate cluster rebuild \
             --data-dir {shown}`, then start it again; a cluster of one is restored from a backup: `quorate restore`"
        ),
        Trouble::Unknown => return anyhow!("the {part} in {shown} does not open: {fatal}"),
    };
    anyhow!("the {part} in {shown} does not open: {fatal}: {advice}")
}

#[derive(Debug, PartialEq, Eq)]
enum Trouble {
    Full,
    Denied,
    InUse,
    Damaged,
    Unknown,
}

/// RocksDB tells its errors apart by their text only.
fn trouble(fatal: &Fatal) -> Trouble {
    let text = match fatal {
        Fatal::Storage(text) => text,
        Fatal::Corrupt(_) => return Trouble::Damaged,
        Fatal::UnknownCommand(_) | Fatal::TooOld { .. } => return Trouble::Unknown,
    };
    let says = |parts: &[&str]| parts.iter().any(|part| text.contains(part));
    if says(&["No space left", "no space", "quota exceeded", "NoSpace"]) {
        Trouble::Full
    } else if says(&["Permission denied", "Operation not permitted", "Read-only file system"]) {
        Trouble::Denied
    } else if says(&["lock hold by current process", "While lock file"]) {
        Trouble::InUse
    } else if says(&["Corruption", "Input/output error", "No such file", "does not exist", "checksum"]) {
        Trouble::Damaged
    } else {
        Trouble::Unknown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn troubles_are_told_apart() {
        let storage = |text: &str| trouble(&Fatal::Storage(text.to_owned()));
        assert_eq!(storage("Corruption: checksum mismatch"), Trouble::Damaged);
        assert_eq!(
            storage("IO error: No such file or directory: While open a file: /d/log/000009.log"),
            Trouble::Damaged
        );
        assert_eq!(storage("IO error: No space left on device: While appending to file"), Trouble::Full);
        assert_eq!(storage("IO error: While open a file for random read: x.sst: Permission denied"), Trouble::Denied);
        assert_eq!(storage("IO error: While lock file: LOCK: Resource temporarily unavailable"), Trouble::InUse);
        assert_eq!(storage("something else"), Trouble::Unknown);
        assert_eq!(trouble(&Fatal::TooOld { level: 9, understood: 1 }), Trouble::Unknown, "a newer binary wrote it");
        let advice = explain(Path::new("/d"), "log", &Fatal::Corrupt("a hole".to_owned())).to_string();
        assert!(advice.contains("quorate cluster rebuild --data-dir /d"), "{advice}");
    }

    #[test]
    fn a_rebuild_leaves_the_identity_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        DataDir::open(path, "c", 2).unwrap().set_joined().unwrap();
        fs::create_dir_all(path.join("log")).unwrap();
        fs::write(path.join("log").join("CURRENT"), "nonsense").unwrap();
        assert!(rebuild(path, false).is_err(), "it does not say who else there is");
        assert!(path.join("log").exists() && DataDir::open(path, "c", 2).unwrap().joined());
        let aside = rebuild(path, true).unwrap();
        assert!(aside.join("log").join("CURRENT").exists() && !path.join("log").exists());
        assert!(!DataDir::open(path, "c", 2).unwrap().joined());
        assert_ne!(rebuild(path, true).unwrap(), aside, "what was moved aside before stays");
    }

    #[test]
    fn a_directory_in_use_or_half_done_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node");
        let lock = DataDir::create(&path, Unfinished::Restore).unwrap();
        drop(lock);
        let refused = DataDir::open(&path, "c", 1).unwrap_err().to_string();
        assert!(refused.contains("restore again"), "{refused}");
        assert!(DataDir::create(&path, Unfinished::Restore).is_err());
        DataDir::finish(&path, Unfinished::Restore).unwrap();
        let held = DataDir::open(&path, "c", 1).unwrap();
        assert!(rebuild(&path, true).unwrap_err().to_string().contains("in use"));
        drop(held);
        assert!(rebuild(&path, true).is_ok());
    }
}
