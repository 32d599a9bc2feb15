//! Networks that are cut, lose, delay, reorder, and carry little.
//!
//! On the wire all of it is done to packets, with a real TCP at both ends. Where there is no wire, some cuts are done by
//! proxies on loopback, to connections.

use std::time::Duration;

use anyhow::Result;
use futures::future::BoxFuture;

use super::{Needs, Nemesis, pick};
use crate::cluster::LocalCluster;
use crate::rng::Rng;
use crate::wire::Links;

pub(super) fn all() -> Vec<Box<dyn Nemesis>> {
    let lines = [
        (Line::IsolateLeader, "isolate-leader", "the leader reaches no other node, and no other reaches it"),
        (Line::IsolateOne, "isolate-one", "one node reaches no other, and no other reaches it"),
        (Line::AloneFromAll, "isolate-from-all", "the leader is cut off from nodes and clients alike"),
        (Line::OneWay, "one-way", "one node is heard and hears nothing"),
        (Line::Pair, "pair", "two nodes do not reach each other; the third reaches both"),
        (Line::Ring, "ring", "each node is heard by the next one only"),
        (Line::NoMajority, "no-majority", "every link between nodes is cut"),
        (Line::Loss, "loss", "a fifth of all packets between nodes is lost"),
        (Line::HeavyLoss, "heavy-loss", "nine of ten packets of one node are lost"),
        (Line::Delay, "delay", "100 ms to 1 s on every way between nodes"),
        (Line::Reorder, "reorder", "a quarter of all packets is overtaken"),
        (Line::Slow, "slow-line", "one node's lines carry 64 KiB a second"),
        (Line::Flap, "flap", "one node's network goes down and up again, five times"),
    ];
    lines.into_iter().map(|(line, name, about)| Box::new(Bad { line, name, about }) as Box<dyn Nemesis>).collect()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Line {
    IsolateLeader,
    IsolateOne,
    AloneFromAll,
    OneWay,
    Pair,
    Ring,
    NoMajority,
    Loss,
    HeavyLoss,
    Delay,
    Reorder,
    Slow,
    Flap,
}

struct Bad {
    line: Line,
    name: &'static str,
    about: &'static str,
}

impl Nemesis for Bad {
    fn name(&self) -> &'static str {
        self.name
    }

    fn about(&self) -> &'static str {
        self.about
    }

    fn needs(&self) -> Needs {
        let links_do =
            matches!(self.line, Line::IsolateLeader | Line::IsolateOne | Line::OneWay | Line::Pair | Line::Ring);
        Needs { wire: true, or_links: links_do, ..Needs::default() }
    }

    fn strike<'a>(&'a mut self, cluster: &'a mut LocalCluster, rng: &'a mut Rng) -> BoxFuture<'a, Result<String>> {
        Box::pin(async move {
            let leader = matches!(self.line, Line::IsolateLeader | Line::AloneFromAll);
            let node = pick(cluster, rng, leader).await?;
            if cluster.links().is_ok() {
                return self.strike_links(cluster, node);
            }
            self.strike_wire(cluster, node).await
        })
    }

    fn heal<'a>(&'a mut self, cluster: &'a mut LocalCluster) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            match cluster.links() {
                Ok(links) => links.heal(),
                Err(_) => cluster.wire()?.heal(),
            }
            Ok(())
        })
    }
}

impl Bad {
    fn strike_links(&self, cluster: &LocalCluster, node: u64) -> Result<String> {
        let links = cluster.links()?;
        match self.line {
            Line::OneWay => links.one_way(node),
            Line::Pair => links.bridge(node),
            Line::Ring => links.ring(),
            _ => links.isolate(node),
        }
        Ok(format!("{} about node {node}, by proxies", self.name))
    }

    async fn strike_wire(&self, cluster: &LocalCluster, node: u64) -> Result<String> {
        let wire = cluster.wire()?;
        let ms = Duration::from_millis;
        match self.line {
            Line::IsolateLeader | Line::IsolateOne => wire.isolate(node),
            Line::AloneFromAll => wire.isolate_from_all(node),
            Line::OneWay => wire.one_way(node),
            // Who is left in the middle reaches both.
            Line::Pair => wire.bridge(node),
            Line::Ring => wire.ring(),
            Line::NoMajority => cluster.node_ids().into_iter().for_each(|id| wire.isolate(id)),
            Line::Loss => wire.loss(Links::All, 0.2),
            Line::HeavyLoss => wire.loss(Links::Of(node), 0.9),
            Line::Delay => wire.delay(Links::All, ms(100), ms(900)),
            Line::Reorder => wire.reorder(Links::All, 0.25),
            Line::Slow => wire.rate(Links::Of(node), 64 << 10),
            Line::Flap => {
                for _ in 0..5 {
                    wire.down(node);
                    tokio::time::sleep(ms(300)).await;
                    wire.up(node);
                    tokio::time::sleep(ms(300)).await;
                }
            }
        }
        Ok(format!("{} about node {node}", self.name))
    }
}
