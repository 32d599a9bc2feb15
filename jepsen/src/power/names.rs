//! The changes of directories that no sync has made durable yet, and which of them a sync takes along.
//!
//! Within a directory, changes become durable in the order in which they were made. A rename from one directory to
//! another is one change of both: neither half is ever durable without the other, so no file is lost by moving it.
//! Removing a directory counts as a change of that directory too, so it is never durable before what emptied it.
//!
//! Deliberately absent: the directories themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;

use crate::rng::Rng;

/// The number of a file or directory. Never used again for another.
pub(super) type Ino = u64;

/// One change of one or more directories, made at once.
#[derive(Debug)]
pub(super) struct NameChange {
    /// The directories that it is a change of.
    pub(super) of: Vec<Ino>,
    /// A name that goes.
    pub(super) removes: Option<(Ino, OsString)>,
    /// A name that is there afterwards, and what it is the name of.
    pub(super) sets: Option<(Ino, OsString, Ino)>,
}

impl NameChange {
    fn is_of(&self, any: &BTreeSet<Ino>) -> bool {
        self.of.iter().any(|dir| any.contains(dir))
    }

    fn names(&self, ino: Ino) -> bool {
        self.sets.as_ref().is_some_and(|(_, _, named)| *named == ino)
    }
}

/// Changes that are not durable, oldest first.
#[derive(Debug, Default)]
pub(super) struct Journal {
    changes: Vec<NameChange>,
}

impl Journal {
    /// One more.
    pub(super) fn push(&mut self, change: NameChange) {
        self.changes.push(change);
    }

    /// Whether one of them gives this a name.
    pub(super) fn names(&self, ino: Ino) -> bool {
        self.changes.iter().any(|change| change.names(ino))
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.changes.len()
    }

    /// Takes out what is durable once the directory is synced: its changes, and what those cannot be without.
    pub(super) fn take_for(&mut self, dir: Ino) -> Vec<NameChange> {
        let mut dirs = BTreeSet::from([dir]);
        let mut taken = Vec::with_capacity(self.changes.len());
        for change in self.changes.iter().rev() {
            let is_taken = change.is_of(&dirs);
            if is_taken {
                dirs.extend(&change.of);
            }
            taken.push(is_taken);
        }
        taken.reverse();
        self.take(taken)
    }

    /// Takes out everything up to the last change that gave the file a name.
    pub(super) fn take_through(&mut self, file: Ino) -> Vec<NameChange> {
        let last = self.changes.iter().rposition(|change| change.names(file));
        self.changes.drain(..last.map_or(0, |last| last + 1)).collect()
    }

    /// Takes out some first changes of each directory, as many as chance leaves it, and none that cannot be alone.
    pub(super) fn take_prefixes(&mut self, rng: &mut Rng) -> Vec<NameChange> {
        let mut left: BTreeMap<Ino, u64> = BTreeMap::new();
        for dir in self.changes.iter().flat_map(|change| &change.of) {
            *left.entry(*dir).or_default() += 1;
        }
        left.values_mut().for_each(|count| *count = rng.below(*count + 1));
        let mut taken = Vec::with_capacity(self.changes.len());
        for change in &self.changes {
            let survives = change.of.iter().all(|dir| left.get(dir).is_some_and(|left| *left > 0));
            for dir in &change.of {
                let after = left.get(dir).filter(|_| survives).map_or(0, |left| left.saturating_sub(1));
                left.insert(*dir, after);
            }
            taken.push(survives);
        }
        self.take(taken)
    }

    /// Forgets the changes of a directory whose sync failed: they will never be durable.
    pub(super) fn doom(&mut self, dir: Ino) {
        self.changes.retain(|change| !change.of.contains(&dir));
    }

    /// Forgets all of them.
    pub(super) fn clear(&mut self) {
        self.changes.clear();
    }

    fn take(&mut self, taken: Vec<bool>) -> Vec<NameChange> {
        let mut flags = taken.into_iter();
        self.changes.extract_if(.., |_| flags.next().unwrap_or(false)).collect()
    }
}
