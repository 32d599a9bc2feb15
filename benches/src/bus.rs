//! How soon does a message reach a consumer, how many can be published and acknowledged, what does one that waits cost?
//!
//! A queue group of the library's consumers, each over connections of its own, drains one subscription; publishers
//! share one set of connections. A message has no id and no session, so a call of unknown outcome fails the measurement
//! instead of being repeated.
//!
//! Deliberately absent: fan-out. A message that two subscriptions keep is delivered and acknowledged twice.

mod group;
mod waiting;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use quorate_client::v1::{BusMessage, PublishRequest};
use quorate_client::{Bus, Error};
use quorate_jepsen::{LocalCluster, Rng};
use tokio::sync::mpsc;

use crate::closed::{at_once, together};
use crate::latency::Latency;
use crate::meter::Meter;
use crate::paced::{self, Heard};
use crate::payload::payload;
use crate::report::{Column, Form, Table, column};

use group::{Group, Size};

const PAYLOAD_BYTES: usize = 256;
/// The most that a subscription holds, and a request publishes.
const MOST_WAITING: u64 = 10_000_000;
const MOST_AT_ONCE: u64 = 1_024;

const COLUMNS: &[Column] = &[
    column("producers", "producers", 0),
    column("a call", "messages_a_call", 0),
    column("messages", "messages", 0),
    column("published/s", "published_per_s", 0),
    column("acked/s", "acked_per_s", 0),
    column("call p50", "publish_p50_ms", 2),
    column("p99", "publish_p99_ms", 2),
    column("servers us", "server_cpu_us", 1),
    column("bench us", "bench_cpu_us", 1),
];

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Messages a second while the latency of delivery is measured, evenly spaced
    #[arg(long, default_value_t = 1_000)]
    rate: u64,
    /// Length of each measurement
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Concurrent producers, one measurement of throughput each
    #[arg(long, value_delimiter = ',', default_values_t = [1_u64, 16, 64])]
    producers: Vec<u64>,
    /// Messages a call, with each number of producers
    #[arg(long, value_delimiter = ',', default_values_t = [1_u64, 64])]
    batches: Vec<u64>,
    /// Consumers that share the messages
    #[arg(long, default_value_t = 4)]
    consumers: u64,
    /// Messages that each of them holds unacknowledged
    #[arg(long, default_value_t = 256)]
    credit: u32,
    /// Also measure what so many waiting messages cost a node in memory
    #[arg(long, default_value_t = 0)]
    waiting: u64,
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t = Form::Table)]
    output: Form,
}

impl Args {
    fn check(&self) -> Result<()> {
        paced::check(self.rate, self.seconds)?;
        let fit = self.batches.iter().all(|batch| (1..=MOST_AT_ONCE).contains(batch));
        ensure!(fit, "--batches must be 1 to {MOST_AT_ONCE} each; got {:?}", self.batches);
        ensure!((1..=1_000).contains(&self.consumers), "--consumers must be 1 to 1000; got {}", self.consumers);
        ensure!((1..=1_024).contains(&self.credit), "--credit must be 1 to 1024; got {}", self.credit);
        ensure!(self.waiting <= MOST_WAITING, "--waiting must be at most {MOST_WAITING}; got {}", self.waiting);
        Ok(())
    }

    fn group(&self) -> Size {
        Size { consumers: self.consumers, credit: self.credit }
    }
}

/// Measures latency and throughput on one cluster, memory on another, and prints the results.
pub(crate) async fn run(args: Args) -> Result<()> {
    args.check()?;
    let cluster = LocalCluster::builder().start().await?;
    deliver(&cluster, &args).await?;
    let about = "call: latency in ms; acked/s: until the last one was; CPU: us per message, delivery and ack included";
    let mut table = Table::new("bus_throughput", about, COLUMNS);
    for batch in &args.batches {
        for producers in &args.producers {
            drain(&cluster, &args, *producers, *batch, &mut table).await?;
        }
    }
    table.print(args.output)?;
    cluster.close()?;
    if args.waiting > 0 {
        waiting::measure(args.waiting, args.output).await?;
    }
    Ok(())
}

/// From the call that publishes to the consumer that has the message in hand.
async fn deliver(cluster: &LocalCluster, args: &Args) -> Result<()> {
    let (tell, mut told) = mpsc::unbounded_channel();
    let subject = "bench.latency";
    let group = Group::start(cluster, subject, args.group(), Some(tell)).await?;
    let bus = cluster.client()?.bus();
    let calls = paced::calls(args.rate, args.seconds, |number| publish(bus.clone(), subject, number)).await?;
    let mut heard = Heard::default();
    let lost = heard.wait_for(&calls, &mut told).await;
    let about = format!("{} messages/s for {} s; {}", args.rate, args.seconds, paced::ABOUT);
    let mut table = Table::new("bus_latency", about, paced::COLUMNS);
    heard.row("delivery", &calls, &mut table)?;
    table.print(args.output)?;
    group.close(calls.count()?).await?;
    ensure!(lost == 0, "{lost} acknowledged messages were never delivered");
    Ok(())
}

/// Publishes one message that a consumer can tell from the others.
async fn publish(bus: Bus, subject: &'static str, number: u64) -> Result<(), Error> {
    let message = BusMessage { correlation_id: number.to_string(), ..message(subject, &mut Rng::new(number)) };
    bus.publish(None, message).await.map(drop)
}

/// Publishes as fast as the answers come, while the group drains what is published.
async fn drain(cluster: &LocalCluster, args: &Args, producers: u64, batch: u64, table: &mut Table) -> Result<()> {
    let subject = format!("bench.{producers}x{batch}");
    let group = Group::start(cluster, &subject, args.group(), None).await?;
    let bus = cluster.client()?.bus();
    let meter = Meter::start(cluster)?;
    let until = Instant::now() + Duration::from_secs(args.seconds);
    let each = at_once((0..producers).map(|n| produce(bus.clone(), subject.clone(), n, batch, until))).await?;
    let producing = meter.read()?;
    let calls = together(&each)?;
    let messages = calls.count() * batch;
    group.wait_acked(messages).await?;
    let whole = meter.read()?;
    group.close(messages).await?;
    let numbers = [
        producers as f64,
        batch as f64,
        messages as f64,
        producing.per_second(messages),
        whole.per_second(messages),
        calls.ms(0.5),
        calls.ms(0.99),
        whole.servers_us(messages),
        whole.bench_us(messages),
    ];
    table.row("throughput", numbers);
    Ok(())
}

/// One call after another; how long each took.
async fn produce(bus: Bus, subject: String, producer: u64, batch: u64, until: Instant) -> Result<Latency> {
    let mut latency = Latency::new()?;
    let mut rng = Rng::new(producer);
    loop {
        let request = request(&subject, batch, &mut rng);
        let began = Instant::now();
        if began >= until {
            return Ok(latency);
        }
        bus.publish_all(None, request).await?;
        latency.record(began.elapsed());
    }
}

/// So many messages, none of them in vain.
fn request(subject: &str, messages: u64, rng: &mut Rng) -> PublishRequest {
    let messages = (0..messages).map(|_| message(subject, rng)).collect();
    PublishRequest { messages, must_match: true, ..Default::default() }
}

fn message(subject: &str, rng: &mut Rng) -> BusMessage {
    BusMessage { subject: subject.into(), payload: payload(PAYLOAD_BYTES, rng).into(), ..Default::default() }
}
