//! What do documents cost: a put, a linearizable get, and a thousand saves one after another?
//!
//! All clients share one set of connections. Each writes keys of its own in turn, so that most puts meet an earlier
//! version and its history.
//!
//! Deliberately absent: gets that may be stale. They ask nobody but their own node.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::stream::{self, StreamExt, TryStreamExt};
use quorate_client::Kv;
use quorate_jepsen::{LocalCluster, Rng};

use crate::closed::{at_once, together};
use crate::latency::Latency;
use crate::meter::{Meter, Took};
use crate::payload::payload;
use crate::report::{Column, Form, Table, column};

/// Keys that a client writes in turn, and that all clients read.
const KEYS: u64 = 1_000;
/// Writes under way before the gets are measured.
const IN_FLIGHT: usize = 16;

const COLUMNS: &[Column] = &[
    column("clients", "clients", 0),
    column("calls", "calls", 0),
    column("calls/s", "calls_per_s", 0),
    column("p50", "p50_ms", 2),
    column("p99", "p99_ms", 2),
    column("max", "max_ms", 2),
    column("servers us", "server_cpu_us", 0),
    column("bench us", "bench_cpu_us", 0),
];

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Concurrent writers, one measurement each
    #[arg(long, value_delimiter = ',', default_values_t = [1_u64, 16, 64])]
    clients: Vec<u64>,
    /// Concurrent readers, one measurement each
    #[arg(long, value_delimiter = ',', default_values_t = [1_u64, 64])]
    readers: Vec<u64>,
    /// Saves by one client, each to a new key
    #[arg(long, default_value_t = 1_000)]
    saves: u64,
    /// Size of a value
    #[arg(long, default_value_t = 256)]
    bytes: usize,
    /// Length of each measurement of puts and gets
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t = Form::Table)]
    output: Form,
}

/// Measures saves, puts and gets on one cluster and prints the result.
pub(crate) async fn run(args: Args) -> Result<()> {
    ensure!((1..=3_600).contains(&args.seconds), "--seconds must be 1 to 3600; got {}", args.seconds);
    ensure!((1..=1 << 20).contains(&args.bytes), "--bytes must be 1 to {}; got {}", 1 << 20, args.bytes);
    let cluster = LocalCluster::builder().start().await?;
    let kv = cluster.client()?.kv();
    let length = Duration::from_secs(args.seconds);
    let about = "latency of one call in ms; CPU: microseconds per call, three servers together and this program";
    let mut table = Table::new("kv", about, COLUMNS);

    let meter = Meter::start(&cluster)?;
    let saved = save(kv.clone(), args.saves, args.bytes).await?;
    add(&mut table, "save", 1, &saved, &meter.read()?);

    for clients in args.clients {
        let meter = Meter::start(&cluster)?;
        let until = Instant::now() + length;
        let each = at_once((0..clients).map(|client| put(kv.clone(), client, args.bytes, until))).await?;
        let took = meter.read()?;
        add(&mut table, "put", clients, &together(&each)?, &took);
    }

    fill(&kv, args.bytes).await?;
    for clients in args.readers {
        let meter = Meter::start(&cluster)?;
        let until = Instant::now() + length;
        let each = at_once((0..clients).map(|client| get(kv.clone(), client, until))).await?;
        let took = meter.read()?;
        add(&mut table, "get", clients, &together(&each)?, &took);
    }
    table.print(args.output)?;
    cluster.close()
}

fn add(table: &mut Table, name: &str, clients: u64, latency: &Latency, took: &Took) {
    let calls = latency.count();
    let numbers = [
        clients as f64,
        calls as f64,
        took.per_second(calls),
        latency.ms(0.5),
        latency.ms(0.99),
        latency.max_ms(),
        took.servers_us(calls),
        took.bench_us(calls),
    ];
    table.row(name, numbers);
}

/// What an agent does that keeps its state: one document after another.
async fn save(kv: Kv, saves: u64, bytes: usize) -> Result<Latency> {
    let mut latency = Latency::new()?;
    let mut rng = Rng::new(0);
    for n in 0..saves {
        let value = payload(bytes, &mut rng);
        let began = Instant::now();
        kv.put(format!("save/{n}"), value).send().await?;
        latency.record(began.elapsed());
    }
    Ok(latency)
}

async fn put(kv: Kv, client: u64, bytes: usize, until: Instant) -> Result<Latency> {
    let mut latency = Latency::new()?;
    let mut rng = Rng::new(client);
    for n in (0..KEYS).cycle() {
        let (key, value) = (format!("put/{client}/{n}"), payload(bytes, &mut rng));
        let began = Instant::now();
        if began >= until {
            break;
        }
        kv.put(key, value).send().await?;
        latency.record(began.elapsed());
    }
    Ok(latency)
}

/// Writes what is read afterwards.
async fn fill(kv: &Kv, bytes: usize) -> Result<()> {
    let puts = (0..KEYS).map(|n| kv.put(read_key(n), payload(bytes, &mut Rng::new(n))).send());
    stream::iter(puts).buffer_unordered(IN_FLIGHT).map_ok(drop).try_collect::<()>().await?;
    Ok(())
}

async fn get(kv: Kv, client: u64, until: Instant) -> Result<Latency> {
    let mut latency = Latency::new()?;
    let mut rng = Rng::new(client);
    loop {
        let key = read_key(rng.below(KEYS));
        let began = Instant::now();
        if began >= until {
            return Ok(latency);
        }
        kv.get(&key).await?.with_context(|| format!("{key} was written and is not there"))?;
        latency.record(began.elapsed());
    }
}

fn read_key(n: u64) -> String {
    format!("get/{n}")
}
