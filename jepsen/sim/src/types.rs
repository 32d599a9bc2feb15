//! openraft's generics, filled in as in production but for the runtime.
//!
//! The payload, the answers and the leader ids are production's own, and so every alias of
//! `quorate_raft::consensus::types` that does not name the configuration itself is the same type here, as are the
//! codecs of `quorate_raft::consensus::wire`.

use std::future::Future;
use std::sync::Arc;

use openraft::AsyncRuntime;
use openraft::impls::leader_id_std;
use openraft_rt_sim::SimRuntime;
pub(crate) use quorate_raft::apply::Machine as State;
use quorate_raft::consensus::types::{Answers, Payload};

use crate::machine::Machine;

openraft::declare_raft_types!(
    /// The type configuration on the simulated runtime.
    pub(crate) SimConfig:
        D = Payload,
        R = Answers,
        NodeId = u64,
        Node = openraft::impls::BasicNode,
        LeaderId = leader_id_std::LeaderId<u64, u64>,
        AsyncRuntime = SimRuntime,
);

/// A running Raft node.
pub(crate) type Raft = openraft::Raft<SimConfig, Machine>;
/// A whole state and what it covers.
pub(crate) type Snapshot = openraft::alias::SnapshotOf<SimConfig, Arc<State>>;

/// Starts a task that nobody waits for.
pub(crate) fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    drop(SimRuntime::spawn(task));
}

/// Lets simulated time pass.
pub(crate) async fn sleep_us(us: u64) {
    SimRuntime::sleep(std::time::Duration::from_micros(us)).await;
}

/// Lets simulated time pass.
pub(crate) async fn sleep_ms(ms: u64) {
    sleep_us(ms.saturating_mul(1_000)).await;
}
