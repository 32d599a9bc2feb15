//! What each watcher was told, response by response: all of the history between what it was told before and the rev of
//! the response, and nothing else.

use super::read::{Happened, Log, Said, Wait, Watched, passes};
use super::writes::Writes;
use crate::check::Finding;

/// Adds what is wrong.
pub(super) fn judge(all: &Watched<'_>, log: &Log<'_>, findings: &mut Vec<Finding>) {
    for (name, waits) in &all.watchers {
        let mut stream = Stream { name, writes: &all.writes, log, next: None, findings: &mut *findings };
        for wait in waits {
            stream.take(wait);
        }
        stream.end(waits);
    }
}

/// One watcher, as far as it has been followed.
struct Stream<'a, 'f> {
    name: &'a str,
    writes: &'a Writes<'a>,
    log: &'a Log<'a>,
    /// Everything before this rev has been told. 0: it began with "from now on", and nothing has come yet.
    next: Option<u64>,
    findings: &'f mut Vec<Finding>,
}

impl Stream<'_, '_> {
    fn found(&mut self, wait: &Wait<'_>, text: &str) {
        self.findings.push(Finding::new(format!("{}: {text}", self.name), [wait.op.id]));
    }

    fn take(&mut self, wait: &Wait<'_>) {
        let next = *self.next.get_or_insert(wait.from);
        if wait.from != next {
            self.found(wait, &format!("went on from rev {}, where {next} was to come", wait.from));
        }
        match &wait.said {
            None => {}
            Some(Said::Told { rev, events }) => {
                self.told(wait, *rev, events);
                self.next = Some(rev.saturating_add(1));
            }
            Some(Said::Gone { compacted }) => {
                self.gone(wait, *compacted);
                self.next = Some(*compacted);
            }
        }
    }

    fn gone(&mut self, wait: &Wait<'_>, oldest: u64) {
        if oldest <= wait.from {
            self.found(wait, &format!("asked from rev {}, and was told that {oldest} is the oldest", wait.from));
        }
        if oldest > self.log.kept.from {
            let kept = self.log.kept.from;
            self.found(wait, &format!("was told that {oldest} is the oldest, and the history is kept from {kept}"));
        }
    }

    /// One response. Whoever watches from now on begins with the first event, or behind the first response.
    fn told(&mut self, wait: &Wait<'_>, rev: u64, events: &[Happened]) {
        let from = match wait.from {
            0 => events.first().map_or(rev.saturating_add(1), |event| event.rev),
            from => from,
        };
        if rev.saturating_add(1) < from || (wait.from > 0 && rev < from) {
            self.found(wait, &format!("was told of rev {rev}, where {from} was to come"));
        }
        if let Some(event) = events.iter().find(|event| event.rev < from || event.rev > rev) {
            self.found(wait, &format!("{event} came in a response of revs {from} to {rev}"));
        }
        let fallen = events.windows(2).find_map(|pair| match pair {
            [earlier, later] if later.rev < earlier.rev => Some((earlier, later)),
            _ => None,
        });
        if let Some((earlier, later)) = fallen {
            self.found(wait, &format!("{later} came after {earlier}"));
        }
        let log = self.log;
        let kept = log.kept.from;
        let (old, new): (Vec<&Happened>, Vec<&Happened>) = events.iter().partition(|event| event.rev < kept);
        self.compare(wait, &log.within(&wait.op.key, from.max(kept), rev), &new);
        self.compare_old(wait, from, rev.saturating_add(1).min(kept), &old);
    }

    /// Against the history: the first difference says most.
    fn compare(&mut self, wait: &Wait<'_>, expected: &[&Happened], told: &[&Happened]) {
        let mut expected = expected.iter();
        for event in told {
            match expected.next() {
                Some(is) if is == event => {}
                Some(is) if (is.rev, &is.key) == (event.rev, &event.key) => {
                    return self.found(wait, &format!("{event} was told, where {is} happened"));
                }
                Some(is) if is.rev <= event.rev => return self.found(wait, &format!("{is} was not told")),
                _ => {
                    let what = self.surplus(wait, event);
                    return self.found(wait, &what);
                }
            }
        }
        if let Some(is) = expected.next() {
            self.found(wait, &format!("{is} was not told"));
        }
    }

    /// What something is that was told and should not have been.
    fn surplus(&self, wait: &Wait<'_>, event: &Happened) -> String {
        if !passes(&wait.op.key, &event.key) {
            return format!("{event} was told, and was not asked for");
        }
        match self.log.within(&event.key, event.rev, event.rev).contains(&event) {
            true => format!("{event} was told once more, or too early or too late"),
            false => format!("{event} was told, and did not happen"),
        }
    }

    /// Where the history is not kept any more: against the writes.
    fn compare_old(&mut self, wait: &Wait<'_>, from: u64, to: u64, told: &[&Happened]) {
        let writes = self.writes;
        for event in told {
            if !passes(&wait.op.key, &event.key) {
                self.found(wait, &format!("{event} was told, and was not asked for"));
            } else if let Err((why, _)) = writes.explain(event) {
                self.found(wait, &why);
            }
        }
        for pair in told.windows(2) {
            if let [earlier, later] = pair
                && earlier == later
            {
                self.found(wait, &format!("{later} was told once more"));
            }
        }
        for (event, op) in writes.acknowledged_within(from, to) {
            if passes(&wait.op.key, &event.key) && !told.contains(&&event) {
                let text = format!("{}: {event} was not told", self.name);
                self.findings.push(Finding::new(text, [op.id, wait.op.id]));
            }
        }
    }

    /// In the end nothing that was acknowledged is still to come.
    fn end(&mut self, waits: &[Wait<'_>]) {
        let (Some(last), Some(target)) = (waits.last(), self.writes.last_rev()) else { return };
        let next = self.next.unwrap_or_default();
        if next <= target {
            self.found(last, &format!("rev {next} was still to come at the end, and {target} was acknowledged"));
        }
    }
}
