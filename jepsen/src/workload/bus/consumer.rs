//! Who consumes: a life that takes messages under one session after another, until it is told to leave or is killed.
//!
//! Most deliveries are acknowledged at once. Some fail, and some are held until their time is up and acknowledged then,
//! which must be refused.
//!
//! Deliberately absent: what is published.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::Result;
use quorate_client::{Client, Consumer, Delivery, Error, Session};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::{ACK_WAIT, Context, PATIENCE, POISON, subscription};
use crate::coordination::{Mortal, backlog, drained, told};
use crate::record::{Answer, Process};
use crate::rng::Rng;

/// How soon the cluster misses a consumer that died.
const MISSED: Duration = Duration::from_secs(3);
/// What a consumer holds at once.
const CREDIT: u32 = 8;
/// The longest wait for one delivery: what is held too long must be answered in between.
const IDLE: Duration = Duration::from_secs(1);
/// The pause before another session is asked for.
const REST: Duration = Duration::from_millis(200);
/// How long a consumer may take to leave.
const GRACE: Duration = Duration::from_secs(10);
/// Between two deaths of one worker's consumer.
const LIFE_MS: (u64, u64) = (3_000, 12_000);
/// Sets a consumer's choices apart from those of its worker's publisher.
const OTHER_CHOICES: u64 = 0x00c0_ffee_0000_0001;

/// Consumes until told to stop; from time to time the consumer dies and another takes its place.
pub(super) async fn consume(context: &Context, worker: u64) -> Result<()> {
    let mut rng = Rng::new(context.rng(worker).next_u64() ^ OTHER_CHOICES);
    let mut stop = context.stop.clone();
    let desk = |rng: &mut Rng| Desk {
        context: context.clone(),
        name: subscription(context),
        worker,
        seed: rng.next_u64(),
        is_careless: true,
        stop: context.stop.clone(),
    };
    let mut life = Mortal::start(desk(&mut rng).serve())?;
    loop {
        tokio::select! {
            biased;
            () = told(&mut stop) => break,
            () = sleep(rng.millis(LIFE_MS.0, LIFE_MS.1)) => {}
        }
        let next = Mortal::start(desk(&mut rng).serve())?;
        std::mem::replace(&mut life, next).kill();
    }
    // Where the cluster does not answer, leaving takes too long: then it dies, and its session ends by itself.
    timeout(GRACE, life.end()).await.unwrap_or(Ok(()))
}

/// Consumes until the subscription is empty, as long as it becomes emptier, and gives what is in it after that.
pub(super) async fn empty(context: &Context, client: &Client, name: &str) -> Result<u64> {
    let (leave, leaving) = watch::channel(false);
    let desk = Desk {
        context: context.clone(),
        name: name.to_owned(),
        worker: 0,
        seed: context.seed,
        is_careless: false,
        stop: leaving,
    };
    let consuming = tokio::spawn(desk.serve());
    let emptied = drained(client, name).await;
    leave.send_replace(true);
    consuming.await??;
    emptied?;
    backlog(client, name).await
}

/// Whether a consumer acknowledges or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    Ack,
    Nack,
}

/// Nothing more will come under this session.
#[derive(Debug)]
struct Over;

/// Where somebody consumes.
#[derive(Debug)]
struct Desk {
    context: Context,
    name: String,
    worker: u64,
    seed: u64,
    /// Whether deliveries fail that need not.
    is_careless: bool,
    stop: watch::Receiver<bool>,
}

impl Desk {
    /// From session to session. All that it uses is opened here: it may be killed.
    async fn serve(self) -> Result<()> {
        let client = self.context.client(self.worker, PATIENCE)?;
        let mut process = self.context.recorder.process();
        let mut rng = Rng::new(self.seed);
        while !self.is_told() {
            match client.sessions().open(MISSED).await {
                Ok(session) => self.sit(&client, &session, &mut process, &mut rng).await,
                Err(_) => self.rest().await,
            }
        }
        Ok(())
    }

    /// Told to stop, or nobody is left to say so.
    fn is_told(&self) -> bool {
        *self.stop.borrow() || self.stop.has_changed().is_err()
    }

    async fn rest(&self) {
        let mut stop = self.stop.clone();
        tokio::select! {
            biased;
            () = told(&mut stop) => {}
            () = sleep(REST) => {}
        }
    }

    /// What one session brings.
    async fn sit(&self, client: &Client, session: &Session, process: &mut Process, rng: &mut Rng) {
        let mut consumer = client.bus().consume(session, self.name.as_str()).credit(CREDIT).start();
        // All are held equally long: the first is the first that is due.
        let mut held: VecDeque<(Instant, Delivery)> = VecDeque::new();
        while !self.is_told() {
            let wait = held.front().map_or(IDLE, |(due, _)| due.saturating_duration_since(Instant::now()).min(IDLE));
            match self.receive(&mut consumer, session, process, wait).await {
                Ok(Some(delivery)) if self.is_held(&delivery, rng) => {
                    held.push_back((Instant::now() + ACK_WAIT * 3 / 2, delivery));
                }
                Ok(Some(delivery)) => self.say(self.word(&delivery, rng), &delivery, process).await,
                Ok(None) => {}
                Err(Over) => break,
            }
            if held.front().is_some_and(|(due, _)| *due <= Instant::now())
                && let Some((_, delivery)) = held.pop_front()
            {
                self.say(self.word(&delivery, rng), &delivery, process).await;
            }
        }
        self.leave(consumer, session, process).await;
    }

    fn is_held(&self, delivery: &Delivery, rng: &mut Rng) -> bool {
        self.is_careless && !is_poison(delivery) && rng.below(30) == 0
    }

    fn word(&self, delivery: &Delivery, rng: &mut Rng) -> Word {
        if is_poison(delivery) || (self.is_careless && rng.below(20) == 0) { Word::Nack } else { Word::Ack }
    }

    /// Waits for one delivery. That none came has no effect: what comes later is kept for the next call.
    async fn receive(
        &self,
        consumer: &mut Consumer,
        session: &Session,
        process: &mut Process,
        wait: Duration,
    ) -> Result<Option<Delivery>, Over> {
        let mut received = Ok(None);
        let mut stop = self.stop.clone();
        let call = async {
            let next = tokio::select! {
                biased;
                () = told(&mut stop) => return Answer::Fail,
                next = timeout(wait, consumer.next()) => next,
            };
            match next {
                Ok(Some(Ok(delivery))) => {
                    let answer = Answer::ok(seen(&delivery));
                    received = Ok(Some(delivery));
                    answer
                }
                Ok(Some(Err(_)) | None) => {
                    received = Err(Over);
                    Answer::Fail
                }
                Err(_) => Answer::Fail,
            }
        };
        process.run("receive", &self.name, json!({"consumer": session.id()}), None, call).await;
        received
    }

    async fn say(&self, word: Word, delivery: &Delivery, process: &mut Process) {
        let call = async {
            let said = match word {
                Word::Ack => delivery.ack().await,
                Word::Nack => delivery.nack("on purpose").await,
            };
            match said {
                Ok(()) => Answer::ok(json!({"accepted": true})),
                Err(Error::Fenced { .. }) => Answer::ok(json!({"accepted": false})),
                Err(error) => Answer::of_error(&error),
            }
        };
        let f = if word == Word::Ack { "ack" } else { "nack" };
        let arg = json!({"seq": delivery.message().seq, "token": delivery.token()});
        process.run(f, &self.name, arg, None, call).await;
    }

    /// What it still holds goes to others. The library sends what may not have arrived once more behind our back, so
    /// only a success is certain.
    async fn leave(&self, consumer: Consumer, session: &Session, process: &mut Process) {
        let call = async {
            match consumer.close().await {
                Ok(()) => Answer::ok(json!({})),
                Err(_) => Answer::Info,
            }
        };
        process.run("leave", &self.name, json!({"consumer": session.id()}), None, call).await;
        // A session that cannot be closed ends by itself.
        drop(session.close().await);
    }
}

fn is_poison(delivery: &Delivery) -> bool {
    delivery.message().payload.ends_with(POISON.as_bytes())
}

fn seen(delivery: &Delivery) -> Value {
    let message = delivery.message();
    json!({
        "seq": message.seq,
        "value": String::from_utf8_lossy(&message.payload),
        "order_key": message.order_key,
        "token": delivery.token(),
        "attempt": delivery.attempt(),
    })
}
