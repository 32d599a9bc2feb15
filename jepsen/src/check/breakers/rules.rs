//! What must hold of one breaker. Each rule adds what it finds.
//!
//! Times are those of the harness. Between two answers no more time has passed for the cluster than from the beginning
//! of the first call to the end of the second, and a tenth of that, but for [`SLACK_NS`].
//!
//! Deliberately absent: what depends on more than one breaker.

use std::collections::BTreeMap;

use super::story::{Seen, Story, To};
use super::told::{State, Word};
use crate::check::Finding;

const MS: u64 = 1_000_000;
/// What clocks may differ by between two leaders.
const SLACK_NS: u64 = 200 * MS;

fn found(story: &Story<'_>, text: String, seen: &[&Seen<'_>], findings: &mut Vec<Finding>) {
    findings.push(Finding::new(format!("{}: {text}", story.name), seen.iter().map(|seen| seen.operation.id)));
}

/// Whether so much time may have passed between two answers.
fn may_be_apart(earlier: &Seen<'_>, later: &Seen<'_>, ms: u64) -> bool {
    let real = later.ended().saturating_sub(earlier.operation.began);
    // A leader whose wall clock is ahead lets time run a tenth faster until it has caught up.
    let most = real.saturating_add(real / 10).saturating_add(SLACK_NS);
    most >= ms.saturating_mul(MS)
}

/// Each answer fits together: who is admitted when, and under which token.
pub(super) fn answers(story: &Story<'_>, findings: &mut Vec<Finding>) {
    for seen in &story.seen {
        let To::Question(asked) = seen.to else { continue };
        let fits = match asked.state {
            State::Closed => asked.allowed && asked.probe_token == 0,
            State::Open => !asked.allowed && asked.probe_token == 0,
            State::HalfOpen => asked.allowed == (asked.probe_token > 0),
        };
        if !fits {
            found(story, format!("an answer that cannot be: {asked:?}"), &[seen], findings);
        }
        if asked.probe_token > 0 && asked.probe_token != seen.rev {
            let text = format!("the token {} of a probe is not its rev {}", asked.probe_token, seen.rev);
            found(story, text, &[seen], findings);
        }
    }
}

/// It stays open as long as it was to be.
pub(super) fn stays_open(story: &Story<'_>, findings: &mut Vec<Finding>) {
    // The answer that says for longest that nothing passes, and for how long from then on.
    let mut longest: Option<(&Seen<'_>, u64)> = None;
    let end_ns = |(seen, ms): &(&Seen<'_>, u64)| seen.operation.began.saturating_add(ms.saturating_mul(MS));
    for (place, seen) in story.seen.iter().enumerate() {
        if let Some((open, ms)) = longest
            && seen.state != State::Open
            && !may_be_apart(open, seen, ms)
        {
            let (state, rev) = (seen.state, seen.rev);
            let text = format!("{state:?} at rev {rev}, though at rev {} it was open for {ms} ms", open.rev);
            found(story, text, &[open, seen], findings);
            longest = None;
        }
        let before = place.checked_sub(1).and_then(|before| story.seen.get(before));
        if let Some(ms) = open_for(story, before, seen)
            && longest.is_none_or(|longest| end_ns(&longest) < end_ns(&(seen, ms)))
        {
            longest = Some((seen, ms));
        }
    }
}

/// For how long it is open from this answer on, if the answer says so.
fn open_for(story: &Story<'_>, before: Option<&Seen<'_>>, seen: &Seen<'_>) -> Option<u64> {
    if seen.state != State::Open {
        return None;
    }
    match seen.to {
        To::Question(asked) => Some(asked.retry_after_ms),
        To::Report(word, _) if word.ok => None,
        // This very word opened it.
        To::Report(word, _) if word.probe_token > 0 => Some(story.settings.open_ms),
        To::Report(..) => {
            let is_closed_before = before.is_none_or(|before| before.state == State::Closed);
            let is_it = is_closed_before && story.perhaps(seen, |word| !word.ok) == 0;
            is_it.then_some(story.settings.open_ms)
        }
    }
}

/// It moves only as it may.
pub(super) fn moves(story: &Story<'_>, findings: &mut Vec<Finding>) {
    for pair in story.seen.windows(2) {
        let [before, after] = pair else { continue };
        let perhaps = |is_like: fn(&Word) -> bool| story.perhaps(after, is_like) > 0;
        let probe = after.probed().map(|(_, ok)| ok);
        let may = match (before.state, after.state) {
            (State::Open | State::HalfOpen, State::Closed) => {
                probe == Some(true) || perhaps(|word| word.ok && word.probe_token > 0)
            }
            (State::Closed, State::Open) => after.is_plain_failure() || perhaps(|word| !word.ok),
            (State::Closed, State::HalfOpen) => perhaps(|word| !word.ok),
            (State::HalfOpen, State::Open) => {
                let said = probe == Some(false) || perhaps(|word| !word.ok && word.probe_token > 0);
                said || probe_may_be_over(story, after)
            }
            _ => true,
        };
        if !may {
            let (from, to) = (before.state, after.state);
            let text = format!("{from:?} at rev {} and {to:?} at rev {}: nobody said why", before.rev, after.rev);
            found(story, text, &[before, after], findings);
        }
    }
}

/// Whether a probe may have said nothing for too long by then.
fn probe_may_be_over(story: &Story<'_>, by: &Seen<'_>) -> bool {
    let mut earlier = story.seen.iter().take_while(|seen| seen.rev < by.rev);
    let unanswered = story.unanswered.iter().any(|question| question.began_at < by.operation.ended_at);
    let timeout_ms = story.settings.probe_timeout_ms;
    unanswered || earlier.any(|seen| seen.granted().is_some() && may_be_apart(seen, by, timeout_ms))
}

/// One probe at a time, each heard once, and none after the next has begun.
pub(super) fn probes(story: &Story<'_>, findings: &mut Vec<Finding>) {
    let mut heard: BTreeMap<u64, &Seen<'_>> = BTreeMap::new();
    let mut latest: Option<(u64, &Seen<'_>)> = None;
    for seen in &story.seen {
        if let Some(token) = seen.granted() {
            if let Some((before, granted)) = latest
                && !heard.contains_key(&before)
                && !is_over(story, before, granted, seen)
            {
                let text = format!("two probes at once, under {before} and {token}");
                found(story, text, &[granted, seen], findings);
            }
            latest = Some((token, seen));
        }
        let Some((token, _)) = seen.probed() else { continue };
        if let Some(before) = heard.insert(token, seen) {
            found(story, format!("the probe {token} was heard twice"), &[before, seen], findings);
        }
        match latest {
            Some((newest, granted)) if newest > token => {
                let text = format!("the probe {token} was heard after {newest} had begun");
                found(story, text, &[granted, seen], findings);
            }
            Some((newest, _)) if newest == token => {}
            _ if story.unanswered.is_empty() => {
                found(story, format!("the probe {token} was heard, and nobody was given it"), &[seen], findings);
            }
            _ => {}
        }
    }
}

/// Whether the probe may have ended, unheard, before another was granted.
fn is_over(story: &Story<'_>, token: u64, granted: &Seen<'_>, next: &Seen<'_>) -> bool {
    // One that said nothing in time has failed: it is open for a while after that.
    let ms = story.settings.probe_timeout_ms.saturating_add(story.settings.open_ms);
    story.perhaps(next, |word| word.probe_token == token) > 0 || may_be_apart(granted, next, ms)
}

/// It opens with the failure that is one too many in a row, neither sooner nor later.
pub(super) fn failures(story: &Story<'_>, findings: &mut Vec<Finding>) {
    let threshold = story.settings.threshold;
    // The count after the last word that was heard while it was closed.
    let mut last: Option<(&Seen<'_>, u64)> = None;
    for seen in &story.seen {
        let To::Report(word, reported) = seen.to else { continue };
        let perhaps = story.perhaps(seen, |word| !word.ok);
        if reported.state == State::Closed && reported.failures >= threshold {
            found(story, format!("closed after {} failures in a row", reported.failures), &[seen], findings);
        }
        if let Some((before, count)) = last
            && seen.is_plain_failure()
        {
            let forgotten = story.perhaps(seen, |word| word.ok) > 0;
            if reported.state == State::Closed && reported.failures <= count && !forgotten {
                let text = format!("a failure did not count: {count} at rev {}, and {reported:?} after it", before.rev);
                found(story, text, &[before, seen], findings);
            }
            if reported.state == State::Open && count + 1 + perhaps < threshold && is_next(story, before, seen) {
                let text = format!("it opened with failure {} of {threshold}", count + 1);
                found(story, text, &[before, seen], findings);
            }
        }
        if word.ok && reported.state == State::Closed && reported.failures > perhaps {
            found(story, format!("after a success: {reported:?}"), &[seen], findings);
        }
        last = (reported.state == State::Closed).then_some((seen, reported.failures));
    }
}

/// Whether it was closed in all answers between these two.
fn is_next(story: &Story<'_>, before: &Seen<'_>, after: &Seen<'_>) -> bool {
    let mut between = story.seen.iter().filter(|seen| before.rev < seen.rev && seen.rev < after.rev);
    between.all(|seen| seen.state == State::Closed)
}
