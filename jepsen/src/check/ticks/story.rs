//! What the record says of one schedule, put together from all that read it.
//!
//! A history shows the newest runs, so each reading is complete from its oldest run to the moment of the reading; one
//! that shows less than was asked for is complete from the beginning.
//!
//! Deliberately absent: what ought to be.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::told::{Brought, Created, Look, Pause, Ran, Run, Runs, Stand, Tasks, Terms};
use crate::check::Finding;
use crate::record::{Operation, Outcome};

/// One schedule. Numbers beside things are those of the operations that said them.
#[derive(Debug)]
pub(super) struct Story<'a> {
    pub(super) name: &'a str,
    pub(super) terms: Terms,
    /// The operation, and whether it is known to have created it: if so, with the first tick.
    pub(super) created: (usize, Option<u64>),
    pub(super) stand: Option<Final<Stand>>,
    pub(super) tasks: Option<Final<Vec<Brought>>>,
    /// By rev.
    pub(super) runs: BTreeMap<u64, (Run, usize)>,
    pub(super) readings: Vec<Reading>,
    /// Which operation showed the run of which rev.
    pub(super) shown: Vec<(usize, u64)>,
    /// Runs by hand that were acknowledged.
    pub(super) by_hand: Vec<(usize, Run)>,
    /// Runs by hand of which nobody knows.
    pub(super) unknown_by_hand: u64,
    pub(super) pauses: Vec<(&'a Operation, bool)>,
    /// Where two readings differ.
    pub(super) conflicts: Vec<Finding>,
}

/// What was read at the end.
#[derive(Debug)]
pub(super) struct Final<T> {
    pub(super) operation: usize,
    /// It holds everything up to here.
    pub(super) rev: u64,
    pub(super) is: T,
}

/// Everything of these revs was read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reading {
    pub(super) operation: usize,
    pub(super) from_rev: u64,
    pub(super) to_rev: u64,
}

/// Reads what was asked or answered; an error says that the record is not one of this workload.
fn read<T: DeserializeOwned>(operation: &Operation, value: &Value) -> Result<T, String> {
    let told = serde_json::from_value(value.clone());
    told.map_err(|error| format!("operation {}, {}, cannot be read: {error}", operation.id, operation.f))
}

fn rev_of(operation: &Operation) -> Result<u64, String> {
    operation.rev().ok_or_else(|| format!("operation {}, {}, has no rev", operation.id, operation.f))
}

impl<'a> Story<'a> {
    /// `None`: nobody asked for this schedule.
    pub(super) fn of(name: &'a str, operations: &[&'a Operation]) -> Result<Option<Self>, String> {
        let Some(creation) = operations.iter().find(|operation| operation.f == "create") else { return Ok(None) };
        if creation.outcome == Outcome::Fail {
            return Ok(None);
        }
        let first_tick_ms = creation.res().map(|res| read::<Created>(creation, res)).transpose()?;
        let mut story = Self {
            name,
            terms: read(creation, &creation.arg)?,
            created: (creation.id, first_tick_ms.map(|created| created.first_tick_ms)),
            stand: None,
            tasks: None,
            runs: BTreeMap::new(),
            readings: Vec::new(),
            shown: Vec::new(),
            by_hand: Vec::new(),
            unknown_by_hand: 0,
            pauses: Vec::new(),
            conflicts: Vec::new(),
        };
        for operation in operations {
            story.hear(operation)?;
        }
        Ok(Some(story))
    }

    fn hear(&mut self, operation: &'a Operation) -> Result<(), String> {
        let id = operation.id;
        match (operation.f.as_str(), operation.res()) {
            ("create", _) => {}
            ("pause", _) => self.pauses.push((operation, read::<Pause>(operation, &operation.arg)?.paused)),
            ("run_now", Some(res)) => {
                let run = read::<Ran>(operation, res)?.run;
                self.by_hand.push((id, run));
            }
            ("run_now", None) => self.unknown_by_hand += u64::from(operation.outcome == Outcome::Info),
            ("look", Some(res)) => {
                let limit = read::<Look>(operation, &operation.arg)?.limit;
                let to_rev = rev_of(operation)?;
                self.look(id, read::<Runs>(operation, res)?.runs, limit, to_rev);
            }
            ("ticks", Some(res)) => {
                self.stand = Some(Final { operation: id, rev: rev_of(operation)?, is: read(operation, res)? });
            }
            ("tasks", Some(res)) => {
                let is = read::<Tasks>(operation, res)?.tasks;
                self.tasks = Some(Final { operation: id, rev: rev_of(operation)?, is });
            }
            ("look" | "ticks" | "tasks", None) => {}
            (other, _) => return Err(format!("operation {id} is {other}, which is none of schedules")),
        }
        Ok(())
    }

    fn look(&mut self, operation: usize, runs: Vec<Run>, limit: usize, to_rev: u64) {
        let oldest = runs.iter().map(|run| run.rev).min().unwrap_or_default();
        let from_rev = if runs.len() < limit { 0 } else { oldest };
        self.readings.push(Reading { operation, from_rev, to_rev });
        for run in runs {
            self.shown.push((operation, run.rev));
            if let Some((before, by)) = self.runs.get(&run.rev)
                && *before != run
            {
                let text = format!("{}: the run of rev {} was {before:?} and is {run:?}", self.name, run.rev);
                self.conflicts.push(Finding::new(text, [*by, operation]));
            }
            self.runs.insert(run.rev, (run, operation));
        }
    }

    /// The runs that the clock brought, in order.
    pub(super) fn by_clock(&self) -> Vec<&(Run, usize)> {
        self.runs.values().filter(|(run, _)| !run.by_hand).collect()
    }

    /// The revs of which everything was read, as far as they hang together.
    pub(super) fn covered(&self) -> Vec<(u64, u64)> {
        let mut parts: Vec<(u64, u64)> =
            self.readings.iter().map(|reading| (reading.from_rev, reading.to_rev)).collect();
        parts.sort_unstable();
        let mut covered: Vec<(u64, u64)> = Vec::new();
        for (from, to) in parts {
            match covered.last_mut() {
                Some((_, end)) if from <= *end => *end = to.max(*end),
                _ => covered.push((from, to)),
            }
        }
        covered
    }
}

/// Whether everything between two revs was read, themselves included.
pub(super) fn is_covered(covered: &[(u64, u64)], from: u64, to: u64) -> bool {
    covered.iter().any(|(begin, end)| *begin <= from && to <= *end)
}
