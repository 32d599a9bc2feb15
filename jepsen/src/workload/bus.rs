//! The bus: publishers, and consumers of one durable subscription who fail, die and answer too late.
//!
//! | operation | asked | answered |
//! |---|---|---|
//! | `publish` | `value`, `order_key`, perhaps `message_id` | `seq`, `duplicate` |
//! | `receive` | `consumer` | `seq`, `value`, `order_key`, `token`, `attempt` |
//! | `ack`, `nack` | `seq`, `token` | `accepted` |
//! | `leave` | `consumer`: what it held goes to others and is no attempt | |
//! | `final` | `max_attempts` of the subscription | `dead` with `seq`, `value`, `attempts`; `waiting`; `counts` |
//!
//! Each worker publishes and consumes. A value is published once, or several times under one message id. One whose name
//! ends in `.poison` is never acknowledged, so that it must end among the dead.
//!
//! Deliberately absent: any judgement, see [`crate::check::queue`].

mod consumer;

use std::time::Duration;

use anyhow::{Result, ensure};
use futures::future::{BoxFuture, try_join};
use quorate_client::v1::{
    BusMessage, DeadMessage, ListDeadMessagesRequest, PublishRequest, SubscriptionCounts, SubscriptionSpec,
};
use quorate_client::{Client, Error};
use serde_json::{Value, json};

use super::{Context, Workload};
use crate::check::Checker;
use crate::check::queue::Queue;
use crate::record::{Answer, Process};
use crate::rng::Rng;

/// Failed deliveries before a message is dead.
const MAX_ATTEMPTS: u32 = 4;
/// Short, so that what fails comes again while the faults last.
const BACKOFF_MS: [u64; 2] = [50, 200];
/// A delivery that takes longer has failed.
const ACK_WAIT: Duration = Duration::from_millis(1_000);
/// Less than an election: many calls end without an answer.
const PATIENCE: Duration = Duration::from_millis(1_500);
/// Once the faults are over.
const LONG_PATIENCE: Duration = Duration::from_secs(30);
/// Order keys of one worker.
const KEYS: u64 = 4;
/// How often a message with an id is sent again while nobody knows what came of it.
const RESENDS: u64 = 5;
/// How often the subscription is emptied: a publish of unknown outcome may come late.
const ROUNDS: u64 = 5;
const PAGE: u32 = 1_000;
const POISON: &str = ".poison";

/// See the module.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bus;

impl Bus {
    /// The workload.
    pub fn new() -> Self {
        Self
    }
}

impl Workload for Bus {
    fn name(&self) -> &'static str {
        "bus"
    }

    fn about(&self) -> &'static str {
        "publishers, and consumers that fail, die and acknowledge too late: nothing is lost, doubled or out of order"
    }

    fn prepare(&self, context: Context) -> BoxFuture<'_, Result<()>> {
        Box::pin(prepare(context))
    }

    fn work(&self, context: Context, worker: u64) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            try_join(produce(&context, worker), consumer::consume(&context, worker)).await?;
            Ok(())
        })
    }

    fn finish(&self, context: Context) -> BoxFuture<'_, Result<()>> {
        Box::pin(finish(context))
    }

    fn checkers(&self) -> Vec<Box<dyn Checker>> {
        vec![Box::new(Queue::new())]
    }
}

/// The subscription's name.
fn subscription(context: &Context) -> String {
    format!("{}-bus", context.prefix)
}

async fn prepare(context: Context) -> Result<()> {
    let client = context.client(0, LONG_PATIENCE)?;
    let spec = SubscriptionSpec {
        name: subscription(&context),
        patterns: vec![format!("{}.bus.>", context.prefix)],
        max_attempts: MAX_ATTEMPTS,
        backoff_ms: BACKOFF_MS.to_vec(),
        ack_wait_ms: u64::try_from(ACK_WAIT.as_millis())?,
        ..SubscriptionSpec::default()
    };
    client.bus().subscribe(spec).await?;
    Ok(())
}

/// One message, however often it is sent.
#[derive(Debug)]
struct Letter {
    value: String,
    subject: String,
    order_key: String,
    id: Option<String>,
}

impl Letter {
    fn draw(context: &Context, worker: u64, n: u64, rng: &mut Rng) -> Self {
        let poison = if rng.below(40) == 0 { POISON } else { "" };
        let value = format!("{worker}.{n}{poison}");
        let order_key = match rng.below(KEYS + 1) {
            // No order at all.
            KEYS => String::new(),
            key => format!("key-{worker}-{key}"),
        };
        let id = (rng.below(2) == 0).then(|| format!("{}-{value}", context.prefix));
        Self { value, subject: format!("{}.bus.w{worker}", context.prefix), order_key, id }
    }

    fn arg(&self) -> Value {
        match &self.id {
            Some(id) => json!({"value": self.value, "order_key": self.order_key, "message_id": id}),
            None => json!({"value": self.value, "order_key": self.order_key}),
        }
    }

    /// Refused if nobody would keep it: what is acknowledged is in the subscription.
    fn request(&self) -> PublishRequest {
        let message = BusMessage {
            id: self.id.clone().unwrap_or_default(),
            subject: self.subject.clone(),
            order_key: self.order_key.clone(),
            payload: self.value.clone().into(),
            ..BusMessage::default()
        };
        PublishRequest { messages: vec![message], must_match: true, ..PublishRequest::default() }
    }
}

/// Publishes until told to stop.
async fn produce(context: &Context, worker: u64) -> Result<()> {
    let client = context.client(worker, PATIENCE)?;
    let name = subscription(context);
    let mut process = context.recorder.process();
    let mut rng = context.rng(worker);
    let mut n = 0;
    while context.pause(&mut rng).await {
        n += 1;
        let letter = Letter::draw(context, worker, n, &mut rng);
        let mut answer = publish(&client, &mut process, &name, &letter).await;
        if letter.id.is_none() {
            // Sent again it would be there twice.
            continue;
        }
        let mut resends = 0;
        while answer == Answer::Info && resends < RESENDS && !context.is_over() {
            resends += 1;
            answer = publish(&client, &mut process, &name, &letter).await;
        }
        if rng.below(8) == 0 {
            publish(&client, &mut process, &name, &letter).await;
        }
    }
    Ok(())
}

async fn publish(client: &Client, process: &mut Process, name: &str, letter: &Letter) -> Answer {
    let call = async {
        match client.bus().publish_all(None, letter.request()).await {
            Ok(answer) => match answer.published.first() {
                Some(one) => Answer::at(answer.rev, json!({"seq": one.seq, "duplicate": one.duplicate})),
                None => Answer::Info,
            },
            Err(error) => Answer::of_error(&error),
        }
    };
    process.run("publish", name, letter.arg(), None, call).await
}

/// Empties the subscription and writes down what became of everything.
async fn finish(context: Context) -> Result<()> {
    let client = context.client(0, LONG_PATIENCE)?;
    let name = subscription(&context);
    let mut rounds = 0;
    while consumer::empty(&context, &client, &name).await? > 0 {
        rounds += 1;
        ensure!(rounds < ROUNDS, "{name} was emptied {rounds} times, and there is more in it");
    }
    let call = async {
        match what_is_left(&client, &name).await {
            Ok(left) => Answer::ok(left),
            Err(error) => Answer::of_error(&error),
        }
    };
    let arg = json!({"max_attempts": MAX_ATTEMPTS});
    let answer = context.recorder.process().run("final", &name, arg, None, call).await;
    ensure!(matches!(answer, Answer::Ok { .. }), "what is left of {name} could not be read");
    Ok(())
}

async fn what_is_left(client: &Client, name: &str) -> Result<Value, Error> {
    let info = client.bus().subscription(name).await?.info.unwrap_or_default();
    let (counts, stats) = (info.counts.unwrap_or_default(), info.stats.unwrap_or_default());
    let dead: Vec<Value> = dead_messages(client, name).await?.iter().map(buried).collect();
    let waiting = stats.waiting + stats.delayed + stats.in_flight;
    Ok(json!({"dead": dead, "waiting": waiting, "counts": counted(counts)}))
}

/// All of them, page by page.
async fn dead_messages(client: &Client, name: &str) -> Result<Vec<DeadMessage>, Error> {
    let mut all: Vec<DeadMessage> = Vec::new();
    loop {
        let request = ListDeadMessagesRequest {
            subscription: name.to_owned(),
            after_seq: all.last().map_or(0, |last| last.seq),
            limit: PAGE,
            ..ListDeadMessagesRequest::default()
        };
        let page = client.bus().dead(request).await?.messages;
        if page.is_empty() {
            return Ok(all);
        }
        all.extend(page);
    }
}

/// How many attempts it had is what the last failure says of itself.
fn buried(dead: &DeadMessage) -> Value {
    let value = dead.message.as_ref().map(|message| String::from_utf8_lossy(&message.payload).into_owned());
    let attempts = dead.failures.last().map_or(0, |last| last.attempt);
    json!({"seq": dead.seq, "value": value.unwrap_or_default(), "attempts": attempts})
}

fn counted(counts: SubscriptionCounts) -> Value {
    json!({
        "published": counts.published,
        "acked": counts.acked,
        "redelivered": counts.redelivered,
        "dead": counts.dead,
        "expired": counts.expired,
        "dropped": counts.dropped,
    })
}
