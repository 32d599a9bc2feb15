//! The disk against a simple model of it: whole copies of what is durable, made at each sync.
//!
//! Deliberately absent: more than one directory. What holds between directories is shown one situation at a time
//! (`tests`).

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

use proptest::prelude::{Just, ProptestConfig, Strategy, prop_assert, prop_assert_eq, prop_oneof, proptest};
use rustix::io::Errno;

use super::tests::{ACCESS, at, disk, whole};
use crate::power::Lose;
use crate::power::disk::{Changes, Disk, ROOT};
use crate::power::faults::Which;
use crate::power::names::Ino;

const SECTOR: usize = 512;

/// Something done to a directory of four names.
#[derive(Clone, Debug)]
enum Step {
    Make(usize),
    Write { file: usize, offset: usize, bytes: usize, fill: u8 },
    SetLen { file: usize, len: usize },
    Sync(usize),
    FailSync(usize),
    SyncDir,
    Rename(usize, usize),
    Link(usize, usize),
    Unlink(usize),
}

const NAMES: [&str; 4] = ["a", "b", "c", "d"];
/// More than two pages.
const LONGEST: usize = 40_000;

fn step(can_fail: bool) -> impl Strategy<Value = Step> {
    let name = || 0..NAMES.len();
    prop_oneof![
        3 => name().prop_map(Step::Make),
        8 => (name(), 0..LONGEST, 0..3_000_usize, 1..=u8::MAX)
            .prop_map(|(file, offset, bytes, fill)| Step::Write { file, offset, bytes, fill }),
        2 => (name(), 0..LONGEST).prop_map(|(file, len)| Step::SetLen { file, len }),
        3 => name().prop_map(Step::Sync),
        1 => name().prop_map(move |file| if can_fail { Step::FailSync(file) } else { Step::Sync(file) }),
        2 => Just(Step::SyncDir),
        1 => (name(), name()).prop_map(|(from, to)| Step::Rename(from, to)),
        1 => (name(), name()).prop_map(|(from, to)| Step::Link(from, to)),
        1 => name().prop_map(Step::Unlink),
    ]
}

fn steps(can_fail: bool) -> impl Strategy<Value = Vec<Step>> {
    proptest::collection::vec(step(can_fail), 0..60)
}

type Listing = BTreeMap<OsString, Ino>;

/// One file of the model.
#[derive(Clone, Debug, Default)]
struct Modelled {
    live: Vec<u8>,
    durable: Vec<u8>,
    is_doomed: bool,
    changes: Vec<Change>,
}

#[derive(Clone, Debug)]
enum Change {
    Write(usize, Vec<u8>),
    SetLen(usize),
}

impl Change {
    fn apply(&self, to: &mut Vec<u8>) {
        match self {
            Change::Write(offset, data) => {
                let end = offset + data.len();
                to.resize(to.len().max(end), 0);
                to[*offset..end].copy_from_slice(data);
            }
            Change::SetLen(len) => to.resize(*len, 0),
        }
    }

    /// The change itself, and each of its torn forms.
    fn forms(&self) -> Vec<Change> {
        let mut forms = vec![self.clone()];
        if let Change::Write(offset, data) = self {
            let boundaries = (offset + 1..offset + data.len()).filter(|at| at % SECTOR == 0);
            forms.extend(boundaries.map(|at| Change::Write(*offset, data[..at - offset].to_vec())));
        }
        forms
    }
}

impl Modelled {
    fn change(&mut self, change: Change) {
        change.apply(&mut self.live);
        self.changes.push(change);
    }

    fn sync(&mut self) {
        let changes = std::mem::take(&mut self.changes);
        if self.is_doomed {
            changes.iter().for_each(|change| change.apply(&mut self.durable));
        } else {
            self.durable = self.live.clone();
        }
    }

    /// Everything that a cut may leave of it.
    fn survivors(&self) -> Vec<Vec<u8>> {
        let (mut before, mut survivors) = (self.durable.clone(), vec![self.durable.clone()]);
        for change in &self.changes {
            for form in change.forms() {
                let mut after = before.clone();
                form.apply(&mut after);
                survivors.push(after);
            }
            change.apply(&mut before);
        }
        survivors
    }
}

/// The model of a disk with nothing but a root directory.
#[derive(Debug, Default)]
struct Model {
    files: BTreeMap<Ino, Modelled>,
    names: Listing,
    /// After each change since the last sync, and before the first.
    listings: Vec<Listing>,
}

impl Model {
    fn new() -> Self {
        Self { listings: vec![Listing::new()], ..Self::default() }
    }

    fn file(&mut self, name: usize) -> Option<(Ino, &mut Modelled)> {
        let ino = *self.names.get(OsStr::new(NAMES[name]))?;
        Some((ino, self.files.get_mut(&ino)?))
    }

    fn renamed(&mut self) {
        self.listings.push(self.names.clone());
    }

    /// Does it to both, and fails where they disagree on whether it can be done.
    fn take(&mut self, disk: &mut Disk, step: &Step) {
        match *step {
            Step::Make(name) => self.make(disk, name),
            Step::Write { file, offset, bytes, fill } => {
                let Some((ino, file)) = self.file(file) else { return };
                let data = vec![fill; bytes];
                disk.write(ino, offset as u64, &data).unwrap();
                if bytes > 0 {
                    file.change(Change::Write(offset, data));
                }
            }
            Step::SetLen { file, len } => {
                let Some((ino, file)) = self.file(file) else { return };
                disk.change(ino, Changes { len: Some(len as u64), ..Changes::default() }).unwrap();
                if len != file.live.len() {
                    file.change(Change::SetLen(len));
                }
            }
            Step::Sync(file) => {
                let Some((ino, file)) = self.file(file) else { return };
                disk.sync(ino).unwrap();
                file.sync();
            }
            Step::FailSync(file) => {
                let Some((ino, file)) = self.file(file) else { return };
                disk.fail_syncs(Which::Any, Errno::IO, 1);
                assert_eq!(disk.sync(ino), Err(Errno::IO));
                file.is_doomed |= !file.changes.is_empty();
                file.changes.clear();
            }
            Step::SyncDir => {
                disk.sync(ROOT).unwrap();
                self.listings = vec![self.names.clone()];
            }
            Step::Rename(from, to) => self.rename(disk, from, to),
            Step::Link(from, to) => self.link(disk, from, to),
            Step::Unlink(name) => {
                let removed = self.names.remove(OsStr::new(NAMES[name])).is_some();
                assert_eq!(disk.unlink(at(ROOT, NAMES[name])).is_ok(), removed);
                if removed {
                    self.renamed();
                }
            }
        }
    }

    fn make(&mut self, disk: &mut Disk, name: usize) {
        let made = disk.make_file(at(ROOT, NAMES[name]), ACCESS);
        assert_eq!(made.is_ok(), self.file(name).is_none());
        if let Ok(attr) = made {
            self.files.insert(attr.ino, Modelled::default());
            self.names.insert(NAMES[name].into(), attr.ino);
            self.renamed();
        }
    }

    fn rename(&mut self, disk: &mut Disk, from: usize, to: usize) {
        let (moved, replaced) = (self.file(from).map(|(ino, _)| ino), self.file(to).map(|(ino, _)| ino));
        let renamed = disk.rename(at(ROOT, NAMES[from]), at(ROOT, NAMES[to]), true);
        assert_eq!(renamed.is_ok(), moved.is_some());
        let Some(ino) = moved.filter(|_| moved != replaced) else { return };
        self.names.remove(OsStr::new(NAMES[from]));
        self.names.insert(NAMES[to].into(), ino);
        self.renamed();
    }

    fn link(&mut self, disk: &mut Disk, from: usize, to: usize) {
        let Some((ino, _)) = self.file(from) else { return };
        let is_free = self.file(to).is_none();
        assert_eq!(disk.link(ino, at(ROOT, NAMES[to])).is_ok(), is_free);
        if is_free {
            self.names.insert(NAMES[to].into(), ino);
            self.renamed();
        }
    }
}

/// A disk and its model after these steps, which look the same.
fn both(steps: &[Step]) -> (Disk, Model) {
    let (mut disk, mut model) = (disk(), Model::new());
    for step in steps {
        model.take(&mut disk, step);
        assert_eq!(listing(&disk), model.names);
    }
    for ino in model.names.values() {
        assert_eq!(whole(&disk, *ino), model.files[ino].live);
    }
    (disk, model)
}

fn listing(disk: &Disk) -> Listing {
    disk.list(ROOT).unwrap().into_iter().map(|listed| (listed.name, listed.ino)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_cut_leaves_what_was_synced_and_nothing_else(steps in steps(true)) {
        let (mut disk, model) = both(&steps);
        disk.cut(Lose::All);
        let durable = &model.listings[0];
        prop_assert_eq!(&listing(&disk), durable);
        for ino in durable.values() {
            let found = whole(&disk, *ino);
            prop_assert!(found == model.files[ino].durable, "file {}", ino);
            let links = durable.values().filter(|named| *named == ino).count();
            prop_assert_eq!(disk.attr(*ino).unwrap().links as usize, links);
        }
        prop_assert!(disk.inodes.len() <= durable.len() + 1);
    }

    #[test]
    fn a_cut_that_leaves_a_tail_leaves_first_changes_of_each(steps in steps(true), seed in 0..u64::MAX) {
        let (mut disk, model) = both(&steps);
        disk.cut(Lose::Tail { seed });
        let found = listing(&disk);
        prop_assert!(model.listings.contains(&found), "{:?} of {:?}", found, model.listings);
        for ino in found.values() {
            let found = whole(&disk, *ino);
            prop_assert!(model.files[ino].survivors().contains(&found), "file {}", ino);
        }
    }

    #[test]
    fn after_a_clean_sync_of_all_nothing_can_be_lost(steps in steps(false), seed in 0..u64::MAX) {
        let (mut disk, model) = both(&steps);
        for ino in model.names.values() {
            disk.sync(*ino).unwrap();
        }
        disk.sync(ROOT).unwrap();
        let lost = disk.cut(Lose::Tail { seed });
        prop_assert_eq!((lost.files, lost.bytes, lost.names), (0, 0, 0));
        prop_assert_eq!(&listing(&disk), &model.names);
        for ino in model.names.values() {
            prop_assert!(whole(&disk, *ino) == model.files[ino].live, "file {}", ino);
        }
    }
}
