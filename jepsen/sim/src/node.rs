//! The nodes: what outlives a process, what runs, and how one becomes the other.
//!
//! Owns starting and crashing. A crash takes away the network and the disk at once and for good; what the process still
//! does in memory reaches nobody. A process whose consensus stops is one that has crashed, as in production, where the
//! node ends itself then; unless a disk was made to fail, that is a violation.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use openraft::async_runtime::WatchReceiver;
use openraft::impls::BasicNode;
use openraft::{AsyncRuntime, Config, RaftMetrics, ReadPolicy, ServerState, SnapshotPolicy};
use openraft_rt_sim::SimRuntime;
use parking_lot::Mutex;
use quorate_proto::v1::KvEntry;

use crate::disk::Disk;
use crate::invariants::Sample;
use crate::machine::Machine;
use crate::network::Network;
use crate::office::{self, Clock, Leases};
use crate::propose::{Outcome, Proposer, Refusal};
use crate::store::Store;
use crate::types::{Raft, SimConfig, sleep_ms, spawn};
use crate::world::World;

/// The pause between two looks at every node.
const LOOK_MS: u64 = 20;
/// How long a node is down whose consensus has stopped.
const RESTART: Duration = Duration::from_millis(300);

/// One process.
pub(crate) struct Running {
    /// What all share.
    pub(crate) world: Arc<World>,
    /// The links.
    pub(crate) network: Network,
    /// Which node.
    pub(crate) node: u64,
    /// Which of its processes.
    pub(crate) epoch: u64,
    /// Consensus.
    pub(crate) raft: Raft,
    /// The state.
    pub(crate) machine: Machine,
    /// The way into the log.
    pub(crate) proposer: Proposer,
    /// The time that it stamps.
    pub(crate) clock: Arc<Clock>,
    /// Session deadlines, while it leads.
    pub(crate) leases: Mutex<Leases>,
}

impl Running {
    /// Whether it has not crashed.
    pub(crate) fn is_up(&self) -> bool {
        self.network.is_up(self.node, self.epoch)
    }

    fn metrics(&self) -> RaftMetrics<SimConfig> {
        let metrics = self.raft.metrics();
        metrics.borrow_watched().clone()
    }

    /// Whom it believes to lead.
    pub(crate) fn leader(&self) -> Option<u64> {
        self.metrics().current_leader
    }

    /// Proposes for a client.
    pub(crate) async fn ask(&self, command: Bytes) -> Outcome {
        self.proposer.propose(command, None).await.unwrap_or(Err(Refusal::Unknown))
    }

    async fn confirm(&self) -> Result<(), Refusal> {
        self.raft.as_leader().map_err(|_| Refusal::NotNow)?;
        let confirmed = self.raft.ensure_linearizable(ReadPolicy::ReadIndex).await;
        confirmed.map(drop).map_err(|_| Refusal::NotNow)
    }

    /// A linearizable read of a document: it, and the rev at which the state stood.
    pub(crate) async fn read(&self, key: &str) -> Result<(u64, Option<KvEntry>), Refusal> {
        self.confirm().await?;
        let found = self.machine.read(|state| {
            let part = state.namespaces.default_part();
            let found = part.rooms.kv.get(&part.rows(&state.rows), key, 0);
            found.map(|entry| (state.head.rev, entry))
        });
        found.map_err(|fatal| {
            self.world.violated(format!("node {} cannot read {key}: {fatal}", self.node));
            Refusal::NotNow
        })
    }

    /// Moves a session's deadline, and makes sure that this node led then.
    pub(crate) async fn keep_alive(&self, session_id: &str) -> Result<(), Refusal> {
        if !self.leases.lock().keep_alive(session_id, self.world.now()) {
            return Err(Refusal::NotNow);
        }
        self.confirm().await
    }
}

/// All nodes.
pub(crate) struct Cluster {
    /// What all share.
    pub(crate) world: Arc<World>,
    /// The links.
    pub(crate) network: Network,
    /// The disks, by node.
    pub(crate) disks: Arc<BTreeMap<u64, Disk>>,
    /// How far wall clocks are ahead.
    skews_ms: BTreeMap<u64, Arc<AtomicU64>>,
    running: Mutex<BTreeMap<u64, Arc<Running>>>,
    /// Nodes that stay down until then.
    down: Mutex<BTreeMap<u64, Duration>>,
    config: Arc<Config>,
    over: AtomicBool,
}

fn config() -> Result<Config, String> {
    let config = Config {
        cluster_name: "sim".to_owned(),
        heartbeat_interval: 50,
        election_timeout_min: 200,
        election_timeout_max: 400,
        install_snapshot_timeout: 2_000,
        max_payload_entries: 16,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(40),
        max_in_snapshot_log_to_keep: 12,
        purge_batch_size: 4,
        replication_lag_threshold: 40,
        // As in production.
        enable_pre_vote: Some(true),
        enable_leader_restore: Some(false),
        ..Config::default()
    };
    config.validate().map_err(|e| e.to_string())
}

impl Cluster {
    /// So many nodes with empty disks, none of them running.
    pub(crate) fn new(world: Arc<World>, size: u64) -> Result<Self, String> {
        let nodes = 1..=size;
        let disks = nodes.clone().map(|node| (node, Disk::new(node, world.clone()))).collect();
        let skews_ms = nodes.map(|node| (node, Arc::new(AtomicU64::new(world.between(0, 60_000))))).collect();
        Ok(Cluster {
            network: Network::new(world.clone()),
            disks: Arc::new(disks),
            skews_ms,
            running: Mutex::default(),
            down: Mutex::default(),
            config: Arc::new(config()?),
            over: AtomicBool::new(false),
            world,
        })
    }

    /// Every node's number.
    pub(crate) fn ids(&self) -> Vec<u64> {
        self.disks.keys().copied().collect()
    }

    /// A process that runs.
    pub(crate) fn get(&self, node: u64) -> Option<Arc<Running>> {
        self.running.lock().get(&node).cloned()
    }

    /// Every process that runs.
    pub(crate) fn all(&self) -> Vec<Arc<Running>> {
        self.running.lock().values().cloned().collect()
    }

    /// Starts every node, and the cluster.
    pub(crate) async fn begin(&self) {
        for node in self.ids() {
            self.start(node).await;
        }
        let members: BTreeMap<u64, BasicNode> = self.ids().into_iter().map(|id| (id, BasicNode::new(id))).collect();
        if let Some(first) = self.get(1)
            && let Err(error) = first.raft.initialize(members).await
        {
            self.world.violated(format!("the cluster does not begin: {error}"));
        }
    }

    /// Starts a process on what the disk has.
    async fn start(&self, node: u64) {
        if let Err(why) = self.try_start(node).await {
            self.world.violated(why);
        }
    }

    async fn try_start(&self, node: u64) -> Result<(), String> {
        let (Some(disk), Some(skew_ms)) = (self.disks.get(&node), self.skews_ms.get(&node)) else {
            return Err(format!("there is no node {node}"));
        };
        disk.check()?;
        let vote = disk.peek(|seen| seen.vote);
        self.world.invariants.lock().started(node, vote.as_ref())?;
        let epoch = disk.epoch();
        let machine = Machine::open(self.world.clone(), disk.clone(), node)?;
        let store = Store::new(self.world.clone(), disk.clone(), node);
        let exit = self.network.of(node, epoch);
        let built = Raft::new(node, self.config.clone(), exit, store, machine.clone()).await;
        let raft = built.map_err(|e| format!("node {node} does not start: {e}"))?;
        let clock = Arc::new(Clock::new(self.world.clone(), skew_ms.clone()));
        let ids = (node, epoch);
        let proposer = Proposer::new(self.world.clone(), raft.clone(), clock.clone(), ids, self.disks.clone());
        self.network.up(node, raft.clone(), epoch);
        let running = Arc::new(Running {
            world: self.world.clone(),
            network: self.network.clone(),
            node,
            epoch,
            raft,
            machine,
            proposer,
            clock,
            leases: Mutex::default(),
        });
        self.running.lock().insert(node, running.clone());
        self.world.note(format_args!("n{node} is up, process {epoch}"));
        spawn(office::hold(running));
        Ok(())
    }

    /// Ends a process as a power loss would; it is not started again for so long.
    pub(crate) fn crash(&self, node: u64, down_for: Duration) {
        let gone = self.running.lock().remove(&node);
        self.down.lock().insert(node, self.world.now() + down_for);
        let Some(gone) = gone else { return };
        self.network.down(node);
        if let Some(disk) = self.disks.get(&node) {
            disk.crash();
        }
        self.world.totals.lock().crashes += 1;
        self.world.note(format_args!("n{node} crashes"));
        spawn(async move { drop(gone.raft.shutdown().await) });
    }

    /// Stops a node's messages and disk, or lets them go on.
    pub(crate) fn pause(&self, node: u64, paused: bool) {
        if paused && self.get(node).is_none() {
            return;
        }
        self.network.set_paused(node, paused);
        if let Some(disk) = self.disks.get(&node) {
            disk.set_paused(paused);
        }
    }

    /// Sets a node's wall clock, seen when it next takes office.
    pub(crate) fn set_clock(&self, node: u64, ahead_ms: u64) {
        if let Some(skew_ms) = self.skews_ms.get(&node) {
            skew_ms.store(ahead_ms, Ordering::Relaxed);
        }
    }

    /// Lets every node that is down start.
    pub(crate) fn start_all(&self) {
        self.down.lock().clear();
    }

    /// Looks at every node, until the run is over: what has stopped crashes, what is down long enough starts.
    pub(crate) async fn look_after(self: Arc<Self>) {
        while !self.over.load(Ordering::Relaxed) {
            sleep_ms(LOOK_MS).await;
            for one in self.all() {
                self.look_at(&one);
            }
            for node in self.ids() {
                let until = self.down.lock().get(&node).copied().unwrap_or_default();
                let is_over = self.over.load(Ordering::Relaxed);
                if !is_over && self.get(node).is_none() && until <= self.world.now() {
                    self.start(node).await;
                }
            }
        }
    }

    /// Looks at one process.
    fn look_at(&self, running: &Running) {
        let Some(disk) = self.disks.get(&running.node) else { return };
        let metrics = running.metrics();
        if let Err(fatal) = &metrics.running_state {
            if !disk.has_failed() {
                self.world.violated(format!("consensus on node {} stopped: {fatal}", running.node));
            }
            return self.crash(running.node, RESTART);
        }
        let sample = Sample {
            node: running.node,
            epoch: running.epoch,
            term: metrics.current_term,
            leads: metrics.state == ServerState::Leader,
            applied: metrics.last_applied.map(|id| id.index),
        };
        let held = disk.peek(|seen| self.world.invariants.lock().sampled(&sample, seen));
        self.world.check(held);
    }

    /// Whether every node runs and has applied the same.
    pub(crate) fn is_even(&self) -> bool {
        let all = self.all();
        let mut applied = all.iter().map(|one| one.machine.read(|state| state.head.applied));
        let first = applied.next().flatten();
        all.len() == self.disks.len() && first.is_some() && applied.all(|other| other == first)
    }

    /// Every node has the same, and all that was acknowledged.
    pub(crate) fn compare(&self) -> Result<(), String> {
        let acknowledged = self.world.model.lock().acknowledged();
        let all = self.all();
        let Some(first) = all.first() else { return Err("no node runs at the end".to_owned()) };
        let expected = first.machine.read(Clone::clone);
        for one in &all {
            one.machine.read(|state| {
                if state.head.rev < acknowledged {
                    let rev = state.head.rev;
                    return Err(format!("node {} ends at rev {rev}, and {acknowledged} was answered", one.node));
                }
                let same = state.head == expected.head && state.rows == expected.rows;
                if !same || state.events != expected.events || state.namespaces != expected.namespaces {
                    return Err(format!("nodes {} and {} end with different states", first.node, one.node));
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Ends every process and every loop.
    pub(crate) async fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
        for node in self.ids() {
            let Some(gone) = self.running.lock().remove(&node) else { continue };
            self.network.down(node);
            drop(SimRuntime::timeout(Duration::from_secs(1), gone.raft.shutdown()).await);
        }
    }
}
