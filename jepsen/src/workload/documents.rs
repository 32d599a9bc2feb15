//! Documents as workloads read them: with the place in the log at which they were read.
//!
//! A plain `get` through the library does not say where it was answered. A listing does, and shows everything under its
//! prefix as it was at one place.
//!
//! Deliberately absent: writes. Workloads differ in those.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};
use quorate_client::v1::{KvEntry, KvListRequest};
use quorate_client::{Client, Error};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::Context;
use crate::record::Answer;

/// One call at the end.
const LAST_PATIENCE: Duration = Duration::from_secs(30);
/// How long after the end a read may take that must be answered.
const LAST: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(200);
/// The most that a snapshot holds: a second page would be of another moment.
const PAGE: u32 = 1_000;

/// What a listing asks for, to hold this document or nothing.
pub(super) fn listing(key: &str) -> KvListRequest {
    // The key itself is the first of those that begin with it.
    KvListRequest { prefix: key.to_owned(), limit: 1, ..KvListRequest::default() }
}

/// The document in the answer to [`listing`], if it is there.
pub(super) fn only_of(key: &str, entries: Vec<KvEntry>) -> Option<KvEntry> {
    entries.into_iter().next().filter(|entry| entry.key == key)
}

/// One document, and the place at which it was read.
pub(super) async fn read(client: &Client, key: &str) -> Result<(Option<KvEntry>, u64), Error> {
    let page = client.kv().list(listing(key)).await?;
    Ok((only_of(key, page.entries), page.rev))
}

/// Every document under a prefix, at most 1,000, all of one place.
pub(super) async fn snapshot(client: &Client, prefix: &str) -> Result<(Vec<KvEntry>, u64), Error> {
    let request = KvListRequest { prefix: prefix.to_owned(), limit: PAGE, ..KvListRequest::default() };
    let page = client.kv().list(request).await?;
    Ok((page.entries, page.rev))
}

/// The answer of a `read`, as histories have it.
pub(super) fn shown(entry: Option<&KvEntry>) -> Value {
    match entry {
        Some(entry) => json!({ "value": text(entry), "version": entry.version }),
        None => json!({ "value": null, "version": 0 }),
    }
}

/// What a document says.
pub(super) fn text(entry: &KvEntry) -> String {
    String::from_utf8_lossy(&entry.value).into_owned()
}

/// Reads every document once more that the record names as a key. Fails if one of them cannot be read.
pub(super) async fn read_at_last(context: &Context) -> Result<()> {
    let history = context.recorder.history()?;
    let keys: BTreeSet<&str> = history.operations.iter().map(|operation| operation.key.as_str()).collect();
    let client = context.client(0, LAST_PATIENCE)?;
    let mut process = context.recorder.process();
    for key in keys {
        let deadline = Instant::now() + LAST;
        loop {
            let reading = async {
                match read(&client, key).await {
                    Ok((entry, rev)) => Answer::at(rev, shown(entry.as_ref())),
                    Err(_) => Answer::Fail,
                }
            };
            if let Answer::Ok { .. } = process.run("read", key, json!({}), None, reading).await {
                break;
            }
            ensure!(Instant::now() < deadline, "{key} could not be read for {} s after the end", LAST.as_secs());
            sleep(PAUSE).await;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &str, value: &str, version: u64) -> KvEntry {
        KvEntry { key: key.to_owned(), value: value.to_owned().into(), version, ..KvEntry::default() }
    }

    #[test]
    fn a_listing_of_one_key_is_not_answered_by_another() {
        assert_eq!(only_of("k1", vec![entry("k10", "v", 1)]), None);
        assert_eq!(only_of("k1", vec![entry("k1", "v", 1)]), Some(entry("k1", "v", 1)));
        assert_eq!(only_of("k1", Vec::new()), None);
    }

    #[test]
    fn what_is_not_there_has_no_version() {
        assert_eq!(shown(None), json!({ "value": null, "version": 0 }));
        assert_eq!(shown(Some(&entry("k", "a", 3))), json!({ "value": "a", "version": 3 }));
    }
}
