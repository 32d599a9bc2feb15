//! The history of what happened, as one node tells it page by page.
//!
//! Deliberately absent: the client library, and the server's own filters. What a watcher was told is held against a
//! history that came another way.

use anyhow::Result;
use quorate_proto::v1::watch_client::WatchClient;
use quorate_proto::v1::{Event, EventsRequest, WatchFilter};
use tonic::transport::Channel;

const PAGE: u32 = 1_000;
const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// What one node has of the history.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Everything from here on was kept when the last page was read.
    pub oldest_rev: u64,
    /// In the order of the node's answer.
    pub events: Vec<Event>,
}

/// A connection to the history of the node at `endpoint` ("host:port").
pub async fn connect(endpoint: &str) -> Result<WatchClient<Channel>> {
    let client = WatchClient::connect(format!("http://{endpoint}")).await?;
    Ok(client.max_decoding_message_size(MAX_MESSAGE_BYTES))
}

/// All that the node at `endpoint` still has, up to and including `to_rev`. It fails if something that was not read yet
/// is compacted meanwhile.
pub async fn read(endpoint: &str, to_rev: u64) -> Result<History> {
    let mut client = connect(endpoint).await?;
    let mut history = History::default();
    let mut request = EventsRequest { to_rev, limit: PAGE, ..Default::default() };
    loop {
        let page = client.events(request.clone()).await?.into_inner();
        history.oldest_rev = page.oldest_rev;
        history.events.extend(page.events);
        if page.next_rev == 0 {
            history.events.retain(|event| event.rev >= history.oldest_rev);
            return Ok(history);
        }
        request.from_rev = page.next_rev;
    }
}

/// Whether the event is one that the filters ask for: any of them, and every event if there is none.
pub fn passes(filters: &[WatchFilter], event: &Event) -> bool {
    filters.is_empty()
        || filters.iter().any(|filter| {
            let room = filter.room.is_empty() || filter.room == event.room;
            let key = filter.key.is_empty() || filter.key == event.key;
            room && key && event.key.starts_with(&filter.prefix)
        })
}

/// An event in a few words.
pub fn brief(event: &Event) -> String {
    format!("{} {} {} @{}", event.room, event.key, event.kind().as_str_name(), event.rev)
}
