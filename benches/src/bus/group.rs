//! The consumers of one subscription: each takes what it is given and acknowledges it at once.
//!
//! An acknowledgement is not waited for before the next message is taken; credit is what limits a consumer.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use quorate_client::v1::{SubscriptionInfo, SubscriptionSpec};
use quorate_client::{Bus, Client, Delivery, Error};
use quorate_jepsen::LocalCluster;
use quorate_jepsen::until::until;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};

use super::MOST_WAITING;
use crate::paced::News;

const TTL: Duration = Duration::from_secs(15);
/// How long consumers may take to be there.
const LIMIT: Duration = Duration::from_secs(30);
/// How long they may take to drain what was published faster than they acknowledge.
const DRAIN_LIMIT: Duration = Duration::from_secs(300);

/// How many consumers, and what each may hold.
#[derive(Clone, Copy)]
pub(super) struct Size {
    pub(super) consumers: u64,
    pub(super) credit: u32,
}

/// The running consumers.
pub(super) struct Group {
    bus: Bus,
    /// Of the subscription, and the one subject that it takes.
    name: String,
    acked: Arc<AtomicU64>,
    stop: watch::Sender<bool>,
    members: Vec<JoinHandle<Result<()>>>,
}

/// What one consumer needs.
struct Member {
    client: Client,
    subscription: String,
    credit: u32,
    acked: Arc<AtomicU64>,
    tell: Option<mpsc::UnboundedSender<News>>,
    stopped: watch::Receiver<bool>,
}

impl Group {
    /// Subscribes, and returns when all consumers stand. Messages whose correlation id is a number are told of.
    pub(super) async fn start(
        cluster: &LocalCluster,
        name: &str,
        size: Size,
        tell: Option<mpsc::UnboundedSender<News>>,
    ) -> Result<Group> {
        let bus = cluster.client()?.bus();
        bus.subscribe(subscription(name)).await?;
        let acked = Arc::new(AtomicU64::new(0));
        let (stop, stopped) = watch::channel(false);
        let mut members = Vec::new();
        for _ in 0..size.consumers {
            let member = Member {
                client: cluster.client()?,
                subscription: name.to_owned(),
                credit: size.credit,
                acked: Arc::clone(&acked),
                tell: tell.clone(),
                stopped: stopped.clone(),
            };
            members.push(tokio::spawn(member.consume()));
        }
        let group = Group { bus, name: name.to_owned(), acked, stop, members };
        group.wait_standing().await?;
        Ok(group)
    }

    async fn wait_standing(&self) -> Result<()> {
        let standing = || async {
            self.check_running()?;
            let consumers = self.info().await?.stats.unwrap_or_default().consumers.len();
            Ok((consumers == self.members.len()).then_some(()))
        };
        until("every consumer stands", LIMIT, standing).await
    }

    /// Waits until so many messages are acknowledged.
    pub(super) async fn wait_acked(&self, messages: u64) -> Result<()> {
        let acked = || async {
            self.check_running()?;
            Ok((self.acked.load(Ordering::Relaxed) >= messages).then_some(()))
        };
        until("every message is acknowledged", DRAIN_LIMIT, acked).await
    }

    /// Ends the consumers and the subscription. Fails unless the cluster counted so many messages, and as many acks.
    pub(super) async fn close(mut self, messages: u64) -> Result<()> {
        self.stop.send_replace(true);
        for member in std::mem::take(&mut self.members) {
            member.await?.context("a consumer failed")?;
        }
        let counts = self.info().await?.counts.unwrap_or_default();
        ensure!(
            (counts.published, counts.acked) == (messages, messages),
            "{messages} messages were published, the cluster counted {} and {} acknowledged",
            counts.published,
            counts.acked
        );
        self.bus.unsubscribe(&self.name).await?;
        Ok(())
    }

    fn check_running(&self) -> Result<()> {
        ensure!(!self.members.iter().any(JoinHandle::is_finished), "a consumer of {} ended", self.name);
        Ok(())
    }

    async fn info(&self) -> Result<SubscriptionInfo> {
        Ok(self.bus.subscription(&self.name).await?.info.unwrap_or_default())
    }
}

/// A durable subscription to the one subject of its name.
pub(super) fn subscription(name: &str) -> SubscriptionSpec {
    SubscriptionSpec {
        name: name.into(),
        patterns: vec![name.into()],
        max_messages: MOST_WAITING,
        ..Default::default()
    }
}

impl Member {
    async fn consume(self) -> Result<()> {
        let Member { client, subscription, credit, acked, tell, mut stopped } = self;
        let session = client.sessions().open(TTL).await?;
        let mut consumer = client.bus().consume(&session, subscription).credit(credit).start();
        let mut stop = pin!(async move {
            // An error means that the sender is gone, which is a reason to stop as well.
            let _ = stopped.wait_for(|stop| *stop).await;
        });
        let mut acks: JoinSet<Result<(), Error>> = JoinSet::new();
        loop {
            tokio::select! {
                () = &mut stop => break,
                next = consumer.next() => {
                    let delivery = next.context("the consumer ended without a reason")??;
                    note(&delivery, tell.as_ref());
                    acks.spawn(ack(delivery));
                }
                Some(answer) = acks.join_next(), if !acks.is_empty() => {
                    answer??;
                    acked.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        while let Some(answer) = acks.join_next().await {
            answer??;
        }
        consumer.close().await?;
        session.close().await?;
        Ok(())
    }
}

/// The handler's first moment.
fn note(delivery: &Delivery, tell: Option<&mpsc::UnboundedSender<News>>) {
    let at = Instant::now();
    let Some(tell) = tell else { return };
    if let Ok(number) = delivery.message().correlation_id.parse::<u64>() {
        // An error means that nobody listens any longer: the measurement was given up.
        let _ = tell.send((number, at));
    }
}

async fn ack(delivery: Delivery) -> Result<(), Error> {
    delivery.ack().await
}
