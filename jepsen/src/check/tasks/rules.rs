//! What must hold of what clients were told about tasks.
//!
//! Deliberately absent: what the cluster says of itself at the end; that is [`super::table`].

use std::collections::{BTreeMap, BTreeSet};

use super::book::{Book, Claim, End, Said};
use crate::check::Finding;

/// Everything that does not hold.
pub(super) fn findings(book: &Book<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    existence(book, &mut findings);
    states(book, &mut findings);
    for id in book.claims.keys() {
        fences(book, id, &mut findings);
        parents(book, id, &mut findings);
    }
    for id in book.ends.keys() {
        completions(book, id, &mut findings);
    }
    findings
}

/// The ends of a task that may have completed it.
pub(super) fn completing<'b, 'a>(book: &'b Book<'a>, id: &str) -> impl Iterator<Item = &'b End<'a>> {
    book.ends_of(id).iter().filter(|end| end.outcome == "completed" && end.said != Said::Refused)
}

/// What was acknowledged is there, and what is there was asked for, once.
fn existence(book: &Book<'_>, findings: &mut Vec<Finding>) {
    let Some((read, states)) = &book.states else { return };
    for acked in book.acked.iter().filter(|acked| !states.contains_key(acked.id)) {
        findings.push(Finding::new(format!("task {} was acknowledged and is gone", acked.id), [acked.op, *read]));
    }
    let mut by_key: BTreeMap<&str, &str> = BTreeMap::new();
    for id in states.keys().copied() {
        let Some(spec) = book.specs.get(id) else {
            findings.push(Finding::new(format!("task {id} is there and nobody submitted it"), [*read]));
            continue;
        };
        let operations = || spec.submits.iter().copied().chain([*read]);
        if !spec.is_possible {
            findings.push(Finding::new(format!("task {id} is there and every submission of it failed"), operations()));
        }
        if let Some(other) = by_key.insert(spec.key, id) {
            let text = format!("tasks {other} and {id} are there under the one key {}", spec.key);
            findings.push(Finding::new(text, operations()));
        }
    }
}

/// Whoever was acknowledged has come to an end, and to the right one.
fn states(book: &Book<'_>, findings: &mut Vec<Finding>) {
    let Some((read, states)) = &book.states else { return };
    let acked: BTreeSet<&str> = book.acked.iter().map(|acked| acked.id).collect();
    for (id, state) in states {
        if acked.contains(id) && !matches!(*state, "done" | "dead") {
            findings.push(Finding::new(format!("task {id} was acknowledged and is {state} at the end"), [*read]));
        }
        if *state == "done" && completing(book, id).next().is_none() {
            findings.push(Finding::new(format!("task {id} is done and nobody completed it"), [*read]));
        }
        if *state != "done"
            && let Some(end) = completing(book, id).find(|end| end.said == Said::Accepted)
        {
            let text = format!("the completion of task {id} was accepted and it is {state} at the end");
            findings.push(Finding::new(text, [end.op.id, *read]));
        }
    }
    let Some((listed_by, listed)) = &book.dead else { return };
    let dead: BTreeSet<&str> = states.iter().filter(|(_, state)| **state == "dead").map(|(id, _)| *id).collect();
    for id in dead.symmetric_difference(listed) {
        let text = if listed.contains(id) {
            format!("task {id} is a dead letter and not dead")
        } else {
            format!("task {id} is dead and not among the dead letters")
        };
        findings.push(Finding::new(text, [*read, *listed_by]));
    }
}

/// Every grant of a task is under a fence of its own, and fences rise.
fn fences(book: &Book<'_>, id: &str, findings: &mut Vec<Finding>) {
    let claims = book.claims_of(id);
    if !book.specs.get(id).is_some_and(|spec| spec.is_possible) {
        let text = format!("task {id} was given out and no submission of it can have taken effect");
        findings.push(Finding::new(text, claims.iter().map(|claim| claim.op.id)));
    }
    for (n, one) in claims.iter().enumerate() {
        for other in claims.iter().skip(n + 1) {
            let text = if one.fence == other.fence {
                format!("task {id} was given out twice under the fence {}", one.fence)
            } else if contradicts(one, other) || contradicts(other, one) {
                format!("the fences {} and {} of task {id} do not rise with time", one.fence, other.fence)
            } else {
                continue;
            };
            findings.push(Finding::new(text, [one.op.id, other.op.id]));
        }
    }
}

/// Whether the first grant came earlier and has the higher fence.
fn contradicts(first: &Claim<'_>, second: &Claim<'_>) -> bool {
    let by_rev = matches!((first.op.rev(), second.op.rev()), (Some(first), Some(second)) if first < second);
    (by_rev || first.op.is_before(second.op)) && first.fence > second.fence
}

/// One completion at most, and nothing accepted under a fence that was superseded, or that nobody was given.
fn completions(book: &Book<'_>, id: &str, findings: &mut Vec<Finding>) {
    let (claims, ends) = (book.claims_of(id), book.ends_of(id));
    let accepted = || ends.iter().filter(|end| end.said == Said::Accepted);
    let completed: BTreeMap<u64, usize> =
        accepted().filter(|end| end.outcome == "completed").map(|end| (end.fence, end.op.id)).collect();
    if completed.len() > 1 {
        let text = format!("task {id} was completed {} times, under different fences", completed.len());
        findings.push(Finding::new(text, completed.into_values()));
    }
    for end in accepted() {
        if !claims.iter().any(|claim| claim.fence == end.fence) {
            let text = format!("an end of task {id} was accepted under the fence {}, given to nobody", end.fence);
            findings.push(Finding::new(text, [end.op.id]));
        }
        for claim in claims.iter().filter(|claim| claim.fence > end.fence) {
            if is_superseded(claim, end, ends) {
                let text = format!(
                    "an end of task {id} was accepted under the fence {} after it was given out under {}",
                    end.fence, claim.fence
                );
                findings.push(Finding::new(text, [claim.op.id, end.op.id]));
            } else if end.outcome == "completed" && end.op.is_before(claim.op) {
                let text = format!("task {id} was given out under the fence {} after it was completed", claim.fence);
                findings.push(Finding::new(text, [end.op.id, claim.op.id]));
            }
        }
    }
}

/// Whether the later grant came before this accepted end. The same end said again is accepted again, at any time.
fn is_superseded(claim: &Claim<'_>, end: &End<'_>, ends: &[End<'_>]) -> bool {
    let is_first = |other: &End<'_>| {
        let is_same = other.fence == end.fence && other.outcome == end.outcome && other.said != Said::Refused;
        is_same && other.op.began_at < end.op.began_at
    };
    let by_rev = matches!((claim.op.rev(), end.op.rev()), (Some(claim), Some(end)) if claim < end);
    by_rev || claim.op.is_before(end.op) && !ends.iter().any(is_first)
}

/// A task is given out after everything that it waits for was completed.
fn parents(book: &Book<'_>, id: &str, findings: &mut Vec<Finding>) {
    let Some(spec) = book.specs.get(id) else { return };
    for parent in &spec.after {
        for claim in book.claims_of(id) {
            // Others may have been completed only later, and prove nothing.
            let earlier: Vec<&End<'_>> =
                completing(book, parent).filter(|end| end.op.began_at < claim.op.ended_at).collect();
            let comes_later =
                |end: &&End<'_>| matches!((claim.op.rev(), end.op.rev()), (Some(claim), Some(end)) if end > claim);
            // With none at all, all of them come later.
            if earlier.iter().all(comes_later) {
                let text = format!("task {id} was given out before {parent} was completed, which it waits for");
                let ends = earlier.iter().map(|end| end.op.id);
                findings.push(Finding::new(text, [claim.op.id].into_iter().chain(ends)));
            }
        }
    }
}
