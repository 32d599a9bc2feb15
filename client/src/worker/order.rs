//! The standing order: a stream that brings work, opened again whenever it breaks.
//!
//! A broken stream says nothing about what runs: those attempts are held by the session. The first time it is opened
//! again at once; if that keeps happening, after a pause that grows. Work may be assigned to the agent all the while:
//! it must not stay deaf for long ([`Order::is_deaf`]). [`judge`] says what a refusal means.
//!
//! Deliberately absent: what to do with the news. The order knows no jobs.

use std::time::Duration;

use futures::StreamExt;
use quorate_proto::v1::work_event::Event;
use quorate_proto::v1::{RejectionCode, WorkEvent};
use tokio::time::{Instant, timeout_at};

use super::Worker;
use crate::error::Error;
use crate::reopen::{self, LONGEST_PAUSE};
use crate::sessions::Session;

/// However short the session: a node that does not answer costs 5 s before the next is asked, and elections take time.
const LEAST_PATIENCE: Duration = Duration::from_secs(10);

type Events = reopen::Items<WorkEvent>;
type Opening = reopen::Opening<WorkEvent>;
/// Opens the stream, with this before it.
pub(super) type Open = Box<dyn Fn(First) -> Opening + Send>;

/// What comes before opening the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum First {
    Nothing,
    Register,
    /// Look whose the agent is. Registers it if it is nobody's.
    Look,
}

/// What a refused order means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    Again,
    /// The agent is not tied to this session, and perhaps never was.
    Register,
    /// It was, and is no more: its session ended, or another process goes by its id.
    Look,
    /// Another process does.
    Taken,
    /// Somebody removed the agent while its session lives.
    Removed,
    SessionLost,
}

/// What it means to an agent whose session is `alive` as far as it knows, and whose order `stood` before.
pub(super) fn judge(error: &Error, alive: bool, stood: bool) -> Meaning {
    let Error::Rejected { code, field, .. } = error else { return Meaning::Again };
    match (code, field.as_str()) {
        // From registering: the session itself is unknown.
        (RejectionCode::NotFound, "request.session_id") => Meaning::SessionLost,
        // To register at once would take the agent back from whoever took it, and so on in turns.
        (RejectionCode::NotFound | RejectionCode::FailedPrecondition, "session_id") if stood => Meaning::Look,
        (RejectionCode::NotFound, "session_id") => Meaning::SessionLost,
        (RejectionCode::FailedPrecondition, "session_id") => Meaning::Register,
        (RejectionCode::AlreadyExists, "agent_id") => Meaning::Taken,
        (RejectionCode::NotFound, "agent_id") if alive => Meaning::Removed,
        _ => Meaning::Again,
    }
}

/// Two live workers cannot go by one id.
pub(super) fn taken(agent_id: &str) -> Error {
    Error::Rejected {
        code: RejectionCode::AlreadyExists,
        field: "agent_id".to_owned(),
        message: format!("another process has taken the agent_id {agent_id:?}; every live worker needs its own"),
    }
}

/// Sees to it that the agent is tied to the session, as far as that was asked for.
async fn prepare(first: First, worker: &Worker, session: &Session) -> Result<(), Error> {
    let (agents, agent_id) = (worker.client.agents(), &worker.registration.agent_id);
    let register = match first {
        First::Nothing => false,
        First::Register => true,
        First::Look => {
            let agent = agents.get(agent_id).await?.agent.unwrap_or_default();
            is_nobodys(agent_id, &agent.session_id, session.id())?
        }
    };
    if register {
        agents.register(session, worker.registration.clone()).await?;
    }
    Ok(())
}

/// Whether the agent has no session; refused if it has another one.
fn is_nobodys(agent_id: &str, its_session: &str, own_session: &str) -> Result<bool, Error> {
    match its_session {
        "" => Ok(true),
        its if its == own_session => Ok(false),
        _ => Err(taken(agent_id)),
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
    first: First,
    /// How often in a row it was refused or broke soon.
    failures: u32,
    /// How long it may not stand.
    patience: Duration,
    /// Since when it does not stand.
    deaf_since: Option<Instant>,
    stood: bool,
    drained: bool,
}

impl Order {
    pub(super) fn of(worker: Worker, session: Session) -> Self {
        let patience = session.ttl().max(LEAST_PATIENCE);
        let open = move |first: First| -> Opening {
            let (worker, session) = (worker.clone(), session.clone());
            Box::pin(async move {
                prepare(first, &worker, &session).await?;
                worker.client.tasks().work(&session, &worker.registration.agent_id).await
            })
        };
        Order::new(Box::new(open), patience)
    }

    pub(super) fn new(open: Open, patience: Duration) -> Self {
        Order {
            open,
            state: State::Closed,
            first: First::Nothing,
            failures: 0,
            patience,
            deaf_since: Some(Instant::now()),
            stood: false,
            drained: false,
        }
    }

    /// The next news, or why there can be none. Nothing is lost if it is dropped and called again. Once it is deaf it
    /// may say so at every call: do not go on then.
    pub(super) async fn next(&mut self) -> Result<Event, Error> {
        loop {
            let deaf_at = self.deaf_since.map(|since| since + self.patience);
            match &mut self.state {
                // No more will come.
                State::Closed if self.drained => std::future::pending::<()>().await,
                State::Closed => self.state = State::Opening(self.opening()),
                State::Opening(opening) => match before(deaf_at, opening).await {
                    Some(Ok(events)) => {
                        self.first = First::Nothing;
                        self.state = State::Open { events, since: Instant::now() };
                    }
                    Some(Err(error)) => return Err(self.failed(error)),
                    None => return Err(self.deaf()),
                },
                State::Open { events, since } => match before(deaf_at, events.next()).await {
                    Some(Some(Ok(WorkEvent { event: Some(event), .. }))) => {
                        self.note(&event);
                        return Ok(event);
                    }
                    // Something that a newer cluster says.
                    Some(Some(Ok(WorkEvent { event: None, .. }))) => {}
                    None => return Err(self.deaf()),
                    Some(broken) => {
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

    /// The next opening begins with this.
    pub(super) fn begin_with(&mut self, first: First) {
        self.first = first;
    }

    /// Whether it stood at any time.
    pub(super) fn has_stood(&self) -> bool {
        self.stood
    }

    /// Whether it has not stood for so long that whatever is assigned had better go to others.
    pub(super) fn is_deaf(&self) -> bool {
        self.deaf_since.is_some_and(|since| since.elapsed() >= self.patience)
    }

    /// The cluster said that no more will come.
    pub(super) fn is_drained(&self) -> bool {
        self.drained
    }

    fn opening(&self) -> Opening {
        reopen::after(self.failures, (self.open)(self.first))
    }

    fn note(&mut self, event: &Event) {
        match event {
            Event::Standing(_) => {
                self.stood = true;
                self.deaf_since = None;
            }
            Event::Draining(_) => self.drained = true,
            Event::Assigned(_) | Event::Revoked(_) => {}
        }
    }

    fn deaf(&self) -> Error {
        let message = format!("no standing order stood for {:?}", self.patience);
        Error::Unavailable { message, last: "no answer yet".to_owned() }
    }

    fn failed(&mut self, error: Error) -> Error {
        self.close();
        error
    }

    fn close(&mut self) {
        self.failures = self.failures.saturating_add(1);
        self.deaf_since.get_or_insert_with(Instant::now);
        self.state = State::Closed;
    }
}

/// What comes of it, unless the time is up first.
async fn before<F: Future>(until: Option<Instant>, future: F) -> Option<F::Output> {
    match until {
        Some(until) => timeout_at(until, future).await.ok(),
        None => Some(future.await),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::stream;
    use tokio::time::timeout;

    use super::*;
    use crate::reopen::FIRST_PAUSE;

    const LIMIT: Duration = Duration::from_secs(30);

    /// An order whose stream brings this every time it is opened, and then stays open or ends. Counts the openings.
    pub(in crate::worker) fn scripted(script: Vec<Result<Event, Error>>, ends: bool) -> (Order, Arc<AtomicUsize>) {
        let opened = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&opened);
        let open = move |_first: First| -> Opening {
            count.fetch_add(1, Ordering::SeqCst);
            let script = script.clone().into_iter();
            let events = stream::iter(script.map(|event| event.map(|event| WorkEvent { event: Some(event), rev: 0 })));
            let events: Events = if ends { events.boxed() } else { events.chain(stream::pending()).boxed() };
            Box::pin(std::future::ready(Ok(events)))
        };
        (Order::new(Box::new(open), LIMIT), opened)
    }

    /// An order that nobody answers.
    pub(in crate::worker) fn unanswered(patience: Duration) -> Order {
        Order::new(Box::new(|_first: First| -> Opening { Box::pin(std::future::pending()) }), patience)
    }

    fn rejected(code: RejectionCode, field: &str) -> Error {
        Error::Rejected { code, field: field.to_owned(), message: String::new() }
    }

    fn judged(code: RejectionCode, field: &str, alive: bool) -> Meaning {
        judge(&rejected(code, field), alive, false)
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
        assert_eq!(judge(&Error::OutcomeUnknown { message: String::new() }, true, true), Meaning::Again);
    }

    #[test]
    fn an_agent_that_was_this_sessions_is_not_taken_back_without_looking() {
        use RejectionCode::{FailedPrecondition, NotFound};
        for code in [FailedPrecondition, NotFound] {
            assert_eq!(judge(&rejected(code, "session_id"), true, true), Meaning::Look);
        }
        assert_eq!(judge(&rejected(NotFound, "request.session_id"), true, true), Meaning::SessionLost);
        assert!(matches!(is_nobodys("a", "", "s-own"), Ok(true)));
        assert!(matches!(is_nobodys("a", "s-own", "s-own"), Ok(false)));
        let refused = is_nobodys("a", "s-other", "s-own").unwrap_err();
        assert_eq!(judge(&refused, true, true), Meaning::Taken);
        assert!(refused.to_string().contains("another process"), "{refused}");
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
        let open = move |first: First| -> Opening {
            if first == First::Register {
                count.fetch_add(1, Ordering::SeqCst);
                let events: Events = stream::iter([Ok(WorkEvent::default())]).boxed();
                return Box::pin(std::future::ready(Ok::<Events, Error>(events)));
            }
            let refused = Err::<Events, Error>(rejected(RejectionCode::FailedPrecondition, "session_id"));
            Box::pin(std::future::ready(refused))
        };
        let mut order = Order::new(Box::new(open), LIMIT);
        let refused = timeout(LIMIT, order.next()).await.unwrap();
        assert!(matches!(refused, Err(Error::Rejected { .. })), "{refused:?}");
        order.begin_with(First::Register);
        // The stream says nothing that is understood, ends, and is refused again.
        let refused = timeout(LIMIT, order.next()).await.unwrap();
        assert!(refused.is_err());
        assert_eq!(registered.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn an_order_is_deaf_when_it_did_not_stand_for_too_long() {
        let mut order = unanswered(FIRST_PAUSE);
        assert!(!order.is_deaf());
        let news = timeout(LIMIT, order.next()).await.unwrap();
        assert!(matches!(news, Err(Error::Unavailable { .. })) && order.is_deaf(), "{news:?}");
        // One that stands may be silent for as long as it likes, until it breaks.
        let (mut order, _opened) = scripted(vec![Ok(Event::Standing(true))], false);
        order.patience = FIRST_PAUSE;
        assert!(!order.has_stood());
        assert!(matches!(order.next().await, Ok(Event::Standing(true))));
        assert!(timeout(FIRST_PAUSE * 2, order.next()).await.is_err());
        assert!(order.has_stood() && !order.is_deaf());
        order.close();
        assert!(order.deaf_since.is_some() && !order.is_deaf(), "counted from the break");
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
