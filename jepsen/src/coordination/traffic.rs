//! Publishers that remember what was accepted, and consumers that write down what they were given until they are killed.
//!
//! Every message goes to several subscriptions, has an order key, and says where it comes from ([`Origin`]). The first
//! publisher is hasty: it gives calls up before an election is over, and publishes again under the same ids.
//!
//! Deliberately absent: any judgement. What was seen is for [`super::deliveries`] to check.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use quorate_client::v1::{BusMessage, PublishRequest, PublishResponse};
use quorate_client::{Client, Config, Delivery, Error, Session};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::deliveries::{Deliveries, Origin, Publications};
use super::{Mortal, Progress, backlog, told};
use crate::rng::Rng;
use crate::until::until;

const LIMIT: Duration = Duration::from_secs(60);
/// Longer than the faults: no publisher's session ends.
const LEASE: Duration = Duration::from_secs(60);
/// How soon the cluster misses a consumer that died.
const MISSED: Duration = Duration::from_secs(3);
/// How soon the hasty publisher gives a call up.
const HASTE: Duration = Duration::from_millis(400);
/// Messages of one call.
const BATCH: u32 = 100;
/// Order keys of each publisher: a key is one publisher's.
const KEYS: u32 = 16;
/// Publishers wait while a subscription holds more than this.
const WINDOW: u64 = 4_000;
/// One delivery in so many fails.
const NACK_EVERY: u64 = 50;

/// What the consumers of a subscription write into.
pub type Book = Arc<Mutex<Deliveries>>;

/// The book, to write into or to read.
pub fn open(book: &Mutex<Deliveries>) -> MutexGuard<'_, Deliveries> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Somebody who publishes with a session, in batches. In every second one, and in all of a hasty publisher's, each message
/// has an id.
#[derive(Debug)]
pub struct Producer {
    number: u32,
    /// Those that keep each message.
    subscriptions: &'static [&'static str],
    /// Waits for answers.
    patient: Client,
    /// Publishes, with little patience if it is hasty.
    publishing: Client,
    session: Session,
    said: Publications,
}

impl Producer {
    /// Opens its session. Number 0 is hasty.
    pub async fn new(endpoints: Vec<String>, number: u32, subscriptions: &'static [&'static str]) -> Result<Self> {
        let mut config = Config::new(endpoints);
        let patient = Client::connect(config.clone())?;
        if number == 0 {
            (config.call_timeout, config.attempt_timeout) = (HASTE, HASTE / 2);
        }
        let publishing = Client::connect(config)?;
        let session = patient.sessions().open(LEASE).await?;
        Ok(Self { number, subscriptions, patient, publishing, session, said: Publications::default() })
    }

    /// Publishes so many under `work.<number>`, as fast as they are consumed, and gives what it knows of them.
    pub async fn produce(mut self, count: u32, progress: Arc<Progress>) -> Result<Publications> {
        for from in (0..count).step_by(BATCH as usize) {
            for subscription in self.subscriptions {
                until(&format!("{subscription} is consumed"), LIMIT, || async {
                    Ok((backlog(&self.patient, subscription).await? <= WINDOW).then_some(()))
                })
                .await?;
            }
            let to = count.min(from + BATCH);
            let origins: Vec<Origin> = (from..to).map(|n| Origin { producer: self.number, n }).collect();
            self.publish(&origins, self.number == 0 || (from / BATCH).is_multiple_of(2)).await?;
            progress.add(u64::from(to - from));
        }
        self.session.close().await?;
        Ok(self.said)
    }

    /// Publishes until there is an answer. Without ids it does not try again once nobody knows what came of it.
    async fn publish(&mut self, origins: &[Origin], with_ids: bool) -> Result<()> {
        let messages = origins.iter().map(|origin| message(*origin, with_ids)).collect();
        let request = PublishRequest { messages, must_match: true, ..Default::default() };
        loop {
            match self.publishing.bus().publish_all(Some(&self.session), request.clone()).await {
                Ok(answer) => return self.note(origins, &answer),
                Err(Error::OutcomeUnknown { .. }) if !with_ids => {
                    self.said.unanswered += 1;
                    self.said.unknown.extend(origins);
                    return Ok(());
                }
                Err(Error::Unavailable { .. } | Error::OutcomeUnknown { .. }) => self.said.unanswered += 1,
                Err(error) => return Err(error).context("a publish was refused"),
            }
        }
    }

    fn note(&mut self, origins: &[Origin], answer: &PublishResponse) -> Result<()> {
        ensure!(answer.published.len() == origins.len(), "{} answers to {}", answer.published.len(), origins.len());
        for (origin, published) in origins.iter().zip(&answer.published) {
            let is_kept = published.duplicate || published.matched as usize == self.subscriptions.len();
            ensure!(is_kept, "{origin} was published as {published:?}");
            self.said.duplicates += u64::from(published.duplicate);
            self.said.accepted.insert(*origin, published.seq);
        }
        Ok(())
    }
}

fn message(origin: Origin, with_id: bool) -> BusMessage {
    BusMessage {
        id: if with_id { format!("m-{origin}") } else { String::new() },
        subject: format!("work.{}", origin.producer),
        order_key: format!("key-{}-{}", origin.producer, origin.n % KEYS),
        payload: origin.to_string().into(),
        ..Default::default()
    }
}

/// Where a consumer sits; when one dies, another takes its place.
#[derive(Clone, Debug)]
pub struct Desk {
    /// Where the cluster is.
    pub endpoints: Vec<String>,
    /// What is consumed.
    pub subscription: &'static str,
    /// How much at once.
    pub credit: u32,
    /// By which it is decided what fails.
    pub seed: u64,
    /// What is written into.
    pub book: Book,
    /// Says when to leave.
    pub stop: watch::Receiver<bool>,
}

impl Desk {
    /// Puts somebody there.
    pub fn occupy(&self) -> Result<Mortal<()>> {
        Mortal::start(self.clone().serve())
    }

    /// From session to session, until told to leave.
    async fn serve(self) -> Result<()> {
        let client = Client::connect(Config::new(self.endpoints.clone()))?;
        loop {
            let session = client.sessions().open(MISSED).await?;
            if self.serve_in(&client, &session).await? {
                session.close().await?;
                return Ok(());
            }
        }
    }

    /// What one session brings. `false`: the session was lost.
    async fn serve_in(&self, client: &Client, session: &Session) -> Result<bool> {
        let mut consumer = client.bus().consume(session, self.subscription).credit(self.credit).start();
        let mut stop = self.stop.clone();
        let mut settling: JoinSet<Result<()>> = JoinSet::new();
        let was_told = loop {
            let next = tokio::select! {
                biased;
                () = told(&mut stop) => break true,
                Some(settled) = settling.join_next() => {
                    settled??;
                    continue;
                }
                next = consumer.next() => next,
            };
            match next {
                Some(Ok(delivery)) => {
                    open(&self.book).delivered(delivery.message(), delivery.token(), delivery.attempt());
                    settling.spawn(settle(delivery, self.seed, Arc::clone(&self.book)));
                }
                Some(Err(Error::Fenced { .. })) | None => break false,
                Some(Err(error)) => return Err(error).with_context(|| format!("consuming {}", self.subscription)),
            }
        };
        if was_told {
            consumer.close().await?;
        }
        while let Some(settled) = settling.join_next().await {
            settled??;
        }
        Ok(was_told)
    }
}

/// Says what became of a delivery, and writes down what the cluster makes of that.
async fn settle(delivery: Delivery, seed: u64, book: Book) -> Result<()> {
    let (seq, token) = (delivery.message().seq, delivery.token());
    let fails = Rng::new(seed ^ token ^ seq).below(NACK_EVERY) == 0;
    let said = if fails {
        delivery.nack("on purpose").await
    } else {
        open(&book).asking(seq);
        delivery.ack().await
    };
    match said {
        Ok(()) if fails => open(&book).nacked(),
        Ok(()) => open(&book).acknowledged(seq, token),
        // The session went first: somebody else gets it, unless this was in time.
        Err(Error::Fenced { .. } | Error::OutcomeUnknown { .. }) => {}
        Err(error) => return Err(error).with_context(|| format!("what was said of message {seq}")),
    }
    Ok(())
}

/// Who sits at the desks at the end, and how many died before.
#[derive(Debug)]
pub struct Survivors {
    /// One at each desk.
    pub consumers: Vec<Mortal<()>>,
    /// How many died.
    pub deaths: u64,
}

/// Puts somebody at every desk, and kills one now and then, whatever it is doing, until told to stop.
pub async fn kill_consumers(desks: Vec<Desk>, mut rng: Rng, mut stop: watch::Receiver<bool>) -> Result<Survivors> {
    let mut consumers = desks.iter().map(Desk::occupy).collect::<Result<Vec<_>>>()?;
    let mut deaths = 0;
    loop {
        tokio::select! {
            biased;
            () = told(&mut stop) => return Ok(Survivors { consumers, deaths }),
            () = tokio::time::sleep(rng.millis(1_000, 3_000)) => {}
        }
        let place = rng.below(desks.len() as u64) as usize;
        let next = desks[place].occupy()?;
        std::mem::replace(&mut consumers[place], next).kill();
        deaths += 1;
    }
}
