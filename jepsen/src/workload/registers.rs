//! Registers: documents that workers read, write, remove, and in the workload `cas` exchange for what they saw.
//!
//! A key is used for about 400 operations; then the next generation of it begins, so that the history of each stays
//! short enough to be searched. Every other worker asks one node and no other; the rest go wherever the library goes.
//!
//! | answer | where its place in the log comes from |
//! |---|---|
//! | of a write, a removal, a listing, a `get` that finds something | the answer says so |
//! | of a `get` that finds nothing, of a refused exchange | a listing within the same operation |
//!
//! The second kind is judged only if the listing can have come to the same answer at its own place, or if nothing else
//! can be the truth; otherwise the operation counts as one without an effect.
//!
//! The server counts a removal as a version, and goes on counting after it; versions are recorded as the server says
//! them.
//!
//! Deliberately absent: answers that are computed from what a worker remembers.

mod way;

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use futures::future::BoxFuture;
use quorate_client::{Client, Session};
use serde_json::json;

use self::way::{Seen, Way};
use super::documents::read_at_last;
use super::{Context, Workload};
use crate::check::Checker;
use crate::check::linear::Linear;
use crate::check::model;
use crate::check::replay::Replay;
use crate::record::{Answer, Process};
use crate::rng::Rng;

/// Keys in use at a time.
const KEYS: u64 = 8;
/// About how many operations a key sees before its next generation begins.
const GENERATION: u64 = 400;
const PATIENCE: Duration = Duration::from_secs(2);
/// Of a session that is there for its request ids alone.
const LEASE: Duration = Duration::from_secs(30);

/// Reads, writes and removals.
#[derive(Debug, Default)]
pub struct Register {
    keys: Keys,
}

/// Reads and exchanges; a few writes and removals.
#[derive(Debug, Default)]
pub struct Cas {
    keys: Keys,
}

impl Register {
    /// The workload.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Cas {
    /// The workload.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Workload for Register {
    fn name(&self) -> &'static str {
        "register"
    }

    fn about(&self) -> &'static str {
        "reads, writes and removals of a few documents, at all nodes; half of the writes under request ids"
    }

    fn work(&self, context: Context, worker: u64) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move { Worker::new(context, worker, "register", &self.keys)?.run(reads_and_writes).await })
    }

    fn finish(&self, context: Context) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move { read_at_last(&context).await })
    }

    fn checkers(&self) -> Vec<Box<dyn Checker>> {
        checkers()
    }
}

impl Workload for Cas {
    fn name(&self) -> &'static str {
        "cas"
    }

    fn about(&self) -> &'static str {
        "documents that are exchanged for another value only if they are as they were seen"
    }

    fn work(&self, context: Context, worker: u64) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move { Worker::new(context, worker, "cas", &self.keys)?.run(mostly_exchanges).await })
    }

    fn finish(&self, context: Context) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move { read_at_last(&context).await })
    }

    fn checkers(&self) -> Vec<Box<dyn Checker>> {
        checkers()
    }
}

fn checkers() -> Vec<Box<dyn Checker>> {
    let model = model::Register::counting_removals();
    vec![Box::new(Replay::new(model)), Box::new(Linear::new(model))]
}

/// What a worker does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Read,
    Put,
    Delete,
    Exchange,
}

fn reads_and_writes(rng: &mut Rng) -> Act {
    match rng.below(10) {
        0..4 => Act::Read,
        4..8 => Act::Put,
        _ => Act::Delete,
    }
}

fn mostly_exchanges(rng: &mut Rng) -> Act {
    match rng.below(10) {
        0..3 => Act::Read,
        3 => Act::Put,
        4 => Act::Delete,
        _ => Act::Exchange,
    }
}

/// The keys in use, by the count of all workers together, so that they meet.
#[derive(Debug, Default)]
struct Keys {
    used: Mutex<BTreeMap<u64, u64>>,
}

impl Keys {
    /// One of them, with its generation.
    fn next(&self, rng: &mut Rng) -> String {
        let key = rng.below(KEYS);
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let used = used.entry(key).or_default();
        *used += 1;
        format!("{key}.{}", (*used - 1) / GENERATION)
    }
}

struct Worker<'w> {
    context: Context,
    prefix: String,
    keys: &'w Keys,
    number: u64,
    rng: Rng,
    process: Process,
    way: Way,
    /// Opens sessions.
    client: Client,
    session: Option<Session>,
    /// What was last read of each key.
    seen: BTreeMap<String, Seen>,
    /// No answer of a later operation may be of an earlier place.
    floor: u64,
    written: u64,
}

impl<'w> Worker<'w> {
    fn new(context: Context, number: u64, name: &str, keys: &'w Keys) -> Result<Self> {
        let way = Way::of(&context, number, PATIENCE)?;
        let client = context.client(number, PATIENCE)?;
        let prefix = format!("{}/{name}", context.prefix);
        let (rng, process) = (context.rng(number), context.recorder.process());
        let (session, seen) = (None, BTreeMap::new());
        let (floor, written) = (0, 0);
        Ok(Self { context, prefix, keys, number, rng, process, way, client, session, seen, floor, written })
    }

    async fn run(mut self, choose: fn(&mut Rng) -> Act) -> Result<()> {
        while self.context.pause(&mut self.rng).await {
            let key = format!("{}/{}", self.prefix, self.keys.next(&mut self.rng));
            let act = choose(&mut self.rng);
            let answer = match act {
                Act::Read => self.read(&key).await,
                Act::Put => self.put(&key).await,
                Act::Delete => self.delete(&key).await,
                Act::Exchange => self.exchange(&key).await,
            };
            if let Answer::Ok { rev: Some(rev), .. } = answer {
                self.floor = self.floor.max(rev);
            }
        }
        Ok(())
    }

    async fn read(&mut self, key: &str) -> Answer {
        let by_get = self.rng.below(2) == 0;
        let Self { process, way, floor, .. } = self;
        let mut seen = None;
        let reading = async {
            let (answer, entry) = if by_get { way.get(key, *floor).await } else { way.read(key).await };
            seen = Some(entry);
            answer
        };
        let answer = process.run("read", key, json!({}), way.node(), reading).await;
        if let (Answer::Ok { .. }, Some(seen)) = (&answer, seen) {
            self.seen.insert(key.to_owned(), seen);
        }
        answer
    }

    async fn put(&mut self, key: &str) -> Answer {
        let session = self.session().await;
        let value = self.value();
        let Self { process, way, .. } = self;
        let writing = way.put(key, &value, session.as_ref());
        process.run("put", key, json!({ "value": value }), way.node(), writing).await
    }

    async fn delete(&mut self, key: &str) -> Answer {
        let session = self.session().await;
        let Self { process, way, .. } = self;
        process.run("del", key, json!({}), way.node(), way.delete(key, session.as_ref())).await
    }

    /// Exchanges what it saw: just now, or, half the time if it knows the key already, a while ago.
    async fn exchange(&mut self, key: &str) -> Answer {
        if !self.seen.contains_key(key) || self.rng.below(2) == 0 {
            let read = self.read(key).await;
            let Answer::Ok { .. } = read else { return read };
        }
        let Some(seen) = self.seen.get(key).copied() else { return Answer::Fail };
        let session = self.session().await;
        let value = self.value();
        let arg = json!({ "version": seen.version, "value": value });
        let Self { process, way, .. } = self;
        let exchanging = way.exchange(key, &seen, &value, session.as_ref());
        process.run("cas", key, arg, way.node(), exchanging).await
    }

    /// One that no other write has.
    fn value(&mut self) -> String {
        self.written += 1;
        format!("{}.{}", self.number, self.written)
    }

    /// For half of the writes, a session to draw a request id from; opened anew if it is lost, if that can be done.
    async fn session(&mut self) -> Option<Session> {
        if self.rng.below(2) == 0 {
            return None;
        }
        if !self.session.as_ref().is_some_and(Session::is_alive) {
            self.session = self.client.sessions().open(LEASE).await.ok();
        }
        self.session.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_begins_its_next_generation_after_so_many_operations() {
        let (keys, mut rng) = (Keys::default(), Rng::new(7));
        let mut counts: BTreeMap<String, u64> = BTreeMap::new();
        for _ in 0..3 * KEYS * GENERATION {
            *counts.entry(keys.next(&mut rng)).or_default() += 1;
        }
        assert!(counts.values().all(|count| *count <= GENERATION));
        assert!((0..KEYS).all(|key| counts.get(&format!("{key}.0")) == Some(&GENERATION)));
    }

    #[test]
    fn every_kind_of_operation_is_chosen() {
        let mut rng = Rng::new(7);
        let chosen: Vec<Act> = (0..100).map(|_| reads_and_writes(&mut rng)).collect();
        assert!([Act::Read, Act::Put, Act::Delete].iter().all(|act| chosen.contains(act)));
        let chosen: Vec<Act> = (0..100).map(|_| mostly_exchanges(&mut rng)).collect();
        assert!([Act::Read, Act::Put, Act::Delete, Act::Exchange].iter().all(|act| chosen.contains(act)));
    }
}
