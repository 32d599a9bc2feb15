//! A file or directory of the disk, and what is said of it.
//!
//! Owns the three reasons for which one is kept: a name that is seen, a name that a cut would bring back, somebody who
//! has it open. Modes, owners and times are durable at once: no promise of a store hangs on them.
//!
//! Deliberately absent: links other than hard ones, devices, extended attributes.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::time::SystemTime;

use crate::power::content::FileData;
use crate::power::names::Ino;

/// How space is given out.
const BLOCK_BYTES: u64 = 4096;

/// A name in a directory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Name<'a> {
    /// The directory.
    pub(super) dir: Ino,
    /// The name.
    pub(super) name: &'a OsStr,
}

/// Whose it is, and who may do what with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Access {
    /// Permission bits.
    pub(super) mode: u16,
    /// Owner.
    pub(super) uid: u32,
    /// Group.
    pub(super) gid: u32,
}

/// The names of a directory.
#[derive(Debug, Default)]
pub(super) struct Dir {
    /// As they are seen.
    pub(super) live: BTreeMap<OsString, Ino>,
    /// As a cut leaves them.
    pub(super) durable: BTreeMap<OsString, Ino>,
}

/// What it is.
#[derive(Debug)]
pub(super) enum Node {
    /// Bytes.
    File(FileData),
    /// Names.
    Dir(Dir),
}

/// A file or directory.
#[derive(Debug)]
pub(super) struct Inode {
    /// What it is.
    pub(super) node: Node,
    /// Whose it is.
    pub(super) access: Access,
    /// Read, changed, changed or renamed: last times.
    pub(super) times: Times,
    /// Names that are seen.
    pub(super) links: u32,
    /// Names after a cut.
    pub(super) durable_links: u32,
    /// Handles.
    pub(super) opens: u32,
}

/// Last times.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    /// Of a read: as it was set, since reads do not set it.
    pub(super) accessed: SystemTime,
    /// Of a change of the content.
    pub(super) modified: SystemTime,
    /// Of any change.
    pub(super) changed: SystemTime,
}

/// What is said of a file or directory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attr {
    /// Its number.
    pub(super) ino: Ino,
    /// Whether it is a directory.
    pub(super) is_dir: bool,
    /// How many bytes it has.
    pub(super) len: u64,
    /// The space that it takes.
    pub(super) space: u64,
    /// Whose it is.
    pub(super) access: Access,
    /// How many names it has.
    pub(super) links: u32,
    /// Last times.
    pub(super) times: Times,
}

impl Inode {
    /// New, without a name.
    pub(super) fn new(node: Node, access: Access) -> Self {
        let now = SystemTime::now();
        let times = Times { accessed: now, modified: now, changed: now };
        Self { node, access, times, links: 0, durable_links: 0, opens: 0 }
    }

    /// Its content, or its names, have changed.
    pub(super) fn touch(&mut self) {
        let now = SystemTime::now();
        (self.times.modified, self.times.changed) = (now, now);
    }

    /// Whether it is a directory.
    pub(super) fn is_dir(&self) -> bool {
        matches!(self.node, Node::Dir(_))
    }

    /// The space that it takes, as long as anybody can see it.
    pub(super) fn space(&self) -> u64 {
        let is_seen = self.links > 0 || self.opens > 0;
        if is_seen { self.space_if(0) } else { 0 }
    }

    /// The space that it takes if it reaches at least to there.
    pub(super) fn space_if(&self, end: u64) -> u64 {
        match &self.node {
            Node::File(file) => file.extent().max(end).next_multiple_of(BLOCK_BYTES),
            Node::Dir(_) => 0,
        }
    }

    /// What is said of it.
    pub(super) fn attr(&self, ino: Ino) -> Attr {
        let len = match &self.node {
            Node::File(file) => file.len(),
            Node::Dir(dir) => dir.live.len() as u64,
        };
        let (access, links, times) = (self.access, self.links, self.times);
        Attr { ino, is_dir: self.is_dir(), len, space: self.space(), access, links, times }
    }
}
