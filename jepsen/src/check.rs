//! Checkers: each reads a history and says whether a promise held in it.
//!
//! A checker that cannot tell says [`Verdict::Unknown`], and that is not a pass: neither is one that found nothing to
//! check where something should have been.
//!
//! Deliberately absent: clusters, clocks and faults. A checker sees the record and nothing else, so it can be run again
//! years later, on a record of somebody else's.

pub mod append;
pub mod bank;
pub mod breakers;
pub mod fence;
pub mod ids;
pub mod leases;
pub mod limits;
pub mod linear;
pub mod model;
pub mod only;
mod order;
pub mod queue;
pub mod replay;
pub mod tasks;
pub mod ticks;
pub mod watch;

use std::fmt;

use serde::Serialize;

use crate::record::History;

/// What a checker found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", content = "why", rename_all = "snake_case")]
pub enum Verdict {
    /// The promise held.
    Holds,
    /// It was broken, in these places; the first is the one to read.
    Broken(Vec<Finding>),
    /// It could not be told.
    Unknown(String),
}

/// One place where a promise was broken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// One sentence for a person.
    pub text: String,
    /// The operations it is about, by [`crate::record::Operation::id`].
    pub operations: Vec<usize>,
}

impl Finding {
    /// A finding about these operations.
    pub fn new(text: impl Into<String>, operations: impl IntoIterator<Item = usize>) -> Self {
        Self { text: text.into(), operations: operations.into_iter().collect() }
    }
}

/// What one checker says of one history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Which checker.
    pub checker: &'static str,
    /// How many operations it judged: none is never a pass, see [`Report::of`].
    pub judged: u64,
    /// What it found.
    #[serde(flatten)]
    pub verdict: Verdict,
}

impl Report {
    /// Broken if anything was found; unknown if there was nothing to judge.
    pub fn of(checker: &'static str, judged: u64, findings: Vec<Finding>) -> Self {
        let verdict = match (findings.is_empty(), judged) {
            (false, _) => Verdict::Broken(findings),
            (true, 0) => Verdict::Unknown("there was nothing to judge".to_owned()),
            (true, _) => Verdict::Holds,
        };
        Self { checker, judged, verdict }
    }

    /// It could not be told, and why.
    pub fn unknown(checker: &'static str, judged: u64, why: impl Into<String>) -> Self {
        Self { checker, judged, verdict: Verdict::Unknown(why.into()) }
    }

    /// Whether the promise held.
    pub fn holds(&self) -> bool {
        self.verdict == Verdict::Holds
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { checker, judged, verdict } = self;
        match verdict {
            Verdict::Holds => write!(f, "{checker}: holds, {judged} judged"),
            Verdict::Unknown(why) => write!(f, "{checker}: UNKNOWN, {why}"),
            Verdict::Broken(findings) => {
                let first = findings.first().map_or("", |finding| &finding.text);
                write!(f, "{checker}: BROKEN in {} places of {judged} judged; {first}", findings.len())
            }
        }
    }
}

/// A promise that can be checked.
pub trait Checker: Send + Sync {
    /// What it is called in reports.
    fn name(&self) -> &'static str;

    /// Holds the history against the promise.
    fn check(&self, history: &History) -> Report;
}
