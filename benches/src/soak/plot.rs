//! A picture of curves over time: panels below each other, each with axes, a legend and a unit, as SVG.
//!
//! Axes begin at 0: what grows by a little must not look as if it grew by much.
//!
//! Deliberately absent: escaping. Names are fixed words and numbers.

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 600.0;
const LEFT: f64 = 75.0;
/// The legend is to the right of it.
const RIGHT: f64 = 715.0;
/// Where the panels begin and end: below the title, above the name of the time axis.
const TOP: f64 = 40.0;
const BOTTOM: f64 = 570.0;
/// What a panel has above and below its curves: its name, the marks of its time axis.
const HEAD: f64 = 30.0;
const FOOT: f64 = 28.0;
/// Steps of an axis, at most.
const STEPS: f64 = 6.0;
const FONT: &str = r#"font-family="sans-serif" font-size="13""#;

/// How a curve is drawn: its colour, and the dashes and gaps in pixels or "none".
#[derive(Clone, Copy)]
pub(super) struct Stroke {
    pub(super) colour: &'static str,
    pub(super) dashes: &'static str,
}

/// Points in the order of time.
pub(super) struct Curve {
    pub(super) name: String,
    pub(super) stroke: Stroke,
    pub(super) points: Vec<(f64, f64)>,
}

/// Curves of one unit.
pub(super) struct Panel {
    pub(super) name: &'static str,
    /// What the vertical axis says.
    pub(super) unit: &'static str,
    pub(super) curves: Vec<Curve>,
}

/// Values from 0 to `most`, and where these two are drawn.
struct Scale {
    most: f64,
    zero_px: f64,
    most_px: f64,
}

impl Scale {
    fn px(&self, value: f64) -> f64 {
        self.zero_px + (self.most_px - self.zero_px) * value / self.most
    }
}

/// The whole picture. `time` is what the horizontal axis says.
pub(super) fn svg(title: &str, time: &str, panels: &[Panel]) -> String {
    let all = panels.iter().flat_map(|panel| &panel.curves).flat_map(|curve| &curve.points);
    let across = Scale { most: positive(all.map(|(x, _)| *x)), zero_px: LEFT, most_px: RIGHT };
    let height = (BOTTOM - TOP) / panels.len().max(1) as f64;
    let size = format!(r#"width="{WIDTH}" height="{HEIGHT}""#);
    let mut parts = vec![
        format!(r#"<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {WIDTH} {HEIGHT}" {FONT}>"#),
        format!(r#"<rect {size} fill="white"/>"#),
        text(LEFT, 26.0, "start", r#"font-size="16" font-weight="bold""#, title),
    ];
    for (n, panel) in panels.iter().enumerate() {
        let top = TOP + n as f64 * height;
        parts.extend(panel_parts(panel, &across, top + HEAD, top + height - FOOT));
    }
    parts.push(text((LEFT + RIGHT) / 2.0, HEIGHT - 12.0, "middle", "", time));
    parts.push("</svg>\n".to_owned());
    parts.join("\n")
}

fn panel_parts(panel: &Panel, across: &Scale, top: f64, bottom: f64) -> Vec<String> {
    let most = positive(panel.curves.iter().flat_map(|curve| &curve.points).map(|(_, y)| *y));
    let step = step_of(most);
    // The axis ends with a mark, at or above the highest point.
    let steps = (most / step - 1e-6).ceil();
    let up = Scale { most: steps * step, zero_px: bottom, most_px: top };
    let mut parts = vec![text(LEFT, top - 10.0, "start", r#"font-weight="bold""#, panel.name)];
    for value in marks(steps, step) {
        let y = up.px(value);
        parts.push(line(LEFT, y, RIGHT, y, "lightgray"));
        parts.push(text(LEFT - 8.0, y + 4.0, "end", "", &label(value, step)));
    }
    let step = step_of(across.most);
    for value in marks((across.most / step + 1e-6).floor(), step) {
        let x = across.px(value);
        parts.push(line(x, bottom, x, bottom + 5.0, "black"));
        parts.push(text(x, bottom + 19.0, "middle", "", &label(value, step)));
    }
    parts.push(line(LEFT, top, LEFT, bottom, "black"));
    parts.push(line(LEFT, bottom, RIGHT, bottom, "black"));
    let (x, y) = (20.0, (top + bottom) / 2.0);
    parts.push(text(x, y, "middle", &format!(r#"transform="rotate(-90 {x:.1} {y:.1})""#), panel.unit));
    for (n, curve) in panel.curves.iter().enumerate() {
        parts.push(polyline(&curve.points, across, &up, curve.stroke));
        let y = top + 8.0 + 20.0 * n as f64;
        let Stroke { colour, dashes } = curve.stroke;
        let (from, to) = (RIGHT + 15.0, RIGHT + 47.0);
        parts.push(format!(
            r#"<path d="M{from:.1} {y:.1}H{to:.1}" stroke="{colour}" stroke-width="2" stroke-dasharray="{dashes}"/>"#
        ));
        parts.push(text(to + 8.0, y + 4.0, "start", "", &curve.name));
    }
    parts
}

fn polyline(points: &[(f64, f64)], across: &Scale, up: &Scale, stroke: Stroke) -> String {
    let points: Vec<String> = points.iter().map(|(x, y)| format!("{:.1},{:.1}", across.px(*x), up.px(*y))).collect();
    let Stroke { colour, dashes } = stroke;
    format!(
        r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="1.5" stroke-dasharray="{dashes}"/>"#,
        points.join(" ")
    )
}

fn line(x1: f64, y1: f64, x2: f64, y2: f64, colour: &str) -> String {
    format!(r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" stroke="{colour}"/>"#)
}

fn text(x: f64, y: f64, anchor: &str, more: &str, words: &str) -> String {
    format!(r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}" {more}>{words}</text>"#)
}

/// The greatest of the values. 1 if none is above 0: an axis needs a length.
fn positive(values: impl Iterator<Item = f64>) -> f64 {
    let most = values.fold(0.0, f64::max);
    if most > 0.0 && most.is_finite() { most } else { 1.0 }
}

/// What lies between two marks of an axis: 1, 2 or 5 times a power of ten, so that there are at most [`STEPS`] of it.
fn step_of(most: f64) -> f64 {
    let least = most / STEPS;
    let power = 10_f64.powf(least.log10().floor());
    let fits = |step: &f64| *step >= least * (1.0 - 1e-6);
    [power, 2.0 * power, 5.0 * power].into_iter().find(fits).unwrap_or(10.0 * power)
}

/// From 0 on, so many steps.
fn marks(steps: f64, step: f64) -> impl Iterator<Item = f64> {
    (0..=steps as u32).map(move |n| f64::from(n) * step)
}

/// With as many decimals as marks so close together need.
fn label(value: f64, step: f64) -> String {
    let decimals = if step < 1.0 { (-step.log10() - 1e-6).ceil() as usize } else { 0 };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOLID: Stroke = Stroke { colour: "black", dashes: "none" };

    fn near(one: f64, other: f64) -> bool {
        (one - other).abs() < 1e-9
    }

    #[test]
    fn values_come_to_their_place() {
        let up = Scale { most: 50.0, zero_px: 250.0, most_px: 50.0 };
        assert!(near(up.px(0.0), 250.0) && near(up.px(50.0), 50.0), "the ends");
        assert!(near(up.px(12.5), 200.0), "more is further up");
    }

    #[test]
    fn marks_are_round_numbers_and_few() {
        let cases =
            [(1.0, 0.2), (5.0, 1.0), (7.3, 2.0), (18.0, 5.0), (31.0, 10.0), (60.0, 10.0), (120.0, 20.0), (0.03, 0.005)];
        for (most, wanted) in cases {
            assert!(near(step_of(most), wanted), "{most}: {}", step_of(most));
        }
        let labels: Vec<String> = marks(3.0, 0.5).map(|value| label(value, 0.5)).collect();
        assert_eq!(labels, ["0.0", "0.5", "1.0", "1.5"]);
        assert_eq!((label(40.0, 20.0), label(0.02, 0.01)), ("40".to_owned(), "0.02".to_owned()));
    }

    #[test]
    fn an_axis_has_a_length_even_without_values() {
        assert!(near(positive(std::iter::empty()), 1.0) && near(positive([0.0].into_iter()), 1.0));
        assert!(near(positive([2.0, 3.0, 1.0].into_iter()), 3.0));
    }

    #[test]
    fn every_curve_is_within_its_panel_and_in_its_legend() {
        let curve =
            |name: &str, most| Curve { name: name.to_owned(), stroke: SOLID, points: vec![(0.0, 0.0), (10.0, most)] };
        let panel = |name, unit, most| Panel { name, unit, curves: vec![curve("node 1", most), curve("node 2", 1.0)] };
        let picture = svg("a soak", "minutes", &[panel("Disk", "MiB", 10.0), panel("Memory", "GiB", 4.0)]);
        assert_eq!(picture.matches("<polyline").count(), 4);
        assert_eq!(picture.matches(">node 2</text>").count(), 2);
        for words in ["a soak", "minutes", "Disk", "MiB", "Memory", "GiB"] {
            assert!(picture.contains(&format!(">{words}</text>")), "{words} is missing");
        }
        // The first panel is 265 pixels high, from 40 on: its curves go from 277 up to 70.
        assert!(picture.contains(r#"points="75.0,277.0 715.0,70.0""#), "{picture}");
        assert!(picture.trim_end().ends_with("</svg>"));
    }
}
