//! Tasks: none lost, none made up, each completed once, under the newest fence, and never before what it waits for.
//!
//! | operation | answer |
//! |---|---|
//! | `submit {"tasks": [{"id", "key", "after": [ID], "attempts": N}]}` | `{"ids": [ID]}`; without it, as asked for |
//! | `claim {"worker"}` | `{"id": ID or null, "fence": N}` |
//! | `complete {"id", "fence", "outcome": "completed", "failed" or "released"}` | `{"accepted": bool}` |
//! | `final {}` | `{"states": {ID: "done", "dead", "pending" or "claimed"}}` |
//! | `dead {}` | `{"ids": [ID]}`: the dead letters |
//! | `attempts {}` | `{"attempts": {ID: [{"number", "token", "outcome", "started", "ended"}]}}` |
//!
//! Submissions of one `key` make one task at most. `attempts` is how many may fail before the task is dead. A `rev` of
//! a `complete` is that of its effect: an answer that may be of a second delivery under another `rev` has none.
//!
//! What is read at the end is `final`, `dead` and `attempts`; a history without one of them is not judged to hold.
//!
//! Deliberately absent: leases. That a fence was superseded too early is for [`super::leases`] to say, so a refusal is
//! never a finding by itself.

mod book;
mod rules;
mod table;
#[cfg(test)]
mod tests;

use crate::check::{Checker, Report, Verdict};
use crate::record::History;

use book::Book;

/// The checker of tasks and what they wait for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tasks;

impl Tasks {
    /// There is one kind.
    pub fn new() -> Self {
        Self
    }
}

impl Checker for Tasks {
    fn name(&self) -> &'static str {
        "tasks"
    }

    fn check(&self, history: &History) -> Report {
        let book = match Book::read(history) {
            Ok(book) => book,
            Err(error) => return Report::unknown(self.name(), 0, format!("{error:#}")),
        };
        let judged = book.acked.len() as u64;
        let mut findings = rules::findings(&book);
        findings.extend(table::findings(&book));
        let report = Report::of(self.name(), judged, findings);
        match book.missing() {
            Some(what) if report.verdict == Verdict::Holds => {
                Report::unknown(self.name(), judged, format!("there is no {what}"))
            }
            _ => report,
        }
    }
}
