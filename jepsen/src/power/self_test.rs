//! Shows on a real mount that the disk does what is said of it: run before a campaign, so that one is not run in vain.
//!
//! Deliberately absent: RocksDB, and nodes. What they make of it is what campaigns are for.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::power::{Errno, Lose, PowerDisk, Which};

/// More than a full disk takes.
const TOO_MUCH: usize = 1 << 20;
const CAPACITY: u64 = 64 << 10;

/// Mounts a disk below `dir`, cuts its power, makes it fail, and unmounts it. Blocks.
pub fn self_test(dir: &Path) -> Result<()> {
    let path = dir.join("power-self-test");
    let disk = PowerDisk::mount(&path)?;
    ensure!(device(&path)? != device(dir)?, "nothing is mounted at {}", path.display());
    keeps_what_was_synced(&disk).context("a synced half of a file")?;
    undoes_a_rename(&disk).context("a rename whose directory was not synced")?;
    fails_a_sync_once(&disk).context("a sync that fails")?;
    is_full(&disk).context("a full disk")?;
    drop(disk);
    ensure!(device(&path)? == device(dir)?, "{} stays mounted", path.display());
    fs::remove_dir(&path).with_context(|| format!("{} is not empty", path.display()))
}

fn device(path: &Path) -> Result<u64> {
    Ok(fs::metadata(path).with_context(|| format!("nothing is said of {}", path.display()))?.dev())
}

fn sync_dir(path: &Path) -> Result<()> {
    File::open(path)?.sync_all().with_context(|| format!("{} cannot be synced", path.display()))
}

/// A file that is there to stay.
fn make(disk: &PowerDisk, name: &str, content: &[u8]) -> Result<File> {
    let mut file = File::create_new(disk.path().join(name))?;
    file.write_all(content)?;
    file.sync_all()?;
    sync_dir(disk.path())?;
    Ok(file)
}

fn holds(disk: &PowerDisk, name: &str, content: &[u8]) -> Result<()> {
    let found = fs::read(disk.path().join(name)).with_context(|| format!("{name} cannot be read"))?;
    ensure!(found == content, "{name} holds {:?}", String::from_utf8_lossy(&found));
    Ok(())
}

fn keeps_what_was_synced(disk: &PowerDisk) -> Result<()> {
    let mut file = make(disk, "halves", b"first")?;
    file.write_all(b"second")?;
    drop(file);
    holds(disk, "halves", b"firstsecond")?;
    let lost = disk.cut(Lose::All)?;
    ensure!((lost.files, lost.bytes) == (1, 6), "{lost:?}");
    holds(disk, "halves", b"first")
}

fn undoes_a_rename(disk: &PowerDisk) -> Result<()> {
    drop(make(disk, "old", b"kept")?);
    fs::rename(disk.path().join("old"), disk.path().join("new"))?;
    holds(disk, "new", b"kept")?;
    disk.cut(Lose::All)?;
    holds(disk, "old", b"kept")?;
    ensure!(!disk.path().join("new").exists(), "both names are there");
    fs::rename(disk.path().join("old"), disk.path().join("new"))?;
    sync_dir(disk.path())?;
    disk.cut(Lose::All)?;
    ensure!(!disk.path().join("old").exists(), "a synced rename was undone");
    holds(disk, "new", b"kept")
}

fn fails_a_sync_once(disk: &PowerDisk) -> Result<()> {
    let mut file = make(disk, "000001.log", b"first")?;
    disk.fail_fsync(Which::Matching("*.log".to_owned()), Errno::IO, 1);
    sync_dir(disk.path()).context("it was not meant")?;
    file.write_all(b"lost")?;
    let error = file.sync_data().err().context("a sync did not fail")?;
    ensure!(error.raw_os_error() == Some(Errno::IO.raw_os_error()), "{error}");
    file.sync_data().context("a second sync")?;
    drop(file);
    holds(disk, "000001.log", b"firstlost")?;
    disk.cut(Lose::All)?;
    holds(disk, "000001.log", b"first")
}

fn is_full(disk: &PowerDisk) -> Result<()> {
    disk.full(CAPACITY);
    let path = disk.path().join("big");
    let error = fs::write(&path, vec![1; TOO_MUCH]).err().context("more was written than fits")?;
    ensure!(error.kind() == ErrorKind::StorageFull, "{error}");
    disk.heal();
    OpenOptions::new().append(true).open(&path)?.write_all(&vec![1; TOO_MUCH]).context("a disk that is not full")
}
