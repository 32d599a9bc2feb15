//! A disk whose power can be cut: a FUSE file system in memory that holds one node's data directory, and can forget
//! what was not synced.
//!
//! ```text
//! process ── kernel ── fs ── disk ─┬─ content   bytes of one file, seen and durable
//!                                  ├─ names     changes of directories that are not durable
//!                                  └─ faults    what fails while the disk runs
//! ```
//!
//! Owns the mount: at most one per [`PowerDisk`], mounted anew after a cut, so that no cache of the kernel brings back
//! what was lost; dropped, it unmounts that very path. What is durable when is the strict reading of POSIX: bytes once
//! the file is synced, names once their directory is. A sync that failed never makes durable what it was to, nor does a
//! later one.
//!
//! A process that waits for a slow sync cannot be killed until it is over.
//!
//! Deliberately absent: persistence. What is on the disk goes with the process that mounted it.

mod content;
mod cut;
mod disk;
mod faults;
mod fs;
mod inode;
mod names;
mod self_test;
mod tree;

use std::fmt;
use std::fs::{DirBuilder, OpenOptions};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fuser::{BackgroundSession, Config, INodeNo, MountOption, Session};
pub use rustix::io::Errno;

pub use self::faults::Which;
pub use self::self_test::self_test;

use self::disk::Disk;
use self::fs::PowerFs;

/// What the kernel and this process talk over.
const DEVICE: &str = "/dev/fuse";
/// Mounts and unmounts for those who are not root.
const HELPER: &str = "fusermount3";
/// How long the last handles of a killed process may take to go.
const LIMIT: Duration = Duration::from_secs(10);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(10);

type Shared = Arc<Mutex<Disk>>;

/// How the disk keeps what it is given.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// A sync of a file makes its name durable too, and every change of names before that: what ext4 does, and POSIX
    /// does not promise.
    pub file_fsync_persists_its_entry: bool,
}

/// What a cut takes of that which is not durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lose {
    /// All of it.
    All,
    /// Of each file and of each directory, all but some first changes; of the last write that survives, maybe some last
    /// sectors of 512 bytes.
    Tail {
        /// Says how many: the same for the same seed and the same changes.
        seed: u64,
    },
}

/// What was lost at a cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Files that lost bytes, or that are gone.
    pub files: u64,
    /// Bytes written to them that are gone.
    pub bytes: u64,
    /// Changes of names that are undone.
    pub names: u64,
}

/// What was done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Syncs of files and directories that succeeded.
    pub fsyncs: u64,
    /// Syncs that were made to fail.
    pub failed_fsyncs: u64,
    /// Writes.
    pub writes: u64,
    /// Bytes written.
    pub bytes: u64,
    /// Bytes lost at the last cut.
    pub lost_bytes: u64,
}

/// A bit that was flipped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flip {
    /// The file, from the root of the disk.
    pub path: String,
    /// The byte.
    pub offset: u64,
    /// The bit, 0 the lowest.
    pub bit: u8,
}

/// A mounted disk.
pub struct PowerDisk {
    path: PathBuf,
    disk: Shared,
    /// `None` only if mounting it anew failed.
    session: Mutex<Option<BackgroundSession>>,
}

impl fmt::Debug for PowerDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PowerDisk").field("path", &self.path).finish_non_exhaustive()
    }
}

impl PowerDisk {
    /// Whether this process may mount one, or what is missing.
    pub fn permitted() -> Result<(), String> {
        let device = OpenOptions::new().read(true).write(true).open(DEVICE);
        device.map_err(|error| format!("{DEVICE} cannot be opened: {error}"))?;
        let has_helper = || Command::new(HELPER).arg("-V").output().is_ok();
        if rustix::process::geteuid().is_root() || has_helper() {
            return Ok(());
        }
        Err(format!("this process is not root, and there is no {HELPER}"))
    }

    /// Mounts an empty disk at `path`, which is created.
    pub fn mount(path: &Path) -> Result<Self> {
        Self::mount_with(path, Options::default())
    }

    /// Mounts an empty disk that keeps what it is given in another way.
    pub fn mount_with(path: &Path, options: Options) -> Result<Self> {
        let shown = path.display();
        let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.with_context(|| format!("{shown} cannot be created"))?;
        let path = path.canonicalize().with_context(|| format!("{shown} cannot be found"))?;
        let disk = Arc::new(Mutex::new(Disk::new(options)));
        let session = Mutex::new(Some(attach(&path, &disk)?));
        Ok(Self { path, disk, session })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Cuts the power, and gives it back: what was not durable is lost, and the disk is mounted anew. Whoever had files
    /// open is dead by then: if one is not, this fails, and nothing is lost. Blocks.
    pub fn cut(&self, lose: Lose) -> Result<Lost> {
        let mut slot = self.session();
        let session = slot.as_ref().context("the disk is not mounted any more")?;
        detach(&self.path, session)?;
        if let Some(session) = slot.take() {
            session.join().with_context(|| format!("the disk at {} failed", self.path.display()))?;
        }
        let lost = self.disk().cut(lose);
        *slot = Some(attach(&self.path, &self.disk)?);
        Ok(lost)
    }

    /// From now on so many syncs of these fail. Replaces what was said before.
    pub fn fail_fsync(&self, which: Which, errno: Errno, count: u64) {
        self.disk().fail_syncs(which, errno, count);
    }

    /// How long each sync takes from now on, without keeping others from the disk.
    pub fn slow_fsync(&self, each: Duration) {
        self.disk().faults.slow = each;
    }

    /// No more fits than so many bytes.
    pub fn full(&self, bytes: u64) {
        self.disk().faults.capacity = Some(bytes);
    }

    /// These cannot be read. What a process has mapped into its memory it may still read there.
    pub fn read_error(&self, which: Which) -> Result<()> {
        let meant = {
            let mut disk = self.disk();
            let meant = disk.meant(&which);
            disk.faults.read = Some(which);
            meant
        };
        meant.into_iter().try_for_each(|(_, ino)| self.forget_pages(ino))
    }

    /// Flips one bit of one of these files, for readers now and after a cut; which one, the seed says. `None`: none of
    /// them holds anything durable.
    pub fn flip(&self, which: &Which, seed: u64) -> Result<Option<Flip>> {
        let flipped = self.disk().flip(which, seed);
        let Some((ino, flip)) = flipped else { return Ok(None) };
        self.forget_pages(ino)?;
        Ok(Some(flip))
    }

    /// Ends all faults. What was lost or flipped stays so.
    pub fn heal(&self) {
        self.disk().faults = faults::Faults::default();
    }

    /// What was done so far.
    pub fn counters(&self) -> Counters {
        self.disk().counters
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn session(&self) -> MutexGuard<'_, Option<BackgroundSession>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The kernel asks anew for what the file holds. The disk is not locked here: the kernel may wait for requests
    /// first.
    fn forget_pages(&self, ino: u64) -> Result<()> {
        let notifier = self.session().as_ref().map(BackgroundSession::notifier);
        let Some(notifier) = notifier else { return Ok(()) };
        notifier.inval_inode(INodeNo(ino), 0, 0).context("the kernel does not forget what a file held")
    }
}

impl Drop for PowerDisk {
    fn drop(&mut self) {
        let Some(session) = self.session().take() else { return };
        if let Err(error) = detach(&self.path, &session) {
            eprintln!("{} is unmounted once nobody uses it: {error:#}", self.path.display());
            if let Err(error) = unmount(&self.path, true) {
                eprintln!("{} stays mounted: {error:#}", self.path.display());
            }
        }
    }
}

fn attach(path: &Path, disk: &Shared) -> Result<BackgroundSession> {
    let mut config = Config::default();
    config.mount_options.extend([MountOption::FSName("quorate-power".to_owned()), MountOption::DefaultPermissions]);
    let mounted = Session::new(PowerFs::new(Arc::clone(disk)), path, &config).and_then(Session::spawn);
    mounted.with_context(|| format!("no disk can be mounted at {}", path.display()))
}

/// Unmounts, and waits until the kernel asks nothing more.
fn detach(path: &Path, session: &BackgroundSession) -> Result<()> {
    let began = Instant::now();
    // A killed process may be gone a moment before its handles are.
    while let Err(error) = unmount(path, false) {
        if began.elapsed() > LIMIT {
            return Err(error);
        }
        thread::sleep(PAUSE);
    }
    while !session.guard.is_finished() {
        if began.elapsed() > LIMIT {
            bail!("{} is unmounted here, and still in use elsewhere", path.display());
        }
        thread::sleep(PAUSE);
    }
    Ok(())
}

fn unmount(path: &Path, lazily: bool) -> Result<()> {
    let (program, always, lazy) =
        if rustix::process::geteuid().is_root() { ("umount", None, "-l") } else { (HELPER, Some("-u"), "-z") };
    let mut command = Command::new(program);
    command.args(always).args(lazily.then_some(lazy)).arg(path);
    let output = command.output().with_context(|| format!("{command:?} cannot be run"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mounted_disk_does_what_it_says() -> Result<()> {
        if let Err(why) = PowerDisk::permitted() {
            eprintln!("not run: {why}");
            return Ok(());
        }
        self_test(tempfile::tempdir()?.path())
    }
}
