use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::check::model::sample::{
    Script, assert_broken, assert_unknown, at_random, has_order, of_register, with_a_lie,
};
use crate::check::model::{Fenced, Lock, Queue, Register};

fn put(value: u64) -> Value {
    json!({"value": value})
}

fn version(version: u64) -> Value {
    json!({"version": version})
}

fn seen(value: u64, version: u64) -> Value {
    json!({"value": value, "version": version})
}

fn register(script: &Script) -> Report {
    Linear::new(Register::new()).check(&script.history())
}

#[test]
fn operations_at_once_may_be_in_any_order() {
    let mut script = Script::default();
    script.begin(1, "put", put(10)).begin(2, "put", put(20)).begin(3, "read", json!({}));
    script.ok(3, seen(20, 1)).ok(1, version(2)).ok(2, version(1));
    script.did(3, "read", json!({}), seen(10, 2));
    assert!(register(&script).holds(), "{}", register(&script));
    assert_eq!(register(&script).judged, 4);
}

#[test]
fn a_stale_read_is_found() {
    let mut script = Script::default();
    script.did(1, "put", put(10), version(1)).did(1, "put", put(20), version(2));
    script.did(2, "read", json!({}), seen(10, 1));
    assert_broken(&register(&script), &["#2", "read", "20 at version 2", r#"{"value":10,"version":1}"#]);
}

#[test]
fn a_lost_update_is_found() {
    let mut script = Script::default();
    let cas = |value: u64| json!({"version": 1, "value": value});
    script.did(1, "put", put(10), version(1));
    script.begin(1, "cas", cas(20)).begin(2, "cas", cas(30));
    script.ok(1, json!({"ok": true, "version": 2})).ok(2, json!({"ok": true, "version": 2}));
    assert_broken(&register(&script), &["cas"]);
}

#[test]
fn a_cas_that_lied_is_found() {
    let mut script = Script::default();
    script.did(1, "put", put(10), version(1));
    script.did(2, "cas", json!({"version": 1, "value": 20}), json!({"ok": false, "version": 1}));
    assert_broken(&register(&script), &["#1", "cas"]);
}

#[test]
fn a_read_from_the_future_is_found() {
    let mut script = Script::default();
    script.did(2, "read", json!({}), seen(10, 1)).did(1, "put", put(10), version(1));
    assert_broken(&register(&script), &["#0", "read", "an absent key"]);
}

#[test]
fn what_failed_must_not_be_seen() {
    let mut script = Script::default();
    script.begin(1, "put", put(10)).fail(1).did(2, "read", json!({}), seen(10, 1));
    assert_broken(&register(&script), &["#1"]);
}

#[test]
fn an_unknown_outcome_may_come_late_or_never_but_not_go() {
    let mut late = Script::default();
    late.begin(1, "put", put(10)).info(1);
    late.did(2, "read", json!({}), json!({"value": null, "version": 0}));
    assert!(register(&late).holds(), "not yet");
    late.did(2, "read", json!({}), seen(10, 1));
    assert!(register(&late).holds(), "{}", register(&late));
    late.did(2, "read", json!({}), json!({"value": null, "version": 0}));
    assert_broken(&register(&late), &["#3"]);
}

#[test]
fn several_of_unknown_outcome_may_come_between_two_answers() {
    let mut script = Script::default();
    script.did(9, "put", put(1), version(1));
    for p in 1..=8 {
        script.begin(p, "put", put(10 * p)).info(p);
    }
    script.begin(10, "del", json!({})).info(10);
    script.did(9, "read", json!({}), seen(40, 5)).did(9, "put", put(2), version(7));
    script.did(9, "put", put(3), version(8));
    assert!(register(&script).holds(), "{}", register(&script));
    script.did(9, "read", json!({}), seen(10, 2));
    assert!(register(&script).holds(), "a removal and two writes: {}", register(&script));
    script.did(9, "read", json!({}), seen(10, 3));
    assert_broken(&register(&script), &["#14"]);
}

#[test]
fn what_cannot_be_told_is_unknown() {
    let mut strange = Script::default();
    strange.did(1, "incr", json!({}), json!({}));
    assert_unknown(&register(&strange), "incr");
    let mut script = Script::default();
    script.did(1, "put", put(10), version(1)).did(1, "put", put(20), version(2));
    let poor = Linear::new(Register::new()).with_budget(1);
    assert_unknown(&poor.check(&script.history()), "1 configurations");
    assert_unknown(&register(&Script::default()), "nothing to judge");
    strange.begin_on(1, "read", "y", json!({})).ok(1, seen(1, 1));
    assert_broken(&register(&strange), &["\"y\""]);
}

#[test]
fn keys_are_judged_one_by_one() {
    let mut script = Script::default();
    script.did(1, "put", put(10), version(1));
    script.begin_on(1, "put", "y", put(20)).ok(1, version(1));
    assert!(register(&script).holds());
    script.begin_on(1, "read", "y", json!({})).ok(1, seen(10, 1));
    assert_broken(&register(&script), &["\"y\"", "20 at version 1"]);
}

#[test]
fn a_double_grant_and_a_token_again_are_found() {
    let lock = |script: &Script| Linear::new(Lock::new()).check(&script.history());
    let owner = |owner: &str| json!({"owner": owner});
    let got = |token: u64| json!({"got": true, "token": token});
    let mut script = Script::default();
    script.did(1, "acquire", owner("a"), got(5));
    let mut double = script.clone();
    double.did(2, "acquire", owner("b"), got(6));
    assert_broken(&lock(&double), &["held by \"a\" under token 5", "#1"]);
    script.did(1, "release", json!({"owner": "a", "token": 5}), json!({"ok": true}));
    let mut again = script.clone();
    again.did(2, "acquire", owner("b"), got(5));
    assert_broken(&lock(&again), &["a free lock", "#2"]);
    script.did(2, "acquire", owner("b"), got(6));
    assert!(lock(&script).holds());
}

#[test]
fn a_write_under_an_old_token_is_found() {
    let mut script = Script::default();
    script.did(1, "acquire", json!({"owner": "a"}), json!({"got": true, "token": 5}));
    script.begin(3, "fenced_write", json!({"token": 5, "value": 1})).info(3);
    script.did(1, "release", json!({"owner": "a", "token": 5}), json!({"ok": true}));
    script.did(2, "acquire", json!({"owner": "b"}), json!({"got": true, "token": 6}));
    script.did(2, "read", json!({}), json!({"value": 1}));
    let fenced = |script: &Script| Linear::new(Fenced::new()).check(&script.history());
    assert!(fenced(&script).holds(), "it came before the release: {}", fenced(&script));
    script.did(1, "fenced_write", json!({"token": 5, "value": 2}), json!({"accepted": true}));
    assert_broken(&fenced(&script), &["#5", "fenced_write"]);
}

#[test]
fn an_entry_that_two_have_is_found() {
    let queue = |script: &Script| Linear::new(Queue::new()).check(&script.history());
    let mut script = Script::default();
    script.did(1, "enqueue", json!({"id": "a"}), json!({}));
    script.begin(2, "claim", json!({"worker": "v"})).info(2);
    script.did(1, "claim", json!({"worker": "w"}), json!({"id": "a", "fence": 3}));
    assert!(queue(&script).holds());
    script.did(3, "claim", json!({"worker": "u"}), json!({"id": "a", "fence": 4}));
    assert_broken(&queue(&script), &["#3"]);
}

/// Ten clients at once all the way, one operation in twenty without an answer, half of these with an effect.
fn long(operations: u64) -> Script {
    let (mut script, mut version, mut value) = (Script::default(), 0, Value::Null);
    let mut open: Vec<(u64, Value)> = Vec::new();
    for n in 0..operations {
        let f = if n % 3 == 0 { "read" } else { "put" };
        script.begin(n, f, put(n));
        // They take effect in the order in which they began, and are answered in another.
        let has_answer = n % 20 != 19;
        if f == "put" && (has_answer || n % 40 == 19) {
            (version, value) = (version + 1, json!(n));
        }
        let res = json!({"value": value, "version": version});
        if has_answer {
            open.push((n, res));
        } else {
            script.info(n);
        }
        if open.len() >= 10 {
            let (p, res) = open.remove((n * 7 % 5) as usize);
            script.ok(p, res);
        }
    }
    for (p, res) in open {
        script.ok(p, res);
    }
    script
}

#[test]
fn two_thousand_operations_of_ten_clients_are_judged() {
    let script = long(2_000);
    assert!(register(&script).holds(), "{}", register(&script));
}

#[test]
fn one_stale_read_among_two_thousand_operations_is_found() {
    let mut script = long(2_000);
    script.did(5_000, "read", json!({}), seen(1_600, 100));
    assert_broken(&register(&script), &["#2000", "read"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn a_small_history_is_judged_as_if_every_order_were_tried(script in at_random()) {
        let history = script.history();
        let model = Register::new();
        let stuck = matches!(register(&script).verdict, crate::check::Verdict::Broken(_));
        prop_assert_eq!(!stuck, has_order(&model, &history.operations), "{:#?}", history);
    }

    #[test]
    fn with_versions_that_go_on_too(script in at_random()) {
        let history = script.history();
        let report = Linear::new(Register::counting_removals()).check(&history);
        let stuck = matches!(report.verdict, crate::check::Verdict::Broken(_));
        prop_assert_eq!(!stuck, has_order(&Register::counting_removals(), &history.operations), "{:#?}", history);
    }

    #[test]
    fn a_register_that_does_as_it_should_holds(script in of_register(80)) {
        let report = register(&script);
        prop_assert!(report.holds() || report.judged == 0, "{}", report);
    }

    #[test]
    fn a_lie_is_found(script in of_register(18), which in any::<prop::sample::Index>(), how in any::<u8>()) {
        let history = with_a_lie(script, which, how).history();
        let has_order = has_order(&Register::new(), &history.operations);
        let report = Linear::new(Register::new()).check(&history);
        prop_assert_eq!(matches!(report.verdict, crate::check::Verdict::Broken(_)), !has_order, "{}", report);
    }
}
