//! Sequential models: what a service that does one operation after another would answer.
//!
//! A model is about one key. It reads an operation once, together with its answer, and then says of any state whether
//! that answer could be given there, and what the state is afterwards.
//!
//! Owns the meaning of the operations of the history format. Where a model leaves room (a token that nobody was told, a
//! claim of which nobody knows what it got), every possibility is a state of its own.
//!
//! Deliberately absent: time. When an operation may have taken effect is for the checkers to say.

mod locks;
mod queue;
mod register;
#[cfg(test)]
pub(crate) mod sample;
#[cfg(test)]
mod tests;

use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::record::Operation;

pub use locks::{Fenced, FencedCall, FencedState, Lock, LockCall, LockState};
pub use queue::{Queue, QueueCall, QueueState};
pub use register::{Register, RegisterCall, RegisterState};

/// What an operation with its answer does to the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It changed the object: a place in the log of its own.
    Write,
    /// Whether it changed the object depends on what was there.
    Perhaps,
    /// It looked, and changed nothing.
    Read,
    /// It was refused, and changed nothing.
    Refusal,
}

/// What one key does, one operation after another.
pub trait Model: Debug + Send + Sync {
    /// What one key is.
    type State: Clone + Debug + Eq + Hash;
    /// One operation with its answer, if that is known.
    type Call: Debug;

    /// Before anybody did anything.
    fn initial(&self) -> Self::State;

    /// Reads an operation and its answer. An error: the model does not know such an operation, or such an answer.
    fn call(&self, operation: &Operation) -> Result<Self::Call>;

    /// What it does.
    fn kind(&self, call: &Self::Call) -> Kind;

    /// Every state after the call with its answer; none: that answer cannot be given in this state. If the answer is
    /// not known, any is fine.
    fn step(&self, state: &Self::State, call: &Self::Call) -> Vec<Self::State>;

    /// The state in a few words.
    fn describe(&self, state: &Self::State) -> String;

    /// Whether the call fits in every state and leaves the same one behind, whatever was there. What takes effect just
    /// before it makes no difference, which shortens a search.
    fn resets(&self, _call: &Self::Call) -> bool {
        false
    }

    /// At least so many calls of unknown outcome, none of which [resets](Model::resets), must take effect in this state
    /// until the answer of `call` fits; `None`: it never fits again, whatever takes effect, unless something resets.
    /// Only to shorten a search: never more than are needed.
    fn needs(&self, _state: &Self::State, _call: &Self::Call) -> Option<usize> {
        Some(0)
    }

    /// Whether the answer of `call` may be owed to `unknown`, and not as well to any other call that
    /// [is alike](Model::is_alike). Only to shorten a search.
    fn shows(&self, _call: &Self::Call, _unknown: &Self::Call) -> bool {
        false
    }

    /// Whether it makes no difference which of two calls of unknown outcome took effect, if no answer
    /// [shows](Model::shows) either. Only to shorten a search.
    fn is_alike(&self, _one: &Self::Call, _other: &Self::Call) -> bool {
        false
    }
}

/// What is named in a finding.
pub(crate) fn named(operation: &Operation) -> String {
    let Operation { id, process, f, key, .. } = operation;
    format!("#{id} ({f} of {key:?} by process {process})")
}

/// The answer of an operation as a finding shows it.
pub(crate) fn answer_of(operation: &Operation) -> String {
    operation.res().map_or_else(|| "nothing".to_owned(), Value::to_string)
}

/// The token of a grant, as far as anybody was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Token {
    Known(u64),
    /// Nobody was told; it is not below this.
    AtLeast(u64),
}

impl Token {
    fn may_be(self, token: u64) -> bool {
        match self {
            Token::Known(known) => known == token,
            Token::AtLeast(least) => least <= token,
        }
    }
}

/// The state, if it is so.
fn only<S>(state: S, is_so: bool) -> Vec<S> {
    if is_so { vec![state] } else { Vec::new() }
}

/// What is left of two possibilities when the answer is known.
fn either<S>(answer: Option<bool>, accepted: Option<S>, refused: Option<S>) -> Vec<S> {
    let accepted = accepted.filter(|_| answer != Some(false));
    let refused = refused.filter(|_| answer != Some(true));
    accepted.into_iter().chain(refused).collect()
}

fn field<'a>(of: &'a Value, name: &str) -> Result<&'a Value> {
    of.get(name).with_context(|| format!("{of} has no {name:?}"))
}

fn number(of: &Value, name: &str) -> Result<u64> {
    field(of, name)?.as_u64().with_context(|| format!("{name:?} of {of} is not a number"))
}

fn truth(of: &Value, name: &str) -> Result<bool> {
    field(of, name)?.as_bool().with_context(|| format!("{name:?} of {of} is neither true nor false"))
}

/// A name: a string, or whatever else stands there, as text.
fn text(of: &Value, name: &str) -> Result<Arc<str>> {
    let value = field(of, name)?;
    Ok(value.as_str().map_or_else(|| value.to_string().into(), Arc::<str>::from))
}
