//! A stream that is opened again whenever it breaks.
//!
//! Owns the pauses between openings, and what the end of a stream means: a refusal is told to whoever reads, anything
//! else is a reason to open again, at another node. The first time at once; if that keeps happening, after a pause that
//! grows.
//!
//! Deliberately absent: where a new stream begins and what in it is news. Whoever reads it knows.

use std::fmt;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use tokio::time::{Instant, sleep};
use tonic::{Status, Streaming};

use crate::client::Client;
use crate::error::{Error, Failure, classify, leader_hint};

/// The pause after what failed. It doubles from failure to failure.
pub(crate) const FIRST_PAUSE: Duration = Duration::from_millis(200);
pub(crate) const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// The pauses double no further: they have reached the longest by then.
const MOST_DOUBLINGS: u32 = 4;

pub(crate) type Items<T> = BoxStream<'static, Result<T, Error>>;
pub(crate) type Opening<T> = BoxFuture<'static, Result<Items<T>, Error>>;

/// What reading brings.
#[derive(Debug)]
pub(crate) enum News<T> {
    /// A new stream begins with what follows.
    Opened,
    Item(T),
}

enum State<T> {
    Closed,
    Opening(Opening<T>),
    Open { items: Items<T>, since: Instant },
}

/// The stream that there is at the moment.
pub(crate) struct Reopened<T> {
    state: State<T>,
    /// How often in a row it could not be opened or broke soon.
    failures: u32,
}

impl<T> fmt::Debug for Reopened<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reopened").field("failures", &self.failures).finish_non_exhaustive()
    }
}

impl<T: 'static> Reopened<T> {
    pub(crate) fn new() -> Self {
        Reopened { state: State::Closed, failures: 0 }
    }

    /// The next news, or why there can be none. Nothing is lost if it is dropped and called again. `open` is asked for a
    /// stream whenever there is none.
    pub(crate) async fn next(&mut self, open: impl Fn() -> Opening<T>) -> Result<News<T>, Error> {
        loop {
            match &mut self.state {
                State::Closed => self.state = State::Opening(after(self.failures, open())),
                State::Opening(opening) => match opening.await {
                    Ok(items) => {
                        self.state = State::Open { items, since: Instant::now() };
                        return Ok(News::Opened);
                    }
                    Err(error) => self.broke(Some(error))?,
                },
                State::Open { items, since } => match items.next().await {
                    Some(Ok(item)) => return Ok(News::Item(item)),
                    ended => {
                        if since.elapsed() >= LONGEST_PAUSE {
                            self.failures = 0;
                        }
                        self.broke(ended.and_then(Result::err))?;
                    }
                },
            }
        }
    }

    /// Goes on if another stream may do better.
    fn broke(&mut self, error: Option<Error>) -> Result<(), Error> {
        self.failures = self.failures.saturating_add(1);
        self.state = State::Closed;
        match error {
            None => tracing::debug!("a stream ended; opening it again"),
            Some(error @ (Error::Unavailable { .. } | Error::OutcomeUnknown { .. })) => {
                tracing::info!(%error, "opening a stream again");
            }
            Some(error) => return Err(error),
        }
        Ok(())
    }
}

/// Opens at the end of the pause that so many failures in a row ask for.
pub(crate) fn after<T: 'static>(failures: u32, opening: Opening<T>) -> Opening<T> {
    let pause = pause_after(failures);
    Box::pin(async move {
        if !pause.is_zero() {
            sleep(pause).await;
        }
        opening.await
    })
}

fn pause_after(failures: u32) -> Duration {
    match failures {
        0 | 1 => Duration::ZERO,
        more => (FIRST_PAUSE * 2_u32.pow((more - 2).min(MOST_DOUBLINGS))).min(LONGEST_PAUSE),
    }
}

/// What an opened stream brings; its end is read by [`cut_off`].
pub(crate) fn items<T: Send + 'static>(client: &Client, node: Option<String>, stream: Streaming<T>) -> Items<T> {
    let client = client.clone();
    stream.map_err(move |status| cut_off(&client, node.as_deref(), &status)).boxed()
}

/// What the end of a stream means, and what it teaches about the nodes.
fn cut_off(client: &Client, node: Option<&str>, status: &Status) -> Error {
    let failure = classify(status);
    if let (false, Some(node)) = (matches!(failure, Failure::Final(_)), node) {
        // Or the next stream would be asked of the same node, which may take its time to be found dead.
        client.channels().failed(node);
    }
    if let Some(leader) = leader_hint(status.metadata()) {
        client.channels().leads(leader);
    }
    match failure {
        Failure::Final(error) => error,
        Failure::NoEffect(last) | Failure::Unknown(last) => {
            Error::Unavailable { message: "the stream was cut off".to_owned(), last }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use futures::stream;
    use parking_lot::Mutex;
    use quorate_proto::v1::RejectionCode;

    use super::*;

    fn unavailable() -> Error {
        Error::Unavailable { message: String::new(), last: String::new() }
    }

    fn refused() -> Error {
        Error::Rejected { code: RejectionCode::NotFound, field: "subscription".to_owned(), message: String::new() }
    }

    /// Opens streams as scripted, one after another; an `Err` is an opening that fails.
    fn scripted(script: Vec<Result<Vec<Result<u32, Error>>, Error>>) -> impl Fn() -> Opening<u32> {
        let script = Mutex::new(VecDeque::from(script));
        move || -> Opening<u32> {
            let next = script.lock().pop_front().unwrap();
            Box::pin(std::future::ready(next.map(|items| stream::iter(items).boxed())))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_breaks_or_ends_is_opened_again_and_says_so() {
        let open = scripted(vec![
            Ok(vec![Ok(1), Err(unavailable())]),
            Err(unavailable()),
            Ok(vec![]),
            Ok(vec![Ok(2), Err(refused())]),
        ]);
        let mut reopened = Reopened::new();
        let mut heard = Vec::new();
        let over = loop {
            match reopened.next(&open).await {
                Ok(News::Opened) => heard.push(0),
                Ok(News::Item(item)) => heard.push(item),
                Err(error) => break error,
            }
        };
        assert_eq!(heard, [0, 1, 0, 0, 2], "0 stands for an opening");
        assert!(over.is_not_found(), "{over:?}");
    }

    #[test]
    fn the_first_break_is_mended_at_once_and_the_pauses_grow_to_a_bound() {
        let pauses: Vec<_> = (0..4).map(pause_after).collect();
        assert_eq!(pauses, [Duration::ZERO, Duration::ZERO, FIRST_PAUSE, FIRST_PAUSE * 2]);
        assert_eq!(pause_after(u32::MAX), LONGEST_PAUSE);
    }

    #[tokio::test]
    async fn a_broken_stream_is_opened_elsewhere_and_a_refused_one_is_not_the_nodes_fault() {
        let client = Client::connect(crate::Config::new(["a:1", "b:1"])).unwrap();
        let first = client.channels().pick().unwrap().endpoint;
        assert!(cut_off(&client, None, &Status::not_found("no such agent")).is_not_found());
        assert!(matches!(cut_off(&client, None, &Status::unknown("it broke")), Error::Unavailable { .. }));
        assert!(cut_off(&client, Some(&first), &Status::not_found("no such subscription")).is_not_found());
        assert_eq!(client.channels().pick().unwrap().endpoint, first);
        let broken = cut_off(&client, Some(&first), &Status::unknown("the connection broke"));
        assert!(matches!(broken, Error::Unavailable { .. }), "{broken:?}");
        assert_ne!(client.channels().pick().unwrap().endpoint, first);
    }
}
