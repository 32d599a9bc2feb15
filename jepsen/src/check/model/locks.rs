//! A lock with fencing tokens, and the register that is written under it.
//!
//! | operation | answer |
//! |---|---|
//! | `acquire {"owner"}` | `{"got", "token"}`: got if nobody holds it, the token above every earlier one |
//! | `release {"token"}` | `{"ok"}`: only under the holder's token |
//! | `fenced_write {"token", "value"}` | `{"accepted"}`: only under the holder's token |
//! | `read` | `{"value"}`, and `"version"`, the number of accepted writes, where it is said |
//!
//! Who holds a lock and asks again is refused, or is given the same grant once more, under the same token.
//!
//! Deliberately absent: the end of a grant by itself. The run must be shorter than the time of a grant.

use std::sync::Arc;

use anyhow::{Result, bail};
use serde_json::Value;

use crate::record::Operation;

use super::{Kind, Model, Token, either, field, number, only, text, truth};

/// A lock.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lock;

impl Lock {
    /// Free at first.
    pub fn new() -> Self {
        Self
    }
}

/// Who holds a lock.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LockState {
    holder: Option<(Arc<str>, Token)>,
    /// The next token is not below this.
    least: u64,
}

impl LockState {
    fn held(&self, owner: &Arc<str>, token: Token) -> Self {
        let given = match token {
            Token::Known(token) | Token::AtLeast(token) => token,
        };
        let least = self.least.max(given.saturating_add(1));
        Self { holder: Some((Arc::clone(owner), token)), least }
    }

    fn freed(self) -> Self {
        Self { holder: None, ..self }
    }

    /// The state, if `token` is the holder's, and the state, if it is not: both, where nobody knows the holder's.
    fn presented(&self, token: u64) -> (Option<Self>, Option<Self>) {
        match &self.holder {
            Some((owner, held)) if held.may_be(token) => {
                let is_sure = matches!(held, Token::Known(_));
                (Some(self.held(owner, Token::Known(token))), (!is_sure).then(|| self.clone()))
            }
            _ => (None, Some(self.clone())),
        }
    }

    fn acquired(&self, owner: &Arc<str>, answer: Option<(bool, u64)>) -> Vec<Self> {
        match (&self.holder, answer) {
            (None, None) => vec![self.held(owner, Token::AtLeast(self.least))],
            (None, Some((got, token))) => only(self.held(owner, Token::Known(token)), got && token >= self.least),
            (Some(_), None | Some((false, _))) => vec![self.clone()],
            (Some((holder, held)), Some((true, token))) => {
                only(self.held(owner, Token::Known(token)), holder == owner && held.may_be(token))
            }
        }
    }

    fn in_words(&self) -> String {
        let least = self.least;
        match &self.holder {
            None => format!("a free lock, the next token at least {least}"),
            Some((owner, Token::Known(token))) => format!("a lock held by {owner:?} under token {token}"),
            Some((owner, Token::AtLeast(_))) => format!("a lock held by {owner:?} under a token that nobody was told"),
        }
    }
}

/// An operation on a lock.
#[derive(Clone, Debug)]
pub enum LockCall {
    /// An attempt to take it: by whom, whether they got it, and the token.
    Acquire(Arc<str>, Option<(bool, u64)>),
    /// The return of it under a token, and whether that was the holder's.
    Release(u64, Option<bool>),
}

impl LockCall {
    fn read(operation: &Operation) -> Result<Self> {
        let (arg, res) = (&operation.arg, operation.res());
        Ok(match operation.f.as_str() {
            "acquire" => {
                let got = res.map(|res| truth(res, "got")).transpose()?;
                // Who is refused has no token.
                let token = match (got, res) {
                    (Some(true), Some(res)) => number(res, "token")?,
                    _ => 0,
                };
                LockCall::Acquire(text(arg, "owner")?, got.map(|got| (got, token)))
            }
            "release" => LockCall::Release(number(arg, "token")?, res.map(|res| truth(res, "ok")).transpose()?),
            other => bail!("a lock knows no {other:?}"),
        })
    }

    fn kind(&self) -> Kind {
        match self {
            LockCall::Acquire(_, Some((false, _))) | LockCall::Release(_, Some(false)) => Kind::Refusal,
            LockCall::Release(_, Some(true)) => Kind::Write,
            // Who holds it already is given the same grant.
            LockCall::Acquire(..) | LockCall::Release(_, None) => Kind::Perhaps,
        }
    }

    fn step(&self, state: &LockState) -> Vec<LockState> {
        match self {
            LockCall::Acquire(owner, answer) => state.acquired(owner, *answer),
            LockCall::Release(token, answer) => {
                let (held, other) = state.presented(*token);
                either(*answer, held.map(LockState::freed), other)
            }
        }
    }
}

impl Model for Lock {
    type State = LockState;
    type Call = LockCall;

    fn initial(&self) -> LockState {
        LockState { holder: None, least: 0 }
    }

    fn call(&self, operation: &Operation) -> Result<LockCall> {
        LockCall::read(operation)
    }

    fn kind(&self, call: &LockCall) -> Kind {
        call.kind()
    }

    fn step(&self, state: &LockState, call: &LockCall) -> Vec<LockState> {
        call.step(state)
    }

    fn describe(&self, state: &LockState) -> String {
        state.in_words()
    }
}

/// A lock and a register under one key.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fenced;

impl Fenced {
    /// Free, and nothing written.
    pub fn new() -> Self {
        Self
    }
}

/// Who holds the lock, and what is written.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FencedState {
    lock: LockState,
    value: Option<Arc<Value>>,
    version: u64,
}

impl FencedState {
    fn with(&self, lock: LockState) -> Self {
        Self { lock, ..self.clone() }
    }
}

/// An operation on a lock or its register.
#[derive(Clone, Debug)]
pub enum FencedCall {
    /// One on the lock.
    Lock(LockCall),
    /// A write under a token, and whether it was accepted.
    Write(u64, Arc<Value>, Option<bool>),
    /// A read, and the value that it gave, with the version where that is said.
    Read(Option<(Arc<Value>, Option<u64>)>),
}

impl Model for Fenced {
    type State = FencedState;
    type Call = FencedCall;

    fn initial(&self) -> FencedState {
        FencedState { lock: Lock.initial(), value: None, version: 0 }
    }

    fn call(&self, operation: &Operation) -> Result<FencedCall> {
        let (arg, res) = (&operation.arg, operation.res());
        let value = |of: &Value| anyhow::Ok(Arc::new(field(of, "value")?.clone()));
        Ok(match operation.f.as_str() {
            "fenced_write" => {
                let accepted = res.map(|res| truth(res, "accepted")).transpose()?;
                FencedCall::Write(number(arg, "token")?, value(arg)?, accepted)
            }
            "read" => {
                let version = |res: &Value| res.get("version").and_then(Value::as_u64);
                FencedCall::Read(res.map(|res| anyhow::Ok((value(res)?, version(res)))).transpose()?)
            }
            _ => FencedCall::Lock(LockCall::read(operation)?),
        })
    }

    fn kind(&self, call: &FencedCall) -> Kind {
        match call {
            FencedCall::Lock(call) => call.kind(),
            FencedCall::Write(_, _, Some(true)) => Kind::Write,
            FencedCall::Write(_, _, Some(false)) => Kind::Refusal,
            FencedCall::Write(_, _, None) => Kind::Perhaps,
            FencedCall::Read(_) => Kind::Read,
        }
    }

    fn step(&self, state: &FencedState, call: &FencedCall) -> Vec<FencedState> {
        match call {
            FencedCall::Lock(call) => call.step(&state.lock).into_iter().map(|lock| state.with(lock)).collect(),
            FencedCall::Write(token, value, answer) => {
                let (held, other) = state.lock.presented(*token);
                let written = |lock| FencedState {
                    lock,
                    value: Some(Arc::clone(value)),
                    version: state.version.saturating_add(1),
                };
                either(*answer, held.map(written), other.map(|lock| state.with(lock)))
            }
            FencedCall::Read(None) => vec![state.clone()],
            FencedCall::Read(Some((value, version))) => {
                let is_value = **value == *state.value.as_deref().unwrap_or(&Value::Null);
                only(state.clone(), is_value && version.is_none_or(|version| version == state.version))
            }
        }
    }

    fn describe(&self, state: &FencedState) -> String {
        let value = state.value.as_deref().unwrap_or(&Value::Null);
        format!("{} and {value} written", state.lock.in_words())
    }

    fn shows(&self, call: &FencedCall, unknown: &FencedCall) -> bool {
        match (call, unknown) {
            (FencedCall::Read(Some((seen, _))), FencedCall::Write(_, written, _)) => seen == written,
            _ => false,
        }
    }

    fn is_alike(&self, one: &FencedCall, other: &FencedCall) -> bool {
        match (one, other) {
            (FencedCall::Write(one, ..), FencedCall::Write(other, ..)) => one == other,
            _ => false,
        }
    }
}
