//! What tokens must be, and when something may be accepted under one.

use std::collections::BTreeMap;

use super::ledger::{Grant, Ledger, Use};
use crate::check::Finding;
use crate::check::order::{Numbered, against_time, shared};
use crate::record::Operation;

/// Tokens rise with the log and with time, and so do the places in the log.
pub(super) fn tokens(ledger: &Ledger<'_>) -> Vec<Finding> {
    let placed = ledger.placed();
    let mut findings = against_time("the rev", &placed);
    findings.extend(shared("the rev", &placed));
    let tokens = ledger.grants.iter();
    let tokens: Vec<Numbered<'_>> =
        tokens.map(|grant| Numbered { operation: grant.operation, number: grant.token, is_own: true }).collect();
    findings.extend(against_time("the token", &tokens));
    for pair in ledger.grants.windows(2) {
        let [before, after] = pair else { continue };
        if after.token <= before.token {
            let text = format!(
                "{:?} was granted under token {} at rev {}, and under token {} at rev {}",
                after.operation.key, before.token, before.rev, after.token, after.rev
            );
            findings.push(Finding::new(text, [before.operation.id, after.operation.id]));
        }
    }
    findings
}

/// Whatever was accepted was accepted under the grant of that time.
pub(super) fn accepted(ledger: &Ledger<'_>) -> Vec<Finding> {
    let known = Known::of(ledger);
    ledger.accepted().filter_map(|one| known.in_the_log(one).or_else(|| known.in_time(one))).collect()
}

/// What is known of grants and of their ends.
struct Known<'r, 'h> {
    /// By rev.
    grants: &'r [Grant<'h>],
    by_token: BTreeMap<u64, &'r Grant<'h>>,
    /// By when they were heard of: each the one of the largest token so far.
    heard: Vec<&'r Grant<'h>>,
    /// Of each token, the release in the log that came first.
    released: BTreeMap<u64, &'r Use<'h>>,
    /// Of each token, what was first heard of that says that it is over.
    over: BTreeMap<u64, &'r Use<'h>>,
}

impl<'r, 'h> Known<'r, 'h> {
    fn of(ledger: &'r Ledger<'h>) -> Self {
        let mut heard: Vec<&Grant<'_>> = ledger.grants.iter().collect();
        heard.sort_by_key(|grant| grant.operation.ended_at);
        heard.dedup_by(|later, earlier| later.token <= earlier.token);
        let releases = ledger.accepted().filter(|one| one.is_release());
        let ends = ledger.uses.iter().filter(|one| one.is_refused() || (one.is_release() && one.is_accepted()));
        Self {
            grants: &ledger.grants,
            by_token: ledger.grants.iter().map(|grant| (grant.token, grant)).collect(),
            heard,
            released: first(releases, |one| one.rev().unwrap_or(u64::MAX)),
            over: first(ends, |one| one.operation.ended_at as u64),
        }
    }

    /// By the places in the log.
    fn in_the_log(&self, one: &Use<'_>) -> Option<Finding> {
        let rev = one.rev()?;
        let Some(own) = self.by_token.get(&one.token) else {
            let text = format!("{} was accepted, and nobody was granted that token", named(one));
            return Some(Finding::new(text, [one.operation.id]));
        };
        if own.rev >= rev {
            let text = format!("{} was accepted at rev {rev}, and the grant is of rev {}", named(one), own.rev);
            return Some(Finding::new(text, [own.operation.id, one.operation.id]));
        }
        let newest = self.grants.get(self.grants.partition_point(|grant| grant.rev < rev).checked_sub(1)?)?;
        if newest.token != one.token {
            let (token, at) = (newest.token, newest.rev);
            let text = format!("{} was accepted at rev {rev}, after a grant under token {token} at {at}", named(one));
            return Some(Finding::new(text, [newest.operation.id, one.operation.id]));
        }
        let release = self.released.get(&one.token)?;
        let at = release.rev().filter(|at| *at < rev)?;
        let text = format!("{} was accepted at rev {rev}, after the release at {at}", named(one));
        Some(Finding::new(text, [release.operation.id, one.operation.id]))
    }

    /// By the record alone.
    fn in_time(&self, one: &Use<'_>) -> Option<Finding> {
        let began = one.operation.began_at;
        let before = self.heard.partition_point(|grant| grant.operation.ended_at < began);
        let newest = before.checked_sub(1).and_then(|place| self.heard.get(place));
        if let Some(newest) = newest.filter(|newest| newest.token > one.token) {
            let token = newest.token;
            let text = format!("{} was accepted, begun after a grant under token {token} was known", named(one));
            return Some(Finding::new(text, [newest.operation.id, one.operation.id]));
        }
        let over = self.over.get(&one.token).filter(|over| over.operation.ended_at < began)?;
        let Operation { id, f, .. } = over.operation;
        let text = format!("{} was accepted, begun after {f} {id} had shown that the grant is over", named(one));
        Some(Finding::new(text, [*id, one.operation.id]))
    }
}

/// The first of each token.
fn first<'r, 'h: 'r>(
    uses: impl Iterator<Item = &'r Use<'h>>,
    place: impl Fn(&Use<'h>) -> u64,
) -> BTreeMap<u64, &'r Use<'h>> {
    let mut first: BTreeMap<u64, &'r Use<'h>> = BTreeMap::new();
    for one in uses {
        match first.get(&one.token) {
            Some(known) if place(known) <= place(one) => {}
            _ => {
                first.insert(one.token, one);
            }
        }
    }
    first
}

fn named(one: &Use<'_>) -> String {
    let Operation { id, f, key, .. } = one.operation;
    format!("{f} {id} of {key:?} under token {}", one.token)
}
