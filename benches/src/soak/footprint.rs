//! What one node takes of its machine: disk by kind, memory, open files.
//!
//! Disk is what `du` says: blocks, not lengths, and a file with several names once. A snapshot is hard links to tables
//! of the state, so those count as state, and as snapshots only what no state holds any more.
//!
//! Deliberately absent: other systems than Linux.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result};

use crate::memory;

/// The unit in which file systems count blocks, whatever size theirs are.
const BLOCK_BYTES: u64 = 512;

/// At one moment.
#[derive(Clone, Copy, Default)]
pub(super) struct Footprint {
    pub(super) disk: Disk,
    pub(super) resident: u64,
    pub(super) open_files: u64,
}

/// Bytes of a data directory.
#[derive(Clone, Copy, Default)]
pub(super) struct Disk {
    pub(super) log: u64,
    pub(super) state: u64,
    pub(super) snapshots: u64,
    pub(super) other: u64,
}

/// Device and inode of what was counted already.
#[derive(Default)]
struct Counted(BTreeSet<(u64, u64)>);

impl Footprint {
    pub(super) fn of(pid: u32, data_dir: &Path) -> Result<Footprint> {
        let disk = Disk::of(data_dir).with_context(|| format!("cannot measure {}", data_dir.display()))?;
        let descriptors = format!("/proc/{pid}/fd");
        let open_files = fs::read_dir(&descriptors).with_context(|| descriptors.clone())?.count() as u64;
        Ok(Footprint { disk, resident: memory::resident(pid)?, open_files })
    }
}

impl Disk {
    fn of(dir: &Path) -> io::Result<Disk> {
        let mut counted = Counted::default();
        let log = counted.add(&dir.join("log"))?;
        let state = counted.add(&dir.join("state"))?;
        let snapshots = counted.add(&dir.join("snapshots"))? + counted.add(&dir.join("incoming"))?;
        // What is left of the whole.
        let other = counted.add(dir)?;
        Ok(Disk { log, state, snapshots, other })
    }

    pub(super) fn total(&self) -> u64 {
        self.log + self.state + self.snapshots + self.other
    }
}

impl Counted {
    /// Bytes at and below this path that were not counted before.
    fn add(&mut self, path: &Path) -> io::Result<u64> {
        let Some(meta) = if_there(fs::symlink_metadata(path))? else { return Ok(0) };
        let is_new = self.0.insert((meta.dev(), meta.ino()));
        let mut bytes = if is_new { meta.blocks() * BLOCK_BYTES } else { 0 };
        if meta.is_dir() {
            let Some(entries) = if_there(fs::read_dir(path))? else { return Ok(bytes) };
            for entry in entries {
                bytes += self.add(&entry?.path())?;
            }
        }
        Ok(bytes)
    }
}

/// The node runs: what was listed a moment ago may be gone.
fn if_there<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const FILE_BYTES: usize = 64 << 10;

    fn write(path: &Path) {
        let mut file = fs::File::create(path).unwrap();
        file.write_all(&[7; FILE_BYTES]).unwrap();
        file.sync_all().unwrap();
    }

    #[test]
    fn a_table_that_a_snapshot_shares_with_the_state_counts_once() {
        let dir = std::env::temp_dir().join(format!("quorate-bench-footprint-{}", std::process::id()));
        for kind in ["log", "state", "snapshots"] {
            fs::create_dir_all(dir.join(kind)).unwrap();
        }
        let (shared, own) = (dir.join("state/shared"), dir.join("snapshots/own"));
        write(&shared);
        write(&own);
        fs::hard_link(&shared, dir.join("snapshots/shared")).unwrap();
        let disk = Disk::of(&dir).unwrap();
        fs::remove_dir_all(&dir).unwrap();

        let file = FILE_BYTES as u64;
        let is_one_file = |bytes: u64| (file..2 * file).contains(&bytes);
        assert!(is_one_file(disk.state) && is_one_file(disk.snapshots), "{} {}", disk.state, disk.snapshots);
        assert!(disk.log < file && disk.other < file, "{} {}", disk.log, disk.other);
    }

    #[test]
    fn this_process_has_open_files() {
        let footprint = Footprint::of(std::process::id(), Path::new("/nowhere/at/all")).unwrap();
        assert!(footprint.open_files >= 3 && footprint.disk.total() == 0);
    }
}
