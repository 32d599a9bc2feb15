//! Disks that lose power, fill up, are slow, and fail.
//!
//! Each node has a file system of ours that forgets what was not synced: see [`crate::power`].

use std::time::Duration;

use anyhow::{Result, ensure};
use futures::future::BoxFuture;
use rustix::io::Errno;

use super::{Needs, Nemesis, pick};
use crate::cluster::LocalCluster;
use crate::power::{Lose, Which};
use crate::rng::Rng;
use crate::until::until;

/// How soon a node must have stopped that cannot write its log.
const STOPS: Duration = Duration::from_secs(20);

pub(super) fn all() -> Vec<Box<dyn Nemesis>> {
    vec![
        Box::new(Cut { all: false, torn: false, slow: false }),
        Box::new(Cut { all: true, torn: false, slow: false }),
        Box::new(Cut { all: true, torn: true, slow: false }),
        Box::new(Cut { all: true, torn: false, slow: true }),
        Box::new(SyncFails),
        Box::new(Slow),
        Box::new(Full),
    ]
}

/// How long a sync takes on a slow disk.
const SLOW: Duration = Duration::from_millis(300);

const POWER: Needs = Needs { wire: false, or_links: false, power: true, clock: false };

struct Cut {
    all: bool,
    torn: bool,
    /// Much is under way when it happens.
    slow: bool,
}

impl Nemesis for Cut {
    fn name(&self) -> &'static str {
        match (self.all, self.torn, self.slow) {
            (false, ..) => "power-one",
            (true, true, _) => "power-torn",
            (true, false, false) => "power-all",
            (true, false, true) => "power-slow",
        }
    }

    fn about(&self) -> &'static str {
        match (self.all, self.torn, self.slow) {
            (false, ..) => "the power of one node is cut: what it had not synced is gone",
            (true, true, _) => "the power of all nodes is cut at once, and the last writes are torn",
            (true, false, false) => "the power of all nodes is cut at once: what they had not synced is gone",
            (true, false, true) => "the same, after a second in which every sync took 300 ms",
        }
    }

    fn needs(&self) -> Needs {
        POWER
    }

    fn hold(&self, rng: &mut Rng) -> Duration {
        rng.millis(500, 2_000)
    }

    fn strike<'a>(&'a mut self, cluster: &'a mut LocalCluster, rng: &'a mut Rng) -> BoxFuture<'a, Result<String>> {
        Box::pin(async move {
            if self.slow {
                for node in cluster.running() {
                    cluster.power(node)?.slow_fsync(SLOW);
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            let struck = if self.all { cluster.running() } else { vec![pick(cluster, rng, false).await?] };
            // All at one moment, and only then are the disks looked at.
            match struck.as_slice() {
                [one] => cluster.kill(*one)?,
                _ => cluster.kill_all()?,
            }
            let mut said = Vec::new();
            for node in struck {
                let lose = if self.torn { Lose::Tail { seed: rng.next_u64() } } else { Lose::All };
                let lost = cluster.power(node)?.cut(lose)?;
                said.push(format!("node {node} lost {} bytes of {} files", lost.bytes, lost.files));
            }
            Ok(said.join(", "))
        })
    }

    fn heal<'a>(&'a mut self, cluster: &'a mut LocalCluster) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            for node in cluster.node_ids() {
                cluster.power(node)?.heal();
            }
            cluster.start_all().await
        })
    }
}

/// Nobody may go on after a sync that failed: what is on the disk is not known then.
struct SyncFails;

impl Nemesis for SyncFails {
    fn name(&self) -> &'static str {
        "fsync-error"
    }

    fn about(&self) -> &'static str {
        "fsync of one node's log fails: it must stop; its power is cut, and it is started again"
    }

    fn needs(&self) -> Needs {
        POWER
    }

    fn hold(&self, _rng: &mut Rng) -> Duration {
        Duration::ZERO
    }

    fn strike<'a>(&'a mut self, cluster: &'a mut LocalCluster, rng: &'a mut Rng) -> BoxFuture<'a, Result<String>> {
        Box::pin(async move {
            let node = pick(cluster, rng, false).await?;
            cluster.power(node)?.fail_fsync(Which::Wal, Errno::IO, 1);
            let mut looks = 0_u64;
            let stopped = until("it stops", STOPS, || {
                let exited = cluster.exited(node);
                looks += 1;
                async move { exited }
            });
            let stopped = stopped.await;
            cluster.kill(node)?;
            cluster.power(node)?.cut(Lose::All)?;
            ensure!(stopped.is_ok(), "node {node} went on after a sync of its log had failed, for {looks} looks");
            Ok(format!("a sync of node {node}'s log failed, and it stopped"))
        })
    }

    fn heal<'a>(&'a mut self, cluster: &'a mut LocalCluster) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            for node in cluster.node_ids() {
                cluster.power(node)?.heal();
            }
            cluster.start_all().await
        })
    }
}

struct Slow;

impl Nemesis for Slow {
    fn name(&self) -> &'static str {
        "slow-disk"
    }

    fn about(&self) -> &'static str {
        "every fsync of one node, the leader if there is one, takes 300 ms"
    }

    fn needs(&self) -> Needs {
        POWER
    }

    fn hold(&self, rng: &mut Rng) -> Duration {
        rng.millis(4_000, 8_000)
    }

    fn strike<'a>(&'a mut self, cluster: &'a mut LocalCluster, rng: &'a mut Rng) -> BoxFuture<'a, Result<String>> {
        Box::pin(async move {
            let node = pick(cluster, rng, true).await?;
            cluster.power(node)?.slow_fsync(SLOW);
            Ok(format!("each sync of node {node} takes 300 ms"))
        })
    }

    fn heal<'a>(&'a mut self, cluster: &'a mut LocalCluster) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            for node in cluster.node_ids() {
                cluster.power(node)?.heal();
            }
            Ok(())
        })
    }
}

/// At once, and not little by little: the node has no time to make room. It may stop; it must come back.
struct Full;

impl Nemesis for Full {
    fn name(&self) -> &'static str {
        "disk-full"
    }

    fn about(&self) -> &'static str {
        "one node's disk has no byte left, from one moment to the next"
    }

    fn needs(&self) -> Needs {
        POWER
    }

    fn strike<'a>(&'a mut self, cluster: &'a mut LocalCluster, rng: &'a mut Rng) -> BoxFuture<'a, Result<String>> {
        Box::pin(async move {
            let node = pick(cluster, rng, false).await?;
            cluster.power(node)?.full(0);
            Ok(format!("node {node}'s disk is full"))
        })
    }

    fn heal<'a>(&'a mut self, cluster: &'a mut LocalCluster) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            for node in cluster.node_ids() {
                cluster.power(node)?.heal();
                if cluster.exited(node)?.is_some() {
                    cluster.kill(node)?;
                }
            }
            cluster.start_all().await
        })
    }
}
