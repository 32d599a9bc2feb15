//! Hand-made records of one breaker that opens with the second failure in a row, for a second, and each rule broken
//! once.

use serde_json::{Value, json};

use super::*;
use crate::check::Verdict;
use crate::record::{Event, Phase};

const MS: u64 = 1_000_000;
const B: &str = "b";

/// A record under way. Each operation has a process of its own, and takes a millisecond.
struct Record {
    events: Vec<Event>,
}

impl Record {
    fn new() -> Self {
        let mut record = Self { events: Vec::new() };
        let settings = json!({ "threshold": 2, "open_ms": 1_000, "probe_timeout_ms": 3_000 });
        record.ok(0, "configure", settings, 1, json!({}));
        record
    }

    fn event(&mut self, ms: u64, p: u64, ev: Phase, f: &str) -> &mut Event {
        let (t, f, key) = (ms * MS, f.to_owned(), B.to_owned());
        self.events.push(Event { t, p, ev, f, key, arg: None, res: None, rev: None, node: None });
        self.events.last_mut().unwrap()
    }

    fn ok(&mut self, ms: u64, f: &str, arg: Value, rev: u64, res: Value) {
        let p = self.events.len() as u64;
        self.event(ms, p, Phase::Invoke, f).arg = Some(arg);
        let end = self.event(ms + 1, p, Phase::Ok, f);
        (end.rev, end.res) = (Some(rev), Some(res));
    }

    fn info(&mut self, ms: u64, f: &str, arg: Value) {
        let p = self.events.len() as u64;
        self.event(ms, p, Phase::Invoke, f).arg = Some(arg);
        self.event(ms + 1, p, Phase::Info, f);
    }

    fn ask(&mut self, ms: u64, rev: u64, state: &str) {
        let allowed = state == "closed";
        let answer = json!({ "allowed": allowed, "state": state, "probe_token": 0, "retry_after_ms": 0 });
        self.ok(ms, "ask", json!({}), rev, answer);
    }

    fn refused(&mut self, ms: u64, rev: u64, retry_after_ms: u64) {
        let answer = json!({ "allowed": false, "state": "open", "probe_token": 0, "retry_after_ms": retry_after_ms });
        self.ok(ms, "ask", json!({}), rev, answer);
    }

    fn probe(&mut self, ms: u64, rev: u64) {
        let answer = json!({ "allowed": true, "state": "half_open", "probe_token": rev, "retry_after_ms": 0 });
        self.ok(ms, "ask", json!({}), rev, answer);
    }

    fn report(&mut self, ms: u64, (ok, probe_token): (bool, u64), rev: u64, (state, failures): (&str, u64)) {
        let word = json!({ "ok": ok, "probe_token": probe_token });
        self.ok(ms, "report", word, rev, json!({ "state": state, "failures": failures }));
    }

    fn verdict(&self) -> Verdict {
        Breakers::new().check(&History::of(self.events.clone()).unwrap()).verdict
    }

    fn broken(&self) -> String {
        match self.verdict() {
            Verdict::Broken(findings) => findings.into_iter().map(|finding| finding.text + "\n").collect(),
            other => panic!("{other:?}"),
        }
    }
}

const FAILED: (bool, u64) = (false, 0);

/// It opened at 20 ms, rev 11.
fn opened() -> Record {
    let mut record = Record::new();
    record.ask(5, 9, "closed");
    record.report(10, FAILED, 10, ("closed", 1));
    record.report(20, FAILED, 11, ("open", 2));
    record.refused(30, 12, 990);
    record
}

/// It is tried at 1,100 ms, under token 13.
fn tried() -> Record {
    let mut record = opened();
    record.probe(1_100, 13);
    record
}

#[test]
fn a_whole_circle_is_how_it_should_be() {
    let mut record = tried();
    record.ask(1_110, 14, "half_open");
    record.report(1_200, (false, 13), 15, ("open", 3));
    record.report(1_210, FAILED, 16, ("open", 3));
    record.refused(1_220, 17, 980);
    record.probe(2_300, 18);
    record.report(2_400, (true, 18), 19, ("closed", 0));
    record.ask(2_410, 20, "closed");
    assert_eq!(record.verdict(), Verdict::Holds);
}

#[test]
fn who_is_admitted_too_early_is_found() {
    let mut record = opened();
    record.probe(500, 13);
    assert!(record.broken().contains("at rev 11 it was open for 1000 ms"));
    let mut said = opened();
    said.refused(900, 13, 5_000);
    said.probe(2_000, 14);
    assert!(said.broken().contains("at rev 13 it was open for 5000 ms"));
    let mut again = tried();
    again.report(1_200, (false, 13), 15, ("open", 3));
    again.probe(1_500, 16);
    assert!(again.broken().contains("at rev 15 it was open for 1000 ms"));
}

#[test]
fn answers_that_contradict_themselves_are_found() {
    let answer = |allowed: bool, state: &str, probe_token: u64| {
        let mut record = tried();
        let answer = json!({ "allowed": allowed, "state": state, "probe_token": probe_token, "retry_after_ms": 0 });
        record.ok(1_110, "ask", json!({}), 14, answer);
        record.broken()
    };
    assert!(answer(true, "open", 0).contains("cannot be"));
    assert!(answer(true, "half_open", 0).contains("cannot be"));
    assert!(answer(true, "closed", 14).contains("cannot be"));
    assert!(answer(true, "half_open", 12).contains("is not its rev"));
}

#[test]
fn two_probes_at_once_are_found() {
    let mut record = tried();
    record.probe(1_200, 14);
    assert!(record.broken().contains("two probes at once, under 13 and 14"));
    let mut timed_out = tried();
    timed_out.probe(1_100 + 4_000, 14);
    assert_eq!(timed_out.verdict(), Verdict::Holds, "the first said nothing for too long");
    let mut too_soon = tried();
    too_soon.probe(1_100 + 3_100, 14);
    assert!(too_soon.broken().contains("two probes"), "after its time it is open for a while");
    let mut perhaps = tried();
    perhaps.info(1_200, "report", json!({ "ok": false, "probe_token": 13 }));
    perhaps.probe(2_300, 14);
    assert_eq!(perhaps.verdict(), Verdict::Holds);
}

#[test]
fn a_probe_that_is_heard_twice_or_late_or_made_up_is_found() {
    let mut twice = tried();
    twice.report(1_200, (true, 13), 14, ("closed", 0));
    twice.report(1_300, (true, 13), 15, ("closed", 0));
    assert!(twice.broken().contains("heard twice"));
    let mut late = tried();
    late.probe(6_000, 14);
    late.report(6_100, (true, 13), 15, ("closed", 0));
    assert!(late.broken().contains("heard after 14 had begun"));
    let mut made_up = opened();
    made_up.report(1_100, (true, 99), 13, ("closed", 0));
    assert!(made_up.broken().contains("nobody was given it"));
}

#[test]
fn moves_that_nobody_made_are_found() {
    let mut closes = tried();
    closes.ask(1_200, 14, "closed");
    assert!(closes.broken().contains("Closed at rev 14: nobody said why"));
    let mut perhaps = tried();
    perhaps.info(1_150, "report", json!({ "ok": true, "probe_token": 13 }));
    perhaps.ask(1_200, 14, "closed");
    assert_eq!(perhaps.verdict(), Verdict::Holds);
    let mut opens = Record::new();
    opens.ask(5, 9, "closed");
    opens.refused(10, 10, 1_000);
    assert!(opens.broken().contains("Open at rev 10: nobody said why"));
    let mut halves = Record::new();
    halves.ask(5, 9, "closed");
    halves.ask(10, 10, "half_open");
    assert!(halves.broken().contains("HalfOpen at rev 10: nobody said why"));
    let mut reopens = tried();
    reopens.refused(1_200, 14, 1_000);
    assert!(reopens.broken().contains("Open at rev 14: nobody said why"));
    let mut silent = tried();
    silent.refused(1_100 + 3_000, 14, 1_000);
    assert_eq!(silent.verdict(), Verdict::Holds, "the probe said nothing for too long");
}

#[test]
fn failures_that_do_not_count_or_count_too_much_are_found() {
    let reports = |words: &[(bool, &str, u64)]| {
        let mut record = Record::new();
        for ((ok, state, failures), n) in words.iter().zip(1..) {
            record.report(10 * n, (*ok, 0), 10 + n, (*state, *failures));
        }
        record.broken()
    };
    assert!(reports(&[(false, "closed", 1), (false, "closed", 2)]).contains("closed after 2 failures"));
    assert!(reports(&[(false, "closed", 1), (false, "closed", 1)]).contains("did not count"));
    assert!(reports(&[(true, "closed", 0), (false, "open", 1)]).contains("opened with failure 1 of 2"));
    assert!(reports(&[(false, "closed", 1), (true, "closed", 1)]).contains("after a success"));
}

#[test]
fn what_was_never_tried_or_configured_is_unknown() {
    assert!(matches!(opened().verdict(), Verdict::Unknown(_)));
    let mut strange = tried();
    strange.ok(2_000, "read", json!({}), 20, json!({}));
    assert!(matches!(strange.verdict(), Verdict::Unknown(_)));
    let unconfigured = Record { events: tried().events.split_off(2) };
    assert!(matches!(unconfigured.verdict(), Verdict::Unknown(_)));
}
