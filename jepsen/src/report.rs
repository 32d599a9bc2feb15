//! The report of a run: one page of HTML that holds everything, to be read by a person years later.
//!
//! - `timeline`: faults over throughput and latency. `series`: the numbers of it.
//! - `recovery`: how long clients waited. `waits`: the arithmetic of it.
//! - `findings`: what was broken, each with the operations around it.
//! - `text`: what makes foreign text harmless. `style`: how it looks.
//!
//! The page is below 2 MB however much was recorded: what is drawn is thinned, and what is listed is cut off, with a
//! word about how much was left out.
//!
//! Deliberately absent: scripts, and anything that must be fetched. And judgement: the verdicts come from the checkers.

mod findings;
mod recovery;
mod series;
mod style;
#[cfg(test)]
mod tests;
mod text;
mod timeline;
mod waits;

use crate::check::{Report, Verdict};
use crate::record::{History, Outcome};

use text::clipped;

/// Of any text outside the findings.
const LONGEST: usize = 300;
const MOST_FACTS: usize = 100;

/// What is told of.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// The headline.
    pub title: String,
    /// Of every choice in the run.
    pub seed: u64,
    /// When it began, as a person writes it.
    pub began: String,
    /// What was tested.
    pub commit: String,
    /// Anything else worth knowing: name and value.
    pub facts: Vec<(String, String)>,
    /// What clients did. All records count from the same moment.
    pub workloads: Vec<WorkloadRun>,
    /// What was done to the cluster.
    pub faults: Vec<FaultSpan>,
    /// What is wrong besides: a run with any of it has failed.
    pub problems: Vec<String>,
}

/// One workload of a run.
#[derive(Clone, Debug, Default)]
pub struct WorkloadRun {
    /// Which.
    pub name: String,
    /// Its record.
    pub history: History,
    /// What its checkers said of it.
    pub reports: Vec<Report>,
}

/// One fault, from when it was done until it was healed.
#[derive(Clone, Debug, Default)]
pub struct FaultSpan {
    /// Its kind, such as `kill-leader`.
    pub name: String,
    /// To whom, and how.
    pub what: String,
    /// In nanoseconds of the run.
    pub from_ns: u64,
    /// `None`: it was never healed.
    pub until_ns: Option<u64>,
}

/// What all checkers say together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overall {
    /// Every promise held.
    Pass,
    /// One was broken.
    Fail,
    /// None is known to be broken, but of some it could not be told. This is not a pass.
    Unknown,
}

impl Run {
    /// What all checkers say together. Where nothing was checked, nothing is known.
    pub fn overall(&self) -> Overall {
        let mut reports = self.workloads.iter().flat_map(|workload| &workload.reports);
        if !self.problems.is_empty() || reports.clone().any(|report| matches!(report.verdict, Verdict::Broken(_))) {
            return Overall::Fail;
        }
        let all_checked = self.workloads.iter().all(|workload| !workload.reports.is_empty());
        if self.workloads.is_empty() || !all_checked || !reports.all(Report::holds) {
            return Overall::Unknown;
        }
        Overall::Pass
    }

    /// The last moment of anything in it, in nanoseconds.
    fn end_ns(&self) -> u64 {
        let operations = self.workloads.iter().flat_map(|workload| &workload.history.operations);
        let moments = operations.map(|operation| operation.ended.unwrap_or(operation.began));
        let faults = self.faults.iter().map(|fault| fault.until_ns.unwrap_or(fault.from_ns));
        moments.chain(faults).max().unwrap_or_default()
    }
}

/// The page.
pub fn html(run: &Run) -> String {
    let title = clipped(&run.title, LONGEST);
    let body = [header(run), timeline::section(run), workloads(run), recovery::section(run), findings::section(run)];
    let policy = "default-src 'none'; style-src 'unsafe-inline'";
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{policy}\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>\n{}</style>\n</head>\n<body>\n{}</body>\n</html>\n",
        style::STYLE,
        body.concat()
    )
}

fn header(run: &Run) -> String {
    let (class, word) = match run.overall() {
        Overall::Pass => ("pass", "PASS"),
        Overall::Fail => ("broken", "FAIL"),
        Overall::Unknown => ("unknown", "UNKNOWN"),
    };
    let given = [("seed", run.seed.to_string()), ("began", run.began.clone()), ("commit", run.commit.clone())];
    let given = given.iter().map(|(name, value)| (*name, value.as_str()));
    let further = run.facts.iter().take(MOST_FACTS).map(|(name, value)| (name.as_str(), value.as_str()));
    let rows: String = given
        .chain(further)
        .map(|(name, value)| {
            format!("<tr><th>{}</th><td>{}</td></tr>\n", clipped(name, LONGEST), clipped(value, LONGEST))
        })
        .collect();
    format!(
        "<h1>{}</h1>\n<p class=\"verdict {class}\"><strong>{word}</strong> {}</p>\n\
         <table class=\"facts\">\n{rows}</table>\n{}",
        clipped(&run.title, LONGEST),
        in_words(run),
        left_out(run.facts.len(), MOST_FACTS, "facts")
    )
}

/// The verdict as a sentence.
fn in_words(run: &Run) -> String {
    let reports: Vec<&Report> = run.workloads.iter().flat_map(|workload| &workload.reports).collect();
    let broken = reports.iter().filter(|report| matches!(report.verdict, Verdict::Broken(_))).count();
    let unknown = reports.iter().filter(|report| matches!(report.verdict, Verdict::Unknown(_))).count();
    let all = reports.len();
    match run.overall() {
        Overall::Pass => format!("all {all} checks hold"),
        Overall::Fail => format!("{broken} of {all} checks found a broken promise, {unknown} could not tell"),
        Overall::Unknown if unknown > 0 => format!("{unknown} of {all} checks could not tell, which is not a pass"),
        Overall::Unknown => "a workload was not checked, which is not a pass".to_owned(),
    }
}

fn workloads(run: &Run) -> String {
    let rows: String = run.workloads.iter().map(workload_row).collect();
    format!(
        "<h2>Workloads</h2>\n<table>\n<tr><th>workload</th><th>operations</th><th>ok</th><th>fail</th><th>info</th>\
         <th>checks</th></tr>\n{rows}</table>\n"
    )
}

fn workload_row(workload: &WorkloadRun) -> String {
    let operations = &workload.history.operations;
    let count = |is: fn(&Outcome) -> bool| operations.iter().filter(|operation| is(&operation.outcome)).count();
    let ok = count(|outcome| matches!(outcome, Outcome::Ok { .. }));
    let fail = count(|outcome| matches!(outcome, Outcome::Fail));
    let info = count(|outcome| matches!(outcome, Outcome::Info));
    let mut checks: String = workload.reports.iter().map(check_line).collect();
    if checks.is_empty() {
        checks = "<span class=\"unknown\"><strong>UNKNOWN</strong></span> nothing checked it".to_owned();
    }
    format!(
        "<tr><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{ok}</td><td class=\"n\">{fail}</td>\
         <td class=\"n\">{info}</td><td>{checks}</td></tr>\n",
        clipped(&workload.name, LONGEST),
        operations.len()
    )
}

fn check_line(report: &Report) -> String {
    let (class, word, more) = match &report.verdict {
        Verdict::Holds => ("pass", "PASS", String::new()),
        Verdict::Broken(findings) => ("broken", "FAIL", format!(", in {} places", findings.len())),
        Verdict::Unknown(why) => ("unknown", "UNKNOWN", format!(", {}", clipped(why, LONGEST))),
    };
    let (checker, judged) = (clipped(report.checker, LONGEST), report.judged);
    format!("<div><strong class=\"{class}\">{word}</strong> {checker}: {judged} judged{more}</div>")
}

/// Says how many of them are not shown.
fn left_out(count: usize, shown: usize, what: &str) -> String {
    match count.saturating_sub(shown) {
        0 => String::new(),
        more => format!("<p class=\"note\">{more} more {what} are not shown.</p>\n"),
    }
}
