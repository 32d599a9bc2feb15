//! What became of every message: that it is one that was published, that it is there once, and that it ended once.

use std::collections::{BTreeMap, BTreeSet};

use super::read::{End, Publish, Published, Subscription};
use crate::check::Finding;
use crate::record::Operation;

/// Adds what is wrong.
pub(super) fn judge(all: &Subscription<'_>, findings: &mut Vec<Finding>) {
    let letters = letters(all);
    numbers_rise(all, findings);
    let numbers = one_number_each(all, &letters, findings);
    nothing_made_up(all, &letters, findings);
    let Some(end) = &all.end else { return };
    ended_once(all, end, &numbers, findings);
    dead_after_all_attempts(end, findings);
    counted(all, end, &letters, &numbers, findings);
}

type Letters<'a> = BTreeMap<&'a str, Vec<&'a Publish<'a>>>;
/// The number of each message that is known to have been in the subscription, and who says so.
type Numbers<'a> = BTreeMap<u64, (&'a str, &'a Operation)>;

/// The publishes of each value.
fn letters<'a>(all: &'a Subscription<'a>) -> Letters<'a> {
    let mut letters: Letters<'a> = BTreeMap::new();
    for publish in &all.publishes {
        letters.entry(&publish.letter.value).or_default().push(publish);
    }
    letters
}

/// A publish that begins after another was acknowledged has the greater number, and so has one of a later rev.
fn numbers_rise(all: &Subscription<'_>, findings: &mut Vec<Finding>) {
    let new: Vec<(&Operation, Published)> =
        all.acknowledged().filter(|(_, said)| !said.duplicate).map(|(publish, said)| (publish.op, said)).collect();
    let mut by_rev: Vec<(u64, u64, usize)> =
        new.iter().filter_map(|(op, said)| Some((op.rev()?, said.seq, op.id))).collect();
    by_rev.sort_unstable();
    for pair in by_rev.windows(2) {
        if let [(rev, seq, earlier), (later_rev, later_seq, later)] = pair
            && (later_rev <= rev || later_seq <= seq)
        {
            let text = format!("message {seq} was published at rev {rev}, and {later_seq} at {later_rev}");
            findings.push(Finding::new(text, [*earlier, *later]));
        }
    }
    rise_with_time(new, findings);
}

fn rise_with_time(mut begun: Vec<(&Operation, Published)>, findings: &mut Vec<Finding>) {
    let mut ended = begun.clone();
    begun.sort_unstable_by_key(|(op, _)| op.began_at);
    ended.sort_unstable_by_key(|(op, _)| op.ended_at);
    let mut ended = ended.into_iter().peekable();
    let mut greatest: Option<(u64, usize)> = None;
    for (op, said) in begun {
        while let Some((before, its)) = ended.next_if(|(before, _)| before.is_before(op)) {
            greatest = greatest.max(Some((its.seq, before.id)));
        }
        if let Some((seq, earlier)) = greatest.filter(|(seq, _)| *seq >= said.seq) {
            let text = format!("message {} was published after {seq} had been acknowledged", said.seq);
            findings.push(Finding::new(text, [earlier, op.id]));
        }
    }
}

/// A value has one number and a number one value, whoever says so.
fn one_number_each<'a>(all: &'a Subscription<'a>, letters: &Letters<'a>, findings: &mut Vec<Finding>) -> Numbers<'a> {
    let mut numbers: Numbers<'a> = BTreeMap::new();
    let mut values: BTreeMap<&str, (u64, usize)> = BTreeMap::new();
    let published = all.acknowledged().map(|(publish, said)| (said.seq, publish.letter.value.as_str(), publish.op));
    let given = all.receipts.iter().map(|one| (one.delivered.seq, one.delivered.value.as_str(), one.op));
    let dead =
        all.end.iter().flat_map(|end| end.left.dead.iter().map(move |dead| (dead.seq, dead.value.as_str(), end.op)));
    for (seq, value, op) in published.chain(given).chain(dead) {
        let (known, by) = *numbers.entry(seq).or_insert((value, op));
        if known != value {
            findings.push(Finding::new(format!("message {seq} is {known:?} and {value:?}"), [by.id, op.id]));
        }
        let (first, by) = *values.entry(value).or_insert((seq, op.id));
        if first != seq {
            findings.push(Finding::new(format!("{value:?} is there twice, as {first} and {seq}"), [by, op.id]));
        }
    }
    called_new_once(letters, findings);
    numbers
}

/// Of the publishes of a value one at most made it, and only what has an id can be known already.
fn called_new_once(letters: &Letters<'_>, findings: &mut Vec<Finding>) {
    for (value, tries) in letters {
        let new: Vec<usize> =
            tries.iter().filter(|one| one.said.is_some_and(|said| !said.duplicate)).map(|one| one.op.id).collect();
        if new.len() > 1 {
            findings.push(Finding::new(format!("{value:?} was called new {} times", new.len()), new));
        }
        let called_known = |one: &&&Publish<'_>| one.said.is_some_and(|said| said.duplicate);
        for one in tries.iter().filter(called_known).filter(|one| one.letter.message_id.is_none()) {
            findings.push(Finding::new(format!("{value:?} has no id, and was called a duplicate"), [one.op.id]));
        }
    }
}

/// What was given to somebody, or is dead, is what somebody had begun to publish and was not refused.
fn nothing_made_up(all: &Subscription<'_>, letters: &Letters<'_>, findings: &mut Vec<Finding>) {
    for one in &all.receipts {
        let (seq, value) = (one.delivered.seq, one.delivered.value.as_str());
        made_up(letters, seq, value, one.op, findings);
        let tries = letters.get(value).map(Vec::as_slice).unwrap_or_default();
        if tries.iter().any(|publish| publish.letter.order_key != one.delivered.order_key) {
            let text = format!("message {seq} was given out under the order key {:?}", one.delivered.order_key);
            findings.push(Finding::new(text, [one.op.id]));
        }
    }
    if let Some(end) = &all.end {
        for dead in &end.left.dead {
            made_up(letters, dead.seq, &dead.value, end.op, findings);
        }
    }
}

fn made_up(letters: &Letters<'_>, seq: u64, value: &str, seen: &Operation, findings: &mut Vec<Finding>) {
    let tries = letters.get(value).map(Vec::as_slice).unwrap_or_default();
    let begun: Vec<&&Publish<'_>> = tries.iter().filter(|one| one.op.began_at < seen.ended_at).collect();
    if begun.is_empty() {
        findings.push(Finding::new(format!("nobody had published {value:?}, message {seq}"), [seen.id]));
    } else if begun.iter().all(|one| one.is_refused()) {
        let ids = begun.iter().map(|one| one.op.id).chain([seen.id]);
        findings.push(Finding::new(format!("{value:?}, message {seq}, was refused and is there"), ids));
    }
}

/// Acknowledged or dead: one of them, and once.
fn ended_once(all: &Subscription<'_>, end: &End<'_>, numbers: &Numbers<'_>, findings: &mut Vec<Finding>) {
    let mut acked: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    let mut perhaps: BTreeSet<u64> = BTreeSet::new();
    for word in all.words.iter().filter(|word| word.is_ack) {
        match word.accepted {
            Some(true) => acked.entry(word.seq).or_default().push(word.op.id),
            Some(false) => {}
            None => {
                perhaps.insert(word.seq);
            }
        }
    }
    let mut dead: BTreeSet<u64> = BTreeSet::new();
    for one in &end.left.dead {
        if !dead.insert(one.seq) {
            findings.push(Finding::new(format!("message {} is dead twice", one.seq), [end.op.id]));
        }
    }
    for (seq, (value, op)) in numbers {
        let acks = acked.get(seq).cloned().unwrap_or_default();
        let ids = |more: usize| [op.id].into_iter().chain(acks.clone()).chain([more]);
        match (acks.len(), dead.contains(seq)) {
            (0, false) if !perhaps.contains(seq) => {
                let text = format!("{value:?}, message {seq}, is lost: nobody acknowledged it, and it is not dead");
                findings.push(Finding::new(text, ids(end.op.id)));
            }
            (1.., true) => {
                let text = format!("{value:?}, message {seq}, was acknowledged and is dead");
                findings.push(Finding::new(text, ids(end.op.id)));
            }
            (2.., false) => {
                let text = format!("{value:?}, message {seq}, was acknowledged {} times", acks.len());
                findings.push(Finding::new(text, ids(end.op.id)));
            }
            _ => {}
        }
    }
}

fn dead_after_all_attempts(end: &End<'_>, findings: &mut Vec<Finding>) {
    for dead in end.left.dead.iter().filter(|dead| dead.attempts != end.max_attempts) {
        let (seq, attempts, allowed) = (dead.seq, dead.attempts, end.max_attempts);
        let text = format!("message {seq} is dead after {attempts} attempts, and had {allowed}");
        findings.push(Finding::new(text, [end.op.id]));
    }
}

/// The subscription's own counters against each other and against what was seen.
fn counted(
    all: &Subscription<'_>,
    end: &End<'_>,
    letters: &Letters<'_>,
    numbers: &Numbers<'_>,
    findings: &mut Vec<Finding>,
) {
    let (counts, waiting) = (&end.left.counts, end.left.waiting);
    let acked = |certain: bool| -> u64 {
        let words = all.words.iter().filter(|word| word.is_ack);
        let words = words.filter(|word| word.accepted.unwrap_or(!certain));
        words.map(|word| word.seq).collect::<BTreeSet<u64>>().len() as u64
    };
    let tried = letters.values().filter(|tries| !tries.iter().all(|one| one.is_refused())).count() as u64;
    let again = all.receipts.iter().filter(|one| one.delivered.attempt > 1).count() as u64;
    let must_hold = [
        (waiting == 0, format!("{waiting} messages are left")),
        (
            counts.published == counts.acked.saturating_add(counts.dead),
            format!("{} were kept, {} acknowledged, and {} died", counts.published, counts.acked, counts.dead),
        ),
        (
            (numbers.len() as u64..=tried).contains(&counts.published),
            format!("{} were kept, {} are known, and {tried} were tried", counts.published, numbers.len()),
        ),
        (
            (acked(true)..=acked(false)).contains(&counts.acked),
            format!("{} were acknowledged, where {} to {} can be", counts.acked, acked(true), acked(false)),
        ),
        (
            counts.dead == end.left.dead.len() as u64,
            format!("{} died, and {} are dead", counts.dead, end.left.dead.len()),
        ),
        (
            counts.redelivered >= again,
            format!("{} were delivered again, and {again} were seen again", counts.redelivered),
        ),
        (
            (counts.expired, counts.dropped) == (0, 0),
            format!("{} expired and {} were dropped", counts.expired, counts.dropped),
        ),
    ];
    for (_, text) in must_hold.into_iter().filter(|(holds, _)| !holds) {
        findings.push(Finding::new(format!("the subscription's counters: {text}"), [end.op.id]));
    }
}
