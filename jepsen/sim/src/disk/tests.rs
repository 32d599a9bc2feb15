//! What a crash leaves.

use openraft::AsyncRuntime;
use openraft_rt_sim::SimRuntime;

use super::*;
use crate::world::Options;

fn entry(index: u64) -> Stored {
    Stored { id: LogId::new_term_index(1, index), bytes: bytes::Bytes::new() }
}

fn on_a_disk<T: Send>(seed: u64, options: Options, f: impl AsyncFnOnce(Disk) -> T) -> T {
    SimRuntime::with_seed(seed).block_on(async {
        let world = Arc::new(World::new(seed, options));
        f(Disk::new(1, world)).await
    })
}

#[test]
fn what_was_flushed_survives_and_what_was_not_is_a_prefix() {
    for seed in 0..50 {
        on_a_disk(seed, Options::default(), async |disk| {
            disk.write(0, Op::Append(vec![entry(1), entry(2)]), None).unwrap();
            sleep_ms(50).await;
            assert!(disk.holds(&entry(2).id));
            disk.write(0, Op::Append((3..9).map(entry).collect()), None).unwrap();
            assert!(!disk.holds(&entry(3).id) && disk.peek(|seen| seen.log.len()) == 8);
            disk.crash();
            let left: Vec<u64> = disk.peek(|seen| seen.log.keys().copied().collect());
            assert!(left.len() >= 2 && left.iter().copied().eq(1..=left.len() as u64), "{left:?}");
            assert!(disk.write(0, Op::Truncate(1), None).is_err(), "the old process is gone");
        });
    }
}

#[test]
fn a_vote_is_read_only_once_it_is_durable() {
    on_a_disk(1, Options::default(), async |disk| {
        let vote = Vote::new(3, 1);
        disk.write(0, Op::Vote(vote), None).unwrap();
        assert_eq!(disk.peek(|seen| seen.vote), None);
        sleep_ms(50).await;
        disk.crash();
        assert_eq!(disk.peek(|seen| seen.vote), Some(vote));
    });
}

#[test]
fn planted_bugs_do_what_they_say() {
    let lose = Options { plant: Some(Plant::LoseVote), ..Options::default() };
    on_a_disk(1, lose, async |disk| {
        disk.write(0, Op::Vote(Vote::new(3, 1)), None).unwrap();
        sleep_ms(50).await;
        disk.crash();
        assert_eq!(disk.peek(|seen| seen.vote), None);
    });
    let early = Options { plant: Some(Plant::AckBeforeFlush), ..Options::default() };
    on_a_disk(1, early, async |disk| {
        let told = Arc::new(Mutex::new(false));
        let tell = told.clone();
        disk.write(0, Op::Append(vec![entry(1)]), Some(Box::new(move |_| *tell.lock() = true))).unwrap();
        assert!(*told.lock() && !disk.holds(&entry(1).id));
    });
}

#[test]
fn a_failed_flush_is_told_to_everybody_and_is_the_last() {
    on_a_disk(1, Options::default(), async |disk| {
        let errors = Arc::new(Mutex::new(0));
        disk.fail_next();
        for index in 1..4 {
            let errors = errors.clone();
            let done: Done = Box::new(move |result| *errors.lock() += usize::from(result.is_err()));
            disk.write(0, Op::Append(vec![entry(index)]), Some(done)).unwrap();
        }
        sleep_ms(50).await;
        assert_eq!(*errors.lock(), 3);
        assert!(disk.has_failed() && disk.write(0, Op::Truncate(1), None).is_err());
    });
}
