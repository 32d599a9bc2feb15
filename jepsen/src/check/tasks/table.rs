//! What must hold of the cluster's own record of attempts, and between that and what clients were told.
//!
//! Deliberately absent: the order of times across tasks, but for those that wait for each other: the times are the
//! cluster's.

use std::collections::BTreeMap;

use super::book::{Attempt, Book, Said};
use crate::check::Finding;

type Table<'a> = BTreeMap<&'a str, Vec<Attempt<'a>>>;

/// Everything that does not hold.
pub(super) fn findings(book: &Book<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let (Some((read, table)), Some((_, states))) = (&book.attempts, &book.states) else { return findings };
    for (id, attempts) in table {
        if let Some(text) = out_of_line(id, attempts) {
            findings.push(Finding::new(text, [*read]));
        }
    }
    told(book, *read, table, &mut findings);
    for (id, state) in states {
        let found = [spent(book, table, states, id, state), too_early(book, table, id)];
        findings.extend(found.into_iter().flatten().map(|text| Finding::new(text, [*read])));
    }
    findings
}

fn of<'t, 'a>(table: &'t Table<'a>, id: &str) -> &'t [Attempt<'a>] {
    table.get(id).map_or(&[], Vec::as_slice)
}

/// Attempts follow each other: one at a time, numbered from 1, under rising tokens, and at the end none runs.
fn out_of_line(id: &str, attempts: &[Attempt<'_>]) -> Option<String> {
    let mut before: Option<&Attempt<'_>> = None;
    for attempt in attempts {
        let (number, token, ended) = before.map_or((0, 0, 0), |before| (before.number, before.token, before.ended));
        if attempt.number != number + 1 {
            return Some(format!("attempt {} of task {id} follows attempt {number}", attempt.number));
        }
        if attempt.token <= token {
            let Attempt { number, token: low, .. } = attempt;
            return Some(format!("attempt {number} of task {id} has the token {low} after {token}"));
        }
        if attempt.started < ended {
            return Some(format!("attempt {} of task {id} began before the one before it ended", attempt.number));
        }
        if attempt.ended == 0 || attempt.outcome == "running" {
            return Some(format!("attempt {} of task {id} never ended", attempt.number));
        }
        before = Some(attempt);
    }
    None
}

/// What clients were told is there, and what is there a client may have said.
fn told(book: &Book<'_>, read: usize, table: &Table<'_>, findings: &mut Vec<Finding>) {
    for (id, claims) in &book.claims {
        for claim in claims {
            if !of(table, id).iter().any(|attempt| attempt.token == claim.fence) {
                let text = format!("task {id} was given out under the fence {} and has no such attempt", claim.fence);
                findings.push(Finding::new(text, [claim.op.id, read]));
            }
        }
    }
    for (id, ends) in &book.ends {
        for end in ends.iter().filter(|end| end.said == Said::Accepted) {
            let attempt = of(table, id).iter().find(|attempt| attempt.token == end.fence);
            let outcome = attempt.map_or("missing", |attempt| attempt.outcome);
            if outcome != end.outcome {
                let text = format!("an end of task {id}, {}, was accepted and is recorded as {outcome}", end.outcome);
                findings.push(Finding::new(text, [end.op.id, read]));
            }
        }
    }
    for (id, attempts) in table {
        for Attempt { number, token, outcome, .. } in attempts {
            let is_said = |end: &super::book::End<'_>| {
                end.fence == *token && end.outcome == *outcome && end.said != Said::Refused
            };
            if matches!(*outcome, "completed" | "failed" | "released") && !book.ends_of(id).iter().any(is_said) {
                let text = format!("attempt {number} of task {id} is recorded as {outcome}, which nobody said");
                findings.push(Finding::new(text, [read]));
            }
        }
    }
}

/// A task is done by one attempt, its last; it is dead when its attempts are used up, or with what it waited for.
fn spent(book: &Book<'_>, table: &Table<'_>, states: &BTreeMap<&str, &str>, id: &str, state: &str) -> Option<String> {
    let (spec, attempts) = (book.specs.get(id)?, of(table, id));
    let with = |outcome: &str| attempts.iter().filter(|attempt| attempt.outcome == outcome).count() as u64;
    let failed = with("failed") + with("lost") + with("timed_out");
    let limit = spec.attempts.unwrap_or(u64::MAX);
    match state {
        "done" if with("completed") != 1 || attempts.last().is_none_or(|last| last.outcome != "completed") => {
            Some(format!("task {id} is done, with {} completed attempts of {}", with("completed"), attempts.len()))
        }
        "done" if failed >= limit => Some(format!("task {id} is done after {failed} failed attempts of {limit}")),
        "dead" => {
            let is_dead = |id: &&str| states.get(id).is_some_and(|state| *state == "dead");
            let fell = attempts.is_empty() && spec.after.iter().any(is_dead);
            let used_up = spec.attempts.map_or(failed > 0, |limit| failed == limit) && with("completed") == 0;
            (!fell && !used_up).then(|| format!("task {id} is dead after {failed} failed attempts of {limit}"))
        }
        _ => None,
    }
}

/// By the cluster's own clock, too, a task begins after what it waits for. This sees grants of which nobody heard.
fn too_early(book: &Book<'_>, table: &Table<'_>, id: &str) -> Option<String> {
    let began = of(table, id).first()?.started;
    let late = book.specs.get(id)?.after.iter().find(|parent| {
        let completed = of(table, parent).iter().find(|attempt| attempt.outcome == "completed");
        completed.is_none_or(|completed| completed.ended > began)
    })?;
    Some(format!("task {id} began at {began}, before {late} was completed, which it waits for"))
}
