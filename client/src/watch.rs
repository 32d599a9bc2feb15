//! Watching: every change from a rev on, in order, whichever node it comes from.
//!
//! ```text
//!  node ──▶ part of a rev ──▶ Joined ──▶ whole revs, each once
//!            (more)              └─ a stream that breaks half-way through a rev begins with that rev again
//! ```
//!
//! Deliberately absent: a way to go on past what was compacted. Whoever missed it reads the state and watches from there.

use quorate_proto::v1::watch_client::WatchClient;
use quorate_proto::v1::{Event, EventsRequest, EventsResponse, WatchRequest, WatchResponse};
use tonic::{Code, Response, Status};

use crate::call::Plan;
use crate::channels::Channel;
use crate::client::Client;
use crate::error::Error;
use crate::reopen::{Items, News, Opening, Reopened, items};

/// Which events are kept, from this rev on.
const OLDEST_REV_KEY: &str = "quorate-oldest-rev";

fn stub(channel: Channel) -> WatchClient<Channel> {
    WatchClient::new(channel)
        .max_decoding_message_size(crate::MAX_MESSAGE_BYTES * 4)
        .max_encoding_message_size(crate::MAX_MESSAGE_BYTES)
}

impl Client {
    /// Watches what happens, from `from_rev` on; one that has not happened yet is waited for. With 0 it begins with
    /// whatever the first response brings, and has no gap from there on. Nothing is asked before [`Watch::next`].
    pub fn watch(&self, request: WatchRequest) -> Watch {
        let joined = Joined { from_rev: request.from_rev, half: Vec::new() };
        Watch { client: self.clone(), request, stream: Reopened::new(), joined, is_over: false }
    }

    /// A page of what happened.
    pub async fn events(&self, request: EventsRequest) -> Result<EventsResponse, Error> {
        self.call(Plan::READ, |channel| {
            let request = request.clone();
            async move { stub(channel).events(request).await }
        })
        .await
    }
}

/// A watch. It goes on by itself when its node fails, and ends when it is dropped.
#[derive(Debug)]
pub struct Watch {
    client: Client,
    request: WatchRequest,
    stream: Reopened<WatchResponse>,
    joined: Joined,
    is_over: bool,
}

impl Watch {
    /// The next whole revs: everything that matches up to the response's `rev`, after the response before. It may hold no
    /// event and only say how far the watch is. Nothing is lost if it is dropped and called again.
    ///
    /// An error is the end: `Compacted`, some of what was asked for is not kept any more; `Rejected`, the request is not
    /// one. While no node can be reached it waits.
    pub async fn next(&mut self) -> Option<Result<WatchResponse, Error>> {
        while !self.is_over {
            let request = WatchRequest { from_rev: self.joined.from_rev, ..self.request.clone() };
            let client = &self.client;
            let open = || -> Opening<WatchResponse> { Box::pin(open(client.clone(), request.clone())) };
            match self.stream.next(open).await {
                Ok(News::Opened) => self.joined.begin(),
                Ok(News::Item(response)) => {
                    if let Some(whole) = self.joined.take(response) {
                        return Some(Ok(whole));
                    }
                }
                Err(error) => {
                    self.is_over = true;
                    return Some(Err(error));
                }
            }
        }
        None
    }

    /// Where it goes on: everything before this rev has been passed on. 0: nothing has come yet.
    pub fn next_rev(&self) -> u64 {
        self.joined.from_rev
    }
}

async fn open(client: Client, request: WatchRequest) -> Result<Items<WatchResponse>, Error> {
    let opened = client
        .call_in_full(Plan::READ, |channel| {
            let request = request.clone();
            async move {
                let from_rev = request.from_rev;
                match stub(channel).watch(request).await {
                    Ok(stream) => Ok(stream.map(Ok)),
                    // Another node cannot know better: an answer, not a failed attempt.
                    Err(status) => compacted(from_rev, &status).map(|error| Response::new(Err(error))).ok_or(status),
                }
            }
        })
        .await;
    let stream = opened.result??;
    Ok(items(&client, opened.node, stream))
}

/// What a status says of a beginning that is gone. A rev that has not happened yet is out of range too, on a node that is
/// behind.
fn compacted(from_rev: u64, status: &Status) -> Option<Error> {
    if status.code() != Code::OutOfRange {
        return None;
    }
    let oldest_rev = status.metadata().get(OLDEST_REV_KEY)?.to_str().ok()?.parse().ok()?;
    (from_rev < oldest_rev).then(|| Error::Compacted { message: status.message().to_owned(), oldest_rev })
}

/// What has come of the revs, and how far what was passed on reaches.
#[derive(Debug)]
struct Joined {
    /// Everything before it has been passed on. 0: nothing has come yet.
    from_rev: u64,
    /// The beginning of a rev that goes on in the next response.
    half: Vec<Event>,
}

impl Joined {
    /// Another stream begins: with whole revs.
    fn begin(&mut self) {
        self.half.clear();
    }

    /// The whole revs that the response completes, without what was passed on before.
    fn take(&mut self, response: WatchResponse) -> Option<WatchResponse> {
        let WatchResponse { rev, events, more } = response;
        if rev < self.from_rev {
            return None;
        }
        let from_rev = self.from_rev;
        self.half.extend(events.into_iter().filter(|event| event.rev >= from_rev));
        if more {
            return None;
        }
        self.from_rev = rev + 1;
        Some(WatchResponse { rev, events: std::mem::take(&mut self.half), more: false })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(rev: u64, keys: &[(u64, &str)], more: bool) -> WatchResponse {
        let event = |(rev, key): &(u64, &str)| Event { rev: *rev, key: (*key).to_owned(), ..Event::default() };
        WatchResponse { rev, events: keys.iter().map(event).collect(), more }
    }

    fn joined(from_rev: u64) -> Joined {
        Joined { from_rev, half: Vec::new() }
    }

    fn keys(response: &WatchResponse) -> Vec<&str> {
        response.events.iter().map(|event| event.key.as_str()).collect()
    }

    #[test]
    fn a_rev_in_several_responses_is_passed_on_as_one() {
        let mut joined = joined(5);
        assert!(joined.take(response(5, &[(5, "a"), (5, "b")], true)).is_none());
        assert_eq!(joined.from_rev, 5, "not a place to take up again");
        let whole = joined.take(response(5, &[(5, "c")], false)).unwrap();
        assert_eq!((whole.rev, whole.more, keys(&whole)), (5, false, vec!["a", "b", "c"]));
        assert_eq!(joined.from_rev, 6);
    }

    #[test]
    fn a_stream_that_broke_half_way_through_a_rev_begins_it_anew() {
        let mut joined = joined(5);
        assert!(joined.take(response(5, &[(5, "a")], true)).is_none());
        joined.begin();
        let whole = joined.take(response(5, &[(5, "a"), (5, "b")], false)).unwrap();
        assert_eq!(keys(&whole), ["a", "b"]);
    }

    #[test]
    fn what_was_passed_on_is_not_passed_on_again() {
        let mut joined = joined(0);
        let first = joined.take(response(7, &[], false)).unwrap();
        assert_eq!((first.rev, joined.from_rev), (7, 8), "from now on means from there on");
        assert!(joined.take(response(7, &[(7, "a")], false)).is_none());
        let next = joined.take(response(9, &[(7, "a"), (9, "b")], false)).unwrap();
        assert_eq!((keys(&next), joined.from_rev), (vec!["b"], 10));
    }

    #[test]
    fn only_what_is_gone_is_compacted() {
        let status = |oldest: Option<&'static str>| {
            let mut status = Status::out_of_range("revs 5 to 9 are kept");
            if let Some(oldest) = oldest {
                status.metadata_mut().insert(OLDEST_REV_KEY, oldest.parse().unwrap());
            }
            status
        };
        let gone = compacted(4, &status(Some("5")));
        assert!(matches!(gone, Some(Error::Compacted { oldest_rev: 5, .. })), "{gone:?}");
        assert!(compacted(10, &status(Some("5"))).is_none(), "it has not happened yet");
        assert!(compacted(4, &status(None)).is_none());
        assert!(compacted(4, &Status::not_found("no")).is_none());
    }
}
