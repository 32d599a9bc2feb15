//! Hand-made records of two tasks under a limit of one, and each rule broken once.

use serde_json::{Value, json};

use super::*;
use crate::check::Verdict;
use crate::record::{Event, Phase};

/// A record under way. Each operation has a process of its own.
#[derive(Default)]
struct Record {
    events: Vec<Event>,
}

impl Record {
    fn event(&mut self, p: u64, ev: Phase, f: &str) -> &mut Event {
        let key = if f == "limit" { "one" } else { "queue" }.to_owned();
        let t = self.events.len() as u64;
        self.events.push(Event { t, p, ev, f: f.to_owned(), key, arg: None, res: None, rev: None, node: None });
        self.events.last_mut().unwrap()
    }

    fn begin(&mut self, f: &str, arg: Value) -> u64 {
        let p = self.events.len() as u64;
        self.event(p, Phase::Invoke, f).arg = Some(arg);
        p
    }

    fn end(&mut self, p: u64, f: &str, rev: Option<u64>, res: Value) {
        let end = self.event(p, Phase::Ok, f);
        (end.rev, end.res) = (rev, Some(res));
    }

    fn ok(&mut self, f: &str, arg: Value, rev: Option<u64>, res: Value) {
        let p = self.begin(f, arg);
        self.end(p, f, rev, res);
    }

    fn claim(&mut self, id: &str, token: u64) {
        self.ok("claim", json!({ "worker": "w" }), Some(token), json!({ "id": id, "token": token }));
    }

    fn complete(&mut self, id: &str, token: u64, rev: u64) {
        self.ok("complete", json!({ "id": id, "token": token }), Some(rev), json!({ "accepted": true }));
    }

    fn verdict(&self) -> Verdict {
        Limits::new().check(&History::of(self.events.clone()).unwrap()).verdict
    }

    fn broken(&self) -> String {
        match self.verdict() {
            Verdict::Broken(findings) => findings.into_iter().map(|finding| finding.text + "\n").collect(),
            other => panic!("{other:?}"),
        }
    }
}

/// Two tasks were submitted.
fn two() -> Record {
    let mut record = Record::default();
    record.ok("limit", json!({ "max": 1 }), None, json!({}));
    for id in ["a", "b"] {
        record.ok("submit", json!({ "id": id, "keys": ["one"] }), None, json!({}));
    }
    record
}

fn attempt(id: &str, token: u64, started_at_ms: u64, ended_at_ms: u64, is_completed: bool) -> Value {
    json!({ "id": id, "token": token, "started_at_ms": started_at_ms, "ended_at_ms": ended_at_ms,
            "is_completed": is_completed })
}

fn task(id: &str, is_completed: bool) -> Value {
    json!({ "id": id, "keys": ["one"], "is_completed": is_completed })
}

/// What is read at the end.
fn at_last(record: &mut Record, attempts: &[Value], tasks: &[Value]) {
    record.ok("attempts", json!({}), None, json!({ "attempts": attempts, "more": false }));
    record.ok("tasks", json!({}), None, json!({ "tasks": tasks, "more": false }));
}

fn done() -> [Value; 2] {
    [task("a", true), task("b", true)]
}

/// One after the other, in one millisecond.
fn in_turn() -> Record {
    let mut record = two();
    record.claim("a", 10);
    record.complete("a", 10, 11);
    record.claim("b", 12);
    record.complete("b", 12, 13);
    record
}

const GOOD: [(&str, u64); 2] = [("a", 10), ("b", 12)];

fn good() -> Vec<Value> {
    GOOD.iter().map(|(id, token)| attempt(id, *token, 5, 5, true)).collect()
}

#[test]
fn one_after_the_other_is_how_it_should_be() {
    let mut record = in_turn();
    at_last(&mut record, &good(), &done());
    assert_eq!(record.verdict(), Verdict::Holds);
}

#[test]
fn two_that_clients_held_at_once_are_found_whatever_the_cluster_says() {
    let mut record = two();
    record.claim("a", 10);
    record.claim("b", 12);
    record.complete("a", 10, 11);
    record.complete("b", 12, 13);
    at_last(&mut record, &good(), &done());
    assert_eq!(record.broken(), "one: 2 at once, where the limit is 1: a under token 10, b under token 12\n");
}

#[test]
fn two_that_overlap_by_revs_or_by_times_are_found() {
    let mut record = two();
    record.claim("a", 10);
    record.complete("a", 10, 15);
    record.claim("b", 12);
    record.complete("b", 12, 16);
    at_last(&mut record, &good(), &done());
    assert!(record.broken().contains("2 at once"), "by revs");
    // Nobody was told of these: each was lost, or completed unheard.
    for (ended_at_ms, is_fault) in [(7, false), (8, true), (0, true)] {
        let mut record = two();
        let lost = attempt("a", 10, 5, ended_at_ms, false);
        let attempts = [lost, attempt("b", 12, 7, 9, true), attempt("a", 20, 9, 9, true)];
        at_last(&mut record, &attempts, &done());
        assert_eq!(record.verdict() != Verdict::Holds, is_fault, "ended at {ended_at_ms}");
    }
}

#[test]
fn what_was_not_held_for_sure_is_not_counted() {
    let mut record = two();
    record.claim("a", 10);
    let lost = record.begin("complete", json!({ "id": "a", "token": 10 }));
    record.claim("b", 12);
    record.complete("b", 12, 13);
    record.end(lost, "complete", None, json!({ "accepted": false }));
    record.claim("a", 20);
    record.complete("a", 20, 21);
    let attempts = [attempt("a", 10, 5, 6, false), attempt("b", 12, 6, 8, true), attempt("a", 20, 9, 9, true)];
    at_last(&mut record, &attempts, &done());
    assert_eq!(record.verdict(), Verdict::Holds);
}

#[test]
fn another_key_is_another_limit() {
    let mut record = two();
    record.ok("submit", json!({ "id": "c", "keys": ["two"] }), None, json!({}));
    record.claim("a", 10);
    record.claim("c", 11);
    record.complete("a", 10, 12);
    record.complete("c", 11, 13);
    record.claim("b", 14);
    record.complete("b", 14, 15);
    let attempts = [attempt("a", 10, 5, 6, true), attempt("b", 14, 6, 6, true), attempt("c", 11, 5, 6, true)];
    let other = json!({ "id": "c", "keys": ["two"], "is_completed": true });
    at_last(&mut record, &attempts, &[task("a", true), task("b", true), other]);
    assert_eq!(record.verdict(), Verdict::Holds);
}

#[test]
fn what_is_not_done_or_gone_or_done_twice_is_found() {
    let wrong = |attempts: &[Value], tasks: &[Value]| {
        let mut record = in_turn();
        at_last(&mut record, attempts, tasks);
        record.broken()
    };
    assert!(wrong(&good(), &[task("a", true), task("b", false)]).contains("task b was not done"));
    assert!(wrong(&good(), &[task("a", true)]).contains("task b is gone"));
    let twice = [good(), vec![attempt("b", 20, 9, 9, true)]].concat();
    assert!(wrong(&twice, &done()).contains("completed under token 12 and under 20"));
    let mut refused = good();
    refused[1]["is_completed"] = json!(false);
    let refused = wrong(&refused, &done());
    assert!(refused.contains("accepted, and is not completed") && refused.contains("no attempt did it"), "{refused}");
    assert!(wrong(&good()[..1], &done()).contains("there is no such attempt"));
    assert!(wrong(&[good(), good()].concat(), &done()).contains("two attempts under token"));
}

#[test]
fn two_claims_of_one_grant_and_a_refusal_that_was_none_are_found() {
    let mut record = in_turn();
    record.claim("b", 12);
    at_last(&mut record, &good(), &done());
    assert!(record.broken().contains("given to two claims under token 12"));
    let mut record = two();
    record.claim("a", 10);
    record.ok("complete", json!({ "id": "a", "token": 10 }), None, json!({ "accepted": false }));
    record.claim("b", 12);
    record.complete("b", 12, 13);
    at_last(&mut record, &good(), &done());
    assert!(record.broken().contains("refused, and is completed"));
}

#[test]
fn nothing_read_or_no_limit_reached_is_unknown() {
    assert!(matches!(in_turn().verdict(), Verdict::Unknown(_)));
    let mut idle = Record::default();
    idle.ok("limit", json!({ "max": 2 }), None, json!({}));
    at_last(&mut idle, &[], &[]);
    assert!(matches!(idle.verdict(), Verdict::Unknown(_)));
    let mut strange = in_turn();
    strange.ok("read", json!({}), None, json!({}));
    assert!(matches!(strange.verdict(), Verdict::Unknown(_)));
}
