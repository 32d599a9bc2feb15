//! One write every 10 ms through the client library: how long a client waits when a leader goes.
//!
//! The write is one submission repeated under the same idempotency key: every call goes through the log, and all of them
//! together leave one task behind, which `stop` cancels.
//!
//! Deliberately absent: several writers. A gap is a property of one client's sequence of calls.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use quorate_client::Client;
use quorate_client::v1::TaskSpec;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::until::until;

/// Between the end of one write and the start of the next.
pub const PACE: Duration = Duration::from_millis(10);

/// The id of the one task it leaves behind until stopped.
pub const TASK_ID: &str = "availability-probe";

/// One acknowledged write.
#[derive(Clone, Copy, Debug)]
struct Ack {
    began: Instant,
    ended: Instant,
}

/// A running probe.
pub struct Probe {
    client: Client,
    acks: Arc<Mutex<Vec<Ack>>>,
    errors: Arc<Mutex<Vec<String>>>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Probe {
    /// Starts writing, and waits for the first acknowledgement.
    pub async fn start(client: Client) -> Result<Self> {
        let acks = Arc::new(Mutex::new(Vec::new()));
        let errors = Arc::new(Mutex::new(Vec::new()));
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(run(client.clone(), Arc::clone(&acks), Arc::clone(&errors), stopped));
        let probe = Self { client, acks, errors, stop, task };
        probe.wait_ack_after(Instant::now(), Duration::from_secs(30)).await?;
        Ok(probe)
    }

    /// Waits for a write that began after `moment` and was acknowledged.
    pub async fn wait_ack_after(&self, moment: Instant, limit: Duration) -> Result<()> {
        until("an acknowledged write", limit, || async {
            Ok(self.newest().filter(|ack| ack.began > moment).map(|_| ()))
        })
        .await
        .with_context(|| format!("last errors: {:?}", self.errors()))
    }

    /// The longest time between two acknowledgements of which the second came after `moment`.
    pub fn longest_gap_since(&self, moment: Instant) -> Duration {
        let acks = self.acks.lock().unwrap_or_else(PoisonError::into_inner);
        let pairs = acks.windows(2).filter(|pair| pair[1].ended > moment);
        pairs.map(|pair| pair[1].ended.duration_since(pair[0].ended)).max().unwrap_or_default()
    }

    /// How many writes were acknowledged.
    pub fn acked(&self) -> usize {
        self.acks.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Calls that the library gave up on.
    pub fn errors(&self) -> Vec<String> {
        self.errors.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends the writing and cancels the task it left behind.
    pub async fn stop(self) -> Result<Vec<String>> {
        self.stop.send_replace(true);
        let errors = Arc::clone(&self.errors);
        self.task.await?;
        self.client.tasks().cancel(TASK_ID, "the probe has ended").await?;
        let errors = errors.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(errors)
    }

    fn newest(&self) -> Option<Ack> {
        self.acks.lock().unwrap_or_else(PoisonError::into_inner).last().copied()
    }
}

async fn run(
    client: Client,
    acks: Arc<Mutex<Vec<Ack>>>,
    errors: Arc<Mutex<Vec<String>>>,
    stopped: watch::Receiver<bool>,
) {
    let spec = TaskSpec {
        task_id: TASK_ID.into(),
        title: "availability probe: a write every 10 ms".into(),
        idempotency_key: TASK_ID.into(),
        required_capabilities: vec!["nobody".into()],
        ..Default::default()
    };
    while !*stopped.borrow() {
        let began = Instant::now();
        match client.tasks().submit_one(spec.clone()).await {
            Ok(_) => {
                let ack = Ack { began, ended: Instant::now() };
                acks.lock().unwrap_or_else(PoisonError::into_inner).push(ack);
            }
            Err(error) => errors.lock().unwrap_or_else(PoisonError::into_inner).push(error.to_string()),
        }
        tokio::time::sleep(PACE).await;
    }
}
