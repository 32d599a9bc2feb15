//! One transaction, as it was asked for and answered.
//!
//! Deliberately absent: any judgement of it.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::record::{Operation, Outcome};

/// One step of a transaction. Keys and values are kept as JSON text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A read, and what it gave, if that is known.
    Read(String, Option<Vec<String>>),
    /// An append.
    Append(String, String),
}

impl Step {
    fn read(step: &Value) -> Result<Self> {
        let parts = step.as_array().with_context(|| format!("{step} is no step"))?;
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        Ok(match parts.as_slice() {
            [Value::String(f), key] if f == "r" => Step::Read(text(key), None),
            [Value::String(f), key, Value::Null] if f == "r" => Step::Read(text(key), None),
            [Value::String(f), key, Value::Array(list)] if f == "r" => {
                Step::Read(text(key), Some(list.iter().map(Value::to_string).collect()))
            }
            [Value::String(f), key, value] if f == "append" => Step::Append(text(key), value.to_string()),
            _ => bail!("{step} is no step"),
        })
    }

    /// Whether an answer's step is the answer to this one.
    fn is_answered_by(&self, answer: &Step) -> bool {
        match (self, answer) {
            (Step::Read(key, _), Step::Read(answered, list)) => key == answered && list.is_some(),
            (Step::Append(..), Step::Append(..)) => self == answer,
            _ => false,
        }
    }
}

fn steps(of: &Value) -> Result<Vec<Step>> {
    let steps = of.get("ops").and_then(Value::as_array).with_context(|| format!("{of} has no list of ops"))?;
    steps.iter().map(Step::read).collect()
}

/// One transaction.
#[derive(Clone, Debug)]
pub(super) struct Transaction<'a> {
    pub(super) operation: &'a Operation,
    /// With the answers, where there are some.
    pub(super) steps: Vec<Step>,
}

impl<'a> Transaction<'a> {
    /// Fails on what is no transaction, or no answer to it.
    pub(super) fn of(operation: &'a Operation) -> Result<Self> {
        let id = operation.id;
        ensure!(operation.f == "txn", "#{id}: lists know no {:?}", operation.f);
        let mut asked = steps(&operation.arg).with_context(|| format!("#{id}"))?;
        if let Some(res) = operation.res() {
            let answered = steps(res).with_context(|| format!("the answer of #{id}"))?;
            let fits = |(step, answer): (&Step, &Step)| step.is_answered_by(answer);
            let is_answer = asked.len() == answered.len() && asked.iter().zip(&answered).all(fits);
            ensure!(is_answer, "#{id} was answered something else than it asked: {res}");
            asked = answered;
        }
        Ok(Self { operation, steps: asked })
    }

    pub(super) fn id(&self) -> usize {
        self.operation.id
    }

    pub(super) fn has_failed(&self) -> bool {
        self.operation.outcome == Outcome::Fail
    }

    pub(super) fn is_answered(&self) -> bool {
        matches!(self.operation.outcome, Outcome::Ok { .. })
    }

    /// Its appends.
    pub(super) fn appends(&self) -> impl Iterator<Item = (&str, &str)> {
        self.steps.iter().filter_map(|step| match step {
            Step::Append(key, value) => Some((key.as_str(), value.as_str())),
            Step::Read(..) => None,
        })
    }

    /// What it read of others: each list without what it had appended to it itself, which must be its end.
    pub(super) fn reads(&self) -> Vec<Read<'_>> {
        let mut reads = Vec::new();
        for (at, step) in self.steps.iter().enumerate() {
            let Step::Read(key, Some(list)) = step else { continue };
            let before = self.steps.iter().take(at);
            let own = before.filter_map(|step| match step {
                Step::Append(other, value) if other == key => Some(value.as_str()),
                _ => None,
            });
            let own: Vec<&str> = own.collect();
            let seen = list.len().saturating_sub(own.len());
            let (others, end) = list.split_at(seen);
            let sees_own = end.iter().map(String::as_str).eq(own.iter().copied());
            let others = if sees_own { others } else { list.as_slice() };
            reads.push(Read { key, list: others, sees_own });
        }
        reads
    }
}

/// What one step read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Read<'a> {
    pub(super) key: &'a str,
    pub(super) list: &'a [String],
    /// The list ended with what the transaction had appended itself.
    pub(super) sees_own: bool,
}
