//! Limits are exact: under each key no more tasks are held at once than its limit, and every task is done at the end.
//!
//! Both accounts are judged by themselves.
//!
//! | account | an attempt is held |
//! |---|---|
//! | of the clients, by the record | from the answer of its claim until an accepted completion is asked for |
//! | of the cluster, by its log | from its token until the rev of its completion; if lost, by the log's clock |
//!
//! The log's clock never falls along the log, but several entries may share a millisecond: what ends and what begins in
//! the same one did not overlap.
//!
//! Deliberately absent: whether the room under a limit is used. That is a number, not a promise; but where no limit was
//! ever reached, nothing was judged.

mod book;
#[cfg(test)]
mod tests;
pub(crate) mod told;

use std::collections::{BTreeMap, BTreeSet};

use self::book::Book;
use self::told::Try;
use super::{Checker, Finding, Report};
use crate::record::History;

const NAME: &str = "limits";

/// The checker.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits;

impl Limits {
    /// The checker.
    pub fn new() -> Self {
        Self
    }
}

impl Checker for Limits {
    fn name(&self) -> &'static str {
        NAME
    }

    fn check(&self, history: &History) -> Report {
        match Book::of(history) {
            Ok(book) => judge(&book),
            Err(why) => Report::unknown(NAME, 0, why),
        }
    }
}

fn judge(book: &Book<'_>) -> Report {
    let judged = book.tries.len() as u64;
    if !book.is_read {
        return Report::unknown(NAME, judged, "nobody read all attempts and all tasks at the end");
    }
    let mut findings = Vec::new();
    let mut is_reached = false;
    for (key, (max, limited)) in &book.limits {
        is_reached |= by_the_log(book, key, *max, *limited, &mut findings);
        by_the_clients(book, key, *max, *limited, &mut findings);
    }
    all_done(book, &mut findings);
    accounts_agree(book, &mut findings);
    if findings.is_empty() && !is_reached {
        return Report::unknown(NAME, judged, "no limit was ever reached");
    }
    Report::of(NAME, judged, findings)
}

/// Something that is held from one moment to another.
#[derive(Clone, Debug)]
struct Held<T> {
    is: T,
    text: String,
    operation: usize,
}

/// Goes through what is held by its beginning. Gives the most at once, and adds the first moment with more than `max`.
fn sweep<T>(
    key: &str,
    (max, limited): (u64, usize),
    all: &[Held<T>],
    is_over: impl Fn(&T, &T) -> bool,
    findings: &mut Vec<Finding>,
) -> u64 {
    let mut held: Vec<&Held<T>> = Vec::new();
    let (mut most, mut is_told) = (0, false);
    for next in all {
        held.retain(|earlier| !is_over(&earlier.is, &next.is));
        held.push(next);
        most = most.max(held.len() as u64);
        if held.len() as u64 > max && !is_told {
            is_told = true;
            let names: Vec<&str> = held.iter().map(|held| held.text.as_str()).collect();
            let text = format!("{key}: {} at once, where the limit is {max}: {}", held.len(), names.join(", "));
            let operations: BTreeSet<usize> = held.iter().map(|held| held.operation).chain([limited]).collect();
            findings.push(Finding::new(text, operations));
        }
    }
    most
}

/// By the cluster's own account. `true`: the limit was reached.
fn by_the_log(book: &Book<'_>, key: &str, max: u64, limited: usize, findings: &mut Vec<Finding>) -> bool {
    let under = book.tries.iter().filter(|(attempt, _)| book.has_key(&attempt.id, key));
    let mut all: Vec<Held<(&Try, Option<u64>)>> = under
        .map(|(attempt, listed)| {
            let completion = book.accepted(&attempt.id, attempt.token);
            let text = format!("{} under token {}", attempt.id, attempt.token);
            let rev = completion.and_then(|completion| completion.rev);
            let operation = completion.map_or(*listed, |completion| completion.operation);
            Held { is: (attempt, rev), text, operation }
        })
        .collect();
    all.sort_unstable_by_key(|held| held.is.0.token);
    sweep(key, (max, limited), &all, had_ended, findings) >= max
}

/// Whether an attempt, perhaps completed at a rev, had ended when the next one began.
fn had_ended((earlier, completed): &(&Try, Option<u64>), (next, _): &(&Try, Option<u64>)) -> bool {
    let ended_at_ms = Some(earlier.ended_at_ms).filter(|ended_at_ms| *ended_at_ms > 0);
    match completed {
        // A completion that was sent again may have been answered with a later rev than its own.
        Some(rev) => *rev <= next.token || ended_at_ms.is_some_and(|ended_at_ms| ended_at_ms < next.started_at_ms),
        None => ended_at_ms.is_some_and(|ended_at_ms| ended_at_ms <= next.started_at_ms),
    }
}

/// By what clients saw: what was certainly held, by the order of the record.
fn by_the_clients(book: &Book<'_>, key: &str, max: u64, limited: usize, findings: &mut Vec<Finding>) {
    let mut all: Vec<Held<(usize, usize)>> = Vec::new();
    for claim in book.claims.iter().filter(|claim| book.has_key(&claim.id, key)) {
        if let Some(completion) = book.accepted(&claim.id, claim.token) {
            let text = format!("{} under token {}", claim.id, claim.token);
            all.push(Held { is: (claim.answered_at, completion.asked_at), text, operation: claim.operation });
        }
    }
    all.sort_unstable_by_key(|held| held.is.0);
    sweep(key, (max, limited), &all, |earlier, next| earlier.1 < next.0, findings);
}

/// Every acknowledged task is there and completed, by one attempt.
fn all_done(book: &Book<'_>, findings: &mut Vec<Finding>) {
    let there: BTreeMap<&str, bool> =
        book.tasks.iter().map(|(task, _)| (task.id.as_str(), task.is_completed)).collect();
    for (id, submitted) in &book.submitted {
        match there.get(id.as_str()) {
            Some(true) => {}
            Some(false) => findings.push(Finding::new(format!("task {id} was not done at the end"), [*submitted])),
            None => findings.push(Finding::new(format!("task {id} is gone"), [*submitted])),
        }
    }
    let mut done: BTreeMap<&str, (u64, usize)> = BTreeMap::new();
    for (attempt, listed) in book.tries.iter().filter(|(attempt, _)| attempt.is_completed) {
        if let Some((token, and_by)) = done.insert(&attempt.id, (attempt.token, *listed)) {
            let text = format!("task {} was completed under token {token} and under {}", attempt.id, attempt.token);
            findings.push(Finding::new(text, [and_by, *listed]));
        }
    }
    for (task, listed) in book.tasks.iter().filter(|(task, _)| task.is_completed) {
        if !done.contains_key(task.id.as_str()) {
            findings.push(Finding::new(format!("task {} is done, and no attempt did it", task.id), [*listed]));
        }
    }
}

/// What clients were told is in the cluster's account.
fn accounts_agree(book: &Book<'_>, findings: &mut Vec<Finding>) {
    let mut tries: BTreeMap<(&str, u64), (bool, usize)> = BTreeMap::new();
    for (attempt, listed) in &book.tries {
        if tries.insert((attempt.id.as_str(), attempt.token), (attempt.is_completed, *listed)).is_some() {
            let text = format!("task {} has two attempts under token {}", attempt.id, attempt.token);
            findings.push(Finding::new(text, [*listed]));
        }
    }
    let mut claimed = BTreeSet::new();
    for claim in &book.claims {
        let grant = (claim.id.as_str(), claim.token);
        if !claimed.insert(grant) {
            let text = format!("task {} was given to two claims under token {}", claim.id, claim.token);
            findings.push(Finding::new(text, [claim.operation]));
        }
        if !tries.contains_key(&grant) {
            let (id, token) = grant;
            let text = format!("task {id} was claimed under token {token}, and there is no such attempt");
            findings.push(Finding::new(text, [claim.operation]));
        }
    }
    for ((id, token), completion) in &book.completions {
        let told = completion.accepted;
        let Some((is_completed, listed)) = tries.get(&(id.as_str(), *token)) else { continue };
        if told.is_some_and(|accepted| accepted != *is_completed) {
            let said = if *is_completed { "refused, and is completed" } else { "accepted, and is not completed" };
            let text = format!("the completion of task {id} under token {token} was {said}");
            findings.push(Finding::new(text, [completion.operation, *listed]));
        }
    }
}
