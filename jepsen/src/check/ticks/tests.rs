//! Hand-made records of one schedule of every second, and each rule broken once.

use serde_json::{Value, json};

use super::*;
use crate::check::Verdict;
use crate::record::{Event, Phase};

const S: &str = "s";

/// A record under way: operations one after another, each by a process of its own.
#[derive(Default)]
struct Record {
    events: Vec<Event>,
    next: u64,
}

impl Record {
    fn event(&mut self, p: u64, ev: Phase, f: &str, key: &str) -> &mut Event {
        let (f, key, t) = (f.to_owned(), key.to_owned(), self.events.len() as u64);
        self.events.push(Event { t, p, ev, f, key, arg: None, res: None, rev: None, node: None });
        self.events.last_mut().unwrap()
    }

    fn ok(&mut self, f: &str, key: &str, arg: Value, rev: u64, res: Value) {
        self.next += 1;
        self.event(self.next, Phase::Invoke, f, key).arg = Some(arg);
        let end = self.event(self.next, Phase::Ok, f, key);
        (end.rev, end.res) = (Some(rev), Some(res));
    }

    fn info(&mut self, f: &str, key: &str, arg: Value) {
        self.next += 1;
        self.event(self.next, Phase::Invoke, f, key).arg = Some(arg);
        self.event(self.next, Phase::Info, f, key);
    }

    fn verdict(&self) -> Verdict {
        Ticks::new().check(&History::of(self.events.clone()).unwrap()).verdict
    }
}

fn terms(missed: &str, overlap: &str) -> Value {
    json!({ "interval_ms": 1_000, "missed": missed, "overlap": overlap, "tolerance_ms": 2_000 })
}

fn run(rev: u64, tick_ms: u64, fate: &str, ticks: u64) -> Value {
    let task_id = if fate == "fired" { format!("t{rev}") } else { String::new() };
    let fired_at_ms = tick_ms + ticks * 1_000 + if ticks > 1 || fate == "missed" { 3_000 } else { 0 };
    json!({ "rev": rev, "tick_ms": tick_ms, "fired_at_ms": fired_at_ms, "fate": fate, "task_id": task_id,
            "ticks": ticks, "by_hand": false })
}

fn fired(rev: u64, tick_ms: u64) -> Value {
    run(rev, tick_ms, "fired", 1)
}

fn by_hand(rev: u64, at_ms: u64) -> Value {
    with(with(fired(rev, at_ms), "by_hand", json!(true)), "fired_at_ms", json!(at_ms))
}

fn with(mut value: Value, name: &str, other: Value) -> Value {
    value[name] = other;
    value
}

fn task_of(run: &Value) -> Value {
    json!({ "id": run["task_id"], "schedule": S, "tick_ms": run["tick_ms"], "rev": run["rev"], "is_ended": false })
}

fn tasks_of(runs: &[Value]) -> Vec<Value> {
    runs.iter().filter(|run| run["fate"] == "fired").map(task_of).collect()
}

/// A whole record: created at rev 1 with the first tick at 1,000, everything read at rev 100.
struct Whole {
    terms: Value,
    runs: Vec<Value>,
    tasks: Vec<Value>,
    next_tick_ms: u64,
    /// fired, missed, overlapped
    counts: (u64, u64, u64),
    before: Record,
}

impl Whole {
    fn of(terms: Value, runs: Vec<Value>) -> Self {
        let sum = |fate: &str| {
            runs.iter().filter(|run| run["fate"] == fate).map(|run| run["ticks"].as_u64().unwrap()).sum::<u64>()
        };
        let fired = runs.iter().filter(|run| run["fate"] == "fired").count() as u64;
        let counts = (fired, sum("missed"), sum("overlapped"));
        let last = runs.iter().rfind(|run| run["by_hand"] == false).unwrap();
        let next_tick_ms = last["tick_ms"].as_u64().unwrap() + 1_000 * last["ticks"].as_u64().unwrap();
        let mut before = Record::default();
        before.ok("create", S, terms.clone(), 1, json!({ "first_tick_ms": 1_000 }));
        Self { terms, tasks: tasks_of(&runs), runs, next_tick_ms, counts, before }
    }

    fn verdict(self) -> Verdict {
        let mut record = self.before;
        let (fired, missed, overlapped) = self.counts;
        let stand =
            json!({ "next_tick_ms": self.next_tick_ms, "fired": fired, "missed": missed, "overlapped": overlapped });
        record.ok("ticks", S, json!({}), 100, stand);
        record.ok("tasks", S, json!({}), 100, json!({ "tasks": self.tasks }));
        record.ok("look", S, json!({ "limit": 1_000 }), 100, json!({ "runs": self.runs }));
        record.verdict()
    }

    fn broken(self) -> String {
        let about = format!("{} {:?}", self.terms, self.runs);
        match self.verdict() {
            Verdict::Broken(findings) => findings.into_iter().map(|finding| finding.text + "\n").collect(),
            other => panic!("{other:?} of {about}"),
        }
    }
}

fn all() -> Value {
    terms("all", "allow")
}

fn three() -> Whole {
    Whole::of(all(), vec![fired(10, 1_000), fired(11, 2_000), fired(12, 3_000)])
}

#[test]
fn every_tick_once_is_how_it_should_be() {
    assert_eq!(three().verdict(), Verdict::Holds);
}

#[test]
fn a_run_for_many_and_missed_ones_are_as_the_policies_say() {
    let once = vec![fired(10, 1_000), run(11, 2_000, "fired", 4), fired(12, 6_000)];
    assert_eq!(Whole::of(terms("once", "allow"), once).verdict(), Verdict::Holds);
    let skip = vec![fired(10, 1_000), run(11, 2_000, "missed", 4), fired(12, 6_000)];
    assert_eq!(Whole::of(terms("skip", "allow"), skip).verdict(), Verdict::Holds);
    let overlapped = vec![fired(10, 1_000), run(11, 2_000, "overlapped", 1)];
    assert_eq!(Whole::of(terms("all", "skip"), overlapped).verdict(), Verdict::Holds);
}

#[test]
fn ticks_that_come_twice_or_never_or_at_another_time_are_found() {
    let twice = Whole::of(all(), vec![fired(10, 1_000), fired(11, 1_000), fired(12, 2_000)]);
    assert!(twice.broken().contains("tick 1000 came once more"));
    let never = Whole::of(all(), vec![fired(10, 1_000), fired(12, 3_000)]);
    assert!(never.broken().contains("tick 2000 never came"));
    let first = Whole::of(all(), vec![fired(11, 2_000)]);
    assert!(first.broken().contains("tick 1000 never came"));
    let odd = Whole::of(all(), vec![fired(10, 1_000), fired(11, 2_500)]);
    assert!(odd.broken().contains("none of its times"));
    let backwards = Whole::of(all(), vec![fired(10, 1_000), fired(11, 2_000), fired(12, 1_000)]);
    assert!(backwards.broken().contains("tick 1000 came once more"));
    let stopped = Whole { next_tick_ms: 9_000, ..three() };
    assert!(stopped.broken().contains("9000 is said to come"));
}

#[test]
fn what_is_against_a_policy_is_found() {
    let wrong = |terms: Value, second: Value| Whole::of(terms, vec![fired(10, 1_000), second]).broken();
    assert!(wrong(all(), run(11, 2_000, "fired", 3)).contains("where each has its own"));
    assert!(wrong(all(), run(11, 2_000, "missed", 3)).contains("which this schedule never is"));
    assert!(wrong(all(), run(11, 2_000, "overlapped", 1)).contains("which this schedule allows"));
    let soon = with(run(11, 2_000, "missed", 1), "fired_at_ms", json!(2_500));
    assert!(wrong(terms("skip", "allow"), soon).contains("missed within the tolerance"));
    let soon = with(run(11, 2_000, "fired", 2), "fired_at_ms", json!(3_500));
    assert!(wrong(terms("once", "allow"), soon).contains("none was too late"));
    let early = with(fired(11, 2_000), "fired_at_ms", json!(1_999));
    assert!(wrong(all(), early).contains("before its time"));
    assert!(wrong(all(), with(fired(11, 2_000), "task_id", json!(""))).contains("a run has a task"));
    assert!(wrong(all(), run(11, 2_000, "fired", 0)).contains("no tick"));
    assert!(wrong(terms("all", "skip"), fired(11, 2_000)).contains("had not ended"));
}

#[test]
fn tasks_that_are_gone_or_shared_or_of_no_tick_are_found() {
    let mut gone = three();
    gone.tasks.remove(1);
    assert!(gone.broken().contains("the task t11 of tick 2000 is gone"));
    let mut other = three();
    other.tasks[1]["tick_ms"] = json!(3_000);
    assert!(other.broken().contains("the task of tick 2000"));
    let mut extra = three();
    extra.tasks.push(json!({ "id": "x", "schedule": S, "tick_ms": 2_000, "rev": 11, "is_ended": false }));
    assert!(extra.broken().contains("task x of tick 2000 is that of no run"));
    let mut doubled = three();
    doubled.tasks.push(doubled.tasks[0].clone());
    assert!(doubled.broken().contains("is there twice"));
    let shared = Whole::of(all(), vec![fired(10, 1_000), with(fired(11, 2_000), "task_id", json!("t10"))]);
    assert!(shared.broken().contains("task t10 is that of rev 10 and of rev 11"));
    let miscounted = Whole { counts: (2, 0, 0), ..three() };
    assert!(miscounted.broken().contains("it counts (2, 0, 0)"));
}

#[test]
fn runs_by_hand_are_those_that_were_asked_for() {
    let runs = || vec![fired(10, 1_000), by_hand(11, 1_234), fired(12, 2_000)];
    let mut asked = Whole::of(all(), runs());
    asked.before.ok("run_now", S, json!({}), 11, json!({ "run": by_hand(11, 1_234) }));
    assert_eq!(asked.verdict(), Verdict::Holds);
    let mut perhaps = Whole::of(all(), runs());
    perhaps.before.info("run_now", S, json!({}));
    assert_eq!(perhaps.verdict(), Verdict::Holds);
    assert!(Whole::of(all(), runs()).broken().contains("1 runs by hand that nobody was told of"));
    let mut lost = three();
    lost.before.ok("run_now", S, json!({}), 20, json!({ "run": by_hand(20, 1_234) }));
    assert!(lost.broken().contains("by hand came"));
    let mut one_for_two = Whole::of(all(), runs());
    one_for_two.before.ok("run_now", S, json!({}), 11, json!({ "run": by_hand(11, 1_234) }));
    one_for_two.before.ok("run_now", S, json!({}), 11, json!({ "run": by_hand(11, 1_234) }));
    assert!(one_for_two.broken().contains("of one rev"));
}

#[test]
fn what_was_read_stays_as_it_was() {
    let mut vanished = three();
    vanished.before.ok("look", S, json!({ "limit": 1 }), 50, json!({ "runs": [fired(40, 4_000)] }));
    assert!(vanished.broken().contains("the run of rev 40 is not in a reading of rev 100"));
    let mut changed = three();
    let other = with(fired(11, 2_000), "task_id", json!("other"));
    changed.before.ok("look", S, json!({ "limit": 1 }), 11, json!({ "runs": [other] }));
    assert!(changed.broken().contains("the run of rev 11 was"));
}

#[test]
fn the_clock_rests_in_a_pause() {
    let paused = |record: &mut Record, rev, paused: bool| {
        record.ok("pause", S, json!({ "paused": paused }), rev, json!({}));
    };
    let mut ticked = three();
    paused(&mut ticked.before, 10, true);
    paused(&mut ticked.before, 20, false);
    assert!(ticked.broken().contains("in a pause of rev 10"));
    let mut around = three();
    paused(&mut around.before, 5, true);
    paused(&mut around.before, 9, false);
    paused(&mut around.before, 12, true);
    assert_eq!(around.verdict(), Verdict::Holds);
    let mut perhaps = three();
    perhaps.before.info("pause", S, json!({ "paused": false }));
    paused(&mut perhaps.before, 10, true);
    paused(&mut perhaps.before, 20, false);
    assert_eq!(perhaps.verdict(), Verdict::Holds, "somebody may have resumed it");
}

/// The newest two runs were read at the end, and nothing else of them.
fn forgotten(terms: Value, tasks: Vec<Value>) -> Verdict {
    let mut record = Record::default();
    record.ok("create", S, terms, 1, json!({ "first_tick_ms": 1_000 }));
    let stand = json!({ "next_tick_ms": 6_000, "fired": 5, "missed": 0, "overlapped": 0 });
    record.ok("ticks", S, json!({}), 100, stand);
    record.ok("tasks", S, json!({}), 100, json!({ "tasks": tasks }));
    record.ok("look", S, json!({ "limit": 2 }), 100, json!({ "runs": [fired(14, 5_000), fired(13, 4_000)] }));
    record.verdict()
}

#[test]
fn ticks_that_nobody_read_are_told_by_their_tasks_or_not_at_all() {
    let runs: Vec<Value> = (0..5).map(|n| fired(10 + n, 1_000 * (n + 1))).collect();
    let tasks = tasks_of(&runs);
    assert_eq!(forgotten(all(), tasks.clone()), Verdict::Holds);
    let Verdict::Unknown(why) = forgotten(terms("once", "allow"), tasks.clone()) else { panic!("it cannot be told") };
    assert!(why.contains("nobody read what came from tick 1000 to 4000"), "{why}");
    let missing: Vec<Value> = tasks.iter().enumerate().filter(|(n, _)| *n != 1).map(|(_, task)| task.clone()).collect();
    assert!(matches!(forgotten(all(), missing), Verdict::Broken(_)));
    let twice: Vec<Value> = tasks.iter().cloned().chain([with(tasks[1].clone(), "id", json!("y"))]).collect();
    assert!(matches!(forgotten(all(), twice), Verdict::Broken(_)));
}

#[test]
fn a_schedule_that_is_gone_is_found_and_what_was_not_read_is_unknown() {
    let mut gone = three();
    gone.before.ok("create", "other", all(), 2, json!({ "first_tick_ms": 1_000 }));
    assert!(gone.broken().contains("other was created, and is not there"));
    let mut refused = three();
    refused.before.info("create", "other", all());
    assert_eq!(refused.verdict(), Verdict::Holds);
    assert!(matches!(three().before.verdict(), Verdict::Unknown(_)));
    let mut strange = three();
    strange.before.ok("read", S, json!({}), 3, json!({}));
    assert!(matches!(strange.verdict(), Verdict::Unknown(_)));
}

#[test]
fn a_task_of_two_schedules_is_found() {
    let mut whole = three();
    let record = &mut whole.before;
    record.ok("create", "z", all(), 2, json!({ "first_tick_ms": 1_000 }));
    let stolen = with(fired(20, 1_000), "task_id", json!("t10"));
    record.ok("look", "z", json!({ "limit": 9 }), 100, json!({ "runs": [stolen] }));
    record.ok("ticks", "z", json!({}), 100, json!({ "next_tick_ms": 2_000, "fired": 1, "missed": 0, "overlapped": 0 }));
    record.ok("tasks", "z", json!({}), 100, json!({ "tasks": [] }));
    assert!(whole.broken().contains("task t10 is that of s and of z"));
}
