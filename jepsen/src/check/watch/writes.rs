//! The writes, and whether the history is made of them.

use std::collections::BTreeMap;

use serde_json::Value;

use super::read::{Happened, Log};
use crate::check::Finding;
use crate::record::Operation;

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// It took effect at this rev.
    At(u64),
    /// It was answered at this rev, and there was nothing to change.
    NothingAt(u64),
    /// Nobody knows.
    Unknown,
    /// It had none.
    Refused,
}

/// One write. A removal writes null.
#[derive(Debug)]
pub(super) struct Write<'a> {
    pub(super) op: &'a Operation,
    pub(super) effect: Effect,
    pub(super) value: Value,
}

impl Write<'_> {
    /// What a watcher is told of it, if it took effect at this rev.
    fn at(&self, rev: u64) -> Happened {
        Happened { rev, key: self.op.key.clone(), value: self.value.clone() }
    }
}

/// All writes.
#[derive(Debug, Default)]
pub(super) struct Writes<'a> {
    all: Vec<Write<'a>>,
    /// By the rev of their answer.
    by_rev: BTreeMap<u64, Vec<usize>>,
    /// By key, and by value as text.
    by_value: BTreeMap<(String, String), Vec<usize>>,
}

impl<'a> Writes<'a> {
    /// One more.
    pub(super) fn add(&mut self, write: Write<'a>) {
        let place = self.all.len();
        if let Effect::At(rev) | Effect::NothingAt(rev) = write.effect {
            self.by_rev.entry(rev).or_default().push(place);
        }
        self.by_value.entry((write.op.key.clone(), write.value.to_string())).or_default().push(place);
        self.all.push(write);
    }

    /// How many were acknowledged.
    pub(super) fn acknowledged(&self) -> usize {
        self.by_rev.values().map(Vec::len).sum()
    }

    /// The rev of the last one that was acknowledged.
    pub(super) fn last_rev(&self) -> Option<u64> {
        self.by_rev.keys().next_back().copied()
    }

    /// What was acknowledged from one rev up to, not including, another, and by whom.
    pub(super) fn acknowledged_within(&self, from: u64, to: u64) -> impl Iterator<Item = (Happened, &Operation)> {
        let revs = (from < to).then(|| self.by_rev.range(from..to)).into_iter().flatten();
        let writes = revs.flat_map(|(rev, places)| places.iter().map(move |place| (*rev, *place)));
        writes.filter_map(move |(rev, place)| {
            let write = self.all.get(place)?;
            (write.effect == Effect::At(rev)).then(|| (write.at(rev), write.op))
        })
    }

    /// Why this cannot have happened, and which operations say so. `Ok`: the write of unknown outcome that it is, or
    /// `None` for an acknowledged one.
    pub(super) fn explain(&self, event: &Happened) -> Result<Option<&Write<'a>>, (String, Vec<usize>)> {
        let there: Vec<&Write<'a>> = self.found(self.by_rev.get(&event.rev));
        if there.iter().any(|write| write.effect == Effect::At(event.rev) && write.at(event.rev) == *event) {
            return Ok(None);
        }
        if let Some(write) = there.first() {
            return Err((format!("{event} is told, where another write was answered"), vec![write.op.id]));
        }
        let same = self.found(self.by_value.get(&(event.key.clone(), event.value.to_string())));
        if let Some(write) = same.iter().copied().find(|write| write.effect == Effect::Unknown) {
            return Ok(Some(write));
        }
        let ids = same.iter().map(|write| write.op.id).collect();
        let refused = same.iter().any(|write| write.effect == Effect::Refused);
        match (same.is_empty(), refused) {
            (true, _) => Err((format!("{event} is told, and nobody wrote it"), ids)),
            (false, true) => Err((format!("{event} is told, and was refused"), ids)),
            (false, false) => Err((format!("{event} is told, and was written at another rev"), ids)),
        }
    }

    /// How many writes of unknown outcome would look so.
    fn unknown_like(&self, event: &Happened) -> usize {
        let same = self.found(self.by_value.get(&(event.key.clone(), event.value.to_string())));
        same.iter().filter(|write| write.effect == Effect::Unknown).count()
    }

    fn found(&self, places: Option<&Vec<usize>>) -> Vec<&Write<'a>> {
        places.into_iter().flatten().filter_map(|place| self.all.get(*place)).collect()
    }
}

/// Adds what is wrong with the history.
pub(super) fn judge(writes: &Writes<'_>, log: &Log<'_>, findings: &mut Vec<Finding>) {
    in_order(log, findings);
    made_of_writes(writes, log, findings);
    for (rev, places) in writes.by_rev.range(log.kept.from..) {
        if places.len() > 1 {
            let ids = writes.found(Some(places)).into_iter().map(|write| write.op.id);
            findings.push(Finding::new(format!("several writes were answered at rev {rev}"), ids));
        }
    }
    for (event, op) in writes.acknowledged_within(log.kept.from, u64::MAX) {
        let there = log.within(&event.key, event.rev, event.rev);
        if !there.contains(&&event) {
            let text = format!("{event} was acknowledged, and the history has not got it");
            findings.push(Finding::new(text, [op.id, log.op.id]));
        }
    }
}

/// By rev, and of a rev each key once.
fn in_order(log: &Log<'_>, findings: &mut Vec<Finding>) {
    for pair in log.kept.events.windows(2) {
        if let [earlier, later] = pair
            && (later.rev < earlier.rev || (later.rev == earlier.rev && later.key == earlier.key))
        {
            findings.push(Finding::new(format!("the history has {later} after {earlier}"), [log.op.id]));
        }
    }
    let first = log.kept.events.first().filter(|first| first.rev < log.kept.from);
    if let Some(first) = first {
        let text = format!("the history is kept from rev {}, and has {first}", log.kept.from);
        findings.push(Finding::new(text, [log.op.id]));
    }
}

fn made_of_writes(writes: &Writes<'_>, log: &Log<'_>, findings: &mut Vec<Finding>) {
    let mut unknown: BTreeMap<(&str, String), usize> = BTreeMap::new();
    for event in &log.kept.events {
        match writes.explain(event) {
            Ok(None) => {}
            Ok(Some(write)) => {
                let count = unknown.entry((event.key.as_str(), event.value.to_string())).or_default();
                *count += 1;
                if *count > writes.unknown_like(event) {
                    let text = format!("{event} is in the history more often than it can have been written");
                    findings.push(Finding::new(text, [write.op.id, log.op.id]));
                }
            }
            Err((why, ids)) => findings.push(Finding::new(why, ids.into_iter().chain([log.op.id]))),
        }
    }
}
