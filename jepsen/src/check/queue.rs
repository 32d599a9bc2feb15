//! Total queue: what was published, against what consumers were given and what became of it.
//!
//! | must hold | where |
//! |---|---|
//! | an acknowledged publish ends acknowledged by a consumer, or dead, and never both | `fates` |
//! | nothing is received that nobody published, and nothing that was refused | `fates` |
//! | a value has one number, however often it was published under one id; numbers rise with time | `fates` |
//! | a dead message had exactly as many attempts as the subscription allows; its counters say the same | `fates` |
//! | of one message tokens and attempts rise, and nothing is delivered after an accepted acknowledgement | `turns` |
//! | a superseded token is refused | `turns` |
//! | of one order key a message moves only when the one before it is acknowledged or dead | `turns` |
//!
//! An attempt may be missing: a consumer that died, or whose session ended, may have had it and said nothing. One may
//! come again under another token only if its consumer left: whatever else ends a delivery counts.
//!
//! Every acknowledged publish and every delivery counts as judged, each redelivery once more.
//!
//! Deliberately absent: whether a delivery failed too early or too late. The record has no clock of the cluster's.

mod fates;
mod read;
#[cfg(test)]
mod tests;
mod turns;

use read::Subscription;

use super::{Checker, Finding, Report};
use crate::record::{History, Operation};

const NAME: &str = "queue";

/// See the module.
#[derive(Clone, Copy, Debug, Default)]
pub struct Queue;

impl Queue {
    /// The checker.
    pub fn new() -> Self {
        Self
    }
}

impl Checker for Queue {
    fn name(&self) -> &'static str {
        NAME
    }

    fn check(&self, history: &History) -> Report {
        let mut judged = 0;
        let mut findings = Vec::new();
        let mut open = Vec::new();
        for (name, operations) in history.by_key() {
            match judge(name, &operations, &mut findings) {
                Ok(some) => judged += some,
                Err(why) => open.push(why),
            }
        }
        match open.first() {
            Some(why) if findings.is_empty() => Report::unknown(NAME, judged, why),
            _ => Report::of(NAME, judged, findings),
        }
    }
}

/// How much there was to judge in one subscription, or why it cannot be told.
fn judge(name: &str, operations: &[&Operation], findings: &mut Vec<Finding>) -> Result<u64, String> {
    let subscription = Subscription::read(operations)?;
    if subscription.is_empty() {
        return Ok(0);
    }
    fates::judge(&subscription, findings);
    turns::judge(&subscription, findings);
    if subscription.end.is_none() {
        return Err(format!("{name} was not read at the end"));
    }
    match subscription.acknowledged().count() {
        0 => Err(format!("nothing published to {name} was acknowledged")),
        published => Ok((published + subscription.receipts.len()) as u64),
    }
}
