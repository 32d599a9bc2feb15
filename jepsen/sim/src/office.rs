//! What a leader does of itself: ends sessions whose deadline has passed, and proposes a tick when something is due.
//!
//! Production's loops (`node/src/leader.rs`, `leases.rs`, `clock.rs`) run on tokio and on the process's clocks. These
//! are the same rules, written again: deadlines live in the leader's memory and belong to one term; a new leader gives
//! every session a full time to live, once it has applied what earlier ones committed; an expiry names the epoch that
//! it saw; time begins at the state's or at the node's wall clock, whichever is later, and then runs with the simulated
//! one. What is tested here is that the rules and the commands fit, not that code.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use openraft::{AsyncRuntime, ReadPolicy};
use openraft_rt_sim::SimRuntime;
use parking_lot::Mutex;
use prost::Message;
use quorate_proto::log::{Command, ExpireSession, Tick, command};

use crate::node::Running;
use crate::plant::Plant;
use crate::types::sleep_ms;
use crate::world::World;

/// What every node's wall clock shows at least when a run begins.
const BEGIN_MS: u64 = 1_700_000_000_000;
/// The pause between two looks.
const LOOK_MS: u64 = 10;
/// Nobody waits longer for a proposal.
const PATIENCE: Duration = Duration::from_secs(1);
/// The rest before a session whose expiry was proposed is named again.
const AGAIN: Duration = Duration::from_secs(1);

/// The time that a leader stamps on entries.
pub(crate) struct Clock {
    world: Arc<World>,
    /// How far this node's wall clock is ahead, in milliseconds.
    skew_ms: Arc<AtomicU64>,
    anchor: Mutex<(u64, Duration)>,
}

impl Clock {
    /// Anchored at this node's wall clock.
    pub(crate) fn new(world: Arc<World>, skew_ms: Arc<AtomicU64>) -> Self {
        let clock = Clock { world, skew_ms, anchor: Mutex::default() };
        clock.take_office(0);
        clock
    }

    fn wall_ms(&self) -> u64 {
        let elapsed = u64::try_from(self.world.now().as_millis()).unwrap_or(u64::MAX);
        (BEGIN_MS + self.skew_ms.load(Ordering::Relaxed)).saturating_add(elapsed)
    }

    /// Milliseconds since 1970, as this node counts them.
    pub(crate) fn now_ms(&self) -> u64 {
        let (anchor_ms, anchored) = *self.anchor.lock();
        let elapsed = self.world.now().saturating_sub(anchored).as_millis();
        anchor_ms.saturating_add(u64::try_from(elapsed).unwrap_or(u64::MAX))
    }

    fn take_office(&self, state_ms: u64) {
        let state_ms = if self.world.planted(Plant::ClockGoesBack) { 0 } else { state_ms };
        *self.anchor.lock() = (self.wall_ms().max(state_ms), self.world.now());
    }
}

#[derive(Debug, Clone, Copy)]
struct Deadline {
    at: Duration,
    ttl: Duration,
    epoch: u64,
    ending: bool,
}

/// The deadlines of one term's leader.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    sessions: BTreeMap<String, Deadline>,
}

impl Leases {
    /// Takes in what the state says: sessions opened, resumed and ended.
    fn follow(&mut self, found: BTreeMap<String, (u64, u64)>, now: Duration) {
        self.sessions.retain(|id, _| found.contains_key(id));
        for (id, (epoch, ttl_ms)) in found {
            if self.sessions.get(&id).is_none_or(|known| known.epoch != epoch) {
                let ttl = Duration::from_millis(ttl_ms);
                self.sessions.insert(id, Deadline { at: now + ttl, ttl, epoch, ending: false });
            }
        }
    }

    /// Moves a deadline; says whether the session is known and not about to end.
    pub(crate) fn keep_alive(&mut self, id: &str, now: Duration) -> bool {
        match self.sessions.get_mut(id).filter(|deadline| !deadline.ending) {
            Some(deadline) => {
                deadline.at = now + deadline.ttl;
                true
            }
            None => false,
        }
    }

    fn lapsed(&mut self, now: Duration) -> Vec<(String, u64)> {
        let mut lapsed = Vec::new();
        for (id, deadline) in self.sessions.iter_mut().filter(|(_, deadline)| deadline.at <= now) {
            (deadline.at, deadline.ending) = (now + AGAIN, true);
            lapsed.push((id.clone(), deadline.epoch));
        }
        lapsed
    }
}

/// Holds office whenever this process leads, until it ends.
pub(crate) async fn hold(running: Arc<Running>) {
    let mut office = None;
    loop {
        sleep_ms(LOOK_MS).await;
        running.network.pass(running.node).await;
        if !running.is_up() {
            return;
        }
        let term = running.raft.as_leader().ok().map(|leader| leader.term());
        if term != office {
            office = term;
            *running.leases.lock() = Leases::default();
            if term.is_some() {
                take_office(&running).await;
            }
            continue;
        }
        if let Some(term) = term {
            end_lapsed(&running, term).await;
            run_due(&running, term).await;
        }
    }
}

async fn take_office(running: &Running) {
    running.clock.take_office(running.machine.read(|state| state.head.now_ms));
    // Whether it succeeds or not: as the leader of this term alone it may propose.
    let confirmed = SimRuntime::timeout(PATIENCE, running.raft.ensure_linearizable(ReadPolicy::ReadIndex)).await;
    drop(confirmed);
    running.clock.take_office(running.machine.read(|state| state.head.now_ms));
}

async fn end_lapsed(running: &Running, term: u64) {
    let found: BTreeMap<String, (u64, u64)> = running.machine.read(|state| {
        let sessions = state.namespaces.default_part().rooms.sessions.iter();
        sessions.map(|session| (session.id.clone(), (session.epoch, session.ttl_ms))).collect()
    });
    let lapsed = {
        let mut leases = running.leases.lock();
        leases.follow(found, running.world.now());
        leases.lapsed(running.world.now())
    };
    for (session_id, epoch) in lapsed {
        running.world.note(format_args!("n{} ends session {session_id}", running.node));
        propose(running, command::Body::ExpireSession(ExpireSession { session_id, epoch }), term).await;
    }
}

async fn run_due(running: &Running, term: u64) {
    let (due, has_work, state_ms) = running.machine.read(|state| {
        let has_work = state.namespaces.iter().any(|part| part.rooms.has_work_left());
        (state.namespaces.next_due_ms(), has_work, state.head.now_ms)
    });
    let now_ms = running.clock.now_ms().max(state_ms);
    if has_work || due.is_some_and(|due_ms| due_ms <= now_ms) {
        propose(running, command::Body::Tick(Tick {}), term).await;
    }
}

/// What does not go through comes up again.
async fn propose(running: &Running, body: command::Body, term: u64) {
    let command = Command { body: Some(body), ..Command::default() };
    let answered = running.proposer.propose(command.encode_to_vec().into(), Some(term));
    drop(SimRuntime::timeout(PATIENCE, answered).await);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(epoch: u64) -> BTreeMap<String, (u64, u64)> {
        BTreeMap::from([("s".to_owned(), (epoch, 1_000))])
    }

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn a_deadline_moves_with_a_beat_and_with_a_new_epoch() {
        let mut leases = Leases::default();
        leases.follow(found(1), MS(0));
        assert!(leases.keep_alive("s", MS(900)) && leases.lapsed(MS(1_800)).is_empty());
        leases.follow(found(2), MS(1_800));
        assert!(leases.lapsed(MS(2_700)).is_empty());
        assert_eq!(leases.lapsed(MS(2_800)), [("s".to_owned(), 2)]);
        assert!(!leases.keep_alive("s", MS(2_900)), "its end is on the way");
        leases.follow(BTreeMap::new(), MS(3_000));
        assert!(!leases.keep_alive("s", MS(3_000)), "it is gone");
    }
}
