//! What a checkpoint holds: its files, the chunks that its rows refer to, where it stands.
//!
//! Deliberately absent: the rooms. Their indexes would cost as much memory as those of the running node, for rows that
//! are counted in one scan. Every function here blocks.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use quorate_proto::v1::{ClusterInfo, Namespace};
use quorate_raft::apply::Head;
use quorate_raft::error::Fatal;
use quorate_raft::state::{blobs, cluster};
use quorate_raft::storage::keys::{Key, Table};
use quorate_raft::storage::rows;
use quorate_raft::storage::snapshot::{list_files, read_head};
use quorate_raft::storage::space::SpaceRows;
use quorate_raft::storage::state_db::StateDb;

use super::manifest::StateFile;

/// The BLAKE3 of a chunk.
pub(super) type ChunkHash = [u8; blobs::HASH_BYTES];

/// Chunks that are read off the rows at once.
const PAGE: usize = 4_096;

/// What a checkpoint holds.
#[derive(Debug)]
pub(super) struct Contents {
    pub(super) head: Head,
    pub(super) cluster: ClusterInfo,
    pub(super) full_digest: String,
    pub(super) files: Vec<StateFile>,
    pub(super) chunks: BTreeSet<ChunkHash>,
}

/// Reads the whole of a checkpoint.
pub(super) fn read(dir: &Path) -> Result<Contents, Fatal> {
    let mut files = Vec::new();
    for (name, bytes) in list_files(dir)? {
        let blake3 = hash_file(&dir.join(&name))?;
        files.push(StateFile { name, bytes, blake3 });
    }
    let db = StateDb::open_read_only(dir)?;
    Ok(Contents {
        head: read_head(&db)?,
        cluster: cluster::get(&db)?.unwrap_or_default(),
        full_digest: format!("{:032x}", db.full_digest(Table::Head as u8, || {})?),
        files,
        chunks: chunks(&db)?,
    })
}

/// Every chunk that a row of any namespace refers to.
fn chunks(db: &StateDb) -> Result<BTreeSet<ChunkHash>, Fatal> {
    // The default namespace has no row before its quotas are set.
    let mut numbers = BTreeSet::from([0]);
    rows::scan_prefix::<Namespace>(db, &Key::table(Table::Namespace), |_, namespace| {
        numbers.insert(namespace.number);
        Ok(true)
    })?;
    let mut found = BTreeSet::new();
    for number in numbers {
        let rows = SpaceRows::new(db, number);
        let mut after = None;
        loop {
            let page = blobs::chunks(&rows, after, PAGE)?;
            let Some(last) = page.last() else { break };
            after = Some(*last);
            found.extend(page);
        }
    }
    Ok(found)
}

fn hash_file(path: &Path) -> Result<String, Fatal> {
    let mut file = File::open(path)?;
    let (mut hasher, mut buffer) = (blake3::Hasher::new(), vec![0; 256 << 10]);
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok(hasher.finalize().to_hex().to_string());
        }
        hasher.update(&buffer[..n]);
    }
}
