//! Disks that fill up: one node's, by somebody else's file, and everybody's, by writes. Nothing that was acknowledged is
//! lost, what frees space is taken all the while, and it heals by itself.
//!
//! Mounts small disks, so it runs as root only.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use quorate_client::v1::{KvPolicy, RejectionCode};
use quorate_client::{Client, Error, Session};
use quorate_jepsen::cluster::Builder;
use quorate_jepsen::rng::env_u64;
use quorate_jepsen::until::until;
use quorate_jepsen::{LocalCluster, Rng, Steady, disks, load, rng};

const LIMIT: Duration = Duration::from_secs(60);
/// Longer than any of this: request ids are what is needed of it.
const LEASE: Duration = Duration::from_secs(120);
const WRITERS: usize = 2;
const VALUE_BYTES: usize = 64 << 10;
/// Values of more than this many disks cannot have been taken.
const DISKS: u64 = 4;

/// Nodes whose files stay small: what is in the log twice over and in the history would fill such a disk by itself.
fn small() -> Builder {
    let mut flags = vec!["--write-buffer-bytes", "1048576", "--snapshot-every", "16", "--log-keep", "8"];
    flags.extend(["--events-keep-ms", "1000"]);
    LocalCluster::builder().extra_args(flags).small_disks(disk_bytes())
}

fn disk_bytes() -> u64 {
    env_u64("QUORATE_DISK_MIB", 16) << 20
}

/// Refused for want of space, and for nothing else.
fn is_full(error: &Error) -> bool {
    matches!(error, Error::Rejected { code: RejectionCode::ResourceExhausted, field, .. } if field == "disk")
}

#[tokio::test(flavor = "multi_thread")]
async fn one_full_disk_stops_nobody_and_its_node_catches_up_by_itself() -> Result<()> {
    if !disks::permitted() {
        return Ok(());
    }
    let mut cluster = small().start().await?;
    let client = cluster.client()?;
    let victim = cluster.followers().await?.into_iter().max().context("no follower")?;
    let load = Steady::start(&client, WRITERS, "one").await?;
    let began = Instant::now();
    let foreign = cluster.disk(victim)?.fill()?;
    // The node says so itself, or does not answer at all while it waits for space.
    let http = cluster.http(victim)?;
    until("the node is not ready any more", LIMIT, || async {
        let ready = quorate_jepsen::http::get(&http, "/health/ready").await;
        Ok((!matches!(ready, Ok((200, _)))).then_some(()))
    })
    .await?;
    for _ in 0..20 {
        load.wait_success().await?;
    }
    eprintln!("{foreign} foreign bytes, longest gap {:?}", load.longest_gap_since(began));

    cluster.disk(victim)?.clear()?;
    let began = Instant::now();
    cluster.wait_ready(victim).await?;
    eprintln!("node {victim} ready {} ms after there was space again", began.elapsed().as_millis());
    let outcome = load.stop().await?;
    eprintln!("{}", outcome.summary());
    outcome.check_none_failed()?;
    outcome.check_kept(&client).await?;
    cluster.check_replicas_equal().await?;
    cluster.close()
}

/// Who fills the disks: writes under request ids, so that every outcome is known.
struct Filler {
    client: Client,
    session: Session,
    /// The seed of each value that is there.
    there: BTreeMap<String, u64>,
    rng: Rng,
}

impl Filler {
    async fn begin(cluster: &LocalCluster) -> Result<Self> {
        let client = cluster.client()?;
        // Earlier versions take space too, and a removal leaves them.
        client.kv().set_policy(KvPolicy::default()).await?;
        let session = client.sessions().open(LEASE).await?;
        Ok(Filler { client, session, there: BTreeMap::new(), rng: Rng::new(rng::seed()) })
    }

    async fn put(&mut self, key: String) -> Result<(), Error> {
        let seed = self.rng.next_u64();
        let value = load::noise(&mut Rng::new(seed), VALUE_BYTES);
        self.client.kv().put(key.clone(), value).request(&self.session).send().await?;
        self.there.insert(key, seed);
        Ok(())
    }

    /// Writes until it is refused; gives how many were taken for sure.
    async fn fill(&mut self) -> Result<u64> {
        let most = disk_bytes() * DISKS / VALUE_BYTES as u64;
        for n in 0..most {
            match self.put(format!("fill/{n}")).await {
                Ok(()) => {}
                // Refused by a new leader, after an attempt at the old one: `check` passes over it.
                Err(Error::OutcomeUnknown { message }) if message.contains("the disk of node") => {
                    eprintln!("full after {n} values, the last one in doubt: {message}");
                    return Ok(n);
                }
                Err(error) if is_full(&error) => {
                    eprintln!("full after {n} values: {error}");
                    return Ok(n);
                }
                Err(error) => return Err(error).with_context(|| format!("value {n}")),
            }
        }
        anyhow::bail!("{most} values fit on a disk of {} bytes", disk_bytes())
    }

    async fn delete_half(&mut self) -> Result<()> {
        let half: Vec<String> = self.there.keys().step_by(2).cloned().collect();
        for key in half {
            let gone = self.client.kv().delete(&key).request(&self.session).send().await;
            ensure!(gone.with_context(|| format!("removing {key} from a full disk"))?.deleted, "{key} was not there");
            self.there.remove(&key);
        }
        Ok(())
    }

    /// Everything that was acknowledged and not removed, byte by byte, and nothing else.
    async fn check(&self, written: u64) -> Result<()> {
        for n in 0..written {
            let key = format!("fill/{n}");
            let found = self.client.kv().get(&key).await?;
            match (self.there.get(&key), found) {
                (None, None) => {}
                (Some(seed), Some(entry)) => {
                    let value = load::noise(&mut Rng::new(*seed), VALUE_BYTES);
                    ensure!(entry.value == value, "{key} holds other bytes than were written");
                }
                (wanted, found) => {
                    anyhow::bail!("{key}: written {}, there {}", wanted.is_some(), found.is_some())
                }
            }
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn full_disks_refuse_growth_and_heal_when_space_is_freed() -> Result<()> {
    if !disks::permitted() {
        return Ok(());
    }
    let mut cluster = small().start().await?;
    let mut filler = Filler::begin(&cluster).await?;
    let written = filler.fill().await?;
    ensure!(written > 0, "the disks were full before anything was written");
    filler.check(written).await.context("reads while the disks are full")?;
    filler.delete_half().await?;

    let began = Instant::now();
    let mut tries = 0_u64;
    loop {
        match filler.put(format!("after/{tries}")).await {
            Ok(()) => break,
            Err(error) if is_full(&error) && began.elapsed() < LIMIT => {
                tries += 1;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(error) => return Err(error).context("no write was taken although half was removed"),
        }
    }
    eprintln!("writes again {} ms after half of {written} values was removed", began.elapsed().as_millis());
    filler.check(written).await?;
    for id in cluster.node_ids() {
        ensure!(cluster.exited(id)?.is_none(), "node {id} ended:\n{}", cluster.logs_tail(id)?);
        cluster.wait_ready(id).await?;
    }
    cluster.check_replicas_equal().await?;

    // What was acknowledged was on disk, and not only in memory.
    cluster.kill_all()?;
    cluster.start_all().await?;
    filler.check(written).await.context("after all nodes were killed")?;
    cluster.close()
}
