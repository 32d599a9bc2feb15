//! Locks, and the registers that are written under them.
//!
//! ```text
//!   lasting keys   a grant outlives the run: only a release ends it     judged as one object: lock and register
//!   brief keys     3 s, or with a session that nobody keeps alive:      judged by `fence`, as all keys are
//!                  holders fall asleep and write when they wake up
//! ```
//!
//! A grant is asked for at one node and no other, under an owner of its own, and by nothing that gives it back by
//! itself: every release there is stands in the record. One that may have been granted without anybody hearing of it is
//! held for ever; so a lasting key that is refused for long is left, and its next generation begins.
//!
//! A refusal has no place in the log. It is recorded at that of a look at the lock after it, where that look can say
//! so.
//!
//! Deliberately absent: waiting in line, and shared holders.

mod calls;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use futures::future::BoxFuture;
use quorate_client::{Client, Session};
use serde_json::{Value, json};

use super::direct::Direct;
use super::documents::read_at_last;
use super::{Context, Workload};
use crate::check::Checker;
use crate::check::fence::Fence;
use crate::check::linear::Linear;
use crate::check::model;
use crate::check::only::Only;
use crate::check::replay::Replay;
use crate::record::{Answer, Process};
use crate::rng::Rng;

/// Keys of each kind in use at a time.
const KEYS: u64 = 4;
/// About how many operations a lasting key sees before its next generation begins.
const GENERATION: u64 = 400;
/// Refusals in a row, by whomever, after which a lasting key is left to whoever holds it.
const REFUSALS: u64 = 60;
const PATIENCE: Duration = Duration::from_secs(2);
/// Of the session that lasting grants hang on: nothing but a release is to end them.
const LONG_LEASE: Duration = Duration::from_secs(3_600);
/// Of a session that nobody keeps alive.
const SHORT_LEASE: Duration = Duration::from_secs(3);
/// Of a brief grant.
const BRIEF_MS: u64 = 3_000;
/// Brief grants that a worker remembers after it fell asleep over them.
const ASLEEP: usize = 8;

/// The workload.
#[derive(Debug, Default)]
pub struct Lock {
    slots: Slots,
}

impl Lock {
    /// The workload.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Workload for Lock {
    fn name(&self) -> &'static str {
        "lock"
    }

    fn about(&self) -> &'static str {
        "locks with fenced registers; half of the grants end by themselves, and their holders write on"
    }

    fn work(&self, context: Context, worker: u64) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move { Worker::new(context, worker, &self.slots)?.run().await })
    }

    fn finish(&self, context: Context) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move { read_at_last(&context).await })
    }

    fn checkers(&self) -> Vec<Box<dyn Checker>> {
        vec![
            Box::new(Only::new(Replay::new(model::Fenced::new()), is_lasting)),
            Box::new(Only::new(Linear::new(model::Fenced::new()), is_lasting)),
            Box::new(Fence::new()),
        ]
    }
}

fn is_lasting(key: &str) -> bool {
    key.contains("/lasting/")
}

/// A lasting key.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    generation: u64,
    used: u64,
    refused: u64,
}

/// The lasting keys in use, by the count of all workers together, so that they meet.
#[derive(Debug, Default)]
struct Slots {
    slots: Mutex<BTreeMap<u64, Slot>>,
}

impl Slots {
    /// The key of a slot, with its generation.
    fn key(&self, number: u64) -> String {
        let mut slots = self.open();
        let slot = slots.entry(number).or_default();
        if slot.used >= GENERATION || slot.refused >= REFUSALS {
            *slot = Slot { generation: slot.generation + 1, ..Slot::default() };
        }
        format!("{number}.{}", slot.generation)
    }

    /// Somebody else has it.
    fn refused(&self, number: u64) {
        let mut slots = self.open();
        let slot = slots.entry(number).or_default();
        (slot.used, slot.refused) = (slot.used + 1, slot.refused + 1);
    }

    /// It was had, for so many operations.
    fn used(&self, number: u64, operations: u64) {
        let mut slots = self.open();
        let slot = slots.entry(number).or_default();
        (slot.used, slot.refused) = (slot.used + operations, 0);
    }

    fn open(&self) -> MutexGuard<'_, BTreeMap<u64, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What came of asking for a lock.
enum Asked {
    Got(Held),
    Refused,
    /// Nobody knows, or it was never asked.
    Nothing,
}

/// A grant that its holder was told of.
#[derive(Clone, Debug)]
struct Held {
    key: String,
    owner: String,
    token: u64,
}

struct Worker<'w> {
    context: Context,
    prefix: String,
    slots: &'w Slots,
    number: u64,
    rng: Rng,
    process: Process,
    client: Client,
    nodes: Vec<Direct>,
    session: Option<Session>,
    asleep: VecDeque<Held>,
    named: u64,
}

impl<'w> Worker<'w> {
    fn new(context: Context, number: u64, slots: &'w Slots) -> Result<Self> {
        let client = context.client(number, PATIENCE)?;
        let nodes = Direct::all(&context, PATIENCE)?;
        let prefix = format!("{}/lock", context.prefix);
        let (rng, process) = (context.rng(number), context.recorder.process());
        let (session, asleep) = (None, VecDeque::new());
        Ok(Self { context, prefix, slots, number, rng, process, client, nodes, session, asleep, named: 0 })
    }

    async fn run(mut self) -> Result<()> {
        while self.context.pause(&mut self.rng).await {
            if !self.session.as_ref().is_some_and(Session::is_alive) {
                // What the old one holds stays held, or ends by itself: nothing is given back.
                self.session = self.client.sessions().open(LONG_LEASE).await.ok();
                continue;
            }
            match self.rng.below(3) {
                0 => self.wake_up().await,
                1 => self.take_lasting().await,
                _ => self.take_brief().await,
            }
        }
        Ok(())
    }

    /// Whoever fell asleep over a grant writes under it.
    async fn wake_up(&mut self) {
        let Some(held) = self.asleep.pop_front() else { return };
        let is_over = self.write(&held).await;
        // What is over is tried once more now and then: it must stay over.
        if !is_over || self.rng.below(3) == 0 {
            self.asleep.push_back(held);
        }
    }

    fn fall_asleep(&mut self, held: Held) {
        self.asleep.push_back(held);
        if self.asleep.len() > ASLEEP {
            self.asleep.pop_front();
        }
    }

    async fn take_lasting(&mut self) {
        let Some(session) = self.session.clone() else { return };
        let number = self.rng.below(KEYS);
        let key = format!("{}/lasting/{}", self.prefix, self.slots.key(number));
        let held = match self.acquire(&key, session.id(), 0).await {
            Asked::Got(held) => held,
            Asked::Refused => return self.slots.refused(number),
            Asked::Nothing => return,
        };
        let steps = 1 + self.rng.below(4);
        for _ in 0..steps {
            if !self.context.pause(&mut self.rng).await {
                break;
            }
            self.use_once(&held).await;
        }
        self.give_back(&held).await;
        if self.rng.below(4) == 0 {
            // Nobody holds it under this token any more.
            self.write(&held).await;
        }
        self.slots.used(number, steps + 2);
    }

    async fn take_brief(&mut self) {
        let Some(session) = self.brief_session().await else { return };
        let key = format!("{}/brief/{}", self.prefix, self.rng.below(KEYS));
        let is_kept_alive = session.ttl() == LONG_LEASE;
        let ttl_ms = if is_kept_alive { BRIEF_MS } else { 0 };
        let asked = self.acquire(&key, session.id(), ttl_ms).await;
        // With its last handle a short session has nobody who keeps it alive, and is not closed.
        drop(session);
        let Asked::Got(held) = asked else { return };
        let steps = 1 + self.rng.below(4);
        for _ in 0..steps {
            if !self.context.pause(&mut self.rng).await {
                return;
            }
            self.use_once(&held).await;
        }
        match self.rng.below(4) {
            0 => self.give_back(&held).await,
            1 if is_kept_alive => {
                self.extend(&held).await;
                self.fall_asleep(held);
            }
            _ => self.fall_asleep(held),
        }
    }

    /// The worker's own, or now and then one that is not kept alive.
    async fn brief_session(&mut self) -> Option<Session> {
        if self.rng.below(6) == 0 {
            return self.client.sessions().open(SHORT_LEASE).await.ok();
        }
        self.session.clone()
    }

    async fn use_once(&mut self, held: &Held) {
        if self.rng.below(3) == 0 {
            self.read(&held.key).await;
        } else {
            self.write(held).await;
        }
    }

    async fn acquire(&mut self, key: &str, session_id: &str, ttl_ms: u64) -> Asked {
        let owner = self.name();
        let Self { process, nodes, rng, .. } = self;
        let Some(node) = nodes.get(rng.below(nodes.len() as u64) as usize) else { return Asked::Nothing };
        let asking = calls::acquire(node, key, session_id, &owner, ttl_ms);
        let arg = json!({ "owner": owner, "ttl_ms": ttl_ms });
        let answer = process.run("acquire", key, arg, Some(node.id()), asking).await;
        let Answer::Ok { res, .. } = answer else { return Asked::Nothing };
        let got = res.get("got").and_then(Value::as_bool) == Some(true);
        match res.get("token").and_then(Value::as_u64).filter(|_| got) {
            Some(token) => Asked::Got(Held { key: key.to_owned(), owner, token }),
            None => Asked::Refused,
        }
    }

    /// Until it is answered, or there were five attempts.
    async fn give_back(&mut self, held: &Held) {
        for _ in 0..5 {
            let Self { process, nodes, rng, client, .. } = self;
            let Some(node) = nodes.get(rng.below(nodes.len() as u64) as usize) else { return };
            let arg = json!({ "owner": held.owner, "token": held.token });
            let releasing = calls::release(node, client, &held.key, held.token);
            if let Answer::Ok { .. } = process.run("release", &held.key, arg, Some(node.id()), releasing).await {
                return;
            }
            if !self.context.pause(&mut self.rng).await {
                return;
            }
        }
    }

    async fn extend(&mut self, held: &Held) {
        let Self { process, nodes, rng, client, .. } = self;
        let Some(node) = nodes.get(rng.below(nodes.len() as u64) as usize) else { return };
        let extending = calls::extend(node, client, &held.key, held.token);
        process.run("extend", &held.key, json!({ "token": held.token }), Some(node.id()), extending).await;
    }

    async fn read(&mut self, key: &str) {
        self.process.run("read", key, json!({}), None, calls::read(&self.client, key)).await;
    }

    /// Whether it was refused because the grant is over.
    async fn write(&mut self, held: &Held) -> bool {
        let value = self.name();
        let session = if self.rng.below(2) == 0 { self.session.clone() } else { None };
        let Self { process, client, .. } = self;
        let arg = json!({ "token": held.token, "value": value });
        let writing = calls::write(client, &held.key, held.token, &value, session.as_ref());
        let answer = process.run("fenced_write", &held.key, arg, None, writing).await;
        matches!(answer, Answer::Ok { res, .. } if res.get("accepted").and_then(Value::as_bool) == Some(false))
    }

    /// One that nothing else has: a value, or an owner.
    fn name(&mut self) -> String {
        self.named += 1;
        format!("{}.{}", self.number, self.named)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_is_used_up_or_never_to_be_had_is_left() {
        let slots = Slots::default();
        assert_eq!(slots.key(2), "2.0");
        slots.used(2, GENERATION - 1);
        assert_eq!(slots.key(2), "2.0");
        slots.used(2, 1);
        assert_eq!(slots.key(2), "2.1");
        (0..REFUSALS - 1).for_each(|_| slots.refused(2));
        slots.used(2, 1);
        slots.refused(2);
        assert_eq!(slots.key(2), "2.1", "it was had in between");
        (0..REFUSALS).for_each(|_| slots.refused(2));
        assert_eq!(slots.key(2), "2.2");
        assert_eq!(slots.key(3), "3.0", "each by itself");
    }

    #[test]
    fn only_lasting_keys_are_judged_as_if_no_grant_ended_by_itself() {
        assert!(is_lasting("r1/lock/lasting/2.0") && !is_lasting("r1/lock/brief/2"));
    }
}
