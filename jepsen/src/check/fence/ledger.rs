//! What was granted and done under one lock, as far as anybody was told.

use serde_json::Value;

use crate::check::order::Numbered;
use crate::record::{Operation, Outcome};

/// A grant.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grant<'h> {
    pub(super) operation: &'h Operation,
    pub(super) token: u64,
    pub(super) rev: u64,
}

/// Something done under a token.
#[derive(Clone, Copy, Debug)]
pub(super) struct Use<'h> {
    pub(super) operation: &'h Operation,
    pub(super) token: u64,
    /// Whether it was accepted, and where; `None`: nobody knows.
    pub(super) answer: Option<(bool, u64)>,
}

impl Use<'_> {
    pub(super) fn is_write(&self) -> bool {
        self.operation.f == "fenced_write"
    }

    pub(super) fn is_release(&self) -> bool {
        self.operation.f == "release"
    }

    pub(super) fn is_accepted(&self) -> bool {
        matches!(self.answer, Some((true, _)))
    }

    pub(super) fn is_refused(&self) -> bool {
        matches!(self.answer, Some((false, _)))
    }

    /// Where it was accepted.
    pub(super) fn rev(&self) -> Option<u64> {
        self.answer.and_then(|(is_accepted, rev)| is_accepted.then_some(rev))
    }

    /// What was written.
    pub(super) fn value(&self) -> Option<&Value> {
        self.operation.arg.get("value")
    }
}

/// A look at the register.
#[derive(Clone, Copy, Debug)]
pub(super) struct Read<'h> {
    pub(super) operation: &'h Operation,
    pub(super) value: &'h Value,
    pub(super) rev: u64,
}

/// Everything about one lock.
#[derive(Debug, Default)]
pub(super) struct Ledger<'h> {
    /// In the order of the log.
    pub(super) grants: Vec<Grant<'h>>,
    pub(super) uses: Vec<Use<'h>>,
    pub(super) reads: Vec<Read<'h>>,
    /// The refusals of a grant, with where they are placed.
    declined: Vec<(&'h Operation, u64)>,
}

impl<'h> Ledger<'h> {
    pub(super) fn of(operations: &[&'h Operation]) -> Result<Self, String> {
        let mut ledger = Ledger::default();
        for operation in operations.iter().copied() {
            let taken = match operation.f.as_str() {
                "acquire" => ledger.acquire(operation),
                "fenced_write" => ledger.used(operation, "accepted"),
                "extend" | "release" => ledger.used(operation, "ok"),
                "read" => ledger.read(operation),
                _ => None,
            };
            if taken.is_none() {
                return Err(format!("operation {} is none of a lock, or has no place in the log", operation.id));
            }
        }
        ledger.grants.sort_by_key(|grant| grant.rev);
        Ok(ledger)
    }

    /// How many answers there are to judge.
    pub(super) fn len(&self) -> u64 {
        let answered = self.uses.iter().filter(|one| one.answer.is_some()).count();
        (self.grants.len() + answered + self.reads.len()) as u64
    }

    /// What was accepted.
    pub(super) fn accepted(&self) -> impl Iterator<Item = &Use<'h>> {
        self.uses.iter().filter(|one| one.is_accepted())
    }

    /// Every answer with its place. A grant and what was accepted have one of their own.
    pub(super) fn placed(&self) -> Vec<Numbered<'h>> {
        let grants = self.grants.iter().map(|grant| (grant.operation, grant.rev, true));
        let uses = self.uses.iter().filter_map(|one| one.answer.map(|(is_own, rev)| (one.operation, rev, is_own)));
        let reads = self.reads.iter().map(|read| (read.operation, read.rev, false));
        let declined = self.declined.iter().map(|(operation, rev)| (*operation, *rev, false));
        let placed = grants.chain(uses).chain(reads).chain(declined);
        placed.map(|(operation, number, is_own)| Numbered { operation, number, is_own }).collect()
    }

    fn acquire(&mut self, operation: &'h Operation) -> Option<()> {
        let Some(res) = operation.res() else { return Some(()) };
        let rev = operation.rev()?;
        if res.get("got")?.as_bool()? {
            self.grants.push(Grant { operation, token: res.get("token")?.as_u64()?, rev });
        } else {
            self.declined.push((operation, rev));
        }
        Some(())
    }

    fn used(&mut self, operation: &'h Operation, field: &str) -> Option<()> {
        if operation.outcome == Outcome::Fail {
            return Some(());
        }
        let token = operation.arg.get("token")?.as_u64()?;
        let answer = match operation.res() {
            Some(res) => Some((res.get(field)?.as_bool()?, operation.rev()?)),
            None => None,
        };
        self.uses.push(Use { operation, token, answer });
        Some(())
    }

    fn read(&mut self, operation: &'h Operation) -> Option<()> {
        let Some(res) = operation.res() else { return Some(()) };
        self.reads.push(Read { operation, value: res.get("value")?, rev: operation.rev()? });
        Some(())
    }
}
