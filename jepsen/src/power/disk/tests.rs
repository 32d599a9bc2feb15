//! What a cut, a failed sync and a full disk leave, one situation at a time.

use std::collections::BTreeSet;
use std::ffi::OsStr;

use rustix::io::Errno;

use crate::power::disk::{Disk, ROOT};
use crate::power::faults::Which;
use crate::power::inode::{Access, Name};
use crate::power::names::Ino;
use crate::power::{Lose, Lost, Options};

pub(super) const ACCESS: Access = Access { mode: 0o644, uid: 0, gid: 0 };

pub(super) fn disk() -> Disk {
    Disk::new(Options::default())
}

pub(super) fn at(dir: Ino, name: &str) -> Name<'_> {
    Name { dir, name: OsStr::new(name) }
}

fn make(disk: &mut Disk, dir: Ino, name: &str, content: &[u8]) -> Ino {
    let ino = disk.make_file(at(dir, name), ACCESS).unwrap().ino;
    disk.write(ino, 0, content).unwrap();
    ino
}

fn make_synced(disk: &mut Disk, dir: Ino, name: &str, content: &[u8]) -> Ino {
    let ino = make(disk, dir, name, content);
    disk.sync(ino).unwrap();
    disk.sync(dir).unwrap();
    ino
}

fn make_dir(disk: &mut Disk, name: &str) -> Ino {
    let ino = disk.make_dir(at(ROOT, name), ACCESS).unwrap().ino;
    disk.sync(ROOT).unwrap();
    ino
}

pub(super) fn whole(disk: &Disk, ino: Ino) -> Vec<u8> {
    disk.read(ino, 0, usize::MAX).unwrap()
}

fn paths(disk: &Disk) -> Vec<String> {
    let mut paths: Vec<String> =
        disk.paths().into_iter().map(|(path, _)| path).filter(|path| !path.is_empty()).collect();
    paths.sort();
    paths
}

#[test]
fn bytes_without_a_sync_are_lost_and_a_name_without_one_too() {
    let mut disk = disk();
    let ino = make_synced(&mut disk, ROOT, "a", b"first");
    disk.write(ino, 5, b"second").unwrap();
    let unnamed = make(&mut disk, ROOT, "b", b"third");
    disk.sync(unnamed).unwrap();
    let lost = disk.cut(Lose::All);
    assert_eq!((lost.files, lost.bytes, lost.names), (2, 6 + 5, 1));
    assert_eq!((paths(&disk), whole(&disk, ino)), (vec!["a".to_owned()], b"first".to_vec()));
    assert_eq!(disk.counters.lost_bytes, 11);
    assert_eq!(disk.cut(Lose::All), Lost::default(), "twice");
}

#[test]
fn the_option_takes_the_name_along() {
    let mut disk = Disk::new(Options { file_fsync_persists_its_entry: true });
    let named = make(&mut disk, ROOT, "a", b"first");
    make(&mut disk, ROOT, "b", b"second");
    disk.sync(named).unwrap();
    disk.cut(Lose::All);
    assert_eq!((paths(&disk), whole(&disk, named)), (vec!["a".to_owned()], b"first".to_vec()));
}

#[test]
fn a_rename_an_unlink_and_a_link_are_undone() {
    let mut disk = disk();
    let (a, b) = (make_synced(&mut disk, ROOT, "a", b"1"), make_synced(&mut disk, ROOT, "b", b"2"));
    disk.rename(at(ROOT, "a"), at(ROOT, "b"), true).unwrap();
    disk.link(a, at(ROOT, "c")).unwrap();
    disk.unlink(at(ROOT, "b")).unwrap();
    assert_eq!((paths(&disk), disk.attr(a).unwrap().links), (vec!["c".to_owned()], 1));
    disk.cut(Lose::All);
    assert_eq!(paths(&disk), ["a", "b"]);
    assert_eq!((whole(&disk, a), whole(&disk, b), disk.attr(a).unwrap().links), (b"1".to_vec(), b"2".to_vec(), 1));
}

#[test]
fn a_file_that_is_moved_between_directories_is_never_lost() {
    for synced in ["from", "to", "neither"] {
        let mut disk = disk();
        let (from, to) = (make_dir(&mut disk, "from"), make_dir(&mut disk, "to"));
        let ino = make_synced(&mut disk, from, "a", b"1");
        disk.rename(at(from, "a"), at(to, "a"), true).unwrap();
        match synced {
            "from" => disk.sync(from).unwrap(),
            "to" => disk.sync(to).unwrap(),
            _ => {}
        }
        disk.cut(Lose::All);
        let expected = if synced == "neither" { ["from", "from/a", "to"] } else { ["from", "to", "to/a"] };
        assert_eq!(paths(&disk), expected);
        assert_eq!((whole(&disk, ino), disk.attr(ino).unwrap().links), (b"1".to_vec(), 1), "{synced}");
    }
}

#[test]
fn a_removed_directory_takes_along_what_emptied_it() {
    let mut disk = disk();
    let (from, to) = (make_dir(&mut disk, "from"), make_dir(&mut disk, "to"));
    let ino = make_synced(&mut disk, from, "a", b"1");
    disk.rename(at(from, "a"), at(to, "b"), true).unwrap();
    assert_eq!(disk.rmdir(at(ROOT, "to")), Err(Errno::NOTEMPTY));
    disk.rmdir(at(ROOT, "from")).unwrap();
    disk.sync(ROOT).unwrap();
    disk.cut(Lose::All);
    assert_eq!((paths(&disk), whole(&disk, ino)), (vec!["to".to_owned(), "to/b".to_owned()], b"1".to_vec()));
}

#[test]
fn a_directory_without_a_durable_name_is_lost_with_what_is_in_it() {
    let mut disk = disk();
    let dir = disk.make_dir(at(ROOT, "d"), ACCESS).unwrap().ino;
    make_synced(&mut disk, dir, "a", b"1");
    assert_eq!(disk.cut(Lose::All).files, 1);
    assert!(paths(&disk).is_empty() && disk.inodes.len() == 1);
}

#[test]
fn what_a_failed_sync_was_to_keep_no_later_one_keeps() {
    let mut disk = disk();
    let ino = make_synced(&mut disk, ROOT, "1.log", b"first");
    disk.fail_syncs(Which::Matching("*.log".to_owned()), Errno::IO, 1);
    disk.sync(ROOT).unwrap();
    disk.write(ino, 5, b"lost").unwrap();
    assert_eq!(disk.sync(ino), Err(Errno::IO));
    disk.sync(ino).unwrap();
    disk.write(ino, 9, b"kept").unwrap();
    disk.sync(ino).unwrap();
    assert_eq!(whole(&disk, ino), b"firstlostkept");
    assert_eq!(disk.cut(Lose::All).bytes, 4);
    assert_eq!(whole(&disk, ino), b"first\0\0\0\0kept");
    assert_eq!((disk.counters.failed_fsyncs, disk.cut(Lose::All).bytes), (1, 0));

    disk.fail_syncs(Which::Directories, Errno::IO, 1);
    make(&mut disk, ROOT, "2", b"");
    assert_eq!(disk.sync(ROOT), Err(Errno::IO));
    make(&mut disk, ROOT, "3", b"");
    disk.sync(ROOT).unwrap();
    disk.cut(Lose::All);
    assert_eq!(paths(&disk), ["1.log", "3"]);
}

#[test]
fn a_full_disk_takes_no_more_until_something_goes() {
    let mut disk = disk();
    disk.faults.capacity = Some(16 << 10);
    let ballast = make(&mut disk, ROOT, "ballast", b"");
    disk.allocate(ballast, 0, 12 << 10, false).unwrap();
    assert_eq!((disk.attr(ballast).unwrap().len, disk.room().free), (12 << 10, 4 << 10));
    let ino = make(&mut disk, ROOT, "a", &[1; 4 << 10]);
    assert_eq!(disk.write(ino, 4 << 10, b"x"), Err(Errno::NOSPC));
    assert_eq!(disk.allocate(ino, 0, 5 << 10, true), Err(Errno::NOSPC));
    assert_eq!(disk.make_file(at(ROOT, "b"), ACCESS).err(), Some(Errno::NOSPC));
    disk.write(ino, 0, b"over").unwrap();
    disk.open(ballast).unwrap();
    disk.unlink(at(ROOT, "ballast")).unwrap();
    assert_eq!(disk.room().free, 0, "somebody has it open");
    disk.release(ballast);
    disk.write(ino, 4 << 10, b"x").unwrap();
}

#[test]
fn what_cannot_be_read_and_what_is_flipped() {
    let mut disk = disk();
    let ino = make_synced(&mut disk, ROOT, "1.sst", &[0; 100]);
    make_synced(&mut disk, ROOT, "empty.sst", b"");
    assert!(disk.flip(&Which::Manifests, 1).is_none());
    let (flipped, flip) = disk.flip(&Which::Tables, 1).unwrap();
    assert_eq!((flipped, flip.path.as_str()), (ino, "1.sst"));
    let mut expected = [0_u8; 100];
    expected[flip.offset as usize] = 1 << flip.bit;
    assert_eq!(whole(&disk, ino), expected);
    disk.cut(Lose::All);
    assert_eq!(whole(&disk, ino), expected);
    disk.faults.read = Some(Which::Tables);
    assert_eq!(disk.read(ino, 0, 1), Err(Errno::IO));
}

#[test]
fn nothing_is_kept_of_what_is_gone() {
    let mut disk = disk();
    for _ in 0..3 {
        make_synced(&mut disk, ROOT, "a", &[1; 100]);
        disk.unlink(at(ROOT, "a")).unwrap();
        assert_eq!(disk.inodes.len(), 2, "a cut would bring it back");
        disk.sync(ROOT).unwrap();
        assert_eq!(disk.inodes.len(), 1);
    }
}

#[test]
fn tails_differ_and_some_are_torn() {
    let mut lengths = BTreeSet::new();
    for seed in 0..200 {
        let mut disk = disk();
        let ino = make_synced(&mut disk, ROOT, "a", b"");
        disk.write(ino, 0, &[1; 700]).unwrap();
        disk.write(ino, 700, &[2; 700]).unwrap();
        disk.cut(Lose::Tail { seed });
        lengths.insert(whole(&disk, ino).len());
    }
    assert_eq!(lengths, BTreeSet::from([0, 512, 700, 1024, 1400]));
}
