//! What faults cost: how soon each was over for those who asked, and how long single clients waited across them.
//!
//! Deliberately absent: bounds. What is too long, a page about promises says.

use super::series::percentile;
use super::text::{clipped, span};
use super::waits::{Moments, Recovery, Waits};
use super::{FaultSpan, Run, left_out};

const MOST_ROWS: usize = 200;
const LONGEST: usize = 120;
const MS: u64 = 1_000_000;
/// Where the bars of the histogram end, in milliseconds; the last one has no end.
const BOUNDS_MS: [u64; 16] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000];

/// The section.
pub(super) fn section(run: &Run) -> String {
    if run.faults.is_empty() {
        return "<h2>Recovery</h2>\n<p>There were no faults.</p>\n".to_owned();
    }
    let moments: Vec<(&str, Moments)> =
        run.workloads.iter().map(|workload| (workload.name.as_str(), Moments::of(&workload.history))).collect();
    let end_ns = run.end_ns();
    let rows: String = run.faults.iter().take(MOST_ROWS).map(|fault| row(fault, &moments, end_ns)).collect();
    format!(
        "<h2>Recovery</h2>\n<table>\n<tr><th>fault</th><th>what</th><th>from</th><th>for</th>\
         <th>first ok after its end</th><th>longest time without an ok in it</th></tr>\n{rows}</table>\n{}\
         <p class=\"note\">Both are those of the workload that was hit hardest, which is named.</p>\n{}",
        left_out(run.faults.len(), MOST_ROWS, "faults"),
        clients(run)
    )
}

fn row(fault: &FaultSpan, moments: &[(&str, Moments)], end_ns: u64) -> String {
    let lasted = fault.until_ns.map_or("not healed".to_owned(), |until| span(until.saturating_sub(fault.from_ns)));
    let until = fault.until_ns.unwrap_or(end_ns);
    let recoveries = moments.iter().filter_map(|(name, moments)| Some((moments.recovery(fault.until_ns?)?, *name)));
    let recovery = match recoveries.max() {
        Some((Recovery::After(ns), name)) => format!("{} ({})", span(ns), clipped(name, LONGEST)),
        Some((Recovery::Never, name)) => {
            format!("<strong class=\"broken\">never</strong> ({})", clipped(name, LONGEST))
        }
        None => "nobody asked".to_owned(),
    };
    let silences = moments.iter().filter_map(|(name, moments)| {
        let silence = moments.longest_silence(fault.from_ns, until)?;
        Some((silence, *name))
    });
    let silence = silences
        .max()
        .map_or("nobody asked".to_owned(), |(silence, name)| format!("{} ({})", span(silence), clipped(name, LONGEST)));
    format!(
        "<tr><td>{}</td><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{lasted}</td><td>{recovery}</td>\
         <td>{silence}</td></tr>\n",
        clipped(&fault.name, LONGEST),
        clipped(&fault.what, LONGEST),
        span(fault.from_ns)
    )
}

/// The histogram of waits.
fn clients(run: &Run) -> String {
    let waits: Vec<Waits> = run.workloads.iter().map(|workload| Waits::of(&workload.history)).collect();
    let unended: u64 = waits.iter().map(|waits| waits.unended).sum();
    let mut gaps: Vec<u64> =
        run.faults.iter().flat_map(|fault| waits.iter().flat_map(move |waits| waits.across(fault))).collect();
    gaps.sort_unstable();
    let [p50, p99, max] = [50, 99, 100].map(|percent| span(percentile(&gaps, percent)));
    let summary = match gaps.len() {
        0 => "No client has an ok before and after a fault.".to_owned(),
        count => format!("{count} gaps: p50 {p50}, p99 {p99}, max {max}."),
    };
    format!(
        "<h3>Client gaps</h3>\n<p>{summary}</p>\n<table class=\"histogram\">\n{}</table>\n\
         <p class=\"note\">For each fault and process: the longest time between two oks into which the fault fell. A \
         process that an unknown outcome ended counts until the first ok of one that came later. {unended} processes \
         asked after their last ok, and had no other.</p>\n",
        histogram(&gaps)
    )
}

fn histogram(gaps: &[u64]) -> String {
    let counts = binned(gaps);
    let most = counts.iter().map(|(_, count)| *count).max().unwrap_or_default().max(1);
    let rows = counts.iter().map(|(bin, count)| {
        let width = *count as f64 * 100.0 / most as f64;
        format!(
            "<tr><th>{bin}</th><td class=\"n\">{count}</td>\
             <td class=\"wide\"><span class=\"bar\" style=\"width:{width:.1}%\"></span></td></tr>\n"
        )
    });
    rows.collect()
}

/// How many are in each bin, from the first that has any to the last.
fn binned(gaps: &[u64]) -> Vec<(String, usize)> {
    let mut counts = [0_usize; BOUNDS_MS.len() + 1];
    for gap in gaps {
        let bin = BOUNDS_MS.partition_point(|bound| bound * MS < *gap);
        if let Some(count) = counts.get_mut(bin) {
            *count += 1;
        }
    }
    let name = |bin: usize| match BOUNDS_MS.get(bin) {
        Some(bound) => format!("up to {}", bound_name(*bound)),
        None => "longer".to_owned(),
    };
    let named: Vec<(String, usize)> = counts.iter().enumerate().map(|(bin, count)| (name(bin), *count)).collect();
    let first = named.iter().position(|(_, count)| *count > 0).unwrap_or(named.len());
    let last = named.iter().rposition(|(_, count)| *count > 0).map_or(first, |last| last + 1);
    named.get(first..last).unwrap_or_default().to_vec()
}

fn bound_name(ms: u64) -> String {
    if ms < 1_000 { format!("{ms} ms") } else { format!("{} s", ms / 1_000) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bin_holds_what_is_not_longer_than_its_bound() {
        let bins = binned(&[MS, MS + 1, 700 * MS, 1_000_000 * MS]);
        let full: Vec<(&str, usize)> =
            bins.iter().filter(|(_, count)| *count > 0).map(|(name, count)| (name.as_str(), *count)).collect();
        assert_eq!(full, [("up to 1 ms", 1), ("up to 2 ms", 1), ("up to 1 s", 1), ("longer", 1)]);
        assert_eq!(bins.len(), BOUNDS_MS.len() + 1, "the empty ones between them are there");
        assert_eq!(binned(&[3 * MS]), [("up to 5 ms".to_owned(), 1)]);
        assert!(binned(&[]).is_empty());
    }
}
