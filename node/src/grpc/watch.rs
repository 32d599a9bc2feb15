//! Watch: the event history, page by page, and then as it goes on. Any node serves it from what it has applied.
//!
//! A stream remembers one number, how far it has sent, and reads from the history on disk. So a slow watcher costs no
//! memory, and one that is so slow that the history was compacted in front of it is told so instead of missing something.

use std::time::Duration;

use futures::Stream;
use futures::stream::BoxStream;
use quorate_proto::v1::watch_server::Watch;
use quorate_proto::v1::{Consistency, Event, EventsRequest, EventsResponse, WatchFilter, WatchRequest, WatchResponse};
use quorate_raft::history;
use quorate_raft::replica::Page;
use tonic::{Request, Response, Status};

use super::{Door, rows_wanted, status};

const EVENTS_DEFAULT: usize = 100;
const EVENTS_MAX: usize = 1_000;
const MAX_FILTERS: usize = 64;
/// One page of a stream, and the largest response.
const PAGE_BYTES: usize = 1 << 20;
const LIST_BYTES: usize = 4 << 20;
/// How many revs one look goes through: what a narrow filter passes may be far apart.
const REVS_AT_ONCE: usize = 4_096;
/// A watcher that sees nothing pass hears how far the history is, so that it can go on from there elsewhere.
const PROGRESS: Duration = Duration::from_secs(5);

#[tonic::async_trait]
impl Watch for Door {
    type WatchStream = BoxStream<'static, Result<WatchResponse, Status>>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let request = request.into_inner();
        check_filters(&request.filters)?;
        // A node that is behind must not say that a rev has not happened.
        self.fresh().await?;
        let rev = self.read(Consistency::Stale, |view| Ok(view.head.rev)).await?;
        let from_rev = if request.from_rev == 0 { rev + 1 } else { request.from_rev };
        if from_rev > rev + 1 {
            return Err(status::out_of_range(format!("from_rev {from_rev} has not happened; the newest is {rev}"), 0));
        }
        let page = self.page(&request.filters, from_rev, 1, 0)?;
        check_kept(from_rev, &page)?;
        Ok(Response::new(Box::pin(stream(self.clone(), request, from_rev))))
    }

    async fn events(&self, request: Request<EventsRequest>) -> Result<Response<EventsResponse>, Status> {
        let request = request.into_inner();
        check_filters(&request.filters)?;
        let limit = rows_wanted("limit", request.limit, EVENTS_DEFAULT, EVENTS_MAX)?;
        let rev = self.read(request.consistency(), |view| Ok(view.head.rev)).await?;
        let mut response = EventsResponse { rev, ..EventsResponse::default() };
        let (mut next, mut bytes) = (request.from_rev.max(1), 0);
        let end = if request.to_rev == 0 { u64::MAX } else { request.to_rev };
        loop {
            let page = self.page(&request.filters, next, REVS_AT_ONCE, LIST_BYTES)?;
            response.oldest_rev = page.compacted_rev + 1;
            if request.from_rev > 0 {
                check_kept(request.from_rev, &page)?;
            }
            next = page.through_rev + 1;
            for (rev, events) in page.events {
                if response.events.len() >= limit || bytes >= LIST_BYTES || rev > end {
                    response.next_rev = if rev > end { 0 } else { rev };
                    return Ok(self.respond(response));
                }
                for mut event in events.into_iter().filter(|event| event.at_ms >= request.from_ms) {
                    strip(&mut event, request.keys_only);
                    bytes += prost::Message::encoded_len(&event);
                    response.events.push(event);
                }
            }
            if page.through_rev >= rev || next > end {
                return Ok(self.respond(response));
            }
        }
    }
}

impl Door {
    fn page(&self, filters: &[WatchFilter], from_rev: u64, max_revs: usize, max_bytes: usize) -> Result<Page, Status> {
        let wanted = |event: &Event| history::matches(filters, event);
        match self.core.replica.events(&self.namespace, from_rev, max_revs, max_bytes, wanted) {
            Ok(Some(page)) => Ok(page),
            Ok(None) => Err(self.no_namespace()),
            Err(fatal) => Err(self.fault(&fatal)),
        }
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

fn check_kept(from_rev: u64, page: &Page) -> Result<(), Status> {
    if from_rev > page.compacted_rev {
        return Ok(());
    }
    let oldest = page.compacted_rev + 1;
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

/// Sends what is there, then waits for more.
fn stream(
    door: Door,
    request: WatchRequest,
    from_rev: u64,
) -> impl Stream<Item = Result<WatchResponse, Status>> + Send + 'static {
    async_stream::stream! {
        let mut revs = door.core.replica.revs();
        let mut next = from_rev;
        let mut told = tokio::time::Instant::now();
        // At once, so that a watcher from now on knows where that is.
        yield Ok(WatchResponse { rev: next - 1, ..WatchResponse::default() });
        loop {
            revs.mark_unchanged();
            let page = match door.page(&request.filters, next, REVS_AT_ONCE, PAGE_BYTES) {
                Ok(page) => page,
                Err(status) => break yield Err(status),
            };
            if let Err(status) = check_kept(next, &page) {
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
            if !caught_up {
                continue;
            }
            if told.elapsed() >= PROGRESS {
                told = tokio::time::Instant::now();
                yield Ok(WatchResponse { rev: next - 1, ..WatchResponse::default() });
            }
            tokio::select! {
                changed = revs.changed() => if changed.is_err() { break },
                () = tokio::time::sleep_until(told + PROGRESS) => {}
                // A watcher that stays on would hold up the stop; it goes on at another node.
                _reason = door.core.stop.wait() => break,
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
    fn what_was_compacted_is_named() {
        let page = Page { compacted_rev: 10, ..Page::default() };
        assert!(check_kept(11, &page).is_ok());
        let gone = check_kept(10, &page).unwrap_err();
        assert_eq!(gone.code(), tonic::Code::OutOfRange);
        assert_eq!(gone.metadata().get("quorate-oldest-rev").unwrap(), "11");
    }
}
