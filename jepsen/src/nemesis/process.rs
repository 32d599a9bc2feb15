//! Processes that die, freeze and are restarted.

use std::time::Duration;

use anyhow::Result;
use futures::future::BoxFuture;
use rustix::process::{Pid, Signal, kill_process};

use super::{Nemesis, pick};
use crate::cluster::LocalCluster;
use crate::rng::Rng;

pub(super) fn all() -> Vec<Box<dyn Nemesis>> {
    vec![
        Box::new(Kill { who: Who::One }),
        Box::new(Kill { who: Who::Leader }),
        Box::new(Kill { who: Who::All }),
        Box::new(Pause { leader: false, frozen: Vec::new() }),
        Box::new(Pause { leader: true, frozen: Vec::new() }),
        Box::new(Roll),
    ]
}

#[derive(Clone, Copy)]
enum Who {
    One,
    Leader,
    All,
}

struct Kill {
    who: Who,
}

impl Nemesis for Kill {
    fn name(&self) -> &'static str {
        match self.who {
            Who::One => "kill-one",
            Who::Leader => "kill-leader",
            Who::All => "kill-all",
        }
    }

    fn about(&self) -> &'static str {
        match self.who {
            Who::One => "kill -9 of one node, started again after a while",
            Who::Leader => "kill -9 of the leader, started again after a while",
            Who::All => "kill -9 of every node at once",
        }
    }

    fn hold(&self, rng: &mut Rng) -> Duration {
        rng.millis(500, 3_000)
    }

    fn strike<'a>(&'a mut self, cluster: &'a mut LocalCluster, rng: &'a mut Rng) -> BoxFuture<'a, Result<String>> {
        Box::pin(async move {
            if matches!(self.who, Who::All) {
                cluster.kill_all()?;
                return Ok("all nodes killed".to_owned());
            }
            let node = pick(cluster, rng, matches!(self.who, Who::Leader)).await?;
            cluster.kill(node)?;
            Ok(format!("node {node} killed"))
        })
    }

    fn heal<'a>(&'a mut self, cluster: &'a mut LocalCluster) -> BoxFuture<'a, Result<()>> {
        Box::pin(cluster.start_all())
    }
}

struct Pause {
    leader: bool,
    frozen: Vec<u32>,
}

impl Nemesis for Pause {
    fn name(&self) -> &'static str {
        if self.leader { "pause-leader" } else { "pause-one" }
    }

    fn about(&self) -> &'static str {
        if self.leader { "SIGSTOP of the leader, then SIGCONT" } else { "SIGSTOP of one node, then SIGCONT" }
    }

    fn strike<'a>(&'a mut self, cluster: &'a mut LocalCluster, rng: &'a mut Rng) -> BoxFuture<'a, Result<String>> {
        Box::pin(async move {
            let node = pick(cluster, rng, self.leader).await?;
            let pid = cluster.pid(node)?;
            signal(pid, Signal::STOP)?;
            self.frozen.push(pid);
            Ok(format!("node {node} frozen"))
        })
    }

    fn heal<'a>(&'a mut self, _cluster: &'a mut LocalCluster) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move { self.frozen.drain(..).try_for_each(|pid| signal(pid, Signal::CONT)) })
    }
}

fn signal(pid: u32, signal: Signal) -> Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| anyhow::anyhow!("no process has this id"))?;
    Ok(kill_process(pid, signal)?)
}

/// As an operator would: one after the other, each ready before the next.
struct Roll;

impl Nemesis for Roll {
    fn name(&self) -> &'static str {
        "rolling-restart"
    }

    fn about(&self) -> &'static str {
        "SIGTERM of each node in turn, each back before the next"
    }

    fn hold(&self, _rng: &mut Rng) -> Duration {
        Duration::ZERO
    }

    fn strike<'a>(&'a mut self, cluster: &'a mut LocalCluster, _rng: &'a mut Rng) -> BoxFuture<'a, Result<String>> {
        Box::pin(async move {
            for node in cluster.node_ids() {
                cluster.terminate(node).await?;
                cluster.restart(node).await?;
            }
            Ok("every node stopped and started in turn".to_owned())
        })
    }

    fn heal<'a>(&'a mut self, _cluster: &'a mut LocalCluster) -> BoxFuture<'a, Result<()>> {
        Box::pin(async { Ok(()) })
    }
}
