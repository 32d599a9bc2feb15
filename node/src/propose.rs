//! Into the log: encode once, batch what waits, propose, hand back each command's answer.
//!
//! While an entry is in flight, whatever arrives joins the batch now forming; when none is, a command goes at once. There
//! is no timer, so an idle cluster adds no delay and a busy one fills its entries.
//!
//! A follower passes a command on to the leader. Every failure says which of two things it is: the command certainly had
//! no effect, or its outcome is unknown. There is no third.

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
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tonic::Code;

use crate::clock::Clock;
use crate::core::{Leadership, leadership};

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
    /// Certainly without effect: will never fit.
    #[error("the request takes {0} bytes encoded; at most {MAX_COMMAND_BYTES} are accepted")]
    TooLarge(usize),
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
    queue: mpsc::Sender<Pending>,
    bytes: Arc<Semaphore>,
}

impl Proposer {
    /// Starts the batcher.
    pub(crate) fn start(raft: Raft, peers: Peers, clock: Arc<Clock>, max_queued_bytes: u64) -> Self {
        let (queue, jobs) = mpsc::channel(QUEUE_LEN);
        tokio::spawn(form_batches(raft.clone(), clock, jobs));
        let bytes = Arc::new(Semaphore::new(usize::try_from(max_queued_bytes).unwrap_or(usize::MAX >> 3)));
        Proposer { raft, peers, queue, bytes }
    }

    /// Proposes here if this node leads, else through the leader.
    pub(crate) async fn propose(&self, command: &Command) -> Result<Answer, ProposeError> {
        let encoded = Bytes::from(command.encode_to_vec());
        match leadership(&self.raft) {
            Leadership::Here { .. } => self.propose_here(encoded, None).await,
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
        let command = Command { namespace: namespace.to_owned(), body: Some(body), ..Command::default() };
        self.propose_here(command.encode_to_vec().into(), Some(term)).await
    }

    /// Proposes an encoded command on this node.
    pub(crate) async fn propose_here(&self, command: Bytes, only_in_term: Option<u64>) -> Result<Answer, ProposeError> {
        if command.len() > MAX_COMMAND_BYTES {
            return Err(ProposeError::TooLarge(command.len()));
        }
        let size = u32::try_from(command.len().max(64)).unwrap_or(u32::MAX);
        let bytes = self.bytes.clone().try_acquire_many_owned(size).map_err(|_| ProposeError::Overloaded)?;
        let (answer, answered) = oneshot::channel();
        let pending = Pending { command, only_in_term, answer, _bytes: bytes };
        self.queue.try_send(pending).map_err(|_| ProposeError::Overloaded)?;
        answered.await.unwrap_or_else(|_| Err(ProposeError::Unknown("this node is stopping".to_owned())))
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
    let no_effect = status.metadata().contains_key(crate::grpc::status::NO_EFFECT_KEY);
    match status.code() {
        // Only the leader's own word: HTTP/2 has a meaning of its own for this code, and cuts off calls under way with it.
        Code::ResourceExhausted if no_effect => ProposeError::Overloaded,
        _ if no_effect || is_connect_error(status) => ProposeError::NotNow(message),
        _ => ProposeError::Unknown(message),
    }
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
    let not_leader = || ProposeError::NotNow("this node does not lead any more".to_owned());
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
