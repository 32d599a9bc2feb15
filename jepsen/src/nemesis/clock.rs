//! Wall clocks that jump and run fast. Monotonic clocks stay right: no operator can set those.

use std::time::Duration;

use anyhow::Result;
use futures::future::BoxFuture;

use super::{Needs, Nemesis};
use crate::cluster::LocalCluster;
use crate::rng::Rng;

const HOUR_S: i64 = 3_600;

pub(super) fn all() -> Vec<Box<dyn Nemesis>> {
    vec![Box::new(Jump { with_failover: false }), Box::new(Jump { with_failover: true }), Box::new(Rate)]
}

struct Jump {
    with_failover: bool,
}

impl Nemesis for Jump {
    fn name(&self) -> &'static str {
        if self.with_failover { "clock-jump-failover" } else { "clock-jump" }
    }

    fn about(&self) -> &'static str {
        if self.with_failover {
            "every wall clock jumps by up to an hour, each its own way, and the leader is killed"
        } else {
            "every wall clock jumps by up to an hour, each its own way"
        }
    }

    fn needs(&self) -> Needs {
        Needs { clock: true, ..Needs::default() }
    }

    fn hold(&self, rng: &mut Rng) -> Duration {
        rng.millis(2_000, 4_000)
    }

    fn strike<'a>(&'a mut self, cluster: &'a mut LocalCluster, rng: &'a mut Rng) -> BoxFuture<'a, Result<String>> {
        Box::pin(async move {
            let mut said = Vec::new();
            for node in cluster.node_ids() {
                let range = u64::try_from(2 * HOUR_S).unwrap_or_default();
                let by = i64::try_from(rng.below(range)).unwrap_or_default() - HOUR_S;
                cluster.clock(node)?.jump(by)?;
                said.push(format!("node {node} by {by} s"));
            }
            if self.with_failover {
                let leader = cluster.leader().await?;
                cluster.kill(leader)?;
                said.push(format!("leader {leader} killed"));
            }
            Ok(said.join(", "))
        })
    }

    fn heal<'a>(&'a mut self, cluster: &'a mut LocalCluster) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            for node in cluster.node_ids() {
                cluster.clock(node)?.heal()?;
            }
            cluster.start_all().await
        })
    }
}

struct Rate;

impl Nemesis for Rate {
    fn name(&self) -> &'static str {
        "clock-rate"
    }

    fn about(&self) -> &'static str {
        "one wall clock runs five times as fast"
    }

    fn needs(&self) -> Needs {
        Needs { clock: true, ..Needs::default() }
    }

    fn strike<'a>(&'a mut self, cluster: &'a mut LocalCluster, rng: &'a mut Rng) -> BoxFuture<'a, Result<String>> {
        Box::pin(async move {
            let node = super::pick(cluster, rng, true).await?;
            cluster.clock(node)?.rate(5.0)?;
            Ok(format!("node {node} five times as fast"))
        })
    }

    fn heal<'a>(&'a mut self, cluster: &'a mut LocalCluster) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            for node in cluster.node_ids() {
                cluster.clock(node)?.heal()?;
            }
            Ok(())
        })
    }
}
