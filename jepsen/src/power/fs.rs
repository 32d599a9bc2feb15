//! The disk as the kernel asks for it: each request is handed on, each answer put into the kernel's words.
//!
//! The kernel writes through (no writeback cache), so each write is known at once. It may remember names and attributes
//! for a second, as nobody else changes them; it keeps locks itself.
//!
//! Deliberately absent: symbolic links, devices, extended attributes, holes, copies within the disk. The kernel is told
//! that there are none, or does without.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use rustix::fs::FallocateFlags;

use crate::power::Shared;
use crate::power::disk::{Changes, Disk, Outcome};
use crate::power::inode::{Access, Attr, Name};
use crate::power::names::Ino;
use crate::power::tree::Listed;

/// How long the kernel may remember names and attributes.
const TTL: Duration = Duration::from_secs(1);
/// The largest write that comes in one piece.
const MAX_WRITE_BYTES: u32 = 1 << 20;
const BLOCK_BYTES: u32 = 4096;
const MAX_NAME_BYTES: u32 = 255;
const GENERATION: Generation = Generation(0);

/// `O_DSYNC` of Linux, which `O_SYNC` includes; rustix has both as one.
const O_DSYNC: i32 = 0o10000;
const O_EXCL: i32 = 0o200;
/// Of a mode: what kind of file, and a regular one.
const S_IFMT: u32 = 0o170000;
const S_IFREG: u32 = 0o100000;

/// The file system of one disk.
#[derive(Debug)]
pub(super) struct PowerFs {
    disk: Shared,
    /// Directories that are being read: names must not move while a reader is between two calls.
    listings: Mutex<BTreeMap<u64, Vec<Listed>>>,
    next_handle: AtomicU64,
}

fn errno(error: rustix::io::Errno) -> Errno {
    Errno::from_i32(error.raw_os_error())
}

fn as_told(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.len,
        blocks: attr.space / 512,
        atime: attr.times.accessed,
        mtime: attr.times.modified,
        ctime: attr.times.changed,
        crtime: attr.times.changed,
        kind: kind(attr.is_dir),
        perm: attr.access.mode,
        nlink: attr.links,
        uid: attr.access.uid,
        gid: attr.access.gid,
        rdev: 0,
        blksize: BLOCK_BYTES,
        flags: 0,
    }
}

fn kind(is_dir: bool) -> FileType {
    if is_dir { FileType::Directory } else { FileType::RegularFile }
}

fn permissions(mode: u32) -> u16 {
    (mode & 0o7777) as u16
}

fn access_of(request: &Request, mode: u32) -> Access {
    Access { mode: permissions(mode), uid: request.uid(), gid: request.gid() }
}

fn moment(time: TimeOrNow) -> SystemTime {
    match time {
        TimeOrNow::SpecificTime(time) => time,
        TimeOrNow::Now => SystemTime::now(),
    }
}

fn answer(reply: ReplyEmpty, outcome: Outcome<()>) {
    match outcome {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(error)),
    }
}

fn answer_entry(reply: ReplyEntry, outcome: Outcome<Attr>) {
    match outcome {
        Ok(attr) => reply.entry(&TTL, &as_told(&attr), GENERATION),
        Err(error) => reply.error(errno(error)),
    }
}

fn answer_attr(reply: ReplyAttr, outcome: Outcome<Attr>) {
    match outcome {
        Ok(attr) => reply.attr(&TTL, &as_told(&attr)),
        Err(error) => reply.error(errno(error)),
    }
}

impl PowerFs {
    /// A view of the disk.
    pub(super) fn new(disk: Shared) -> Self {
        Self { disk, listings: Mutex::default(), next_handle: AtomicU64::new(1) }
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listings(&self) -> MutexGuard<'_, BTreeMap<u64, Vec<Listed>>> {
        self.listings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Syncs and answers: on a slow disk later, and other requests do not wait for that.
    fn sync(&self, ino: Ino, done: impl FnOnce(Outcome<()>) + Send + 'static) {
        let (slow, cuts) = {
            let disk = self.disk();
            (disk.slow(), disk.cuts)
        };
        if slow.is_zero() {
            let outcome = self.disk().sync(ino);
            return done(outcome);
        }
        let disk = Shared::clone(&self.disk);
        let waits = thread::Builder::new().name("slow-sync".to_owned()).spawn(move || {
            thread::sleep(slow);
            let outcome = disk.lock().unwrap_or_else(PoisonError::into_inner).sync_unless_cut(ino, cuts);
            done(outcome);
        });
        // The answer was dropped with the thread that was not made, which tells the kernel of an error.
        if let Err(error) = waits {
            eprintln!("no thread for a slow sync: {error}");
        }
    }

    fn open_or_make(&self, request: &Request, name: Name<'_>, mode: u32, flags: i32) -> Outcome<Attr> {
        let mut disk = self.disk();
        let attr = match disk.lookup(name) {
            Ok(attr) if flags & O_EXCL == 0 => attr,
            Ok(_) | Err(_) => disk.make_file(name, access_of(request, mode))?,
        };
        disk.open(attr.ino)?;
        Ok(attr)
    }

    fn open_handle(&self, ino: Ino, reply: ReplyOpen) {
        match self.disk().open(ino) {
            Ok(()) => {
                let handle = FileHandle(self.next_handle.fetch_add(1, Ordering::Relaxed));
                reply.opened(handle, FopenFlags::empty());
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    fn list(&self, dir: Ino) -> Outcome<Vec<Listed>> {
        let itself = [".", ".."].map(|name| Listed { ino: dir, is_dir: true, name: name.into() });
        let mut listed = Vec::from(itself);
        listed.extend(self.disk().list(dir)?);
        Ok(listed)
    }
}

impl Filesystem for PowerFs {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Refused only if it were too much.
        let _before = config.set_max_write(MAX_WRITE_BYTES);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.disk().lookup(Name { dir: parent.0, name });
        answer_entry(reply, found);
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        let attr = self.disk().attr(ino.0);
        answer_attr(reply, attr);
    }

    fn setattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let (mode, accessed, modified) = (mode.map(permissions), atime.map(moment), mtime.map(moment));
        let changed = self.disk().change(ino.0, Changes { mode, uid, gid, len: size, accessed, modified });
        answer_attr(reply, changed);
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        if mode & S_IFMT != S_IFREG {
            return reply.error(Errno::EPERM);
        }
        let made = self.disk().make_file(Name { dir: parent.0, name }, access_of(request, mode));
        answer_entry(reply, made);
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        let made = self.disk().make_dir(Name { dir: parent.0, name }, access_of(request, mode));
        answer_entry(reply, made);
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let removed = self.disk().unlink(Name { dir: parent.0, name });
        answer(reply, removed);
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let removed = self.disk().rmdir(Name { dir: parent.0, name });
        answer(reply, removed);
    }

    fn rename(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if !RenameFlags::RENAME_NOREPLACE.contains(flags) {
            return reply.error(Errno::EINVAL);
        }
        let (from, to) = (Name { dir: parent.0, name }, Name { dir: newparent.0, name: newname });
        let renamed = self.disk().rename(from, to, flags.is_empty());
        answer(reply, renamed);
    }

    fn link(&self, _request: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let linked = self.disk().link(ino.0, Name { dir: newparent.0, name: newname });
        answer_entry(reply, linked);
    }

    fn open(&self, _request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.open_handle(ino.0, reply);
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        match self.open_or_make(request, Name { dir: parent.0, name }, mode, flags) {
            Ok(attr) => reply.created(&TTL, &as_told(&attr), GENERATION, FileHandle(0), FopenFlags::empty()),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn read(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let read = self.disk().read(ino.0, offset, size as usize);
        match read {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn write(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let written = self.disk().write(ino.0, offset, data);
        let bytes = data.len() as u32;
        let told = move |outcome: Outcome<()>| match outcome {
            Ok(()) => reply.written(bytes),
            Err(error) => reply.error(errno(error)),
        };
        // A file that was opened so is synced whole: the kernel asks for no less on its behalf.
        if written.is_ok() && flags.0 & O_DSYNC != 0 { self.sync(ino.0, told) } else { told(written) }
    }

    fn flush(&self, _request: &Request, _ino: INodeNo, _handle: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        // A close makes nothing durable.
        reply.ok();
    }

    fn release(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.disk().release(ino.0);
        reply.ok();
    }

    fn fsync(&self, _request: &Request, ino: INodeNo, _handle: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.sync(ino.0, move |outcome| answer(reply, outcome));
    }

    fn opendir(&self, _request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.open_handle(ino.0, reply);
    }

    fn readdir(&self, _request: &Request, ino: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let mut listings = self.listings();
        if offset == 0 || !listings.contains_key(&handle.0) {
            match self.list(ino.0) {
                Ok(listed) => listings.insert(handle.0, listed),
                Err(error) => return reply.error(errno(error)),
            };
        }
        let listed = listings.get(&handle.0).map(Vec::as_slice).unwrap_or_default();
        for (next, entry) in (1..).zip(listed).skip(offset as usize) {
            let is_full = reply.add(INodeNo(entry.ino), next, kind(entry.is_dir), &entry.name);
            if is_full {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(&self, _request: &Request, ino: INodeNo, handle: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.listings().remove(&handle.0);
        self.disk().release(ino.0);
        reply.ok();
    }

    fn fsyncdir(&self, _request: &Request, ino: INodeNo, _handle: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.sync(ino.0, move |outcome| answer(reply, outcome));
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let room = self.disk().room();
        let (blocks, free) = (room.capacity / u64::from(BLOCK_BYTES), room.free / u64::from(BLOCK_BYTES));
        let files = u64::from(u32::MAX);
        reply.statfs(blocks, free, free, files, files, BLOCK_BYTES, MAX_NAME_BYTES, BLOCK_BYTES);
    }

    fn access(&self, _request: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        // The kernel has checked: the disk is mounted with `default_permissions`.
        reply.ok();
    }

    fn fallocate(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let mode = FallocateFlags::from_bits_retain(mode as u32);
        if !FallocateFlags::KEEP_SIZE.contains(mode) {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let allocated = self.disk().allocate(ino.0, offset, length, !mode.is_empty());
        answer(reply, allocated);
    }
}
