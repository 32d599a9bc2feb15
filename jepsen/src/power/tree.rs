//! The names of the disk: looking them up, making, moving and removing them.
//!
//! Owns that every change of a name is seen at once and is written to the journal, and when a file without a name goes.
//!
//! Deliberately absent: checks that the kernel makes before it asks (permissions, a directory moved into itself).

use std::collections::BTreeSet;
use std::ffi::OsString;

use rustix::io::Errno;

use crate::power::content::FileData;
use crate::power::disk::{Disk, Outcome, ROOT};
use crate::power::inode::{Access, Attr, Dir, Inode, Name, Node};
use crate::power::names::{Ino, NameChange};

/// A name in a listing.
#[derive(Clone, Debug)]
pub(super) struct Listed {
    /// What it is the name of.
    pub(super) ino: Ino,
    /// Whether that is a directory.
    pub(super) is_dir: bool,
    /// The name.
    pub(super) name: OsString,
}

impl Disk {
    fn dir(&self, ino: Ino) -> Outcome<&Dir> {
        match &self.inode(ino)?.node {
            Node::Dir(dir) => Ok(dir),
            Node::File(_) => Err(Errno::NOTDIR),
        }
    }

    fn dir_mut(&mut self, ino: Ino) -> Outcome<&mut Dir> {
        match &mut self.inode_mut(ino)?.node {
            Node::Dir(dir) => Ok(dir),
            Node::File(_) => Err(Errno::NOTDIR),
        }
    }

    fn find(&self, name: Name<'_>) -> Outcome<Option<Ino>> {
        Ok(self.dir(name.dir)?.live.get(name.name).copied())
    }

    fn named(&self, name: Name<'_>) -> Outcome<Ino> {
        self.find(name)?.ok_or(Errno::NOENT)
    }

    /// What a name is the name of.
    pub(super) fn lookup(&self, name: Name<'_>) -> Outcome<Attr> {
        self.attr(self.named(name)?)
    }

    /// A new, empty file.
    pub(super) fn make_file(&mut self, name: Name<'_>, access: Access) -> Outcome<Attr> {
        self.make(name, Inode::new(Node::File(FileData::default()), access))
    }

    /// A new, empty directory.
    pub(super) fn make_dir(&mut self, name: Name<'_>, access: Access) -> Outcome<Attr> {
        self.make(name, Inode::new(Node::Dir(Dir::default()), access))
    }

    fn make(&mut self, name: Name<'_>, inode: Inode) -> Outcome<Attr> {
        self.check_free(name)?;
        self.check_room_for_another()?;
        let ino = self.next;
        self.next += 1;
        self.inodes.insert(ino, inode);
        self.set(name, ino)?;
        self.attr(ino)
    }

    /// One more name for a file.
    pub(super) fn link(&mut self, ino: Ino, name: Name<'_>) -> Outcome<Attr> {
        if self.inode(ino)?.is_dir() {
            return Err(Errno::PERM);
        }
        self.check_free(name)?;
        self.set(name, ino)?;
        self.attr(ino)
    }

    fn check_free(&self, name: Name<'_>) -> Outcome<()> {
        if self.find(name)?.is_some() { Err(Errno::EXIST) } else { Ok(()) }
    }

    fn set(&mut self, name: Name<'_>, ino: Ino) -> Outcome<()> {
        self.put_name(name, ino)?;
        let sets = Some((name.dir, name.name.to_owned(), ino));
        self.journal.push(NameChange { of: vec![name.dir], removes: None, sets });
        Ok(())
    }

    /// Removes a name of a file. Who has it open keeps it.
    pub(super) fn unlink(&mut self, name: Name<'_>) -> Outcome<()> {
        if self.inode(self.named(name)?)?.is_dir() {
            return Err(Errno::ISDIR);
        }
        self.remove(name, vec![name.dir])
    }

    /// Removes a directory that is empty.
    pub(super) fn rmdir(&mut self, name: Name<'_>) -> Outcome<()> {
        let ino = self.named(name)?;
        self.check_empty(ino)?;
        self.remove(name, vec![name.dir, ino])
    }

    fn check_empty(&self, dir: Ino) -> Outcome<()> {
        if self.dir(dir)?.live.is_empty() { Ok(()) } else { Err(Errno::NOTEMPTY) }
    }

    fn remove(&mut self, name: Name<'_>, of: Vec<Ino>) -> Outcome<()> {
        let gone = self.take_name(name)?;
        self.journal.push(NameChange { of, removes: Some((name.dir, name.name.to_owned())), sets: None });
        self.reclaim(gone);
        Ok(())
    }

    /// Gives something another name, in place of what may have that one now.
    pub(super) fn rename(&mut self, from: Name<'_>, to: Name<'_>, may_replace: bool) -> Outcome<()> {
        let (moved, replaced) = (self.named(from)?, self.find(to)?);
        // Two names of one file: POSIX lets both be.
        if replaced == Some(moved) && may_replace {
            return Ok(());
        }
        let mut of = BTreeSet::from([from.dir, to.dir]);
        if let Some(replaced) = replaced {
            self.check_replaceable(moved, replaced, may_replace)?;
            if self.inode(replaced)?.is_dir() {
                of.insert(replaced);
            }
            self.take_name(to)?;
        }
        self.take_name(from)?;
        self.put_name(to, moved)?;
        let removes = Some((from.dir, from.name.to_owned()));
        let sets = Some((to.dir, to.name.to_owned(), moved));
        self.journal.push(NameChange { of: of.into_iter().collect(), removes, sets });
        if let Some(replaced) = replaced {
            self.reclaim(replaced);
        }
        Ok(())
    }

    fn check_replaceable(&self, moved: Ino, replaced: Ino, may_replace: bool) -> Outcome<()> {
        match (self.inode(moved)?.is_dir(), self.inode(replaced)?.is_dir()) {
            _ if !may_replace => Err(Errno::EXIST),
            (true, false) => Err(Errno::NOTDIR),
            (false, true) => Err(Errno::ISDIR),
            (true, true) => self.check_empty(replaced),
            (false, false) => Ok(()),
        }
    }

    /// The name is free: it is this one's from now on.
    fn put_name(&mut self, name: Name<'_>, ino: Ino) -> Outcome<()> {
        self.dir_mut(name.dir)?.live.insert(name.name.to_owned(), ino);
        self.inode_mut(name.dir)?.touch();
        self.inode_mut(ino)?.links += 1;
        Ok(())
    }

    fn take_name(&mut self, name: Name<'_>) -> Outcome<Ino> {
        let ino = self.dir_mut(name.dir)?.live.remove(name.name).ok_or(Errno::NOENT)?;
        self.inode_mut(name.dir)?.touch();
        let inode = self.inode_mut(ino)?;
        inode.links = inode.links.saturating_sub(1);
        Ok(ino)
    }

    /// All names of a directory, in order.
    pub(super) fn list(&self, dir: Ino) -> Outcome<Vec<Listed>> {
        let names = self.dir(dir)?.live.iter();
        let listed = names.map(|(name, ino)| {
            let is_dir = self.inode(*ino).is_ok_and(Inode::is_dir);
            Listed { ino: *ino, is_dir, name: name.clone() }
        });
        Ok(listed.collect())
    }

    /// Every path that is seen, without a `/` in front; the root's is empty. One per name.
    pub(super) fn paths(&self) -> Vec<(String, Ino)> {
        let (mut paths, mut dirs) = (vec![(String::new(), ROOT)], BTreeSet::new());
        let mut at = 0;
        while let Some((path, ino)) = paths.get(at).cloned() {
            at += 1;
            // Once: what failed syncs leave of moved directories need not be a tree.
            if let Ok(dir) = self.dir(ino)
                && dirs.insert(ino)
            {
                let prefix = if path.is_empty() { path } else { path + "/" };
                paths.extend(dir.live.iter().map(|(name, ino)| (format!("{prefix}{}", name.to_string_lossy()), *ino)));
            }
        }
        paths
    }

    /// These changes outlive a cut.
    pub(super) fn make_durable(&mut self, changes: Vec<NameChange>) {
        let mut touched = BTreeSet::new();
        for NameChange { removes, sets, .. } in changes {
            let removed = removes.and_then(|(dir, name)| self.dir_mut(dir).ok()?.durable.remove(&name));
            touched.extend(removed.inspect(|ino| self.unlink_durably(*ino)));
            let Some((dir, name, ino)) = sets else { continue };
            // A directory that is gone for good has no names.
            let Ok(dir) = self.dir_mut(dir) else { continue };
            let replaced = dir.durable.insert(name, ino);
            if let Ok(inode) = self.inode_mut(ino) {
                inode.durable_links += 1;
            }
            touched.extend(replaced.inspect(|ino| self.unlink_durably(*ino)));
            touched.insert(ino);
        }
        touched.into_iter().for_each(|ino| self.reclaim(ino));
    }

    fn unlink_durably(&mut self, ino: Ino) {
        if let Ok(inode) = self.inode_mut(ino) {
            inode.durable_links = inode.durable_links.saturating_sub(1);
        }
    }

    /// Lets go of what nobody sees, nobody has open, and no cut brings back.
    pub(super) fn reclaim(&mut self, ino: Ino) {
        let is_kept = |inode: &Inode| inode.links > 0 || inode.durable_links > 0 || inode.opens > 0;
        if self.inode(ino).map_or(true, is_kept) || self.journal.names(ino) {
            return;
        }
        if let Some(Inode { node: Node::Dir(dir), .. }) = self.inodes.remove(&ino) {
            for named in dir.durable.into_values() {
                self.unlink_durably(named);
                self.reclaim(named);
            }
        }
    }
}
