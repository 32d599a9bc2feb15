//! Histories written by hand, each rule broken once; and a scheduler that is right, with one mistake planted.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::record::{Answer, Event, Phase};
use crate::rng::Rng;

/// One operation, alone in its time.
#[derive(Clone, Debug)]
struct Step {
    f: &'static str,
    arg: Value,
    answer: Answer,
}

fn step(f: &'static str, arg: Value, answer: Answer) -> Step {
    Step { f, arg, answer }
}

fn ok(f: &'static str, arg: Value, res: Value) -> Step {
    step(f, arg, Answer::ok(res))
}

fn submit(tasks: Value, answer: Answer) -> Step {
    step("submit", json!({ "tasks": tasks }), answer)
}

fn claim(id: &str, fence: u64) -> Step {
    step("claim", json!({ "worker": "w" }), Answer::at(fence, json!({ "id": id, "fence": fence })))
}

fn complete(id: &str, fence: u64, outcome: &str, answer: Answer) -> Step {
    step("complete", json!({ "id": id, "fence": fence, "outcome": outcome }), answer)
}

fn said(accepted: bool) -> Answer {
    Answer::ok(json!({ "accepted": accepted }))
}

fn accepted(rev: u64) -> Answer {
    Answer::at(rev, json!({ "accepted": true }))
}

fn attempt(number: u64, token: u64, outcome: &str, ended: u64) -> Value {
    json!({ "number": number, "token": token, "outcome": outcome, "started": token, "ended": ended })
}

/// Every operation is of another process, so that any of them may be of unknown outcome.
fn history(steps: &[Step]) -> History {
    let mut events = Vec::new();
    for (p, Step { f, arg, answer }) in steps.iter().enumerate() {
        let blank = |ev, t| Event {
            t,
            p: p as u64,
            ev,
            f: (*f).to_owned(),
            key: "q".to_owned(),
            arg: None,
            res: None,
            rev: None,
            node: None,
        };
        let t = p as u64 * 10;
        events.push(Event { arg: Some(arg.clone()), ..blank(Phase::Invoke, t) });
        events.push(match answer {
            Answer::Ok { res, rev } => Event { res: Some(res.clone()), rev: *rev, ..blank(Phase::Ok, t + 5) },
            Answer::Fail => blank(Phase::Fail, t + 5),
            Answer::Info => blank(Phase::Info, t + 5),
        });
    }
    History::of(events).unwrap()
}

fn report(steps: &[Step]) -> Report {
    Tasks::new().check(&history(steps))
}

/// The sentences about what was found.
fn found(steps: &[Step]) -> Vec<String> {
    match report(steps).verdict {
        Verdict::Broken(findings) => findings.into_iter().map(|finding| finding.text).collect(),
        Verdict::Holds | Verdict::Unknown(_) => Vec::new(),
    }
}

/// `a` fails once, `b` waits for it; `c` fails as often as it may, and `d`, which waits for it, falls with it; of `e`
/// nobody knows. A worker that overslept is refused.
fn good() -> Vec<Step> {
    let tasks = json!([
        { "id": "a", "key": "a", "after": [], "attempts": 3 },
        { "id": "b", "key": "b", "after": ["a"], "attempts": 3 },
        { "id": "c", "key": "c", "after": [], "attempts": 1 },
        { "id": "d", "key": "d", "after": ["c"], "attempts": 3 },
    ]);
    vec![
        submit(tasks.clone(), Answer::Info),
        submit(tasks, Answer::at(1, json!({ "ids": ["a", "b", "c", "d"] }))),
        submit(json!([{ "id": "e", "key": "e", "after": [], "attempts": 3 }]), Answer::Info),
        claim("a", 10),
        complete("a", 10, "failed", accepted(11)),
        claim("a", 20),
        complete("a", 10, "failed", said(true)),
        complete("a", 20, "completed", accepted(21)),
        complete("a", 20, "completed", accepted(21)),
        claim("b", 30),
        claim("b", 40),
        complete("b", 30, "completed", said(false)),
        complete("b", 40, "completed", Answer::Info),
        complete("b", 40, "completed", said(true)),
        claim("c", 50),
        complete("c", 50, "failed", accepted(51)),
        ok("final", json!({}), json!({ "states": { "a": "done", "b": "done", "c": "dead", "d": "dead" } })),
        ok("dead", json!({}), json!({ "ids": ["d", "c"] })),
        ok(
            "attempts",
            json!({}),
            json!({ "attempts": {
                "a": [attempt(1, 10, "failed", 11), attempt(2, 20, "completed", 21)],
                "b": [attempt(1, 30, "lost", 39), attempt(2, 40, "completed", 41)],
                "c": [attempt(1, 50, "failed", 51)],
            } }),
        ),
    ]
}

/// Where the first operation of this name is.
fn first(steps: &[Step], f: &str) -> usize {
    steps.iter().position(|step| step.f == f).unwrap()
}

/// What the first operation of this name was answered.
fn answer<'s>(steps: &'s mut [Step], f: &str) -> &'s mut Value {
    let place = first(steps, f);
    match &mut steps[place].answer {
        Answer::Ok { res, .. } => res,
        other => panic!("{f} was answered {other:?}"),
    }
}

fn state<'s>(steps: &'s mut [Step], id: &str) -> &'s mut Value {
    &mut answer(steps, "final")["states"][id]
}

fn attempts<'s>(steps: &'s mut [Step], id: &str) -> &'s mut Value {
    &mut answer(steps, "attempts")["attempts"][id]
}

#[test]
fn what_may_be_holds() {
    let report = report(&good());
    assert!(report.holds(), "{report}");
    assert_eq!(report.judged, 4);
}

#[test]
fn one_that_is_not_known_may_be_there_or_not() {
    let mut steps = good();
    *state(&mut steps, "e") = json!("pending");
    assert!(report(&steps).holds(), "{}", report(&steps));
}

#[test]
fn without_an_end_nothing_is_known() {
    for f in ["final", "dead", "attempts"] {
        let mut steps = good();
        steps.remove(first(&steps, f));
        assert!(matches!(report(&steps).verdict, Verdict::Unknown(_)), "{f}");
    }
    assert!(matches!(report(&[]).verdict, Verdict::Unknown(_)));
    let mut unreadable = good();
    unreadable[3].answer = Answer::ok(json!({ "id": "a" }));
    assert!(matches!(report(&unreadable).verdict, Verdict::Unknown(_)));
}

type Fault = fn(&mut Vec<Step>);

fn assert_found(faults: &[(&str, Fault)]) {
    for (text, plant) in faults {
        let mut steps = good();
        plant(&mut steps);
        let found = found(&steps);
        assert!(found.iter().any(|sentence| sentence.contains(text)), "{text}: {found:?}");
    }
}

#[test]
fn what_is_there_at_the_end_is_what_was_asked_for() {
    let faults: [(&str, Fault); 8] = [
        ("was acknowledged and is gone", |steps| {
            answer(steps, "final")["states"].as_object_mut().unwrap().remove("a");
        }),
        ("nobody submitted it", |steps| *state(steps, "x") = json!("done")),
        ("every submission of it failed", |steps| {
            steps[2].answer = Answer::Fail;
            *state(steps, "e") = json!("pending");
        }),
        ("under the one key e", |steps| {
            steps[0] = submit(json!([{ "id": "e2", "key": "e", "after": [], "attempts": 3 }]), Answer::Info);
            *state(steps, "e") = json!("pending");
            *state(steps, "e2") = json!("pending");
        }),
        ("is pending at the end", |steps| *state(steps, "d") = json!("pending")),
        ("the completion of task a was accepted and it is dead", |steps| *state(steps, "a") = json!("dead")),
        ("d is dead and not among the dead letters", |steps| *answer(steps, "dead") = json!({ "ids": ["c"] })),
        ("a is a dead letter and not dead", |steps| *answer(steps, "dead") = json!({ "ids": ["a", "c", "d"] })),
    ];
    assert_found(&faults);
}

#[test]
fn each_end_counts_once_and_under_the_newest_fence() {
    let faults: [(&str, Fault); 8] = [
        ("was given out twice under the fence 20", |steps| steps[3] = claim("a", 20)),
        ("do not rise with time", |steps| steps.swap(3, 5)),
        ("no submission of it can have taken effect", |steps| steps.insert(16, claim("x", 60))),
        ("was completed 2 times", |steps| steps[11].answer = said(true)),
        ("under the fence 30 after it was given out under 40", |steps| steps[11].answer = said(true)),
        ("under the fence 99, given to nobody", |steps| steps.insert(16, complete("c", 99, "failed", said(true)))),
        ("was given out under the fence 60 after it was completed", |steps| steps.insert(16, claim("a", 60))),
        ("under the fence 10 after it was given out under 20", |steps| steps[4].answer = accepted(25)),
    ];
    assert_found(&faults);
}

#[test]
fn nothing_is_given_out_before_its_parents_are_completed() {
    let faults: [(&str, Fault); 4] = [
        ("task b was given out before a was completed", |steps| {
            let early = steps.remove(9);
            steps.insert(7, early);
        }),
        ("task d was given out before c was completed", |steps| steps.insert(16, claim("d", 60))),
        ("task b was given out before a was completed", |steps| {
            // Answered in time, but the log has another order.
            (steps[7].answer, steps[8].answer) = (accepted(35), accepted(35));
        }),
        ("b began at 30, before a was completed", |steps| attempts(steps, "a")[1]["ended"] = json!(31)),
    ];
    assert_found(&faults);
    // One that is not known may have been in time.
    let mut steps = good();
    (steps[7].answer, steps[8].answer) = (Answer::Info, accepted(35));
    assert!(report(&steps).holds(), "{}", report(&steps));
}

#[test]
fn the_record_of_attempts_agrees_with_what_was_told() {
    let faults: [(&str, Fault); 11] = [
        ("attempt 3 of task a follows attempt 1", |steps| attempts(steps, "a")[1]["number"] = json!(3)),
        ("has the token 9 after 10", |steps| attempts(steps, "a")[1]["token"] = json!(9)),
        ("began before the one before it ended", |steps| attempts(steps, "b")[0]["ended"] = json!(42)),
        ("never ended", |steps| attempts(steps, "b")[1]["ended"] = json!(0)),
        ("under the fence 50 and has no such attempt", |steps| *attempts(steps, "c") = json!([])),
        ("is recorded as lost", |steps| attempts(steps, "a")[0]["outcome"] = json!("lost")),
        ("is recorded as failed, which nobody said", |steps| attempts(steps, "b")[0]["outcome"] = json!("failed")),
        ("is done, with 0 completed attempts", |steps| attempts(steps, "b")[1]["outcome"] = json!("timed_out")),
        ("c is dead after 1 failed attempts of 2", |steps| steps[0].arg["tasks"][2]["attempts"] = json!(2)),
        ("a is done after 1 failed attempts of 1", |steps| steps[0].arg["tasks"][0]["attempts"] = json!(1)),
        ("b is done and nobody completed it", |steps| {
            (steps[12].answer, steps[13].answer) = (Answer::Fail, Answer::Fail);
        }),
    ];
    assert_found(&faults);
}

/// A run of a scheduler that is right: one operation after another. Tasks 0 and 1 succeed at once, and 1 waits for 0.
fn toy(rng: &mut Rng) -> Vec<Step> {
    const LIMIT: usize = 2;
    let count = 3 + rng.below(6) as usize;
    let mut after: Vec<Vec<usize>> =
        (0..count).map(|n| (0..n).filter(|_| rng.below(4) == 0).collect::<Vec<_>>()).collect();
    after[1] = vec![0];
    let tasks: Vec<Value> = (0..count)
        .map(|n| {
            let parents: Vec<String> = after[n].iter().map(|parent| format!("t{parent}")).collect();
            json!({ "id": format!("t{n}"), "key": format!("t{n}"), "after": parents, "attempts": LIMIT })
        })
        .collect();
    let mut steps = vec![submit(json!(tasks), Answer::at(1, json!({})))];
    let mut lines: Vec<Vec<Value>> = vec![Vec::new(); count];
    let mut failures = vec![0; count];
    let mut states: Vec<&str> = vec!["pending"; count];
    let mut rev = 1;
    loop {
        for n in 0..count {
            if after[n].iter().any(|parent| states[*parent] == "dead") {
                states[n] = "dead";
            }
        }
        let is_ready = |n: &usize| states[*n] == "pending" && after[*n].iter().all(|parent| states[*parent] == "done");
        let ready: Vec<usize> = (0..count).filter(is_ready).collect();
        if ready.is_empty() {
            break;
        }
        let n = ready[rng.below(ready.len() as u64) as usize];
        let (id, fence) = (format!("t{n}"), rev + 1);
        rev += 2;
        steps.push(claim(&id, fence));
        let outcome = if n > 1 && rng.below(3) == 0 { ["failed", "lost"][rng.below(2) as usize] } else { "completed" };
        if outcome != "lost" {
            steps.push(complete(&id, fence, outcome, accepted(rev)));
            if rng.below(3) == 0 {
                steps.push(complete(&id, fence, outcome, said(true)));
            }
        }
        let number = lines[n].len() as u64 + 1;
        lines[n].push(attempt(number, fence, outcome, rev));
        failures[n] += usize::from(outcome != "completed");
        states[n] = match outcome {
            "completed" => "done",
            _ if failures[n] == LIMIT => "dead",
            _ => "pending",
        };
    }
    let by_id = |values: Vec<Value>| -> Value {
        let named = values.into_iter().enumerate().map(|(n, value)| (format!("t{n}"), value));
        Value::Object(named.collect())
    };
    let dead: Vec<String> = (0..count).filter(|n| states[*n] == "dead").map(|n| format!("t{n}")).collect();
    let states = by_id(states.into_iter().map(Value::from).collect());
    steps.push(ok("final", json!({}), json!({ "states": states })));
    steps.push(ok("dead", json!({}), json!({ "ids": dead })));
    let lines = by_id(lines.into_iter().map(Value::from).collect());
    steps.push(ok("attempts", json!({}), json!({ "attempts": lines })));
    steps
}

/// Each makes any run of the toy wrong.
const MUTATIONS: [Fault; 8] = [
    |steps| {
        answer(steps, "final")["states"].as_object_mut().unwrap().remove("t0");
    },
    |steps| *state(steps, "t99") = json!("done"),
    |steps| *state(steps, "t1") = json!("claimed"),
    |steps| {
        for step in steps.iter_mut().filter(|step| step.f == "complete" && step.arg["id"] == "t0") {
            step.answer = said(false);
        }
    },
    |steps| {
        let place = first(steps, "final");
        steps.insert(place, claim("t0", 1_000));
        steps.insert(place + 1, complete("t0", 1_000, "completed", said(true)));
    },
    |steps| *attempts(steps, "t1") = json!([]),
    |steps| {
        let is_claim = |step: &Step| matches!(&step.answer, Answer::Ok { res, .. } if res["id"] == "t1");
        let place = steps.iter().position(is_claim).unwrap();
        let early = steps.remove(place);
        steps.insert(1, early);
    },
    |steps| {
        let place = first(steps, "claim");
        let again = steps[place].clone();
        steps.insert(place, again);
    },
];

proptest! {
    #[test]
    fn a_scheduler_that_is_right_holds_and_one_mistake_is_found(seed in any::<u64>(), mutation in 0..MUTATIONS.len()) {
        let mut steps = toy(&mut Rng::new(seed));
        let right = report(&steps);
        prop_assert!(right.holds(), "{}: {:?}", right, right.verdict);
        MUTATIONS[mutation](&mut steps);
        prop_assert!(!found(&steps).is_empty(), "{:?}", steps);
    }
}
