//! Rounds by a schedule that waits for no answer: a task from submission to completion, a document, a message.
//!
//! Rounds are dealt out to clients in turn. Each has a session, an agent and a subscription of its own; all agents
//! share one queue, and all clients one set of connections. A round's latency counts from when it was due, so that a
//! slow one is also seen in those that it held up.
//!
//! Deliberately absent: the end at the first failure. A long run is worth more than one round: a client that failed
//! begins anew, and failures are counted.

use std::pin::pin;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use quorate_client::v1::{BusMessage, SubscriptionSpec, TaskSpec};
use quorate_client::{Client, Consumer, Session};
use quorate_jepsen::{LocalCluster, Rng};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::agent::{self, CAPABILITY};
use crate::latency::Latency;
use crate::paced::due_after;
use crate::payload::payload;

const TASK_BYTES: usize = 256;
const DOCUMENT_BYTES: usize = 512;
const MESSAGE_BYTES: usize = 256;
/// Keys that all clients write.
const DOCUMENTS: u64 = 1_000;
/// A round that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(60);
/// Before a client that failed begins anew.
const PAUSE: Duration = Duration::from_secs(1);

/// How a round went: how long it took, or nothing if it failed.
type Round = Option<Duration>;

/// The running clients.
pub(super) struct Load {
    told: mpsc::UnboundedReceiver<Round>,
    stop: watch::Sender<bool>,
    clients: Vec<JoinHandle<()>>,
    done: u64,
    failed: u64,
}

/// What they did: rounds since the beginning, latencies since the period before.
#[derive(Clone, Copy, Default)]
pub(super) struct Period {
    pub(super) done: u64,
    pub(super) failed: u64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
}

/// When each round is due.
#[derive(Clone, Copy)]
struct Schedule {
    began: Instant,
    rate: u64,
    clients: u64,
}

/// One client.
struct Hand {
    client: Client,
    number: u64,
    rng: Rng,
    life: Option<Life>,
    lives: u64,
}

/// What it has until something fails.
struct Life {
    session: Session,
    agent: String,
    consumer: Consumer,
}

impl Load {
    /// Returns when every client is ready and the first round is due.
    pub(super) async fn start(cluster: &LocalCluster, rate: u64, clients: u64) -> Result<Load> {
        let client = cluster.client()?;
        let mut hands = Vec::new();
        for number in 0..clients {
            client.bus().subscribe(subscription(number)).await?;
            let mut hand = Hand { client: client.clone(), number, rng: Rng::new(number), life: None, lives: 0 };
            let life = hand.begin().await?;
            hand.life = Some(life);
            hands.push(hand);
        }
        let (tell, told) = mpsc::unbounded_channel();
        let (stop, stopped) = watch::channel(false);
        let schedule = Schedule { began: Instant::now(), rate, clients };
        let work = |hand: Hand| tokio::spawn(hand.work(schedule, tell.clone(), stopped.clone()));
        let clients = hands.into_iter().map(work).collect();
        Ok(Load { told, stop, clients, done: 0, failed: 0 })
    }

    /// What was done since the call before. Fails if a client has ended.
    pub(super) fn period(&mut self) -> Result<Period> {
        ensure!(!self.clients.iter().any(JoinHandle::is_finished), "a client ended by itself");
        self.count()
    }

    /// Ends the clients; gives what was done in all.
    pub(super) async fn close(mut self) -> Result<Period> {
        self.stop.send_replace(true);
        for client in std::mem::take(&mut self.clients) {
            client.await?;
        }
        self.count()
    }

    fn count(&mut self) -> Result<Period> {
        let mut latency = Latency::new()?;
        while let Ok(round) = self.told.try_recv() {
            match round {
                Some(took) => {
                    latency.record(took);
                    self.done += 1;
                }
                None => self.failed += 1,
            }
        }
        Ok(Period { done: self.done, failed: self.failed, p50_ms: latency.ms(0.5), p99_ms: latency.ms(0.99) })
    }
}

impl Hand {
    async fn work(
        mut self,
        schedule: Schedule,
        tell: mpsc::UnboundedSender<Round>,
        mut stopped: watch::Receiver<bool>,
    ) {
        let mut stop = pin!(async move {
            // An error means that the sender is gone, which is a reason to stop as well.
            let _ = stopped.wait_for(|stop| *stop).await;
        });
        let mut round = self.number;
        loop {
            let due = schedule.began + due_after(round, schedule.rate);
            tokio::select! {
                () = &mut stop => break,
                () = sleep_until(due) => {}
            }
            let done = self.timely_round().await;
            // An error means that nobody listens any longer: the measurement was given up.
            let _ = tell.send(done.is_ok().then(|| due.elapsed()));
            if let Err(error) = done {
                eprintln!("round {round} failed: {error:#}");
                sleep(PAUSE).await;
            }
            round += schedule.clients;
        }
        if let Some(life) = self.life.take()
            && let Err(error) = life.end().await
        {
            eprintln!("client {} could not end well: {error:#}", self.number);
        }
    }

    async fn timely_round(&mut self) -> Result<()> {
        timeout(LIMIT, self.round()).await.with_context(|| format!("not done after {} s", LIMIT.as_secs()))?
    }

    /// A life in which a round fails is over: what it held goes back when its session ends.
    async fn round(&mut self) -> Result<()> {
        let mut life = match self.life.take() {
            Some(life) => life,
            None => self.begin().await?,
        };
        life.round(&self.client, self.number, &mut self.rng).await?;
        self.life = Some(life);
        Ok(())
    }

    /// Under a name of its own: the agent of the life before may still be registered.
    async fn begin(&mut self) -> Result<Life> {
        self.lives += 1;
        let (session, agent) = agent::open(&self.client, format!("soak-{}-{}", self.number, self.lives)).await?;
        let consumer = self.client.bus().consume(&session, subject(self.number)).start();
        Ok(Life { session, agent, consumer })
    }
}

impl Life {
    /// Each submits as many tasks as it claims, so there is always one to claim, its own or another's.
    async fn round(&mut self, client: &Client, number: u64, rng: &mut Rng) -> Result<()> {
        client.tasks().submit_one(task(rng)).await?;
        let claimed = client.tasks().claim(&self.session, &self.agent, 1, Duration::from_secs(10)).await?;
        client.tasks().finish(Some(&self.session), agent::completed(claimed)?).await?;

        let key = format!("soak/{}", rng.below(DOCUMENTS));
        client.kv().put(key, payload(DOCUMENT_BYTES, rng)).request(&self.session).send().await?;

        client.bus().publish(Some(&self.session), message(number, rng)).await?;
        let delivery = self.consumer.next().await.context("the consumer ended without a reason")??;
        delivery.ack().await?;
        Ok(())
    }

    async fn end(self) -> Result<()> {
        self.consumer.close().await?;
        self.session.close().await?;
        Ok(())
    }
}

fn task(rng: &mut Rng) -> TaskSpec {
    TaskSpec {
        title: "soak".into(),
        required_capabilities: vec![CAPABILITY.into()],
        payload: payload(TASK_BYTES, rng).into(),
        ..Default::default()
    }
}

fn message(number: u64, rng: &mut Rng) -> BusMessage {
    BusMessage { subject: subject(number), payload: payload(MESSAGE_BYTES, rng).into(), ..Default::default() }
}

/// Of the messages of one client, and of its subscription.
fn subject(number: u64) -> String {
    format!("soak.{number}")
}

fn subscription(number: u64) -> SubscriptionSpec {
    SubscriptionSpec { name: subject(number), patterns: vec![subject(number)], ..Default::default() }
}
