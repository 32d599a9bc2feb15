//! Writers under a steady pace that record every call: how long clients wait when something is done to the cluster.
//!
//! A gap is the time between two successes of one writer, so that a lucky writer does not hide an unlucky one.
//!
//! Invariant of a run without loss: what was acknowledged is there afterwards ([`Outcome::check_kept`]).
//!
//! Deliberately absent: retries beyond the client library's own. A call that the library gives up on is a failed call.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use quorate_client::Client;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::tasks;
use crate::until::until;

/// Between the end of a writer's call and its next one.
const PACE: Duration = Duration::from_millis(10);
/// How long it may take until every writer has succeeded again.
const LIMIT: Duration = Duration::from_secs(60);

/// One call.
#[derive(Clone, Copy, Debug)]
struct Call {
    began: Instant,
    ended: Instant,
    succeeded: bool,
}

/// What one writer has noted.
#[derive(Debug, Default)]
struct Book {
    calls: Vec<Call>,
    acked: BTreeSet<String>,
    failed: Vec<String>,
}

type Shared = Arc<Mutex<Book>>;

fn open(book: &Shared) -> MutexGuard<'_, Book> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Running writers.
#[derive(Debug)]
pub struct Steady {
    books: Vec<Shared>,
    stop: watch::Sender<bool>,
    writers: Vec<JoinHandle<()>>,
}

/// What all of them noted.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The tasks whose submission was acknowledged.
    pub acked: BTreeSet<String>,
    /// Calls that the library gave up on.
    pub failed: Vec<String>,
    /// How long each call took that succeeded.
    pub times: Vec<Duration>,
}

impl Steady {
    /// Starts `writers` submitters of small tasks named `<prefix>-<writer>-<n>`; waits until each has succeeded once.
    pub async fn start(client: &Client, writers: usize, prefix: &str) -> Result<Self> {
        let (stop, stopped) = watch::channel(false);
        let books: Vec<Shared> = (0..writers).map(|_| Shared::default()).collect();
        let started = books.iter().enumerate().map(|(writer, book)| {
            let name = format!("{prefix}-{writer}");
            tokio::spawn(write(client.clone(), name, Arc::clone(book), stopped.clone()))
        });
        let steady = Self { writers: started.collect(), books, stop };
        steady.wait_success().await?;
        Ok(steady)
    }

    /// Waits until every writer has succeeded with a call that began after this moment.
    pub async fn wait_success(&self) -> Result<()> {
        let moment = Instant::now();
        let again = |book: &Shared| {
            let book = open(book);
            book.calls.iter().rev().take_while(|call| call.began > moment).any(|call| call.succeeded)
        };
        let all = until("every writer succeeds", LIMIT, || async { Ok(self.books.iter().all(again).then_some(())) });
        all.await.with_context(|| format!("failed calls: {:?}", self.failed()))
    }

    /// The longest gap of any writer that ended after `moment`.
    pub fn longest_gap_since(&self, moment: Instant) -> Duration {
        self.books.iter().map(|book| longest_gap(&open(book).calls, moment)).max().unwrap_or_default()
    }

    /// What was acknowledged up to now.
    pub fn acked(&self) -> BTreeSet<String> {
        self.books.iter().flat_map(|book| open(book).acked.clone()).collect()
    }

    /// The calls that failed up to now.
    pub fn failed(&self) -> Vec<String> {
        self.books.iter().flat_map(|book| open(book).failed.clone()).collect()
    }

    /// Lets every writer end its call, and gives what they noted.
    pub async fn stop(self) -> Result<Outcome> {
        self.stop.send_replace(true);
        for writer in self.writers {
            writer.await?;
        }
        let mut all = Outcome::default();
        for book in &self.books {
            let book = std::mem::take(&mut *open(book));
            all.acked.extend(book.acked);
            all.failed.extend(book.failed);
            let successes = book.calls.iter().filter(|call| call.succeeded);
            all.times.extend(successes.map(|call| call.ended.duration_since(call.began)));
        }
        Ok(all)
    }
}

impl Outcome {
    /// One line for people.
    pub fn summary(&self) -> String {
        format!("{} calls, {} failed, {}", self.times.len() + self.failed.len(), self.failed.len(), shown(&self.times))
    }

    /// Fails if the library gave up on any call.
    pub fn check_none_failed(&self) -> Result<()> {
        ensure!(self.failed.is_empty(), "{} calls failed: {:?}", self.failed.len(), self.failed);
        Ok(())
    }

    /// Fails unless everything that was acknowledged is there.
    pub async fn check_kept(&self, client: &Client) -> Result<()> {
        check_kept(client, &self.acked).await
    }
}

/// Fails unless all of these tasks are there.
pub async fn check_kept(client: &Client, acked: &BTreeSet<String>) -> Result<()> {
    ensure!(!acked.is_empty(), "nothing was acknowledged: there is nothing to check");
    let present: BTreeSet<String> = tasks::all(client).await?.into_iter().map(|task| task.id).collect();
    let lost: Vec<_> = acked.difference(&present).collect();
    ensure!(lost.is_empty(), "{} of {} acknowledged tasks are gone: {lost:?}", lost.len(), acked.len());
    Ok(())
}

/// Middle, worst of a hundred, and worst, in milliseconds.
pub fn shown(times: &[Duration]) -> String {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let [p50, p99, max] = [50, 99, 100].map(|percent| percentile(&sorted, percent).as_millis());
    format!("p50 {p50} ms, p99 {p99} ms, max {max} ms")
}

/// The smallest of these that `percent` of them do not exceed. They must be in order.
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let at = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(at).copied().unwrap_or_default()
}

fn longest_gap(calls: &[Call], moment: Instant) -> Duration {
    let ends: Vec<Instant> = calls.iter().filter(|call| call.succeeded).map(|call| call.ended).collect();
    let pairs = ends.windows(2).filter(|pair| pair[1] > moment);
    pairs.map(|pair| pair[1].duration_since(pair[0])).max().unwrap_or_default()
}

async fn write(client: Client, name: String, book: Shared, stopped: watch::Receiver<bool>) {
    let mut n = 0_u64;
    while !*stopped.borrow() {
        n += 1;
        let id = format!("{name}-{n}");
        let began = Instant::now();
        let answer = client.tasks().submit_one(tasks::spec(id.clone(), "nobody")).await;
        let ended = Instant::now();
        {
            let mut book = open(&book);
            book.calls.push(Call { began, ended, succeeded: answer.is_ok() });
            match answer {
                Ok(_) => {
                    book.acked.insert(id);
                }
                Err(error) => book.failed.push(format!("{id}: {error}")),
            }
        }
        tokio::time::sleep(PACE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let times: Vec<Duration> = (1..=200).map(Duration::from_millis).collect();
        assert_eq!(percentile(&times, 50), Duration::from_millis(100));
        assert_eq!(percentile(&times, 99), Duration::from_millis(198));
        assert_eq!(percentile(&times, 100), Duration::from_millis(200));
        assert_eq!(percentile(&times[..1], 50), Duration::from_millis(1));
        assert_eq!(percentile(&[], 99), Duration::ZERO);
    }

    #[test]
    fn a_gap_is_between_successes_and_counts_if_it_ended_later() {
        let zero = Instant::now();
        let at = |ms: u64| zero + Duration::from_millis(ms);
        let call = |ms: u64, succeeded| Call { began: at(ms), ended: at(ms + 1), succeeded };
        let calls = [call(0, true), call(500, true), call(510, false), call(600, true), call(610, true)];
        assert_eq!(longest_gap(&calls, zero), Duration::from_millis(500));
        assert_eq!(longest_gap(&calls, at(505)), Duration::from_millis(100), "over the failed one");
        assert_eq!(longest_gap(&calls, at(700)), Duration::ZERO);
    }
}
