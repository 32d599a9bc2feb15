//! Schedules: each tick is used once in the whole cluster, in its turn, and brings one task.
//!
//! | must hold | seen by |
//! |---|---|
//! | once, in order, none left out | the next tick is the one after those that the run before stands for |
//! | missed ones are named as such | a run stands for more than one tick, or is missed, only as the policy says |
//! | one task | runs and tasks name each other, one to one |
//! | what was told stays told | a run that was read is in every later reading of its rev, unchanged |
//! | by hand besides the ticks | as many as were asked for, each with a task of its own |
//! | a pause is one | between the revs of a pause and of its end the clock brings nothing |
//!
//! The order is that of revs. The cluster's clock is looked at only to say that nothing came before its time.
//!
//! Deliberately absent: how late a tick is. That is a number, not a promise.

mod rules;
mod story;
#[cfg(test)]
mod tests;
pub(crate) mod told;

use std::collections::BTreeMap;

use self::story::Story;
use self::told::Fate;
use super::{Checker, Finding, Report};
use crate::record::History;

const NAME: &str = "ticks";

/// The checker.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ticks;

impl Ticks {
    /// The checker.
    pub fn new() -> Self {
        Self
    }
}

impl Checker for Ticks {
    fn name(&self) -> &'static str {
        NAME
    }

    fn check(&self, history: &History) -> Report {
        let stories: Result<Vec<Story<'_>>, String> =
            history.by_key().into_iter().filter_map(|(name, all)| Story::of(name, &all).transpose()).collect();
        match stories {
            Ok(stories) => judge(&stories),
            Err(why) => Report::unknown(NAME, 0, why),
        }
    }
}

fn judge(stories: &[Story<'_>]) -> Report {
    if !stories.iter().any(|story| story.stand.is_some() && story.tasks.is_some()) {
        return Report::unknown(NAME, 0, "nobody read the schedules at the end");
    }
    let mut findings = Vec::new();
    let mut unseen = None;
    let judged = stories.iter().map(|story| story.runs.len() as u64).sum();
    for story in stories {
        unseen = unseen.or(story_of_one(story, &mut findings));
    }
    one_schedule_each(stories, &mut findings);
    match unseen {
        Some(why) if findings.is_empty() => Report::unknown(NAME, judged, why),
        _ => Report::of(NAME, judged, findings),
    }
}

/// Gives what could not be told.
fn story_of_one(story: &Story<'_>, findings: &mut Vec<Finding>) -> Option<String> {
    let (created, first_tick_ms) = story.created;
    if story.stand.is_none() || story.tasks.is_none() {
        if first_tick_ms.is_some() {
            let text = format!("{} was created, and is not there at the end", story.name);
            findings.push(Finding::new(text, [created]));
        }
        return None;
    }
    rules::policies(story, findings);
    rules::nothing_vanishes(story, findings);
    rules::by_hand_as_asked(story, findings);
    rules::tasks(story, findings);
    rules::counts(story, findings);
    rules::pauses(story, findings);
    rules::one_after_another(story, findings)
}

/// No task is that of two schedules.
fn one_schedule_each(stories: &[Story<'_>], findings: &mut Vec<Finding>) {
    let mut owners: BTreeMap<&str, (&str, usize)> = BTreeMap::new();
    for story in stories {
        for (run, by) in story.runs.values().filter(|(run, _)| run.fate == Fate::Fired) {
            let before = owners.insert(&run.task_id, (story.name, *by));
            if let Some((other, and_by)) = before.filter(|(other, _)| *other != story.name) {
                let text = format!("task {} is that of {other} and of {}", run.task_id, story.name);
                findings.push(Finding::new(text, [and_by, *by]));
            }
        }
    }
}
