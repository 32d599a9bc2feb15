use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::check::model::sample::{Script, assert_broken, assert_unknown};

/// A process begins a transaction.
fn begin(script: &mut Script, p: u64, ops: Value) {
    script.begin_on(p, "txn", "lists", json!({"ops": ops}));
}

/// It is answered.
fn ok(script: &mut Script, p: u64, ops: Value) {
    script.ok(p, json!({"ops": ops}));
}

/// What is asked to be answered so.
fn asked(ops: &Value) -> Value {
    let ops = ops.as_array().unwrap().iter();
    ops.map(|op| if op[0] == "r" { json!(["r", op[1]]) } else { op.clone() }).collect()
}

/// Transactions one after another.
fn one_by_one(all: &[Value]) -> Script {
    let mut script = Script::default();
    for ops in all {
        begin(&mut script, 1, asked(ops));
        ok(&mut script, 1, ops.clone());
    }
    script
}

/// Transactions that all begin before any of them ends.
fn at_once(all: &[Value]) -> Script {
    let mut script = Script::default();
    for (ops, p) in all.iter().zip(0..) {
        begin(&mut script, p, asked(ops));
    }
    for (ops, p) in all.iter().zip(0..) {
        ok(&mut script, p, ops.clone());
    }
    script
}

fn judge(script: &Script) -> Report {
    Append::new().check(&script.history())
}

#[test]
fn transactions_in_some_order_hold() {
    let script = one_by_one(&[
        json!([["append", "x", 1], ["r", "x", [1]]]),
        json!([["r", "x", [1]], ["append", "y", 1], ["append", "x", 2], ["r", "x", [1, 2]]]),
        json!([["r", "x", [1, 2]], ["r", "y", [1]]]),
    ]);
    assert!(judge(&script).holds(), "{}", judge(&script));
    assert_eq!(judge(&script).judged, 3);
    let crossed = at_once(&[json!([["append", "x", 1], ["r", "y", []]]), json!([["append", "y", 1], ["r", "x", [1]]])]);
    assert!(judge(&crossed).holds(), "{}", judge(&crossed));
}

#[test]
fn a_value_of_a_failed_transaction_is_g1a() {
    let mut script = Script::default();
    begin(&mut script, 1, json!([["append", "x", 1]]));
    script.fail(1);
    begin(&mut script, 2, json!([["r", "x"]]));
    ok(&mut script, 2, json!([["r", "x", [1]]]));
    assert_broken(&judge(&script), &["G1a", "#0", "#1"]);
}

#[test]
fn a_value_of_half_a_transaction_is_g1b() {
    let script = at_once(&[json!([["append", "x", 1], ["append", "x", 2]]), json!([["r", "x", [1]]])]);
    assert_broken(&judge(&script), &["G1b", "#0", "#1"]);
}

#[test]
fn a_value_of_nobody_and_one_that_is_there_twice_are_found() {
    let made_up = one_by_one(&[json!([["r", "x", [7]]])]);
    assert_broken(&judge(&made_up), &["#0", "7", "nobody appended"]);
    let twice = one_by_one(&[json!([["append", "x", 1]]), json!([["r", "x", [1, 1]]])]);
    assert_broken(&judge(&twice), &["#1", "twice"]);
}

#[test]
fn orders_that_contradict_each_other_are_found() {
    let script = at_once(&[
        json!([["append", "x", 1]]),
        json!([["append", "x", 2]]),
        json!([["r", "x", [1, 2]]]),
        json!([["r", "x", [2]]]),
    ]);
    assert_broken(&judge(&script), &["#3", "#2", "neither begins the other"]);
}

#[test]
fn who_appends_sees_it() {
    let script = one_by_one(&[json!([["append", "x", 1], ["r", "x", []]])]);
    assert_broken(&judge(&script), &["#0", "itself"]);
}

#[test]
fn writes_in_a_circle_are_g0() {
    let script = at_once(&[
        json!([["append", "x", 1], ["append", "y", 1]]),
        json!([["append", "x", 2], ["append", "y", 2]]),
        json!([["r", "x", [1, 2]]]),
        json!([["r", "y", [2, 1]]]),
    ]);
    assert_broken(&judge(&script), &["G0: ", "2 transactions", "(ww)", "#0", "#1"]);
}

#[test]
fn information_in_a_circle_is_g1c() {
    let script = at_once(&[json!([["append", "x", 1], ["r", "y", [1]]]), json!([["append", "y", 1], ["r", "x", [1]]])]);
    assert_broken(&judge(&script), &["G1c: ", "2 transactions", "(wr)"]);
}

#[test]
fn one_missing_write_in_a_circle_is_g_single() {
    let script = at_once(&[
        json!([["append", "x", 1], ["append", "y", 1]]),
        json!([["r", "x", [1]], ["r", "y", []]]),
        json!([["r", "y", [1]]]),
    ]);
    assert_broken(&judge(&script), &["G-single: ", "2 transactions", "without 1", "(rw)", "(wr)"]);
}

#[test]
fn two_missing_writes_in_a_circle_are_g2() {
    let script = at_once(&[
        json!([["append", "x", 1], ["r", "y", []]]),
        json!([["append", "y", 1], ["r", "x", []]]),
        json!([["r", "x", [1]], ["r", "y", [1]]]),
    ]);
    assert_broken(&judge(&script), &["G2: ", "2 transactions", "(rw)"]);
}

#[test]
fn a_lost_append_is_found() {
    let script = one_by_one(&[json!([["append", "x", 1]]), json!([["r", "x", []]])]);
    assert_broken(&judge(&script), &["G-single-realtime", "#1 read \"x\" without 1", "#0 had ended before #1 began"]);
    let overwritten = one_by_one(&[json!([["append", "x", 1]]), json!([["append", "x", 2]]), json!([["r", "x", [2]]])]);
    assert_broken(&judge(&overwritten), &["G0-realtime", "#0", "#1"]);
}

#[test]
fn a_stale_read_and_one_from_the_future_are_found() {
    let all = [
        json!([["append", "x", 1]]),
        json!([["append", "x", 2]]),
        json!([["r", "x", [1]]]),
        json!([["r", "x", [1, 2]]]),
    ];
    assert_broken(&judge(&one_by_one(&all)), &["G-single-realtime", "#2", "#1"]);
    let future = one_by_one(&[json!([["r", "x", [1]]]), json!([["append", "x", 1]])]);
    assert_broken(&judge(&future), &["G1c-realtime", "#0", "#1"]);
}

#[test]
fn time_counts_over_what_lies_between() {
    let script = one_by_one(&[
        json!([["append", "x", 1]]),
        json!([["append", "y", 1]]),
        json!([["append", "y", 2]]),
        json!([["r", "x", []]]),
        json!([["r", "y", [1, 2]]]),
    ]);
    assert_broken(&judge(&script), &["G-single-realtime", "#3 read \"x\" without 1", "#0"]);
}

#[test]
fn an_unknown_outcome_counts_once_it_is_seen() {
    let mut script = Script::default();
    begin(&mut script, 1, json!([["append", "x", 1], ["append", "y", 1]]));
    script.info(1);
    begin(&mut script, 2, json!([["r", "x"], ["r", "y"]]));
    ok(&mut script, 2, json!([["r", "x", []], ["r", "y", []]]));
    assert!(judge(&script).holds(), "{}", judge(&script));
    begin(&mut script, 2, json!([["r", "x"]]));
    ok(&mut script, 2, json!([["r", "x", [1]]]));
    assert!(judge(&script).holds(), "{}", judge(&script));
    begin(&mut script, 2, json!([["r", "y"]]));
    ok(&mut script, 2, json!([["r", "y", []]]));
    assert_broken(&judge(&script), &["G-single-realtime", "\"y\" without 1", "#0"]);
}

#[test]
fn what_cannot_be_told_is_unknown() {
    assert_unknown(&judge(&Script::default()), "nothing to judge");
    let twice = one_by_one(&[json!([["append", "x", 1]]), json!([["append", "x", 1]])]);
    assert_unknown(&judge(&twice), "appended twice");
    let mut other = Script::default();
    other.begin_on(1, "put", "lists", json!({})).ok(1, json!({}));
    assert_unknown(&judge(&other), "put");
    let mut wrong = Script::default();
    begin(&mut wrong, 1, json!([["r", "x"]]));
    ok(&mut wrong, 1, json!([["r", "y", []]]));
    assert_unknown(&judge(&wrong), "something else");
}

/// What one transaction does to two lists: reads or appends, in turn.
fn execution() -> impl Strategy<Value = Vec<Value>> {
    let step = (0_usize..2, any::<bool>());
    let transaction = proptest::collection::vec(step, 1..4);
    proptest::collection::vec(transaction, 2..30).prop_map(|transactions| {
        let mut lists = [Vec::<u64>::new(), Vec::new()];
        let mut value = 0;
        let mut all = Vec::new();
        for steps in transactions {
            let mut ops = Vec::new();
            for (list, is_read) in steps {
                if is_read {
                    ops.push(json!(["r", list, lists[list]]));
                } else {
                    value += 1;
                    lists[list].push(value);
                    ops.push(json!(["append", list, value]));
                }
            }
            all.push(Value::Array(ops));
        }
        all
    })
}

/// The same, of which each begins up to `early` transactions before its turn and ends up to `late` after it.
fn overlapping(all: &[Value], shifts: &[(usize, usize)]) -> Script {
    let mut moments = Vec::new();
    for ((turn, ops), (early, late)) in all.iter().enumerate().zip(shifts.iter().cycle()) {
        let turn = turn as i64 * 2;
        moments.push((turn - 2 * *early as i64, 0, turn, ops));
        moments.push((turn + 1 + 2 * *late as i64, 1, turn, ops));
    }
    moments.sort_by_key(|(at, is_end, turn, _)| (*at, *is_end, *turn));
    let mut script = Script::default();
    for (_, is_end, turn, ops) in moments {
        if is_end == 1 {
            ok(&mut script, turn as u64, ops.clone());
        } else {
            begin(&mut script, turn as u64, asked(ops));
        }
    }
    script
}

/// Where transactions that append nothing to a list read it: the transaction, the step, and what was read.
fn reads(all: &[Value], list: u64) -> Vec<(usize, usize, Value)> {
    let mut found = Vec::new();
    for (at, ops) in all.iter().enumerate() {
        let ops = ops.as_array().unwrap();
        if ops.iter().any(|op| op[0] == "append" && op[1] == list) {
            continue;
        }
        let reads = ops.iter().enumerate().filter(|(_, op)| op[0] == "r" && op[1] == list);
        found.extend(reads.map(|(step, op)| (at, step, op[2].clone())));
    }
    found
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn an_execution_in_some_order_holds(
        all in execution(),
        shifts in proptest::collection::vec((0_usize..4, 0_usize..4), 1..10),
    ) {
        let report = judge(&overlapping(&all, &shifts));
        prop_assert!(report.holds(), "{}", report);
    }

    #[test]
    fn two_reads_that_are_swapped_are_found(all in execution(), list in 0_u64..2) {
        let reads = reads(&all, list);
        let (Some(first), Some(last)) = (reads.first(), reads.last()) else { return Ok(()) };
        if first.2 == last.2 {
            return Ok(());
        }
        let mut swapped = all.clone();
        swapped[first.0][first.1][2] = last.2.clone();
        swapped[last.0][last.1][2] = first.2.clone();
        let report = judge(&one_by_one(&swapped));
        prop_assert!(matches!(report.verdict, crate::check::Verdict::Broken(_)), "{}", report);
    }
}
