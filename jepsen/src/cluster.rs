//! A cluster of real `quorate serve` processes on loopback.
//!
//! Owns the processes, their ports and their folder. `close` is how a successful run ends; a cluster that is dropped
//! without it (a panic, an error on the way) leaves its folder behind and prints where.
//!
//! Members that come and go, and nodes that are started otherwise than the rest: `grow`.
//!
//! Networks, disks and clocks that can be faulty, where they are asked for: `host`.
//!
//! Deliberately absent: faults that nobody asked for. Otherwise these nodes can only be stopped, wiped and started.

mod grow;
mod host;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::future::join_all;
use quorate_client::{Client, Config};
use quorate_proto::v1::NodeStatusResponse;
use tempfile::TempDir;

use crate::clock::WallClock;
use crate::disks::SmallDisk;
use crate::links::{Links, Route};
use crate::power::PowerDisk;
use crate::process::Process;
use crate::status::node_status;
use crate::until::until;
use crate::wire::Wire;
use crate::{binary, ports};

pub use grow::Mark;

/// How long a start, an election or a graceful stop may take on a busy machine before it counts as broken.
const LIMIT: Duration = Duration::from_secs(30);

/// Chooses what to start.
#[derive(Clone, Debug)]
pub struct Builder {
    nodes: u64,
    binary: Option<PathBuf>,
    dir: Option<PathBuf>,
    extra_args: Vec<String>,
    first_args: Vec<String>,
    with_links: bool,
    cluster_id: String,
    disk_bytes: Option<u64>,
    with_wire: Option<u64>,
    with_power: bool,
    with_clocks: bool,
    env: Vec<(String, String)>,
}

/// One node.
#[derive(Debug)]
struct Node {
    process: Process,
    launch: Launch,
    /// Where other nodes and clients reach it.
    endpoint: String,
    /// Where it listens: the same, unless there is a link in front of it.
    listen: String,
    http: String,
    data_dir: PathBuf,
}

/// What a node is started with, in parts, so that one of them can be changed.
#[derive(Clone, Debug)]
struct Launch {
    binary: PathBuf,
    /// Who it is, and where.
    own: Vec<String>,
    /// Who the members are, itself included.
    peers: Vec<String>,
    /// What else is said to every node.
    extra: Vec<String>,
    /// What is said to this one alone.
    alone: Vec<String>,
    /// The program that starts it, with its arguments, if there is one between.
    through: Vec<String>,
    /// What its environment says.
    env: Vec<(String, String)>,
}

/// A running cluster.
#[derive(Debug)]
pub struct LocalCluster {
    // Before disks and folder: processes must be gone when these are removed.
    nodes: BTreeMap<u64, Node>,
    disks: BTreeMap<u64, SmallDisk>,
    power: BTreeMap<u64, PowerDisk>,
    clocks: BTreeMap<u64, WallClock>,
    wire: Option<Wire>,
    /// How it was asked for: what comes later is like what was there first.
    builder: Builder,
    links: Option<Links>,
    dir: PathBuf,
    temp: Option<TempDir>,
}

impl Builder {
    /// How many nodes; 3 unless said otherwise. None at all is a beginning too: see [`LocalCluster::reserve`].
    pub fn nodes(mut self, nodes: u64) -> Self {
        self.nodes = nodes;
        self
    }

    /// The server binary; otherwise the one beside the current executable.
    pub fn binary(mut self, path: impl Into<PathBuf>) -> Self {
        self.binary = Some(path.into());
        self
    }

    /// An empty folder for data and logs; otherwise a temporary one.
    pub fn dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.dir = Some(path.into());
        self
    }

    /// More arguments for every `quorate serve`.
    pub fn extra_args(mut self, args: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.extra_args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Arguments of every node for a beginning: [`LocalCluster::with_args`] takes them back, one node at a time.
    pub fn first_args(mut self, args: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.first_args.extend(args.into_iter().map(Into::into));
        self
    }

    /// The cluster's name; "harness" unless said otherwise.
    pub fn cluster_id(mut self, cluster_id: impl Into<String>) -> Self {
        self.cluster_id = cluster_id.into();
        self
    }

    /// Gives each node a disk of its own of so many bytes: see [`crate::disks`].
    pub fn small_disks(mut self, bytes: u64) -> Self {
        self.disk_bytes = Some(bytes);
        self
    }

    /// Puts a link that can be cut in front of each node: see [`crate::links`]. Linux only.
    pub fn with_links(mut self) -> Self {
        self.with_links = true;
        self
    }

    /// Starts all nodes and waits until each is ready. A port taken in the meantime costs one more try.
    pub async fn start(self) -> Result<LocalCluster> {
        match self.start_once().await {
            Err(error) if names_taken_port(&error) => {
                eprintln!("a port was taken in the meantime, starting once more");
                self.forget_first_try()?;
                self.start_once().await
            }
            started => started,
        }
    }

    async fn start_once(&self) -> Result<LocalCluster> {
        let binary = self.binary.clone().map_or_else(binary::quorate, Ok)?;
        let temp = match self.dir {
            Some(_) => None,
            None => Some(tempfile::Builder::new().prefix("quorate-").tempdir()?),
        };
        let root = match (&self.dir, &temp) {
            (Some(dir), _) => dir.clone(),
            (None, Some(temp)) => temp.path().to_owned(),
            (None, None) => bail!("no folder for the cluster"),
        };
        std::fs::create_dir_all(&root)?;
        let (nodes, links) = self.describe(&binary, &root)?;
        let builder = Builder { binary: Some(binary), ..self.clone() };
        let (disks, power, clocks, wire) = Default::default();
        let mut cluster = LocalCluster { nodes, disks, power, clocks, wire, builder, links, dir: root, temp };
        cluster.join_by_wire()?;
        for id in cluster.node_ids() {
            cluster.mount(id)?;
            cluster.equip(id)?;
        }
        cluster.start_all().await?;
        Ok(cluster)
    }

    /// The first try may have written the ports that did not work into the data of the other nodes.
    fn forget_first_try(&self) -> Result<()> {
        let Some(root) = &self.dir else { return Ok(()) };
        for id in 1..=self.nodes {
            // `describe` made sure that this folder was not there before.
            let data_dir = root.join(format!("node-{id}"));
            if data_dir.exists() {
                std::fs::remove_dir_all(&data_dir)?;
            }
        }
        Ok(())
    }

    fn describe(&self, binary: &Path, root: &Path) -> Result<(BTreeMap<u64, Node>, Option<Links>)> {
        let count = usize::try_from(self.nodes)?;
        let ports = ports::free(count * 3)?;
        let (inner, others) = ports.split_at(count);
        let (http, outer) = others.split_at(count);
        let outer = if self.with_links { outer } else { inner };
        let peers: Vec<String> = (1..=self.nodes)
            .zip(outer)
            .flat_map(|(id, port)| ["--peer".into(), format!("{id}={}:{port}", self.host(id))])
            .collect();
        let mut nodes = BTreeMap::new();
        let mut routes = Vec::new();
        for (((id, inner), outer), http) in (1..=self.nodes).zip(inner).zip(outer).zip(http) {
            let places = [outer, inner, http].map(|port| format!("{}:{port}", self.host(id)));
            let node = self.node(id, places, peers.clone(), binary, root);
            if node.data_dir.exists() {
                bail!("{} exists already: a cluster needs an empty folder", node.data_dir.display());
            }
            nodes.insert(id, node);
            routes.push(Route { node: id, outer: *outer, inner: *inner });
        }
        let links = if self.with_links { Some(Links::start(&routes)?) } else { None };
        Ok((nodes, links))
    }

    /// One node, not started: reached at the first of these places, listening at the second, HTTP at the third.
    fn node(&self, id: u64, places: [String; 3], peers: Vec<String>, binary: &Path, root: &Path) -> Node {
        let [endpoint, listen, http] = places;
        let data_dir = root.join(format!("node-{id}"));
        let mut own: Vec<String> = vec!["serve".into(), "--node-id".into(), id.to_string()];
        own.extend(["--cluster-id".into(), self.cluster_id.clone()]);
        own.extend(["--data-dir".into(), data_dir.display().to_string()]);
        own.extend(["--listen".into(), listen.clone(), "--http-listen".into(), http.clone()]);
        let (extra, alone, env) = (self.extra_args.clone(), self.first_args.clone(), self.env_of(id));
        let launch = Launch { binary: binary.to_owned(), own, peers, extra, alone, through: Vec::new(), env };
        Node { process: launch.process(id, root), launch, endpoint, listen, http, data_dir }
    }
}

impl Launch {
    fn process(&self, id: u64, root: &Path) -> Process {
        let args = [&self.own, &self.peers, &self.extra, &self.alone].into_iter().flatten().cloned();
        let program = self.binary.display().to_string();
        let mut line: Vec<String> = self.through.iter().cloned().chain([program]).chain(args).collect();
        let first = line.remove(0);
        let process = Process::new(format!("node-{id}-log"), Path::new(&first), line, root);
        self.env.iter().fold(process, |process, (name, value)| process.with_env(name, value))
    }
}

/// The leader this node knows. From its liveness page, which answers at once; a node's full status takes a linearizable
/// read along, and so waits while there is no leader.
async fn believed_leader(http: &str) -> Option<u64> {
    let (_, body) = crate::http::get(http, "/health/live").await.ok()?;
    let health: serde_json::Value = serde_json::from_str(&body).ok()?;
    health.get("leader_id")?.as_u64()
}

fn names_taken_port(error: &anyhow::Error) -> bool {
    let text = format!("{error:#}").to_lowercase();
    text.contains("in use") || text.contains("taken")
}

impl LocalCluster {
    /// Three nodes of the binary beside the current executable, in a temporary folder, unless said otherwise.
    pub fn builder() -> Builder {
        Builder {
            nodes: 3,
            binary: None,
            dir: None,
            extra_args: Vec::new(),
            first_args: Vec::new(),
            with_links: false,
            cluster_id: "harness".to_owned(),
            disk_bytes: None,
            with_wire: None,
            with_power: false,
            with_clocks: false,
            env: Vec::new(),
        }
    }

    /// The ids of all nodes, running or not.
    pub fn node_ids(&self) -> Vec<u64> {
        self.nodes.keys().copied().collect()
    }

    /// The ids of the nodes that are started.
    pub fn running(&self) -> Vec<u64> {
        self.nodes.iter().filter(|(_, node)| node.process.is_started()).map(|(id, _)| *id).collect()
    }

    /// The gRPC addresses of all nodes, running or not, by id.
    pub fn endpoints(&self) -> Vec<String> {
        self.nodes.values().map(|node| node.endpoint.clone()).collect()
    }

    /// The gRPC address of one node.
    pub fn endpoint(&self, id: u64) -> Result<String> {
        Ok(self.node(id)?.endpoint.clone())
    }

    /// The HTTP address of one node.
    pub fn http(&self, id: u64) -> Result<String> {
        Ok(self.node(id)?.http.clone())
    }

    /// The process id of one node, while started.
    pub fn pid(&self, id: u64) -> Result<u32> {
        self.node(id)?.process.pid().with_context(|| format!("node {id} is not running"))
    }

    /// The folder with data and logs.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What can be cut between the nodes, in a cluster that was started with links.
    pub fn links(&self) -> Result<&Links> {
        self.links.as_ref().context("this cluster was started without links")
    }

    /// A client that knows every node.
    pub fn client(&self) -> Result<Client> {
        Ok(Client::connect(Config::new(self.endpoints()))?)
    }

    /// The leader, as soon as there is one.
    pub async fn leader(&self) -> Result<u64> {
        until("a leader", LIMIT, || async { Ok(self.leader_now().await) }).await
    }

    /// The running node that says it leads, asked of all at once.
    pub async fn leader_now(&self) -> Option<u64> {
        self.leader_except(0).await
    }

    /// Like [`LocalCluster::leader_now`], without asking node `except`.
    pub async fn leader_except(&self, except: u64) -> Option<u64> {
        let asked = self.nodes.iter().filter(|(id, node)| **id != except && node.process.is_started());
        let answers = join_all(asked.map(|(id, node)| async move { (*id, believed_leader(&node.http).await) })).await;
        answers.into_iter().find(|(id, leader)| *leader == Some(*id)).map(|(id, _)| id)
    }

    /// Running nodes that do not lead, by id.
    pub async fn followers(&self) -> Result<Vec<u64>> {
        let leader = self.leader().await?;
        Ok(self.running().into_iter().filter(|id| *id != leader).collect())
    }

    /// What the node says of itself. Asked directly: no link that is cut keeps the harness from seeing it.
    pub async fn status(&self, id: u64) -> Result<NodeStatusResponse> {
        node_status(&self.node(id)?.listen, false).await
    }

    /// SIGKILL, and waits until the process is gone.
    pub fn kill(&mut self, id: u64) -> Result<()> {
        self.node_mut(id)?.process.kill()
    }

    /// SIGKILL for every node, at one moment: none goes on while another dies.
    pub fn kill_all(&mut self) -> Result<()> {
        self.nodes.values().try_for_each(|node| node.process.request_kill())?;
        self.nodes.values_mut().try_for_each(|node| node.process.kill())
    }

    /// SIGTERM, and waits for the exit, which must be a success.
    pub async fn terminate(&mut self, id: u64) -> Result<()> {
        let status = self.node_mut(id)?.process.terminate(LIMIT).await?;
        if !status.success() {
            bail!("node {id} ended with {status} after SIGTERM\n{}", self.logs_tail(id)?);
        }
        Ok(())
    }

    /// SIGTERM without waiting; [`LocalCluster::terminate`] waits afterwards.
    pub fn request_stop(&self, id: u64) -> Result<()> {
        self.node(id)?.process.request_stop()
    }

    /// Starts a stopped node without waiting for it.
    pub fn start(&mut self, id: u64) -> Result<()> {
        let node = self.nodes.get_mut(&id).with_context(|| format!("no node {id} in this cluster"))?;
        if let Some(clock) = self.clocks.get(&id) {
            clock.starting()?;
        }
        match &self.links {
            None => node.process.start(),
            Some(links) => links.introduce(id, || {
                node.process.start()?;
                node.process.pid().with_context(|| format!("node {id} is not running"))
            }),
        }
    }

    /// Starts a stopped node and waits until it is ready. It needs a majority of running nodes for that.
    pub async fn restart(&mut self, id: u64) -> Result<()> {
        self.start(id)?;
        self.wait_ready(id).await
    }

    /// Starts every stopped node, then waits until all are ready.
    pub async fn start_all(&mut self) -> Result<()> {
        for id in self.node_ids() {
            if !self.node(id)?.process.is_started() {
                self.start(id)?;
            }
        }
        self.wait_all_ready().await
    }

    /// Removes the data of a stopped node.
    pub fn wipe(&mut self, id: u64) -> Result<()> {
        let node = self.node(id)?;
        if node.process.is_started() {
            bail!("node {id} runs: stop it before its data is removed");
        }
        std::fs::remove_dir_all(&node.data_dir).with_context(|| format!("cannot remove {}", node.data_dir.display()))
    }

    /// Waits until the node reports that it is ready.
    pub async fn wait_ready(&mut self, id: u64) -> Result<()> {
        let node = self.node_mut(id)?;
        let http = node.http.clone();
        node.process.wait_ready(&http, LIMIT).await
    }

    /// Waits until every node reports that it is ready.
    pub async fn wait_all_ready(&mut self) -> Result<()> {
        for id in self.node_ids() {
            self.wait_ready(id).await?;
        }
        Ok(())
    }

    /// Waits until every running node has applied the same index and rev, and nothing is left in a log.
    pub async fn wait_converged(&self, limit: Duration) -> Result<()> {
        let converged = || async {
            let mut seen = Vec::new();
            for id in self.running() {
                let Ok(status) = self.status(id).await else { return Ok(None) };
                seen.push((status.applied_index, status.rev, status.last_log_index));
            }
            let agreed = seen.iter().all(|one| Some(one) == seen.first() && one.0 == one.2);
            Ok(agreed.then_some(()))
        };
        let waited = until("all running nodes have applied the same", limit, converged).await;
        let Err(error) = waited else { return Ok(()) };
        let mut positions = String::new();
        for id in self.running() {
            match self.status(id).await {
                Ok(s) => positions.push_str(&format!(
                    "\nnode {id}: {} term {} applied {} rev {} last log {}",
                    s.role, s.term, s.applied_index, s.rev, s.last_log_index
                )),
                Err(error) => positions.push_str(&format!("\nnode {id}: {error:#}")),
            }
        }
        Err(error.context(format!("the nodes differ:{positions}")))
    }

    /// Node id, rev and digest of every running node. `full` hashes all rows instead of taking the running digest.
    pub async fn digests(&self, full: bool) -> Result<Vec<(u64, u64, String)>> {
        let mut digests = Vec::new();
        for id in self.running() {
            let status = node_status(&self.node(id)?.listen, full).await?;
            let digest = if full { status.full_digest } else { status.digest };
            if digest.is_empty() {
                bail!("node {id} reported no digest");
            }
            digests.push((id, status.rev, digest));
        }
        Ok(digests)
    }

    /// Converges, then fails unless the full digest is the same on every running node, at the same rev. Hashing takes a
    /// while, and the leader may say something of its own meanwhile: then they are asked once more.
    pub async fn check_replicas_equal(&self) -> Result<()> {
        let began = Instant::now();
        loop {
            self.wait_converged(LIMIT).await?;
            let digests = self.digests(true).await?;
            let Some((_, rev, digest)) = digests.first() else { bail!("no node is running") };
            let at_one_rev = digests.iter().all(|(_, other_rev, _)| other_rev == rev);
            if at_one_rev && digests.iter().all(|(_, _, other)| other == digest) {
                return Ok(());
            }
            if at_one_rev || began.elapsed() > LIMIT {
                bail!("replicas differ: {digests:?}");
            }
        }
    }

    /// The last lines of a node's output.
    pub fn logs_tail(&self, id: u64) -> Result<String> {
        Ok(self.node(id)?.process.tail())
    }

    /// The end of a successful run: ends every process and removes a temporary folder.
    pub fn close(mut self) -> Result<()> {
        self.kill_all()?;
        self.disks.clear();
        self.power.clear();
        if let Some(temp) = self.temp.take() {
            temp.close()?;
        }
        Ok(())
    }

    fn node(&self, id: u64) -> Result<&Node> {
        self.nodes.get(&id).with_context(|| format!("no node {id} in this cluster"))
    }

    fn node_mut(&mut self, id: u64) -> Result<&mut Node> {
        self.nodes.get_mut(&id).with_context(|| format!("no node {id} in this cluster"))
    }
}

impl Drop for LocalCluster {
    fn drop(&mut self) {
        if let Err(error) = self.kill_all() {
            eprintln!("could not end every node: {error:#}");
        }
        // `close` took it: whoever comes here with a folder still in hand did not reach the end of its run.
        if let Some(temp) = self.temp.take() {
            eprintln!("data and logs are kept in {}", temp.keep().display());
        }
    }
}
