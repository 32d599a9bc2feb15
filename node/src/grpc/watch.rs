//! Watch: the event history, page by page, and then as it goes on. Any node serves it from what it has applied.
//!
//! A stream remembers one number, how far it has sent, and reads from the history on disk. So a slow watcher costs no
//! memory, and one that is so slow that the history was compacted in front of it is told so instead of missing something.
//! A look at the history is bounded whatever passes the filters, and is made where it holds up no other call.
//!
//! A watcher that hears nothing relies on its node: one that is cut off from the others says so and ends the stream.

use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use futures::stream::BoxStream;
use quorate_proto::v1::watch_server::Watch;
use quorate_proto::v1::{Consistency, Event, EventsRequest, EventsResponse, WatchFilter, WatchRequest, WatchResponse};
use quorate_raft::error::Fatal;
use quorate_raft::faults::{Bug, planted};
use quorate_raft::history;
use quorate_raft::replica::{Bounds, Page, View};
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use super::{Door, rows_wanted, status};

const EVENTS_DEFAULT: usize = 100;
const EVENTS_MAX: usize = 1_000;
const MAX_FILTERS: usize = 64;
/// The largest response of a stream, if a single event is not larger.
const PAGE_BYTES: usize = 1 << 20;
/// A page of the history ends after the rev that brings it here.
const LIST_BYTES: usize = 4 << 20;
/// How much one look goes through: what a narrow filter passes may be far apart.
const LOOK_ROWS: usize = 4_096;
const LOOK_BYTES: usize = 4 << 20;
/// How often one call looks before it answers with what it has found so far, be it nothing.
const LOOKS: usize = 16;
/// A watcher that sees nothing pass hears how far the history is, so that it can go on from there elsewhere.
const PROGRESS: Duration = Duration::from_secs(5);

/// Looks at the history wait for the disk on threads that other work needs too: so many at once.
static LOOKING: Semaphore = Semaphore::const_new(32);

#[tonic::async_trait]
impl Watch for Door {
    type WatchStream = BoxStream<'static, Result<WatchResponse, Status>>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let request = request.into_inner();
        check_filters(&request.filters)?;
        if self.core.stop.is_thrown() {
            return Err(self.stopping());
        }
        // A node that is behind must not say that a rev has not happened.
        self.fresh().await?;
        let now = |view: View<'_>| Ok((view.head.rev, view.head.events_compacted_rev));
        let (rev, compacted_rev) = self.read(Consistency::Stale, now).await?;
        let from_rev = if request.from_rev == 0 { rev + 1 } else { request.from_rev };
        let from_rev = if planted(Bug::WatchGap) { from_rev.min(rev) + 1 } else { from_rev };
        if from_rev > rev + 1 {
            return Err(status::out_of_range(format!("from_rev {from_rev} has not happened; the newest is {rev}"), 0));
        }
        check_kept(from_rev, compacted_rev)?;
        Ok(Response::new(Box::pin(stream(self.clone(), request, from_rev))))
    }

    async fn events(&self, request: Request<EventsRequest>) -> Result<Response<EventsResponse>, Status> {
        let request = request.into_inner();
        check_filters(&request.filters)?;
        let limit = rows_wanted("limit", request.limit, EVENTS_DEFAULT, EVENTS_MAX)?;
        let rev = self.read(request.consistency(), |view| Ok(view.head.rev)).await?;
        let filters: Arc<[WatchFilter]> = request.filters.into();
        let mut response = EventsResponse { rev, next_rev: request.from_rev.max(1), ..EventsResponse::default() };
        let end = if request.to_rev == 0 { u64::MAX } else { request.to_rev };
        let mut bytes = 0;
        for _look in 0..LOOKS {
            let page = self.page(&filters, response.next_rev, LIST_BYTES).await?;
            response.oldest_rev = page.compacted_rev + 1;
            if request.from_rev > 0 {
                check_kept(request.from_rev, page.compacted_rev)?;
            }
            response.next_rev = page.through_rev + 1;
            for (rev, mut events) in page.events {
                if response.events.len() >= limit || bytes >= LIST_BYTES || rev > end {
                    response.next_rev = if rev > end { 0 } else { rev };
                    return Ok(self.respond(response));
                }
                events.retain(|event| event.at_ms >= request.from_ms);
                bytes += fit(&mut events, request.keys_only);
                response.events.append(&mut events);
            }
            if page.through_rev >= rev || page.through_rev >= end {
                response.next_rev = 0;
                break;
            }
        }
        Ok(self.respond(response))
    }
}

impl Door {
    /// What passes the filters from `from_rev` on, as far as one look goes.
    async fn page(&self, filters: &Arc<[WatchFilter]>, from_rev: u64, bytes: usize) -> Result<Page, Status> {
        let bounds = Bounds { rows: LOOK_ROWS, read_bytes: LOOK_BYTES, bytes };
        let (core, namespace, filters) = (self.core.clone(), self.namespace.clone(), filters.clone());
        let turn = LOOKING.acquire().await;
        let looked = tokio::task::spawn_blocking(move || {
            // Given back when the look is over, even if nobody waits for it any more.
            let _turn = turn;
            core.replica.events(&namespace, from_rev, bounds, |event| history::matches(&filters, event))
        });
        let stopped = |_| Err(Fatal::Storage("this node is stopping".to_owned()));
        match looked.await.unwrap_or_else(stopped) {
            Ok(Some(page)) => Ok(page),
            Ok(None) => Err(self.no_namespace()),
            Err(fatal) => Err(self.fault(&fatal)),
        }
    }

    /// A watcher goes on at another node.
    fn stopping(&self) -> Status {
        status::not_readable("this node is stopping", self.core.leader_hint())
    }
}

fn check_filters(filters: &[WatchFilter]) -> Result<(), Status> {
    if filters.len() > MAX_FILTERS {
        return Err(status::invalid("filters", format!("at most {MAX_FILTERS} filters; got {}", filters.len())));
    }
    for (i, filter) in filters.iter().enumerate() {
        if !filter.room.is_empty() && !history::rooms().any(|room| room == filter.room) {
            let rooms: Vec<&str> = history::rooms().collect();
            let message = format!("room must be one of {}; got {:?}", rooms.join(", "), filter.room);
            return Err(status::invalid(&format!("filters[{i}].room"), message));
        }
    }
    Ok(())
}

fn check_kept(from_rev: u64, compacted_rev: u64) -> Result<(), Status> {
    if from_rev > compacted_rev {
        return Ok(());
    }
    let oldest = compacted_rev + 1;
    Err(status::out_of_range(
        format!("the history before rev {oldest} was compacted; from_rev {from_rev} is gone"),
        oldest,
    ))
}

fn strip(event: &mut Event, keys_only: bool) {
    if keys_only {
        event.value.clear();
    }
}

/// Makes the events of one rev fit into a page of the history, and says how large they are. All of them are in one page:
/// those of a rev that is too large for it go without their values.
fn fit(events: &mut [Event], keys_only: bool) -> usize {
    events.iter_mut().for_each(|event| strip(event, keys_only));
    let size = |events: &[Event]| events.iter().map(prost::Message::encoded_len).sum::<usize>();
    let bytes = size(events);
    if bytes <= LIST_BYTES {
        return bytes;
    }
    events.iter_mut().for_each(|event| strip(event, true));
    size(events)
}

/// Sends what is there, then waits for more.
fn stream(
    door: Door,
    request: WatchRequest,
    from_rev: u64,
) -> impl Stream<Item = Result<WatchResponse, Status>> + Send + 'static {
    async_stream::stream! {
        let filters: Arc<[WatchFilter]> = request.filters.into();
        let mut revs = door.core.replica.revs();
        let mut next = from_rev;
        let mut told = tokio::time::Instant::now();
        // At once, so that a watcher from now on knows where that is.
        yield Ok(WatchResponse { rev: next - 1, ..WatchResponse::default() });
        loop {
            // A watcher that stays on would hold up the stop.
            if door.core.stop.is_thrown() {
                break yield Err(door.stopping());
            }
            revs.mark_unchanged();
            let page = match door.page(&filters, next, PAGE_BYTES).await {
                Ok(page) => page,
                Err(status) => break yield Err(status),
            };
            if let Err(status) = check_kept(next, page.compacted_rev) {
                break yield Err(status);
            }
            let caught_up = page.through_rev < next || page.through_rev >= *revs.borrow();
            for (rev, events) in page.events {
                for response in responses(rev, events, request.keys_only) {
                    told = tokio::time::Instant::now();
                    yield Ok(response);
                }
            }
            next = next.max(page.through_rev + 1);
            if told.elapsed() >= PROGRESS {
                // "Nothing so far" is worth something only from a node that hears what happens.
                if let Err(status) = door.fresh().await {
                    break yield Err(status);
                }
                told = tokio::time::Instant::now();
                yield Ok(WatchResponse { rev: next - 1, ..WatchResponse::default() });
            }
            if !caught_up {
                continue;
            }
            tokio::select! {
                changed = revs.changed() => if changed.is_err() { break },
                () = tokio::time::sleep_until(told + PROGRESS) => {}
                _reason = door.core.stop.wait() => {}
            }
        }
    }
}

/// One rev is one response, unless it is very large.
fn responses(rev: u64, events: Vec<Event>, keys_only: bool) -> Vec<WatchResponse> {
    let mut responses = vec![WatchResponse { rev, ..WatchResponse::default() }];
    let mut bytes = 0;
    for mut event in events {
        strip(&mut event, keys_only);
        let size = prost::Message::encoded_len(&event);
        if bytes > 0 && bytes + size > PAGE_BYTES {
            responses.push(WatchResponse { rev, ..WatchResponse::default() });
            bytes = 0;
        }
        bytes += size;
        if let Some(last) = responses.last_mut() {
            last.events.push(event);
        }
    }
    if let Some((_, all_but_last)) = responses.split_last_mut() {
        all_but_last.iter_mut().for_each(|response| response.more = true);
    }
    responses
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(bytes: usize) -> Event {
        Event { value: vec![1; bytes].into(), ..Event::default() }
    }

    #[test]
    fn a_rev_is_one_response_unless_it_is_very_large() {
        let small = responses(7, vec![event(10), event(20)], false);
        assert_eq!((small.len(), small[0].more, small[0].events.len()), (1, false, 2));
        let large = responses(7, vec![event(PAGE_BYTES), event(10), event(PAGE_BYTES)], false);
        let shape: Vec<(usize, bool)> = large.iter().map(|response| (response.events.len(), response.more)).collect();
        assert_eq!(shape, [(1, true), (1, true), (1, false)]);
        assert_eq!(responses(7, vec![event(PAGE_BYTES), event(10)], true).len(), 1, "without values it is small");
    }

    #[test]
    fn a_rev_that_is_too_large_for_a_page_goes_without_its_values() {
        let sizes = |events: &[Event]| -> Vec<usize> { events.iter().map(|event| event.value.len()).collect() };
        let mut fits = vec![event(LIST_BYTES / 2), event(10)];
        assert!(fit(&mut fits, false) > LIST_BYTES / 2);
        assert_eq!(sizes(&fits), [LIST_BYTES / 2, 10]);
        let mut large = vec![event(LIST_BYTES), event(10)];
        assert!(fit(&mut large, false) <= LIST_BYTES);
        assert_eq!(sizes(&large), [0, 0]);
        assert_eq!((fit(&mut fits, true), sizes(&fits)), (0, vec![0, 0]));
    }

    #[test]
    fn what_was_compacted_is_named() {
        assert!(check_kept(11, 10).is_ok());
        let gone = check_kept(10, 10).unwrap_err();
        assert_eq!(gone.code(), tonic::Code::OutOfRange);
        assert_eq!(gone.metadata().get("quorate-oldest-rev").unwrap(), "11");
    }
}
