//! Numbers that must follow real time: what ended before something else began has the smaller one; and some that are to
//! be there once.
//!
//! Deliberately absent: where the numbers come from. Places in the log, tokens and ids are all held against it.

use std::collections::BTreeMap;

use super::Finding;
use crate::record::Operation;

/// An operation and its number.
#[derive(Clone, Copy, Debug)]
pub(super) struct Numbered<'h> {
    pub(super) operation: &'h Operation,
    pub(super) number: u64,
    /// It must be larger than every earlier one, not just as large.
    pub(super) is_own: bool,
}

/// The operations whose number is too small for what had ended before they began. `what` names the numbers: "the rev".
pub(super) fn against_time(what: &str, numbered: &[Numbered<'_>]) -> Vec<Finding> {
    let mut by_end: Vec<&Numbered<'_>> = numbered.iter().collect();
    by_end.sort_by_key(|one| one.operation.ended_at);
    let mut by_begin: Vec<&Numbered<'_>> = numbered.iter().collect();
    by_begin.sort_by_key(|one| one.operation.began_at);
    let mut ended = by_end.into_iter().peekable();
    let mut largest: Option<&Numbered<'_>> = None;
    let mut findings = Vec::new();
    for one in by_begin {
        while let Some(before) = ended.next_if(|before| before.operation.ended_at < one.operation.began_at) {
            if largest.is_none_or(|largest| largest.number < before.number) {
                largest = Some(before);
            }
        }
        let Some(before) = largest else { continue };
        if one.number < before.number || (one.is_own && one.number == before.number) {
            findings.push(found(what, before, one));
        }
    }
    findings
}

/// The numbers that more than one operation has for its own.
pub(super) fn shared(what: &str, numbered: &[Numbered<'_>]) -> Vec<Finding> {
    let mut owners: BTreeMap<u64, Vec<&Operation>> = BTreeMap::new();
    for one in numbered.iter().filter(|one| one.is_own) {
        owners.entry(one.number).or_default().push(one.operation);
    }
    let several = owners.into_iter().filter(|(_, owners)| owners.len() > 1);
    several
        .map(|(number, owners)| {
            let names = owners.iter().map(|one| format!("{} {} of {:?}", one.f, one.id, one.key));
            let text = format!("{what} {number} is that of {}", names.collect::<Vec<String>>().join(" and of "));
            Finding::new(text, owners.iter().map(|one| one.id))
        })
        .collect()
}

fn found(what: &str, before: &Numbered<'_>, after: &Numbered<'_>) -> Finding {
    let (earlier, later) = (before.operation, after.operation);
    let text = format!(
        "{what} of {} of {:?} by process {} is {}, but {} of {:?} by process {} had {} and ended before it began",
        later.f, later.key, later.process, after.number, earlier.f, earlier.key, earlier.process, before.number
    );
    Finding::new(text, [earlier.id, later.id])
}
