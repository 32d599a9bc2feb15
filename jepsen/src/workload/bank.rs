//! Accounts between which money moves, as documents that are written two at a time.
//!
//! A worker reads all accounts by one listing, and moves money from one to another on condition that both are as it
//! read them. What the record says of each is told by `crate::check::bank`.
//!
//! Deliberately absent: transfers without a condition.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use futures::future::BoxFuture;
use quorate_client::v1::KvEntry;
use quorate_client::{Client, Session, Transaction};
use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep};

use super::documents::{snapshot, text};
use super::{Context, Workload};
use crate::check::Checker;
use crate::check::bank::Bank as Judge;
use crate::record::{Answer, Process};
use crate::rng::Rng;

const ACCOUNTS: usize = 6;
/// What each account begins with.
const OPENING: i64 = 100;
const PATIENCE: Duration = Duration::from_secs(2);
const LAST_PATIENCE: Duration = Duration::from_secs(30);
/// How long a read may take that must be answered.
const LAST: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(200);
/// Of a session that is there for its request ids alone.
const LEASE: Duration = Duration::from_secs(30);
/// What histories call all of it.
const KEY: &str = "bank";

/// The workload.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bank;

impl Bank {
    /// The workload.
    pub fn new() -> Self {
        Self
    }
}

impl Workload for Bank {
    fn name(&self) -> &'static str {
        "bank"
    }

    fn about(&self) -> &'static str {
        "transfers between six accounts; every look at them shows all the money"
    }

    /// Opens the accounts, and has them read before anything moves: the record begins with that.
    fn prepare(&self, context: Context) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let client = context.client(0, LAST_PATIENCE)?;
            let mut opening = Transaction::new();
            for account in 0..ACCOUNTS {
                let key = format!("{}{account}", prefix(&context));
                opening = opening.put(client.kv().put(key, OPENING.to_string()).if_absent());
            }
            let session = client.sessions().open(LEASE).await?;
            opening.run(&client, &session).await?;
            session.close().await?;
            read_for_sure(&context, &client).await
        })
    }

    fn work(&self, context: Context, worker: u64) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move { Worker::new(context, worker)?.run().await })
    }

    fn finish(&self, context: Context) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let client = context.client(0, LAST_PATIENCE)?;
            read_for_sure(&context, &client).await
        })
    }

    fn checkers(&self) -> Vec<Box<dyn Checker>> {
        vec![Box::new(Judge::new(ACCOUNTS, OPENING))]
    }
}

/// In front of every account's key.
fn prefix(context: &Context) -> String {
    format!("{}/bank/", context.prefix)
}

/// Reads the accounts, however long that takes.
async fn read_for_sure(context: &Context, client: &Client) -> Result<()> {
    let mut process = context.recorder.process();
    let prefix = prefix(context);
    let deadline = Instant::now() + LAST;
    while read(&mut process, client, &prefix).await.is_none() {
        ensure!(Instant::now() < deadline, "the accounts could not be read within {} s", LAST.as_secs());
        sleep(PAUSE).await;
    }
    Ok(())
}

/// An account as it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Account {
    balance: i64,
    mod_rev: u64,
}

type Accounts = BTreeMap<String, Account>;

/// Reads the accounts, and records that. `None`: there was no answer, or none that could be read.
async fn read(process: &mut Process, client: &Client, prefix: &str) -> Option<Accounts> {
    let mut found = None;
    let reading = async {
        match snapshot(client, prefix).await {
            Ok((entries, rev)) => {
                found = understood(prefix, &entries);
                Answer::at(rev, shown(prefix, &entries))
            }
            Err(_) => Answer::Fail,
        }
    };
    process.run("read", KEY, json!({}), None, reading).await;
    found
}

fn name<'e>(prefix: &str, entry: &'e KvEntry) -> &'e str {
    entry.key.strip_prefix(prefix).unwrap_or(&entry.key)
}

fn understood(prefix: &str, entries: &[KvEntry]) -> Option<Accounts> {
    let account = |entry: &KvEntry| Some(Account { balance: text(entry).parse().ok()?, mod_rev: entry.mod_rev });
    entries.iter().map(|entry| Some((name(prefix, entry).to_owned(), account(entry)?))).collect()
}

/// What is no number is shown as it is, for the checker to stumble over.
fn shown(prefix: &str, entries: &[KvEntry]) -> Value {
    let accounts = entries.iter().map(|entry| {
        let said = text(entry);
        let balance = said.parse::<i64>().map_or(Value::String(said), Value::from);
        (name(prefix, entry).to_owned(), json!([balance, entry.mod_rev]))
    });
    json!({ "accounts": accounts.collect::<Map<String, Value>>() })
}

/// A transfer that is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Order {
    from: String,
    to: String,
    amount: i64,
    before: (Account, Account),
}

impl Order {
    /// Some of what one account has, to another. `None`: there is nothing to give, or nobody else.
    fn choose(accounts: &Accounts, rng: &mut Rng) -> Option<Self> {
        let mut draw = || accounts.iter().nth(rng.below(accounts.len() as u64) as usize);
        let ((from, giver), (to, taker)) = (draw()?, draw()?);
        let most = u64::try_from(giver.balance).ok().filter(|most| *most > 0 && from != to)?;
        let amount = 1 + rng.below(most.min(20)) as i64;
        Some(Self { from: from.clone(), to: to.clone(), amount, before: (*giver, *taker) })
    }

    fn asked(&self) -> Value {
        let (from, to) = self.before;
        json!({
            "from": self.from, "to": self.to, "amount": self.amount, "from_rev": from.mod_rev, "to_rev": to.mod_rev,
        })
    }

    fn after(&self) -> (i64, i64) {
        let (from, to) = self.before;
        (from.balance - self.amount, to.balance + self.amount)
    }

    async fn carry_out(&self, client: &Client, prefix: &str, session: Option<&Session>) -> Answer {
        let ((from, to), (giver, taker)) = (self.after(), self.before);
        let put = |name: &str, balance: i64, mod_rev: u64| {
            client.kv().put(format!("{prefix}{name}"), balance.to_string()).if_rev(mod_rev)
        };
        let transaction =
            Transaction::new().put(put(&self.from, from, giver.mod_rev)).put(put(&self.to, to, taker.mod_rev));
        match transaction.run(client, session).await {
            Ok(done) => Answer::at(done.rev, json!({ "from": from, "to": to })),
            Err(error) => Answer::of_error(&error),
        }
    }
}

struct Worker {
    context: Context,
    rng: Rng,
    process: Process,
    client: Client,
    session: Option<Session>,
}

impl Worker {
    fn new(context: Context, number: u64) -> Result<Self> {
        let (rng, process) = (context.rng(number), context.recorder.process());
        let client = context.client(number, PATIENCE)?;
        Ok(Self { context, rng, process, client, session: None })
    }

    async fn run(mut self) -> Result<()> {
        let prefix = prefix(&self.context);
        while self.context.pause(&mut self.rng).await {
            let Some(accounts) = read(&mut self.process, &self.client, &prefix).await else { continue };
            if self.rng.below(4) == 0 {
                continue;
            }
            let Some(order) = Order::choose(&accounts, &mut self.rng) else { continue };
            let session = self.session().await;
            let carrying_out = order.carry_out(&self.client, &prefix, session.as_ref());
            self.process.run("transfer", KEY, order.asked(), None, carrying_out).await;
        }
        Ok(())
    }

    /// For half of the transfers, a session to draw a request id from; opened anew if it is lost.
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

    fn entry(account: &str, value: &'static str, mod_rev: u64) -> KvEntry {
        KvEntry { key: format!("r1/bank/{account}"), value: value.into(), mod_rev, ..KvEntry::default() }
    }

    #[test]
    fn accounts_are_shown_with_their_revs_and_what_is_no_number_as_it_is() {
        let entries = [entry("0", "90", 7), entry("1", "x", 8)];
        let wanted = json!({ "accounts": { "0": [90, 7], "1": ["x", 8] } });
        assert_eq!(shown("r1/bank/", &entries), wanted);
        assert_eq!(understood("r1/bank/", &entries), None);
        let accounts = understood("r1/bank/", &entries[..1]).unwrap();
        assert_eq!(accounts.get("0"), Some(&Account { balance: 90, mod_rev: 7 }));
    }

    #[test]
    fn nobody_gives_more_than_there_is_nor_to_himself() {
        let accounts = understood("r1/bank/", &[entry("0", "3", 7), entry("1", "0", 8)]).unwrap();
        let mut rng = Rng::new(7);
        let orders: Vec<Order> = (0..100).filter_map(|_| Order::choose(&accounts, &mut rng)).collect();
        assert!(!orders.is_empty());
        for order in orders {
            assert_eq!((order.from.as_str(), order.to.as_str()), ("0", "1"));
            let (from, to) = order.after();
            assert!(order.amount > 0 && from >= 0 && from + to == 3, "{order:?}");
        }
        assert_eq!(Order::choose(&Accounts::new(), &mut rng), None);
    }
}
