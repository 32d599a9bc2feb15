//! Out of the state: making sure that a read is as fresh as it was asked to be.
//!
//! A linearizable read waits until this node has applied everything that was committed when the read began. Reads that
//! arrive together share one round: each round starts after every read it serves began, and a round is never reused.

use std::sync::Arc;
use std::time::{Duration, Instant};

use openraft::ReadPolicy;
use openraft::raft::linearizable_read::{Linearizer, ReadLogId};
use quorate_proto::peer as pb;
use quorate_raft::consensus::network::Peers;
use quorate_raft::consensus::types::{LogId, Raft};
use quorate_raft::consensus::wire;
use quorate_raft::faults::{Bug, planted};
use tokio::sync::{mpsc, oneshot};

use crate::core::{Leadership, leadership};

/// How long one round may take before its reads are told to come again.
const ROUND: Duration = Duration::from_secs(2);
const QUEUE_LEN: usize = 65_536;

type Served = oneshot::Sender<Result<(), String>>;

/// Where linearizable reads wait. Cheap to clone.
#[derive(Clone)]
pub(crate) struct ReadBarrier {
    queue: mpsc::Sender<Served>,
}

impl ReadBarrier {
    /// Starts the rounds.
    pub(crate) fn start(raft: Raft, peers: Peers) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE_LEN);
        tokio::spawn(serve_rounds(Arc::new(Rounds { raft, peers }), waiting));
        ReadBarrier { queue }
    }

    /// Returns when a read of this node's state is linearizable, or says why it cannot be.
    pub(crate) async fn pass(&self) -> Result<(), String> {
        if planted(Bug::ReadUnconfirmed) {
            return Ok(());
        }
        let (served, answer) = oneshot::channel();
        self.queue.try_send(served).map_err(|_| "too many reads wait on this node".to_owned())?;
        answer.await.unwrap_or_else(|_| Err("this node is stopping".to_owned()))
    }
}

struct Rounds {
    raft: Raft,
    peers: Peers,
}

async fn serve_rounds(rounds: Arc<Rounds>, mut waiting: mpsc::Receiver<Served>) {
    let mut confirmed: Option<Instant> = None;
    while let Some(first) = waiting.recv().await {
        let mut served = vec![first];
        while let Ok(next) = waiting.try_recv() {
            served.push(next);
        }
        let reused = planted(Bug::ReadIndexReused) && confirmed.is_some_and(|at| at.elapsed() < ROUND);
        let round = async { if reused { Ok(()) } else { rounds.round().await } };
        let result = match tokio::time::timeout(ROUND, round).await {
            Ok(result) => result,
            Err(_) => Err("no majority confirmed the leader in time".to_owned()),
        };
        confirmed = if reused { confirmed } else { result.is_ok().then(Instant::now) };
        for reader in served {
            let _gone = reader.send(result.clone());
        }
    }
}

impl Rounds {
    async fn round(&self) -> Result<(), String> {
        match leadership(&self.raft) {
            Leadership::Here { .. } => read_index(&self.raft).await.map(|_| ()),
            Leadership::There { address, .. } => {
                let mut client = self.peers.client(&address).map_err(|status| status.to_string())?;
                let request = self.peers.request(pb::ReadIndexRequest {});
                let reply = client.read_index(request).await.map_err(|status| status.message().to_owned())?;
                let log_id = reply.into_inner().log_id.ok_or("the leader's answer lacks an index")?;
                self.wait_applied(wire::read_log_id(&log_id)).await
            }
            Leadership::Unknown => Err("no leader is known at the moment".to_owned()),
        }
    }

    async fn wait_applied(&self, log_id: LogId) -> Result<(), String> {
        let node_id = *self.raft.node_id();
        let linearizer = Linearizer::new(node_id, ReadLogId::from_log_id(log_id), None);
        match linearizer.try_await_ready(&self.raft, Some(ROUND)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(behind)) => Err(format!("this node is behind: {behind}")),
            Err(fatal) => Err(fatal.to_string()),
        }
    }
}

/// Confirms leadership with a majority and waits for the local state to reach the commit point of that moment.
pub(crate) async fn read_index(raft: &Raft) -> Result<LogId, String> {
    let linearizer = raft.get_read_linearizer(ReadPolicy::ReadIndex).await.map_err(|e| e.to_string())?;
    let ready = linearizer.await_ready(raft).await.map_err(|e| e.to_string())?;
    Ok(*ready.read_log_id().log_id())
}
