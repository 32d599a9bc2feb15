//! What does a lock cost when nobody else wants it, and how soon does it pass on when many do?
//!
//! Every client has a session; all share one set of connections. A lock is given back as soon as it is granted, so that
//! nothing but the cluster is measured. Of a lock that many wait for, the next holder hears by the call that it waits
//! with: handover is from just before the release until that call has returned.
//!
//! Deliberately absent: shared locks, scopes, TTLs.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use quorate_client::{Client, Session};
use quorate_jepsen::LocalCluster;

use crate::closed::{at_once, together};
use crate::latency::Latency;
use crate::meter::Meter;
use crate::report::{Column, Form, Table, column};

const TTL: Duration = Duration::from_secs(15);
/// How long a contender waits in line. Far longer than the line is.
const WAIT: Duration = Duration::from_secs(60);

const FREE: &[Column] = &[
    column("clients", "clients", 0),
    column("cycles/s", "cycles_per_s", 0),
    column("acquire p50", "acquire_p50_ms", 2),
    column("p99", "acquire_p99_ms", 2),
    column("release p50", "release_p50_ms", 2),
    column("p99", "release_p99_ms", 2),
    column("servers us", "server_cpu_us", 0),
    column("bench us", "bench_cpu_us", 0),
];
const CONTENDED: &[Column] = &[
    column("clients", "clients", 0),
    column("grants/s", "grants_per_s", 0),
    column("handover p50", "handover_p50_ms", 2),
    column("p99", "handover_p99_ms", 2),
    column("max", "handover_max_ms", 2),
    column("wait p50", "wait_p50_ms", 2),
    column("p99", "wait_p99_ms", 2),
    column("servers us", "server_cpu_us", 0),
    column("bench us", "bench_cpu_us", 0),
];

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Concurrent clients, each with a lock of its own, one measurement each
    #[arg(long, value_delimiter = ',', default_values_t = [1_u64, 16])]
    clients: Vec<u64>,
    /// Clients that contend for one lock
    #[arg(long, default_value_t = 16)]
    contenders: u64,
    /// Length of each measurement
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t = Form::Table)]
    output: Form,
}

/// What one client saw of a lock that only it wants.
struct Cycles {
    acquire: Latency,
    release: Latency,
}

/// One grant of the lock that all want.
struct Grant {
    token: u64,
    asked: Instant,
    granted: Instant,
    /// Just before the call that gives it back.
    releasing: Instant,
}

/// Measures both on one cluster and prints the result.
pub(crate) async fn run(args: Args) -> Result<()> {
    ensure!((1..=3_600).contains(&args.seconds), "--seconds must be 1 to 3600; got {}", args.seconds);
    ensure!((2..=1_000).contains(&args.contenders), "--contenders must be 2 to 1000; got {}", args.contenders);
    let cluster = LocalCluster::builder().start().await?;
    let client = cluster.client()?;
    let length = Duration::from_secs(args.seconds);
    let about = "a lock that nobody else wants, acquired and released; latency in ms; CPU: microseconds per cycle";
    let mut free = Table::new("locks_free", about, FREE);
    for clients in args.clients {
        uncontended(&cluster, &client, clients, length, &mut free).await?;
    }
    free.print(args.output)?;
    let about = "one lock that all wait for; handover: release until the next holder has it, ms; CPU: us per grant";
    let mut wanted = Table::new("locks_contended", about, CONTENDED);
    contended(&cluster, &client, args.contenders, length, &mut wanted).await?;
    wanted.print(args.output)?;
    cluster.close()
}

async fn open(client: &Client, clients: u64) -> Result<Vec<Session>> {
    let mut sessions = Vec::new();
    for _ in 0..clients {
        sessions.push(client.sessions().open(TTL).await?);
    }
    Ok(sessions)
}

async fn close(sessions: Vec<Session>) -> Result<()> {
    for session in sessions {
        session.close().await?;
    }
    Ok(())
}

async fn uncontended(
    cluster: &LocalCluster,
    client: &Client,
    clients: u64,
    length: Duration,
    table: &mut Table,
) -> Result<()> {
    let sessions = open(client, clients).await?;
    let meter = Meter::start(cluster)?;
    let until = Instant::now() + length;
    let named = sessions.iter().enumerate();
    let work = named.map(|(n, session)| cycle(client.clone(), session.clone(), format!("free-{n}"), until));
    let each = at_once(work).await?;
    let took = meter.read()?;
    close(sessions).await?;
    let acquire = together(each.iter().map(|one| &one.acquire))?;
    let release = together(each.iter().map(|one| &one.release))?;
    let cycles = release.count();
    let numbers = [
        clients as f64,
        took.per_second(cycles),
        acquire.ms(0.5),
        acquire.ms(0.99),
        release.ms(0.5),
        release.ms(0.99),
        took.servers_us(cycles),
        took.bench_us(cycles),
    ];
    table.row("uncontended", numbers);
    Ok(())
}

async fn cycle(client: Client, session: Session, name: String, until: Instant) -> Result<Cycles> {
    let mut cycles = Cycles { acquire: Latency::new()?, release: Latency::new()? };
    while Instant::now() < until {
        let began = Instant::now();
        let guard = client.locks().lock(&session, name.clone()).acquire().await?;
        let granted = Instant::now();
        guard.release().await?;
        cycles.acquire.record(granted - began);
        cycles.release.record(granted.elapsed());
    }
    Ok(cycles)
}

async fn contended(
    cluster: &LocalCluster,
    client: &Client,
    contenders: u64,
    length: Duration,
    table: &mut Table,
) -> Result<()> {
    let sessions = open(client, contenders).await?;
    let meter = Meter::start(cluster)?;
    let until = Instant::now() + length;
    let work = sessions.iter().map(|session| contend(client.clone(), session.clone(), until));
    let grants: Vec<Grant> = at_once(work).await?.into_iter().flatten().collect();
    let took = meter.read()?;
    close(sessions).await?;
    let count = grants.len() as u64;
    let mut wait = Latency::new()?;
    for grant in &grants {
        wait.record(grant.granted - grant.asked);
    }
    let handover = handovers(grants)?;
    let numbers = [
        contenders as f64,
        took.per_second(count),
        handover.ms(0.5),
        handover.ms(0.99),
        handover.max_ms(),
        wait.ms(0.5),
        wait.ms(0.99),
        took.servers_us(count),
        took.bench_us(count),
    ];
    table.row("contended", numbers);
    Ok(())
}

async fn contend(client: Client, session: Session, until: Instant) -> Result<Vec<Grant>> {
    let mut grants = Vec::new();
    while Instant::now() < until {
        let asked = Instant::now();
        let guard = client.locks().lock(&session, "wanted").wait(WAIT).acquire().await?;
        let (token, granted) = (guard.token(), Instant::now());
        let releasing = Instant::now();
        guard.release().await?;
        grants.push(Grant { token, asked, granted, releasing });
    }
    Ok(grants)
}

/// From each release to the grant after it: tokens grow from grant to grant. Two grants at a time would be a fault.
fn handovers(mut grants: Vec<Grant>) -> Result<Latency> {
    grants.sort_by_key(|grant| grant.token);
    let mut latency = Latency::new()?;
    for (before, next) in grants.iter().zip(grants.iter().skip(1)) {
        ensure!(before.token < next.token, "two grants have token {}", next.token);
        ensure!(before.releasing <= next.granted, "grant {} began before {} was given back", next.token, before.token);
        // Who asked after the release had begun did not wait for it.
        if next.asked <= before.releasing {
            latency.record(next.granted - before.releasing);
        }
    }
    Ok(latency)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(base: Instant, token: u64, [asked, granted, releasing]: [u64; 3]) -> Grant {
        let at = |ms| base + Duration::from_millis(ms);
        Grant { token, asked: at(asked), granted: at(granted), releasing: at(releasing) }
    }

    #[test]
    fn a_handover_is_from_one_grant_to_the_next_by_token() {
        let base = Instant::now();
        let grants = vec![
            grant(base, 9, [0, 15, 16]),
            grant(base, 5, [0, 1, 2]),
            grant(base, 7, [0, 5, 6]),
            // Came when the lock was being given back.
            grant(base, 11, [17, 40, 41]),
        ];
        let latency = handovers(grants).unwrap();
        assert_eq!(latency.count(), 2);
        assert!((latency.ms(0.5) - 3.0).abs() < 0.1 && (latency.max_ms() - 9.0).abs() < 0.1);
    }

    #[test]
    fn two_holders_at_a_time_are_a_fault() {
        let base = Instant::now();
        assert!(handovers(vec![grant(base, 5, [0, 1, 9]), grant(base, 7, [0, 4, 10])]).is_err());
        assert!(handovers(vec![grant(base, 5, [0, 1, 2]), grant(base, 5, [0, 4, 10])]).is_err());
    }
}
