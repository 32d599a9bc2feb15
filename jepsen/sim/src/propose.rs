//! Into the log, as production's proposer does it: encode once, one entry in flight, whatever arrives meanwhile joins
//! the next; a failure says whether the command certainly had no effect.
//!
//! Production's own (`node/src/propose.rs`) is tied to tokio's channels and to gRPC; this is its rule on the simulated
//! runtime. An answer is passed on only if the entry is on the disks of a majority: that is checked here.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::channel::oneshot;
use openraft::errors::ClientWriteError;
use openraft::impls::ProgressResponder;
use openraft::vote::RaftLeaderId;
use parking_lot::Mutex;
use prost::Message;
use quorate_proto::log::{Answer, Batch};
use quorate_raft::consensus::types::{LogId, Payload};

use crate::disk::Disk;
use crate::office::Clock;
use crate::types::{Raft, spawn};
use crate::world::World;

/// The most commands in one entry.
const BATCH_COMMANDS: usize = 64;

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Certainly without effect.
    NotNow,
    /// It may have taken effect, may still, or may never.
    Unknown,
}

/// What a proposal comes to.
pub(crate) type Outcome = Result<Answer, Refusal>;

struct Pending {
    command: Bytes,
    /// Only the leader of this term may propose it.
    only_in_term: Option<u64>,
    answer: oneshot::Sender<Outcome>,
}

#[derive(Default)]
struct Queue {
    waiting: Vec<Pending>,
    busy: bool,
}

/// The way into the log of one process. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Proposer {
    world: Arc<World>,
    raft: Raft,
    clock: Arc<Clock>,
    node: u64,
    epoch: u64,
    disks: Arc<BTreeMap<u64, Disk>>,
    queue: Arc<Mutex<Queue>>,
}

impl Proposer {
    /// The way into the log of the process that runs now.
    pub(crate) fn new(
        world: Arc<World>,
        raft: Raft,
        clock: Arc<Clock>,
        (node, epoch): (u64, u64),
        disks: Arc<BTreeMap<u64, Disk>>,
    ) -> Self {
        Proposer { world, raft, clock, node, epoch, disks, queue: Arc::default() }
    }

    /// Proposes an encoded command if this node leads.
    pub(crate) fn propose(&self, command: Bytes, only_in_term: Option<u64>) -> oneshot::Receiver<Outcome> {
        let (answer, answered) = oneshot::channel();
        let mut queue = self.queue.lock();
        queue.waiting.push(Pending { command, only_in_term, answer });
        if !queue.busy {
            queue.busy = true;
            spawn(form_batches(self.clone()));
        }
        answered
    }

    fn next_batch(&self) -> Option<Vec<Pending>> {
        let mut queue = self.queue.lock();
        if queue.waiting.is_empty() {
            queue.busy = false;
            return None;
        }
        let count = queue.waiting.len().min(BATCH_COMMANDS);
        Some(queue.waiting.drain(..count).collect())
    }

    async fn propose_batch(&self, mut batch: Vec<Pending>) {
        // Whoever went away while waiting asks again or not at all.
        batch.retain(|pending| !pending.answer.is_canceled());
        let Ok(leader) = self.raft.as_leader() else { return refuse(batch, Refusal::NotNow) };
        let term = leader.term();
        let (batch, outdated): (Vec<_>, Vec<_>) =
            batch.into_iter().partition(|pending| pending.only_in_term.is_none_or(|wanted| wanted == term));
        refuse(outdated, Refusal::NotNow);
        if batch.is_empty() {
            return;
        }
        let commands = batch.iter().map(|pending| pending.command.clone()).collect();
        let entry = Batch { now_ms: self.clock.now_ms(), entropy: self.world.draw(), commands }.encode_to_vec();
        let (responder, completed) = ProgressResponder::complete_only();
        let leader_id = leader.leader_id().to_committed();
        let submitted = self.raft.write(Payload(entry.into())).with_leader(leader_id).responder(responder).await;
        if submitted.is_err() {
            return refuse(batch, Refusal::Unknown);
        }
        match completed.await {
            Ok(Ok(response)) => self.deliver(batch, &response.log_id, response.data.0),
            Ok(Err(ClientWriteError::ForwardToLeader(_))) => refuse(batch, Refusal::NotNow),
            Ok(Err(_)) | Err(_) => refuse(batch, Refusal::Unknown),
        }
    }

    fn deliver(&self, batch: Vec<Pending>, id: &LogId, answers: Vec<Answer>) {
        // A process that has crashed says nothing any more.
        if self.disks.get(&self.node).is_none_or(|disk| !disk.is_current(self.epoch)) {
            return refuse(batch, Refusal::Unknown);
        }
        let held = self.disks.values().filter(|disk| disk.holds(id)).count();
        if held * 2 <= self.disks.len() {
            let of = self.disks.len();
            self.world.violated(format!("entry {id} is acknowledged, and durable on {held} of {of} nodes"));
        }
        for (pending, answer) in batch.into_iter().zip(answers) {
            drop(pending.answer.send(Ok(answer)));
        }
    }
}

async fn form_batches(proposer: Proposer) {
    while let Some(batch) = proposer.next_batch() {
        proposer.propose_batch(batch).await;
    }
}

fn refuse(batch: Vec<Pending>, refusal: Refusal) {
    for pending in batch {
        drop(pending.answer.send(Err(refusal)));
    }
}
