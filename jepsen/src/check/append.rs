//! Strict serializability of transactions that read lists and append to them.
//!
//! An operation `txn` has `{"ops": [["r", K], ["append", K, V], ...]}`, done in this order, and is answered
//! `{"ops": [["r", K, [V, ...]], ["append", K, V], ...]}`. No value is appended twice to one key, so a list tells in
//! which order its appends were, and each read says after which of them, and before which, it was.
//!
//! | found | by |
//! |---|---|
//! | a value of a transaction that failed (G1a), or of half a one (G1b), of nobody, or there twice | each read |
//! | orders that contradict each other, or a transaction that does not see what it did itself | reads of one key |
//! | transactions that come before themselves (G0, G1c, G-single, G2; a lost append, a stale read) | cycles |
//!
//! A transaction of unknown outcome counts from the moment that somebody read what it appended.
//!
//! Deliberately absent: `rev`. What the log says of itself is not believed here.

mod cycles;
mod graph;
mod lists;
#[cfg(test)]
mod tests;
mod transaction;

use anyhow::Result;

use crate::check::{Checker, Finding, Report};
use crate::record::{History, Outcome};

use lists::Lists;
use transaction::Transaction;

/// What it is called in reports.
const NAME: &str = "list-append";

/// The checker.
#[derive(Clone, Copy, Debug, Default)]
pub struct Append;

impl Append {
    /// Lists begin empty.
    pub fn new() -> Self {
        Self
    }
}

fn findings(transactions: &[Transaction<'_>]) -> Result<Vec<Finding>> {
    let lists = Lists::of(transactions)?;
    let graph = graph::Graph::of(transactions, &lists);
    let mut findings = lists.findings(transactions);
    findings.extend(cycles::findings(&graph));
    Ok(findings)
}

impl Checker for Append {
    fn name(&self) -> &'static str {
        NAME
    }

    fn check(&self, history: &History) -> Report {
        let answered = history.operations.iter().filter(|operation| matches!(operation.outcome, Outcome::Ok { .. }));
        let judged = answered.count() as u64;
        let transactions: Result<Vec<_>> = history.operations.iter().map(Transaction::of).collect();
        match transactions.and_then(|transactions| findings(&transactions)) {
            Ok(findings) => Report::of(NAME, judged, findings),
            Err(error) => Report::unknown(NAME, judged, format!("{error:#}")),
        }
    }
}
