//! What happened to the documents of the run, as events are told: read page by page at the end, and out of responses.

use std::time::Duration;

use anyhow::{Result, bail};
use prost::Message;
use quorate_client::v1::{Event, EventKind, EventsRequest, KvEntry, WatchFilter};
use quorate_client::{Client, Error};
use serde_json::{Value, json};

use super::{Context, all};
use crate::record::Answer;

const PATIENCE: Duration = Duration::from_secs(20);
/// History may be dropped while it is read: then it is read anew.
const TRIES: usize = 3;
const PAGE: u32 = 1_000;

/// Records the whole history, as far as it is kept.
pub(super) async fn read(context: &Context) -> Result<()> {
    let client = context.client(0, PATIENCE)?;
    let filter = all(context);
    let mut process = context.recorder.process();
    for _ in 0..TRIES {
        let call = async {
            match kept(&client, &filter).await {
                Ok(kept) => Answer::ok(kept),
                Err(error) => Answer::of_error(&error),
            }
        };
        let answer = process.run("history", &filter, json!({}), None, call).await;
        if matches!(answer, Answer::Ok { .. }) {
            return Ok(());
        }
    }
    bail!("the history of {filter} could not be read")
}

async fn kept(client: &Client, filter: &str) -> Result<Value, Error> {
    let mut request = EventsRequest { filters: vec![asked(filter)], limit: PAGE, ..EventsRequest::default() };
    let (mut from, mut events) = (0, Vec::new());
    loop {
        let page = client.events(request.clone()).await?;
        from = from.max(page.oldest_rev);
        events.extend(page.events);
        if page.next_rev == 0 {
            events.retain(|event: &Event| event.rev >= from);
            return Ok(json!({"from": from, "events": told(&events)}));
        }
        request.from_rev = page.next_rev;
    }
}

/// What a watcher asks for: one document, or all that begin with what ends in `/`.
pub(super) fn asked(filter: &str) -> WatchFilter {
    let (key, prefix) = if filter.ends_with('/') { ("", filter) } else { (filter, "") };
    WatchFilter { room: "kv".to_owned(), key: key.to_owned(), prefix: prefix.to_owned() }
}

/// Events as they are recorded.
pub(super) fn told(events: &[Event]) -> Value {
    events.iter().map(|event| json!({"rev": event.rev, "key": event.key, "value": value(event)})).collect()
}

/// Null for a removal. What is no document is told as such: nobody wrote it.
fn value(event: &Event) -> Value {
    if event.kind() == EventKind::Delete {
        return Value::Null;
    }
    match KvEntry::decode(event.value.clone()) {
        Ok(entry) => json!(String::from_utf8_lossy(&entry.value)),
        Err(error) => json!({"undecodable": error.to_string()}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_told_with_what_was_written() {
        let entry = KvEntry { value: "x".into(), ..KvEntry::default() };
        let put = Event {
            rev: 5,
            key: "r1/watch/1".to_owned(),
            kind: EventKind::Put as i32,
            value: entry.encode_to_vec().into(),
            ..Event::default()
        };
        let gone = Event { rev: 6, kind: EventKind::Delete as i32, value: Default::default(), ..put.clone() };
        let garbled = Event { rev: 7, value: vec![0xff_u8].into(), ..put.clone() };
        let told = told(&[put, gone, garbled]);
        assert_eq!(told[0], json!({"rev": 5, "key": "r1/watch/1", "value": "x"}));
        assert_eq!(told[1], json!({"rev": 6, "key": "r1/watch/1", "value": null}));
        assert!(told[2]["value"].is_object());
    }

    #[test]
    fn what_ends_in_a_slash_stands_for_all_that_begin_so() {
        assert_eq!((asked("r1/watch/").prefix, asked("r1/watch/").key), ("r1/watch/".to_owned(), String::new()));
        assert_eq!((asked("r1/watch/3").prefix, asked("r1/watch/3").key), (String::new(), "r1/watch/3".to_owned()));
    }
}
