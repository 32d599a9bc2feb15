//! Backups: copies of the whole state in a place outside of the cluster.
//!
//! ```text
//!   schedule ── when the next one is due, and the leader's loop that takes it
//!   create ──── a checkpoint, what it holds, and what of that the target lacks
//!   verify ──── whether a backup is whole; bringing one here
//!   prune ───── the old ones go, and then what nothing names any more
//!   lock ────── one writer at a time in a target
//!   contents ── what a checkpoint holds
//!   manifest ── what a backup holds: it exists once its manifest does
//!   target ──── a directory or a bucket
//! ```
//!
//! A target is laid out so:
//!
//! ```text
//!   backups/<id>.json          the manifest, written last
//!   objects/<2 hex>/<blake3>   files of the state and chunks of blobs, named by their content
//!   LOCK.json                  who writes, and until when
//! ```
//!
//! RocksDB's tables never change and objects are named by their content, so what an earlier backup sent is not sent
//! again.
//!
//! Invariants:
//! - Whatever a manifest names was in the target when the manifest was written, and stays as long as the manifest does.
//! - Apply is held up by the checkpoint only, which is links to files. A target that fails costs no write anything.
//!
//! Deliberately absent: putting a backup in force. That is done to a node that does not run, and needs no cluster.

mod contents;
mod create;
mod lock;
mod manifest;
mod prune;
mod schedule;
mod target;
mod verify;

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use futures::future::BoxFuture;
use tokio::task::JoinSet;

pub(crate) use self::create::{take, turn};
pub(crate) use self::manifest::{Manifest, list, load};
pub(crate) use self::prune::{KEEP_NEWEST, prune};
pub(crate) use self::schedule::{next_at_ms, note, row, start};
pub(crate) use self::target::{Target, check_url};
pub(crate) use self::verify::{download, verify};

/// What is told of progress: bytes done, bytes in all.
pub(crate) type Progress<'p> = dyn FnMut(u64, u64) + Send + 'p;

/// Objects on their way at a time. Each has some MiB in memory.
const LANES: usize = 4;

/// A part of the work that others go on beside.
type Job<T> = BoxFuture<'static, anyhow::Result<T>>;

/// Runs the jobs, a few at a time, and hands over what each brings. The first that fails ends all of them.
async fn run_all<T: Send + 'static>(
    mut jobs: impl Iterator<Item = Job<T>> + Send,
    mut done: impl FnMut(T) + Send,
) -> anyhow::Result<()> {
    let mut running = JoinSet::new();
    loop {
        while running.len() < LANES {
            let Some(job) = jobs.next() else { break };
            running.spawn(job);
        }
        match running.join_next().await {
            Some(ended) => done(ended.context("a part of the work was cut off")??),
            None => return Ok(()),
        }
    }
}

/// Works on files, away from the threads that serve calls.
async fn on_disk<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> anyhow::Result<T>
where
    T: Send + 'static,
    E: Into<anyhow::Error> + Send + 'static,
{
    tokio::task::spawn_blocking(work).await.context("the work on files was cut off")?.map_err(Into::into)
}

/// Finds a target, away from the threads that serve calls: a share that does not answer keeps whoever looks at it.
async fn open(url: &str) -> anyhow::Result<Target> {
    let url = url.to_owned();
    on_disk(move || Target::open(&url)).await
}

/// The wall clock: what those who share a target have in common, be they of no cluster.
fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod testing;
