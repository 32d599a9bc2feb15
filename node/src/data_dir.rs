//! The data directory: whose it is, and that nobody else uses it.
//!
//! `IDENTITY.toml` binds the directory to one node of one cluster and to a format. Opening another's data is refused:
//! a node that answers to the wrong id can vote twice. `LOCK` keeps a second process out.

use std::fs::{self, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use fs4::FileExt;
use quorate_raft::storage::dir::{sync_dir, write_atomically};
use serde::{Deserialize, Serialize};

/// The layout of a data directory that this binary writes, and the newest that it opens.
const FORMAT_VERSION: u32 = 1;

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Identity {
    cluster_id: String,
    node_id: u64,
    format_version: u32,
    /// Has been a member that knows its cluster's log. Until then it neither votes nor campaigns in a cluster that
    /// has begun: a wiped disk has forgotten the votes it gave.
    joined: bool,
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
        let lock = File::create(path.join("LOCK")).with_context(|| format!("data_dir {shown} cannot be written to"))?;
        if FileExt::try_lock(&lock).is_err() {
            bail!("data_dir {shown} is in use by another process");
        }
        let identity_path = path.join("IDENTITY.toml");
        let identity = match fs::read_to_string(&identity_path) {
            Ok(text) => check(path, &text, cluster_id, node_id)?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let identity = Identity {
                    cluster_id: cluster_id.to_owned(),
                    node_id,
                    format_version: FORMAT_VERSION,
                    joined: false,
                };
                write(path, &identity)?;
                identity
            }
            Err(e) => return Err(e).with_context(|| format!("{} cannot be read", identity_path.display())),
        };
        sync_dir(path)?;
        Ok(DataDir { path: path.to_owned(), identity, _lock: lock })
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
}

fn write(path: &Path, identity: &Identity) -> anyhow::Result<()> {
    let text =
        format!("# Binds this directory to one node of one cluster. Do not edit.\n{}", toml::to_string(identity)?);
    write_atomically(&path.join("IDENTITY.toml"), text.as_bytes())
        .with_context(|| format!("data_dir {} cannot be written to", path.display()))
}

fn check(path: &Path, text: &str, cluster_id: &str, node_id: u64) -> anyhow::Result<Identity> {
    let shown = path.display();
    let identity: Identity = toml::from_str(text).with_context(|| format!("{shown}/IDENTITY.toml is damaged"))?;
    if identity.format_version > FORMAT_VERSION {
        bail!(
            "data_dir {shown} has format {}, newer than this binary knows ({FORMAT_VERSION}): use the newer binary",
            identity.format_version
        );
    }
    if identity.cluster_id != cluster_id {
        bail!("data_dir {shown} belongs to cluster {:?}, not {cluster_id:?}", identity.cluster_id);
    }
    if identity.node_id != node_id {
        bail!("data_dir {shown} belongs to node {}, not {node_id}", identity.node_id);
    }
    Ok(identity)
}
