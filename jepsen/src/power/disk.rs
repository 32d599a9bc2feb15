//! A disk in memory that knows what of it is durable: files, syncs, space, and the faults of each.
//!
//! | what | durable once |
//! |---|---|
//! | bytes and length of a file | the file is synced (`fsync` and `fdatasync` alike) |
//! | a name that is made, removed or changed | its directory is synced ([`crate::power::names`]) |
//! | mode, owner, times | at once |
//!
//! That is what POSIX promises and no more; most file systems keep more. A sync that fails is final for what it was to
//! make durable: see [`crate::power::content`].
//!
//! Deliberately absent: mounts and the kernel (`fs`); paths, other than to say which files a fault is about.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use rustix::io::Errno;
use rustix::process::{getegid, geteuid};

use crate::power::content::FileData;
use crate::power::faults::{Faults, SyncFault, Which};
use crate::power::inode::{Access, Attr, Dir, Inode, Node};
use crate::power::names::{Ino, Journal};
use crate::power::{Counters, Flip, Options};
use crate::rng::Rng;

/// The root directory.
pub(super) const ROOT: Ino = 1;
/// No file is longer.
const MAX_BYTES: u64 = 1 << 40;
/// How much fits on a disk to which nothing else was said.
const CAPACITY: u64 = 64 << 30;

/// What came of it, or what the process is told instead.
pub(super) type Outcome<T> = Result<T, Errno>;

/// The disk.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) inodes: BTreeMap<Ino, Inode>,
    pub(super) journal: Journal,
    pub(super) next: Ino,
    pub(super) faults: Faults,
    pub(super) counters: Counters,
    /// How often the power was cut.
    pub(super) cuts: u64,
    pub(super) options: Options,
}

/// What is to be changed of a file or directory.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Changes {
    pub(super) mode: Option<u16>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) len: Option<u64>,
    pub(super) accessed: Option<SystemTime>,
    pub(super) modified: Option<SystemTime>,
}

/// How much there is room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Room {
    pub(super) capacity: u64,
    pub(super) free: u64,
}

impl Disk {
    /// An empty disk, whose root is this process's.
    pub(super) fn new(options: Options) -> Self {
        let access = Access { mode: 0o755, uid: geteuid().as_raw(), gid: getegid().as_raw() };
        let root = Inode { links: 1, durable_links: 1, ..Inode::new(Node::Dir(Dir::default()), access) };
        Self {
            inodes: BTreeMap::from([(ROOT, root)]),
            journal: Journal::default(),
            next: ROOT + 1,
            faults: Faults::default(),
            counters: Counters::default(),
            cuts: 0,
            options,
        }
    }

    pub(super) fn inode(&self, ino: Ino) -> Outcome<&Inode> {
        self.inodes.get(&ino).ok_or(Errno::NOENT)
    }

    pub(super) fn inode_mut(&mut self, ino: Ino) -> Outcome<&mut Inode> {
        self.inodes.get_mut(&ino).ok_or(Errno::NOENT)
    }

    fn file_mut(&mut self, ino: Ino) -> Outcome<&mut FileData> {
        match &mut self.inode_mut(ino)?.node {
            Node::File(file) => Ok(file),
            Node::Dir(_) => Err(Errno::ISDIR),
        }
    }

    /// What is said of it.
    pub(super) fn attr(&self, ino: Ino) -> Outcome<Attr> {
        Ok(self.inode(ino)?.attr(ino))
    }

    /// Changes what is said of it, its length too.
    pub(super) fn change(&mut self, ino: Ino, changes: Changes) -> Outcome<Attr> {
        if let Some(len) = changes.len {
            self.set_len(ino, len)?;
        }
        let inode = self.inode_mut(ino)?;
        let Changes { mode, uid, gid, len: _, accessed, modified } = changes;
        let access = inode.access;
        inode.access = Access {
            mode: mode.unwrap_or(access.mode),
            uid: uid.unwrap_or(access.uid),
            gid: gid.unwrap_or(access.gid),
        };
        inode.times.changed = SystemTime::now();
        inode.times.accessed = accessed.unwrap_or(inode.times.accessed);
        inode.times.modified = modified.unwrap_or(inode.times.modified);
        self.attr(ino)
    }

    fn set_len(&mut self, ino: Ino, len: u64) -> Outcome<()> {
        if len > MAX_BYTES {
            return Err(Errno::FBIG);
        }
        self.file_mut(ino)?.set_len(len);
        self.inode_mut(ino)?.touch();
        Ok(())
    }

    /// Somebody has it open, and will say when not any more.
    pub(super) fn open(&mut self, ino: Ino) -> Outcome<()> {
        self.inode_mut(ino)?.opens += 1;
        Ok(())
    }

    /// A handle is closed.
    pub(super) fn release(&mut self, ino: Ino) {
        if let Ok(inode) = self.inode_mut(ino) {
            inode.opens = inode.opens.saturating_sub(1);
        }
        self.reclaim(ino);
    }

    /// At most so many bytes from there: fewer at the end.
    pub(super) fn read(&self, ino: Ino, offset: u64, bytes: usize) -> Outcome<Vec<u8>> {
        if self.faults.read.as_ref().is_some_and(|which| self.is_meant(which, ino)) {
            return Err(Errno::IO);
        }
        match &self.inode(ino)?.node {
            Node::File(file) => Ok(file.read(offset, bytes)),
            Node::Dir(_) => Err(Errno::ISDIR),
        }
    }

    /// All of it or nothing.
    pub(super) fn write(&mut self, ino: Ino, offset: u64, data: &[u8]) -> Outcome<()> {
        let end = end_of(offset, data.len() as u64)?;
        self.check_room(ino, end)?;
        self.file_mut(ino)?.write(offset, data);
        self.inode_mut(ino)?.touch();
        self.counters.writes += 1;
        self.counters.bytes += data.len() as u64;
        Ok(())
    }

    /// Sets space aside, and extends the file up to its end unless the size is to be kept.
    pub(super) fn allocate(&mut self, ino: Ino, offset: u64, bytes: u64, keep_size: bool) -> Outcome<()> {
        let end = end_of(offset, bytes)?;
        self.check_room(ino, end)?;
        let file = self.file_mut(ino)?;
        if !keep_size && end > file.len() {
            file.set_len(end);
        }
        file.reserve(end);
        Ok(())
    }

    /// Makes durable what a sync of it makes durable, or fails and gives that up for good.
    pub(super) fn sync(&mut self, ino: Ino) -> Outcome<()> {
        if let Some(errno) = self.next_sync_fault(ino) {
            self.counters.failed_fsyncs += 1;
            match &mut self.inode_mut(ino)?.node {
                Node::File(file) => file.doom(),
                Node::Dir(_) => self.journal.doom(ino),
            }
            return Err(errno);
        }
        self.counters.fsyncs += 1;
        let taken = match &mut self.inode_mut(ino)?.node {
            Node::Dir(_) => self.journal.take_for(ino),
            Node::File(file) => {
                file.sync();
                if !self.options.file_fsync_persists_its_entry {
                    return Ok(());
                }
                self.journal.take_through(ino)
            }
        };
        self.make_durable(taken);
        Ok(())
    }

    /// The same after a while; nothing if the power was cut meanwhile.
    pub(super) fn sync_unless_cut(&mut self, ino: Ino, cuts: u64) -> Outcome<()> {
        if cuts == self.cuts { self.sync(ino) } else { Err(Errno::IO) }
    }

    fn next_sync_fault(&mut self, ino: Ino) -> Option<Errno> {
        let fault = self.faults.sync.as_ref().filter(|fault| fault.left > 0)?;
        let (errno, is_meant) = (fault.errno, self.is_meant(&fault.which, ino));
        let fault = self.faults.sync.as_mut().filter(|_| is_meant)?;
        fault.left -= 1;
        Some(errno)
    }

    /// Whether a fault is about it. What has no name any more is meant only if all are.
    pub(super) fn is_meant(&self, which: &Which, ino: Ino) -> bool {
        *which == Which::Any || self.meant(which).iter().any(|(_, meant)| *meant == ino)
    }

    /// What a fault is about, by path.
    pub(super) fn meant(&self, which: &Which) -> Vec<(String, Ino)> {
        let is_dir = |ino: Ino| self.inode(ino).is_ok_and(Inode::is_dir);
        self.paths().into_iter().filter(|(path, ino)| which.takes(path, is_dir(*ino))).collect()
    }

    /// How much is free.
    pub(super) fn room(&self) -> Room {
        let capacity = self.faults.capacity.unwrap_or(CAPACITY);
        let used: u64 = self.inodes.values().map(Inode::space).sum();
        Room { capacity, free: capacity.saturating_sub(used) }
    }

    fn check_room(&self, ino: Ino, end: u64) -> Outcome<()> {
        let inode = self.inode(ino)?;
        let more = inode.space_if(end).saturating_sub(inode.space_if(0));
        if self.faults.capacity.is_some() && more > 0 && self.room().free < more {
            return Err(Errno::NOSPC);
        }
        Ok(())
    }

    /// Whether there is room for another file.
    pub(super) fn check_room_for_another(&self) -> Outcome<()> {
        if self.faults.capacity.is_some() && self.room().free == 0 {
            return Err(Errno::NOSPC);
        }
        Ok(())
    }

    /// From now on so many syncs of these fail.
    pub(super) fn fail_syncs(&mut self, which: Which, errno: Errno, count: u64) {
        self.faults.sync = Some(SyncFault { which, errno, left: count });
    }

    /// How long a sync takes.
    pub(super) fn slow(&self) -> Duration {
        self.faults.slow
    }

    /// Flips one bit of one of these files: which one, the seed says. `None`: none of them holds anything.
    pub(super) fn flip(&mut self, which: &Which, seed: u64) -> Option<(Ino, Flip)> {
        let mut rng = Rng::new(seed);
        let mut found = self.meant(which);
        found.retain(|(_, ino)| self.durable_len(*ino) > 0);
        let chosen = rng.below(found.len() as u64) as usize;
        let (path, ino) = found.into_iter().nth(chosen)?;
        let (offset, bit) = (rng.below(self.durable_len(ino)), rng.below(8) as u8);
        self.file_mut(ino).ok()?.flip(offset, bit);
        Some((ino, Flip { path, offset, bit }))
    }

    /// What readers and whoever reads after a cut both have of it.
    fn durable_len(&self, ino: Ino) -> u64 {
        match self.inode(ino).map(|inode| &inode.node) {
            Ok(Node::File(file)) => file.durable_len().min(file.len()),
            Ok(Node::Dir(_)) | Err(_) => 0,
        }
    }
}

fn end_of(offset: u64, bytes: u64) -> Outcome<u64> {
    offset.checked_add(bytes).filter(|end| *end <= MAX_BYTES).ok_or(Errno::FBIG)
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
