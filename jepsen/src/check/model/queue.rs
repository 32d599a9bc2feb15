//! A queue of which the entries are claimed, and completed under the fence of the claim.
//!
//! | operation | answer |
//! |---|---|
//! | `enqueue {"id"}` | nothing is read of it; an id that was there already changes nothing |
//! | `claim {"worker"}` | `{"id", "fence"}`: any that waits, its fence above every earlier; `null` only if none does |
//! | `complete {"id", "fence"}` | `{"accepted"}`: only under the fence of the claim, and once |
//! | `final` | `{"states": {ID: "pending", "claimed" or "done"}}`, of every entry |
//!
//! Deliberately absent: claims that end by themselves, and which entry comes first.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::record::Operation;

use super::{Kind, Model, Token, either, field, number, only, text, truth};

/// A queue.
#[derive(Clone, Copy, Debug, Default)]
pub struct Queue;

impl Queue {
    /// Empty at first.
    pub fn new() -> Self {
        Self
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Entry {
    Pending,
    Claimed(Token),
    Done,
}

impl Entry {
    fn word(self) -> &'static str {
        match self {
            Entry::Pending => "pending",
            Entry::Claimed(_) => "claimed",
            Entry::Done => "done",
        }
    }
}

/// What is in a queue, and was.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct QueueState {
    entries: BTreeMap<Arc<str>, Entry>,
    /// The next fence is not below this.
    least: u64,
}

impl QueueState {
    fn with(&self, id: &Arc<str>, entry: Entry) -> Self {
        let mut next = self.clone();
        next.entries.insert(Arc::clone(id), entry);
        next
    }

    fn claimed(&self, id: &Arc<str>, fence: Token) -> Self {
        let given = match fence {
            Token::Known(fence) | Token::AtLeast(fence) => fence,
        };
        Self { least: self.least.max(given.saturating_add(1)), ..self.with(id, Entry::Claimed(fence)) }
    }

    fn pending(&self) -> impl Iterator<Item = &Arc<str>> {
        self.entries.iter().filter(|(_, entry)| **entry == Entry::Pending).map(|(id, _)| id)
    }

    fn after_claim(&self, answer: &Option<Option<(Arc<str>, u64)>>) -> Vec<Self> {
        match answer {
            Some(Some((id, fence))) => {
                let is_pending = self.entries.get(id) == Some(&Entry::Pending);
                only(self.claimed(id, Token::Known(*fence)), is_pending && *fence >= self.least)
            }
            Some(None) => only(self.clone(), self.pending().next().is_none()),
            None if self.pending().next().is_none() => vec![self.clone()],
            None => self.pending().map(|id| self.claimed(id, Token::AtLeast(self.least))).collect(),
        }
    }

    fn after_complete(&self, id: &Arc<str>, fence: u64, answer: Option<bool>) -> Vec<Self> {
        match self.entries.get(id) {
            Some(Entry::Claimed(held)) if held.may_be(fence) => {
                let is_sure = matches!(held, Token::Known(_));
                let mut done = self.with(id, Entry::Done);
                done.least = done.least.max(fence.saturating_add(1));
                either(answer, Some(done), (!is_sure).then(|| self.clone()))
            }
            _ => either(answer, None, Some(self.clone())),
        }
    }

    fn is(&self, states: &BTreeMap<Arc<str>, String>) -> bool {
        let mine = self.entries.iter().map(|(id, entry)| (id, entry.word()));
        mine.eq(states.iter().map(|(id, word)| (id, word.as_str())))
    }
}

/// An operation on a queue.
#[derive(Clone, Debug)]
pub enum QueueCall {
    /// A new entry.
    Enqueue(Arc<str>),
    /// A claim, and what it got, with the fence.
    Claim(Option<Option<(Arc<str>, u64)>>),
    /// The end of a claim, and whether it was accepted.
    Complete(Arc<str>, u64, Option<bool>),
    /// A look at every entry.
    Final(Option<BTreeMap<Arc<str>, String>>),
}

fn claim(res: &Value) -> Result<Option<(Arc<str>, u64)>> {
    if field(res, "id")?.is_null() {
        return Ok(None);
    }
    Ok(Some((text(res, "id")?, number(res, "fence")?)))
}

fn states(res: &Value) -> Result<BTreeMap<Arc<str>, String>> {
    let states = field(res, "states")?.as_object().with_context(|| format!("{res} has no states by id"))?;
    let word = |value: &Value| value.as_str().map(str::to_owned).with_context(|| format!("{value} is no state"));
    states.iter().map(|(id, value)| Ok((Arc::from(id.as_str()), word(value)?))).collect()
}

impl Model for Queue {
    type State = QueueState;
    type Call = QueueCall;

    fn initial(&self) -> QueueState {
        QueueState { entries: BTreeMap::new(), least: 0 }
    }

    fn call(&self, operation: &Operation) -> Result<QueueCall> {
        let (arg, res) = (&operation.arg, operation.res());
        Ok(match operation.f.as_str() {
            "enqueue" => QueueCall::Enqueue(text(arg, "id")?),
            "claim" => QueueCall::Claim(res.map(claim).transpose()?),
            "complete" => {
                let accepted = res.map(|res| truth(res, "accepted")).transpose()?;
                QueueCall::Complete(text(arg, "id")?, number(arg, "fence")?, accepted)
            }
            "final" => QueueCall::Final(res.map(states).transpose()?),
            other => bail!("a queue knows no {other:?}"),
        })
    }

    fn kind(&self, call: &QueueCall) -> Kind {
        match call {
            QueueCall::Enqueue(_) | QueueCall::Claim(None) | QueueCall::Complete(_, _, None) => Kind::Perhaps,
            QueueCall::Claim(Some(Some(_))) | QueueCall::Complete(_, _, Some(true)) => Kind::Write,
            QueueCall::Claim(Some(None)) | QueueCall::Complete(_, _, Some(false)) => Kind::Refusal,
            QueueCall::Final(_) => Kind::Read,
        }
    }

    fn step(&self, state: &QueueState, call: &QueueCall) -> Vec<QueueState> {
        match call {
            QueueCall::Enqueue(id) if state.entries.contains_key(id) => vec![state.clone()],
            QueueCall::Enqueue(id) => vec![state.with(id, Entry::Pending)],
            QueueCall::Claim(answer) => state.after_claim(answer),
            QueueCall::Complete(id, fence, answer) => state.after_complete(id, *fence, *answer),
            QueueCall::Final(None) => vec![state.clone()],
            QueueCall::Final(Some(states)) => only(state.clone(), state.is(states)),
        }
    }

    fn describe(&self, state: &QueueState) -> String {
        let count = |word| state.entries.values().filter(|entry| entry.word() == word).count();
        let (pending, claimed, done) = (count("pending"), count("claimed"), count("done"));
        format!(
            "a queue with {pending} pending, {claimed} claimed, {done} done, the next fence at least {}",
            state.least
        )
    }

    fn shows(&self, call: &QueueCall, unknown: &QueueCall) -> bool {
        match (call, unknown) {
            (QueueCall::Claim(Some(Some((claimed, _)))), QueueCall::Enqueue(id)) => claimed == id,
            _ => false,
        }
    }
}
