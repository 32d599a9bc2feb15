//! Into the log: encode once, batch what waits, propose, hand back each command's answer.
//!
//! While an entry is in flight, whatever arrives joins the batch now forming; when none is, a command goes at once. There
//! is no timer, so an idle cluster adds no delay and a busy one fills its entries.
//!
//! A follower passes a command on to the leader. Every failure says which of two things it is: the command certainly had
//! no effect, or its outcome is unknown. There is no third.
//!
//! What takes space is refused here, by the leader, while there is too little of it ([`crate::disk`]).

use std::sync::Arc;

use bytes::Bytes;
use openraft::errors::ClientWriteError;
use openraft::impls::ProgressResponder;
use openraft::vote::RaftLeaderId;
use prost::Message;
use quorate_proto::log::{Answer, Batch, Command, command};
use quorate_proto::peer as pb;
use quorate_raft::consensus::network::Peers;
use quorate_raft::consensus::types::{Payload, Raft};
use quorate_raft::error::Error;
use quorate_raft::level;
use quorate_raft::replica::Replica;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tonic::Code;

use crate::clock::Clock;
use crate::core::{Leadership, leadership};
use crate::disk::{self, Disk, Growth};
use crate::grpc::status;

/// The most commands and bytes in one entry.
const BATCH_COMMANDS: usize = 1_024;
const BATCH_BYTES: usize = 2 << 20;
const QUEUE_LEN: usize = 16_384;
/// The largest encoded command: a request of several payloads fits, the log's other readers still breathe.
pub(crate) const MAX_COMMAND_BYTES: usize = 8 << 20;

/// Why there is no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum ProposeError {
    /// Certainly without effect: try again, perhaps elsewhere.
    #[error("{0}")]
    NotNow(String),
    /// Certainly without effect: this node has too much waiting.
    #[error("too many bytes of commands are waiting on this node")]
    Overloaded,
    /// This attempt certainly without effect: it takes space, and too few disks have enough of it. An earlier attempt with
    /// the same request id may have had one, for the door does not look at what is recorded.
    #[error("{0}")]
    DiskLow(String),
    /// Certainly without effect: will never fit.
    #[error("the request takes {0} bytes encoded; at most {MAX_COMMAND_BYTES} are accepted")]
    TooLarge(usize),
    /// Certainly without effect: the cluster does not let it in yet.
    #[error("{0}")]
    TooNew(String),
    /// It may have taken effect, may still, or may never.
    #[error("outcome unknown: {0}")]
    Unknown(String),
}

struct Pending {
    command: Bytes,
    /// Only this leader may propose it: it rests on what that leader holds in memory.
    only_in_term: Option<u64>,
    answer: oneshot::Sender<Result<Answer, ProposeError>>,
    _bytes: OwnedSemaphorePermit,
}

/// The way into the log. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Proposer {
    raft: Raft,
    peers: Peers,
    disk: Arc<Disk>,
    replica: Arc<Replica>,
    queue: mpsc::Sender<Pending>,
    bytes: Arc<Semaphore>,
}

impl Proposer {
    /// Starts the batcher.
    pub(crate) fn start(
        raft: Raft,
        peers: Peers,
        clock: Arc<Clock>,
        disk: Arc<Disk>,
        replica: Arc<Replica>,
        max_queued_bytes: u64,
    ) -> Self {
        let (queue, jobs) = mpsc::channel(QUEUE_LEN);
        tokio::spawn(form_batches(raft.clone(), clock, jobs));
        let bytes = Arc::new(Semaphore::new(usize::try_from(max_queued_bytes).unwrap_or(usize::MAX >> 3)));
        Proposer { raft, peers, disk, replica, queue, bytes }
    }

    /// Proposes here if this node leads, else through the leader.
    pub(crate) async fn propose(&self, command: &Command) -> Result<Answer, ProposeError> {
        let encoded = Bytes::from(command.encode_to_vec());
        match leadership(&self.raft) {
            Leadership::Here { .. } => {
                // The leader's word: a follower may not have heard yet that the level was raised.
                if let Some(body) = &command.body {
                    self.check_level(body)?;
                }
                let growth = command.body.as_ref().map_or(Growth::Grows, disk::growth);
                self.propose_here(encoded, growth, None).await
            }
            Leadership::There { address, .. } => self.forward(&address, encoded).await,
            Leadership::Unknown => Err(ProposeError::NotNow("no leader is known at the moment".to_owned())),
        }
    }

    /// Proposes something that only the leader of `term` may say.
    pub(crate) async fn propose_as_leader(
        &self,
        namespace: &str,
        body: command::Body,
        term: u64,
    ) -> Result<Answer, ProposeError> {
        self.check_level(&body)?;
        let growth = disk::growth(&body);
        let command = Command { namespace: namespace.to_owned(), body: Some(body), ..Command::default() };
        self.propose_here(command.encode_to_vec().into(), growth, Some(term)).await
    }

    /// Proposes an encoded command on this node. Whoever decoded it last says how much it takes.
    pub(crate) async fn propose_here(
        &self,
        command: Bytes,
        growth: Growth,
        only_in_term: Option<u64>,
    ) -> Result<Answer, ProposeError> {
        if command.len() > MAX_COMMAND_BYTES {
            return Err(ProposeError::TooLarge(command.len()));
        }
        self.check_space(growth)?;
        let size = u32::try_from(command.len().max(64)).unwrap_or(u32::MAX);
        let bytes = self.bytes.clone().try_acquire_many_owned(size).map_err(|_| ProposeError::Overloaded)?;
        let (answer, answered) = oneshot::channel();
        let pending = Pending { command, only_in_term, answer, _bytes: bytes };
        self.queue.try_send(pending).map_err(|_| ProposeError::Overloaded)?;
        answered.await.unwrap_or_else(|_| Err(ProposeError::Unknown("this node is stopping".to_owned())))
    }

    /// What a member does not understand yet must not come into the log: it would stop there.
    pub(crate) fn check_level(&self, body: &command::Body) -> Result<(), ProposeError> {
        if level::level_of(body) <= 1 {
            return Ok(());
        }
        let in_use = self.replica.read(|whole| whole.namespaces.cluster.feature_level());
        match level::admit(in_use, body) {
            Ok(()) => Ok(()),
            Err(Error::Rejected(rejection)) => Err(ProposeError::TooNew(rejection.message)),
            Err(Error::Fatal(fatal)) => Err(ProposeError::Unknown(fatal.to_string())),
        }
    }

    /// Only a leader's word: how full the disk of a node is that leads no more says nothing to whoever asks.
    fn check_space(&self, growth: Growth) -> Result<(), ProposeError> {
        match self.disk.admit(growth) {
            Err(_) if self.raft.as_leader().is_err() => Err(not_leader()),
            admitted => admitted.map_err(ProposeError::DiskLow),
        }
    }

    async fn forward(&self, leader: &str, command: Bytes) -> Result<Answer, ProposeError> {
        if command.len() > MAX_COMMAND_BYTES {
            return Err(ProposeError::TooLarge(command.len()));
        }
        let mut client = self.peers.client(leader).map_err(|status| ProposeError::NotNow(status.to_string()))?;
        let reply = client.forward(self.peers.request(pb::ForwardRequest { command })).await;
        match reply {
            Ok(reply) => Answer::decode(reply.into_inner().answer)
                .map_err(|e| ProposeError::Unknown(format!("the leader's answer does not decode: {e}"))),
            Err(status) => Err(forward_failure(leader, &status)),
        }
    }
}

/// What became of a command that was passed on.
fn forward_failure(leader: &str, status: &tonic::Status) -> ProposeError {
    let message = format!("the leader at {leader} said: {}", status.message());
    let no_effect = status.metadata().contains_key(status::NO_EFFECT_KEY);
    match status.code() {
        Code::ResourceExhausted if is_disk_low(status) => ProposeError::DiskLow(status.message().to_owned()),
        // Only the leader's own word: HTTP/2 has a meaning of its own for this code, and cuts off calls under way with it.
        Code::ResourceExhausted if no_effect => ProposeError::Overloaded,
        _ if no_effect || is_connect_error(status) => ProposeError::NotNow(message),
        _ => ProposeError::Unknown(message),
    }
}

/// The leader's door refused it; a room's refusal is an answer, and comes as one.
fn is_disk_low(status: &tonic::Status) -> bool {
    let metadata = status.metadata();
    let field = metadata.get(status::FIELD_KEY).and_then(|field| field.to_str().ok());
    metadata.contains_key(status::REJECTED_KEY) && field == Some(disk::FIELD)
}

fn not_leader() -> ProposeError {
    ProposeError::NotNow("this node does not lead any more".to_owned())
}

/// Nothing was sent: the connection could not be made.
fn is_connect_error(status: &tonic::Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return io.kind() == std::io::ErrorKind::ConnectionRefused;
        }
        source = error.source();
    }
    false
}

/// Forms entries as long as the node runs, one in flight at a time.
async fn form_batches(raft: Raft, clock: Arc<Clock>, mut jobs: mpsc::Receiver<Pending>) {
    while let Some(first) = jobs.recv().await {
        let mut bytes = first.command.len();
        let mut batch = vec![first];
        while batch.len() < BATCH_COMMANDS && bytes < BATCH_BYTES {
            let Ok(next) = jobs.try_recv() else { break };
            bytes += next.command.len();
            batch.push(next);
        }
        // Whoever went away while waiting asks again or not at all; proposing for nobody could grant work to nobody.
        batch.retain(|pending| !pending.answer.is_closed());
        propose_batch(&raft, &clock, batch).await;
    }
}

async fn propose_batch(raft: &Raft, clock: &Clock, batch: Vec<Pending>) {
    let Ok(leader) = raft.as_leader() else {
        return refuse(batch, &not_leader());
    };
    let term = leader.term();
    let (batch, outdated): (Vec<_>, Vec<_>) =
        batch.into_iter().partition(|pending| pending.only_in_term.is_none_or(|wanted| wanted == term));
    refuse(outdated, &not_leader());
    if batch.is_empty() {
        return;
    }
    let commands = batch.iter().map(|pending| pending.command.clone()).collect();
    let entropy = uuid::Uuid::new_v4().as_u64_pair().0;
    let entry = Batch { now_ms: clock.now_ms(), entropy, commands }.encode_to_vec();
    let (responder, completed) = ProgressResponder::complete_only();
    let submitted =
        raft.write(Payload(entry.into())).with_leader(leader.leader_id().to_committed()).responder(responder).await;
    if let Err(fatal) = submitted {
        return refuse(batch, &ProposeError::Unknown(format!("this node is stopping: {fatal}")));
    }
    match completed.await {
        Ok(Ok(response)) => deliver(batch, response.data.0),
        Ok(Err(ClientWriteError::ForwardToLeader(_))) => refuse(batch, &not_leader()),
        Ok(Err(error)) => refuse(batch, &ProposeError::Unknown(error.to_string())),
        Err(_) => refuse(batch, &ProposeError::Unknown("this node is stopping".to_owned())),
    }
}

fn deliver(batch: Vec<Pending>, answers: Vec<Answer>) {
    debug_assert_eq!(batch.len(), answers.len());
    for (pending, answer) in batch.into_iter().zip(answers) {
        // A caller that went away does not need its answer; a resend will find the recorded one.
        let _gone = pending.answer.send(Ok(answer));
    }
}

fn refuse(batch: Vec<Pending>, error: &ProposeError) {
    for pending in batch {
        let _gone = pending.answer.send(Err(error.clone()));
    }
}
