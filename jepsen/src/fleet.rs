//! Library workers in this process that can crash: one that crashes falls silent in the middle of what it does, its
//! session is not closed, and another takes its seat under another name.
//!
//! Every worker has connections of its own, as a process would.
//!
//! Deliberately absent: what the handlers do, and when somebody crashes. Tests say both.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use quorate_client::{Client, Config, Done, Job, Worker, WorkerReport};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

/// What the workers of a fleet are like.
#[derive(Clone, Debug)]
pub struct Shape {
    /// The first worker of seat 3 is `<name>-3`; after its first crash comes `<name>-3.1`.
    pub name: String,
    /// How many there are at once.
    pub seats: usize,
    /// What each of them can do.
    pub capabilities: Vec<String>,
    /// How many tasks each runs at once.
    pub capacity: u32,
    /// How soon the cluster misses one that crashed.
    pub ttl: Duration,
}

impl Shape {
    /// Workers with one capability, a capacity of 1 and a TTL of 10 s.
    pub fn new(name: &str, seats: usize, capability: &str) -> Self {
        let capabilities = vec![capability.to_owned()];
        Self { name: name.to_owned(), seats, capabilities, capacity: 1, ttl: Duration::from_secs(10) }
    }
}

/// Makes the worker of one seat crash.
#[derive(Clone, Debug, Default)]
pub struct Crash {
    asked: Arc<Notify>,
}

impl Crash {
    /// From outside: whatever the worker is doing now.
    pub fn order(&self) {
        self.asked.notify_one();
    }

    /// From within a handler: its task is never finished by this worker.
    pub async fn now(&self) -> Done {
        self.order();
        std::future::pending().await
    }
}

/// What came of a fleet. A worker that crashed took along what it knew of itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// How many workers crashed.
    pub crashes: u64,
    /// What those did that were there at the end.
    pub report: WorkerReport,
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.crashes += other.crashes;
        self.report.completed += other.report.completed;
        self.report.failed += other.report.failed;
        self.report.released += other.report.released;
        self.report.cancelled += other.report.cancelled;
        self.report.fenced += other.report.fenced;
        self.report.sessions_lost += other.report.sessions_lost;
        self.report.replayed += other.report.replayed;
    }
}

/// Running workers.
#[derive(Debug)]
pub struct Fleet {
    stop: watch::Sender<bool>,
    seats: Vec<(Crash, JoinHandle<Result<Tally>>)>,
}

impl Fleet {
    /// Starts a worker on every seat. The handler gets what makes its own worker crash.
    pub fn start<H, F>(endpoints: &[String], shape: &Shape, handler: H) -> Self
    where
        H: Fn(Job, Crash) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Done> + Send + 'static,
    {
        let (stop, stopped) = watch::channel(false);
        let seats = (0..shape.seats)
            .map(|number| {
                let crash = Crash::default();
                let seat = Seat { endpoints: endpoints.to_vec(), shape: shape.clone(), number, crash: crash.clone() };
                (crash, tokio::spawn(seat.occupy(handler.clone(), stopped.clone())))
            })
            .collect();
        Self { stop, seats }
    }

    /// What makes the worker of each seat crash.
    pub fn crashes(&self) -> Vec<Crash> {
        self.seats.iter().map(|(crash, _)| crash.clone()).collect()
    }

    /// Lets every worker finish what it has begun and leave. Fails if one could not go on before.
    pub async fn stop(self) -> Result<Tally> {
        self.stop.send_replace(true);
        let mut all = Tally::default();
        for (_, seat) in self.seats {
            all.add(&seat.await??);
        }
        Ok(all)
    }
}

/// One place in the fleet.
struct Seat {
    endpoints: Vec<String>,
    shape: Shape,
    number: usize,
    crash: Crash,
}

impl Seat {
    /// One worker after another, until the fleet is stopped.
    async fn occupy<H, F>(self, handler: H, stopped: watch::Receiver<bool>) -> Result<Tally>
    where
        H: Fn(Job, Crash) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Done> + Send + 'static,
    {
        let mut tally = Tally::default();
        loop {
            let worker = self.worker(tally.crashes)?;
            let (handler, crash) = (handler.clone(), self.crash.clone());
            let mut stop = stopped.clone();
            let stopping = async move {
                // An error means that the fleet is gone, which is a reason to stop as well.
                let _ = stop.wait_for(|stop| *stop).await;
            };
            let running = worker.run(move |job: Job| handler(job, crash.clone()), stopping);
            let ended = tokio::select! {
                biased;
                // What runs is dropped where it stands, as a process that is killed drops it.
                () = self.crash.asked.notified() => None,
                ended = running => Some(ended),
            };
            match ended {
                None => tally.crashes += 1,
                Some(Ok(report)) => {
                    tally.add(&Tally { crashes: 0, report });
                    return Ok(tally);
                }
                Some(Err(error)) => {
                    eprintln!("the worker on seat {} of {} gave up: {error}", self.number, self.shape.name);
                    return Err(error.into());
                }
            }
        }
    }

    fn worker(&self, crashes: u64) -> Result<Worker> {
        let name = format!("{}-{}", self.shape.name, self.number);
        let agent_id = if crashes == 0 { name } else { format!("{name}.{crashes}") };
        let client = Client::connect(Config::new(self.endpoints.clone()))?;
        let worker = Worker::builder(client).agent_id(agent_id).capabilities(self.shape.capabilities.clone());
        Ok(worker.capacity(self.shape.capacity).session_ttl(self.shape.ttl).build())
    }
}
