//! Histories that hold, and each rule broken once.

mod random;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::Queue;
use crate::check::{Checker, Report, Verdict};
use crate::record::{Event, History, Phase};

const KEY: &str = "r1-bus";

/// A history, written call by call.
#[derive(Clone, Debug, Default)]
pub(super) struct Script {
    events: Vec<Event>,
}

impl Script {
    fn event(&mut self, p: u64, ev: Phase, f: &str) -> &mut Event {
        let t = self.events.len() as u64;
        let (f, key) = (f.to_owned(), KEY.to_owned());
        self.events.push(Event { t, p, ev, f, key, arg: None, res: None, rev: None, node: None });
        self.events.last_mut().unwrap()
    }

    fn begin(&mut self, p: u64, f: &str, arg: Value) {
        self.event(p, Phase::Invoke, f).arg = Some(arg);
    }

    fn end(&mut self, p: u64, f: &str, res: Value, rev: Option<u64>) {
        let event = self.event(p, Phase::Ok, f);
        (event.res, event.rev) = (Some(res), rev);
    }

    fn call(&mut self, f: &str, arg: Value, res: Value) {
        self.begin(1, f, arg);
        self.end(1, f, res, None);
    }

    /// Of unknown outcome.
    fn try_to(&mut self, p: u64, f: &str, arg: Value) {
        self.begin(p, f, arg);
        self.event(p, Phase::Info, f);
    }

    fn publish(&mut self, value: &str, key: &str, seq: u64, rev: u64) {
        self.begin(1, "publish", letter(value, key));
        self.end(1, "publish", json!({"seq": seq, "duplicate": false}), Some(rev));
    }

    fn receive(&mut self, consumer: &str, seq: u64, value: &str, key: &str, token: u64, attempt: u32) {
        let res = json!({"seq": seq, "value": value, "order_key": key, "token": token, "attempt": attempt});
        self.call("receive", json!({"consumer": consumer}), res);
    }

    fn say(&mut self, word: &str, seq: u64, token: u64, accepted: bool) {
        self.call(word, json!({"seq": seq, "token": token}), json!({"accepted": accepted}));
    }

    /// What the last operation of this name says, to be changed.
    fn last(&mut self, f: &str, ev: Phase) -> &mut Event {
        self.events.iter_mut().rev().find(|event| event.f == f && event.ev == ev).unwrap()
    }

    /// As if that operation had not been made: the last of this name.
    fn remove(&mut self, f: &str) {
        for _ in 0..2 {
            let place = self.events.iter().rposition(|event| event.f == f).unwrap();
            self.events.remove(place);
        }
    }

    fn report(&self) -> Report {
        Queue::new().check(&History::of(self.events.clone()).unwrap())
    }
}

fn letter(value: &str, key: &str) -> Value {
    json!({"value": value, "order_key": key, "message_id": format!("id-{value}")})
}

fn left(dead: Value, counts: [u64; 4]) -> Value {
    let [published, acked, redelivered, dead_count] = counts;
    json!({
        "dead": dead,
        "waiting": 0,
        "counts": {
            "published": published, "acked": acked, "redelivered": redelivered, "dead": dead_count,
            "expired": 0, "dropped": 0,
        },
    })
}

/// `a` and `b` of one key, `a` failing once and answered too late once; `poison` dies; `c` was published twice under
/// one id, by calls of which the first got no answer; of `d` nobody knows whether it was acknowledged; a consumer left
/// `e`.
fn good() -> Script {
    let mut script = Script::default();
    script.publish("a", "k", 1, 10);
    script.publish("b", "k", 2, 11);
    script.publish("poison", "", 3, 12);
    script.try_to(20, "publish", letter("c", ""));
    script.begin(1, "publish", letter("c", ""));
    script.end(1, "publish", json!({"seq": 4, "duplicate": true}), Some(14));
    script.publish("d", "", 5, 15);
    script.publish("e", "", 6, 16);
    script.receive("x", 1, "a", "k", 20, 1);
    script.say("nack", 1, 20, true);
    script.receive("x", 1, "a", "k", 22, 2);
    script.receive("y", 1, "a", "k", 25, 3);
    script.say("ack", 1, 22, false);
    script.say("ack", 1, 25, true);
    script.receive("x", 2, "b", "k", 26, 1);
    script.say("ack", 2, 26, true);
    script.receive("x", 3, "poison", "", 30, 1);
    script.say("nack", 3, 30, true);
    script.receive("x", 3, "poison", "", 34, 3);
    script.say("nack", 3, 34, true);
    script.receive("y", 4, "c", "", 36, 1);
    script.say("ack", 4, 36, true);
    script.receive("y", 5, "d", "", 38, 1);
    script.try_to(21, "ack", json!({"seq": 5, "token": 38}));
    script.receive("y", 6, "e", "", 39, 1);
    script.call("leave", json!({"consumer": "y"}), json!({}));
    script.receive("x", 6, "e", "", 41, 1);
    script.say("ack", 6, 41, true);
    let dead = json!([{"seq": 3, "value": "poison", "attempts": 3}]);
    script.call("final", json!({"max_attempts": 3}), left(dead, [6, 5, 4, 1]));
    script
}

/// A change before the end was read.
fn before_the_end(script: &mut Script, change: impl FnOnce(&mut Script)) {
    let end = script.events.split_off(script.events.len() - 2);
    change(script);
    for event in end {
        let t = script.events.len() as u64;
        script.events.push(Event { t, ..event });
    }
}

fn counts(script: &mut Script, name: &str, count: u64) {
    let res = script.last("final", Phase::Ok).res.as_mut().unwrap();
    res["counts"][name] = json!(count);
}

fn set(script: &mut Script, f: &str, field: &str, value: Value) {
    script.last(f, Phase::Ok).res.as_mut().unwrap()[field] = value;
}

fn texts(report: Report) -> Vec<String> {
    match report.verdict {
        Verdict::Broken(findings) => findings.into_iter().map(|finding| finding.text).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_fails_dies_leaves_and_is_in_doubt_holds() {
    let report = good().report();
    assert!(report.holds(), "{report:?}");
    assert_eq!(report.judged, 6 + 10, "acknowledged publishes, and deliveries");
}

#[test]
fn a_publish_in_doubt_may_be_there_or_not() {
    let mut script = good();
    before_the_end(&mut script, |script| script.try_to(30, "publish", letter("f", "k")));
    assert!(script.report().holds(), "not there");
    before_the_end(&mut script, |script| {
        script.receive("x", 7, "f", "k", 50, 1);
        script.say("ack", 7, 50, true);
    });
    counts(&mut script, "published", 7);
    counts(&mut script, "acked", 6);
    let report = script.report();
    assert!(report.holds(), "there: {report:?}");
}

type Plant = fn(&mut Script);

fn found(plants: &[(&str, Plant)]) {
    for (what, plant) in plants {
        let mut script = good();
        plant(&mut script);
        let texts = texts(script.report());
        assert!(texts.iter().any(|text| text.contains(what)), "{what}: {texts:?}");
    }
}

#[test]
fn what_is_lost_made_up_or_there_twice_is_found() {
    found(&[
        ("is lost", |script| script.remove("ack")),
        ("is lost", |script| before_the_end(script, |script| script.publish("f", "", 7, 50))),
        ("is lost", |script| set(script, "final", "dead", json!([]))),
        ("was acknowledged and is dead", |script| {
            let dead = json!([{"seq": 3, "value": "poison", "attempts": 3}, {"seq": 6, "value": "e", "attempts": 3}]);
            set(script, "final", "dead", dead);
        }),
        ("is dead twice", |script| {
            let poison = json!({"seq": 3, "value": "poison", "attempts": 3});
            set(script, "final", "dead", json!([poison, poison]));
        }),
        ("nobody had published \"z\"", |script| set(script, "receive", "value", json!("z"))),
        ("message 6 is", |script| set(script, "receive", "value", json!("z"))),
        ("nobody had published \"f\"", |script| {
            before_the_end(script, |script| {
                script.receive("x", 7, "f", "", 50, 1);
                script.publish("f", "", 7, 49);
            });
        }),
        ("was refused and is there", |script| {
            before_the_end(script, |script| {
                script.begin(1, "publish", letter("f", ""));
                script.event(1, Phase::Fail, "publish");
                script.receive("x", 7, "f", "", 50, 1);
            });
        }),
        ("is there twice, as 4 and 7", |script| {
            before_the_end(script, |script| script.receive("x", 7, "c", "", 50, 1));
        }),
        ("is there twice, as 6 and 7", |script| {
            before_the_end(script, |script| {
                script.begin(1, "publish", letter("e", ""));
                script.end(1, "publish", json!({"seq": 7, "duplicate": true}), Some(50));
            });
        }),
        ("called new 2 times", |script| before_the_end(script, |script| script.publish("e", "", 6, 50))),
        ("has no id", |script| {
            before_the_end(script, |script| {
                script.begin(1, "publish", json!({"value": "e", "order_key": ""}));
                script.end(1, "publish", json!({"seq": 6, "duplicate": true}), None);
            });
        }),
        ("under the order key", |script| set(script, "receive", "order_key", json!("other"))),
    ]);
}

#[test]
fn numbers_that_fall_are_found() {
    found(&[
        ("message 3 was published at rev 12, and 6 at 12", |script| script.last("publish", Phase::Ok).rev = Some(12)),
        ("after 5 had been acknowledged", |script| set(script, "publish", "seq", json!(0))),
        ("and given out at 9", |script| {
            before_the_end(script, |script| {
                script.publish("f", "", 7, 50);
                script.receive("x", 7, "f", "", 9, 1);
            });
        }),
    ]);
}

#[test]
fn deliveries_out_of_turn_are_found() {
    found(&[
        ("acknowledged under token 41, and given out under 50", |script| {
            before_the_end(script, |script| script.receive("y", 6, "e", "", 50, 2));
        }),
        ("given out twice under token 41", |script| {
            before_the_end(script, |script| script.receive("y", 6, "e", "", 41, 1));
        }),
        ("came again, and its consumer had not left", |script| script.remove("leave")),
        ("failed, and came again as the same", |script| {
            before_the_end(script, |script| {
                script.publish("f", "", 7, 50);
                script.receive("x", 7, "f", "", 51, 1);
                script.say("nack", 7, 51, true);
                script.receive("x", 7, "f", "", 52, 1);
            });
        }),
        ("attempt 3 under 25, then 2 under 50", |script| {
            before_the_end(script, |script| script.receive("x", 1, "a", "k", 50, 2));
        }),
        ("as attempt 4 of 3", |script| {
            before_the_end(script, |script| script.receive("x", 3, "poison", "", 50, 4));
        }),
        ("could fail under 22", |script| before_the_end(script, |script| script.say("nack", 1, 22, true))),
        ("which nobody was given", |script| before_the_end(script, |script| script.say("ack", 6, 60, true))),
        ("two answers to message 6", |script| before_the_end(script, |script| script.say("ack", 6, 41, true))),
        ("was acknowledged 2 times", |script| before_the_end(script, |script| script.say("ack", 6, 39, true))),
    ]);
}

#[test]
fn a_key_out_of_order_is_found() {
    found(&[
        ("k: message 7 was given out at 26", |script| {
            before_the_end(script, |script| script.receive("y", 7, "f", "k", 26, 1));
        }),
        ("k: message 8 was given out before one before it was answered", |script| {
            before_the_end(script, |script| {
                script.publish("f", "k", 7, 50);
                script.receive("x", 7, "f", "k", 51, 1);
                script.publish("g", "k", 8, 52);
                script.receive("y", 8, "g", "k", 53, 1);
                script.say("ack", 7, 51, true);
            });
        }),
    ]);
}

#[test]
fn counters_that_say_otherwise_are_found() {
    found(&[
        ("message 3 is dead after 2 attempts", |script| {
            set(script, "final", "dead", json!([{"seq": 3, "value": "poison", "attempts": 2}]));
        }),
        ("1 messages are left", |script| set(script, "final", "waiting", json!(1))),
        ("7 were kept", |script| counts(script, "published", 7)),
        ("5 were kept", |script| counts(script, "published", 5)),
        ("3 were acknowledged", |script| counts(script, "acked", 3)),
        ("7 were acknowledged", |script| counts(script, "acked", 7)),
        ("2 died", |script| counts(script, "dead", 2)),
        ("2 were delivered again", |script| counts(script, "redelivered", 2)),
        ("1 expired", |script| counts(script, "expired", 1)),
        ("1 were dropped", |script| counts(script, "dropped", 1)),
    ]);
}

#[test]
fn what_cannot_be_told_is_not_a_pass() {
    let unknown = |script: &Script| matches!(script.report().verdict, Verdict::Unknown(_));
    assert!(unknown(&Script::default()), "nothing happened");
    let mut undrained = good();
    undrained.remove("final");
    assert!(unknown(&undrained));
    let mut mute = Script::default();
    mute.call("final", json!({"max_attempts": 3}), left(json!([]), [0; 4]));
    assert!(unknown(&mute), "nothing was acknowledged");
    let mut garbled = good();
    set(&mut garbled, "receive", "token", json!("x"));
    assert!(unknown(&garbled));
}

proptest! {
    #[test]
    fn a_random_execution_holds_and_one_change_is_found(
        steps in prop::collection::vec(any::<(u8, u8)>(), 0..120),
        change in any::<prop::sample::Index>(),
        place in any::<prop::sample::Index>(),
    ) {
        let script = random::execution(&steps);
        let report = script.report();
        prop_assert!(report.holds(), "{report:?}");
        let changes = random::CHANGES;
        let (what, plant) = changes[change.index(changes.len())];
        let mut changed = script;
        plant(&mut changed, place);
        let report = changed.report();
        prop_assert!(matches!(report.verdict, Verdict::Broken(_)), "{what}: {report:?}");
    }
}
