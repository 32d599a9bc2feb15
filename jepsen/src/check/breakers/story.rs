//! What the record says of one breaker, in the order of revs.
//!
//! Deliberately absent: what ought to be.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::told::{Asked, Reported, Settings, State, Word};
use crate::record::{Operation, Outcome};

/// One breaker.
#[derive(Debug)]
pub(super) struct Story<'a> {
    pub(super) name: &'a str,
    pub(super) settings: Settings,
    /// By rev.
    pub(super) seen: Vec<Seen<'a>>,
    /// Words of which nobody knows whether they were heard.
    pub(super) unheard: Vec<(&'a Operation, Word)>,
    /// Questions of which nobody knows the answer: each may have been given the probe.
    pub(super) unanswered: Vec<&'a Operation>,
}

/// One answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen<'a> {
    pub(super) operation: &'a Operation,
    pub(super) rev: u64,
    pub(super) state: State,
    pub(super) to: To,
}

/// To what.
#[derive(Clone, Copy, Debug)]
pub(super) enum To {
    Question(Asked),
    Report(Word, Reported),
}

impl Seen<'_> {
    /// The token, if the one who asked is the probe.
    pub(super) fn granted(&self) -> Option<u64> {
        match self.to {
            To::Question(asked) if asked.probe_token > 0 => Some(asked.probe_token),
            To::Question(_) | To::Report(..) => None,
        }
    }

    /// The token and the word of a probe that was heard.
    pub(super) fn probed(&self) -> Option<(u64, bool)> {
        match self.to {
            To::Report(word, _) if word.probe_token > 0 => Some((word.probe_token, word.ok)),
            To::Report(..) | To::Question(_) => None,
        }
    }

    /// A call that was no probe went wrong.
    pub(super) fn is_plain_failure(&self) -> bool {
        matches!(self.to, To::Report(Word { ok: false, probe_token: 0 }, _))
    }

    /// Not before this the answer came, in nanoseconds of the run.
    pub(super) fn ended(&self) -> u64 {
        self.operation.ended.unwrap_or(self.operation.began)
    }
}

fn read<T: DeserializeOwned>(operation: &Operation, value: &Value) -> Result<T, String> {
    let told = serde_json::from_value(value.clone());
    told.map_err(|error| format!("operation {}, {}, cannot be read: {error}", operation.id, operation.f))
}

impl<'a> Story<'a> {
    /// An error says that the record is not one of this workload.
    pub(super) fn of(name: &'a str, operations: &[&'a Operation]) -> Result<Self, String> {
        let configured = operations.iter().find(|operation| operation.f == "configure" && operation.res().is_some());
        let configured = configured.ok_or_else(|| format!("nobody configured {name}"))?;
        let settings = read(configured, &configured.arg)?;
        let mut story = Self { name, settings, seen: Vec::new(), unheard: Vec::new(), unanswered: Vec::new() };
        for operation in operations {
            story.hear(operation)?;
        }
        story.seen.sort_by_key(|seen| seen.rev);
        Ok(story)
    }

    fn hear(&mut self, operation: &'a Operation) -> Result<(), String> {
        let rev = || operation.rev().ok_or_else(|| format!("operation {}, {}, has no rev", operation.id, operation.f));
        match (operation.f.as_str(), operation.res()) {
            ("configure", _) => {}
            ("ask", Some(res)) => {
                let asked: Asked = read(operation, res)?;
                self.seen.push(Seen { operation, rev: rev()?, state: asked.state, to: To::Question(asked) });
            }
            ("report", Some(res)) => {
                let (word, reported): (Word, Reported) = (read(operation, &operation.arg)?, read(operation, res)?);
                self.seen.push(Seen { operation, rev: rev()?, state: reported.state, to: To::Report(word, reported) });
            }
            ("report", None) if operation.outcome == Outcome::Info => {
                self.unheard.push((operation, read(operation, &operation.arg)?));
            }
            ("ask", None) if operation.outcome == Outcome::Info => self.unanswered.push(operation),
            ("ask" | "report", None) => {}
            (other, _) => return Err(format!("operation {} is {other}, which is none of breakers", operation.id)),
        }
        Ok(())
    }

    /// How many words like this may have been heard before that answer came.
    pub(super) fn perhaps(&self, before: &Seen<'_>, is_like: impl Fn(&Word) -> bool) -> u64 {
        let began_before = |operation: &Operation| operation.began_at < before.operation.ended_at;
        self.unheard.iter().filter(|(operation, word)| began_before(operation) && is_like(word)).count() as u64
    }
}
