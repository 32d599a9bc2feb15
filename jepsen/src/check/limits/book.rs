//! What the record says of tasks under limits, put together from all who asked.
//!
//! Deliberately absent: what ought to be.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::told::{Attempts, Claimed, Complete, Completed, Limit, Standing, Submit, Tasks, Try};
use crate::record::{History, Operation, Outcome};

/// Everything. Numbers beside things are those of the operations that said them.
#[derive(Debug, Default)]
pub(super) struct Book<'a> {
    /// By concurrency key.
    pub(super) limits: BTreeMap<&'a str, (u64, usize)>,
    /// Tasks whose submission was acknowledged.
    pub(super) submitted: BTreeMap<String, usize>,
    pub(super) claims: Vec<Claim>,
    pub(super) completions: BTreeMap<(String, u64), Completion>,
    pub(super) tries: Vec<(Try, usize)>,
    pub(super) tasks: Vec<(Standing, usize)>,
    /// All attempts and all tasks were read.
    pub(super) is_read: bool,
    /// The keys of each task.
    keys: BTreeMap<String, Vec<String>>,
    last_pages: (bool, bool),
}

/// A claim that brought a task.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) id: String,
    pub(super) token: u64,
    pub(super) operation: usize,
    /// The place of its answer in the record.
    pub(super) answered_at: usize,
}

/// A completion.
#[derive(Clone, Copy, Debug)]
pub(super) struct Completion {
    pub(super) operation: usize,
    /// The place of its beginning in the record.
    pub(super) asked_at: usize,
    /// `None`: nobody knows.
    pub(super) accepted: Option<bool>,
    pub(super) rev: Option<u64>,
}

/// Reads what was asked or answered; an error says that the record is not one of this workload.
fn read<T: DeserializeOwned>(operation: &Operation, value: &Value) -> Result<T, String> {
    let told = serde_json::from_value(value.clone());
    told.map_err(|error| format!("operation {}, {}, cannot be read: {error}", operation.id, operation.f))
}

impl<'a> Book<'a> {
    /// Reads a record.
    pub(super) fn of(history: &'a History) -> Result<Self, String> {
        let mut book = Self::default();
        for operation in &history.operations {
            book.hear(operation)?;
        }
        book.is_read = book.last_pages == (true, true);
        Ok(book)
    }

    /// Whether the task counts against this limit.
    pub(super) fn has_key(&self, id: &str, key: &str) -> bool {
        self.keys.get(id).is_some_and(|keys| keys.iter().any(|own| own == key))
    }

    /// The completion of this attempt, if it was accepted.
    pub(super) fn accepted(&self, id: &str, token: u64) -> Option<Completion> {
        let completion = self.completions.get(&(id.to_owned(), token)).copied();
        completion.filter(|completion| completion.accepted == Some(true))
    }

    fn hear(&mut self, operation: &'a Operation) -> Result<(), String> {
        let id = operation.id;
        match (operation.f.as_str(), operation.res()) {
            ("limit", Some(_)) => {
                self.limits.insert(&operation.key, (read::<Limit>(operation, &operation.arg)?.max, id));
            }
            ("submit", answer) => {
                let Submit { id: task, keys } = read(operation, &operation.arg)?;
                if answer.is_some() {
                    self.submitted.insert(task.clone(), id);
                }
                self.keys.insert(task, keys);
            }
            ("claim", Some(res)) => {
                let Claimed { id: task, token } = read(operation, res)?;
                let answered_at = operation.ended_at;
                self.claims.extend(task.map(|task| Claim { id: task, token, operation: id, answered_at }));
            }
            ("complete", _) => self.complete(operation)?,
            ("attempts", Some(res)) => {
                let Attempts { attempts, more } = read(operation, res)?;
                self.tries.extend(attempts.into_iter().map(|attempt| (attempt, id)));
                self.last_pages.0 |= !more;
            }
            ("tasks", Some(res)) => {
                let Tasks { tasks, more } = read(operation, res)?;
                self.keys.extend(tasks.iter().map(|task| (task.id.clone(), task.keys.clone())));
                self.tasks.extend(tasks.into_iter().map(|task| (task, id)));
                self.last_pages.1 |= !more;
            }
            ("limit" | "claim" | "attempts" | "tasks", None) => {}
            (other, _) => return Err(format!("operation {id} is {other}, which is none of limits")),
        }
        Ok(())
    }

    fn complete(&mut self, operation: &Operation) -> Result<(), String> {
        let Complete { id, token } = read(operation, &operation.arg)?;
        let accepted = match &operation.outcome {
            Outcome::Ok { res, .. } => Some(read::<Completed>(operation, res)?.accepted),
            Outcome::Info => None,
            // It had no effect; somebody may try again.
            Outcome::Fail => return Ok(()),
        };
        let (rev, asked_at) = (operation.rev(), operation.began_at);
        let completion = Completion { operation: operation.id, asked_at, accepted, rev };
        self.completions.insert((id, token), completion);
        Ok(())
    }
}
