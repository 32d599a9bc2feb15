//! Histories that hold, each rule broken once, and the ways in which watches of other systems have been wrong.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::Watch;
use crate::check::{Checker, Report, Verdict};
use crate::record::{Event, History, Phase};

const ALL: &str = "r1/";
/// How far the watchers here are told in the end.
const END: u64 = 30;

/// A history, written call by call; every watcher is a process of its own.
#[derive(Clone, Debug, Default)]
struct Script {
    events: Vec<Event>,
}

impl Script {
    fn event(&mut self, p: u64, ev: Phase, f: &str, key: &str) -> &mut Event {
        let t = self.events.len() as u64;
        let (f, key) = (f.to_owned(), key.to_owned());
        self.events.push(Event { t, p, ev, f, key, arg: None, res: None, rev: None, node: None });
        self.events.last_mut().unwrap()
    }

    fn begin(&mut self, p: u64, f: &str, key: &str, arg: Value) {
        self.event(p, Phase::Invoke, f, key).arg = Some(arg);
    }

    fn call(&mut self, p: u64, f: &str, key: &str, arg: Value, res: Value, rev: Option<u64>) {
        self.begin(p, f, key, arg);
        let event = self.event(p, Phase::Ok, f, key);
        (event.res, event.rev) = (Some(res), rev);
    }

    fn put(&mut self, key: &str, value: &str, rev: u64) {
        self.call(1, "put", key, json!({"value": value}), json!({"version": 1}), Some(rev));
    }

    fn delete(&mut self, key: &str, rev: u64, deleted: bool) {
        self.call(1, "del", key, json!({}), json!({"version": 0, "deleted": deleted}), Some(rev));
    }

    fn watched(&mut self, watcher: u64, filter: &str, from: u64, rev: u64, events: Value) {
        let asked = json!({"watcher": format!("w{watcher}"), "from": from});
        self.call(10 + watcher, "watched", filter, asked, json!({"rev": rev, "events": events}), None);
    }

    fn gone(&mut self, watcher: u64, from: u64, oldest: u64) {
        let asked = json!({"watcher": format!("w{watcher}"), "from": from});
        self.call(10 + watcher, "watched", ALL, asked, json!({"compacted": oldest}), None);
    }

    fn history(&mut self, from: u64, events: Value) {
        self.call(2, "history", ALL, json!({}), json!({"from": from, "events": events}), None);
    }

    fn report(&self) -> Report {
        Watch::new().check(&History::of(self.events.clone()).unwrap())
    }
}

/// Events as `(rev, key, value)`; an empty value is a removal.
fn told(events: &[(u64, &str, &str)]) -> Value {
    let one = |(rev, key, value): &(u64, &str, &str)| {
        let value = if value.is_empty() { Value::Null } else { json!(value) };
        json!({"rev": rev, "key": key, "value": value})
    };
    events.iter().map(one).collect()
}

const A: &str = "r1/a";
const B: &str = "r1/b";

/// All that happened after rev 10.
const LOG: [(u64, &str, &str); 6] = [(11, A, "1"), (13, B, "2"), (14, A, "3"), (17, A, ""), (20, B, "5"), (22, A, "6")];

/// A write of unknown outcome took effect at 20, one did not, one was refused; a removal found nothing.
fn writes() -> Script {
    let mut script = Script::default();
    script.put(A, "1", 11);
    script.put(B, "2", 13);
    script.put(A, "3", 14);
    script.delete(A, 17, true);
    script.delete(A, 18, false);
    for (p, value) in [(30, "5"), (31, "never")] {
        script.begin(p, "put", B, json!({"value": value}));
        script.event(p, Phase::Info, "put", B);
    }
    script.begin(1, "put", A, json!({"value": "refused"}));
    script.event(1, Phase::Fail, "put", A);
    script.put(A, "6", 22);
    script
}

/// The history, as far as it is kept, after everything else.
fn ended(mut script: Script) -> Script {
    script.history(10, told(&LOG));
    script
}

/// What one watcher of everything was told in two responses, of which the first is of rev 14.
fn two(first: &[(u64, &str, &str)], second: &[(u64, &str, &str)]) -> Script {
    let mut script = writes();
    script.watched(1, ALL, 11, 14, told(first));
    script.watched(1, ALL, 15, END, told(second));
    ended(script)
}

fn findings(script: &Script) -> Vec<String> {
    match script.report().verdict {
        Verdict::Broken(findings) => findings.into_iter().map(|finding| finding.text).collect(),
        other => panic!("{other:?}"),
    }
}

fn found(script: &Script, what: &str) {
    let texts = findings(script);
    assert!(texts.iter().any(|text| text.contains(what)), "{what}: {texts:?}");
}

#[test]
fn watchers_that_were_told_everything_hold() {
    let report = two(&LOG[..3], &LOG[3..]).report();
    assert!(report.holds(), "{report:?}");
    assert_eq!(report.judged, 6 + 2);
    let mut script = writes();
    script.watched(1, B, 0, 12, told(&[]));
    script.watched(1, B, 13, 13, told(&LOG[1..2]));
    script.begin(11, "watched", B, json!({"watcher": "w1", "from": 14}));
    script.event(11, Phase::Fail, "watched", B);
    script.watched(1, B, 14, END, told(&LOG[4..5]));
    script.watched(2, ALL, 0, 11, told(&LOG[..1]));
    script.watched(2, ALL, 12, END, told(&LOG[1..]));
    script.gone(3, 4, 10);
    script.watched(3, ALL, 10, END, told(&LOG));
    script.begin(14, "watched", A, json!({"watcher": "w4", "from": 60}));
    let report = ended(script).report();
    assert!(report.holds(), "given up, from now on, after a gap, and of the future: {report:?}");
}

#[test]
fn what_is_not_kept_any_more_is_known_by_its_writes() {
    let with = |first: &[(u64, &str, &str)]| {
        let mut script = writes();
        script.watched(1, ALL, 11, 14, told(first));
        script.watched(1, ALL, 15, END, told(&LOG[3..]));
        script.history(17, told(&LOG[3..]));
        script
    };
    let report = with(&LOG[..3]).report();
    assert!(report.holds(), "{report:?}");
    found(&with(&LOG[..2]), "r1/a=\"3\"@14 was not told");
    found(&with(&[LOG[0], LOG[1], LOG[1], LOG[2]]), "was told once more");
    found(&with(&[LOG[0], LOG[1], (14, A, "x")]), "another write was answered");
    found(&with(&[LOG[0], (12, A, "x"), LOG[1], LOG[2]]), "nobody wrote it");
}

#[test]
fn missed_after_a_reconnect() {
    found(&two(&LOG[..3], &LOG[4..]), "r1/a=null@17 was not told");
    found(&two(&LOG[..2], &LOG[3..]), "r1/a=\"3\"@14 was not told");
}

#[test]
fn told_again_at_a_resume() {
    found(&two(&LOG[..3], &LOG[2..]), "r1/a=\"3\"@14 was told once more");
    found(&two(&[LOG[0], LOG[1], LOG[1], LOG[2]], &LOG[3..]), "was told once more");
}

#[test]
fn older_than_asked_for() {
    let mut script = writes();
    script.watched(1, ALL, 14, END, told(&LOG));
    found(&ended(script), "came in a response of revs 14 to 30");
    let mut script = writes();
    script.watched(1, ALL, 12, 11, told(&[]));
    found(&ended(script), "was told of rev 11, where 12 was to come");
}

#[test]
fn out_of_order() {
    found(&two(&[LOG[1], LOG[0], LOG[2]], &LOG[3..]), "r1/a=\"1\"@11 came after");
    let mut script = writes();
    script.watched(1, ALL, 11, 14, told(&LOG[..3]));
    script.watched(1, ALL, 15, 13, told(&[]));
    script.watched(1, ALL, 14, END, told(&LOG[2..]));
    found(&ended(script), "was told of rev 13, where 15 was to come");
}

#[test]
fn one_rev_in_two_parts_and_nothing_said() {
    let pair = [(25, A, "7"), (25, B, "8")];
    let with = |first: &[(u64, &str, &str)], second: &[(u64, &str, &str)]| {
        let mut script = writes();
        for (p, (_, key, value)) in [40, 41].into_iter().zip(pair) {
            script.begin(p, "put", key, json!({"value": value}));
            script.event(p, Phase::Info, "put", key);
        }
        script.watched(1, ALL, 23, 25, told(first));
        script.watched(1, ALL, 26, END, told(second));
        script.history(10, told(&[&LOG[..], &pair[..]].concat()));
        script
    };
    assert!(with(&pair, &[]).report().holds());
    found(&with(&pair[..1], &pair[1..]), "r1/b=\"8\"@25 was not told");
    found(&with(&pair[..1], &[]), "r1/b=\"8\"@25 was not told");
}

#[test]
fn a_rev_to_come_that_is_never_told() {
    let mut script = writes();
    script.watched(1, ALL, 11, 14, told(&LOG[..3]));
    script.begin(12, "watched", A, json!({"watcher": "w2", "from": 22}));
    let script = ended(script);
    found(&script, "w1: rev 15 was still to come at the end");
    found(&script, "w2: rev 22 was still to come at the end");
}

#[test]
fn a_value_that_is_another_revs() {
    found(&two(&[LOG[0], LOG[1], (14, A, "1")], &LOG[3..]), "r1/a=\"1\"@14 was told, where r1/a=\"3\"@14 happened");
    found(&two(&LOG[..3], &[(17, A, "3"), LOG[4], LOG[5]]), "where r1/a=null@17 happened");
}

#[test]
fn compacted_and_nothing_said_or_the_other_way_round() {
    let mut silent = writes();
    silent.watched(1, ALL, 11, END, told(&LOG[3..]));
    silent.history(17, told(&LOG[3..]));
    found(&silent, "r1/a=\"1\"@11 was not told");
    let with = |asked: u64, oldest: u64, then: u64| {
        let mut script = writes();
        script.gone(1, asked, oldest);
        script.watched(1, ALL, then, END, told(&LOG[3..]));
        script.history(17, told(&LOG[3..]));
        script
    };
    assert!(with(11, 17, 17).report().holds());
    found(&with(17, 17, 17), "asked from rev 17, and was told that 17 is the oldest");
    found(&with(11, 18, 18), "and the history is kept from 17");
    found(&with(11, 16, 17), "went on from rev 17, where 16 was to come");
}

#[test]
fn made_up_and_not_asked_for() {
    found(&two(&LOG[..3], &[LOG[3], LOG[4], LOG[5], (25, A, "x")]), "r1/a=\"x\"@25 was told, and did not happen");
    let mut script = writes();
    script.watched(1, B, 11, END, told(&[LOG[1], LOG[2], LOG[4]]));
    found(&ended(script), "was not asked for");
}

#[test]
fn a_history_that_is_not_what_was_written() {
    let with = |events: &[(u64, &str, &str)]| {
        let mut script = writes();
        script.watched(1, ALL, 30, END, told(&[]));
        script.history(10, told(events));
        script
    };
    let [a, b, c, d, e, f] = LOG;
    assert!(with(&LOG).report().holds());
    assert!(with(&[a, b, c, d, f]).report().holds(), "nobody knows of the fifth");
    found(&with(&[a, b, d, e, f]), "r1/a=\"3\"@14 was acknowledged, and the history has not got it");
    found(&with(&[a, b, (14, A, "x"), d, e, f]), "another write was answered");
    found(&with(&[a, b, c, d, (18, A, ""), e, f]), "r1/a=null@18 is told, where another write was answered");
    found(&with(&[a, b, c, d, e, (21, A, "refused"), f]), "and was refused");
    found(&with(&[a, b, c, d, e, (21, A, "x"), f]), "nobody wrote it");
    found(&with(&[a, b, c, (15, A, "3"), d, e, f]), "was written at another rev");
    found(&with(&[a, b, c, d, e, (21, B, "5"), f]), "more often than it can have been written");
    found(&with(&[b, a, c, d, e, f]), "the history has r1/a=\"1\"@11 after");
    found(&with(&[(9, B, "never"), a, b, c, d, e, f]), "is kept from rev 10");
    let mut twice = writes();
    twice.put(B, "9", 22);
    twice.watched(1, ALL, 30, END, told(&[]));
    found(&ended(twice), "several writes were answered at rev 22");
}

#[test]
fn what_cannot_be_told_is_not_a_pass() {
    let unknown = |script: &Script| matches!(script.report().verdict, Verdict::Unknown(_));
    assert!(unknown(&Script::default()));
    let mut unread = writes();
    unread.watched(1, ALL, 30, END, told(&[]));
    assert!(unknown(&unread), "no history");
    assert!(unknown(&ended(writes())), "no watcher");
    let mut idle = Script::default();
    idle.watched(1, ALL, 30, END, told(&[]));
    idle.history(1, told(&[]));
    assert!(unknown(&idle), "no write");
    let mut garbled = ended(writes());
    garbled.call(10, "watched", ALL, json!({"watcher": "w"}), json!({"rev": 1}), None);
    assert!(unknown(&garbled));
}

proptest! {
    /// Whatever happened and however it is cut into responses: told as it was it holds, and with one event left out,
    /// told twice, or with another value it does not.
    #[test]
    fn a_random_stream_holds_and_one_change_is_found(
        writes in prop::collection::vec((0_usize..3, 1_u64..4), 1..60),
        cuts in prop::collection::vec(any::<bool>(), 60),
        change in 0_u8..3,
        place in any::<prop::sample::Index>(),
    ) {
        let keys = [A, B, "r1/c"];
        let mut rev = 10_u64;
        let mut log = Vec::new();
        let mut script = Script::default();
        for (n, (key, step)) in writes.iter().enumerate() {
            rev += *step;
            let value = format!("v{n}");
            script.put(keys[*key], &value, rev);
            log.push(json!({"rev": rev, "key": keys[*key], "value": value}));
        }
        let stream = |told: &[Value]| {
            let mut script = script.clone();
            let (mut from, mut part) = (1, Vec::new());
            for (event, cut) in told.iter().zip(&cuts) {
                part.push(event.clone());
                let rev = event["rev"].as_u64().unwrap();
                if *cut {
                    script.watched(1, ALL, from, rev, Value::Array(std::mem::take(&mut part)));
                    from = rev + 1;
                }
            }
            script.watched(1, ALL, from, rev + 1, Value::Array(part));
            script.history(1, Value::Array(log.clone()));
            script.report()
        };
        let report = stream(&log);
        prop_assert!(report.holds(), "{report:?}");
        let mut changed = log.clone();
        let at = place.index(changed.len());
        match change {
            0 => drop(changed.remove(at)),
            1 => changed.insert(at, changed[at].clone()),
            _ => changed[at]["value"] = json!("other"),
        }
        let report = stream(&changed);
        prop_assert!(matches!(report.verdict, Verdict::Broken(_)), "{change} at {at}: {report:?}");
    }
}
