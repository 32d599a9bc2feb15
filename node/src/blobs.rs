//! Blobs on this node: what is too large for the log, in chunks beside it.
//!
//! ```text
//!   upload ───── a stream, cut into chunks and named by their hashes
//!   replicate ── a chunk onto a majority; whether a majority has what is about to be referred to
//!   fetch ────── a chunk from whoever has it; a blob, or a part of it, as a stream
//!   upkeep ───── brings here what is referred to and missing, removes what nobody refers to
//!   others ───── the three calls between members
//!   pace ─────── how long a caller is waited for
//!   store ────── the chunks on this disk
//! ```
//!
//! Owns `blobs/` in the data directory, and connections to the members that nothing else uses: a heartbeat never waits
//! behind a chunk.
//!
//! Invariants:
//! - A blob that was acknowledged, and one that a command is proposed with, is durable on a majority of the members.
//! - Content is checked against its hash wherever it comes in and before it is given out.
//!
//! Deliberately absent: who refers to what, which the state counts ([`quorate_raft::state::blobs`]).

mod fetch;
mod others;
mod pace;
mod replicate;
mod store;
mod upkeep;
mod upload;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use quorate_proto::v1::{BlobRef, Rejection, RejectionCode};
use quorate_raft::error::{Error, Fatal};
use quorate_raft::state::blobs::{CHUNK_BYTES, HASH_BYTES, check_ref};
use tokio::sync::Semaphore;
use tonic::Status;

use self::others::Others;
use self::store::{DiskError, Store};
use crate::config::Settings;
use crate::grpc::status;
use crate::roster::Roster;
use crate::stop::{Reason, Stop};

pub(crate) use self::upkeep::start;

/// The BLAKE3 of a chunk.
type ChunkHash = [u8; HASH_BYTES];

/// How much of a blob is in each chunk but the last.
const CHUNK: usize = CHUNK_BYTES as usize;

/// Uploads that are taken at a time: each has some chunks in memory. More wait, and their senders with them.
const UPLOADS: usize = 32;
/// Readers that are served at a time, for the same reason.
const DOWNLOADS: usize = 64;

/// The blobs of one node.
pub(crate) struct Blobs {
    store: Arc<Store>,
    others: Others,
    uploads: Semaphore,
    downloads: Semaphore,
    stop: Stop,
}

impl Blobs {
    /// Opens this node's part. A fault of the disk throws `stop`.
    pub(crate) fn open(settings: &Settings, roster: Arc<Roster>, stop: Stop) -> anyhow::Result<Self> {
        let data_dir = &settings.config.data_dir;
        let store =
            Store::open(data_dir).with_context(|| format!("the blobs in {} do not open", data_dir.display()))?;
        Ok(Blobs {
            store: Arc::new(store),
            others: Others::new(settings, roster)?,
            uploads: Semaphore::new(UPLOADS),
            downloads: Semaphore::new(DOWNLOADS),
            stop,
        })
    }

    /// Works on the files, away from the threads that serve calls. A fault stops the node, even if nobody waits for the
    /// result any more.
    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, DiskError> + Send + 'static,
    ) -> Result<T, DiskError> {
        let (store, stop) = (self.store.clone(), self.stop.clone());
        let worked = tokio::task::spawn_blocking(move || {
            let result = work(&store);
            if let Err(DiskError::Fault(fatal)) = &result {
                stop.now(Reason::Fault(format!("the chunks of blobs: {fatal}")));
            }
            result
        });
        worked.await.unwrap_or_else(|_| Err(DiskError::Fault(Fatal::Storage("this node is stopping".to_owned()))))
    }
}

/// Takes over chunks, each a file named by its hash, into a data directory that no node has open.
pub(crate) fn import(data_dir: &Path, from: &Path) -> anyhow::Result<()> {
    let store = Store::open_for_import(data_dir)?;
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let chunk = blake3::Hash::from_hex(name).with_context(|| format!("{} is no chunk", path.display()))?;
        if !store.admit(chunk.as_bytes(), &fs::read(&path)?)? {
            bail!("chunk {name} is not what it is named by");
        }
        // Each is on the disk once at a time.
        fs::remove_file(&path)?;
    }
    Ok(())
}

/// Checks the shape of a reference, which stands in this field.
fn checked(field: &str, blob: &BlobRef) -> Result<(), Status> {
    match check_ref(field, blob) {
        Ok(()) => Ok(()),
        Err(Error::Rejected(rejection)) => Err(status::rejected(&rejection)),
        Err(Error::Fatal(fatal)) => Err(status::fault(&fatal)),
    }
}

fn chunk_hash(bytes: &[u8]) -> Result<ChunkHash, Status> {
    ChunkHash::try_from(bytes)
        .map_err(|_| status::invalid("hash", format!("a hash must be {HASH_BYTES} bytes; got {}", bytes.len())))
}

/// How people see a chunk.
fn shown(chunk: &ChunkHash) -> String {
    blake3::Hash::from(*chunk).to_hex().to_string()
}

/// A refusal, as a room's would be: trying again soon does not help.
fn refused(code: RejectionCode, field: &str, message: String) -> Status {
    status::rejected(&Rejection { code: code as i32, field: field.to_owned(), message })
}

fn stopping() -> Status {
    status::unavailable("this node is stopping")
}

/// What a caller is told of this node's disk.
fn of_disk(error: &DiskError) -> Status {
    match error {
        DiskError::Full => {
            let message = "this node has no room for more blobs: the rest of its disk is for the log and the state";
            refused(RejectionCode::ResourceExhausted, "", message.to_owned())
        }
        DiskError::Fault(fatal) => status::fault(fatal),
    }
}

#[cfg(test)]
mod testing {
    use std::collections::BTreeMap;

    use super::*;
    use crate::config::Config;

    /// The blobs of node 1 of so many members. The others cannot be reached.
    pub(super) fn blobs(dir: &Path, members: u64) -> Arc<Blobs> {
        let config = Config { data_dir: dir.to_owned(), ..Config::default() };
        let members: BTreeMap<u64, String> = (1..=members).map(|id| (id, format!("127.0.0.1:{id}"))).collect();
        let settings = Settings { config, members, is_throw_away: false };
        let roster = Arc::new(Roster::new(&settings));
        Arc::new(Blobs::open(&settings, roster, Stop::new()).unwrap())
    }
}
