//! The log on disk: what is read back after appends, truncations, purges and restarts.

// Clippy exempts test functions from this lint, not their helpers.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::mpsc::{Receiver, channel};

use bytes::Bytes;
use futures::FutureExt;
use proptest::prelude::*;
use quorate_raft::storage::log_db::{Done, Durable, LogDb};

fn open(path: &Path) -> LogDb {
    LogDb::open(path, 64 << 20, |meta| {
        meta("first").map_or(0, |bytes| u64::from_be_bytes(bytes.as_ref().try_into().unwrap()))
    })
    .unwrap()
}

fn waiter() -> (Done, Receiver<std::io::Result<()>>) {
    let (tx, rx) = channel();
    (Box::new(move |result| tx.send(result).unwrap()), rx)
}

fn purge(log: &LogDb, first_kept: u64) {
    let (done, rx) = waiter();
    log.purge(first_kept, ("first", Bytes::copy_from_slice(&first_kept.to_be_bytes())), done);
    rx.recv().unwrap().unwrap();
}

#[derive(Debug, Clone)]
enum Step {
    Append(u8),
    Truncate(u8),
    Purge(u8),
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (1u8..6).prop_map(Step::Append),
        1 => (0u8..6).prop_map(Step::Truncate),
        1 => (0u8..6).prop_map(Step::Purge),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..25)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The log holds what a plain list would hold, whatever was done to it, and after every restart.
    #[test]
    fn equals_a_plain_list(steps in steps()) {
        let dir = tempfile::tempdir().unwrap();
        let mut log = open(dir.path());
        let (mut first, mut model): (u64, Vec<Bytes>) = (0, Vec::new());
        let mut written = 0u64;
        for step in steps {
            let next = first + model.len() as u64;
            match step {
                Step::Append(n) => {
                    let new: Vec<_> = (0..u64::from(n)).map(|i| {
                        written += 1;
                        (next + i, Bytes::from(format!("entry {} write {written}", next + i)))
                    }).collect();
                    model.extend(new.iter().map(|(_, bytes)| bytes.clone()));
                    let (done, rx) = waiter();
                    log.append(new, done);
                    // Readable before it is durable.
                    prop_assert_eq!(log.last().unwrap().map(|(index, _)| index), Some(next + u64::from(n) - 1));
                    rx.recv().unwrap().unwrap();
                }
                Step::Truncate(n) if !model.is_empty() => {
                    let from = next.saturating_sub(u64::from(n)).max(first);
                    model.truncate((from - first) as usize);
                    let (done, rx) = waiter();
                    log.truncate(from, done).unwrap();
                    rx.recv().unwrap().unwrap();
                }
                Step::Purge(n) => {
                    let kept = (first + u64::from(n)).min(next);
                    model.drain(..(kept - first) as usize);
                    first = kept;
                    purge(&log, kept);
                }
                Step::Reopen => {
                    drop(log);
                    log = open(dir.path());
                }
                Step::Truncate(_) => {}
            }
            let held = log.read(0..u64::MAX, usize::MAX).unwrap();
            let expected: Vec<_> = model.iter().enumerate().map(|(i, b)| (first + i as u64, b.clone())).collect();
            prop_assert_eq!(&held, &expected);
            prop_assert_eq!(log.last().unwrap(), expected.last().cloned());
            if let Some((middle, _)) = expected.get(expected.len() / 2) {
                let part = log.read(*middle..middle + 2, usize::MAX).unwrap();
                prop_assert_eq!(part.first(), expected.get(expected.len() / 2));
            }
        }
    }
}

#[test]
fn a_bounded_read_returns_a_gapless_beginning() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let (done, rx) = waiter();
    log.append((0..100).map(|i| (i, Bytes::from(vec![7; 1_000]))).collect(), done);
    rx.recv().unwrap().unwrap();
    bounded_reads_hold(&log);
    drop(log);
    // Now from disk.
    bounded_reads_hold(&open(dir.path()));
}

fn bounded_reads_hold(log: &LogDb) {
    let found = log.read(10..90, 5_000).unwrap();
    assert_eq!(found.len(), 5);
    assert!(found.iter().enumerate().all(|(i, (index, _))| *index == 10 + i as u64));
    assert_eq!(log.read(10..11, 0).unwrap().len(), 1, "never nothing from a range that holds something");
}

#[test]
fn completions_come_in_order_and_after_a_flood_of_appends_all_are_there() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let (tx, rx) = channel();
    for i in 0..2_000u64 {
        let tx = tx.clone();
        let done: Done = Box::new(move |result| tx.send((i, result.is_ok())).unwrap());
        log.append(vec![(i, Bytes::from(vec![1; 300]))], done);
    }
    let completed: Vec<_> = rx.iter().take(2_000).collect();
    assert!(completed.iter().enumerate().all(|(at, (i, ok))| *i == at as u64 && *ok));
    drop(log);
    assert_eq!(open(dir.path()).read(0..u64::MAX, usize::MAX).unwrap().len(), 2_000);
}

#[tokio::test]
async fn the_log_says_how_far_it_is_durable() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let mut durable = log.durable();
    let entry = |index: u64| (index, Bytes::from_static(b"x"));
    let reached = |durable: &mut Durable, index: u64| durable.reach(index).now_or_never().is_some();
    assert!(!reached(&mut durable, 0), "an empty log has no first entry either");
    let (done, rx) = waiter();
    log.append((0..3).map(entry).collect(), done);
    rx.recv().unwrap().unwrap();
    assert!(reached(&mut durable, 2) && !reached(&mut durable, 3));
    let (done, rx) = waiter();
    log.truncate(1, done).unwrap();
    rx.recv().unwrap().unwrap();
    assert!(reached(&mut durable, 0) && !reached(&mut durable, 1), "what was taken back is not there");
    purge(&log, 9);
    assert!(reached(&mut durable, 8), "what was purged needs no waiting for");
    drop(log);
    let log = open(dir.path());
    assert!(reached(&mut log.durable(), 8) && !reached(&mut log.durable(), 9));
}
