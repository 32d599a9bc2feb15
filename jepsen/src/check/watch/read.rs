//! What a record says of writers and watchers. Deliberately absent: any judgement.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::writes::{Effect, Write, Writes};
use crate::record::{Operation, Outcome};

/// Something that happened, as it is told. The value of a removal is null.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct Happened {
    pub(super) rev: u64,
    pub(super) key: String,
    pub(super) value: Value,
}

impl fmt::Display for Happened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}@{}", self.key, self.value, self.rev)
    }
}

/// The whole history, as far as it is kept, in the order in which it was read.
#[derive(Debug, Deserialize)]
pub(super) struct Kept {
    pub(super) from: u64,
    pub(super) events: Vec<Happened>,
}

/// The history, and who read it.
#[derive(Debug)]
pub(super) struct Log<'a> {
    pub(super) op: &'a Operation,
    pub(super) kept: Kept,
}

impl Log<'_> {
    /// What a filter passes from one rev through another.
    pub(super) fn within(&self, filter: &str, from: u64, through: u64) -> Vec<&Happened> {
        let events = &self.kept.events;
        let begin = events.partition_point(|event| event.rev < from);
        let rest = events.get(begin..).unwrap_or_default();
        rest.iter().take_while(|event| event.rev <= through).filter(|event| passes(filter, &event.key)).collect()
    }
}

/// Whether a watcher that asks for this is told of that key.
pub(super) fn passes(filter: &str, key: &str) -> bool {
    if filter.ends_with('/') { key.starts_with(filter) } else { key == filter }
}

/// What a watcher was told at once.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Said {
    /// Everything up to `rev`, after what it was told before.
    Told { rev: u64, events: Vec<Happened> },
    /// What it asks for is gone, and this rev is the oldest that is left.
    Gone { compacted: u64 },
}

/// One wait of a watcher.
#[derive(Debug)]
pub(super) struct Wait<'a> {
    pub(super) op: &'a Operation,
    /// 0: from now on.
    pub(super) from: u64,
    /// `None`: it was given up.
    pub(super) said: Option<Said>,
}

#[derive(Deserialize)]
struct Asked {
    watcher: String,
    from: u64,
}

#[derive(Deserialize)]
struct Put {
    value: Value,
}

#[derive(Deserialize)]
struct Deleted {
    deleted: bool,
}

/// The whole record.
#[derive(Debug, Default)]
pub(super) struct Watched<'a> {
    pub(super) writes: Writes<'a>,
    /// The waits of each watcher, in order.
    pub(super) watchers: BTreeMap<String, Vec<Wait<'a>>>,
    pub(super) log: Option<Log<'a>>,
}

impl<'a> Watched<'a> {
    /// Reads operations in the order of their beginnings. An error names the one that is not what it should be.
    pub(super) fn read(operations: &'a [Operation]) -> Result<Self, String> {
        let mut all = Self::default();
        for op in operations {
            all.add(op)?;
        }
        Ok(all)
    }

    fn add(&mut self, op: &'a Operation) -> Result<(), String> {
        match op.f.as_str() {
            "put" => {
                let Put { value } = read(op, &op.arg)?;
                self.writes.add(Write { op, effect: effect(op, true)?, value });
            }
            "del" => {
                let changed = match op.res() {
                    Some(res) => read::<Deleted>(op, res)?.deleted,
                    None => true,
                };
                self.writes.add(Write { op, effect: effect(op, changed)?, value: Value::Null });
            }
            "watched" => {
                let Asked { watcher, from } = read(op, &op.arg)?;
                let said = op.res().map(|res| read(op, res)).transpose()?;
                self.watchers.entry(watcher).or_default().push(Wait { op, from, said });
            }
            "history" => {
                if let Some(res) = op.res() {
                    self.log = Some(Log { op, kept: read(op, res)? });
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// How often a watcher was told something.
    pub(super) fn answers(&self) -> usize {
        self.watchers.values().flatten().filter(|wait| wait.said.is_some()).count()
    }
}

/// What became of a write. `changed`: if it was answered, it changed something.
fn effect(op: &Operation, changed: bool) -> Result<Effect, String> {
    match (&op.outcome, op.rev()) {
        (Outcome::Fail, _) => Ok(Effect::Refused),
        (Outcome::Info, _) => Ok(Effect::Unknown),
        (Outcome::Ok { .. }, Some(rev)) if changed => Ok(Effect::At(rev)),
        (Outcome::Ok { .. }, Some(rev)) => Ok(Effect::NothingAt(rev)),
        (Outcome::Ok { .. }, None) => Err(format!("operation {} ({}) has no rev", op.id, op.f)),
    }
}

fn read<T: DeserializeOwned>(op: &Operation, said: &Value) -> Result<T, String> {
    T::deserialize(said).map_err(|error| format!("operation {} ({}) is not one: {error}", op.id, op.f))
}
