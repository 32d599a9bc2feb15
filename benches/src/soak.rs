//! Does a cluster under steady load come to take no more disk, memory and open files?
//!
//! Rounds at a fixed rate for as long as asked. What is kept is kept so briefly, and snapshots are so frequent, that
//! all of it is forgotten many times within the run. What then still grows is forgotten by nobody.
//!
//! Deliberately absent: faults. What they leave behind is for the harness to find; here nothing is in a leak's way.

mod footprint;
mod load;
mod plot;
mod series;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use quorate_jepsen::LocalCluster;
use tokio::time::{Instant, sleep_until};

use crate::memory::mib;

use footprint::Footprint;
use load::Load;
use plot::{Curve, Panel, Stroke};
use series::{CSV_HEADING, Sample, Series};

/// Of the nodes, in turn: told apart also by those who see few colours.
const COLOURS: [&str; 3] = ["#0072b2", "#d55e00", "#009e73"];

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Length of the run
    #[arg(long, default_value_t = 120)]
    minutes: u64,
    /// Rounds a second, evenly spaced: a task, a document, a message
    #[arg(long, default_value_t = 100)]
    rate: u64,
    /// Clients that share the rounds
    #[arg(long, default_value_t = 16)]
    clients: u64,
    /// Seconds between two looks at the nodes
    #[arg(long, default_value_t = 10)]
    sample: u64,
    /// Of the nodes: how long they keep tasks that are done
    #[arg(long, default_value_t = 60_000)]
    tasks_keep_ms: u64,
    /// Of the nodes: how long they keep tasks that failed for good
    #[arg(long, default_value_t = 60_000)]
    dead_keep_ms: u64,
    /// Of the nodes: how long they keep events
    #[arg(long, default_value_t = 60_000)]
    events_keep_ms: u64,
    /// Of the nodes: log entries between snapshots
    #[arg(long, default_value_t = 5_000)]
    snapshot_every: u64,
    /// Of the nodes: log entries kept behind a snapshot
    #[arg(long, default_value_t = 2_000)]
    log_keep: u64,
    /// Of the nodes: size of each write buffer of the databases
    #[arg(long, default_value_t = 8 << 20)]
    write_buffer_bytes: u64,
    /// Write every look at every node there, as it is taken
    #[arg(long, value_name = "PATH")]
    csv: Option<PathBuf>,
    /// Draw disk and memory over time there
    #[arg(long, value_name = "PATH")]
    svg: Option<PathBuf>,
}

impl Args {
    fn check(&self) -> Result<()> {
        ensure!((1..=10_080).contains(&self.minutes), "--minutes must be 1 to 10080; got {}", self.minutes);
        ensure!((1..=10_000).contains(&self.rate), "--rate must be 1 to 10000; got {}", self.rate);
        ensure!((1..=1_000).contains(&self.clients), "--clients must be 1 to 1000; got {}", self.clients);
        // Each quarter of the run needs one.
        let most = self.minutes * 60 / 4;
        ensure!((1..=most).contains(&self.sample), "--sample must be 1 to {most}; got {}", self.sample);
        Ok(())
    }

    /// What the nodes are told.
    fn of_nodes(&self) -> Vec<String> {
        let settings = [
            ("--tasks-keep-ms", self.tasks_keep_ms),
            ("--dead-keep-ms", self.dead_keep_ms),
            ("--events-keep-ms", self.events_keep_ms),
            ("--snapshot-every", self.snapshot_every),
            ("--log-keep", self.log_keep),
            ("--write-buffer-bytes", self.write_buffer_bytes),
        ];
        settings.into_iter().flat_map(|(flag, number)| [flag.to_owned(), number.to_string()]).collect()
    }
}

/// Loads one cluster, looks at its nodes, and prints what became of them. Fails if a round did.
pub(crate) async fn run(args: Args) -> Result<()> {
    args.check()?;
    // Before the run: a path that cannot be written must not be noticed after it.
    let mut csv = args.csv.as_deref().map(create).transpose()?;
    let mut svg = args.svg.as_deref().map(create).transpose()?;
    let cluster = LocalCluster::builder().extra_args(args.of_nodes()).start().await?;
    let mut series = Series::new(cluster.node_ids());
    let mut load = Load::start(&cluster, args.rate, args.clients).await?;
    let watched = watch(&cluster, &args, &mut load, &mut series, csv.as_mut()).await;

    // What was seen is worth showing, however it ended.
    let shown = show(&args, &series, svg.as_mut());
    watched?;
    shown?;
    let rounds = load.close().await?;
    ensure!(rounds.failed == 0, "{} rounds failed, {} were done", rounds.failed, rounds.done);
    cluster.close()
}

/// Looks at the nodes until the run is over; says on stderr how far it is.
async fn watch(
    cluster: &LocalCluster,
    args: &Args,
    load: &mut Load,
    series: &mut Series,
    mut csv: Option<&mut File>,
) -> Result<()> {
    if let Some(csv) = csv.as_mut() {
        writeln!(csv, "{CSV_HEADING}")?;
    }
    let began = Instant::now();
    for n in 1..=args.minutes * 60 / args.sample {
        sleep_until(began + Duration::from_secs(n * args.sample)).await;
        let sample = Sample { seconds: began.elapsed().as_secs_f64(), load: load.period()?, nodes: look(cluster)? };
        eprintln!("{}", sample.progress(&series.ids));
        if let Some(csv) = csv.as_mut() {
            csv.write_all(sample.csv(&series.ids).as_bytes())?;
        }
        series.samples.push(sample);
    }
    Ok(())
}

fn look(cluster: &LocalCluster) -> Result<Vec<Footprint>> {
    let node = |id| Footprint::of(cluster.pid(id)?, cluster.data_dir(id)?).with_context(|| format!("node {id}"));
    cluster.node_ids().into_iter().map(node).collect()
}

fn show(args: &Args, series: &Series, svg: Option<&mut File>) -> Result<()> {
    if let Some(svg) = svg {
        let title = format!("quorate-bench soak: {} rounds/s for {} minutes", args.rate, args.minutes);
        svg.write_all(plot::svg(&title, "minutes since the load began", &panels(series)).as_bytes())?;
    }
    series.print()
}

/// Disk of each node, and what it is made of; memory of each node.
fn panels(series: &Series) -> [Panel; 2] {
    let each = |of: fn(&Footprint) -> f64| -> Vec<Curve> {
        let curve = |(node, (id, colour)): (usize, (&u64, &'static str))| Curve {
            name: format!("node {id}"),
            stroke: Stroke { colour, dashes: "none" },
            points: series.curve(node, of),
        };
        series.ids.iter().zip(COLOURS.into_iter().cycle()).enumerate().map(curve).collect()
    };
    let kind = |name: &str, dashes, of: fn(&Footprint) -> f64| Curve {
        name: format!("{name}, mean"),
        stroke: Stroke { colour: "dimgray", dashes },
        points: series.mean_curve(of),
    };
    let mut disk = each(|node| mib(node.disk.total()));
    disk.push(kind("log", "8 4", |node| mib(node.disk.log)));
    disk.push(kind("state", "2 3", |node| mib(node.disk.state)));
    disk.push(kind("snapshots", "8 3 2 3", |node| mib(node.disk.snapshots)));
    let memory = each(|node| mib(node.resident));
    [
        Panel { name: "Data directory", unit: "disk, MiB", curves: disk },
        Panel { name: "Resident memory", unit: "memory, MiB", curves: memory },
    ]
}

fn create(path: &Path) -> Result<File> {
    File::create(path).with_context(|| format!("cannot write {}", path.display()))
}
