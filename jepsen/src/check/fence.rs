//! Fencing: who may write under a lock is who was granted it last.
//!
//! ```text
//!   acquire                          -> {"got", "token"}
//!   fenced_write {"token", "value"}  -> {"accepted"}       each value is written once
//!   extend, release {"token"}        -> {"ok"}
//!   read                             -> {"value"}
//! ```
//!
//! | must hold | told by |
//! |---|---|
//! | tokens rise, and no two grants have the same | the log; and time, by the record alone |
//! | nothing is accepted under a token but between its grant and the next one, or its release | both |
//! | nothing is accepted under a token once something was refused under it | time |
//! | what is read was accepted, is not older than the newest write up to there, and its token is not either | the log |
//! | the rev of what ended before something else began is not larger | both |
//!
//! What nobody was told of is not held against anybody: a grant of unknown outcome ends no other here, and a write of
//! unknown outcome may be read.
//!
//! Deliberately absent: when a grant ends by itself, and that only one holds a lock at a time. Holders cannot know the
//! first, and the second is of no use without the rest.

mod ledger;
mod reads;
mod rules;

use self::ledger::Ledger;
use super::{Checker, Report};
use crate::record::History;

const NAME: &str = "fence";

/// The checker.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fence;

impl Fence {
    /// The checker.
    pub fn new() -> Self {
        Self
    }
}

impl Checker for Fence {
    fn name(&self) -> &'static str {
        NAME
    }

    fn check(&self, history: &History) -> Report {
        let (mut judged, mut grants, mut writes) = (0, 0, 0);
        let mut findings = Vec::new();
        for (key, operations) in history.by_key() {
            let ledger = match Ledger::of(&operations) {
                Ok(ledger) => ledger,
                Err(why) => return Report::unknown(NAME, judged, format!("{key:?}: {why}")),
            };
            judged += ledger.len();
            grants += ledger.grants.len();
            writes += ledger.accepted().filter(|one| one.is_write()).count();
            findings.extend(rules::tokens(&ledger));
            findings.extend(rules::accepted(&ledger));
            findings.extend(reads::values(&ledger));
        }
        if findings.is_empty() && (grants == 0 || writes == 0) {
            return Report::unknown(NAME, judged, "nobody was granted a lock and wrote under it");
        }
        Report::of(NAME, judged, findings)
    }
}

#[cfg(test)]
mod tests;
