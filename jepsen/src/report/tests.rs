//! Pages of made-up runs.

use serde_json::{Value, json};

use super::*;
use crate::check::Finding;
use crate::record::Operation;

const SECOND: u64 = 1_000_000_000;

fn operation(id: usize, process: u64, began: u64, ended: Option<u64>, outcome: Outcome) -> Operation {
    Operation {
        id,
        process,
        f: "put".to_owned(),
        key: "k".to_owned(),
        arg: json!({ "value": id }),
        outcome,
        began,
        ended,
        began_at: 2 * id,
        ended_at: ended.map_or(usize::MAX, |_| 2 * id + 1),
        node: None,
    }
}

pub(super) fn ok(id: usize, process: u64, began: u64, ended: u64) -> Operation {
    operation(id, process, began, Some(ended), Outcome::Ok { res: Value::Null, rev: Some(id as u64) })
}

pub(super) fn fail(id: usize, process: u64, began: u64, ended: u64) -> Operation {
    operation(id, process, began, Some(ended), Outcome::Fail)
}

pub(super) fn info(id: usize, process: u64, began: u64) -> Operation {
    operation(id, process, began, None, Outcome::Info)
}

pub(super) fn history(operations: Vec<Operation>) -> History {
    History { operations }
}

pub(super) fn run_of(operations: Vec<Operation>) -> Run {
    let reports = vec![Report::of("rev-replay", operations.len() as u64, Vec::new())];
    let workload = WorkloadRun { name: "register".to_owned(), history: history(operations), reports };
    Run { title: "nightly".to_owned(), workloads: vec![workload], ..Run::default() }
}

fn report(verdict: Verdict) -> Report {
    Report { checker: "linearizable", judged: 3, verdict }
}

fn three() -> Run {
    run_of(vec![ok(0, 1, 0, 5_000_000), fail(1, 2, SECOND, SECOND + 1), ok(2, 1, 2 * SECOND, 2 * SECOND + 9)])
}

fn kill(what: &str, until_ns: Option<u64>) -> FaultSpan {
    FaultSpan { name: "kill-leader".to_owned(), what: what.to_owned(), from_ns: SECOND / 2, until_ns }
}

#[test]
fn what_was_broken_outweighs_what_is_unknown_and_that_outweighs_what_holds() {
    let mut run = three();
    assert_eq!(run.overall(), Overall::Pass);
    run.workloads[0].reports.push(report(Verdict::Unknown("out of memory".to_owned())));
    assert_eq!(run.overall(), Overall::Unknown);
    run.workloads[0].reports.push(report(Verdict::Broken(vec![Finding::new("stale", [0])])));
    assert_eq!(run.overall(), Overall::Fail);
    run.workloads[0].reports.clear();
    assert_eq!(run.overall(), Overall::Unknown, "it was not checked");
    assert_eq!(Run::default().overall(), Overall::Unknown, "nothing was");
}

#[test]
fn the_verdict_is_there_in_words() {
    let mut run = three();
    assert!(html(&run).contains("<strong>PASS</strong> all 1 checks hold"));
    run.workloads[0].reports.push(report(Verdict::Unknown("out of memory".to_owned())));
    let page = html(&run);
    assert!(page.contains("<strong>UNKNOWN</strong> 1 of 2 checks could not tell") && page.contains("out of memory"));
    run.workloads[0].reports.push(report(Verdict::Broken(vec![Finding::new("a stale read", [0, 2])])));
    let page = html(&run);
    assert!(page.contains("<strong>FAIL</strong> 1 of 3 checks found a broken promise"));
    assert!(page.contains("1. a stale read") && page.matches("►").count() == 2, "{page}");
}

#[test]
fn nothing_from_outside_is_markup() {
    let evil = "<script>alert('x')</script>";
    let mut run = three();
    run.title = evil.to_owned();
    run.facts = vec![(evil.to_owned(), evil.to_owned())];
    run.faults = vec![FaultSpan { name: evil.to_owned(), ..kill(evil, Some(SECOND)) }];
    let workload = &mut run.workloads[0];
    workload.name = evil.to_owned();
    workload.history.operations[0].outcome = Outcome::Ok { res: json!(evil), rev: None };
    workload.history.operations[0].arg = json!({ evil: evil });
    workload.history.operations[0].key = evil.to_owned();
    workload.reports.push(report(Verdict::Broken(vec![Finding::new(evil, [0])])));
    workload.reports.push(report(Verdict::Unknown(evil.to_owned())));
    let page = html(&run);
    assert!(!page.contains("<script") && page.contains("&lt;script&gt;alert(&#39;x&#39;)"));
    assert!(!page.contains("http://") && !page.contains("https://") && !page.contains("src="));
}

#[test]
fn faults_are_bars_with_their_recovery() {
    let mut run = three();
    run.faults = vec![kill("node 2", Some(SECOND)), kill("node 3", None)];
    let page = html(&run);
    assert_eq!(page.matches("class=\"fault\"").count(), 2);
    assert!(page.contains("kill-leader: node 2, from 500.0 ms, for 500.0 ms") && page.contains("never healed"));
    assert!(page.contains("<td>1.00 s (register)</td>"), "from its end at 1 s to the ok at 2 s");
    assert!(page.contains("2 gaps: p50 2.00 s, p99 2.00 s, max 2.00 s."), "one client across two faults");
}

#[test]
fn an_empty_run_is_a_page() {
    let page = html(&Run::default());
    assert!(page.contains("UNKNOWN") && page.contains("There were no faults.") && page.ends_with("</html>\n"));
    let silent = Run { faults: vec![kill("all", None)], ..Run::default() };
    assert!(html(&silent).contains("nobody asked"));
    let unheard = run_of(vec![info(0, 1, 0)]);
    assert!(html(&unheard).contains("<td class=\"n\">1</td>"));
}

/// What a page of this must not be larger than.
const MOST_BYTES: usize = 2_000_000;

#[test]
fn a_long_run_is_a_small_page() {
    let many = (0..200_000_usize).map(|id| ok(id, id as u64 % 20, id as u64 * 50_000_000, id as u64 * 50_000_000 + 1));
    let mut run = run_of(many.collect());
    run.facts = (0..500).map(|n| (format!("fact {n}"), "<".repeat(1_000))).collect();
    let fault = |n: u64| FaultSpan { from_ns: n * SECOND, ..kill(&"&".repeat(500), Some((n + 9) * SECOND)) };
    run.faults = (0..2_000).map(fault).collect();
    let long = json!({ "value": "\"".repeat(1_000) });
    run.workloads[0].history.operations.iter_mut().take(2_000).for_each(|operation| operation.arg = long.clone());
    let findings = (0..100_usize).map(|n| Finding::new("'".repeat(9_000), n * 10..n * 10 + 50)).collect();
    run.workloads[0].reports = vec![report(Verdict::Broken(findings)); 30];
    let page = html(&run);
    assert!(page.len() < MOST_BYTES, "{} bytes", page.len());
    assert!(page.contains("more findings are not shown"));
}
