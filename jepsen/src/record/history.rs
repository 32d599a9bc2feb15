//! A record, read back: operations with a beginning and, perhaps, an end.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{Event, Phase};

/// How an operation ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It took effect.
    Ok {
        /// What was answered.
        res: Value,
        /// Where in the log, if the server said so.
        rev: Option<u64>,
    },
    /// It certainly had no effect.
    Fail,
    /// Nobody knows; it may take effect after the end of the record.
    Info,
}

/// One operation.
#[derive(Clone, Debug, PartialEq)]
pub struct Operation {
    /// Its place among all operations, by the beginning.
    pub id: usize,
    /// The logical process.
    pub process: u64,
    /// The operation's name.
    pub f: String,
    /// The object it is about.
    pub key: String,
    /// What was asked.
    pub arg: Value,
    /// How it ended.
    pub outcome: Outcome,
    /// When it began, in nanoseconds of the run.
    pub began: u64,
    /// When its end was seen; `None`: never, and its effect may come at any time after the beginning.
    pub ended: Option<u64>,
    /// The place of its beginning among all events: what comes before is before, however the clock reads.
    pub began_at: usize,
    /// The place of its end among all events. `usize::MAX`: its end was not seen.
    pub ended_at: usize,
    /// Who was asked.
    pub node: Option<u64>,
}

impl Operation {
    /// The answer, if there was one.
    pub fn res(&self) -> Option<&Value> {
        match &self.outcome {
            Outcome::Ok { res, .. } => Some(res),
            Outcome::Fail | Outcome::Info => None,
        }
    }

    /// Where in the log it took effect, if the server said so.
    pub fn rev(&self) -> Option<u64> {
        match self.outcome {
            Outcome::Ok { rev, .. } => rev,
            Outcome::Fail | Outcome::Info => None,
        }
    }

    /// Whether it had ended before `other` began.
    pub fn is_before(&self, other: &Operation) -> bool {
        self.ended_at < other.began_at
    }
}

/// All operations of a record, by their beginning.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// Their `id` is their place here.
    pub operations: Vec<Operation>,
}

impl History {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut events = Vec::new();
        for (line, number) in BufReader::new(file).lines().zip(1_u64..) {
            let event = serde_json::from_str(&line?);
            events.push(event.with_context(|| format!("{} line {number} is not an event", path.display()))?);
        }
        Self::of(events).with_context(|| format!("{} is not a history", path.display()))
    }

    /// Pairs beginnings with ends. Fails on what no record can hold: an end without a beginning, two operations of a
    /// process at once, a retired process at work, a time that falls within a process.
    pub fn of(events: Vec<Event>) -> Result<Self> {
        let mut operations: Vec<Operation> = Vec::new();
        let mut open: BTreeMap<u64, usize> = BTreeMap::new();
        let mut retired = BTreeSet::new();
        let mut clock: BTreeMap<u64, u64> = BTreeMap::new();
        for (place, event) in events.into_iter().enumerate() {
            let Event { t, p, ev, f, key, arg, res, rev, node } = event;
            if clock.insert(p, t).is_some_and(|before| before > t) {
                bail!("event {place}: the time of process {p} falls to {t}");
            }
            if ev == Phase::Invoke {
                if retired.contains(&p) {
                    bail!("event {place}: process {p} was retired by an info");
                }
                let id = operations.len();
                if open.insert(p, id).is_some() {
                    bail!("event {place}: process {p} begins {f} with another operation open");
                }
                let (arg, outcome) = (arg.unwrap_or_default(), Outcome::Info);
                let (began_at, ended_at) = (place, usize::MAX);
                operations.push(Operation {
                    id,
                    process: p,
                    f,
                    key,
                    arg,
                    outcome,
                    began: t,
                    ended: None,
                    began_at,
                    ended_at,
                    node,
                });
                continue;
            }
            let operation = open.remove(&p).and_then(|id| operations.get_mut(id));
            let operation = operation.with_context(|| format!("event {place}: {f} of process {p} never began"))?;
            if operation.f != f || operation.key != key {
                bail!(
                    "event {place}: process {p} ends {f} of {key:?}, and began {} of {:?}",
                    operation.f,
                    operation.key
                );
            }
            match ev {
                Phase::Ok => operation.outcome = Outcome::Ok { res: res.unwrap_or_default(), rev },
                Phase::Fail => operation.outcome = Outcome::Fail,
                Phase::Info | Phase::Invoke => {
                    retired.insert(p);
                    // Its effect may come later than anything here.
                    continue;
                }
            }
            (operation.ended, operation.ended_at) = (Some(t), place);
        }
        Ok(History { operations })
    }

    /// The operations of each key, in order.
    pub fn by_key(&self) -> BTreeMap<&str, Vec<&Operation>> {
        let mut keys: BTreeMap<&str, Vec<&Operation>> = BTreeMap::new();
        for operation in &self.operations {
            keys.entry(&operation.key).or_default().push(operation);
        }
        keys
    }
}
