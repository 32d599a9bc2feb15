//! The file system's word on free space, and what a node does that cannot even write.
//!
//! A write that finds no space has left RocksDB in a state that nobody reasons about: the process ends as after any fault,
//! and begins again by itself once there is room. The log is the truth; what was acknowledged is in it.

use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::statvfs;
use rustix::io::retry_on_intr;

use super::{ballast, gauge};

const POLL: Duration = Duration::from_millis(500);
const TELL: Duration = Duration::from_secs(10);

/// A disk's size and what is free of it for this process.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    pub(super) total: u64,
    pub(super) free: u64,
}

pub(super) fn room(dir: &Path) -> io::Result<Room> {
    let disk = retry_on_intr(|| statvfs(dir))?;
    let in_bytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
    Ok(Room { total: in_bytes(disk.f_blocks), free: in_bytes(disk.f_bavail) })
}

/// Blocks until half of the reserve is free: to open the databases takes some space. Before storage is opened, and before
/// signals are caught, so that a person can end it.
pub(crate) fn wait_for_space(data_dir: &Path, reserve_bytes: u64, write_buffer_bytes: u64) {
    let mut told: Option<Instant> = None;
    loop {
        // What cannot be asked is found out, and said, by whoever opens the directory.
        let Ok(room) = room(data_dir) else { return };
        // Only what opening may take: a node that is up can free space, one that waits cannot.
        let needed = (gauge::reserve_of(reserve_bytes, room.total) / 2).min(write_buffer_bytes.saturating_mul(2));
        if room.free >= needed {
            return;
        }
        ballast::drop_from(data_dir);
        if told.is_none_or(|told| told.elapsed() >= TELL) {
            told = Some(Instant::now());
            let (free, data_dir) = (room.free, data_dir.display());
            tracing::warn!(%data_dir, free, needed, "the disk is full: the databases are opened when there is space");
        }
        std::thread::sleep(POLL);
    }
}

/// Whether a fault is that the disk had no space.
pub(crate) fn is_no_space(fault: &str) -> bool {
    ["No space left on device", "Disk quota exceeded"].iter().any(|words| fault.contains(words))
}

/// Replaces this process by a new run of the same program with the same arguments. It returns only if that failed. Files
/// and ports are closed by it, and with them the lock on the data directory.
pub(crate) fn start_again() -> io::Error {
    let program = match std::env::current_exe() {
        Ok(program) => of_newest(program),
        Err(error) => return error,
    };
    Command::new(program).args(std::env::args_os().skip(1)).exec()
}

/// Linux says of a binary that was replaced under the process that it was deleted: the new one is meant.
fn of_newest(program: PathBuf) -> PathBuf {
    let name = program.file_name().and_then(OsStr::to_str).and_then(|name| name.strip_suffix(" (deleted)"));
    match name {
        Some(name) => program.with_file_name(name),
        None => program,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_rocksdb_and_of_the_system_are_known() {
        let rocksdb = "storage failed: IO error: No space left on device: While appending to file: /d/log/000012.log";
        assert!(is_no_space(rocksdb));
        assert!(is_no_space(&io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error()).to_string()));
        assert!(is_no_space(&io::Error::from_raw_os_error(rustix::io::Errno::DQUOT.raw_os_error()).to_string()));
        assert!(!is_no_space("corrupt data: a log key is not 8 bytes"));
    }

    #[test]
    fn a_disk_with_room_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let room = room(dir.path()).unwrap();
        assert!(room.free <= room.total && room.total > 0, "{room:?}");
        wait_for_space(dir.path(), 1, 1);
        wait_for_space(&dir.path().join("not there"), u64::MAX, u64::MAX);
    }

    #[test]
    fn a_binary_that_was_replaced_is_run_by_its_name() {
        assert_eq!(of_newest("/opt/quorate (deleted)".into()), Path::new("/opt/quorate"));
        assert_eq!(of_newest("/opt/quorate".into()), Path::new("/opt/quorate"));
    }
}
