//! What the tests of the bus, of locks and of documents share: lives that end as a process does, leaders killed as the
//! work goes on, calls made at one node and at no other.
//!
//! - [`Mortal`]: a part of this process that can be killed. [`Progress`], [`kill_leaders`]: faults in the middle of work.
//! - [`only`], [`insist`]: one node, asked until it answers.
//! - [`deliveries`], [`grants`]: what must hold of what consumers were given, and of who held a lock. [`traffic`]: who
//!   publishes and consumes.
//!
//! Deliberately absent: what is published, locked or written. Tests say that.

pub mod deliveries;
pub mod grants;
pub mod traffic;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use quorate_client::Client;
use quorate_client::v1::{Event, EventsRequest, SubscriptionCounts, SubscriptionStats, WatchFilter};
use tokio::runtime::{self, Runtime};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};

use crate::cluster::LocalCluster;
use crate::faults;
use crate::until::until;

/// Work of which nothing at all was done for so long has stopped.
const STALLED: Duration = Duration::from_secs(60);
/// One attempt at one node: longer than an election.
const ATTEMPT: Duration = Duration::from_secs(3);
const CONNECT: Duration = Duration::from_millis(500);
const PAGE: u32 = 1_000;

/// Something that runs in this process and can be killed as a process can: it stops where it stands, closes nothing and
/// gives nothing back, and its connections break. It has a runtime of its own, which must open all that it uses.
#[derive(Debug)]
pub struct Mortal<T> {
    runtime: Option<Runtime>,
    life: JoinHandle<Result<T>>,
}

impl<T: Send + 'static> Mortal<T> {
    /// Begins a life.
    pub fn start(life: impl Future<Output = Result<T>> + Send + 'static) -> Result<Self> {
        let runtime = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let life = runtime.spawn(life);
        Ok(Self { runtime: Some(runtime), life })
    }

    /// Ends it from outside, whatever it is doing. It may finish the step that it is at.
    pub fn kill(self) {
        drop(self);
    }

    /// Waits until it ends by itself.
    pub async fn end(mut self) -> Result<T> {
        (&mut self.life).await?
    }
}

impl<T> Drop for Mortal<T> {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Resolves when it is time to stop, or when nobody is left to say so.
pub async fn told(stop: &mut watch::Receiver<bool>) {
    // An error means that whoever would say so has gone.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// How far the work of a test is.
#[derive(Debug)]
pub struct Progress {
    done: AtomicU64,
    total: u64,
}

impl Progress {
    /// Nothing of so much.
    pub fn of(total: u64) -> Self {
        Self { done: AtomicU64::new(0), total }
    }

    /// So much more is done.
    pub fn add(&self, more: u64) {
        self.done.fetch_add(more, Ordering::Relaxed);
    }

    /// How much is done.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Waits until this part of the work is done. `false`: the work ended before, which is for its owner to explain.
    pub async fn reach<T>(&self, part: u64, of: u64, running: &JoinHandle<T>) -> Result<bool> {
        let wanted = self.total * part / of.max(1);
        loop {
            let before = self.done();
            if before >= wanted {
                return Ok(true);
            }
            if running.is_finished() {
                return Ok(false);
            }
            until(&format!("the work goes on from {before} of {}", self.total), STALLED, || async {
                Ok((self.done() > before || running.is_finished()).then_some(()))
            })
            .await?;
        }
    }
}

/// Kills so many leaders, evenly over the work, and starts each of them again. Gives how many it came to.
pub async fn kill_leaders<T>(
    cluster: &mut LocalCluster,
    kills: u64,
    progress: &Progress,
    running: &JoinHandle<T>,
) -> Result<u64> {
    for killed in 0..kills {
        if !progress.reach(killed + 1, kills + 1, running).await? {
            return Ok(killed);
        }
        faults::replace_leader(cluster).await?;
    }
    Ok(kills)
}

/// A connection to the node at `endpoint` ("host:port"), made on first use and anew whenever it breaks.
pub fn only(endpoint: &str) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{endpoint}"))?;
    Ok(endpoint.connect_timeout(CONNECT).timeout(ATTEMPT).connect_lazy())
}

/// Makes a call again and again until it is answered or refused. Only for calls that have no second effect.
pub async fn insist<T, F>(what: &str, limit: Duration, mut call: impl FnMut() -> F) -> Result<Result<T, Status>>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    until(what, limit, || {
        let called = call();
        async move {
            Ok(match called.await {
                Ok(response) => Some(Ok(response.into_inner())),
                Err(status) if is_refusal(&status) => Some(Err(status)),
                Err(_) => None,
            })
        }
    })
    .await
}

/// Whether it is the state that says no. Anything else may be otherwise a moment later.
fn is_refusal(status: &Status) -> bool {
    match status.code() {
        Code::InvalidArgument | Code::NotFound | Code::AlreadyExists | Code::FailedPrecondition | Code::Aborted => true,
        Code::ResourceExhausted => status.metadata().contains_key("quorate-rejected"),
        _ => false,
    }
}

/// Every event that one of the filters asks for, oldest first.
pub async fn history(client: &Client, filters: Vec<WatchFilter>) -> Result<Vec<Event>> {
    let mut events = Vec::new();
    let mut request = EventsRequest { filters, limit: PAGE, ..Default::default() };
    loop {
        let page = client.events(request.clone()).await?;
        events.extend(page.events);
        if page.next_rev == 0 {
            return Ok(events);
        }
        request.from_rev = page.next_rev;
    }
}

/// A subscription's counters, and what is in it.
pub async fn standing(client: &Client, subscription: &str) -> Result<(SubscriptionCounts, SubscriptionStats)> {
    let info = client.bus().subscription(subscription).await?.info;
    let info = info.with_context(|| format!("nothing is said of {subscription}"))?;
    Ok((info.counts.unwrap_or_default(), info.stats.unwrap_or_default()))
}

/// How many messages are in a subscription, those with consumers included.
pub async fn backlog(client: &Client, subscription: &str) -> Result<u64> {
    let (_, stats) = standing(client, subscription).await?;
    Ok(stats.waiting + stats.delayed + stats.in_flight)
}

/// Waits until everything in a subscription has been acknowledged, or is dead; however long that takes, as long as it
/// becomes less.
pub async fn drained(client: &Client, subscription: &str) -> Result<()> {
    let mut left = backlog(client, subscription).await?;
    while left > 0 {
        let before = left;
        let what = format!("{subscription}, with {before} messages, becomes emptier");
        let emptier = until(&what, STALLED, || async {
            let now = backlog(client, subscription).await?;
            Ok((now < before).then_some(now))
        });
        left = match emptier.await {
            Ok(now) => now,
            Err(error) => return Err(error.context(format!("{:?}", standing(client, subscription).await?.1))),
        };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::oneshot;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn who_is_killed_does_nothing_more_and_who_ends_says_how() {
        let (begun, begins) = oneshot::channel();
        let held = Arc::new(());
        let its = Arc::clone(&held);
        let killed = Mortal::start(async move {
            let _ = begun.send(());
            std::future::pending::<()>().await;
            drop(its);
            Ok(())
        });
        begins.await.unwrap();
        killed.unwrap().kill();
        until("what it held is dropped", LIMIT, || async { Ok((Arc::strong_count(&held) == 1).then_some(())) })
            .await
            .unwrap();
        assert_eq!(Mortal::start(async { Ok(7) }).unwrap().end().await.unwrap(), 7);
    }

    #[tokio::test]
    async fn work_is_waited_for_until_it_is_far_enough_or_over() {
        let progress = Progress::of(10);
        let running = tokio::spawn(std::future::pending::<()>());
        progress.add(5);
        assert!(progress.reach(1, 2, &running).await.unwrap());
        running.abort();
        assert!(!progress.reach(2, 2, &running).await.unwrap());
    }

    #[test]
    fn only_the_state_says_no() {
        assert!(is_refusal(&Status::failed_precondition("another rev")));
        for open in [Status::unknown("broken"), Status::unavailable("no leader"), Status::resource_exhausted("busy")] {
            assert!(!is_refusal(&open), "{open:?}");
        }
    }
}
