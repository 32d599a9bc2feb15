//! What a cut leaves of a disk.
//!
//! Afterwards what is seen and what is durable are the same, nothing is open, and what has no path from the root is
//! gone.
//!
//! Deliberately absent: the kernel's caches. They are gone because the file system is mounted anew (`crate::power`).

use std::collections::BTreeMap;

use crate::power::disk::{Disk, ROOT};
use crate::power::inode::Node;
use crate::power::names::Ino;
use crate::power::{Lose, Lost};
use crate::rng::Rng;

impl Disk {
    /// The power is gone, and comes back.
    pub(super) fn cut(&mut self, lose: Lose) -> Lost {
        let mut rng = match lose {
            Lose::All => None,
            Lose::Tail { seed } => Some(Rng::new(seed)),
        };
        self.cuts += 1;
        let seen = self.seen();
        let mut lost = Lost { names: self.cut_names(rng.as_mut()), ..Lost::default() };
        let torn = self.cut_files(rng.as_mut());
        self.keep_reachable();
        for (ino, len) in seen {
            let bytes = if self.inodes.contains_key(&ino) { torn.get(&ino).copied().unwrap_or(0) } else { len };
            let is_lost = bytes > 0 || !self.inodes.contains_key(&ino);
            (lost.files, lost.bytes) = (lost.files + u64::from(is_lost), lost.bytes + bytes);
        }
        self.counters.lost_bytes = lost.bytes;
        lost
    }

    /// The files that have a name, and how long they are.
    fn seen(&self) -> Vec<(Ino, u64)> {
        let seen = self.inodes.iter().filter(|(_, inode)| inode.links > 0);
        seen.filter_map(|(ino, inode)| match &inode.node {
            Node::File(file) => Some((*ino, file.len())),
            Node::Dir(_) => None,
        })
        .collect()
    }

    /// Gives how many changes of names were lost.
    fn cut_names(&mut self, tail: Option<&mut Rng>) -> u64 {
        let kept = tail.map(|rng| self.journal.take_prefixes(rng)).unwrap_or_default();
        let lost = self.journal.len() as u64;
        self.make_durable(kept);
        self.journal.clear();
        lost
    }

    /// Gives the bytes that each file lost, where there are any.
    fn cut_files(&mut self, mut tail: Option<&mut Rng>) -> BTreeMap<Ino, u64> {
        let mut torn = BTreeMap::new();
        for (ino, inode) in &mut self.inodes {
            match &mut inode.node {
                Node::File(file) => {
                    let lost = file.cut(tail.as_deref_mut());
                    if lost > 0 {
                        torn.insert(*ino, lost);
                    }
                }
                Node::Dir(dir) => dir.live.clone_from(&dir.durable),
            }
        }
        torn
    }

    fn keep_reachable(&mut self) {
        let mut links: BTreeMap<Ino, u32> = BTreeMap::from([(ROOT, 1)]);
        let mut dirs = vec![ROOT];
        while let Some(ino) = dirs.pop() {
            let Some(Node::Dir(dir)) = self.inodes.get(&ino).map(|inode| &inode.node) else { continue };
            for named in dir.live.values() {
                let count = links.entry(*named).or_default();
                *count += 1;
                // Once: what failed syncs leave of moved directories need not be a tree.
                if *count == 1 {
                    dirs.push(*named);
                }
            }
        }
        self.inodes.retain(|ino, _| links.contains_key(ino));
        for (ino, inode) in &mut self.inodes {
            let links = links.get(ino).copied().unwrap_or(0);
            (inode.links, inode.durable_links, inode.opens) = (links, links, 0);
        }
    }
}
