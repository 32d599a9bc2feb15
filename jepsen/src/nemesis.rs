//! Nemeses: what is done to a cluster while clients are at work, each with what undoes it.
//!
//! - `process`: kill, pause, restart. `network`: cuts and bad lines. `disk`: power, space, errors, damage.
//! - `clock`: wall clocks that jump and run. `members`: nodes that lose their disk, and members that come and go.
//!
//! A nemesis makes its choices by the seed it is given, and says what it did in words: that goes into a file of its own,
//! beside the histories, where no checker looks.
//!
//! Invariant: after `heal` nothing of the fault is left, and every node runs.
//!
//! Deliberately absent: when it strikes, and for how long. The run says that.

mod clock;
mod disk;
mod members;
mod network;
mod process;

use std::time::Duration;

use anyhow::Result;
use futures::future::BoxFuture;

use crate::cluster::LocalCluster;
use crate::rng::Rng;

/// What a cluster must be built with for a nemesis to work on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Namespaces joined by our own switch; without them some of it can be done by proxies ([`Needs::or_links`]).
    pub wire: bool,
    /// Proxies on loopback will do.
    pub or_links: bool,
    /// Data directories that can lose what was not synced.
    pub power: bool,
    /// Wall clocks that can be set.
    pub clock: bool,
}

/// One way to do harm.
pub trait Nemesis: Send {
    /// What it is called on the command line and in reports.
    fn name(&self) -> &'static str;

    /// One sentence for `list`.
    fn about(&self) -> &'static str;

    /// What the cluster must have.
    fn needs(&self) -> Needs {
        Needs::default()
    }

    /// How long the fault stays before it is healed.
    fn hold(&self, rng: &mut Rng) -> Duration {
        rng.millis(2_000, 5_000)
    }

    /// Begins a fault, and says what it did.
    fn strike<'a>(&'a mut self, cluster: &'a mut LocalCluster, rng: &'a mut Rng) -> BoxFuture<'a, Result<String>>;

    /// Ends it.
    fn heal<'a>(&'a mut self, cluster: &'a mut LocalCluster) -> BoxFuture<'a, Result<()>>;
}

/// Every nemesis there is, by name. What is done at random is made of these ([`mixed`]).
pub fn all() -> Vec<Box<dyn Nemesis>> {
    let mut all: Vec<Box<dyn Nemesis>> = Vec::new();
    all.extend(process::all());
    all.extend(network::all());
    all.extend(disk::all());
    all.extend(clock::all());
    all.extend(members::all());
    all
}

/// One of that name.
pub fn named(name: &str) -> Option<Box<dyn Nemesis>> {
    all().into_iter().find(|nemesis| nemesis.name() == name)
}

/// One of several at each strike, chosen by the seed.
pub fn mixed(of: Vec<Box<dyn Nemesis>>) -> Box<dyn Nemesis> {
    Box::new(Mixed { of, now: 0 })
}

struct Mixed {
    of: Vec<Box<dyn Nemesis>>,
    now: usize,
}

impl Nemesis for Mixed {
    fn name(&self) -> &'static str {
        "mixed"
    }

    fn about(&self) -> &'static str {
        "one of the others at each strike"
    }

    fn needs(&self) -> Needs {
        self.of.iter().map(|one| one.needs()).fold(Needs::default(), Needs::and)
    }

    fn hold(&self, rng: &mut Rng) -> Duration {
        self.of.get(self.now).map_or(Duration::ZERO, |one| one.hold(rng))
    }

    fn strike<'a>(&'a mut self, cluster: &'a mut LocalCluster, rng: &'a mut Rng) -> BoxFuture<'a, Result<String>> {
        self.now = rng.below(self.of.len() as u64) as usize;
        match self.of.get_mut(self.now) {
            Some(one) => {
                let name = one.name();
                let struck = one.strike(cluster, rng);
                Box::pin(async move { Ok(format!("{name}: {}", struck.await?)) })
            }
            None => Box::pin(async { Ok("nothing".to_owned()) }),
        }
    }

    fn heal<'a>(&'a mut self, cluster: &'a mut LocalCluster) -> BoxFuture<'a, Result<()>> {
        match self.of.get_mut(self.now) {
            Some(one) => one.heal(cluster),
            None => Box::pin(async { Ok(()) }),
        }
    }
}

impl Needs {
    /// What both need: where one cannot do with proxies, both get the real thing.
    pub fn and(self, other: Self) -> Self {
        let firm = |needs: &Needs| needs.wire && !needs.or_links;
        Needs {
            wire: self.wire || other.wire,
            or_links: (self.or_links || other.or_links) && !firm(&self) && !firm(&other),
            power: self.power || other.power,
            clock: self.clock || other.clock,
        }
    }
}

/// One of the running nodes, or the leader, as soon as there is one.
async fn pick(cluster: &LocalCluster, rng: &mut Rng, leader: bool) -> Result<u64> {
    if leader {
        return cluster.leader().await;
    }
    let running = cluster.running();
    let place = rng.below(running.len() as u64) as usize;
    running.get(place).copied().ok_or_else(|| anyhow::anyhow!("no node is running"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_names_of_one() {
        let names: Vec<&str> = all().iter().map(|one| one.name()).collect();
        assert_eq!(names.len(), names.iter().collect::<BTreeSet<_>>().len(), "{names:?}");
        assert!(names.iter().all(|name| named(name).is_some()));
        assert!(named("nobody").is_none());
    }

    #[test]
    fn who_cannot_do_with_proxies_decides() {
        let proxies = Needs { wire: true, or_links: true, ..Needs::default() };
        let wire = Needs { wire: true, ..Needs::default() };
        assert!(proxies.and(Needs::default()).or_links);
        assert!(!proxies.and(wire).or_links);
        assert!(!wire.and(proxies).or_links);
    }
}
