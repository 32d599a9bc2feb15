//! The disk of one node: the log, the vote, the state and the snapshot, as the process sees them and as a power loss
//! would leave them.
//!
//! ```text
//!   write ──▶ seen (at once) ──▶ queue ── flush: some time, in order, all that waits ──▶ durable ──▶ done
//!   crash: of the queue a prefix reaches the disk, its last append perhaps in part; nobody hears of the rest
//! ```
//!
//! Owns what outlives a process. Every process has an epoch; what an earlier one still tries is refused.
//!
//! Invariant: completions are reported in the order of the writes. After a failed flush nothing more is written by that
//! process, and every waiter gets the error.
//!
//! Deliberately absent: bit rot and a full disk. Those are for real processes on real files.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use quorate_raft::consensus::types::{LogId, Vote};

use crate::plant::Plant;
use crate::types::{State, sleep_ms, sleep_us, spawn};
use crate::world::World;

/// Called once: the write is durable, or has failed.
pub(crate) type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// One entry as it is stored.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    /// Its place.
    pub(crate) id: LogId,
    /// Its stored form.
    pub(crate) bytes: bytes::Bytes,
}

/// The log and the facts beside it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Image {
    /// Entries by index.
    pub(crate) log: BTreeMap<u64, Stored>,
    /// Who may lead.
    pub(crate) vote: Option<Vote>,
    /// What was known to be committed.
    pub(crate) committed: Option<LogId>,
    /// The log begins after this.
    pub(crate) purged: Option<LogId>,
}

/// A write to the log.
#[derive(Debug)]
pub(crate) enum Op {
    /// Entries at the end.
    Append(Vec<Stored>),
    /// A vote.
    Vote(Vote),
    /// The commit point.
    Committed(LogId),
    /// Everything from this index on goes.
    Truncate(u64),
    /// Everything up to this goes.
    Purge(LogId),
}

impl Image {
    fn apply(&mut self, op: &Op) {
        match op {
            Op::Append(entries) => self.log.extend(entries.iter().map(|entry| (entry.id.index, entry.clone()))),
            Op::Vote(vote) => self.vote = Some(*vote),
            Op::Committed(id) => self.committed = Some(*id),
            Op::Truncate(from) => drop(self.log.split_off(from)),
            Op::Purge(id) => {
                self.log = self.log.split_off(&id.index.saturating_add(1));
                if self.purged < Some(*id) {
                    self.purged = Some(*id);
                }
            }
        }
    }

    /// The last entry, or what the log begins after.
    pub(crate) fn last(&self) -> Option<LogId> {
        self.log.last_key_value().map(|(_, entry)| entry.id).or(self.purged)
    }

    /// The term at an index, as far as it is known here.
    pub(crate) fn term_at(&self, index: u64) -> Option<u64> {
        let purged = self.purged.filter(|id| id.index == index);
        self.log.get(&index).map(|entry| entry.id).or(purged).map(|id| id.leader_id.term)
    }
}

struct Inner {
    seen: Image,
    durable: Image,
    queue: VecDeque<(Op, Option<Done>)>,
    flushing: bool,
    epoch: u64,
    /// The next flush fails.
    failing: bool,
    /// A flush has failed.
    failed: bool,
    slow: bool,
    paused: bool,
    /// The state at its last flush.
    state: Arc<State>,
    snapshot: Option<Arc<State>>,
}

/// The disk of one node. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Disk {
    node: u64,
    world: Arc<World>,
    inner: Arc<Mutex<Inner>>,
}

fn gone() -> io::Error {
    io::Error::other("this process has crashed")
}

fn broken() -> io::Error {
    io::Error::other("input/output error")
}

/// The index up to which a state has applied the log.
pub(crate) fn applied_index(state: &State) -> Option<u64> {
    state.head.applied.map(|(_, index)| index)
}

impl Disk {
    /// An empty disk.
    pub(crate) fn new(node: u64, world: Arc<World>) -> Self {
        let inner = Inner {
            seen: Image::default(),
            durable: Image::default(),
            queue: VecDeque::new(),
            flushing: false,
            epoch: 0,
            failing: false,
            failed: false,
            slow: false,
            paused: false,
            state: Arc::new(State::in_memory()),
            snapshot: None,
        };
        Disk { node, world, inner: Arc::new(Mutex::new(inner)) }
    }

    /// The process that may write now.
    pub(crate) fn epoch(&self) -> u64 {
        self.inner.lock().epoch
    }

    /// Whether that process still runs.
    pub(crate) fn is_current(&self, epoch: u64) -> bool {
        self.epoch() == epoch
    }

    /// As production does at a start: the log holds all that the state has applied and that was known to be committed,
    /// unless a snapshot covers it.
    pub(crate) fn check(&self) -> Result<(), String> {
        let inner = self.inner.lock();
        let applied = applied_index(&inner.state);
        let covered = inner.snapshot.as_deref().and_then(applied_index);
        let last = inner.seen.last().map(|id| id.index).max(covered);
        let committed = inner.seen.committed.map(|id| id.index);
        for (what, index) in [("applied", applied), ("committed", committed)] {
            if last < index {
                return Err(format!(
                    "node {} refuses to start: its log ends at {last:?}, but {index:?} was {what}",
                    self.node
                ));
            }
        }
        Ok(())
    }

    /// Looks at the log as the process sees it.
    pub(crate) fn read<T>(&self, epoch: u64, look: impl FnOnce(&Image) -> T) -> io::Result<T> {
        let inner = self.inner.lock();
        if inner.epoch != epoch {
            return Err(gone());
        }
        Ok(look(&inner.seen))
    }

    /// Looks at the log as the process sees it, from outside.
    pub(crate) fn peek<T>(&self, look: impl FnOnce(&Image) -> T) -> T {
        look(&self.inner.lock().seen)
    }

    /// Writes to the log; `done` hears when it is durable.
    pub(crate) fn write(&self, epoch: u64, op: Op, mut done: Option<Done>) -> io::Result<()> {
        let mut early = None;
        {
            let mut inner = self.inner.lock();
            if inner.epoch != epoch {
                return Err(gone());
            }
            if inner.failed {
                return Err(broken());
            }
            match &op {
                Op::Vote(vote) if self.world.planted(Plant::LoseVote) => {
                    inner.seen.vote = Some(*vote);
                    early = done.take();
                }
                // Nobody reads a vote before it is durable.
                Op::Vote(_) => {}
                Op::Append(_) if self.world.planted(Plant::AckBeforeFlush) => {
                    inner.seen.apply(&op);
                    early = done.take();
                }
                _ => inner.seen.apply(&op),
            }
            if !(matches!(op, Op::Vote(_)) && self.world.planted(Plant::LoseVote)) {
                inner.queue.push_back((op, done));
            }
            if !inner.flushing && !inner.queue.is_empty() {
                inner.flushing = true;
                spawn(flush(self.clone(), epoch));
            }
        }
        if let Some(early) = early {
            early(Ok(()));
        }
        Ok(())
    }

    /// How many writes the next flush takes, and how long it lasts, in microseconds.
    fn begin_flush(&self) -> (usize, u64) {
        let inner = self.inner.lock();
        let us = if inner.slow { self.world.between(5_000, 150_000) } else { self.world.between(100, 3_000) };
        (inner.queue.len(), us)
    }

    /// Makes so many writes durable. `None`: the process is gone.
    fn end_flush(&self, epoch: u64, group: usize) -> Option<(Vec<Done>, bool, bool)> {
        let mut inner = self.inner.lock();
        if inner.epoch != epoch {
            return None;
        }
        if inner.failing {
            (inner.failing, inner.failed, inner.flushing) = (false, true, false);
            let dones = inner.queue.drain(..).filter_map(|(_, done)| done).collect();
            return Some((dones, false, true));
        }
        let mut dones = Vec::new();
        for _ in 0..group {
            let Some((op, done)) = inner.queue.pop_front() else { break };
            inner.durable.apply(&op);
            if let Op::Vote(vote) = op {
                inner.seen.vote = Some(vote);
            }
            dones.extend(done);
        }
        inner.flushing = !inner.queue.is_empty();
        Some((dones, true, !inner.flushing))
    }

    /// The process ends. What waited reaches the disk in part.
    pub(crate) fn crash(&self) {
        let lost = {
            let mut inner = self.inner.lock();
            inner.epoch += 1;
            let queue = std::mem::take(&mut inner.queue);
            let whole = self.world.between(0, queue.len() as u64 + 1) as usize;
            // After a failed flush the queue is empty: all of it was lost.
            for (op, _) in queue.iter().take(whole) {
                inner.durable.apply(op);
            }
            if let Some((Op::Append(entries), _)) = queue.get(whole) {
                let some = self.world.between(0, entries.len() as u64 + 1) as usize;
                inner.durable.apply(&Op::Append(entries.iter().take(some).cloned().collect()));
            }
            inner.seen = inner.durable.clone();
            (inner.flushing, inner.failing, inner.failed, inner.paused) = (false, false, false, false);
            queue
        };
        // Outside the lock: whoever waited for one of these is woken by its end.
        drop(lost);
    }

    /// The next flush fails.
    pub(crate) fn fail_next(&self) {
        self.inner.lock().failing = true;
    }

    /// Whether a flush was made to fail.
    pub(crate) fn has_failed(&self) -> bool {
        self.inner.lock().failed
    }

    /// Makes flushes slow, or as they were.
    pub(crate) fn set_slow(&self, slow: bool) {
        self.inner.lock().slow = slow;
    }

    /// Stops the disk with its process, or lets it go on.
    pub(crate) fn set_paused(&self, paused: bool) {
        self.inner.lock().paused = paused;
    }

    fn is_paused(&self, epoch: u64) -> bool {
        let inner = self.inner.lock();
        inner.paused && inner.epoch == epoch
    }

    /// Whether a power loss now would leave the entry, or a state that has it.
    pub(crate) fn holds(&self, id: &LogId) -> bool {
        let inner = self.inner.lock();
        let in_log = inner.durable.log.get(&id.index).is_some_and(|entry| entry.id == *id);
        let before_log = inner.durable.purged.is_some_and(|purged| purged.index >= id.index);
        in_log || before_log || applied_index(&inner.state) >= Some(id.index)
    }

    /// The state and the snapshot that a start finds.
    pub(crate) fn saved(&self) -> (Arc<State>, Option<Arc<State>>) {
        let inner = self.inner.lock();
        (inner.state.clone(), inner.snapshot.clone())
    }

    /// Whether the durable log has come to this index, so that a state made from it may be durable too.
    fn log_reaches(&self, index: Option<u64>) -> bool {
        let inner = self.inner.lock();
        let covered = inner.snapshot.as_deref().and_then(applied_index);
        self.world.options.state_may_lead_log || inner.durable.last().map(|id| id.index).max(covered) >= index
    }

    /// Makes a state durable, unless its log is not yet; says whether it did.
    pub(crate) fn keep_state(&self, epoch: u64, state: Arc<State>) -> io::Result<bool> {
        if !self.log_reaches(applied_index(&state)) {
            return Ok(false);
        }
        let mut inner = self.inner.lock();
        if inner.epoch != epoch {
            return Err(gone());
        }
        if applied_index(&state) > applied_index(&inner.state) {
            inner.state = state;
        }
        Ok(true)
    }

    /// Makes a snapshot that was taken here durable, once its log is.
    pub(crate) async fn keep_taken(&self, epoch: u64, taken: Arc<State>) -> io::Result<()> {
        while !self.keep_state(epoch, taken.clone())? {
            if !self.is_current(epoch) || self.has_failed() {
                return Err(gone());
            }
            sleep_ms(1).await;
        }
        self.keep_snapshot(epoch, taken)
    }

    /// Makes a snapshot that was received durable: it is the state from now on.
    pub(crate) fn keep_received(&self, epoch: u64, received: Arc<State>) -> io::Result<()> {
        {
            let mut inner = self.inner.lock();
            if inner.epoch != epoch {
                return Err(gone());
            }
            inner.state = received.clone();
        }
        self.keep_snapshot(epoch, received)
    }

    /// The newer of two snapshots is the current one.
    fn keep_snapshot(&self, epoch: u64, snapshot: Arc<State>) -> io::Result<()> {
        let mut inner = self.inner.lock();
        if inner.epoch != epoch {
            return Err(gone());
        }
        let newest = inner.snapshot.as_deref().and_then(applied_index);
        if applied_index(&snapshot) >= newest {
            inner.snapshot = Some(snapshot);
        }
        Ok(())
    }
}

/// Makes durable what waits, for as long as something does. One at a time.
async fn flush(disk: Disk, epoch: u64) {
    loop {
        let (group, us) = disk.begin_flush();
        sleep_us(us).await;
        while disk.is_paused(epoch) {
            sleep_ms(5).await;
        }
        let Some((dones, well, over)) = disk.end_flush(epoch, group) else { return };
        for done in dones {
            done(if well { Ok(()) } else { Err(broken()) });
        }
        if over {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
