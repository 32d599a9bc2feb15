//! The workloads at work: each with its own record and its own workers, all told to stop at one moment.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::plan::Plan;
use crate::record::{History, Recorder};
use crate::workload::{Context, Workload};

/// Setting up, without faults.
const PREPARE: Duration = Duration::from_secs(60);
/// A worker looks at the stop between two operations.
const STOP: Duration = Duration::from_secs(60);
/// Draining what is left.
const FINISH: Duration = Duration::from_secs(180);

/// Workloads at work.
pub struct Clients {
    all: Vec<Client>,
    stop: watch::Sender<bool>,
}

struct Client {
    workload: Arc<dyn Workload>,
    context: Context,
    workers: JoinSet<Result<()>>,
}

/// One workload when all is over.
pub struct Done {
    /// Which.
    pub workload: Arc<dyn Workload>,
    /// What it recorded.
    pub history: History,
}

impl Clients {
    /// Prepares every workload, then starts all workers. `began` is the moment that is 0 in every record.
    pub async fn start(plan: &Plan, endpoints: Vec<String>, began: Instant) -> Result<Self> {
        let (stop, stopped) = watch::channel(false);
        let mut all = Vec::new();
        for (workload, number) in plan.workloads.iter().zip(0_u64..) {
            let recorder = Recorder::create(&plan.dir.join(file_of(workload.name())), began)?;
            let context = Context {
                endpoints: endpoints.clone(),
                prefix: format!("r{:x}", plan.seed & 0xffff_ffff),
                seed: plan.seed ^ number.wrapping_mul(0xd134_2543_de82_ef95),
                workers: plan.workers,
                pace: plan.pace,
                recorder,
                stop: stopped.clone(),
            };
            let prepared = tokio::time::timeout(PREPARE, workload.prepare(context.clone())).await;
            prepared.context("it took too long")?.with_context(|| format!("{} is not prepared", workload.name()))?;
            all.push(Client { workload: workload.clone(), context, workers: JoinSet::new() });
        }
        for client in &mut all {
            for worker in 0..plan.workers {
                let (workload, context) = (client.workload.clone(), client.context.clone());
                client.workers.spawn(async move { workload.work(context, worker).await });
            }
        }
        Ok(Self { all, stop })
    }

    /// How far they are, in a few words.
    pub fn line(&self) -> String {
        let sizes =
            self.all.iter().map(|client| format!("{} {}", client.workload.name(), client.context.recorder.len()));
        sizes.collect::<Vec<_>>().join(", ")
    }

    /// Tells all workers to stop, and lets every workload read what is left. What goes wrong is a problem of the run.
    pub async fn stop_and_drain(self, problems: &mut Vec<String>) -> Vec<Done> {
        self.stop.send_replace(true);
        let mut finishing = JoinSet::new();
        for client in self.all {
            finishing.spawn(client.finish());
        }
        let mut done = Vec::new();
        while let Some(finished) = finishing.join_next().await {
            match finished {
                Ok((workload, history, faults)) => {
                    problems.extend(faults);
                    match history {
                        Ok(history) => done.push(Done { workload, history }),
                        Err(error) => problems.push(format!("{}: {error:#}", workload.name())),
                    }
                }
                Err(error) => problems.push(format!("a workload panicked: {error}")),
            }
        }
        done.sort_by_key(|done| done.workload.name());
        done
    }
}

impl Client {
    async fn finish(mut self) -> (Arc<dyn Workload>, Result<History>, Vec<String>) {
        let name = self.workload.name();
        let mut faults = Vec::new();
        let all_stop = async {
            let mut faults = Vec::new();
            while let Some(ended) = self.workers.join_next().await {
                match ended {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => faults.push(format!("{name}: a worker gave up: {error:#}")),
                    Err(error) => faults.push(format!("{name}: a worker panicked: {error}")),
                }
            }
            faults
        };
        match tokio::time::timeout(STOP, all_stop).await {
            Ok(said) => faults.extend(said),
            Err(_) => faults.push(format!("{name}: its workers do not stop")),
        }
        match tokio::time::timeout(FINISH, self.workload.finish(self.context.clone())).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => faults.push(format!("{name}: could not be drained: {error:#}")),
            Err(_) => faults.push(format!("{name}: could not be drained in {} s", FINISH.as_secs())),
        }
        (self.workload, self.context.recorder.history(), faults)
    }
}

/// The name of a workload's record in the folder of a run.
pub fn file_of(workload: &str) -> String {
    format!("history-{workload}.jsonl")
}
