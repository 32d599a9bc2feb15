//! openraft's state machine over the real one: `quorate_raft::apply` on rows in memory.
//!
//! What is applied is in memory; from time to time, and with every snapshot, it reaches the disk as a whole. A crash
//! takes it back to there, and the log is applied again from there: the same entries must give the same state again. At
//! a start the indexes are built from the rows, and must be those that were there when the rows were written.
//!
//! Deliberately absent: effects. Nobody waits for them here; the leader's loops look at the state.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};
use parking_lot::Mutex;
use prost::Message;
use quorate_proto::log::{Answer, Batch, Command};
use quorate_raft::apply::{Head, apply_batch};
use quorate_raft::consensus::types::{Answers, Entry, LogId, Payload, SnapshotMeta, StoredMembership};
use quorate_raft::consensus::wire;
use quorate_raft::error::Fatal;
use quorate_raft::state::namespaces::Namespaces;
use quorate_raft::storage::keys::Table;
use quorate_raft::storage::txn::Txn;

use crate::disk::Disk;
use crate::invariants::{Step, hash_of};
use crate::plant::Plant;
use crate::types::{SimConfig, Snapshot, State, sleep_us};
use crate::world::World;

/// How often, in a thousand, the state reaches the disk after some entries.
const FLUSHES: u64 = 25;

/// The state of one process. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Machine {
    world: Arc<World>,
    disk: Disk,
    node: u64,
    epoch: u64,
    state: Arc<Mutex<State>>,
}

impl Machine {
    /// The state that the disk has, its indexes built anew.
    pub(crate) fn open(world: Arc<World>, disk: Disk, node: u64) -> Result<Self, String> {
        let (saved, _) = disk.saved();
        let mut state = State::clone(&saved);
        state.namespaces = Namespaces::rebuild(&state.rows).map_err(|e| format!("node {node} cannot open: {e}"))?;
        if state.namespaces != saved.namespaces {
            return Err(format!("node {node}: the indexes at {:?} are not those of the rows", state.head.applied));
        }
        if world.planted(Plant::ApplyTwice) {
            forget_last(&mut state.head, &disk);
        }
        let epoch = disk.epoch();
        Ok(Machine { world, disk, node, epoch, state: Arc::new(Mutex::new(state)) })
    }

    /// Looks at the state.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.state.lock())
    }

    fn check_current(&self) -> io::Result<()> {
        if self.disk.is_current(self.epoch) { Ok(()) } else { Err(io::Error::other("this process has crashed")) }
    }

    fn apply_one(&self, entry: Entry) -> io::Result<Vec<Answer>> {
        self.check_current()?;
        let (id, hash) = (entry.log_id, hash_of(&wire::encode_entry(&entry)));
        let payload = match &entry.payload {
            EntryPayload::Normal(Payload(bytes)) => Some(bytes.clone()),
            _ => None,
        };
        let mut state = self.state.lock();
        let applied = apply_entry(&mut state, entry, self.world.options.plant);
        let Head { digest, rev, now_ms, .. } = state.head;
        drop(state);
        let step = Step { id, entry: hash, digest, rev, now_ms };
        let answers = applied.inspect_err(|fatal| {
            self.world.violated(format!("node {} cannot apply entry {}: {fatal}", self.node, id.index));
        })?;
        self.observe(&step, payload, &answers);
        Ok(answers)
    }

    /// What was applied is compared with what others applied, and the first time with what it should have done.
    fn observe(&self, step: &Step, payload: Option<Bytes>, answers: &[Answer]) {
        let seen = self.world.invariants.lock().applied(self.node, self.epoch, step);
        match seen {
            Ok(false) => {}
            Ok(true) => {
                self.world.totals.lock().entries += 1;
                let (index, digest) = (step.id.index, step.digest);
                self.world.note(format_args!("applied {index} first by n{}, digest {digest:032x}", self.node));
                if let Some(payload) = payload {
                    let held = self.world.model.lock().applied(step.rev, payload, answers);
                    self.world.check(held);
                }
            }
            Err(violation) => self.world.violated(violation),
        }
    }

    /// The state reaches the disk now and then.
    fn flush_sometimes(&self) -> io::Result<()> {
        if self.world.chance(FLUSHES) {
            let copy = Arc::new(self.state.lock().clone());
            self.disk.keep_state(self.epoch, copy)?;
        }
        Ok(())
    }
}

/// The planted bug: the last entry that is in the rows counts as not applied.
fn forget_last(head: &mut Head, disk: &Disk) {
    let Some((_, index)) = head.applied else { return };
    let Some(before) = index.checked_sub(1) else { return };
    if let Some(term) = disk.peek(|seen| seen.log.get(&before).map(|entry| entry.id.leader_id.term)) {
        head.applied = Some((term, before));
    }
}

fn apply_entry(state: &mut State, entry: Entry, plant: Option<Plant>) -> Result<Vec<Answer>, Fatal> {
    let id = entry.log_id;
    state.head.applied = Some((id.leader_id.term, id.index));
    match entry.payload {
        EntryPayload::Blank => Ok(Vec::new()),
        EntryPayload::Membership(membership) => {
            let stored = StoredMembership::new(Some(id), membership);
            state.head.membership = wire::stored_membership(&stored).encode_to_vec().into();
            Ok(Vec::new())
        }
        EntryPayload::Normal(Payload(bytes)) => apply_payload(state, bytes, plant),
    }
}

fn apply_payload(state: &mut State, payload: Bytes, plant: Option<Plant>) -> Result<Vec<Answer>, Fatal> {
    let payload = if plant == Some(Plant::SkipDedup) { without_requests(payload)? } else { payload };
    let State { namespaces, rows, events, head, happened } = state;
    if plant == Some(Plant::ClockGoesBack) {
        head.now_ms = 0;
    }
    happened.clear();
    let mut txn = Txn::new(&*rows, head.digest);
    let answers = apply_batch(namespaces, &mut txn, head, payload, happened)?;
    head.digest = txn.digest();
    let writes = txn.into_writes();
    for (key, value) in writes.rows {
        match value {
            Some(value) => rows.0.insert(key, value),
            None => rows.0.remove(&key),
        };
    }
    for (from, to) in writes.ranges_gone {
        rows.0.retain(|key, _| *key < from || *key >= to);
    }
    events.extend(writes.events);
    if let Some(through_rev) = writes.events_gone {
        *events = events.split_off(&(through_rev.saturating_add(1), 0));
    }
    Ok(answers)
}

/// The planted bug: nobody can tell a resend.
fn without_requests(payload: Bytes) -> Result<Bytes, Fatal> {
    let mut batch = Batch::decode(payload)?;
    for bytes in &mut batch.commands {
        let command = Command { request: None, ..Command::decode(bytes.clone())? };
        *bytes = command.encode_to_vec().into();
    }
    Ok(batch.encode_to_vec().into())
}

fn applied_id(head: &Head) -> Option<LogId> {
    head.applied.map(|(term, index)| LogId::new_term_index(term, index))
}

fn meta(head: &Head) -> Result<SnapshotMeta, Fatal> {
    let last_membership = wire::decode_stored_membership(head.membership.clone())?;
    Ok(SnapshotMeta { last_log_id: applied_id(head), last_membership })
}

impl RaftStateMachine<SimConfig> for Machine {
    type SnapshotData = Arc<State>;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let head = self.state.lock().head.clone();
        Ok((applied_id(&head), wire::decode_stored_membership(head.membership)?))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<SimConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            let answers = self.apply_one(entry)?;
            if let Some(responder) = responder {
                responder.send(Answers(answers));
            }
        }
        self.flush_sometimes()
    }

    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        self.clone()
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: Arc<State>) -> Result<(), io::Error> {
        self.check_current()?;
        if applied_id(&snapshot.head) != meta.last_log_id {
            self.world.violated(format!("a snapshot of {:?} came as {:?}", snapshot.head.applied, meta.last_log_id));
        }
        let mut received = State::clone(&snapshot);
        if self.world.planted(Plant::SnapshotWithoutATable) {
            received.rows.0.retain(|key, _| key.first() != Some(&(Table::Kv as u8)));
        }
        received.namespaces = Namespaces::rebuild(&received.rows)?;
        sleep_us(self.world.between(500, 10_000)).await;
        self.disk.keep_received(self.epoch, Arc::new(received.clone()))?;
        let installed = self.world.invariants.lock().installed(self.node, self.epoch, &received.head);
        self.world.check(installed);
        self.world.note(format_args!("n{} installed a snapshot of {:?}", self.node, received.head.applied));
        self.world.totals.lock().installs += 1;
        *self.state.lock() = received;
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        self.check_current()?;
        let (_, snapshot) = self.disk.saved();
        Ok(match snapshot {
            Some(snapshot) => Some(Snapshot { meta: meta(&snapshot.head)?, snapshot }),
            None => None,
        })
    }
}

impl RaftSnapshotBuilder<SimConfig> for Machine {
    type SnapshotData = Arc<State>;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let taken = Arc::new(self.state.lock().clone());
        sleep_us(self.world.between(500, 20_000)).await;
        self.disk.keep_taken(self.epoch, taken.clone()).await?;
        self.world.note(format_args!("n{} took a snapshot of {:?}", self.node, taken.head.applied));
        self.world.totals.lock().snapshots += 1;
        Ok(Snapshot { meta: meta(&taken.head)?, snapshot: taken })
    }
}
