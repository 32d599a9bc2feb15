//! Watching: every change from a rev on, in order, whichever node it comes from.
//!
//! ```text
//!  node ──▶ part of a rev ──▶ Joined ──▶ whole revs, each once
//!            (more)              └─ a stream that breaks half-way through a rev begins with that rev again
//! ```
//!
//! Deliberately absent: a way to go on past what was compacted. Whoever missed it reads the state and watches from there.

use std::time::Duration;

use quorate_proto::v1::watch_client::WatchClient;
use quorate_proto::v1::{Event, EventsRequest, EventsResponse, WatchRequest, WatchResponse};
use tokio::time::sleep;
use tonic::{Code, Response, Status, Streaming};

use crate::call::Plan;
use crate::channels::Channel;
use crate::client::Client;
use crate::error::{Error, field_of};
use crate::reopen::{Items, News, Opening, Reopened, items};

/// Which events are kept, from this rev on.
const OLDEST_REV_KEY: &str = "quorate-oldest-rev";
/// The pause before a rev to come is asked for again. It doubles from time to time.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

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

/// What a node says to a watch from some rev on.
#[derive(Debug)]
enum Begun<T> {
    Stream(T),
    /// That rev is not kept any more.
    Gone(Error),
    /// That rev has not happened yet.
    ToCome,
}

async fn open(client: Client, request: WatchRequest) -> Result<Items<WatchResponse>, Error> {
    let mut pause = FIRST_PAUSE;
    loop {
        let opened = client
            .call_in_full(Plan::READ, |channel| {
                let request = request.clone();
                async move { begin(channel, request).await.map(Response::new) }
            })
            .await;
        match opened.result? {
            Begun::Stream(stream) => return Ok(items(&client, opened.node, stream)),
            Begun::Gone(error) => return Err(error),
            Begun::ToCome => {}
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

async fn begin(channel: Channel, request: WatchRequest) -> Result<Begun<Streaming<WatchResponse>>, Status> {
    let from_rev = request.from_rev;
    match stub(channel).watch(request).await {
        Ok(response) => Ok(Begun::Stream(response.into_inner())),
        // No other node would say otherwise: an answer, and not the node's failure.
        Err(status) => out_of_range(from_rev, &status).ok_or(status),
    }
}

/// What a status says of a beginning that is not in the history.
fn out_of_range<T>(from_rev: u64, status: &Status) -> Option<Begun<T>> {
    // Without the field it is the transport's word, of a message that is too large.
    if status.code() != Code::OutOfRange || field_of(status) != Some("from_rev") {
        return None;
    }
    let oldest_rev: Option<u64> =
        status.metadata().get(OLDEST_REV_KEY).and_then(|oldest| oldest.to_str().ok()?.parse().ok());
    match oldest_rev {
        Some(oldest_rev) if from_rev < oldest_rev => {
            Some(Begun::Gone(Error::Compacted { message: status.message().to_owned(), oldest_rev }))
        }
        _ => Some(Begun::ToCome),
    }
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
    fn what_is_gone_is_told_and_what_is_to_come_is_waited_for_and_neither_is_the_nodes_fault() {
        let status = |oldest: Option<&'static str>| {
            let mut status = Status::out_of_range("revs 5 to 9 are kept");
            status.metadata_mut().insert("quorate-field", "from_rev".parse().unwrap());
            if let Some(oldest) = oldest {
                status.metadata_mut().insert(OLDEST_REV_KEY, oldest.parse().unwrap());
            }
            status
        };
        let said = |from_rev, status: Status| out_of_range::<()>(from_rev, &status);
        let gone = said(4, status(Some("5")));
        assert!(matches!(gone, Some(Begun::Gone(Error::Compacted { oldest_rev: 5, .. }))), "{gone:?}");
        assert!(matches!(said(11, status(None)), Some(Begun::ToCome)));
        assert!(matches!(said(11, status(Some("5"))), Some(Begun::ToCome)));
        assert!(said(4, Status::not_found("no")).is_none());
        assert!(said(4, Status::out_of_range("message length too large")).is_none(), "not the node's word");
    }
}
