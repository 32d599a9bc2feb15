//! Strict serializability by `rev`: the log that the service says there was is replayed, and every answer must be what
//! the model gives at its place.
//!
//! | must hold | over |
//! |---|---|
//! | each answer is what the writes before it in the log lead to | each key |
//! | two writes never share one rev | all keys |
//! | what began after something had ended is not before it in the log, and a write is behind it | all keys |
//!
//! A read or a refusal at rev N sees every write up to N, that at N included. An operation without effect (the removal
//! of what is absent) counts as a read.
//!
//! An operation of unknown outcome has no rev. It may have taken any that no answered write has (a hole), behind all
//! that had ended when it began. Where an answer does not fit, those of its key are tried, each at most once, and no
//! more of them than there are holes. That search is bounded: a bound that is reached makes the verdict unknown, unless
//! something else is found.
//!
//! A refusal without a rev is not judged here, as the service may have given an error. A read or a write without one
//! makes the verdict unknown: the log has then no place for it, and a checker must not pass over what it cannot place.
//!
//! Deliberately absent: doubt of `rev`. See [`crate::check::linear`].

mod order;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use anyhow::{Result, bail};

use crate::check::linear::search::{Found, Known, Maybe, Stuck, search};
use crate::check::model::{Kind, Model, answer_of, named};
use crate::check::{Checker, Finding, Report};
use crate::record::{History, Operation, Outcome};

use order::{Log, Place, Placed};

/// What it is called in reports.
const NAME: &str = "rev-replay";
/// Configurations that are tried of one key, beyond one for each of its answers.
const BUDGET: u64 = 2_000_000;

/// The checker.
#[derive(Clone, Debug)]
pub struct Replay<M> {
    model: M,
    budget: u64,
}

/// The operations of one key.
#[derive(Debug)]
struct Key<'a, C> {
    placed: Vec<(Placed<'a>, C)>,
    unknown: Vec<(&'a Operation, C)>,
}

impl<C> Default for Key<'_, C> {
    fn default() -> Self {
        Self { placed: Vec::new(), unknown: Vec::new() }
    }
}

type Keys<'a, C> = BTreeMap<&'a str, Key<'a, C>>;

impl<M: Model> Replay<M> {
    /// Every key does what the model does.
    pub fn new(model: M) -> Self {
        Self { model, budget: BUDGET }
    }

    /// The same, which gives up on a key after so many configurations more than it has answers.
    pub fn with_budget(self, budget: u64) -> Self {
        Self { budget, ..self }
    }

    fn keys<'a>(&self, history: &'a History) -> Result<Keys<'a, M::Call>> {
        let mut keys: Keys<'a, M::Call> = BTreeMap::new();
        for operation in &history.operations {
            if operation.outcome == Outcome::Fail {
                continue;
            }
            let call = self.model.call(operation)?;
            let kind = self.model.kind(&call);
            let key = keys.entry(&operation.key).or_default();
            match (operation.res(), operation.rev(), kind) {
                (Some(_), Some(rev), _) => key.placed.push((Placed::new(operation, rev, kind), call)),
                (None, _, Kind::Write | Kind::Perhaps) => key.unknown.push((operation, call)),
                (None, _, Kind::Read | Kind::Refusal) | (Some(_), None, Kind::Refusal) => {}
                (Some(_), None, _) => bail!("{} was answered without a rev", named(operation)),
            }
        }
        Ok(keys)
    }

    fn replay(&self, log: &Log, key: Key<'_, M::Call>) -> Found<M::State> {
        let Key { placed, unknown } = key;
        let before = |unknown: &Operation| placed.partition_point(|(placed, _)| !log.may_precede(unknown, placed));
        let places = unknown.into_iter().map(|(operation, call)| Maybe { call, from: 2 * before(operation) });
        let maybe: Vec<_> = places.filter(|maybe| maybe.from < 2 * placed.len()).collect();
        let budget = self.budget.saturating_add(placed.len() as u64);
        let mut after = 0;
        let known = placed.into_iter().enumerate().map(|(at, (placed, call))| {
            let room = log.holes(after, &placed);
            after = placed.rev;
            Known { id: placed.operation.id, call, from: 2 * at, to: 2 * at + 1, room }
        });
        search(&self.model, known.collect(), maybe, budget)
    }

    fn finding(&self, history: &History, stuck: &Stuck<M::State>) -> Option<Finding> {
        let operation = history.operations.get(*stuck.next.first()?)?;
        let rev = operation.rev()?;
        let text = format!(
            "{} at rev {rev} answered {}, and the log up to there leaves {}, whatever became of the operations of \
             unknown outcome",
            named(operation),
            answer_of(operation),
            self.model.describe(&stuck.state)
        );
        Some(Finding::new(text, [operation.id]))
    }

    /// The findings, and why something could not be told.
    fn judge(&self, history: &History, mut keys: Keys<'_, M::Call>) -> (Vec<Finding>, Option<String>) {
        for key in keys.values_mut() {
            key.placed.sort_by_key(|(placed, _)| placed.order());
        }
        let all: Vec<Placed<'_>> = keys.values().flat_map(|key| &key.placed).map(|(placed, _)| *placed).collect();
        let log = Log::of(history, all);
        let (mut findings, mut in_time, mut writes, mut unknown) = (Vec::new(), Vec::new(), Vec::new(), None);
        for (name, key) in keys {
            let placed: Vec<Placed<'_>> = key.placed.iter().map(|(placed, _)| *placed).collect();
            let found = self.replay(&log, key);
            for (at, placed) in placed.iter().enumerate() {
                let has_effect = matches!(&found, Found::Order(changed) if changed.get(at) == Some(&true));
                let is_write = placed.place == Place::Write || has_effect;
                in_time.extend(log.out_of_time(history, placed, is_write));
                if is_write {
                    writes.push(*placed);
                }
            }
            match found {
                Found::Order(_) => {}
                Found::Stuck(stuck) => {
                    let finding = self.finding(history, &stuck);
                    let brief = || format!("{name:?}: the log explains no more than {} answers", stuck.ordered);
                    findings.push(finding.unwrap_or_else(|| Finding::new(brief(), stuck.next.iter().copied())));
                }
                Found::TooMuch => {
                    unknown.get_or_insert(format!("{name:?}: {} configurations say nothing", self.budget));
                }
            }
        }
        findings.extend(order::shared_revs(writes));
        findings.extend(in_time);
        (findings, unknown)
    }
}

impl<M: Model> Checker for Replay<M> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn check(&self, history: &History) -> Report {
        let keys = match self.keys(history) {
            Ok(keys) => keys,
            Err(error) => return Report::unknown(NAME, 0, format!("{error:#}")),
        };
        let judged: u64 = keys.values().map(|key| key.placed.len() as u64).sum();
        match self.judge(history, keys) {
            (findings, Some(why)) if findings.is_empty() => Report::unknown(NAME, judged, why),
            (findings, _) => Report::of(NAME, judged, findings),
        }
    }
}
