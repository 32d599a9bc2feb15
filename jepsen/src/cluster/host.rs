//! What a node stands on, where it is to be faulty: a network of its own, a disk whose power can be cut, a clock that can be
//! set, an environment.
//!
//! Deliberately absent: when it fails. That is for nemeses and tests.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{Builder, LocalCluster};
use crate::clock::WallClock;
use crate::power::PowerDisk;
use crate::until::until;
use crate::wire::Wire;

impl Builder {
    /// Puts each node into a network namespace of its own, joined by our own switch: see [`crate::wire`]. The seed is of
    /// what it loses and delays.
    pub fn with_wire(mut self, seed: u64) -> Self {
        self.with_wire = Some(seed);
        self
    }

    /// Gives each node a disk that can lose what was not synced: see [`crate::power`].
    pub fn with_power(mut self) -> Self {
        self.with_power = true;
        self
    }

    /// Gives each node a wall clock that can be set: see [`crate::clock`].
    pub fn with_clocks(mut self) -> Self {
        self.with_clocks = true;
        self
    }

    /// Sets a variable in the environment of every node, or, of a name such as `NAME@2`, of node 2 alone.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// What the environment of a node says.
    pub(super) fn env_of(&self, id: u64) -> Vec<(String, String)> {
        let meant = self.env.iter().filter_map(|(name, value)| match name.split_once('@') {
            None => Some((name.clone(), value.clone())),
            Some((name, node)) => (node == id.to_string()).then(|| (name.to_owned(), value.clone())),
        });
        meant.collect()
    }

    /// The address of a node.
    pub(super) fn host(&self, id: u64) -> String {
        if self.with_wire.is_some() { Wire::address(id).to_string() } else { "127.0.0.1".to_owned() }
    }
}

impl LocalCluster {
    /// The network between the nodes, in a cluster that was started with one.
    pub fn wire(&self) -> Result<&Wire> {
        self.wire.as_ref().context("this cluster was started without a wire")
    }

    /// The node's disk, in a cluster that was started with such.
    pub fn power(&self, id: u64) -> Result<&PowerDisk> {
        self.power.get(&id).with_context(|| format!("node {id} has no disk whose power can be cut"))
    }

    /// The node's wall clock, in a cluster that was started with such.
    pub fn clock(&self, id: u64) -> Result<&WallClock> {
        self.clocks.get(&id).with_context(|| format!("node {id} has no clock that can be set"))
    }

    /// From its next start on, the variable is in a stopped node's environment; with `None`, it is not.
    pub fn with_node_env(&mut self, id: u64, name: &str, value: Option<&str>) -> Result<()> {
        self.launch_anew(id, |node| {
            node.launch.env.retain(|(known, _)| known != name);
            node.launch.env.extend(value.map(|value| (name.to_owned(), value.to_owned())));
        })
    }

    /// Starts every node that does not run, be it that it ended by itself, and waits until all are ready.
    pub async fn revive(&mut self) -> Result<()> {
        for id in self.node_ids() {
            if self.exited(id)?.is_some() {
                self.kill(id)?;
            }
        }
        self.start_all().await
    }

    /// Removes all that is on a stopped node's disk.
    pub fn empty(&mut self, id: u64) -> Result<()> {
        let node = self.node(id)?;
        if node.process.is_started() {
            bail!("node {id} runs: stop it before its data is removed");
        }
        empty(&node.data_dir)
    }

    /// Waits until every node runs, is ready, and has applied what the leader had when it was first asked.
    pub async fn wait_caught_up(&self, limit: Duration) -> Result<()> {
        let leader = self.leader().await?;
        let wanted = self.status(leader).await?.applied_index;
        for id in self.node_ids() {
            until(&format!("node {id} has caught up"), limit, || async {
                Ok(self.status(id).await.ok().filter(|status| status.applied_index >= wanted).map(|_| ()))
            })
            .await?;
        }
        Ok(())
    }

    /// Starts the wire, if there is to be one, and moves every node onto it.
    pub(super) fn join_by_wire(&mut self) -> Result<()> {
        let Some(seed) = self.builder.with_wire else { return Ok(()) };
        let wire = Wire::start(&self.node_ids(), seed)?;
        for id in self.node_ids() {
            let through = wire.command(id);
            self.launch_anew(id, |node| node.launch.through = through)?;
        }
        self.wire = Some(wire);
        Ok(())
    }

    /// Gives the node its disk and its clock, if it is to have such.
    pub(super) fn equip(&mut self, id: u64) -> Result<()> {
        if self.builder.with_power {
            let disk = PowerDisk::mount(self.data_dir(id)?)?;
            self.power.insert(id, disk);
        }
        if self.builder.with_clocks {
            let clock = WallClock::new(&self.dir.join(format!("node-{id}-clock")))?;
            let env = clock.environment();
            self.launch_anew(id, |node| node.launch.env.extend(env))?;
            self.clocks.insert(id, clock);
        }
        Ok(())
    }
}

fn empty(dir: &Path) -> Result<()> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())?;
        } else {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
