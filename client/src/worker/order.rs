//! The standing order: a stream that brings work, opened again whenever it breaks.
//!
//! A broken stream says nothing about what runs: those attempts are held by the session. The first time it is opened
//! again at once; if that keeps happening, after a pause that grows. [`judge`] says what a refusal means.
//!
//! Deliberately absent: what to do with the news. The order knows no jobs.

use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use quorate_proto::v1::work_event::Event;
use quorate_proto::v1::{RejectionCode, WorkEvent};
use tokio::time::{Instant, sleep};

use super::{FIRST_PAUSE, LONGEST_PAUSE, Worker};
use crate::error::Error;
use crate::sessions::Session;

/// The pauses double no further: they have reached the longest by then.
const MOST_DOUBLINGS: u32 = 4;

pub(super) type Events = BoxStream<'static, Result<WorkEvent, Error>>;
type Opening = BoxFuture<'static, Result<Events, Error>>;
/// Opens the stream; told to, it registers the agent first.
pub(super) type Open = Box<dyn Fn(bool) -> Opening + Send>;

/// What a refused order means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    Again,
    /// The agent is tied to another session.
    Register,
    /// Somebody removed the agent while its session lives.
    Removed,
    SessionLost,
}

pub(super) fn judge(error: &Error, alive: bool) -> Meaning {
    let Error::Rejected { code, field, .. } = error else { return Meaning::Again };
    match (code, field.as_str()) {
        // From the request id, or from registering again: the session itself is unknown.
        (RejectionCode::NotFound, "session_id" | "request.session_id") => Meaning::SessionLost,
        (RejectionCode::FailedPrecondition, "session_id") => Meaning::Register,
        (RejectionCode::NotFound, "agent_id") if alive => Meaning::Removed,
        _ => Meaning::Again,
    }
}

enum State {
    Closed,
    Opening(Opening),
    Open { events: Events, since: Instant },
}

/// The standing order of one agent under one session.
pub(super) struct Order {
    open: Open,
    state: State,
    register: bool,
    /// How often in a row it was refused or broke soon.
    failures: u32,
    drained: bool,
}

impl Order {
    pub(super) fn of(worker: Worker, session: Session) -> Self {
        Order::new(Box::new(move |register: bool| -> Opening {
            let (worker, session) = (worker.clone(), session.clone());
            Box::pin(async move {
                if register {
                    worker.client.agents().register(&session, worker.registration.clone()).await?;
                }
                worker.client.tasks().work(&session, &worker.registration.agent_id).await
            })
        }))
    }

    pub(super) fn new(open: Open) -> Self {
        Order { open, state: State::Closed, register: false, failures: 0, drained: false }
    }

    /// The next news, or why there can be none. Nothing is lost if it is dropped and called again.
    pub(super) async fn next(&mut self) -> Result<Event, Error> {
        loop {
            match &mut self.state {
                // No more will come.
                State::Closed if self.drained => std::future::pending::<()>().await,
                State::Closed => self.state = State::Opening(self.opening()),
                State::Opening(opening) => match opening.await {
                    Ok(events) => {
                        self.register = false;
                        self.state = State::Open { events, since: Instant::now() };
                    }
                    Err(error) => return Err(self.failed(error)),
                },
                State::Open { events, since } => match events.next().await {
                    Some(Ok(WorkEvent { event: Some(event), .. })) => {
                        self.drained |= matches!(event, Event::Draining(_));
                        return Ok(event);
                    }
                    // Something that a newer cluster says.
                    Some(Ok(WorkEvent { event: None, .. })) => {}
                    broken => {
                        if since.elapsed() >= LONGEST_PAUSE {
                            self.failures = 0;
                        }
                        match broken {
                            Some(Err(error @ Error::Rejected { .. })) => return Err(self.failed(error)),
                            Some(Err(error)) => tracing::info!(%error, "ordering again"),
                            _ => tracing::info!("the standing order ended; ordering again"),
                        }
                        self.close();
                    }
                },
            }
        }
    }

    /// The agent is tied to another session: next time, registers first.
    pub(super) fn register_first(&mut self) {
        self.register = true;
    }

    /// The cluster said that no more will come.
    pub(super) fn is_drained(&self) -> bool {
        self.drained
    }

    fn opening(&self) -> Opening {
        let (pause, opening) = (pause_after(self.failures), (self.open)(self.register));
        Box::pin(async move {
            if !pause.is_zero() {
                sleep(pause).await;
            }
            opening.await
        })
    }

    fn failed(&mut self, error: Error) -> Error {
        self.close();
        error
    }

    fn close(&mut self) {
        self.failures = self.failures.saturating_add(1);
        self.state = State::Closed;
    }
}

fn pause_after(failures: u32) -> Duration {
    match failures {
        0 | 1 => Duration::ZERO,
        more => (FIRST_PAUSE * 2_u32.pow((more - 2).min(MOST_DOUBLINGS))).min(LONGEST_PAUSE),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::stream;
    use tokio::time::timeout;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    /// An order whose stream brings this every time it is opened, and then stays open or ends. Counts the openings.
    pub(in crate::worker) fn scripted(script: Vec<Result<Event, Error>>, ends: bool) -> (Order, Arc<AtomicUsize>) {
        let opened = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&opened);
        let open = move |_register: bool| -> Opening {
            count.fetch_add(1, Ordering::SeqCst);
            let script = script.clone().into_iter();
            let events = stream::iter(script.map(|event| event.map(|event| WorkEvent { event: Some(event), rev: 0 })));
            let events: Events = if ends { events.boxed() } else { events.chain(stream::pending()).boxed() };
            Box::pin(std::future::ready(Ok(events)))
        };
        (Order::new(Box::new(open)), opened)
    }

    fn rejected(code: RejectionCode, field: &str) -> Error {
        Error::Rejected { code, field: field.to_owned(), message: String::new() }
    }

    fn judged(code: RejectionCode, field: &str, alive: bool) -> Meaning {
        judge(&rejected(code, field), alive)
    }

    #[test]
    fn a_refusal_is_judged_by_what_it_names() {
        use RejectionCode::{FailedPrecondition, InvalidArgument, NotFound};
        assert_eq!(judged(NotFound, "request.session_id", true), Meaning::SessionLost);
        assert_eq!(judged(NotFound, "session_id", true), Meaning::SessionLost);
        assert_eq!(judged(FailedPrecondition, "session_id", true), Meaning::Register);
        assert_eq!(judged(NotFound, "agent_id", true), Meaning::Removed);
        assert_eq!(judged(NotFound, "agent_id", false), Meaning::Again, "its session went first");
        // Reported unavailable by somebody: registering would override that.
        assert_eq!(judged(FailedPrecondition, "agent_id", true), Meaning::Again);
        assert_eq!(judged(InvalidArgument, "agent_id", true), Meaning::Again);
        assert_eq!(judge(&Error::OutcomeUnknown { message: String::new() }, true), Meaning::Again);
    }

    #[test]
    fn the_first_break_is_mended_at_once_and_the_pauses_grow_to_a_bound() {
        let pauses: Vec<_> = (0..4).map(pause_after).collect();
        assert_eq!(pauses, [Duration::ZERO, Duration::ZERO, FIRST_PAUSE, FIRST_PAUSE * 2]);
        assert_eq!(pause_after(u32::MAX), LONGEST_PAUSE);
    }

    #[tokio::test]
    async fn a_stream_that_breaks_is_opened_again_and_brings_on() {
        let unavailable = Error::Unavailable { message: String::new(), last: String::new() };
        let (mut order, opened) = scripted(vec![Ok(Event::Standing(true)), Err(unavailable)], true);
        for _ in 0..3 {
            let news = timeout(LIMIT, order.next()).await.unwrap();
            assert!(matches!(news, Ok(Event::Standing(true))), "{news:?}");
        }
        assert_eq!(opened.load(Ordering::SeqCst), 3);
        assert_eq!(order.failures, 2, "the third is open");
    }

    #[tokio::test]
    async fn a_refusal_is_reported_and_registering_comes_with_the_next_opening() {
        let registered = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&registered);
        let mut order = Order::new(Box::new(move |register: bool| -> Opening {
            if register {
                count.fetch_add(1, Ordering::SeqCst);
                let events: Events = stream::iter([Ok(WorkEvent::default())]).boxed();
                return Box::pin(std::future::ready(Ok::<Events, Error>(events)));
            }
            let refused = Err::<Events, Error>(rejected(RejectionCode::FailedPrecondition, "session_id"));
            Box::pin(std::future::ready(refused))
        }));
        let refused = timeout(LIMIT, order.next()).await.unwrap();
        assert!(matches!(refused, Err(Error::Rejected { .. })), "{refused:?}");
        order.register_first();
        // The stream says nothing that is understood, ends, and is refused again.
        let refused = timeout(LIMIT, order.next()).await.unwrap();
        assert!(refused.is_err());
        assert_eq!(registered.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_drained_order_is_not_repeated() {
        let (mut order, opened) = scripted(vec![Ok(Event::Draining(true))], true);
        assert!(matches!(order.next().await, Ok(Event::Draining(true))));
        assert!(order.is_drained());
        assert!(timeout(FIRST_PAUSE * 2, order.next()).await.is_err(), "there is no more");
        assert_eq!(opened.load(Ordering::SeqCst), 1);
    }
}
