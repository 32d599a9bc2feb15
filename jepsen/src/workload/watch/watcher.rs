//! Who watches.
//!
//! Each place (there is one for every worker, and at least one for every node) has a steady watcher that knows one node
//! and begins now; a restless one that stops from time to time and goes on at another node; and late ones, one after
//! another, that begin at some rev of the past or of the future. All stop when they are told, and go on at the end from
//! where the record says that they were.
//!
//! Deliberately absent: mending. The library opens a stream again that breaks; what comes of it is what is recorded.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, bail};
use futures::future::{try_join_all, try_join3};
use quorate_client::v1::WatchRequest;
use quorate_client::{Client, Error, Watch};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, sleep_until};

use super::{Context, PATIENCE, all, document, history};
use crate::coordination::told;
use crate::record::{Answer, History, Process};
use crate::rng::Rng;

/// How long it may take every watcher to be told everything, once the faults are over.
const LIMIT: Duration = Duration::from_secs(60);
/// Late watchers of one place.
const LATE: u64 = 3;
/// How late they may begin, one after another.
const LATE_MS: (u64, u64) = (2_000, 15_000);
/// How far back a late watcher begins at most.
const PAST: u64 = 2_000;
/// How far ahead.
const FUTURE: u64 = 50;
/// A restless watcher stops after so many responses at most.
const RESTLESS: u64 = 30;
/// The pause after a watch has ended.
const PAUSE: Duration = Duration::from_millis(200);
/// Sets the watchers' choices apart from their worker's.
const OTHER_CHOICES: u64 = 0x00c0_ffee_0000_0002;

/// Watches from this worker's places until told to stop. `newest`: a rev that has happened.
pub(super) async fn watch(context: &Context, worker: u64, newest: &AtomicU64) -> Result<()> {
    let places = (context.endpoints.len() as u64).max(context.workers);
    let mine = (0..places).filter(|place| place % context.workers.max(1) == worker);
    try_join_all(mine.map(|place| async move {
        let rng = |n: u64| Rng::new(context.rng(place).next_u64() ^ OTHER_CHOICES.wrapping_mul(n));
        try_join3(steady(context, place), restless(context, place, rng(1)), late(context, place, rng(2), newest))
            .await
            .map(drop)
    }))
    .await
    .map(drop)
}

async fn steady(context: &Context, place: u64) -> Result<()> {
    let (client, node) = context.pinned(place, PATIENCE)?;
    let watcher = Watcher::begin(context, format!("steady-{place}"), all(context), 0, client, Some(node));
    watcher.look_on(context).await;
    Ok(())
}

async fn restless(context: &Context, place: u64, mut rng: Rng) -> Result<()> {
    let client = context.client(place, PATIENCE)?;
    let mut watcher = Watcher::begin(context, format!("restless-{place}"), all(context), 0, client, None);
    let mut stop = context.stop.clone();
    loop {
        for _ in 0..=rng.below(RESTLESS) {
            if !watcher.step(told(&mut stop)).await {
                return Ok(());
            }
        }
        // Somewhere else, for all that the two know of each other.
        let elsewhere = context.client(place + 1 + rng.below(2), PATIENCE)?;
        watcher.resume(elsewhere);
    }
}

async fn late(context: &Context, place: u64, mut rng: Rng, newest: &AtomicU64) -> Result<()> {
    let mut watchers = Vec::new();
    for n in 0..LATE {
        let late = Late {
            place,
            n,
            delay: rng.millis(LATE_MS.0 * (n + 1), LATE_MS.1 * (n + 1)),
            is_past: rng.below(3) > 0,
            far: rng.next_u64(),
            key: document(context, &mut rng),
        };
        watchers.push(late.look_on(context, newest));
    }
    try_join_all(watchers).await.map(drop)
}

/// A watcher that begins later.
#[derive(Debug)]
struct Late {
    place: u64,
    n: u64,
    delay: Duration,
    /// Whether it begins with what has happened, or with what has not.
    is_past: bool,
    far: u64,
    key: String,
}

impl Late {
    async fn look_on(self, context: &Context, newest: &AtomicU64) -> Result<()> {
        let Self { place, n, delay, is_past, far, key } = self;
        let mut stop = context.stop.clone();
        tokio::select! {
            biased;
            () = told(&mut stop) => return Ok(()),
            () = sleep(delay) => {}
        }
        let rev = newest.load(Ordering::Relaxed);
        let from = if is_past { rev.saturating_sub(far % PAST).max(1) } else { rev + 1 + far % FUTURE };
        let (client, node) = context.pinned(place + n, PATIENCE)?;
        Watcher::begin(context, format!("late-{place}-{n}"), key, from, client, Some(node)).look_on(context).await;
        Ok(())
    }
}

/// One watcher, which goes on whatever happens.
#[derive(Debug)]
struct Watcher {
    name: String,
    filter: String,
    node: Option<u64>,
    client: Client,
    process: Process,
    watch: Watch,
}

impl Watcher {
    fn begin(context: &Context, name: String, filter: String, from: u64, client: Client, node: Option<u64>) -> Self {
        let (process, watch) = (context.recorder.process(), watching(&client, &filter, from));
        Self { name, filter, node, client, process, watch }
    }

    /// Until it is time to stop.
    async fn look_on(mut self, context: &Context) {
        let mut stop = context.stop.clone();
        while self.step(told(&mut stop)).await {}
    }

    /// Goes on from where it is, with another stream.
    fn resume(&mut self, client: Client) {
        self.watch = watching(&client, &self.filter, self.watch.next_rev());
        self.client = client;
    }

    /// Waits for what comes next. `false`: the wait was given up, which has no effect: what comes later is kept for the
    /// next wait.
    async fn step(&mut self, give_up: impl Future<Output = ()>) -> bool {
        let Self { name, filter, node, process, watch, .. } = self;
        let from = watch.next_rev();
        let mut is_given_up = false;
        let mut begins_again = None;
        let call = async {
            let news = tokio::select! {
                biased;
                () = give_up => {
                    is_given_up = true;
                    return Answer::Fail;
                }
                news = watch.next() => news,
            };
            match news {
                Some(Ok(response)) => {
                    Answer::ok(json!({"rev": response.rev, "events": history::told(&response.events)}))
                }
                Some(Err(Error::Compacted { oldest_rev, .. })) => {
                    begins_again = Some(oldest_rev);
                    Answer::ok(json!({"compacted": oldest_rev}))
                }
                Some(Err(_)) | None => {
                    begins_again = Some(from);
                    Answer::Fail
                }
            }
        };
        process.run("watched", filter, json!({"watcher": name, "from": from}), *node, call).await;
        if let Some(next) = begins_again {
            // A watch that has ended is followed by another, and nothing hurries it.
            self.watch = watching(&self.client, &self.filter, next);
            sleep(PAUSE).await;
        }
        !is_given_up
    }
}

fn watching(client: &Client, filter: &str, from_rev: u64) -> Watch {
    client.watch(WatchRequest { filters: vec![history::asked(filter)], from_rev, ..WatchRequest::default() })
}

/// Where a watcher was when it stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stopped {
    filter: String,
    node: Option<u64>,
    /// 0: it was told nothing yet, of what happens from now on.
    next: u64,
}

/// Takes every watcher up again, and waits until each has been told of the last acknowledged write.
pub(super) async fn catch_up(context: &Context) -> Result<()> {
    let (watchers, target) = {
        let record = context.recorder.history()?;
        (stopped(&record), last_write(&record))
    };
    let deadline = Instant::now() + LIMIT;
    let all = watchers.into_iter().map(|(name, at)| reach(context, name, at, target, deadline));
    try_join_all(all).await.map(drop)
}

async fn reach(context: &Context, name: String, at: Stopped, target: u64, deadline: Instant) -> Result<()> {
    let client = match at.node {
        Some(node) => context.pinned(node.saturating_sub(1), PATIENCE)?.0,
        None => context.client(0, PATIENCE)?,
    };
    let mut watcher = Watcher::begin(context, name, at.filter, at.next, client, at.node);
    while watcher.watch.next_rev() <= target {
        if !watcher.step(sleep_until(deadline)).await {
            bail!("{} was told nothing from rev {} on, of {target}", watcher.name, watcher.watch.next_rev());
        }
    }
    Ok(())
}

/// The watchers of the record, and how far each was told.
fn stopped(record: &History) -> BTreeMap<String, Stopped> {
    let mut watchers = BTreeMap::new();
    for op in record.operations.iter().filter(|op| op.f == "watched") {
        let number = |of: &Value, field: &str| of.get(field).and_then(Value::as_u64);
        let Some(name) = op.arg.get("watcher").and_then(Value::as_str) else { continue };
        let after = |res: &Value| number(res, "rev").map(|rev| rev.saturating_add(1));
        let said = op.res().and_then(|res| after(res).or(number(res, "compacted")));
        let next = said.or(number(&op.arg, "from")).unwrap_or_default();
        watchers.insert(name.to_owned(), Stopped { filter: op.key.clone(), node: op.node, next });
    }
    watchers
}

/// The rev of the last acknowledged write.
fn last_write(record: &History) -> u64 {
    let writes = record.operations.iter().filter(|op| op.f == "put" || op.f == "del");
    writes.filter_map(|op| op.rev()).max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Event, Phase};

    fn event(p: u64, ev: Phase, f: &str, arg: Option<Value>, res: Option<Value>, rev: Option<u64>) -> Event {
        Event { t: 0, p, ev, f: f.to_owned(), key: "k/".to_owned(), arg, res, rev, node: Some(2) }
    }

    fn asked(p: u64, watcher: &str, from: u64) -> Event {
        event(p, Phase::Invoke, "watched", Some(json!({"watcher": watcher, "from": from})), None, None)
    }

    fn answered(p: u64, res: Value) -> Event {
        event(p, Phase::Ok, "watched", None, Some(res), None)
    }

    #[test]
    fn watchers_go_on_from_where_the_record_says_that_they_were() {
        let record = History::of(vec![
            asked(1, "told", 5),
            answered(1, json!({"rev": 9, "events": []})),
            asked(1, "told", 10),
            event(1, Phase::Fail, "watched", None, None, None),
            asked(2, "gone", 5),
            answered(2, json!({"compacted": 8})),
            asked(3, "cut off", 7),
            asked(4, "new", 0),
            event(5, Phase::Invoke, "put", Some(json!({"value": "x"})), None, None),
            event(5, Phase::Ok, "put", None, Some(json!({"version": 1})), Some(12)),
        ]);
        let record = record.unwrap();
        let next: Vec<(String, u64)> = stopped(&record).into_iter().map(|(name, at)| (name, at.next)).collect();
        let wanted = [("cut off", 7), ("gone", 8), ("new", 0), ("told", 10)].map(|(name, at)| (name.to_owned(), at));
        assert_eq!(next, wanted);
        assert_eq!(stopped(&record)["told"], Stopped { filter: "k/".to_owned(), node: Some(2), next: 10 });
        assert_eq!((last_write(&record), last_write(&History::default())), (12, 0));
    }
}
