//! What was seen over the run, and whether it levelled off.
//!
//! Quarters are of the samples in their order. The first is warming up: buffers fill, and nothing is old enough to be
//! forgotten. So the last is judged against the second.
//!
//! Deliberately absent: a fitted line. Compaction makes saws of all curves here, and means of quarters smooth them.

use anyhow::Result;

use super::footprint::Footprint;
use super::load::Period;
use crate::memory::mib;
use crate::report::{Column, Form, Table, column};

/// What the last quarter's mean may be of the second's.
const LEVEL: f64 = 1.25;

/// The first line of [`Sample::csv`].
pub(super) const CSV_HEADING: &str = "seconds,rounds,failed,p50_ms,p99_ms,node,\
disk_bytes,log_bytes,state_bytes,snapshots_bytes,other_bytes,resident_bytes,open_files";

const COLUMNS: &[Column] = &[
    column("1st quarter", "first_quarter", 1),
    column("2nd", "second_quarter", 1),
    column("last", "last_quarter", 1),
    column("last/1st", "last_to_first", 2),
    column("last/2nd", "last_to_second", 2),
];

/// One number of a node.
struct Measure {
    name: &'static str,
    /// Whether the run is judged by it. What others are part of is enough.
    is_judged: bool,
    of: fn(&Footprint) -> f64,
}

const MEASURES: [Measure; 6] = [
    Measure { name: "disk MiB", is_judged: true, of: |node| mib(node.disk.total()) },
    Measure { name: "log MiB", is_judged: false, of: |node| mib(node.disk.log) },
    Measure { name: "state MiB", is_judged: false, of: |node| mib(node.disk.state) },
    Measure { name: "snapshots MiB", is_judged: false, of: |node| mib(node.disk.snapshots) },
    Measure { name: "memory MiB", is_judged: true, of: |node| mib(node.resident) },
    Measure { name: "open files", is_judged: true, of: |node| node.open_files as f64 },
];

/// One look at everything.
pub(super) struct Sample {
    /// Since the load began.
    pub(super) seconds: f64,
    pub(super) load: Period,
    /// In the order of [`Series::ids`].
    pub(super) nodes: Vec<Footprint>,
}

/// All of them, in their order.
pub(super) struct Series {
    pub(super) ids: Vec<u64>,
    pub(super) samples: Vec<Sample>,
}

/// The means of four equal parts.
struct Quarters([f64; 4]);

impl Quarters {
    /// Nothing if there is less than one value a quarter.
    fn of(values: &[f64]) -> Option<Quarters> {
        if values.len() < 4 {
            return None;
        }
        let bound = |quarter: usize| quarter * values.len() / 4;
        let mean = |quarter: usize| {
            let part = &values[bound(quarter)..bound(quarter + 1)];
            part.iter().sum::<f64>() / part.len() as f64
        };
        Some(Quarters([mean(0), mean(1), mean(2), mean(3)]))
    }

    fn last_to_second(&self) -> f64 {
        let Quarters([_, second, _, last]) = self;
        last / second
    }

    fn levelled_off(&self) -> bool {
        let Quarters([_, second, _, last]) = self;
        *last <= LEVEL * second
    }

    fn numbers(&self) -> [f64; 5] {
        let Quarters([first, second, _, last]) = self;
        [*first, *second, *last, last / first, self.last_to_second()]
    }
}

impl Sample {
    /// How far it is, for whoever waits.
    pub(super) fn progress(&self, ids: &[u64]) -> String {
        let Period { done, failed, p50_ms, p99_ms } = self.load;
        let node = |(id, node): (&u64, &Footprint)| {
            let disk = &node.disk;
            let [whole, log, state, snapshots, memory] =
                [disk.total(), disk.log, disk.state, disk.snapshots, node.resident].map(mib);
            format!(
                "; node {id}: disk {whole:.1} MiB (log {log:.1}, state {state:.1}, snapshots {snapshots:.1}), \
                 memory {memory:.1} MiB, {} files",
                node.open_files
            )
        };
        let nodes: String = ids.iter().zip(&self.nodes).map(node).collect();
        format!("{:.0} s: {done} rounds, {failed} failed, p50 {p50_ms:.2} p99 {p99_ms:.2} ms{nodes}", self.seconds)
    }

    /// One line a node.
    pub(super) fn csv(&self, ids: &[u64]) -> String {
        let Period { done, failed, p50_ms, p99_ms } = self.load;
        let line = |(id, node): (&u64, &Footprint)| {
            let disk = &node.disk;
            let sizes = [disk.total(), disk.log, disk.state, disk.snapshots, disk.other, node.resident]
                .map(|bytes| bytes.to_string())
                .join(",");
            let files = node.open_files;
            format!("{:.1},{done},{failed},{p50_ms:.3},{p99_ms:.3},{id},{sizes},{files}\n", self.seconds)
        };
        ids.iter().zip(&self.nodes).map(line).collect()
    }
}

impl Series {
    pub(super) fn new(ids: Vec<u64>) -> Series {
        Series { ids, samples: Vec::new() }
    }

    /// One number of one node over time, in minutes.
    pub(super) fn curve(&self, node: usize, of: impl Fn(&Footprint) -> f64) -> Vec<(f64, f64)> {
        let point = |sample: &Sample| sample.nodes.get(node).map(|node| (sample.seconds / 60.0, of(node)));
        self.samples.iter().filter_map(point).collect()
    }

    /// As [`Series::curve`], the mean of all nodes.
    pub(super) fn mean_curve(&self, of: impl Fn(&Footprint) -> f64) -> Vec<(f64, f64)> {
        let mean = |nodes: &[Footprint]| nodes.iter().map(&of).sum::<f64>() / nodes.len().max(1) as f64;
        self.samples.iter().map(|sample| (sample.seconds / 60.0, mean(&sample.nodes))).collect()
    }

    /// Prints the quarters of every number of every node, and whether those that count levelled off.
    pub(super) fn print(&self) -> Result<()> {
        let mut table = Table::new("soak", "means of quarters of the run", COLUMNS);
        let mut grown = Vec::new();
        for (node, id) in self.ids.iter().enumerate() {
            for measure in &MEASURES {
                let values: Vec<f64> = self.curve(node, measure.of).into_iter().map(|(_, value)| value).collect();
                let Some(quarters) = Quarters::of(&values) else {
                    return crate::print(&format!("{} samples are too few to compare quarters", values.len()));
                };
                let name = format!("node {id} {}", measure.name);
                table.row(name.clone(), quarters.numbers());
                if measure.is_judged && !quarters.levelled_off() {
                    grown.push(format!("{name} ({:.2})", quarters.last_to_second()));
                }
            }
        }
        table.print(Form::Table)?;
        let rule = format!("the last quarter's mean at most {LEVEL} of the second's");
        if grown.is_empty() {
            return crate::print(&format!("disk, memory and open files of every node levelled off: {rule}"));
        }
        crate::print(&format!("not levelled off ({rule}): {}", grown.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::super::footprint::Disk;
    use super::*;

    fn quarters(values: &[f64]) -> Quarters {
        Quarters::of(values).unwrap()
    }

    #[test]
    fn every_value_is_in_one_quarter() {
        let Quarters(means) = quarters(&[1.0, 3.0, 4.0, 4.0, 5.0, 7.0, 9.0, 9.0, 9.0]);
        for (mean, wanted) in means.into_iter().zip([2.0, 4.0, 6.0, 9.0]) {
            assert!((mean - wanted).abs() < 0.001, "{means:?}");
        }
        assert!(Quarters::of(&[1.0, 2.0, 3.0]).is_none());
    }

    #[test]
    fn a_little_more_than_in_the_second_quarter_is_level_and_more_is_not() {
        assert!(quarters(&[1.0, 100.0, 110.0, 125.0]).levelled_off(), "the first quarter does not count");
        assert!(!quarters(&[1.0, 100.0, 100.0, 126.0]).levelled_off());
        assert!(quarters(&[300.0, 100.0, 100.0, 90.0]).levelled_off(), "less is level");
        let steady_growth: Vec<f64> = (1..=400).map(f64::from).collect();
        assert!(!quarters(&steady_growth).levelled_off());
    }

    #[test]
    fn a_row_fills_every_column() {
        let numbers = quarters(&[2.0, 4.0, 5.0, 6.0]).numbers();
        assert_eq!(numbers.len(), COLUMNS.len());
        assert!((numbers[3] - 3.0).abs() < 0.001 && (numbers[4] - 1.5).abs() < 0.001);
    }

    #[test]
    fn a_line_of_csv_fills_every_column() {
        let disk = Disk { log: 1, state: 2, snapshots: 3, other: 4 };
        let node = Footprint { disk, resident: 20, open_files: 30 };
        let load = Period { done: 5, failed: 0, p50_ms: 1.5, p99_ms: 2.25 };
        let csv = Sample { seconds: 10.0, load, nodes: vec![node, node] }.csv(&[1, 2]);
        assert_eq!(csv, "10.0,5,0,1.500,2.250,1,10,1,2,3,4,20,30\n10.0,5,0,1.500,2.250,2,10,1,2,3,4,20,30\n");
        let columns = |line: &str| line.split(',').count();
        assert_eq!(csv.lines().next().map(columns), Some(columns(CSV_HEADING)));
    }
}
