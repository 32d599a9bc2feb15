//! Snapshots and generations: directories on disk.
//!
//! ```text
//! state/CURRENT              the name of the open generation, replaced by an atomic rename
//! state/<generation>/        a RocksDB database
//! snapshots/<index>-<term>-<copy>/  a checkpoint: hard links, so taking one costs no copy
//! incoming/                  what is being received; emptied at start
//! ```
//!
//! A snapshot describes itself: its head row says what it covers, and its `DIGESTS` what its files were when it was taken
//! or received. A received one is verified file by file, synced, moved to `snapshots/`, copied (tables as links) into a new
//! generation, and only then named in `CURRENT`: a crash at any point leaves either the old state or the new one.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File, Metadata};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use xxhash_rust::xxh3::Xxh3;

use crate::apply::Head;
use crate::error::Fatal;
use crate::faults::crash_point;
use crate::storage::dir::{DirHandle, sync_dir, write_atomically};
use crate::storage::keys::{Key, Table};
use crate::storage::rows;
use crate::storage::state_db::StateDb;

/// The file of a snapshot that says what the others are.
const DIGESTS: &str = "DIGESTS";

/// A file of a snapshot, as it was when the snapshot was taken or received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileDigest {
    /// Its name in the snapshot's directory.
    pub name: String,
    /// How long it is.
    pub bytes: u64,
    /// xxh3-128 of the whole file.
    pub digest: u128,
}

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

    /// Its files, by name. One that an older binary took says nothing of them: they are taken for what they are now.
    pub fn files(&self) -> Result<Vec<FileDigest>, Fatal> {
        match fs::read_to_string(self.path().join(DIGESTS)) {
            Ok(text) => parse_digests(&text)
                .ok_or_else(|| Fatal::Corrupt(format!("{}/{DIGESTS} is damaged", self.path().display()))),
            Err(error) if error.kind() == ErrorKind::NotFound => compute_digests(self.path(), &Known::new()),
            Err(error) => Err(error.into()),
        }
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
            Err(e) if e.kind() == ErrorKind::NotFound => {
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
        let mut found: Vec<(SnapshotName, PathBuf)> = Vec::new();
        for entry in fs::read_dir(self.snapshots())? {
            let path = entry?.path();
            match path.file_name().and_then(|name| name.to_str()).and_then(parse_snapshot_name) {
                Some(name) => found.push((name, path)),
                None => fs::remove_dir_all(&path)?,
            }
        }
        found.sort();
        let newest = found.pop();
        for (_, path) in found {
            fs::remove_dir_all(path)?;
        }
        Ok(newest.map(|(_, path)| SnapshotDir::new(path)))
    }

    /// Takes a snapshot of `db`. What it covers is read back from it, for apply may go on meanwhile.
    pub fn take_snapshot(&self, db: &StateDb) -> Result<(SnapshotDir, Head), Fatal> {
        let partial = self.snapshots().join("partial");
        if partial.exists() {
            fs::remove_dir_all(&partial)?;
        }
        db.checkpoint(&partial)?;
        let head = SnapshotDir::new(partial.clone()).head()?;
        write_digests(&partial, &compute_digests(&partial, &self.known_digests()?)?)?;
        Ok((self.keep_snapshot(&partial, &head)?, head))
    }

    /// Puts a snapshot that is ours to move, or a copy of one that is not, where snapshots live.
    pub fn adopt_snapshot(&self, from: &Path, head: &Head) -> Result<SnapshotDir, Fatal> {
        if from.starts_with(self.incoming_root()) {
            return self.keep_snapshot(from, head);
        }
        let files = SnapshotDir::new(from.to_owned()).files()?;
        let copy = self.new_incoming()?;
        link_or_copy(from, &copy)?;
        write_digests(&copy, &files)?;
        self.keep_snapshot(&copy, head)
    }

    /// What is known of files in the snapshots that are here. A table that a new snapshot shares with one of them is not
    /// read again: its digest stays that of the day when it was new, and so shows what has become of it since.
    fn known_digests(&self) -> Result<Known, Fatal> {
        let mut known = Known::new();
        for entry in fs::read_dir(self.snapshots())? {
            let dir = entry?.path();
            let Ok(text) = fs::read_to_string(dir.join(DIGESTS)) else { continue };
            for file in parse_digests(&text).unwrap_or_default() {
                if let Ok(metadata) = fs::metadata(dir.join(&file.name)) {
                    known.insert(identity(&metadata), file);
                }
            }
        }
        Ok(known)
    }

    /// Moves a complete, synced snapshot to its place.
    fn keep_snapshot(&self, from: &Path, head: &Head) -> Result<SnapshotDir, Fatal> {
        let (term, index) = head.applied.unwrap_or_default();
        // One of the same point may be there, and somebody may be sending it. The new one is as good, and may take less
        // space: its tables were written anew since.
        let name = |copy: u64| self.snapshots().join(format!("{index}-{term}-{copy}"));
        let target = (0..).map(name).find(|path| !path.exists()).unwrap_or_else(|| name(0));
        crash_point("snapshot.before-rename");
        fs::rename(from, &target)?;
        crash_point("snapshot.after-rename");
        sync_dir(&self.snapshots())?;
        Ok(SnapshotDir::new(target))
    }
}

/// Index, term, and which of several of the same point. Earlier versions kept one of each, and did not number it.
type SnapshotName = (u64, u64, u64);

fn parse_snapshot_name(name: &str) -> Option<SnapshotName> {
    let (index, rest) = name.split_once('-')?;
    let (term, copy) = rest.split_once('-').unwrap_or((rest, "0"));
    Some((index.parse().ok()?, term.parse().ok()?, copy.parse().ok()?))
}

/// Files by what the file system knows them by, under whatever name.
type Known = BTreeMap<(u64, u64), FileDigest>;

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

fn is_table(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "sst")
}

fn compute_digests(dir: &Path, known: &Known) -> Result<Vec<FileDigest>, Fatal> {
    let mut files = Vec::new();
    for (name, bytes) in list_files(dir)? {
        let path = dir.join(&name);
        let before = known.get(&identity(&fs::metadata(&path)?));
        let digest = match before.filter(|before| is_table(&path) && before.name == name && before.bytes == bytes) {
            Some(before) => before.digest,
            None => file_digest(&path)?,
        };
        files.push(FileDigest { name, bytes, digest });
    }
    Ok(files)
}

/// Writes what the files of a snapshot are, durably.
pub fn write_digests(dir: &Path, files: &[FileDigest]) -> Result<(), Fatal> {
    let mut text = String::new();
    for FileDigest { name, bytes, digest } in files {
        // Writing into a text does not fail.
        let _infallible = writeln!(text, "{digest:032x} {bytes} {name}");
    }
    // A text that was cut short must not pass for a snapshot with fewer files.
    let _infallible = writeln!(text, "end {}", files.len());
    write_atomically(&dir.join(DIGESTS), text.as_bytes())
}

fn parse_digests(text: &str) -> Option<Vec<FileDigest>> {
    let (lines, end) = text.strip_suffix('\n')?.rsplit_once('\n').unwrap_or(("", text.trim_end()));
    let mut files = Vec::new();
    for line in lines.lines() {
        let (digest, rest) = line.split_once(' ')?;
        let (bytes, name) = rest.split_once(' ')?;
        let digest = u128::from_str_radix(digest, 16).ok()?;
        files.push(FileDigest { name: name.to_owned(), bytes: bytes.parse().ok()?, digest });
    }
    (end == format!("end {}", files.len())).then_some(files)
}

/// Tables never change, so they are linked; what RocksDB rewrites is copied. What is said of the files stays behind: it
/// does not hold any more once a database is open there.
pub(super) fn link_or_copy(from: &Path, to: &Path) -> Result<(), Fatal> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_name() == DIGESTS {
            continue;
        }
        let target = to.join(entry.file_name());
        if is_table(&entry.path()) {
            fs::hard_link(entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
            File::open(&target)?.sync_all()?;
        }
    }
    crash_point("generation.linked");
    sync_dir(to)
}

/// The plain files of a snapshot with their sizes, by name.
pub fn list_files(dir: &Path) -> Result<Vec<(String, u64)>, Fatal> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // RocksDB's own chatter is not part of the state.
        let chatter = name == "LOCK" || name.starts_with("LOG");
        if entry.file_type()?.is_file() && !chatter && !name.starts_with(DIGESTS) {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, digest: u128) -> FileDigest {
        FileDigest { name: name.to_owned(), bytes: 5, digest }
    }

    #[test]
    fn digests_are_read_back_as_they_were_written() {
        let dir = tempfile::tempdir().unwrap();
        let snapshot = SnapshotDir::new(dir.path().to_owned());
        for files in
            [vec![], vec![file("000001.sst", 7)], vec![file("000001.sst", 7), file("MANIFEST-000005", u128::MAX)]]
        {
            write_digests(dir.path(), &files).unwrap();
            assert_eq!(snapshot.files().unwrap(), files);
        }
    }

    #[test]
    fn digests_that_were_cut_short_are_damaged() {
        let dir = tempfile::tempdir().unwrap();
        write_digests(dir.path(), &[file("a", 1), file("b", 2)]).unwrap();
        let text = fs::read_to_string(dir.path().join(DIGESTS)).unwrap();
        for length in 0..text.len() {
            assert_eq!(parse_digests(&text[..length]), None, "{length} bytes");
        }
    }

    #[test]
    fn a_table_that_has_changed_keeps_the_digest_it_had() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::open(dir.path()).unwrap();
        let (old, new) = (layout.snapshots().join("1-1"), layout.snapshots().join("partial"));
        fs::create_dir(&old).unwrap();
        fs::write(old.join("000001.sst"), "as it was").unwrap();
        let digest = file_digest(&old.join("000001.sst")).unwrap();
        write_digests(&old, &compute_digests(&old, &Known::new()).unwrap()).unwrap();
        link_or_copy(&old, &new).unwrap();
        fs::write(new.join("000001.sst"), "as it is.").unwrap();
        let files = compute_digests(&new, &layout.known_digests().unwrap()).unwrap();
        assert_eq!(files, [FileDigest { name: "000001.sst".to_owned(), bytes: 9, digest }]);
    }
}
