use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::check::Verdict;
use crate::check::model::sample::{Script, assert_broken, assert_unknown, has_order, of_register, with_a_lie};
use crate::check::model::{Lock, Queue, Register};

fn put(value: u64) -> Value {
    json!({"value": value})
}

fn version(version: u64) -> Value {
    json!({"version": version})
}

fn seen(value: u64, version: u64) -> Value {
    json!({"value": value, "version": version})
}

fn replay(script: &Script) -> Report {
    Replay::new(Register::new()).check(&script.history())
}

/// Two writes, at rev 3 and 5.
fn two_writes() -> Script {
    let mut script = Script::default();
    script.did_at(3, 1, "put", put(10), version(1)).did_at(5, 1, "put", put(20), version(2));
    script
}

#[test]
fn reads_and_refusals_see_every_write_up_to_their_rev() {
    let mut script = two_writes();
    script.did_at(5, 2, "read", json!({}), seen(20, 2)).did_at(5, 3, "read", json!({}), seen(20, 2));
    script.did_at(7, 2, "cas", json!({"version": 1, "value": 30}), json!({"ok": false, "version": 2}));
    assert!(replay(&script).holds(), "{}", replay(&script));
    assert_eq!(replay(&script).judged, 5);
    let mut early = two_writes();
    early.begin(2, "read", json!({})).ok_at(2, 5, seen(10, 1));
    assert_broken(&replay(&early), &["#2", "at rev 5", "20 at version 2"]);
}

#[test]
fn a_stale_read_is_found_even_where_its_rev_is_honest() {
    let mut script = two_writes();
    script.did_at(4, 2, "read", json!({}), seen(10, 1));
    assert_broken(&replay(&script), &["#2", "rev 4", "at or after rev 5", "#1"]);
    let mut at_once = Script::default();
    at_once.did_at(3, 1, "put", put(10), version(1)).begin(2, "read", json!({}));
    at_once.did_at(5, 1, "put", put(20), version(2)).ok_at(2, 4, seen(10, 1));
    assert!(replay(&at_once).holds(), "it began before the second write");
}

#[test]
fn a_read_from_the_future_is_found() {
    let mut script = Script::default();
    script.did_at(3, 2, "read", json!({}), seen(10, 1)).did_at(3, 1, "put", put(10), version(1));
    assert_broken(&replay(&script), &["#1", "rev 3", "after rev 3", "#0"]);
}

#[test]
fn two_writes_at_one_rev_are_found_also_on_two_keys() {
    let mut script = Script::default();
    script.begin(1, "put", put(10)).begin_on(2, "put", "y", put(20));
    script.ok_at(1, 3, version(1)).ok_at(2, 3, version(1));
    assert_broken(&replay(&script), &["#0", "#1", "rev 3", "only one"]);
}

#[test]
fn the_removal_of_nothing_is_no_write() {
    let mut script = Script::default();
    script.begin(1, "put", put(10)).begin_on(2, "del", "y", json!({}));
    script.ok_at(1, 3, version(1)).ok_at(2, 3, version(0));
    assert!(replay(&script).holds(), "{}", replay(&script));
    let mut effective = Script::default();
    effective.begin_on(2, "put", "y", put(1)).ok_at(2, 2, version(1));
    effective.begin(1, "put", put(10)).begin_on(2, "del", "y", json!({}));
    effective.ok_at(1, 3, version(1)).ok_at(2, 3, version(0));
    assert_broken(&replay(&effective), &["rev 3", "only one"]);
}

#[test]
fn order_in_time_holds_across_keys() {
    let mut script = Script::default();
    script.begin_on(1, "put", "y", put(10)).ok_at(1, 9, version(1));
    script.did_at(8, 2, "put", put(20), version(1));
    assert_broken(&replay(&script), &["#1", "rev 8", "after rev 9", "#0", "\"y\""]);
}

#[test]
fn a_lost_update_and_a_cas_that_lied_are_found() {
    let cas = |value: u64| json!({"version": 1, "value": value});
    let mut lost = Script::default();
    lost.did_at(3, 1, "put", put(10), version(1)).begin(1, "cas", cas(20)).begin(2, "cas", cas(30));
    lost.ok_at(1, 4, json!({"ok": true, "version": 2})).ok_at(2, 5, json!({"ok": true, "version": 2}));
    assert_broken(&replay(&lost), &["#2", "cas", "20 at version 2"]);
    let mut lied = Script::default();
    lied.did_at(3, 1, "put", put(10), version(1));
    lied.did_at(3, 2, "cas", cas(20), json!({"ok": false, "version": 1}));
    assert_broken(&replay(&lied), &["#1", "cas"]);
}

#[test]
fn a_hole_may_be_what_nobody_heard_of() {
    let mut script = Script::default();
    script.did_at(3, 1, "put", put(10), version(1)).begin(2, "put", put(20)).info(2);
    script.did_at(5, 1, "put", put(30), version(3)).did_at(6, 1, "read", json!({}), seen(30, 3));
    assert!(replay(&script).holds(), "{}", replay(&script));
    script.did_at(7, 1, "read", json!({}), seen(20, 4));
    assert_broken(&replay(&script), &["#4", "rev 7"]);
}

#[test]
fn there_must_be_a_hole_for_it() {
    let mut script = Script::default();
    script.did_at(3, 1, "put", put(10), version(1)).begin(2, "put", put(20)).info(2);
    script.did_at(4, 1, "put", put(30), version(3));
    assert_broken(&replay(&script), &["#2", "rev 4"]);
    let mut taken = Script::default();
    taken.did_at(3, 1, "put", put(10), version(1)).begin(2, "put", put(20)).info(2);
    taken.begin_on(3, "put", "y", put(40)).ok_at(3, 4, version(1));
    taken.did_at(5, 1, "put", put(30), version(3));
    assert_broken(&replay(&taken), &["#3", "rev 5"]);
}

#[test]
fn it_cannot_be_before_it_was_asked_for() {
    let mut script = Script::default();
    script.did_at(3, 1, "put", put(10), version(1)).did_at(5, 1, "read", json!({}), seen(20, 2));
    script.begin(2, "put", put(20)).info(2);
    assert_broken(&replay(&script), &["#1", "rev 5"]);
    let mut known = Script::default();
    known.did_at(3, 1, "put", put(10), version(1)).begin(3, "read", json!({}));
    known.begin_on(1, "read", "y", json!({})).ok_at(1, 5, json!({"value": null, "version": 0}));
    known.begin(2, "put", put(20)).info(2).ok_at(3, 5, seen(20, 2));
    assert_broken(&replay(&known), &["#1", "rev 5"]);
}

#[test]
fn what_has_no_place_is_unknown_but_for_a_refusal() {
    let mut script = two_writes();
    script.did(2, "cas", json!({"version": 1, "value": 30}), json!({"ok": false, "version": 2}));
    assert!(replay(&script).holds());
    assert_eq!(replay(&script).judged, 2);
    let mut read = script.clone();
    read.did(2, "read", json!({}), seen(20, 2));
    assert_unknown(&replay(&read), "#3");
    script.did(2, "put", put(30), version(3));
    assert_unknown(&replay(&script), "#3");
    assert_unknown(&replay(&Script::default()), "nothing to judge");
}

#[test]
fn too_long_a_search_is_unknown() {
    let mut script = Script::default();
    for p in 1..=20 {
        script.begin(p, "enqueue", json!({"id": p})).info(p);
    }
    script.did_at(90, 30, "claim", json!({"worker": "w"}), json!({"id": "none of these", "fence": 1}));
    let report = Replay::new(Queue::new()).with_budget(10_000).check(&script.history());
    assert_unknown(&report, "10000 configurations");
}

#[test]
fn a_double_grant_is_found() {
    let mut script = Script::default();
    script.did_at(5, 1, "acquire", json!({"owner": "a"}), json!({"got": true, "token": 5}));
    script.did(2, "acquire", json!({"owner": "b"}), json!({"got": false}));
    script.did_at(7, 2, "acquire", json!({"owner": "b"}), json!({"got": true, "token": 7}));
    let report = Replay::new(Lock::new()).check(&script.history());
    assert_broken(&report, &["#2", "held by \"a\" under token 5"]);
}

#[test]
fn long_histories_are_replayed_at_once() {
    let mut script = Script::default();
    for n in 1..=20_000_u64 {
        script.did_at(n, n % 10, "put", put(n), version(n));
    }
    assert!(replay(&script).holds());
    script.did_at(20_000, 1, "read", json!({}), seen(19_999, 19_999));
    assert_broken(&replay(&script), &["#20000"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn a_register_that_does_as_it_should_holds(script in of_register(80)) {
        let report = replay(&script);
        prop_assert!(report.holds() || report.judged == 0, "{}\n{:#?}", report, script.history());
    }

    /// What holds by rev holds in time.
    #[test]
    fn a_lie_that_no_order_explains_is_found(
        script in of_register(18),
        which in any::<prop::sample::Index>(),
        how in any::<u8>(),
    ) {
        let history = with_a_lie(script, which, how).history();
        let report = Replay::new(Register::new()).check(&history);
        if !has_order(&Register::new(), &history.operations) {
            prop_assert!(matches!(report.verdict, Verdict::Broken(_)), "{}", report);
        }
    }
}
