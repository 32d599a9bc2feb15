//! The network between the nodes: every message takes time, may be lost, may come twice, and meets whatever is cut.
//!
//! A message on its way is a task of its own. Whoever sent it may give up; it arrives all the same, perhaps after later
//! ones. One that meets a cut link, or a process other than the one that it was for, is gone without a word. What a
//! paused node sends or is sent waits.
//!
//! Owns who is up. Deliberately absent: connections and streams. Replication asks and waits for the answer, where
//! production keeps several requests under way on one stream.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::channel::oneshot;
use openraft::async_runtime::Select2;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout};
use openraft::impls::BasicNode;
use openraft::network::{Backoff, RPCOption};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse};
use openraft::{AsyncRuntime, OptionalSend, RPCTypes, RaftNetworkFactory, RaftNetworkV2};
use openraft_rt_sim::SimRuntime;
use parking_lot::Mutex;
use quorate_raft::consensus::types::Vote;

use crate::types::{Raft, SimConfig, Snapshot, State, sleep_ms, sleep_us, spawn};
use crate::world::World;

type Rpc = RPCError<SimConfig>;

/// Longer than anybody waits for an answer.
const FOR_EVER_MS: u64 = 30_000;

/// How the links are, all of them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weather {
    /// How long a message takes, in microseconds: from, to.
    pub(crate) delay_us: (u64, u64),
    /// How many of a thousand are lost.
    pub(crate) lost: u64,
    /// How many of a thousand come twice.
    pub(crate) twice: u64,
}

impl Default for Weather {
    fn default() -> Self {
        Weather { delay_us: (200, 2_000), lost: 0, twice: 5 }
    }
}

#[derive(Default)]
struct Inner {
    /// From, to.
    cut: BTreeSet<(u64, u64)>,
    weather: Weather,
    paused: BTreeSet<u64>,
    up: BTreeMap<u64, (Raft, u64)>,
}

/// The links between all nodes. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Network {
    world: Arc<World>,
    inner: Arc<Mutex<Inner>>,
}

impl Network {
    /// Nothing is cut, nobody is up.
    pub(crate) fn new(world: Arc<World>) -> Self {
        Network { world, inner: Arc::default() }
    }

    /// The way out of a process.
    pub(crate) fn of(&self, node: u64, epoch: u64) -> Exit {
        Exit { network: self.clone(), node, epoch }
    }

    /// A process can be reached from now on.
    pub(crate) fn up(&self, node: u64, raft: Raft, epoch: u64) {
        self.inner.lock().up.insert(node, (raft, epoch));
    }

    /// A process cannot be reached any more.
    pub(crate) fn down(&self, node: u64) {
        let mut inner = self.inner.lock();
        let gone = inner.up.remove(&node);
        inner.paused.remove(&node);
        drop(inner);
        drop(gone);
    }

    /// Whether that very process is up.
    pub(crate) fn is_up(&self, node: u64, epoch: u64) -> bool {
        self.inner.lock().up.get(&node).is_some_and(|(_, current)| *current == epoch)
    }

    /// Cuts these links, from and to, and no others.
    pub(crate) fn cut(&self, links: BTreeSet<(u64, u64)>) {
        self.inner.lock().cut = links;
    }

    /// Changes how the links are.
    pub(crate) fn set_weather(&self, weather: Weather) {
        self.inner.lock().weather = weather;
    }

    /// Stops a node's messages, or lets them go on.
    pub(crate) fn set_paused(&self, node: u64, paused: bool) {
        let mut inner = self.inner.lock();
        if paused {
            inner.paused.insert(node);
        } else {
            inner.paused.remove(&node);
        }
    }

    /// Waits while the node is paused.
    pub(crate) async fn pass(&self, node: u64) {
        while self.is_paused(node) {
            sleep_ms(5).await;
        }
    }

    fn is_paused(&self, node: u64) -> bool {
        self.inner.lock().paused.contains(&node)
    }

    fn endpoint(&self, node: u64) -> Option<(Raft, u64)> {
        self.inner.lock().up.get(&node).cloned()
    }

    fn weather(&self) -> Weather {
        self.inner.lock().weather
    }

    fn is_cut(&self, from: u64, to: u64) -> bool {
        self.inner.lock().cut.contains(&(from, to))
    }

    /// Carries one message; says whether it arrived.
    async fn carry(&self, from: u64, to: u64) -> bool {
        let Weather { delay_us: (least, most), lost, .. } = self.weather();
        let is_lost = self.world.chance(lost);
        sleep_us(self.world.between(least, most)).await;
        self.pass(from).await;
        self.pass(to).await;
        !is_lost && !self.is_cut(from, to)
    }
}

/// The way out of one process: openraft makes its clients here.
#[derive(Clone)]
pub(crate) struct Exit {
    network: Network,
    node: u64,
    epoch: u64,
}

impl RaftNetworkFactory<SimConfig> for Exit {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, _node: &BasicNode) -> Peer {
        Peer { exit: self.clone(), target }
    }
}

/// Calls to one peer.
pub(crate) struct Peer {
    exit: Exit,
    target: u64,
}

/// The message there, and the answer back. Whatever is lost leaves the caller waiting.
async fn round_trip<T, F, Fut>(exit: Exit, target: u64, deliver: F, answer: oneshot::Sender<Result<T, String>>)
where
    T: Send + 'static,
    F: Fn(Raft) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Result<T, String>> + Send + 'static,
{
    let Exit { network, node, epoch } = exit;
    if network.world.chance(network.weather().twice) {
        spawn(second_copy(network.clone(), node, target, deliver.clone()));
    }
    let arrived = network.carry(node, target).await;
    if let Some((raft, target_epoch)) = network.endpoint(target).filter(|_| arrived) {
        let reply = deliver(raft).await;
        let answers = network.is_up(target, target_epoch) && network.carry(target, node).await;
        if answers && network.is_up(node, epoch) {
            // Whoever asked may have given up.
            drop(answer.send(reply));
            return;
        }
    }
    sleep_ms(FOR_EVER_MS).await;
}

/// The same message once more; nobody reads its answer.
async fn second_copy<T, F, Fut>(network: Network, from: u64, to: u64, deliver: F)
where
    F: Fn(Raft) -> Fut + Send + 'static,
    Fut: Future<Output = Result<T, String>> + Send + 'static,
{
    sleep_us(network.world.between(0, 50_000)).await;
    let arrived = network.carry(from, to).await;
    if let Some((raft, _)) = network.endpoint(to).filter(|_| arrived) {
        drop(deliver(raft).await);
    }
}

impl Peer {
    async fn call<T, F, Fut>(&self, action: RPCTypes, within: Duration, deliver: F) -> Result<T, Rpc>
    where
        T: Send + 'static,
        F: Fn(Raft) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = Result<T, String>> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        spawn(round_trip(self.exit.clone(), self.target, deliver, answer));
        match SimRuntime::timeout(within, answered).await {
            Ok(Ok(Ok(reply))) => Ok(reply),
            Ok(Ok(Err(message))) => Err(NetworkError::from_string(message).into()),
            Ok(Err(_)) | Err(_) => {
                Err(Timeout { action, id: self.exit.node, target: self.target, timeout: within }.into())
            }
        }
    }

    /// Whoever sends entries or heartbeats says that it leads.
    fn check_leads(&self, vote: &Vote) {
        let world = &self.exit.network.world;
        let (term, node) = (vote.leader_id.term, vote.leader_id.voted_for);
        let leads = world.invariants.lock().leads(term, node);
        if leads == Ok(true) {
            world.note(format_args!("n{node} leads in term {term}"));
        }
        world.check(leads.map(drop));
    }
}

impl RaftNetworkV2<SimConfig> for Peer {
    type SnapshotData = Arc<State>;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<SimConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<SimConfig>, Rpc> {
        self.check_leads(&rpc.vote);
        let deliver = move |raft: Raft| {
            let rpc = rpc.clone();
            async move { raft.append_entries(rpc).await.map_err(|e| e.to_string()) }
        };
        self.call(RPCTypes::AppendEntries, option.soft_ttl(), deliver).await
    }

    async fn vote(&mut self, rpc: VoteRequest<SimConfig>, option: RPCOption) -> Result<VoteResponse<SimConfig>, Rpc> {
        let deliver = move |raft: Raft| {
            let rpc = rpc.clone();
            async move { raft.vote(rpc).await.map_err(|e| e.to_string()) }
        };
        self.call(RPCTypes::Vote, option.soft_ttl(), deliver).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<SimConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<SimConfig>, Rpc> {
        let deliver = move |raft: Raft| {
            let rpc = rpc.clone();
            async move { raft.pre_vote(rpc).await.map_err(|e| e.to_string()) }
        };
        self.call(RPCTypes::Vote, option.soft_ttl(), deliver).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<SimConfig>, StreamingError<SimConfig>> {
        let long = self.exit.network.world.between(2_000, 80_000);
        let deliver = move |raft: Raft| {
            let snapshot = snapshot.clone();
            async move {
                sleep_us(long).await;
                raft.install_full_snapshot(vote, snapshot).await.map_err(|e| e.to_string())
            }
        };
        let transfer = self.call(RPCTypes::InstallSnapshot, option.soft_ttl(), deliver);
        match SimRuntime::select2(cancel, transfer).await {
            Select2::First(closed) => Err(StreamingError::Closed(closed)),
            Select2::Second(reply) => Ok(reply?),
        }
    }

    fn backoff(&self) -> Option<Backoff> {
        Some(Backoff::new(std::iter::repeat(Duration::from_millis(100))))
    }
}
