//! Snapshots and generations: directories on disk.
//!
//! ```text
//! state/CURRENT              the name of the open generation, replaced by an atomic rename
//! state/<generation>/        a RocksDB database
//! snapshots/<index>-<term>/  a checkpoint: hard links, so taking one costs no copy
//! incoming/                  what is being received; emptied at start
//! ```
//!
//! A snapshot describes itself: its head row says what it covers. A received one is verified file by file, synced, moved
//! to `snapshots/`, copied (tables as links) into a new generation, and only then named in `CURRENT`: a crash at any
//! point leaves either the old state or the new one.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use xxhash_rust::xxh3::Xxh3;

use crate::apply::Head;
use crate::error::Fatal;
use crate::storage::dir::{DirHandle, sync_dir, write_atomically};
use crate::storage::keys::{Key, Table};
use crate::storage::rows;
use crate::storage::state_db::StateDb;

/// A snapshot on this node's disk.
#[derive(Debug, Clone)]
pub struct SnapshotDir(DirHandle);

impl SnapshotDir {
    /// Takes charge of a directory that exists.
    pub fn new(path: PathBuf) -> Self {
        SnapshotDir(DirHandle::new(path))
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Removes the directory once nobody sends it any more.
    pub fn retire(&self) {
        self.0.retire();
    }

    /// What the snapshot covers, read from its own head row.
    pub fn head(&self) -> Result<Head, Fatal> {
        read_head(&StateDb::open_read_only(self.path())?)
    }
}

/// Reads the head row; an empty database has the default one.
pub fn read_head(db: &StateDb) -> Result<Head, Fatal> {
    match rows::get(db, &Key::table(Table::Head))? {
        Some(row) => Head::from_row(row),
        None => Ok(Head::default()),
    }
}

/// The directories of one node's state.
#[derive(Debug, Clone)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// Creates what is missing and clears what a crash left half-done.
    pub fn open(root: &Path) -> Result<Self, Fatal> {
        let layout = Layout { root: root.to_owned() };
        for dir in [layout.state(), layout.snapshots()] {
            fs::create_dir_all(dir)?;
        }
        if layout.incoming_root().exists() {
            fs::remove_dir_all(layout.incoming_root())?;
        }
        fs::create_dir_all(layout.incoming_root())?;
        sync_dir(root)?;
        Ok(layout)
    }

    fn state(&self) -> PathBuf {
        self.root.join("state")
    }

    fn snapshots(&self) -> PathBuf {
        self.root.join("snapshots")
    }

    fn incoming_root(&self) -> PathBuf {
        self.root.join("incoming")
    }

    /// A fresh directory to receive a snapshot into. Two transfers of the same snapshot do not share one.
    pub fn new_incoming(&self) -> Result<PathBuf, Fatal> {
        static TRANSFERS: AtomicU64 = AtomicU64::new(0);
        let dir = self.incoming_root().join(TRANSFERS.fetch_add(1, Ordering::Relaxed).to_string());
        fs::create_dir_all(&dir)?;
        Ok(dir)
    }

    /// The generation in use; removes every other one.
    pub fn current_generation(&self) -> Result<PathBuf, Fatal> {
        let pointer = self.state().join("CURRENT");
        let name = match fs::read_to_string(&pointer) {
            Ok(name) => name.trim().to_owned(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let first = "000001".to_owned();
                self.point_to(&first)?;
                first
            }
            Err(e) => return Err(e.into()),
        };
        for entry in fs::read_dir(self.state())? {
            let entry = entry?;
            if entry.file_type()?.is_dir() && entry.file_name().to_string_lossy() != name {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(self.state().join(name))
    }

    /// Fills the generation after `current` from a snapshot; [`Layout::point_to`] puts it in force.
    pub fn next_generation(&self, current: &Path, snapshot: &Path) -> Result<(PathBuf, String), Fatal> {
        let number: u64 = current
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.parse().ok())
            .ok_or_else(|| Fatal::Corrupt(format!("{} is not a generation's name", current.display())))?;
        let name = format!("{:06}", number + 1);
        let target = self.state().join(&name);
        if target.exists() {
            fs::remove_dir_all(&target)?;
        }
        link_or_copy(snapshot, &target)?;
        Ok((target, name))
    }

    /// Makes `name` the generation that the next start opens.
    pub fn point_to(&self, name: &str) -> Result<(), Fatal> {
        write_atomically(&self.state().join("CURRENT"), name.as_bytes())
    }

    /// The newest snapshot on disk; removes older and half-made ones.
    pub fn newest_snapshot(&self) -> Result<Option<SnapshotDir>, Fatal> {
        let mut found: Vec<(u64, u64, PathBuf)> = Vec::new();
        for entry in fs::read_dir(self.snapshots())? {
            let path = entry?.path();
            match path.file_name().and_then(|name| name.to_str()).and_then(parse_snapshot_name) {
                Some((index, term)) => found.push((index, term, path)),
                None => fs::remove_dir_all(&path)?,
            }
        }
        found.sort();
        let newest = found.pop();
        for (_, _, path) in found {
            fs::remove_dir_all(path)?;
        }
        Ok(newest.map(|(_, _, path)| SnapshotDir::new(path)))
    }

    /// Takes a snapshot of `db`. What it covers is read back from it, for apply may go on meanwhile.
    pub fn take_snapshot(&self, db: &StateDb) -> Result<(SnapshotDir, Head), Fatal> {
        let partial = self.snapshots().join("partial");
        if partial.exists() {
            fs::remove_dir_all(&partial)?;
        }
        db.checkpoint(&partial)?;
        let head = SnapshotDir::new(partial.clone()).head()?;
        Ok((self.keep_snapshot(&partial, &head)?, head))
    }

    /// Puts a snapshot that is ours to move, or a copy of one that is not, where snapshots live.
    pub fn adopt_snapshot(&self, from: &Path, head: &Head) -> Result<SnapshotDir, Fatal> {
        if from.starts_with(self.incoming_root()) {
            return self.keep_snapshot(from, head);
        }
        let copy = self.new_incoming()?;
        link_or_copy(from, &copy)?;
        self.keep_snapshot(&copy, head)
    }

    /// Moves a complete, synced snapshot to its place.
    fn keep_snapshot(&self, from: &Path, head: &Head) -> Result<SnapshotDir, Fatal> {
        let (term, index) = head.applied.unwrap_or_default();
        let target = self.snapshots().join(format!("{index}-{term}"));
        if target.exists() {
            // The same point of the same log: what is there already is as good.
            fs::remove_dir_all(from)?;
        } else {
            fs::rename(from, &target)?;
            sync_dir(&self.snapshots())?;
        }
        Ok(SnapshotDir::new(target))
    }
}

fn parse_snapshot_name(name: &str) -> Option<(u64, u64)> {
    let (index, term) = name.split_once('-')?;
    Some((index.parse().ok()?, term.parse().ok()?))
}

/// Tables never change, so they are linked; what RocksDB rewrites is copied.
fn link_or_copy(from: &Path, to: &Path) -> Result<(), Fatal> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.path().extension().is_some_and(|e| e == "sst") {
            fs::hard_link(entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
            File::open(&target)?.sync_all()?;
        }
    }
    sync_dir(to)
}

/// The plain files of a snapshot with their sizes, by name.
pub fn list_files(dir: &Path) -> Result<Vec<(String, u64)>, Fatal> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // RocksDB's own chatter is not part of the state.
        if entry.file_type()?.is_file() && name != "LOCK" && !name.starts_with("LOG") {
            files.push((name, entry.metadata()?.len()));
        }
    }
    files.sort();
    Ok(files)
}

/// The digest of one file.
pub fn file_digest(path: &Path) -> Result<u128, Fatal> {
    let mut file = File::open(path)?;
    let mut hash = Xxh3::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok(hash.digest128());
        }
        hash.update(&buffer[..n]);
    }
}
