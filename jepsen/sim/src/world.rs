//! What every part of one run shares: chance, simulated time, the trace, the checks and what they found.
//!
//! Everything here is used by one thread in an order that the seed decides. The locks only satisfy the types, and none
//! is held while a task waits.

use std::fmt;
use std::time::Duration;

use openraft::Instant;
use openraft_rt_sim::SimInstant;
use parking_lot::Mutex;

use crate::invariants::Invariants;
use crate::model::Model;
use crate::plant::Plant;
use crate::rng::Rng;
use crate::trace::Trace;

/// How a run is to be.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Options {
    /// The bug to plant.
    pub(crate) plant: Option<Plant>,
    /// Print every line of the trace.
    pub(crate) verbose: bool,
    /// The state may be made durable before the log that it was made from.
    pub(crate) state_may_lead_log: bool,
}

/// What happened how often.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    /// Calls of clients that were answered.
    pub(crate) answered: u64,
    /// Calls that were given up, their outcome unknown.
    pub(crate) unknown: u64,
    /// Nodes that crashed, whatever the cause.
    pub(crate) crashes: u64,
    /// Faults of the network.
    pub(crate) partitions: u64,
    /// Terms that had a leader.
    pub(crate) elections: u64,
    /// Snapshots taken.
    pub(crate) snapshots: u64,
    /// Snapshots that replaced a state.
    pub(crate) installs: u64,
    /// Entries that were applied first by anybody.
    pub(crate) entries: u64,
}

impl Totals {
    /// Adds another run's.
    pub(crate) fn add(&mut self, other: &Totals) {
        self.answered += other.answered;
        self.unknown += other.unknown;
        self.crashes += other.crashes;
        self.partitions += other.partitions;
        self.elections += other.elections;
        self.snapshots += other.snapshots;
        self.installs += other.installs;
        self.entries += other.entries;
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} calls answered, {} unknown; {} entries; {} crashes, {} partitions, {} elections; {} snapshots taken, \
             {} installed",
            self.answered,
            self.unknown,
            self.entries,
            self.crashes,
            self.partitions,
            self.elections,
            self.snapshots,
            self.installs
        )
    }
}

/// One run.
pub(crate) struct World {
    /// How it is to be.
    pub(crate) options: Options,
    /// What must hold of consensus.
    pub(crate) invariants: Mutex<Invariants>,
    /// What must hold of the answers.
    pub(crate) model: Mutex<Model>,
    /// What happened.
    pub(crate) totals: Mutex<Totals>,
    rng: Mutex<Rng>,
    trace: Mutex<Trace>,
    violations: Mutex<Vec<String>>,
    begun: SimInstant,
}

impl World {
    /// A new run; to be called inside the runtime.
    pub(crate) fn new(seed: u64, options: Options) -> Self {
        World {
            options,
            invariants: Mutex::default(),
            model: Mutex::default(),
            totals: Mutex::default(),
            rng: Mutex::new(Rng::new(seed, 0)),
            trace: Mutex::new(Trace::new(options.verbose)),
            violations: Mutex::default(),
            begun: SimInstant::now(),
        }
    }

    /// Simulated time since the run began.
    pub(crate) fn now(&self) -> Duration {
        SimInstant::now() - self.begun
    }

    /// A number from `from` up to, not including, `to`.
    pub(crate) fn between(&self, from: u64, to: u64) -> u64 {
        self.rng.lock().between(from, to)
    }

    /// Whether something happens that happens so many times in a thousand.
    pub(crate) fn chance(&self, permille: u64) -> bool {
        self.rng.lock().chance(permille)
    }

    /// 64 bits.
    pub(crate) fn draw(&self) -> u64 {
        self.rng.lock().draw()
    }

    /// Whether this bug is planted.
    pub(crate) fn planted(&self, plant: Plant) -> bool {
        self.options.plant == Some(plant)
    }

    /// Something happened.
    pub(crate) fn note(&self, what: fmt::Arguments<'_>) {
        self.trace.lock().note(self.now(), what);
    }

    /// Something must hold.
    pub(crate) fn check(&self, held: Result<(), String>) {
        if let Err(violation) = held {
            self.note(format_args!("VIOLATION {violation}"));
            self.violations.lock().push(violation);
        }
    }

    /// Something cannot be.
    pub(crate) fn violated(&self, what: String) {
        self.check(Err(what));
    }

    /// Whether anything was found: the run ends then.
    pub(crate) fn has_failed(&self) -> bool {
        !self.violations.lock().is_empty()
    }

    /// What was found.
    pub(crate) fn violations(&self) -> Vec<String> {
        self.violations.lock().clone()
    }

    /// The hash over the whole trace.
    pub(crate) fn trace_hash(&self) -> u64 {
        self.trace.lock().hash()
    }

    /// The last lines of the trace.
    pub(crate) fn trace_tail(&self) -> Vec<String> {
        self.trace.lock().last()
    }
}
