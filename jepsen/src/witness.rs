//! A watcher that remembers everything it was told, to be held against the history afterwards.
//!
//! Owns what each response must be by itself: after the one before, and with nothing in it that should have come earlier
//! or later. Whether something is missing only the history can tell.
//!
//! Deliberately absent: mending. The library reopens a stream that breaks; what comes of it is what is tested.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use quorate_client::v1::{Event, WatchRequest, WatchResponse};
use quorate_client::{Client, Error};
use tokio::task::JoinHandle;

use crate::events::{brief, passes};
use crate::until::until;

/// A running watcher.
#[derive(Debug)]
pub struct Witness {
    name: String,
    request: WatchRequest,
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

/// What a watcher was told.
#[derive(Debug, Default)]
struct Seen {
    /// It saw everything from here on. 0: not known before the first response.
    from_rev: u64,
    /// Up to here. 0: nothing yet.
    through: u64,
    events: Vec<Event>,
    /// What a response must not be.
    faults: Vec<String>,
    ended: Option<Error>,
}

impl Seen {
    fn take(&mut self, response: WatchResponse) {
        let WatchResponse { rev, events, more } = response;
        let first = if self.through == 0 { self.from_rev } else { self.through + 1 };
        if more || rev + 1 < first || (rev < first && self.through > 0) {
            self.faults.push(format!("a response of rev {rev}, more: {more}, where {first} was to come"));
        }
        if self.from_rev == 0 {
            // "From now on": what is empty says when that was; an event counts as the first.
            self.from_rev = events.first().map_or(rev + 1, |event| event.rev);
        }
        let mut at_least = first;
        for event in &events {
            if event.rev < at_least || event.rev > rev {
                self.faults.push(format!("{} in a response of revs {first} to {rev}", brief(event)));
            }
            at_least = event.rev;
        }
        self.through = self.through.max(rev);
        self.events.extend(events);
    }
}

impl Witness {
    /// Begins to watch.
    pub fn start(name: impl Into<String>, client: &Client, request: WatchRequest) -> Self {
        let seen = Arc::new(Mutex::new(Seen { from_rev: request.from_rev, ..Seen::default() }));
        let task = tokio::spawn(look_on(client.clone(), request.clone(), Arc::clone(&seen)));
        Self { name: name.into(), request, seen, task }
    }

    /// What it is called in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Everything up to this rev has been told.
    pub fn through(&self) -> u64 {
        self.seen().through
    }

    /// Why it ended: only if it was refused.
    pub fn ended(&self) -> Option<Error> {
        self.seen().ended.clone()
    }

    /// Waits for the first response: from then on it is known where the watcher begins.
    pub async fn wait_begun(&self, limit: Duration) -> Result<()> {
        until(&format!("{} hears something", self.name), limit, || async {
            Ok((self.alive()?.through > 0).then_some(()))
        })
        .await
    }

    /// Waits until everything up to the rev has been told. A watcher that nothing more passes takes 5 s to hear so.
    pub async fn wait_through(&self, rev: u64, limit: Duration) -> Result<()> {
        until(&format!("{} has seen rev {rev}", self.name), limit, || async {
            Ok((self.alive()?.through >= rev).then_some(()))
        })
        .await
        .with_context(|| format!("it has seen rev {}", self.through()))
    }

    /// Waits until it was told as much as the history holds for it up to the rev, and fails unless that is the very
    /// same, in the same order. Gives how many events that were.
    pub async fn check(&self, history: &[Event], through: u64, limit: Duration) -> Result<usize> {
        let count = self.expected(history, through).len();
        let all = until(&format!("{} was told {count} events", self.name), limit, || async {
            Ok((self.alive()?.events.len() >= count).then_some(()))
        })
        .await;
        // What it was told may say more than that it was too little.
        self.compare(history, through)?;
        all.map(|()| count)
    }

    /// Fails unless it was told exactly what the history holds for it up to the rev; of a history that begins later than
    /// the watcher, only that part.
    pub fn compare(&self, history: &[Event], through: u64) -> Result<()> {
        let expected = self.expected(history, through);
        let since = history.first().map_or(u64::MAX, |event| event.rev);
        let seen = self.seen();
        ensure!(seen.faults.is_empty(), "{}: {:?}", self.name, seen.faults);
        let told: Vec<&Event> = seen.events.iter().filter(|event| (since..=through).contains(&event.rev)).collect();
        let differs = expected.iter().zip(&told).position(|(expected, told)| expected != *told);
        let differs = differs.or_else(|| (expected.len() != told.len()).then_some(expected.len().min(told.len())));
        let Some(at) = differs else { return Ok(()) };
        bail!(
            "{}: was told {:?} as event {at}, where the history has {:?}; it was told {} events, and there are {}",
            self.name,
            told.get(at).map(|event| brief(event)),
            expected.get(at).map(brief),
            told.len(),
            expected.len()
        );
    }

    /// What it was told up to the rev.
    pub fn told(&self, through: u64) -> Vec<Event> {
        self.seen().events.iter().filter(|event| event.rev <= through).cloned().collect()
    }

    fn expected(&self, history: &[Event], through: u64) -> Vec<Event> {
        let from_rev = self.seen().from_rev;
        let wanted = history
            .iter()
            .filter(|event| (from_rev..=through).contains(&event.rev) && passes(&self.request.filters, event));
        wanted.cloned().map(|event| self.as_told(event)).collect()
    }

    fn as_told(&self, event: Event) -> Event {
        if self.request.keys_only { Event { value: Default::default(), ..event } } else { event }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A watcher that has ended is told nothing more.
    fn alive(&self) -> Result<MutexGuard<'_, Seen>> {
        let seen = self.seen();
        if let Some(error) = &seen.ended {
            bail!("{} ended at rev {}: {error}", self.name, seen.through);
        }
        Ok(seen)
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn look_on(client: Client, request: WatchRequest, seen: Arc<Mutex<Seen>>) {
    let mut watch = client.watch(request);
    while let Some(next) = watch.next().await {
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        match next {
            Ok(response) => seen.take(response),
            Err(error) => seen.ended = Some(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(rev: u64, key: &str) -> Event {
        Event { rev, room: "kv".to_owned(), key: key.to_owned(), ..Event::default() }
    }

    fn response(rev: u64, events: &[(u64, &str)]) -> WatchResponse {
        WatchResponse { rev, events: events.iter().map(|(rev, key)| event(*rev, key)).collect(), more: false }
    }

    fn faults(from_rev: u64, responses: &[WatchResponse]) -> usize {
        let mut seen = Seen { from_rev, ..Seen::default() };
        responses.iter().cloned().for_each(|response| seen.take(response));
        seen.faults.len()
    }

    #[test]
    fn a_response_follows_the_one_before() {
        let begins = response(4, &[]);
        let good = [begins.clone(), response(7, &[(5, "a"), (7, "b")]), response(9, &[]), response(10, &[(10, "a")])];
        assert_eq!(faults(5, &good), 0);
        assert_eq!(faults(0, &good), 0, "from now on");
        assert_eq!(faults(5, &[begins.clone(), response(7, &[(7, "a"), (5, "b")])]), 1, "out of order");
        assert_eq!(faults(5, &[begins.clone(), response(7, &[(4, "a")])]), 1, "too early");
        assert_eq!(faults(5, &[begins.clone(), response(7, &[(8, "a")])]), 1, "beyond what was said");
        assert_eq!(faults(5, &[begins.clone(), response(7, &[]), response(7, &[])]), 1, "twice");
        assert_eq!(faults(5, &[response(3, &[])]), 1, "before what was asked for");
        assert_eq!(faults(5, &[WatchResponse { more: true, ..begins }]), 1, "half a rev");
    }

    /// A watcher from rev 5 that was told this.
    fn witness(told: &[(u64, &str)]) -> Witness {
        let client = Client::connect(quorate_client::Config::new(["127.0.0.1:1"])).unwrap();
        let mut witness = Witness::start("w", &client, WatchRequest { from_rev: 5, ..WatchRequest::default() });
        witness.task.abort();
        let mut seen = Seen { from_rev: 5, ..Seen::default() };
        seen.take(response(9, told));
        witness.seen = Arc::new(Mutex::new(seen));
        witness
    }

    #[tokio::test]
    async fn a_gap_a_repetition_and_another_order_are_found() {
        let history: Vec<Event> =
            [(4, "a"), (5, "b"), (5, "c"), (7, "d"), (8, "e")].map(|(rev, key)| event(rev, key)).into();
        assert!(witness(&[(5, "b"), (5, "c"), (7, "d")]).compare(&history, 7).is_ok());
        for wrong in [
            vec![(5, "b"), (7, "d")],
            vec![(5, "b"), (5, "c")],
            vec![(5, "b"), (5, "c"), (5, "c"), (7, "d")],
            vec![(5, "c"), (5, "b"), (7, "d")],
            vec![(4, "a"), (5, "b"), (5, "c"), (7, "d")],
            vec![(5, "b"), (5, "c"), (7, "x")],
        ] {
            assert!(witness(&wrong).compare(&history, 7).is_err(), "{wrong:?}");
        }
        assert!(witness(&[(5, "b"), (5, "c"), (7, "d")]).compare(&history[3..], 7).is_ok(), "the rest was compacted");
    }
}
