//! Nodes that lose their disk, and leaders that are moved.

use std::time::Duration;

use anyhow::Result;
use futures::future::BoxFuture;

use super::{Nemesis, pick};
use crate::cluster::LocalCluster;
use crate::rng::Rng;

pub(super) fn all() -> Vec<Box<dyn Nemesis>> {
    vec![Box::new(Wipe), Box::new(HandOver)]
}

struct Wipe;

impl Nemesis for Wipe {
    fn name(&self) -> &'static str {
        "wipe-one"
    }

    fn about(&self) -> &'static str {
        "kill -9 of one node, whose disk comes back empty"
    }

    fn hold(&self, rng: &mut Rng) -> Duration {
        rng.millis(500, 2_000)
    }

    fn strike<'a>(&'a mut self, cluster: &'a mut LocalCluster, rng: &'a mut Rng) -> BoxFuture<'a, Result<String>> {
        Box::pin(async move {
            let node = pick(cluster, rng, false).await?;
            cluster.kill(node)?;
            cluster.empty(node)?;
            Ok(format!("node {node} killed and wiped"))
        })
    }

    fn heal<'a>(&'a mut self, cluster: &'a mut LocalCluster) -> BoxFuture<'a, Result<()>> {
        // Two lost disks at once would be a lost majority: nobody is struck before this one is whole again.
        Box::pin(async move {
            cluster.start_all().await?;
            cluster.wait_caught_up(Duration::from_secs(60)).await
        })
    }
}

struct HandOver;

impl Nemesis for HandOver {
    fn name(&self) -> &'static str {
        "hand-over"
    }

    fn about(&self) -> &'static str {
        "leadership is moved to another node, several times"
    }

    fn hold(&self, _rng: &mut Rng) -> Duration {
        Duration::from_millis(500)
    }

    fn strike<'a>(&'a mut self, cluster: &'a mut LocalCluster, rng: &'a mut Rng) -> BoxFuture<'a, Result<String>> {
        Box::pin(async move {
            let mut moved = Vec::new();
            for _ in 0..3 {
                let to = pick(cluster, rng, false).await?;
                let answer = cluster.client()?.cluster().transfer_leader(to).await;
                moved.push(format!("to {to}: {}", if answer.is_ok() { "done" } else { "refused" }));
            }
            Ok(moved.join(", "))
        })
    }

    fn heal<'a>(&'a mut self, _cluster: &'a mut LocalCluster) -> BoxFuture<'a, Result<()>> {
        Box::pin(async { Ok(()) })
    }
}
