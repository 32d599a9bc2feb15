//! What was broken: each finding with its operations, and those around them on the same key.
//!
//! Deliberately absent: everything that held.

use std::collections::{BTreeMap, BTreeSet};

use super::text::{clipped, moment};
use super::{Run, WorkloadRun, left_out};
use crate::check::{Finding, Report, Verdict};
use crate::record::{History, Operation, Outcome};

/// Of one checker.
const MOST_FINDINGS: usize = 3;
/// Of one key, before and after an operation.
const AROUND: usize = 10;
const MOST_ROWS: usize = 60;
const LONGEST_VALUE: usize = 120;
const LONGEST_NAME: usize = 48;
const LONGEST_SENTENCE: usize = 1_000;
/// All findings together. What comes after this many bytes is only counted.
const MOST_BYTES: usize = 700_000;

/// The section; nothing where nothing was broken.
pub(super) fn section(run: &Run) -> String {
    let mut shown = String::new();
    let (mut all, mut written) = (0, 0);
    for workload in &run.workloads {
        let broken = workload.reports.iter().filter_map(|report| match &report.verdict {
            Verdict::Broken(findings) => Some((report, findings)),
            Verdict::Holds | Verdict::Unknown(_) => None,
        });
        for (report, findings) in broken {
            all += findings.len();
            shown.push_str(&heading(workload, report));
            for (finding, number) in findings.iter().take(MOST_FINDINGS).zip(1_usize..) {
                if shown.len() > MOST_BYTES {
                    break;
                }
                shown.push_str(&told(finding, number, &workload.history));
                written += 1;
            }
        }
    }
    if all == 0 {
        return String::new();
    }
    format!("<h2>Findings</h2>\n{shown}{}", left_out(all, written, "findings"))
}

fn heading(workload: &WorkloadRun, report: &Report) -> String {
    format!(
        "<h3>{}: <span class=\"broken\">{}</span></h3>\n",
        clipped(&workload.name, LONGEST_NAME),
        clipped(report.checker, LONGEST_NAME)
    )
}

fn told(finding: &Finding, number: usize, history: &History) -> String {
    let sentence = clipped(&finding.text, LONGEST_SENTENCE);
    let rows = around(finding, history);
    if rows.is_empty() {
        return format!("<p>{number}. {sentence}</p>\n");
    }
    let lines: String = rows.values().map(|(operation, is_named)| line(operation, *is_named)).collect();
    format!(
        "<p>{number}. {sentence}</p>\n<table class=\"operations\">\n<tr><th></th><th>id</th><th>begin (s)</th>\
         <th>end (s)</th><th>process</th><th>node</th><th>f</th><th>key</th><th>arg</th><th>outcome</th>\
         <th>rev</th></tr>\n{lines}</table>\n{}",
        left_out(finding.operations.len(), MOST_ROWS, "of its operations")
    )
}

/// The operations that it names, and their neighbours, by beginning. `true`: named. Where there are too many, the
/// neighbours go first.
fn around<'a>(finding: &Finding, history: &'a History) -> BTreeMap<usize, (&'a Operation, bool)> {
    let named: BTreeSet<usize> = finding.operations.iter().copied().collect();
    let operations = named.iter().filter_map(|id| history.operations.get(*id)).take(MOST_ROWS);
    let mut rows: BTreeMap<usize, (&Operation, bool)> =
        operations.map(|operation| (operation.id, (operation, true))).collect();
    let reach = AROUND.min(MOST_ROWS.saturating_sub(rows.len()) / (2 * rows.len()).max(1));
    let centres: Vec<&Operation> = rows.values().map(|(operation, _)| *operation).collect();
    for centre in centres {
        let (before, after) = history.operations.split_at(centre.id.min(history.operations.len()));
        let is_near = |operation: &&Operation| operation.key == centre.key;
        let before = before.iter().rev().filter(is_near).take(reach);
        let after = after.iter().skip(1).filter(is_near).take(reach);
        for operation in before.chain(after) {
            rows.entry(operation.id).or_insert((operation, named.contains(&operation.id)));
        }
    }
    rows
}

fn line(operation: &Operation, is_named: bool) -> String {
    let (class, mark) = if is_named { (" class=\"named\"", "►") } else { ("", "") };
    let (outcome, rev) = match &operation.outcome {
        Outcome::Ok { res, rev } => (format!("ok {res}"), rev.map(|rev| rev.to_string())),
        Outcome::Fail => ("fail".to_owned(), None),
        Outcome::Info => ("info".to_owned(), None),
    };
    let ended = operation.ended.map_or("?".to_owned(), moment);
    let node = operation.node.map(|node| node.to_string()).unwrap_or_default();
    format!(
        "<tr{class}><td>{mark}</td><td>{}</td><td>{}</td><td>{ended}</td><td>{}</td><td>{node}</td><td>{}</td>\
         <td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>\n",
        operation.id,
        moment(operation.began),
        operation.process,
        clipped(&operation.f, LONGEST_NAME),
        clipped(&operation.key, LONGEST_NAME),
        clipped(&operation.arg.to_string(), LONGEST_VALUE),
        clipped(&outcome, LONGEST_VALUE),
        rev.unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use super::super::tests::{history, ok};
    use super::*;

    fn hundred() -> History {
        let on = |id: usize, key: &str| Operation { key: key.to_owned(), ..ok(id, 1, id as u64, id as u64) };
        history((0..100).map(|id| on(id, if id % 2 == 0 { "even" } else { "odd" })).collect())
    }

    #[test]
    fn the_neighbours_are_those_of_the_same_key() {
        let history = hundred();
        let rows = around(&Finding::new("x", [50]), &history);
        let ids: Vec<usize> = rows.keys().copied().collect();
        assert_eq!(ids, (30..=70).step_by(2).collect::<Vec<_>>());
        assert_eq!(rows.values().filter(|(_, is_named)| *is_named).count(), 1);
        let first = around(&Finding::new("x", [0]), &history);
        assert_eq!(first.keys().copied().collect::<Vec<_>>(), (0..=20).step_by(2).collect::<Vec<_>>());
    }

    #[test]
    fn a_finding_about_many_operations_keeps_those_and_drops_neighbours() {
        let history = hundred();
        let rows = around(&Finding::new("x", 0..50), &history);
        assert!(rows.len() <= MOST_ROWS && rows.values().filter(|(_, is_named)| *is_named).count() == 50);
        assert!(around(&Finding::new("x", [1_000]), &hundred()).is_empty(), "there is no such operation");
        assert!(around(&Finding::new("x", 0..100), &hundred()).len() <= MOST_ROWS);
    }
}
