//! The data directory: whose it is, and that nobody else uses it.
//!
//! `IDENTITY.toml` binds the directory to one node of one cluster and to a format. Opening another's data is refused:
//! a node that answers to the wrong id can vote twice. `LOCK` keeps a second process out, a node as well as a command that
//! works on the directory while no node runs ([`crate::offline`]). A directory that such a command has left unfinished says
//! so, and no node starts on it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use fs4::FileExt;
use quorate_raft::storage::dir::{sync_dir, write_atomically};
use quorate_raft::storage::found;
use serde::{Deserialize, Serialize};

/// The layout of a data directory that this binary writes, and the newest that it opens.
const FORMAT_VERSION: u32 = 1;

/// Binds the directory to its node.
pub(crate) const IDENTITY: &str = "IDENTITY.toml";
/// Held by whoever uses the directory.
pub(crate) const LOCK: &str = "LOCK";

/// What a command is in the middle of doing to a directory, as the file that says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unfinished {
    /// A backup is being brought here.
    Restore,
    /// What is damaged is being moved aside.
    Rebuild,
    /// It was found to differ from what its node had promised.
    Fenced,
}

impl Unfinished {
    const ALL: [Unfinished; 3] = [Unfinished::Restore, Unfinished::Rebuild, Unfinished::Fenced];

    /// The name of that file.
    pub(crate) fn file(self) -> &'static str {
        match self {
            Unfinished::Restore => "RESTORING",
            Unfinished::Rebuild => "REBUILDING",
            Unfinished::Fenced => "FENCED",
        }
    }

    fn what_to_do(self) -> &'static str {
        match self {
            Unfinished::Restore => "a restore into it was cut off: remove the directory and restore again",
            Unfinished::Rebuild => "its rebuild was cut off: run `quorate cluster rebuild` again",
            Unfinished::Fenced => "its data is not what the others rely on: run `quorate cluster rebuild`",
        }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Identity {
    cluster_id: String,
    node_id: u64,
    format_version: u32,
    /// Has been a member that knows its cluster's log. Until then it neither votes nor campaigns in a cluster that
    /// has begun: a wiped disk has forgotten the votes it gave.
    joined: bool,
    /// Whose word counts in its cluster, as it last knew: what says whether anybody else has its data once it cannot be read
    /// any more.
    #[serde(default)]
    voters: BTreeSet<u64>,
}

/// An open data directory. Held as long as the node runs.
#[derive(Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
    identity: Identity,
    _lock: File,
}

impl DataDir {
    /// Opens or creates the directory for this node, or says why it is not this node's to open.
    pub(crate) fn open(path: &Path, cluster_id: &str, node_id: u64) -> anyhow::Result<Self> {
        let shown = path.display();
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .with_context(|| format!("data_dir {shown} cannot be created"))?;
        let lock = lock(path)?;
        found::finish(path).with_context(|| format!("data_dir {shown} cannot be made whole after a crash"))?;
        check_finished(path, &Unfinished::ALL)?;
        let identity_path = path.join(IDENTITY);
        let identity = match fs::read_to_string(&identity_path) {
            Ok(text) => check(path, &text, cluster_id, node_id)?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let identity = Identity {
                    cluster_id: cluster_id.to_owned(),
                    node_id,
                    format_version: FORMAT_VERSION,
                    joined: false,
                    voters: BTreeSet::new(),
                };
                write(path, &identity)?;
                identity
            }
            Err(e) => return Err(e).with_context(|| format!("{} cannot be read", identity_path.display())),
        };
        sync_dir(path)?;
        Ok(DataDir { path: path.to_owned(), identity, _lock: lock })
    }

    /// Opens a node's directory, whoever's it is, to work on it while the node does not run. A rebuild that was cut off may
    /// go on.
    pub(crate) fn open_offline(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let identity_path = path.join(IDENTITY);
        if !identity_path.exists() && !path.join("founded").exists() {
            bail!("{shown} is not the data directory of a node: it has no {IDENTITY}");
        }
        let lock = lock(path)?;
        found::finish(path).with_context(|| format!("{shown} cannot be made whole after a crash"))?;
        check_finished(path, &[Unfinished::Restore])?;
        let text = fs::read_to_string(&identity_path)
            .with_context(|| format!("{} cannot be read", identity_path.display()))?;
        Ok(DataDir { path: path.to_owned(), identity: parse(path, &text)?, _lock: lock })
    }

    /// Takes a directory that holds nothing, to fill it. Until [`DataDir::finish`] no node starts on it.
    pub(crate) fn create(path: &Path, unfinished: Unfinished) -> anyhow::Result<File> {
        let shown = path.display();
        check_finished(path, &Unfinished::ALL)?;
        if fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some()) {
            bail!("{shown} is not empty: name a directory that does not exist yet");
        }
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .with_context(|| format!("{shown} cannot be created"))?;
        let lock = lock(path)?;
        Self::begin(path, unfinished)?;
        Ok(lock)
    }

    /// Says that the directory is not to be used as it is.
    pub(crate) fn begin(path: &Path, unfinished: Unfinished) -> anyhow::Result<()> {
        write_atomically(&path.join(unfinished.file()), unfinished.what_to_do().as_bytes())
            .with_context(|| format!("{} cannot be written to", path.display()))
    }

    /// Says that it may be used again.
    pub(crate) fn finish(path: &Path, unfinished: Unfinished) -> anyhow::Result<()> {
        let file = path.join(unfinished.file());
        fs::remove_file(&file).with_context(|| format!("{} cannot be removed", file.display()))?;
        Ok(sync_dir(path)?)
    }

    /// The name of the cluster that it belongs to.
    pub(crate) fn cluster_id(&self) -> &str {
        &self.identity.cluster_id
    }

    /// The node that it belongs to.
    pub(crate) fn node_id(&self) -> u64 {
        self.identity.node_id
    }

    /// Where it lies.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether this node has been a member that knows its cluster's log.
    pub(crate) fn joined(&self) -> bool {
        self.identity.joined
    }

    /// Records that it has.
    pub(crate) fn set_joined(&mut self) -> anyhow::Result<()> {
        self.identity.joined = true;
        write(&self.path, &self.identity)
    }

    /// Records who votes, if that is news.
    pub(crate) fn set_voters(&mut self, voters: &BTreeSet<u64>) -> anyhow::Result<()> {
        if self.identity.voters == *voters {
            return Ok(());
        }
        self.identity.voters.clone_from(voters);
        write(&self.path, &self.identity)
    }

    /// Who votes, as it last knew; empty: it never did.
    pub(crate) fn voters(&self) -> &BTreeSet<u64> {
        &self.identity.voters
    }

    /// Records that what it knew is gone.
    pub(crate) fn forget_joined(&mut self) -> anyhow::Result<()> {
        self.identity.joined = false;
        write(&self.path, &self.identity)
    }
}

/// The content of [`IDENTITY`] for a node that knows its cluster's log.
pub(crate) fn identity_of(cluster_id: &str, node_id: u64) -> anyhow::Result<String> {
    text(&Identity {
        cluster_id: cluster_id.to_owned(),
        node_id,
        format_version: FORMAT_VERSION,
        joined: true,
        voters: BTreeSet::from([node_id]),
    })
}

fn lock(path: &Path) -> anyhow::Result<File> {
    let shown = path.display();
    let lock = File::create(path.join(LOCK)).with_context(|| format!("data_dir {shown} cannot be written to"))?;
    if FileExt::try_lock(&lock).is_err() {
        bail!("data_dir {shown} is in use by another process");
    }
    Ok(lock)
}

fn check_finished(path: &Path, unfinished: &[Unfinished]) -> anyhow::Result<()> {
    match unfinished.iter().find(|unfinished| path.join(unfinished.file()).exists()) {
        Some(unfinished) => bail!("data_dir {} cannot be used: {}", path.display(), unfinished.what_to_do()),
        None => Ok(()),
    }
}

fn text(identity: &Identity) -> anyhow::Result<String> {
    Ok(format!("# Binds this directory to one node of one cluster. Do not edit.\n{}", toml::to_string(identity)?))
}

fn write(path: &Path, identity: &Identity) -> anyhow::Result<()> {
    write_atomically(&path.join(IDENTITY), text(identity)?.as_bytes())
        .with_context(|| format!("data_dir {} cannot be written to", path.display()))
}

fn parse(path: &Path, text: &str) -> anyhow::Result<Identity> {
    let shown = path.display();
    let identity: Identity = toml::from_str(text).with_context(|| format!("{shown}/IDENTITY.toml is damaged"))?;
    if identity.format_version > FORMAT_VERSION {
        bail!(
            "data_dir {shown} has format {}, newer than this binary knows ({FORMAT_VERSION}): use the newer binary",
            identity.format_version
        );
    }
    Ok(identity)
}

fn check(path: &Path, text: &str, cluster_id: &str, node_id: u64) -> anyhow::Result<Identity> {
    let shown = path.display();
    let identity = parse(path, text)?;
    if identity.cluster_id != cluster_id {
        bail!("data_dir {shown} belongs to cluster {:?}, not {cluster_id:?}", identity.cluster_id);
    }
    if identity.node_id != node_id {
        bail!("data_dir {shown} belongs to node {}, not {node_id}", identity.node_id);
    }
    Ok(identity)
}
