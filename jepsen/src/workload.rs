//! Workloads: what clients do to the cluster while faults are done to it, and by which checkers the record is judged.
//!
//! A workload writes down every call before it is made and after it is answered ([`crate::record`]); nothing that it
//! remembers otherwise counts. Names of objects carry [`Context::prefix`], so that runs do not meet in one cluster.
//!
//! Deliberately absent: faults. A workload does not know which there are, or when.

pub mod append;
pub mod bank;
pub mod breakers;
pub mod bus;
mod direct;
mod documents;
pub mod ids;
pub mod limits;
pub mod lock;
pub mod registers;
pub mod schedules;
pub mod sessions;
pub mod tasks;
pub mod watch;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use futures::future::BoxFuture;
use quorate_client::{Client, Config};

use crate::check::Checker;
use crate::record::Recorder;
use crate::rng::Rng;

/// What clients do.
pub trait Workload: Send + Sync {
    /// What it is called on the command line and in reports.
    fn name(&self) -> &'static str;

    /// One sentence for `list`.
    fn about(&self) -> &'static str;

    /// What must be there before the first worker: policies, subscriptions, schedules. No faults yet.
    fn prepare(&self, context: Context) -> BoxFuture<'_, Result<()>> {
        drop(context);
        Box::pin(async { Ok(()) })
    }

    /// One of [`Context::workers`] clients, until told to stop. An error is a fault of the harness, never of the cluster:
    /// what the cluster refuses or does not answer is recorded, and the worker goes on.
    fn work(&self, context: Context, worker: u64) -> BoxFuture<'_, Result<()>>;

    /// After everything is healed and the workers have stopped: reads what is left, so that it can be judged. An error
    /// says that it could not be drained, which fails the run.
    fn finish(&self, context: Context) -> BoxFuture<'_, Result<()>>;

    /// By whom the record is judged.
    fn checkers(&self) -> Vec<Box<dyn Checker>>;
}

/// What a workload is given.
#[derive(Clone, Debug)]
pub struct Context {
    /// `host:port` of each node, node 1 first.
    pub endpoints: Vec<String>,
    /// In front of every name, such as `r17`: letters and digits, no separator at its end.
    pub prefix: String,
    /// Of every choice: take [`Context::rng`].
    pub seed: u64,
    /// How many workers there are.
    pub workers: u64,
    /// About how long a worker waits between two operations.
    pub pace: Duration,
    /// Where everything is written down.
    pub recorder: Recorder,
    /// True when workers are to stop.
    pub stop: tokio::sync::watch::Receiver<bool>,
}

impl Context {
    /// Choices of one worker: the same for the same seed.
    pub fn rng(&self, worker: u64) -> Rng {
        Rng::new(self.seed ^ (worker + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// A client that prefers one node (they take turns by worker) and knows all. It gives up on a call after `patience`:
    /// a process that waits through every fault would see little of them.
    pub fn client(&self, worker: u64, patience: Duration) -> Result<Client> {
        let count = self.endpoints.len().max(1);
        let mut endpoints = self.endpoints.clone();
        endpoints.rotate_left((worker as usize) % count);
        let mut config = Config::new(endpoints);
        (config.call_timeout, config.attempt_timeout) = (patience, (patience / 2).max(Duration::from_millis(200)));
        Ok(Client::connect(config)?)
    }

    /// A client that talks to one node and no other, and the id of that node.
    pub fn pinned(&self, worker: u64, patience: Duration) -> Result<(Client, u64)> {
        let count = self.endpoints.len().max(1);
        let place = (worker as usize) % count;
        let mut config = Config::new(self.endpoints.get(place).cloned());
        (config.call_timeout, config.attempt_timeout) = (patience, patience);
        Ok((Client::connect(config)?, place as u64 + 1))
    }

    /// Waits about as long as the pace says. `false`: it is time to stop.
    pub async fn pause(&self, rng: &mut Rng) -> bool {
        let pace = u64::try_from(self.pace.as_millis()).unwrap_or(u64::MAX).max(1);
        let mut stop = self.stop.clone();
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => false,
            () = tokio::time::sleep(rng.millis(pace / 2, pace * 3 / 2 + 1)) => true,
        }
    }

    /// Whether workers are to stop.
    pub fn is_over(&self) -> bool {
        *self.stop.borrow()
    }
}

/// Every workload there is.
pub fn all() -> Vec<Arc<dyn Workload>> {
    vec![
        Arc::new(registers::Register::new()),
        Arc::new(registers::Cas::new()),
        Arc::new(append::Append::new()),
        Arc::new(bank::Bank::new()),
        Arc::new(ids::Ids::new()),
        Arc::new(lock::Lock::new()),
        Arc::new(sessions::Sessions::new()),
        Arc::new(tasks::Tasks::new()),
        Arc::new(schedules::Schedules::new()),
        Arc::new(limits::Limits::new()),
        Arc::new(breakers::Breakers::new()),
        Arc::new(bus::Bus::new()),
        Arc::new(watch::Watch::new()),
    ]
}
