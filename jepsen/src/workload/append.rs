//! Transactions over lists: each reads some and appends to some, at one place of the log.
//!
//! ```text
//!   reads only         one listing                                    every list of the generation, as of one rev
//!   reads and appends  a listing, then a transaction on condition     every list that was read is still as it was
//!   appends only       a transaction without a condition              the server appends to whatever is there
//! ```
//!
//! Lists are JSON arrays. When those of a generation hold 40 elements each on average, the next generation begins:
//! every worker sees that by itself, as it reads.
//!
//! Deliberately absent: reads of what the same transaction has appended. Every read comes before every append.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Result, ensure};
use futures::future::BoxFuture;
use quorate_client::v1::{KvEntry, KvMerge};
use quorate_client::{Client, Error, Session, Transaction};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::documents::{snapshot, text};
use super::{Context, Workload};
use crate::check::Checker;
use crate::check::append::Append as Judge;
use crate::record::{Answer, Operation, Process};
use crate::rng::Rng;

/// Lists of one generation.
const KEYS: u64 = 5;
/// Elements of all lists of a generation together, from which on it is left.
const FULL: usize = 40 * KEYS as usize;
const PATIENCE: Duration = Duration::from_secs(2);
const LAST_PATIENCE: Duration = Duration::from_secs(30);
/// How long after the end a read may take that must be answered.
const LAST: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(200);
/// Of a session that is there for its request ids alone.
const LEASE: Duration = Duration::from_secs(30);
/// What histories call all of it.
const KEY: &str = "append";
/// More elements than one worker appends.
const ELEMENTS_PER_WORKER: u64 = 1_000_000_000;

/// The workload.
#[derive(Clone, Copy, Debug, Default)]
pub struct Append;

impl Append {
    /// The workload.
    pub fn new() -> Self {
        Self
    }
}

impl Workload for Append {
    fn name(&self) -> &'static str {
        "append"
    }

    fn about(&self) -> &'static str {
        "transactions that read some lists and append to others, as one"
    }

    fn work(&self, context: Context, worker: u64) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move { Worker::new(context, worker)?.run().await })
    }

    fn finish(&self, context: Context) -> BoxFuture<'_, Result<()>> {
        Box::pin(read_at_last(context))
    }

    fn checkers(&self) -> Vec<Box<dyn Checker>> {
        vec![Box::new(Judge::new())]
    }
}

/// One step of a transaction. Lists go by their number in the generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Read(u64),
    Append(u64, u64),
}

/// Where the lists of one generation are.
#[derive(Clone, Debug)]
struct Place {
    prefix: String,
    generation: u64,
}

impl Place {
    fn of(context: &Context, generation: u64) -> Self {
        Self { prefix: format!("{}/append", context.prefix), generation }
    }

    /// In front of every list's key.
    fn prefix(&self) -> String {
        format!("{}/{}/", self.prefix, self.generation)
    }

    fn key(&self, list: u64) -> String {
        format!("{}{list}", self.prefix())
    }

    /// What histories call a list.
    fn name(&self, list: u64) -> String {
        format!("{}/{list}", self.generation)
    }

    fn asked(&self, ops: &[Op]) -> Value {
        let ops = ops.iter().map(|op| match op {
            Op::Read(list) => json!(["r", self.name(*list)]),
            Op::Append(list, element) => json!(["append", self.name(*list), element]),
        });
        json!({ "ops": ops.collect::<Vec<Value>>() })
    }

    fn answered(&self, ops: &[Op], lists: &Lists) -> Value {
        let ops = ops.iter().map(|op| match op {
            Op::Read(list) => json!(["r", self.name(*list), lists.elements(&self.key(*list))]),
            Op::Append(list, element) => json!(["append", self.name(*list), element]),
        });
        json!({ "ops": ops.collect::<Vec<Value>>() })
    }
}

/// The lists of one generation as of one rev.
#[derive(Debug, Default)]
struct Lists {
    entries: BTreeMap<String, KvEntry>,
    rev: u64,
}

impl Lists {
    async fn read(client: &Client, place: &Place) -> Result<Self, Error> {
        let (entries, rev) = snapshot(client, &place.prefix()).await?;
        Ok(Self { entries: entries.into_iter().map(|entry| (entry.key.clone(), entry)).collect(), rev })
    }

    /// What a list holds. What is no list is shown as it is, for the checker to stumble over.
    fn elements(&self, key: &str) -> Value {
        let Some(entry) = self.entries.get(key) else { return json!([]) };
        serde_json::from_slice(&entry.value).unwrap_or_else(|_| Value::String(text(entry)))
    }

    fn mod_rev(&self, key: &str) -> u64 {
        self.entries.get(key).map_or(0, |entry| entry.mod_rev)
    }

    fn len(&self) -> usize {
        self.entries.keys().map(|key| self.elements(key).as_array().map_or(0, Vec::len)).sum()
    }
}

struct Worker {
    context: Context,
    number: u64,
    rng: Rng,
    process: Process,
    client: Client,
    session: Option<Session>,
    place: Place,
    appended: u64,
}

impl Worker {
    fn new(context: Context, number: u64) -> Result<Self> {
        let (rng, process) = (context.rng(number), context.recorder.process());
        let (client, place) = (context.client(number, PATIENCE)?, Place::of(&context, 0));
        Ok(Self { context, number, rng, process, client, session: None, place, appended: 0 })
    }

    async fn run(mut self) -> Result<()> {
        while self.context.pause(&mut self.rng).await {
            let ops = self.choose();
            let replaces = self.rng.below(2) == 0;
            let session = self.session().await;
            let Self { process, client, place, .. } = &mut self;
            let (client, place) = (&*client, &*place);
            let mut found = 0;
            let running = async {
                match run(client, place, &ops, replaces, session.as_ref()).await {
                    Ok((rev, lists)) => {
                        found = lists.len();
                        Answer::at(rev, place.answered(&ops, &lists))
                    }
                    Err(error) => Answer::of_error(&error),
                }
            };
            process.run("txn", KEY, place.asked(&ops), None, running).await;
            if found >= FULL {
                self.place.generation += 1;
            }
        }
        Ok(())
    }

    /// Reads first, each of another list; then appends, each to another list.
    fn choose(&mut self) -> Vec<Op> {
        let kind = self.rng.below(10);
        if kind < 3 {
            return (0..KEYS).map(Op::Read).collect();
        }
        let reads = if kind < 9 { 1 + self.rng.below(2) } else { 0 };
        let mut ops: Vec<Op> = self.lists(reads).into_iter().map(Op::Read).collect();
        let appends = 1 + self.rng.below(2);
        for list in self.lists(appends) {
            self.appended += 1;
            ops.push(Op::Append(list, self.number * ELEMENTS_PER_WORKER + self.appended));
        }
        ops
    }

    /// So many lists, or fewer where one is drawn twice.
    fn lists(&mut self, count: u64) -> BTreeSet<u64> {
        (0..count).map(|_| self.rng.below(KEYS)).collect()
    }

    /// For half of the transactions, a session to draw a request id from; opened anew if it is lost.
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

/// Carries out a transaction; gives its rev, and the lists as they were before it, if any was read.
async fn run(
    client: &Client,
    place: &Place,
    ops: &[Op],
    replaces: bool,
    session: Option<&Session>,
) -> Result<(u64, Lists), Error> {
    let is_read = |op: &Op| matches!(op, Op::Read(_));
    let lists = if ops.iter().any(is_read) { Lists::read(client, place).await? } else { Lists::default() };
    if ops.iter().all(is_read) {
        return Ok((lists.rev, lists));
    }
    let transaction = transaction(client, place, ops, replaces, &lists);
    let done = transaction.run(client, session).await?;
    Ok((done.rev, lists))
}

/// What is read is a condition. What is read and appended to is written as a whole if `replaces` says so.
fn transaction(client: &Client, place: &Place, ops: &[Op], replaces: bool, lists: &Lists) -> Transaction {
    let mut transaction = Transaction::new();
    for op in ops {
        transaction = match op {
            Op::Read(list) => {
                let key = place.key(*list);
                let mod_rev = lists.mod_rev(&key);
                transaction.when_rev(key, mod_rev)
            }
            Op::Append(list, element) => {
                let key = place.key(*list);
                let known = lists.elements(&key);
                let known = known.as_array().filter(|_| replaces && ops.contains(&Op::Read(*list)));
                match known {
                    Some(elements) => {
                        let whole: Vec<Value> = elements.iter().cloned().chain([json!(element)]).collect();
                        transaction.put(client.kv().put(key, Value::Array(whole).to_string()))
                    }
                    None => {
                        let more = json!([element]).to_string();
                        transaction.put(client.kv().put(key, more).merge(KvMerge::JsonAppend))
                    }
                }
            }
        };
    }
    transaction
}

/// Every generation that the record names, once more, each as a transaction that only reads.
async fn read_at_last(context: Context) -> Result<()> {
    let history = context.recorder.history()?;
    let generations: BTreeSet<u64> = history.operations.iter().flat_map(generations).collect();
    let client = context.client(0, LAST_PATIENCE)?;
    let mut process = context.recorder.process();
    let ops: Vec<Op> = (0..KEYS).map(Op::Read).collect();
    for generation in generations {
        let place = Place::of(&context, generation);
        let deadline = Instant::now() + LAST;
        loop {
            let reading = async {
                match Lists::read(&client, &place).await {
                    Ok(lists) => Answer::at(lists.rev, place.answered(&ops, &lists)),
                    Err(_) => Answer::Fail,
                }
            };
            if let Answer::Ok { .. } = process.run("txn", KEY, place.asked(&ops), None, reading).await {
                break;
            }
            ensure!(Instant::now() < deadline, "generation {generation} could not be read after the end");
            sleep(PAUSE).await;
        }
    }
    Ok(())
}

/// The generations that a transaction is about.
fn generations(operation: &Operation) -> Vec<u64> {
    let ops = operation.arg.get("ops").and_then(Value::as_array).into_iter().flatten();
    let names = ops.filter_map(|op| op.get(1)?.as_str());
    names.filter_map(|name| name.split_once('/')?.0.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use quorate_client::Config;

    use super::*;

    fn place() -> Place {
        Place { prefix: "r1/append".to_owned(), generation: 3 }
    }

    fn lists(of: &[(u64, &'static str, u64)]) -> Lists {
        let entries = of.iter().map(|(list, value, mod_rev)| {
            let key = place().key(*list);
            (key.clone(), KvEntry { key, value: (*value).into(), mod_rev: *mod_rev, ..KvEntry::default() })
        });
        Lists { entries: entries.collect(), rev: 9 }
    }

    #[test]
    fn what_is_asked_and_answered_is_as_histories_have_it() {
        let ops = [Op::Read(1), Op::Read(2), Op::Append(1, 7)];
        let asked = json!({ "ops": [["r", "3/1"], ["r", "3/2"], ["append", "3/1", 7]] });
        assert_eq!(place().asked(&ops), asked);
        let answered = json!({ "ops": [["r", "3/1", [4, 5]], ["r", "3/2", []], ["append", "3/1", 7]] });
        assert_eq!(place().answered(&ops, &lists(&[(1, "[4,5]", 8)])), answered);
        assert_eq!(lists(&[(1, "[4,5]", 8), (2, "[6]", 8)]).len(), 3);
    }

    #[test]
    fn what_is_no_list_is_shown_and_not_hidden() {
        assert_eq!(lists(&[(1, "[4", 8)]).elements("r1/append/3/1"), json!("[4"));
    }

    #[tokio::test]
    async fn every_list_that_is_read_is_a_condition() {
        let client = Client::connect(Config::new(["127.0.0.1:1"])).unwrap();
        let ops = [Op::Read(1), Op::Read(2), Op::Append(1, 7), Op::Append(4, 8)];
        let lists = lists(&[(1, "[4]", 8)]);
        let shown = |replaces| format!("{:?}", transaction(&client, &place(), &ops, replaces, &lists));
        let (whole, appended) = (shown(true), shown(false));
        for shown in [&whole, &appended] {
            assert!(shown.contains("ModRev(8)") && shown.contains("ModRev(0)"), "{shown}");
        }
        assert!(whole.contains("[4,7]") && !whole.contains("\"[7]\""), "{whole}");
        assert!(appended.contains("[7]") && !appended.contains("[4,7]"), "{appended}");
        assert!(whole.contains("[8]"), "a list that was not read is appended to: {whole}");
    }

    #[test]
    fn the_generations_are_read_off_the_record() {
        let operation = |arg| Operation {
            id: 0,
            process: 0,
            f: "txn".to_owned(),
            key: KEY.to_owned(),
            arg,
            outcome: crate::record::Outcome::Fail,
            began: 0,
            ended: None,
            began_at: 0,
            ended_at: 0,
            node: None,
        };
        assert_eq!(generations(&operation(place().asked(&[Op::Read(1), Op::Append(2, 7)]))), [3, 3]);
        assert!(generations(&operation(json!({}))).is_empty());
    }
}
