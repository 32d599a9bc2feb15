//! Histories written by hand, on both sides of every limit; and leases renewed at any moments.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::record::{Answer, Event, Phase};

const TTL_MS: u64 = 2_000;

/// One operation of a process of its own; times in milliseconds.
#[derive(Clone, Debug)]
struct Step {
    f: &'static str,
    arg: Value,
    began: u64,
    ended: u64,
    answer: Answer,
}

fn at(began: u64, ended: u64, f: &'static str, answer: Answer) -> Step {
    Step { f, arg: json!({}), began, ended, answer }
}

fn open(began: u64, ended: u64) -> Step {
    let arg = json!({ "ttl_ms": TTL_MS });
    Step { arg, ..at(began, ended, "open", Answer::ok(json!({ "id": "s", "epoch": 5 }))) }
}

fn alive(began: u64, ended: u64) -> Step {
    at(began, ended, "keepalive", Answer::ok(json!({ "alive": true })))
}

fn put(began: u64, ended: u64) -> Step {
    at(began, ended, "put_ephemeral", Answer::ok(json!({})))
}

fn seen(began: u64, ended: u64, present: bool) -> Step {
    at(began, ended, "observe", Answer::ok(json!({ "present": present })))
}

fn listed(began: u64, ended: u64, present: bool) -> Step {
    let keys: &[&str] = if present { &["s"] } else { &[] };
    at(began, ended, "list", Answer::ok(json!({ "keys": keys })))
}

/// Somebody else's operation succeeds every 100 ms from one moment to the other: there is a leader.
fn pulse(from: u64, to: u64) -> Vec<Step> {
    (from..to).step_by(100).map(|t| at(t, t + 1, "pulse", Answer::ok(json!({})))).collect()
}

fn history(steps: &[Step]) -> History {
    let mut events: Vec<(u64, u64, Event)> = Vec::new();
    for (p, Step { f, arg, began, ended, answer }) in steps.iter().enumerate() {
        let key = if *f == "pulse" { "other" } else { "s" };
        let blank = |ev, ms: u64| Event {
            t: ms * 1_000_000,
            p: p as u64,
            ev,
            f: (*f).to_owned(),
            key: key.to_owned(),
            arg: None,
            res: None,
            rev: None,
            node: None,
        };
        events.push((*began, 1, Event { arg: Some(arg.clone()), ..blank(Phase::Invoke, *began) }));
        let end = match answer {
            Answer::Ok { res, .. } => Event { res: Some(res.clone()), ..blank(Phase::Ok, *ended) },
            Answer::Fail => blank(Phase::Fail, *ended),
            Answer::Info => blank(Phase::Info, *ended),
        };
        events.push((*ended, 0, end));
    }
    // What ends at the moment at which another begins was before it.
    events.sort_by_key(|(ms, begins, _)| (*ms, *begins));
    History::of(events.into_iter().map(|(.., event)| event).collect()).unwrap()
}

fn report(steps: &[Step]) -> Report {
    Leases::new().check(&history(steps))
}

fn assert_found(text: &str, steps: &[Step]) {
    let report = report(steps);
    let Verdict::Broken(findings) = &report.verdict else { panic!("{text}: {report}") };
    assert!(findings.iter().any(|finding| finding.text.contains(text)), "{text}: {findings:?}");
}

/// Renewed last from 1,000 to 1,010 ms.
fn renewed() -> Vec<Step> {
    let mut steps = pulse(0, 30_000);
    steps.extend([open(0, 10), put(20, 30), alive(1_000, 1_010)]);
    steps
}

fn with(more: impl IntoIterator<Item = Step>) -> Vec<Step> {
    renewed().into_iter().chain(more).collect()
}

#[test]
fn one_that_lapses_in_time_holds() {
    let report = report(&with([seen(2_900, 2_910, true), seen(3_100, 3_110, false), listed(3_200, 3_210, false)]));
    assert!(report.holds(), "{report}");
    assert_eq!(report.judged, 1);
}

#[test]
fn without_a_lapse_nothing_is_known() {
    assert!(matches!(report(&renewed()).verdict, Verdict::Unknown(_)));
    assert!(matches!(report(&pulse(0, 1_000)).verdict, Verdict::Unknown(_)));
    let mut unreadable = renewed();
    unreadable.push(at(2_000, 2_001, "keepalive", Answer::ok(json!({}))));
    assert!(matches!(report(&unreadable).verdict, Verdict::Unknown(_)));
}

#[test]
fn early_is_before_the_beginning_of_the_last_renewal_and_a_ttl() {
    assert_found("before its time to live was over", &with([seen(2_980, 2_999, false)]));
    assert_found("before its time to live was over", &with([listed(2_980, 2_999, false)]));
    let refused = at(2_980, 2_999, "keepalive", Answer::ok(json!({ "alive": false })));
    assert_found("before its time to live was over", &with([refused]));
    let in_time = report(&with([seen(2_980, 3_000, false)]));
    assert!(in_time.holds(), "{in_time}");
    // A renewal that failed is none.
    let failed = at(2_000, 2_010, "keepalive", Answer::Fail);
    assert!(report(&with([failed, seen(3_100, 3_110, false)])).holds());
    // Nor is one whose end nobody saw a promise.
    let unknown = at(2_000, 2_010, "keepalive", Answer::Info);
    assert!(report(&with([unknown, seen(3_100, 3_110, false)])).holds());
}

#[test]
fn a_document_that_was_not_there_yet_is_not_gone() {
    let steps = with([seen(15, 25, false), listed(15, 25, false), seen(3_100, 3_110, false)]);
    let report = report(&steps);
    assert!(report.holds(), "{report}");
}

#[test]
fn late_is_after_a_ttl_and_the_allowance() {
    // 1,010 + a TTL + a TTL for a change of leader + 2,000 = 7,010.
    let lapsed = seen(20_000, 20_010, false);
    assert!(report(&with([seen(7_009, 7_020, true), lapsed.clone()])).holds());
    assert_found("after it must have ended", &with([seen(7_011, 7_020, true)]));
    assert_found("after it must have ended", &with([listed(7_011, 7_020, true)]));
    assert_found("after it must have ended", &with([alive(7_011, 7_020)]));
    assert_found("after it must have ended", &with([alive(7_011, 7_020), alive(8_000, 8_010), lapsed.clone()]));
    // A renewal that may be taken at the very end: 7,010 + a TTL + 2,000.
    let unknown = at(1_500, 1_510, "keepalive", Answer::Info);
    assert!(report(&with([unknown.clone(), seen(11_009, 11_020, true), lapsed])).holds());
    assert_found("after it must have ended", &with([unknown, seen(11_011, 11_020, true)]));
}

#[test]
fn without_a_leader_nobody_ends() {
    let mut steps = pulse(0, 2_000);
    steps.extend(pulse(6_000, 30_000));
    steps.extend([open(0, 10), put(20, 30), alive(1_000, 1_010), seen(20_000, 20_010, false)]);
    // 7,010 + 4,100 ms from the last pulse to the next + a TTL.
    let with = |began: u64| [steps.clone(), vec![seen(began, began + 10, true)]].concat();
    assert!(report(&with(13_000)).holds(), "{}", report(&with(13_000)));
    assert_found("after it must have ended", &with(13_200));
}

#[test]
fn what_is_gone_or_closed_stays_so() {
    assert_found("was seen gone and later alive", &with([seen(3_100, 3_110, false), seen(3_200, 3_210, true)]));
    let closed = at(1_500, 1_510, "close", Answer::ok(json!({ "alive": true })));
    assert_found("was closed and later seen alive", &with([closed.clone(), seen(1_600, 1_610, true)]));
    // Of one that was closed, being gone is no fault; nor is it a lapse.
    let gone = report(&with([closed, seen(1_600, 1_610, false)]));
    assert!(matches!(gone.verdict, Verdict::Unknown(_)), "{gone}");
    // That there was nothing to close is a fault before its time.
    let too_soon = at(1_500, 1_510, "close", Answer::ok(json!({ "alive": false })));
    assert_found("before its time to live was over", &with([too_soon]));
}

#[test]
fn a_resumption_renews_and_raises_the_epoch_or_finds_another() {
    let resumed =
        |same: bool, epoch: u64| at(2_900, 2_910, "resume", Answer::ok(json!({ "same": same, "epoch": epoch })));
    assert!(report(&with([resumed(true, 6), seen(4_950, 4_960, false)])).holds());
    assert_found("before its time to live was over", &with([resumed(true, 6), seen(4_800, 4_810, false)]));
    assert_found("resumed at epoch 5 after epoch 5", &with([resumed(true, 5), seen(4_950, 4_960, false)]));
    assert_found("before its time to live was over", &with([resumed(false, 6)]));
    // Another one of its id says nothing of this one.
    let late = at(3_100, 3_110, "resume", Answer::ok(json!({ "same": false, "epoch": 6 })));
    assert!(report(&with([late, alive(3_200, 3_210)])).holds());
}

#[test]
fn what_the_library_says_is_held_is_there() {
    let mut kept = pulse(0, 30_000);
    kept.extend([Step { arg: json!({ "ttl_ms": TTL_MS, "kept": true }), ..open(0, 10) }, put(20, 30)]);
    let kept = |more: Vec<Step>| [kept.clone(), more].concat();
    let held = |began: u64, present: bool| {
        at(began, began + 10, "observe", Answer::ok(json!({ "present": present, "held": true })))
    };
    assert_found("told that it is held", &kept(vec![held(9_000, false)]));
    let abandoned = at(9_500, 9_501, "abandon", Answer::ok(json!({})));
    let gone = seen(20_000, 20_010, false);
    let good = report(&kept(vec![held(9_000, true), abandoned.clone(), seen(12_000, 12_010, true), gone]));
    assert!(good.holds(), "{good}");
    // 9,501 + a TTL, a TTL for a change of leader, a TTL and 2,000 for a renewal under way, 2,000.
    assert_found("after it must have ended", &kept(vec![abandoned, seen(19_502, 19_510, true)]));
}

proptest! {
    /// A lease that is kept alive at any moments, and ends somewhere between its deadline and the bound.
    #[test]
    fn one_that_ends_where_it_may_holds_and_one_that_ends_before_is_found(
        pauses in proptest::collection::vec(100_u64..1_900, 1..8),
        late in 0_u64..2_000,
        early in 60_u64..1_500,
    ) {
        let mut steps = pulse(0, 30_000);
        steps.extend([open(0, 10), put(20, 30)]);
        let mut last = 0;
        for pause in pauses {
            last += pause;
            steps.push(alive(last, last + 5));
        }
        let look = |gone: u64, begin: u64| -> Vec<Step> {
            (begin..gone + 500).step_by(50).map(|t| seen(t, t + 1, t < gone)).collect()
        };
        let over = last + TTL_MS;
        let right = [steps.clone(), look(over + 5 + late, last + 10)].concat();
        prop_assert!(report(&right).holds(), "{}", report(&right));
        let wrong = [steps, look(over - early, last + 10)].concat();
        prop_assert!(matches!(report(&wrong).verdict, Verdict::Broken(_)), "{}", report(&wrong));
    }
}
