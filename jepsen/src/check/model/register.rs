//! A document that is read, written, written on a condition, and removed.
//!
//! | operation | answer |
//! |---|---|
//! | `read` | `{"value", "version"}`; of an absent key `null` and 0 |
//! | `put {"value"}` | `{"version"}`: one more than before |
//! | `cas {"version", "value"}` | `{"ok", "version"}`: done if that was the version; 0 means absent: create it |
//! | `del` | `{"version": 0}`; of an absent key it changes nothing |
//!
//! The version that a `cas` answers is the new one, or, if it was not done, the one that there is.
//!
//! Deliberately absent: the end of a document by itself, with its session or its time.

use std::sync::Arc;

use anyhow::{Result, bail};
use serde_json::Value;

use crate::record::Operation;

use super::{Kind, Model, field, number, only, truth};

/// A document.
#[derive(Clone, Copy, Debug)]
pub struct Register {
    removals_count: bool,
}

impl Register {
    /// Versions begin at 1 with every creation.
    pub fn new() -> Self {
        Self { removals_count: false }
    }

    /// A removal takes a version too: what is created after it has the one after that.
    pub fn counting_removals() -> Self {
        Self { removals_count: true }
    }
}

impl Default for Register {
    fn default() -> Self {
        Self::new()
    }
}

/// What a document is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RegisterState {
    value: Option<Arc<Value>>,
    /// The newest version, that of a removal included where those count.
    last: u64,
}

impl RegisterState {
    fn version(&self) -> u64 {
        if self.value.is_some() { self.last } else { 0 }
    }

    fn value(&self) -> &Value {
        self.value.as_deref().unwrap_or(&Value::Null)
    }

    fn written(&self, value: &Arc<Value>) -> Self {
        Self { value: Some(Arc::clone(value)), last: self.last.saturating_add(1) }
    }
}

/// An operation on a document.
#[derive(Clone, Debug)]
pub enum RegisterCall {
    /// A read, and the value and version that it gave.
    Read(Option<(Arc<Value>, u64)>),
    /// A write of a value, and the version that it gave.
    Put(Arc<Value>, Option<u64>),
    /// A write of a value if this was the version; whether it was done, and the version there is.
    Cas(u64, Arc<Value>, Option<(bool, u64)>),
    /// A removal, and the version that it gave.
    Delete(Option<u64>),
}

impl Model for Register {
    type State = RegisterState;
    type Call = RegisterCall;

    fn initial(&self) -> RegisterState {
        RegisterState { value: None, last: 0 }
    }

    fn call(&self, operation: &Operation) -> Result<RegisterCall> {
        let (arg, res) = (&operation.arg, operation.res());
        let value = |of: &Value| anyhow::Ok(Arc::new(field(of, "value")?.clone()));
        let version = || res.map(|res| number(res, "version")).transpose();
        Ok(match operation.f.as_str() {
            "read" => RegisterCall::Read(res.map(value).transpose()?.zip(version()?)),
            "put" => RegisterCall::Put(value(arg)?, version()?),
            "cas" => {
                let done = res.map(|res| truth(res, "ok")).transpose()?;
                RegisterCall::Cas(number(arg, "version")?, value(arg)?, done.zip(version()?))
            }
            "del" => RegisterCall::Delete(version()?),
            other => bail!("a document knows no {other:?}"),
        })
    }

    fn kind(&self, call: &RegisterCall) -> Kind {
        match call {
            RegisterCall::Read(_) => Kind::Read,
            RegisterCall::Put(..) | RegisterCall::Cas(_, _, Some((true, _))) => Kind::Write,
            RegisterCall::Cas(_, _, Some((false, _))) => Kind::Refusal,
            RegisterCall::Cas(_, _, None) | RegisterCall::Delete(_) => Kind::Perhaps,
        }
    }

    fn step(&self, state: &RegisterState, call: &RegisterCall) -> Vec<RegisterState> {
        match call {
            RegisterCall::Read(None) => vec![state.clone()],
            RegisterCall::Read(Some((value, version))) => {
                only(state.clone(), *version == state.version() && **value == *state.value())
            }
            RegisterCall::Put(value, version) => {
                let next = state.written(value);
                let is_so = version.is_none_or(|version| version == next.last);
                only(next, is_so)
            }
            RegisterCall::Cas(expected, value, answer) => {
                let fits = *expected == state.version();
                let next = if fits { state.written(value) } else { state.clone() };
                let is_so = answer.is_none_or(|(done, version)| done == fits && version == next.version());
                only(next, is_so)
            }
            RegisterCall::Delete(version) => {
                let next = match &state.value {
                    Some(_) if self.removals_count => RegisterState { value: None, last: state.last.saturating_add(1) },
                    Some(_) => self.initial(),
                    None => state.clone(),
                };
                only(next, version.is_none_or(|version| version == 0))
            }
        }
    }

    fn describe(&self, state: &RegisterState) -> String {
        match &state.value {
            Some(value) => format!("{value} at version {}", state.last),
            None => "an absent key".to_owned(),
        }
    }

    fn resets(&self, call: &RegisterCall) -> bool {
        !self.removals_count && matches!(call, RegisterCall::Delete(None | Some(0)))
    }

    /// Each write makes one version, so their number is known; only a removal can lead back.
    fn needs(&self, state: &RegisterState, call: &RegisterCall) -> Option<usize> {
        if !self.step(state, call).is_empty() {
            return Some(0);
        }
        let last = match call {
            RegisterCall::Put(_, Some(version)) | RegisterCall::Cas(_, _, Some((true, version))) => {
                version.checked_sub(1)?
            }
            // Absent, where there is something.
            RegisterCall::Read(Some((_, 0))) | RegisterCall::Cas(_, _, Some((false, 0))) => {
                return self.removals_count.then_some(1);
            }
            RegisterCall::Read(Some((_, version))) | RegisterCall::Cas(_, _, Some((false, version))) => *version,
            RegisterCall::Read(None) | RegisterCall::Put(_, None) => return None,
            RegisterCall::Cas(_, _, None) | RegisterCall::Delete(_) => return None,
        };
        let missing = last.checked_sub(state.last).filter(|missing| *missing > 0)?;
        usize::try_from(missing).ok()
    }

    fn shows(&self, call: &RegisterCall, unknown: &RegisterCall) -> bool {
        match (call, unknown) {
            (RegisterCall::Read(Some((seen, _))), RegisterCall::Put(written, _) | RegisterCall::Cas(_, written, _)) => {
                seen == written
            }
            _ => false,
        }
    }

    fn is_alike(&self, one: &RegisterCall, other: &RegisterCall) -> bool {
        match (one, other) {
            (RegisterCall::Put(..), RegisterCall::Put(..)) | (RegisterCall::Delete(_), RegisterCall::Delete(_)) => true,
            (RegisterCall::Cas(one, ..), RegisterCall::Cas(other, ..)) => one == other,
            _ => false,
        }
    }
}
