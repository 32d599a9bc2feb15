//! A history of tasks, sorted by task.
//!
//! Deliberately absent: judgement. What cannot be read is an error, which makes the verdict unknown.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::record::{History, Operation, Outcome};

/// What was asked for under one id.
#[derive(Debug)]
pub(super) struct Spec<'a> {
    pub(super) key: &'a str,
    pub(super) after: BTreeSet<&'a str>,
    /// How many attempts may fail before it is dead.
    pub(super) attempts: Option<u64>,
    /// Some submission of it may have taken effect.
    pub(super) is_possible: bool,
    pub(super) submits: Vec<usize>,
}

/// A task whose submission was answered.
#[derive(Debug)]
pub(super) struct Acked<'a> {
    pub(super) op: usize,
    pub(super) id: &'a str,
}

/// A task that was given to somebody who heard of it.
#[derive(Debug)]
pub(super) struct Claim<'a> {
    pub(super) op: &'a Operation,
    pub(super) fence: u64,
}

/// What came of a `complete` that may have had an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    Accepted,
    Refused,
    Nothing,
}

/// One word of a worker on what came of its attempt.
#[derive(Debug)]
pub(super) struct End<'a> {
    pub(super) op: &'a Operation,
    pub(super) fence: u64,
    pub(super) outcome: &'a str,
    pub(super) said: Said,
}

/// One line of the cluster's own record.
#[derive(Debug)]
pub(super) struct Attempt<'a> {
    pub(super) number: u64,
    pub(super) token: u64,
    pub(super) outcome: &'a str,
    pub(super) started: u64,
    /// 0: it runs.
    pub(super) ended: u64,
}

/// Everything by task.
#[derive(Debug, Default)]
pub(super) struct Book<'a> {
    pub(super) specs: BTreeMap<&'a str, Spec<'a>>,
    pub(super) acked: Vec<Acked<'a>>,
    pub(super) claims: BTreeMap<&'a str, Vec<Claim<'a>>>,
    pub(super) ends: BTreeMap<&'a str, Vec<End<'a>>>,
    /// The last `final`, and its operation.
    pub(super) states: Option<(usize, BTreeMap<&'a str, &'a str>)>,
    pub(super) dead: Option<(usize, BTreeSet<&'a str>)>,
    /// By number, of each task.
    pub(super) attempts: Option<(usize, BTreeMap<&'a str, Vec<Attempt<'a>>>)>,
}

impl<'a> Book<'a> {
    /// Sorts a history.
    pub(super) fn read(history: &'a History) -> Result<Self> {
        let mut book = Book::default();
        for op in &history.operations {
            book.add(op).with_context(|| format!("operation {} ({}) cannot be read", op.id, op.f))?;
        }
        Ok(book)
    }

    /// What a complete history would have and this one has not.
    pub(super) fn missing(&self) -> Option<&'static str> {
        match self {
            Book { states: None, .. } => Some("answer to final"),
            Book { dead: None, .. } => Some("answer to dead"),
            Book { attempts: None, .. } => Some("answer to attempts"),
            _ => None,
        }
    }

    /// The claims of a task that were heard of.
    pub(super) fn claims_of(&self, id: &str) -> &[Claim<'a>] {
        self.claims.get(id).map_or(&[], Vec::as_slice)
    }

    /// What was said of a task's attempts and may have counted.
    pub(super) fn ends_of(&self, id: &str) -> &[End<'a>] {
        self.ends.get(id).map_or(&[], Vec::as_slice)
    }

    fn add(&mut self, op: &'a Operation) -> Result<()> {
        match (op.f.as_str(), op.res()) {
            ("submit", _) => self.submit(op)?,
            ("claim", Some(res)) => {
                if let Some(id) = res.get("id").and_then(Value::as_str) {
                    self.claims.entry(id).or_default().push(Claim { op, fence: number(res, "fence")? });
                }
            }
            ("complete", _) => self.complete(op)?,
            ("final", Some(res)) => self.states = Some((op.id, states(res)?)),
            ("dead", Some(res)) => self.dead = Some((op.id, texts(res, "ids")?)),
            ("attempts", Some(res)) => self.attempts = Some((op.id, attempts(res)?)),
            _ => {}
        }
        Ok(())
    }

    fn submit(&mut self, op: &'a Operation) -> Result<()> {
        let tasks = op.arg.get("tasks").and_then(Value::as_array).context("it names no tasks")?;
        for (place, task) in tasks.iter().enumerate() {
            let id = text(task, "id")?;
            let key = task.get("key").and_then(Value::as_str).unwrap_or(id);
            let after = texts(task, "after")?;
            let attempts = task.get("attempts").and_then(Value::as_u64);
            let (is_possible, submits) = (false, Vec::new());
            let spec = self.specs.entry(id).or_insert(Spec { key, after, attempts, is_possible, submits });
            spec.is_possible |= op.outcome != Outcome::Fail;
            spec.submits.push(op.id);
            if let Some(res) = op.res() {
                let id = match res.get("ids") {
                    None => id,
                    Some(ids) => ids.get(place).and_then(Value::as_str).context("the answer names too few tasks")?,
                };
                self.acked.push(Acked { op: op.id, id });
            }
        }
        Ok(())
    }

    fn complete(&mut self, op: &'a Operation) -> Result<()> {
        let said = match (&op.outcome, op.res()) {
            (Outcome::Fail, _) => return Ok(()),
            (_, None) => Said::Nothing,
            (_, Some(res)) => {
                let accepted = res.get("accepted").and_then(Value::as_bool).context("accepted is missing")?;
                if accepted { Said::Accepted } else { Said::Refused }
            }
        };
        let outcome = op.arg.get("outcome").and_then(Value::as_str).unwrap_or("completed");
        let end = End { op, fence: number(&op.arg, "fence")?, outcome, said };
        self.ends.entry(text(&op.arg, "id")?).or_default().push(end);
        Ok(())
    }
}

fn text<'a>(value: &'a Value, name: &str) -> Result<&'a str> {
    value.get(name).and_then(Value::as_str).with_context(|| format!("{name} is not a text"))
}

fn number(value: &Value, name: &str) -> Result<u64> {
    value.get(name).and_then(Value::as_u64).with_context(|| format!("{name} is not a number"))
}

fn texts<'a>(value: &'a Value, name: &str) -> Result<BTreeSet<&'a str>> {
    let all = value.get(name).and_then(Value::as_array).with_context(|| format!("{name} is not a list"))?;
    all.iter().map(|one| one.as_str().with_context(|| format!("{name} holds what is not a text"))).collect()
}

fn states(res: &Value) -> Result<BTreeMap<&str, &str>> {
    let states = res.get("states").and_then(Value::as_object).context("states are missing")?;
    states.iter().map(|(id, state)| Ok((id.as_str(), state.as_str().context("a state is not a text")?))).collect()
}

fn attempts(res: &Value) -> Result<BTreeMap<&str, Vec<Attempt<'_>>>> {
    let by_task = res.get("attempts").and_then(Value::as_object).context("attempts are missing")?;
    let mut all = BTreeMap::new();
    for (id, lines) in by_task {
        let lines = lines.as_array().context("the attempts of a task are not a list")?;
        let mut lines = lines.iter().map(attempt).collect::<Result<Vec<_>>>()?;
        lines.sort_by_key(|attempt| attempt.number);
        all.insert(id.as_str(), lines);
    }
    Ok(all)
}

fn attempt(line: &Value) -> Result<Attempt<'_>> {
    Ok(Attempt {
        number: number(line, "number")?,
        token: number(line, "token")?,
        outcome: text(line, "outcome")?,
        started: number(line, "started")?,
        ended: number(line, "ended")?,
    })
}
