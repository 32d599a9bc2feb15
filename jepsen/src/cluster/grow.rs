//! Members that come and go, and nodes that are started otherwise than the rest.
//!
//! Owns no process: it changes what [`LocalCluster`] starts. Whether a process is a member is the cluster's word, not
//! the harness's: `quorate cluster add` and its like are for tests to call.
//!
//! Deliberately absent: growing a cluster with links. A new node would have none.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use anyhow::{Context, Result, bail};

use super::{LIMIT, LocalCluster, Node};
use crate::cli::{self, Ran};
use crate::disks::SmallDisk;
use crate::ports;
use crate::until::until;

/// How far a node's output was at some moment.
#[derive(Clone, Copy, Debug)]
pub struct Mark([u64; 2]);

const OUTPUTS: [&str; 2] = ["out", "err"];

impl LocalCluster {
    /// Gives a node its ports and the name of its folder, without starting it. Clients made from now on know its address.
    pub fn reserve(&mut self, id: u64) -> Result<()> {
        if self.links.is_some() || self.nodes.contains_key(&id) {
            bail!("node {id} is there already, or the cluster has links");
        }
        let ports = ports::free(2)?;
        let [grpc, http] = ports[..] else { bail!("wanted two ports, got {}", ports.len()) };
        let places = [grpc, grpc, http].map(|port| format!("127.0.0.1:{port}"));
        let binary = self.builder.binary.clone().context("no binary to start")?;
        let node = self.builder.node(id, places, Vec::new(), &binary, &self.dir);
        self.nodes.insert(id, node);
        self.mount(id)
    }

    /// Starts a node that joins those that run, reserved before or not, and waits until it answers. With nobody there,
    /// it is started as the only member.
    pub async fn add_process(&mut self, id: u64) -> Result<()> {
        if !self.nodes.contains_key(&id) {
            self.reserve(id)?;
        }
        let running = self.running();
        let mut peers = Vec::new();
        for member in running.iter().chain([&id]) {
            peers.extend(["--peer".to_owned(), self.member(*member)?]);
        }
        if !running.is_empty() {
            peers.push("--join".to_owned());
        }
        self.launch_anew(id, |node| node.launch.peers = peers)?;
        self.start(id)?;
        self.wait_live(id).await
    }

    /// Kills a node that is a member no more, and forgets it. Its data stays in the folder.
    pub fn forget(&mut self, id: u64) -> Result<()> {
        self.kill(id)?;
        self.nodes.remove(&id);
        self.disks.remove(&id);
        Ok(())
    }

    /// From its next start on, a stopped node runs this binary.
    pub fn with_binary(&mut self, id: u64, binary: impl Into<PathBuf>) -> Result<()> {
        self.launch_anew(id, |node| node.launch.binary = binary.into())
    }

    /// From its next start on, a stopped node has these arguments of its own, and no others of its own.
    pub fn with_args(&mut self, id: u64, args: impl IntoIterator<Item = impl Into<String>>) -> Result<()> {
        self.launch_anew(id, |node| node.launch.alone = args.into_iter().map(Into::into).collect())
    }

    /// The node as commands name it: `N=HOST:PORT`.
    pub fn member(&self, id: u64) -> Result<String> {
        Ok(format!("{id}={}", self.node(id)?.endpoint))
    }

    /// Where the node keeps its log and state.
    pub fn data_dir(&self, id: u64) -> Result<&Path> {
        Ok(&self.node(id)?.data_dir)
    }

    /// The node's own disk, in a cluster with small ones.
    pub fn disk(&self, id: u64) -> Result<&SmallDisk> {
        self.disks.get(&id).with_context(|| format!("node {id} has no disk of its own"))
    }

    /// Runs the command line against the nodes that run.
    pub async fn cli(&self, args: &[&str]) -> Result<Ran> {
        let endpoints = self.running().into_iter().map(|id| self.endpoint(id)).collect::<Result<Vec<_>>>()?;
        cli::quorate(&endpoints, args).await
    }

    /// How a started node ended by itself, if it did.
    pub fn exited(&mut self, id: u64) -> Result<Option<ExitStatus>> {
        self.node_mut(id)?.process.exited()
    }

    /// Waits until the node answers at all, ready or not.
    pub async fn wait_live(&self, id: u64) -> Result<()> {
        let http = self.http(id)?;
        let process = &self.node(id)?.process;
        let answers = until("the node answers", LIMIT, || async {
            Ok(crate::http::get(&http, "/health/live").await.ok().map(|_| ()))
        });
        answers.await.with_context(|| format!("node {id}\n{}", process.tail()))
    }

    /// How far the node's output is now.
    pub fn log_mark(&self, id: u64) -> Mark {
        Mark(OUTPUTS.map(|suffix| fs::metadata(self.log_path(id, suffix)).map_or(0, |meta| meta.len())))
    }

    /// What the node has said since.
    pub fn logs_since(&self, id: u64, mark: Mark) -> String {
        let mut said = String::new();
        for (suffix, from) in OUTPUTS.into_iter().zip(mark.0) {
            let whole = fs::read(self.log_path(id, suffix)).unwrap_or_default();
            let from = usize::try_from(from).unwrap_or(usize::MAX).min(whole.len());
            said.push_str(&String::from_utf8_lossy(&whole[from..]));
        }
        said
    }

    /// Mounts the node's disk, where each has one of its own.
    pub(super) fn mount(&mut self, id: u64) -> Result<()> {
        if let Some(bytes) = self.builder.disk_bytes {
            let disk = SmallDisk::mount(&self.node(id)?.data_dir, bytes)?;
            self.disks.insert(id, disk);
        }
        Ok(())
    }

    fn log_path(&self, id: u64, suffix: &str) -> PathBuf {
        self.dir.join(format!("node-{id}-log.{suffix}"))
    }

    /// Changes what a stopped node is started with.
    pub(super) fn launch_anew(&mut self, id: u64, change: impl FnOnce(&mut Node)) -> Result<()> {
        let root = self.dir.clone();
        let node = self.node_mut(id)?;
        if node.process.is_started() {
            bail!("node {id} runs: stop it before it is started otherwise");
        }
        change(node);
        node.process = node.launch.process(id, &root);
        Ok(())
    }
}
