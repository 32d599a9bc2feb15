//! Linearizability, key by key: is there an order of all operations, each at one moment between its beginning and its
//! end, in which the model gives every answer that was given?
//!
//! Only what clients saw counts: places in the log are not looked at, so a service that lies about those is found here.
//! An operation of unknown outcome may have taken effect at any moment after its beginning, or never; one that failed
//! did not.
//!
//! Keys are judged one by one: a history is linearizable exactly if that of each object is (Herlihy and Wing).
//!
//! Deliberately absent: order between keys. See [`crate::check::replay`].

mod open;
pub(crate) mod search;
#[cfg(test)]
mod tests;

use anyhow::Result;

use crate::check::model::{Kind, Model, answer_of, named};
use crate::check::{Checker, Finding, Report};
use crate::record::{History, Operation, Outcome};

use search::{Found, Known, Maybe, Stuck, search};

/// What it is called in reports.
const NAME: &str = "linearizable";
/// Configurations that are tried of one key.
const BUDGET: u64 = 2_000_000;
/// The operations that a finding shows of many.
const SHOWN: usize = 4;

/// The checker.
#[derive(Clone, Debug)]
pub struct Linear<M> {
    model: M,
    budget: u64,
}

impl<M: Model> Linear<M> {
    /// Every key does what the model does.
    pub fn new(model: M) -> Self {
        Self { model, budget: BUDGET }
    }

    /// The same, which gives up on a key after so many configurations.
    pub fn with_budget(self, budget: u64) -> Self {
        Self { budget, ..self }
    }

    fn search(&self, operations: &[&Operation]) -> Result<Found<M::State>> {
        let (mut known, mut maybe) = (Vec::new(), Vec::new());
        for operation in operations {
            let (id, from, to) = (operation.id, operation.began_at, operation.ended_at);
            match operation.outcome {
                Outcome::Fail => {}
                Outcome::Ok { .. } => {
                    known.push(Known { id, call: self.model.call(operation)?, from, to, room: usize::MAX });
                }
                Outcome::Info => {
                    let call = self.model.call(operation)?;
                    if matches!(self.model.kind(&call), Kind::Write | Kind::Perhaps) {
                        maybe.push(Maybe { call, from });
                    }
                }
            }
        }
        Ok(search(&self.model, known, maybe, self.budget))
    }

    fn finding(&self, key: &str, operations: &[&Operation], judged: usize, stuck: &Stuck<M::State>) -> Finding {
        let Stuck { ordered, state, next } = stuck;
        let of_next: Vec<&Operation> =
            operations.iter().filter(|operation| next.contains(&operation.id)).copied().collect();
        let shown = of_next.iter().take(SHOWN);
        let shown: Vec<String> =
            shown.map(|operation| format!("{} answered {}", named(operation), answer_of(operation))).collect();
        let text = format!(
            "{key:?}: no order explains its {judged} answers; the longest, of {ordered}, leaves {}, and none of those \
             that could be next fits: {}",
            self.model.describe(state),
            shown.join("; ")
        );
        Finding::new(text, next.iter().copied())
    }
}

impl<M: Model> Checker for Linear<M> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn check(&self, history: &History) -> Report {
        let (mut judged, mut findings, mut unknown) = (0, Vec::new(), None);
        for (key, operations) in history.by_key() {
            let answered = operations.iter().filter(|operation| operation.res().is_some()).count();
            match self.search(&operations) {
                Ok(Found::Order(_)) => {}
                Ok(Found::Stuck(stuck)) => findings.push(self.finding(key, &operations, answered, &stuck)),
                Ok(Found::TooMuch) => {
                    let text = format!("{key:?}: {} configurations of its {answered} answers say nothing", self.budget);
                    unknown.get_or_insert(text);
                }
                Err(error) => {
                    unknown.get_or_insert(format!("{key:?}: {error:#}"));
                }
            }
            judged += answered as u64;
        }
        match unknown {
            Some(why) if findings.is_empty() => Report::unknown(NAME, judged, why),
            _ => Report::of(NAME, judged, findings),
        }
    }
}
