//! Breakers: what is broken is left alone by everybody, and tried by one.
//!
//! | must hold | seen by |
//! |---|---|
//! | while open nobody is admitted, for as long as was said | answers by rev, and how long passed between them |
//! | half-open, one may try | of two probes by rev, the first was heard before, or its time was up |
//! | enough failures in a row open it, fewer do not | the counts in the answers to reports |
//! | only a probe that went well closes it | two answers, one after the other, and what was said between them |
//! | a probe is heard once, and not after it was superseded | the tokens of reports |
//!
//! The order is that of revs. Where a word may have been heard or not, it counts for whatever it would explain.
//!
//! The cluster's time must run as the harness's does: a run in which wall clocks jump cannot be judged by this.
//!
//! Deliberately absent: how soon after its time an open breaker is tried. Nobody may ask.

mod rules;
mod story;
#[cfg(test)]
mod tests;
pub(crate) mod told;

use self::story::Story;
use self::told::State;
use super::{Checker, Report};
use crate::record::History;

const NAME: &str = "breakers";

/// The checker.
#[derive(Clone, Copy, Debug, Default)]
pub struct Breakers;

impl Breakers {
    /// The checker.
    pub fn new() -> Self {
        Self
    }
}

impl Checker for Breakers {
    fn name(&self) -> &'static str {
        NAME
    }

    fn check(&self, history: &History) -> Report {
        let stories: Result<Vec<Story<'_>>, String> =
            history.by_key().into_iter().map(|(name, operations)| Story::of(name, &operations)).collect();
        match stories {
            Ok(stories) => judge(&stories),
            Err(why) => Report::unknown(NAME, 0, why),
        }
    }
}

fn judge(stories: &[Story<'_>]) -> Report {
    let mut findings = Vec::new();
    for story in stories {
        rules::answers(story, &mut findings);
        rules::stays_open(story, &mut findings);
        rules::moves(story, &mut findings);
        rules::probes(story, &mut findings);
        rules::failures(story, &mut findings);
    }
    let judged = stories.iter().map(|story| story.seen.len() as u64).sum();
    let is_tried = |story: &Story<'_>| {
        let is_open = story.seen.iter().any(|seen| seen.state == State::Open);
        is_open && story.seen.iter().any(|seen| seen.granted().is_some())
    };
    if findings.is_empty() && !stories.iter().any(is_tried) {
        return Report::unknown(NAME, judged, "no breaker was open and tried again");
    }
    Report::of(NAME, judged, findings)
}
