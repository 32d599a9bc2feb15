//! What may be read: the newest write up to there, or one that nobody heard of.

use std::collections::BTreeMap;

use serde_json::Value;

use super::ledger::{Ledger, Read, Use};
use crate::check::Finding;

/// Holds every read against the writes.
pub(super) fn values(ledger: &Ledger<'_>) -> Vec<Finding> {
    let writes = Writes::of(ledger);
    ledger.reads.iter().filter_map(|read| writes.fault(read)).collect()
}

struct Writes<'r, 'h> {
    /// By what was written, as text.
    by_value: BTreeMap<String, &'r Use<'h>>,
    /// Those that were accepted, by rev, each with the largest token up to it.
    accepted: Vec<(u64, u64, &'r Use<'h>)>,
}

impl<'r, 'h> Writes<'r, 'h> {
    fn of(ledger: &'r Ledger<'h>) -> Self {
        let writes = ledger.uses.iter().filter(|one| one.is_write());
        let by_value = writes.filter_map(|one| Some((one.value()?.to_string(), one))).collect();
        let accepted = ledger.accepted().filter(|one| one.is_write());
        let mut accepted: Vec<_> = accepted.filter_map(|one| Some((one.rev()?, one.token, one))).collect();
        accepted.sort_by_key(|(rev, ..)| *rev);
        let mut largest = 0;
        for (_, token, _) in &mut accepted {
            largest = largest.max(*token);
            *token = largest;
        }
        Self { by_value, accepted }
    }

    /// The newest accepted write up to a place, and the largest token of all up to there.
    fn newest(&self, rev: u64) -> Option<(u64, u64, &'r Use<'h>)> {
        let up_to = self.accepted.partition_point(|(written, ..)| *written <= rev);
        self.accepted.get(up_to.checked_sub(1)?).copied()
    }

    fn fault(&self, read: &Read<'_>) -> Option<Finding> {
        let newest = self.newest(read.rev);
        let Read { operation, value, rev } = *read;
        let id = operation.id;
        let found = |what: String, other: Option<usize>| {
            let text = format!("read {id} of {:?} at rev {rev} shows {value}, {what}", operation.key);
            Some(Finding::new(text, other.into_iter().chain([id])))
        };
        if *read.value == Value::Null {
            let (rev, _, write) = newest?;
            return found(format!("where something was written at {rev}"), Some(write.operation.id));
        }
        let Some(write) = self.by_value.get(&read.value.to_string()) else {
            return found("which nobody wrote, or only without effect".to_owned(), None);
        };
        let other = Some(write.operation.id);
        if write.is_refused() {
            return found("which was refused".to_owned(), other);
        }
        if write.operation.began_at > read.operation.ended_at {
            return found("which nobody had asked for yet".to_owned(), other);
        }
        if let Some(rev) = write.rev().filter(|rev| *rev > read.rev) {
            return found(format!("which was written later, at {rev}"), other);
        }
        let (rev, token, newer) = newest?;
        if write.rev().is_some_and(|written| written < rev) {
            return found(
                format!("where {} was written later, at {rev}", newer.operation.id),
                Some(newer.operation.id),
            );
        }
        if write.token < token {
            return found(format!("written under token {}, after a write under {token}", write.token), other);
        }
        None
    }
}
