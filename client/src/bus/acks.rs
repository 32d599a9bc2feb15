//! What is said of deliveries: collected while a call is under way, and sent as the next one.
//!
//! Each call has a request id and is sent until it is answered or the session is over, so that an ack that was accepted
//! is reported as accepted. Each delivery hears its own answer.
//!
//! Deliberately absent: a timer. An ack that finds no call under way is sent at once.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use quorate_proto::v1::{AckItem, AckKind, AckRequest, AckResponse};
use tokio::sync::{mpsc, oneshot};

use super::inbox::{Key, Line};
use super::{Bus, stub};
use crate::call::Plan;
use crate::error::Error;
use crate::requests::{insist, judged, session_over};
use crate::sessions::Session;

/// The most that one call may say.
const MOST_ITEMS: usize = 1_024;

/// One word, and who waits for what becomes of it.
#[derive(Debug)]
struct Ack {
    item: AckItem,
    answer: oneshot::Sender<Result<(), Error>>,
}

#[derive(Debug)]
enum Asked {
    Ack(Ack),
    /// Answered when everything before it is.
    Flush(oneshot::Sender<()>),
}

/// Where deliveries say what became of them.
#[derive(Debug, Clone)]
pub(super) struct Acks {
    session: Session,
    asked: mpsc::UnboundedSender<Asked>,
}

impl Acks {
    /// Begins to send. It ends when nobody is left who could say anything.
    pub(super) fn start(bus: Bus, session: Session, line: Arc<Line>) -> Self {
        let (asked, queue) = mpsc::unbounded_channel();
        tokio::spawn(run(bus, session.clone(), line, queue));
        Acks { session, asked }
    }

    pub(super) async fn say(&self, item: AckItem) -> Result<(), Error> {
        let heard = self.ask(item);
        heard.await.unwrap_or_else(|_| Err(session_over(&self.session)))
    }

    /// As [`Acks::say`], for somebody who does not wait for the answer.
    pub(super) fn ask(&self, item: AckItem) -> oneshot::Receiver<Result<(), Error>> {
        let (answer, heard) = oneshot::channel();
        // If nobody sends any more, the answer is dropped with it, and that is heard.
        drop(self.asked.send(Asked::Ack(Ack { item, answer })));
        heard
    }

    /// Waits until everything that was said is answered.
    pub(super) async fn flush(&self) {
        let (answer, heard) = oneshot::channel();
        if self.asked.send(Asked::Flush(answer)).is_ok() {
            // An error means that the sender has gone: there is nothing left to wait for.
            drop(heard.await);
        }
    }
}

async fn run(bus: Bus, session: Session, line: Arc<Line>, mut asked: mpsc::UnboundedReceiver<Asked>) {
    let mut waiting = VecDeque::new();
    while let Some(first) = asked.recv().await {
        waiting.push_back(first);
        while !waiting.is_empty() {
            while let Ok(more) = asked.try_recv() {
                waiting.push_back(more);
            }
            settle(&bus, &session, &line, cut(&mut waiting)).await;
            while matches!(waiting.front(), Some(Asked::Flush(_))) {
                if let Some(Asked::Flush(answer)) = waiting.pop_front() {
                    // Whoever wanted to know may have gone.
                    let _ = answer.send(());
                }
            }
        }
    }
}

/// What goes into one call: in order, up to a flush, and of one delivery one word only.
fn cut(waiting: &mut VecDeque<Asked>) -> Vec<Ack> {
    let mut named = BTreeSet::new();
    let fits = |asked: &&Asked| match asked {
        Asked::Ack(ack) => named.insert(key_of(&ack.item)),
        Asked::Flush(_) => false,
    };
    let count = waiting.iter().take(MOST_ITEMS).take_while(fits).count();
    let acks = waiting.drain(..count).filter_map(|asked| match asked {
        Asked::Ack(ack) => Some(ack),
        Asked::Flush(_) => None,
    });
    acks.collect()
}

fn key_of(item: &AckItem) -> Key {
    (item.token, item.seq)
}

/// Sends what was cut and tells everybody. A call that is refused as a whole is taken apart: one bad word must not spoil
/// the others.
async fn settle(bus: &Bus, session: &Session, line: &Line, acks: Vec<Ack>) {
    if acks.is_empty() {
        return;
    }
    let items: Vec<AckItem> = acks.iter().map(|ack| ack.item.clone()).collect();
    let answer = send(bus, session, items).await;
    if acks.len() > 1 && matches!(answer, Err(Error::Rejected { .. })) {
        for ack in acks {
            let answer = send(bus, session, vec![ack.item.clone()]).await;
            let verdict = verdict(&answer, 0);
            tell(line, ack, verdict);
        }
        return;
    }
    for (place, ack) in acks.into_iter().enumerate() {
        tell(line, ack, verdict(&answer, place));
    }
}

async fn send(bus: &Bus, session: &Session, items: Vec<AckItem>) -> Result<AckResponse, Error> {
    insist(session, |id| {
        let (client, request) = (bus.client.clone(), AckRequest { items: items.clone(), request: Some(id) });
        async move {
            let outcome = client.call_in_full(Plan::SAFE, |channel| {
                let request = request.clone();
                async move { stub(channel).ack(request).await }
            });
            // A session that is not known any more may have ended between two deliveries of this very call.
            judged(outcome.await, true)
        }
    })
    .await
}

/// What the answer says of the item at this place.
fn verdict(answer: &Result<AckResponse, Error>, place: usize) -> Result<(), Error> {
    match answer {
        Ok(answer) if answer.stale.iter().any(|stale| *stale as usize == place) => {
            let message = "the delivery was superseded: its time was up, or it was taken away".to_owned();
            Err(Error::Fenced { field: "token".to_owned(), message })
        }
        Ok(_) => Ok(()),
        Err(error) => Err(error.clone()),
    }
}

fn tell(line: &Line, ack: Ack, verdict: Result<(), Error>) {
    if is_over(&ack.item, &verdict) {
        line.with(|inbox| inbox.end(key_of(&ack.item)));
    }
    // Whoever wanted to know may have gone.
    drop(ack.answer.send(verdict));
}

/// Whether the delivery is not this consumer's any more.
fn is_over(item: &AckItem, verdict: &Result<(), Error>) -> bool {
    match verdict {
        Ok(()) => item.kind() != AckKind::Extend,
        Err(error) => matches!(error, Error::Fenced { .. }) && !error.fence_is_over(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::{Instant, timeout};

    use super::*;

    const TTL: Duration = Duration::from_secs(60);

    fn item(token: u64, seq: u64, kind: AckKind) -> AckItem {
        AckItem { token, seq, kind: kind as i32, ..AckItem::default() }
    }

    fn fenced(field: &str) -> Error {
        Error::Fenced { field: field.to_owned(), message: "over".to_owned() }
    }

    fn asked(seq: u64) -> Asked {
        Asked::Ack(Ack { item: item(5, seq, AckKind::Ack), answer: oneshot::channel().0 })
    }

    fn seqs(acks: &[Ack]) -> Vec<u64> {
        acks.iter().map(|ack| ack.item.seq).collect()
    }

    #[test]
    fn a_call_says_one_word_of_a_delivery_and_nothing_from_behind_a_flush() {
        let mut waiting = VecDeque::from([asked(1), asked(2), asked(1), asked(3)]);
        assert_eq!(seqs(&cut(&mut waiting)), [1, 2]);
        assert_eq!(seqs(&cut(&mut waiting)), [1, 3]);
        waiting.extend([asked(1), Asked::Flush(oneshot::channel().0), asked(2)]);
        assert_eq!(seqs(&cut(&mut waiting)), [1]);
        assert!(cut(&mut waiting).is_empty() && waiting.len() == 2);
    }

    #[test]
    fn a_call_says_only_so_much() {
        let mut waiting: VecDeque<Asked> = (0..1_500).map(asked).collect();
        assert_eq!(cut(&mut waiting).len(), MOST_ITEMS);
        assert_eq!(cut(&mut waiting).len(), 1_500 - MOST_ITEMS);
    }

    #[test]
    fn everybody_hears_his_own() {
        let some_stale = Ok(AckResponse { stale: vec![1], rev: 9 });
        assert!(verdict(&some_stale, 0).is_ok());
        assert!(matches!(verdict(&some_stale, 1), Err(Error::Fenced { .. })));
        let all_stale = Err(fenced("items"));
        assert!(matches!(verdict(&all_stale, 0), Err(Error::Fenced { .. })));
    }

    #[test]
    fn an_extension_ends_nothing_and_a_failure_proves_nothing() {
        assert!(is_over(&item(5, 1, AckKind::Nack), &Ok(())));
        assert!(!is_over(&item(5, 1, AckKind::Extend), &Ok(())));
        let unknown = Err(Error::OutcomeUnknown { message: String::new() });
        assert!(!is_over(&item(5, 1, AckKind::Ack), &unknown));
        assert!(is_over(&item(5, 1, AckKind::Extend), &Err(fenced("items[0].token"))));
        let under_an_old_grant = Err(fenced("fence"));
        assert!(!is_over(&item(5, 1, AckKind::Ack), &under_an_old_grant), "nobody looked at the delivery");
    }

    #[tokio::test]
    async fn what_was_said_is_answered_when_the_session_is_lost_and_a_flush_is_too() {
        let session = Session::alone(TTL, Instant::now());
        let bus = Bus { client: session.client().clone() };
        let acks = Acks::start(bus, session.clone(), Arc::new(Line::new(1)));
        let losing = async {
            tokio::task::yield_now().await;
            session.lost();
        };
        let all = async { tokio::join!(acks.say(item(5, 1, AckKind::Ack)), acks.flush(), losing) };
        let (said, (), ()) = timeout(TTL, all).await.unwrap();
        assert!(matches!(said, Err(Error::OutcomeUnknown { .. } | Error::Fenced { .. })), "{said:?}");
    }
}
