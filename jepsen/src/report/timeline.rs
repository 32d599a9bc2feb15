//! Faults as bars over throughput and latency, on one axis of time.
//!
//! What a colour says, a word, a place or the form of a line says too.
//!
//! Deliberately absent: one picture for each workload. What a fault does to the cluster, it does to all of them.

use super::series::{Column, Latency, Series};
use super::text::{clipped, span};
use super::{FaultSpan, Run, left_out};

const WIDTH: f64 = 1_000.0;
const LEFT: f64 = 120.0;
const PLOT: f64 = 870.0;
const TOP: f64 = 24.0;
const LANE: f64 = 20.0;
const HEIGHT: f64 = 150.0;
/// Between two plots: the title of the lower one.
const BETWEEN: f64 = 34.0;
/// Kinds of faults with a lane of their own; the rest share one.
const MOST_LANES: usize = 12;
const MOST_BARS: usize = 300;
/// A bar narrower than this could not be seen.
const NARROWEST: f64 = 1.5;
const LONGEST_NAME: usize = 18;
const LONGEST_WHAT: usize = 120;
/// What takes less is drawn as if it took this, in milliseconds as a power of ten.
const LOWEST_DECADE: i32 = -1;

/// Time as a place on the page.
struct Axis {
    span_ns: f64,
}

impl Axis {
    fn x(&self, ns: u64) -> f64 {
        LEFT + PLOT * (ns as f64 / self.span_ns).clamp(0.0, 1.0)
    }
}

/// The section.
pub(super) fn section(run: &Run) -> String {
    let series = Series::of(run);
    let axis = Axis { span_ns: series.span_ns() as f64 };
    let names = lane_names(&run.faults);
    let plots = TOP + LANE * names.len() as f64 + BETWEEN;
    let (throughput_top, latency_top) = (plots, plots + HEIGHT + BETWEEN);
    let height = latency_top + HEIGHT + 30.0;
    let label = "Faults over throughput and latency of all workloads, by time";
    let parts = [
        bars(run, &names, &axis, plots),
        throughput(&series, throughput_top),
        latency(&series, latency_top),
        seconds(&series, latency_top + HEIGHT),
    ];
    format!(
        "<h2>Timeline</h2>\n\
         <svg viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\" aria-label=\"{label}\">\n{}</svg>\n{}",
        parts.concat(),
        left_out(run.faults.len(), MOST_BARS, "faults")
    )
}

/// The kinds of faults, in the order of their first time.
fn lane_names(faults: &[FaultSpan]) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for fault in faults.iter().take(MOST_BARS) {
        if !names.contains(&fault.name.as_str()) {
            names.push(&fault.name);
        }
    }
    if names.len() > MOST_LANES {
        names.truncate(MOST_LANES - 1);
        names.push("others");
    }
    names
}

/// The lanes with their bars, and behind the plots a shade for each.
fn bars(run: &Run, names: &[&str], axis: &Axis, plots: f64) -> String {
    let mut drawn: String = names
        .iter()
        .enumerate()
        .map(|(lane, name)| {
            let y = TOP + LANE * lane as f64 + 14.0;
            let name = clipped(name, LONGEST_NAME);
            format!("<text class=\"name\" x=\"{:.1}\" y=\"{y:.1}\">{name}</text>\n", LEFT - 8.0)
        })
        .collect();
    for fault in run.faults.iter().take(MOST_BARS) {
        let lane = names.iter().position(|name| *name == fault.name).unwrap_or(names.len().saturating_sub(1));
        drawn.push_str(&bar(fault, lane, axis, plots));
    }
    drawn
}

fn bar(fault: &FaultSpan, lane: usize, axis: &Axis, plots: f64) -> String {
    let from = axis.x(fault.from_ns);
    let until = fault.until_ns.map_or(LEFT + PLOT, |until_ns| axis.x(until_ns));
    let (width, y) = ((until - from).max(NARROWEST), TOP + LANE * lane as f64);
    let ended = match fault.until_ns {
        Some(until_ns) => format!("for {}", span(until_ns.saturating_sub(fault.from_ns))),
        None => "never healed".to_owned(),
    };
    let (name, what) = (clipped(&fault.name, LONGEST_NAME), clipped(&fault.what, LONGEST_WHAT));
    let shade = 2.0 * HEIGHT + BETWEEN;
    // About six units a letter: a label that is longer than its bar would run into the next one.
    let is_wide = width > 6.5 * fault.what.chars().count().min(LONGEST_WHAT) as f64;
    let label = match is_wide {
        true => format!("<text class=\"what\" x=\"{:.1}\" y=\"{:.1}\">{what}</text>", from + 3.0, y + 13.0),
        false => String::new(),
    };
    format!(
        "<rect class=\"shade\" x=\"{from:.1}\" y=\"{plots:.1}\" width=\"{width:.1}\" height=\"{shade:.0}\"/>\
         <rect class=\"fault\" x=\"{from:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{:.0}\">\
         <title>{name}: {what}, from {}, {ended}</title></rect>{label}\n",
        y + 2.0,
        LANE - 4.0,
        span(fault.from_ns)
    )
}

fn throughput(series: &Series, top: f64) -> String {
    let seconds = series.width_ns as f64 / 1e9;
    let most = series.columns.iter().map(Column::total).max().unwrap_or_default().max(1) as f64;
    let width = PLOT / series.columns.len() as f64;
    let bottom = top + HEIGHT;
    let [mut ok, mut fail, mut info] = [const { String::new() }; 3];
    for (n, column) in series.columns.iter().enumerate() {
        let (x, mut below) = (LEFT + width * n as f64, 0);
        for (path, count) in [(&mut ok, column.ok), (&mut fail, column.fail), (&mut info, column.info)] {
            if count > 0 {
                let low = bottom - HEIGHT * below as f64 / most;
                let high = bottom - HEIGHT * (below + count) as f64 / most;
                path.push_str(&format!("M{x:.1} {low:.1}V{high:.1}h{width:.2}V{low:.1}z"));
            }
            below += count;
        }
    }
    let paths = [("ok", ok), ("fail", fail), ("info", info)];
    let paths: String = paths.iter().map(|(class, path)| format!("<path class=\"{class}\" d=\"{path}\"/>\n")).collect();
    let legend = "operations per second; from below: <tspan class=\"ok\">■</tspan> ok, \
                  <tspan class=\"fail\">■</tspan> fail, <tspan class=\"info\">■</tspan> info";
    [frame(top, legend), paths, tick(top, &format!("{:.1}", most / seconds)), tick(bottom, "0")].concat()
}

fn latency(series: &Series, top: f64) -> String {
    let latencies: Vec<Option<Latency>> = series.columns.iter().map(Column::latency).collect();
    let slowest = latencies.iter().flatten().map(|latency| latency.max).max().unwrap_or_default();
    let decades = (LOWEST_DECADE + 1..20).find(|decade| 10_f64.powi(*decade) >= millis(slowest)).unwrap_or(20).max(2);
    let y = |ns: u64| {
        let lowest = f64::from(LOWEST_DECADE);
        let part = (millis(ns).max(10_f64.powi(LOWEST_DECADE)).log10() - lowest) / (f64::from(decades) - lowest);
        top + HEIGHT * (1.0 - part.clamp(0.0, 1.0))
    };
    let line = |class: &str, of: fn(&Latency) -> u64| {
        let heights: Vec<Option<f64>> =
            latencies.iter().map(|latency| latency.as_ref().map(|latency| y(of(latency)))).collect();
        format!("<path class=\"line {class}\" d=\"{}\"/>\n", steps(&heights))
    };
    let marks: String = (LOWEST_DECADE..=decades)
        .map(|decade| {
            let at = top + HEIGHT * f64::from(decades - decade) / f64::from(decades - LOWEST_DECADE);
            tick(at, &format!("{} ms", 10_f64.powi(decade)))
        })
        .collect();
    let legend = "latency of ok, logarithmic: p50 solid, p99 dashed, max dotted";
    [
        frame(top, legend),
        marks,
        line("p50", |latency| latency.p50),
        line("p99", |latency| latency.p99),
        line("max", |latency| latency.max),
    ]
    .concat()
}

/// A line with a step for each column, broken where there is nothing.
fn steps(heights: &[Option<f64>]) -> String {
    let width = PLOT / heights.len().max(1) as f64;
    let (mut path, mut is_drawing) = (String::new(), false);
    for (n, height) in heights.iter().enumerate() {
        if let Some(y) = height {
            match is_drawing {
                true => path.push_str(&format!("V{y:.1}h{width:.2}")),
                false => path.push_str(&format!("M{:.1} {y:.1}h{width:.2}", LEFT + width * n as f64)),
            }
        }
        is_drawing = height.is_some();
    }
    path
}

/// The axis of time, below everything.
fn seconds(series: &Series, bottom: f64) -> String {
    let all = series.span_ns();
    let marks = (0..=4_u64).map(|quarter| {
        let x = LEFT + PLOT * quarter as f64 / 4.0;
        let seconds = all as f64 / 4e9 * quarter as f64;
        format!("<text class=\"time\" x=\"{x:.1}\" y=\"{:.1}\">{seconds:.1} s</text>\n", bottom + 18.0)
    });
    marks.collect()
}

fn frame(top: f64, legend: &str) -> String {
    format!(
        "<text class=\"legend\" x=\"{LEFT}\" y=\"{:.1}\">{legend}</text>\n\
         <rect class=\"frame\" x=\"{LEFT}\" y=\"{top:.1}\" width=\"{PLOT}\" height=\"{HEIGHT}\"/>\n",
        top - 8.0
    )
}

fn tick(y: f64, text: &str) -> String {
    format!(
        "<path class=\"tick\" d=\"M{LEFT} {y:.1}h{PLOT}\"/>\
         <text class=\"name\" x=\"{:.1}\" y=\"{:.1}\">{text}</text>\n",
        LEFT - 8.0,
        y + 4.0
    )
}

fn millis(ns: u64) -> f64 {
    ns as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_broken_where_nothing_went_well() {
        let path = steps(&[Some(1.0), Some(2.0), None, Some(3.0)]);
        assert_eq!(path.matches('M').count(), 2, "{path}");
        assert_eq!(path.matches('h').count(), 3, "{path}");
        assert_eq!(steps(&[]), "");
    }

    #[test]
    fn kinds_of_faults_share_lanes_when_there_are_many() {
        let fault = |n: usize| FaultSpan { name: format!("f{n}"), ..FaultSpan::default() };
        let few: Vec<FaultSpan> = [1, 2, 1].map(fault).into();
        assert_eq!(lane_names(&few), ["f1", "f2"]);
        let many: Vec<FaultSpan> = (0..40).map(fault).collect();
        let names = lane_names(&many);
        assert_eq!((names.len(), names.last().copied()), (MOST_LANES, Some("others")));
    }
}
