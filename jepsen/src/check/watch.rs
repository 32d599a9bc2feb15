//! Watch: what every watcher was told, against the history and against the writes.
//!
//! | must hold | where |
//! |---|---|
//! | an acknowledged write is in the history once, at its rev, with its value | `writes` |
//! | what is in the history was written, and not refused; of unknown outcome it may be there once | `writes` |
//! | what a watcher was told up to a rev is the history up to there, each event once, in order, unchanged | `streams` |
//! | a stream goes on exactly where it stopped, whichever node it comes from | `streams` |
//! | revs rise; nothing is older than what was asked for or newer than what was said | `streams` |
//! | what is gone is said to be gone, truly, and the stream goes on with what is left | `streams` |
//! | in the end every watcher was told everything up to the last acknowledged write | `streams` |
//!
//! A watcher's operations have what it asks for as their key: one that ends in `/` stands for all that begin so. Of the
//! part of the history that is not kept, only what was acknowledged is known; of that, too, nothing may be missing.
//!
//! Every acknowledged write and every answer to a watcher counts as judged.
//!
//! Deliberately absent: how soon a watcher is told.

mod read;
mod streams;
#[cfg(test)]
mod tests;
mod writes;

use read::Watched;

use super::{Checker, Report};
use crate::record::History;

const NAME: &str = "watch";

/// See the module.
#[derive(Clone, Copy, Debug, Default)]
pub struct Watch;

impl Watch {
    /// The checker.
    pub fn new() -> Self {
        Self
    }
}

impl Checker for Watch {
    fn name(&self) -> &'static str {
        NAME
    }

    fn check(&self, history: &History) -> Report {
        let all = match Watched::read(&history.operations) {
            Ok(all) => all,
            Err(why) => return Report::unknown(NAME, 0, why),
        };
        let answers = all.answers() as u64;
        let Some(log) = &all.log else { return Report::unknown(NAME, answers, "the history was not read at the end") };
        let mut findings = Vec::new();
        writes::judge(&all.writes, log, &mut findings);
        streams::judge(&all, log, &mut findings);
        let acknowledged = all.writes.acknowledged() as u64;
        match (acknowledged, answers) {
            (0, _) if findings.is_empty() => Report::unknown(NAME, answers, "no write was acknowledged"),
            (_, 0) if findings.is_empty() => Report::unknown(NAME, acknowledged, "no watcher was told anything"),
            _ => Report::of(NAME, acknowledged + answers, findings),
        }
    }
}
