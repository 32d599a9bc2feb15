//! Documents: a compare-and-set that comes too late, counters that need none, a history and a way back, several writes as
//! one, and a watch that saw all of it. Run `quorate dev` beside it.

#![allow(clippy::print_stdout)] // an example talks to its reader

use std::time::Duration;

use anyhow::{Context, Result};
use quorate_client::v1::{KvHistoryRequest, KvMerge, KvRollbackRequest, WatchFilter, WatchRequest};
use quorate_client::{Client, Config, Session, Transaction};

const PLAN: &str = "example/plan";
const COUNT: &str = "example/count";

async fn compare_and_set(client: &Client, session: &Session) -> Result<()> {
    let kv = client.kv();
    let first = kv.put(PLAN, "walk").request(session).send().await?;
    let seen = first.entry.context("an answer without its entry")?.mod_rev;
    kv.put(PLAN, "ride").if_rev(seen).updated_by("a").request(session).send().await?;
    match kv.put(PLAN, "swim").if_rev(seen).updated_by("b").request(session).send().await {
        Ok(_) => println!("this would be a bug"),
        Err(error) => println!("b comes too late: {error}"),
    }
    Ok(())
}

async fn count(client: &Client, session: &Session) -> Result<()> {
    let kv = client.kv();
    let add = |n: &'static str| kv.put(COUNT, n).merge(KvMerge::Add).request(session).send();
    tokio::try_join!(add("1"), add("2"), add("3"))?;
    let counted = kv.get(COUNT).await?.context("the count is gone")?;
    println!("1 + 2 + 3, each added by another: {}", String::from_utf8_lossy(&counted.value));
    Ok(())
}

async fn go_back(client: &Client, session: &Session) -> Result<()> {
    let kv = client.kv();
    let history = kv.history(KvHistoryRequest { key: PLAN.to_owned(), ..KvHistoryRequest::default() }).await?;
    for entry in &history.versions {
        println!("version {} of the plan: {}", entry.version, String::from_utf8_lossy(&entry.value));
    }
    let oldest = history.versions.last().context("no version is kept")?.version;
    let back = KvRollbackRequest { key: PLAN.to_owned(), version: oldest, ..KvRollbackRequest::default() };
    let entry = kv.rollback(Some(session), back).await?.entry.context("an answer without its entry")?;
    println!("version {oldest} again, as version {}", entry.version);
    Ok(())
}

#[tokio::main]
async fn main() -> Result<()> {
    let client = Client::connect(Config::new(["127.0.0.1:7401"]))?;
    let session = client.sessions().open(Duration::from_secs(10)).await?;

    let filter = WatchFilter { room: "kv".to_owned(), prefix: "example/".to_owned(), ..WatchFilter::default() };
    let mut watch = client.watch(WatchRequest { filters: vec![filter], ..WatchRequest::default() });
    // The first response says from where on nothing is missed.
    let from = watch.next().await.context("the watch ended")??.rev;

    compare_and_set(&client, &session).await?;
    count(&client, &session).await?;
    go_back(&client, &session).await?;
    let kv = client.kv();
    let cleared = Transaction::new()
        .when_exists(PLAN, true)
        .delete(kv.delete(PLAN))
        .delete(kv.delete(COUNT))
        .run(&client, &session)
        .await?;

    println!("what happened after rev {from}:");
    while watch.next_rev() <= cleared.rev {
        for event in watch.next().await.context("the watch ended")??.events {
            println!("  {} {:?} {}", event.rev, event.kind(), event.key);
        }
    }
    session.close().await?;
    Ok(())
}
