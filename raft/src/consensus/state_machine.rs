//! openraft's state machine over [`Replica`].

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use openraft::entry::RaftPayload;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};
use prost::Message;

use super::network::Peers;
use super::types::{Answers, LogId, Payload, SnapshotMeta, StoredMembership, TypeConfig};
use super::wire;
use crate::apply::Head;
use crate::error::Fatal;
use crate::faults::crash_point;
use crate::replica::{Applicable, Content, Replica};
use crate::storage::log_db::Durable;
use crate::storage::snapshot::SnapshotDir;

type Snapshot = openraft::alias::SnapshotOf<TypeConfig, SnapshotDir>;

/// How many entries go into one write at most.
const APPLY_ENTRIES: usize = 256;

/// The replica, as openraft wants it.
#[derive(Clone)]
pub struct StateMachine {
    replica: Arc<Replica>,
    /// Snapshots on their way to peers.
    peers: Option<Peers>,
    /// How far the log is on this node's own disk.
    durable: Option<Durable>,
}

impl StateMachine {
    /// Adapts a replica.
    pub fn new(replica: Arc<Replica>) -> Self {
        StateMachine { replica, peers: None, durable: None }
    }

    /// Nothing is applied before it is in this log for good.
    pub fn behind(self, durable: Durable) -> Self {
        StateMachine { durable: Some(durable), ..self }
    }

    /// No snapshot is taken while one is on its way to a peer: see [`Peers::carries_snapshot`].
    pub fn with_peers(self, peers: Peers) -> Self {
        StateMachine { peers: Some(peers), ..self }
    }
}

/// The state must not be ahead of this node's log. An entry is committed once others have it on disk; the state may be
/// flushed at any moment, and after a power cut the log would lack what the state has: it would count as damaged.
async fn wait_durable(durable: Option<&mut Durable>, batch: &[Applicable]) -> io::Result<()> {
    match (durable, batch.last()) {
        (Some(durable), Some(last)) => durable.reach(last.log_id.1).await,
        _ => Ok(()),
    }
}

pub(super) fn applicable(
    log_id: &LogId,
    payload: EntryPayload<Payload, u64, openraft::impls::BasicNode>,
) -> Applicable {
    let content = match payload {
        EntryPayload::Blank => Content::Blank,
        EntryPayload::Normal(Payload(bytes)) => Content::Batch(bytes),
        payload @ EntryPayload::Membership(_) => {
            let membership = payload.get_membership().unwrap_or_default();
            let stored = StoredMembership::new(Some(*log_id), membership);
            Content::Membership(Bytes::from(wire::stored_membership(&stored).encode_to_vec()))
        }
    };
    Applicable { log_id: (log_id.leader_id.term, log_id.index), content }
}

fn applied_id(head: &Head) -> Option<LogId> {
    head.applied.map(|(term, index)| LogId::new_term_index(term, index))
}

pub(super) fn meta(head: &Head) -> Result<SnapshotMeta, Fatal> {
    Ok(SnapshotMeta {
        last_log_id: applied_id(head),
        last_membership: wire::decode_stored_membership(head.membership.clone())?,
    })
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotDir;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let head = self.replica.head();
        Ok((applied_id(&head), wire::decode_stored_membership(head.membership)?))
    }

    async fn apply<Strm>(&mut self, entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        let mut groups = entries.ready_chunks(APPLY_ENTRIES);
        while let Some(group) = groups.next().await {
            let mut batch = Vec::with_capacity(group.len());
            let mut responders = Vec::with_capacity(group.len());
            for item in group {
                let (entry, responder) = item?;
                batch.push(applicable(&entry.log_id, entry.payload));
                responders.push(responder);
            }
            wait_durable(self.durable.as_mut(), &batch).await?;
            let answers = self.replica.apply(batch)?;
            for (responder, answers) in responders.into_iter().zip(answers) {
                if let Some(responder) = responder {
                    crash_point("reply.before");
                    responder.send(Answers(answers));
                    crash_point("reply.after");
                }
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        self.clone()
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<Self::SnapshotBuilder> {
        let put_off = !force && self.peers.as_ref().is_some_and(Peers::carries_snapshot);
        (!put_off).then(|| self.clone())
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotDir) -> Result<(), io::Error> {
        let covers = applied_id(&snapshot.head()?);
        if covers != meta.last_log_id {
            return Err(Fatal::Corrupt(format!("the snapshot covers {covers:?}, not {:?}", meta.last_log_id)).into());
        }
        let replica = self.replica.clone();
        tokio::task::spawn_blocking(move || replica.install_snapshot(&snapshot)).await.map_err(io::Error::other)??;
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        let current = self.replica.current_snapshot()?;
        Ok(match current {
            Some((snapshot, head)) => Some(Snapshot { meta: meta(&head)?, snapshot }),
            None => None,
        })
    }
}

impl RaftSnapshotBuilder<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotDir;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let replica = self.replica.clone();
        let taken = tokio::task::spawn_blocking(move || replica.take_snapshot()).await.map_err(io::Error::other)?;
        let (snapshot, head) = taken?;
        Ok(Snapshot { meta: meta(&head)?, snapshot })
    }
}
