//! Who was given what when: tokens, attempts, what became of superseded tokens, and the order of a key.

use std::collections::BTreeMap;

use super::read::{Receipt, Subscription, Word};
use crate::check::Finding;

/// The deliveries of each message, by token.
type Turns<'a> = BTreeMap<u64, Vec<&'a Receipt<'a>>>;

/// Adds what is wrong.
pub(super) fn judge(all: &Subscription<'_>, findings: &mut Vec<Finding>) {
    let mut turns: Turns<'_> = BTreeMap::new();
    for receipt in &all.receipts {
        turns.entry(receipt.delivered.seq).or_default().push(receipt);
    }
    for deliveries in turns.values_mut() {
        deliveries.sort_by_key(|one| (one.delivered.token, one.op.began_at));
    }
    not_before_it_is_there(all, &turns, findings);
    let accepted = accepted(all, &turns, findings);
    for (seq, deliveries) in &turns {
        within_attempts(all, *seq, deliveries, findings);
        for pair in deliveries.windows(2) {
            if let [earlier, later] = pair {
                rises(all, earlier, later, &accepted, findings);
            }
        }
    }
    superseded_is_refused(&turns, &accepted, findings);
    keys_in_order(&turns, &accepted, findings);
}

/// The accepted word of each delivery, by message and token.
type Accepted<'a> = BTreeMap<(u64, u64), &'a Word<'a>>;

/// At most one word of a delivery is accepted, and only of one that somebody was given.
fn accepted<'a>(all: &'a Subscription<'a>, turns: &Turns<'_>, findings: &mut Vec<Finding>) -> Accepted<'a> {
    let mut accepted: Accepted<'a> = BTreeMap::new();
    for word in all.words.iter().filter(|word| word.accepted == Some(true)) {
        let (seq, token) = (word.seq, word.token);
        let given = turns.get(&seq).is_some_and(|all| all.iter().any(|one| one.delivered.token == token));
        if !given {
            let text = format!("an answer to message {seq} under token {token}, which nobody was given, was accepted");
            findings.push(Finding::new(text, [word.op.id]));
        }
        if let Some(before) = accepted.insert((seq, token), word) {
            let text = format!("two answers to message {seq} under token {token} were accepted");
            findings.push(Finding::new(text, [before.op.id, word.op.id]));
        }
    }
    accepted
}

/// A token is the rev at which it was given out: that of the publish at the earliest.
fn not_before_it_is_there(all: &Subscription<'_>, turns: &Turns<'_>, findings: &mut Vec<Finding>) {
    for (publish, said) in all.acknowledged().filter(|(_, said)| !said.duplicate) {
        let first = turns.get(&said.seq).and_then(|deliveries| deliveries.first());
        if let (Some(first), Some(rev)) = (first, publish.op.rev())
            && first.delivered.token < rev
        {
            let (seq, token) = (said.seq, first.delivered.token);
            let text = format!("message {seq} was published at rev {rev}, and given out at {token}");
            findings.push(Finding::new(text, [publish.op.id, first.op.id]));
        }
    }
}

fn within_attempts(all: &Subscription<'_>, seq: u64, deliveries: &[&Receipt<'_>], findings: &mut Vec<Finding>) {
    let most = all.end.as_ref().map_or(u32::MAX, |end| end.max_attempts);
    for one in deliveries.iter().filter(|one| !(1..=most).contains(&one.delivered.attempt)) {
        let text = format!("message {seq} was given out as attempt {} of {most}", one.delivered.attempt);
        findings.push(Finding::new(text, [one.op.id]));
    }
}

/// One delivery of a message, and the next one that somebody saw.
fn rises(
    all: &Subscription<'_>,
    earlier: &Receipt<'_>,
    later: &Receipt<'_>,
    accepted: &Accepted<'_>,
    findings: &mut Vec<Finding>,
) {
    let (seq, token, attempt) = (earlier.delivered.seq, earlier.delivered.token, earlier.delivered.attempt);
    let next = &later.delivered;
    let mut found = |text: String| findings.push(Finding::new(text, [earlier.op.id, later.op.id]));
    if token == next.token {
        return found(format!("message {seq} was given out twice under token {token}"));
    }
    let nacked = accepted.get(&(seq, token)).is_some_and(|word| !word.is_ack);
    let left = || {
        let its = |consumer: &str| consumer == earlier.consumer;
        all.leaves.iter().any(|leave| its(&leave.consumer) && leave.op.began_at < later.op.ended_at)
    };
    if next.attempt < attempt {
        found(format!("message {seq}: attempt {attempt} under {token}, then {} under {}", next.attempt, next.token));
    } else if next.attempt == attempt && nacked {
        found(format!("message {seq}: attempt {attempt} failed, and came again as the same"));
    } else if next.attempt == attempt && !left() {
        found(format!("message {seq}: attempt {attempt} came again, and its consumer had not left"));
    }
}

/// Nothing is given out after an accepted acknowledgement, and a token is refused once a later one was seen.
fn superseded_is_refused(turns: &Turns<'_>, accepted: &Accepted<'_>, findings: &mut Vec<Finding>) {
    for ((seq, token), word) in accepted {
        let deliveries = turns.get(seq).map(Vec::as_slice).unwrap_or_default();
        let is_wrong = |one: &&&Receipt<'_>| one.delivered.token > *token && (word.is_ack || one.op.is_before(word.op));
        let Some(later) = deliveries.iter().find(is_wrong) else { continue };
        let ids = [word.op.id, later.op.id];
        let next = later.delivered.token;
        if word.is_ack {
            let text = format!("message {seq} was acknowledged under token {token}, and given out under {next}");
            findings.push(Finding::new(text, ids));
        } else {
            let text = format!("message {seq} was given out under {next}, and could fail under {token} after that");
            findings.push(Finding::new(text, ids));
        }
    }
}

/// What is known of the earlier messages of a key.
#[derive(Default)]
struct Before {
    /// Their last token, and who saw it.
    token: u64,
    seen_by: usize,
    /// When the last accepted word of one of them was begun, and which that is.
    answered_at: usize,
    answer: usize,
}

/// Of one key a message moves when all before it have ended.
fn keys_in_order(turns: &Turns<'_>, accepted: &Accepted<'_>, findings: &mut Vec<Finding>) {
    let mut keys: BTreeMap<&str, Before> = BTreeMap::new();
    for (seq, deliveries) in turns {
        let (Some(first), Some(last)) = (deliveries.first(), deliveries.last()) else { continue };
        let key = first.delivered.order_key.as_str();
        if key.is_empty() {
            continue;
        }
        let before = keys.entry(key).or_default();
        if before.token >= first.delivered.token {
            let (token, own) = (before.token, first.delivered.token);
            let text = format!("{key}: message {seq} was given out at {own}, and one before it at {token}");
            findings.push(Finding::new(text, [before.seen_by, first.op.id]));
        }
        let seen = deliveries.iter().min_by_key(|one| one.op.ended_at);
        if let Some(seen) = seen.filter(|seen| seen.op.ended_at < before.answered_at) {
            let text = format!("{key}: message {seq} was given out before one before it was answered");
            findings.push(Finding::new(text, [seen.op.id, before.answer]));
        }
        if last.delivered.token > before.token {
            (before.token, before.seen_by) = (last.delivered.token, last.op.id);
        }
        for (_, word) in accepted.range((*seq, 0)..=(*seq, u64::MAX)) {
            if word.op.began_at > before.answered_at {
                (before.answered_at, before.answer) = (word.op.began_at, word.op.id);
            }
        }
    }
}
