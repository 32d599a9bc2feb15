//! Leases: none ends early, none lives on long after nobody renews it, and what ended stays ended.
//!
//! One session a key. What goes with it is an ephemeral document, which is there as long as the session.
//!
//! | operation | answer |
//! |---|---|
//! | `open {"ttl_ms", "kept"}` | `{"id", "epoch"}`; `kept`: the library renews it, unseen, until `abandon` or `close` |
//! | `keepalive {"id"}` | `{"alive": bool}` |
//! | `resume {"id"}` | `{"same": bool, "epoch"}`; not the same: it had ended, and a new one has its id |
//! | `close {"id"}`, `abandon {}` | `{"alive": bool}`; `{}` |
//! | `put_ephemeral {"session"}` | `{}` |
//! | `observe {}` | `{"present": bool, "held": bool}`; `held`: the library said so after the answer came |
//! | `list {}`, whatever its key | `{"keys": [KEY]}`: the sessions whose document is there |
//!
//! All times are the harness's. A renewal that was answered happened after it began and before it ended, so
//!
//! - *early* is: seen gone by an operation that ended before the beginning of such a renewal + TTL, and not closed;
//! - *late* is: seen alive by an operation that began after the end of the last such renewal + TTL + an allowance.
//!
//! Deadlines are in the leader's memory: a new leader gives every session a full TTL, and without a leader nobody ends.
//! The allowance is therefore `bound`, and one TTL for a planned change of leader, which no client need notice; for
//! every time longer than `gap` in which no operation of anybody succeeded, that time and another TTL; and for every
//! renewal of which nobody knows what became, which may be taken when the lease is all but over, `bound` and another
//! TTL.
//!
//! Deliberately absent: an upper end to that allowance. A history in which little succeeds proves little of late ends,
//! only of early ones; one in which no lease is seen to lapse is unknown.

mod book;
mod outages;
#[cfg(test)]
mod tests;

use std::time::Duration;

use crate::check::{Checker, Finding, Report, Verdict};
use crate::record::{History, Operation};

use book::{Book, Lease};
use outages::Outages;

/// How late a lease may end that a leader watches over.
const BOUND: Duration = Duration::from_secs(2);
/// Elections take longer.
const GAP: Duration = Duration::from_millis(300);

/// The checker of sessions and what goes with them.
#[derive(Clone, Copy, Debug)]
pub struct Leases {
    bound: u64,
    gap: u64,
}

impl Leases {
    /// With a bound of 2 s, and a gap of 300 ms.
    pub fn new() -> Self {
        Self { bound: nanos(BOUND), gap: nanos(GAP) }
    }

    /// With another bound.
    pub fn bounded(bound: Duration) -> Self {
        Self { bound: nanos(bound), ..Self::new() }
    }
}

impl Default for Leases {
    fn default() -> Self {
        Self::new()
    }
}

impl Checker for Leases {
    fn name(&self) -> &'static str {
        "leases"
    }

    fn check(&self, history: &History) -> Report {
        let book = match Book::read(history) {
            Ok(book) => book,
            Err(error) => return Report::unknown(self.name(), 0, format!("{error:#}")),
        };
        let outages = Outages::of(history, self.gap);
        let (mut findings, mut judged, mut lapsed) = (Vec::new(), 0, 0_u64);
        for (key, lease) in book.leases.iter().filter(|(_, lease)| lease.is_judged()) {
            judged += 1;
            lapsed += u64::from(lease.gone.is_some() && lease.closes.is_empty());
            let found = [early(key, lease), held(key, lease), revived(key, lease), closed(key, lease)];
            findings.extend(found.into_iter().flatten());
            findings.extend(epochs(key, lease));
            findings.extend(self.late(key, lease, &outages));
        }
        let report = Report::of(self.name(), judged, findings);
        match report.verdict {
            Verdict::Holds if lapsed == 0 => Report::unknown(self.name(), judged, "no lease was seen to lapse"),
            _ => report,
        }
    }
}

impl Leases {
    /// Looks at every renewal, which shows that the session was alive, and at the last time it was seen alive.
    fn late(&self, key: &str, lease: &Lease<'_>, outages: &Outages) -> Option<Finding> {
        let renewed = lease.renewals.iter().filter(|renewal| renewal.is_certain).map(|renewal| renewal.op);
        renewed.chain(lease.alive).find_map(|seen| {
            let (deadline, last) = self.deadline(lease, seen, outages)?;
            let over = seen.began.checked_sub(deadline).filter(|over| *over > 0)?;
            let text = format!("lease {key} was seen alive {} ms after it must have ended", over / 1_000_000);
            Some(Finding::new(text, [last.id, seen.id]))
        })
    }

    /// When the lease must have ended, if `seen` itself did not renew it, and what renewed it last.
    fn deadline<'a>(&self, lease: &Lease<'a>, seen: &Operation, outages: &Outages) -> Option<(u64, &'a Operation)> {
        let before = || lease.renewals.iter().filter(|one| one.op.id != seen.id && one.op.began_at < seen.ended_at);
        let certain = before().filter(|renewal| renewal.is_certain).map(|renewal| renewal.op);
        let mut last = certain.max_by_key(|op| op.ended)?;
        let mut unknown = before().filter(|renewal| !renewal.is_certain).count() as u64;
        if lease.is_kept {
            // One renewal may have been under way when it was given up.
            (last, unknown) = (lease.abandoned?, unknown + 1);
        }
        let (from, ttl) = (last.ended?, lease.ttl);
        let usual = ttl.saturating_mul(2 + unknown).saturating_add(self.bound.saturating_mul(1 + unknown));
        let deadline = from.saturating_add(usual).saturating_add(outages.allowance(from, seen.began, ttl));
        Some((deadline, last))
    }
}

/// Seen gone while an answered renewal was good.
fn early(key: &str, lease: &Lease<'_>) -> Option<Finding> {
    let gone = lease.gone.filter(|gone| !lease.may_be_closed(gone))?;
    let ended = gone.ended?;
    let certain = lease.renewals.iter().filter(|renewal| renewal.is_certain && renewal.op.id != gone.id);
    let last = certain.max_by_key(|renewal| renewal.op.began)?;
    let early = last.op.began.saturating_add(lease.ttl).checked_sub(ended).filter(|early| *early > 0)?;
    let text = format!("lease {key} was seen gone {} ms before its time to live was over", early / 1_000_000);
    Some(Finding::new(text, [last.op.id, gone.id]))
}

/// Seen gone, and after that the library said that it is held.
fn held(key: &str, lease: &Lease<'_>) -> Option<Finding> {
    let gone = lease.gone_though_held.filter(|gone| !lease.may_be_closed(gone))?;
    Some(Finding::new(format!("lease {key} was gone while its holder was told that it is held"), [gone.id]))
}

/// Seen gone, and later seen alive.
fn revived(key: &str, lease: &Lease<'_>) -> Option<Finding> {
    let (gone, alive) = (lease.gone?, lease.alive?);
    let text = format!("lease {key} was seen gone and later alive");
    gone.is_before(alive).then(|| Finding::new(text, [gone.id, alive.id]))
}

/// Closed, and later seen alive.
fn closed(key: &str, lease: &Lease<'_>) -> Option<Finding> {
    let alive = lease.alive?;
    let close = lease.closes.iter().find(|close| close.res().is_some() && close.is_before(alive))?;
    Some(Finding::new(format!("lease {key} was closed and later seen alive"), [close.id, alive.id]))
}

/// Epochs rise.
fn epochs(key: &str, lease: &Lease<'_>) -> Option<Finding> {
    lease.epochs.iter().enumerate().find_map(|(n, (first, low))| {
        let (second, high) =
            lease.epochs.iter().skip(n + 1).find(|(second, high)| first.is_before(second) && high <= low)?;
        let text = format!("lease {key} was resumed at epoch {high} after epoch {low}");
        Some(Finding::new(text, [first.id, second.id]))
    })
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
