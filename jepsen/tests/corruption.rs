//! Bits that flip and files that lose their end, on the disk of a stopped node: it says so or is right, the others never
//! stop, and `quorate cluster rebuild` brings it back. A damaged majority refuses; it never answers wrongly.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use quorate_client::{Client, Config, Error};
use quorate_jepsen::cluster::Mark;
use quorate_jepsen::rng::{env_u64, seed};
use quorate_jepsen::until::until;
use quorate_jepsen::{LocalCluster, Rng, Steady, gaps, http, load, tasks};

const LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);
const WRITERS: usize = 2;
/// What a node that refuses its own data tells the operator to run.
const REMEDY: &str = "cluster rebuild";

/// What is damaged.
#[derive(Clone, Copy, Debug)]
enum Damage {
    /// A bit of the log's newest write-ahead file: the last entries, and the vote if it is as new.
    LogTail,
    /// A bit of the log's smallest table: the facts beside the entries (vote, purge point).
    LogFacts,
    /// A bit of any table of the log.
    LogTable,
    /// A bit of any table of the state.
    State,
    /// A bit of any file of a snapshot.
    Snapshot,
    /// The log's newest write-ahead file loses its end.
    LogCut,
}

const DAMAGES: [Damage; 6] =
    [Damage::LogTail, Damage::State, Damage::LogCut, Damage::LogFacts, Damage::Snapshot, Damage::LogTable];

/// Every file with content below a folder whose name ends so, smallest first.
fn files(folder: &Path, suffix: &str) -> Result<Vec<PathBuf>> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let meta = fs::metadata(&path)?;
            if meta.is_dir() {
                folders.push(path);
            } else if meta.len() > 0 && path.to_string_lossy().ends_with(suffix) {
                found.push((meta.len(), path));
            }
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// The write-ahead file that was written last: their names are numbers of equal length.
fn newest_log(data_dir: &Path) -> Result<PathBuf> {
    files(&data_dir.join("log"), ".log")?.into_iter().max().context("the log has no write-ahead file with content")
}

fn any(rng: &mut Rng, files: Vec<PathBuf>) -> Option<PathBuf> {
    let at = usize::try_from(rng.below(files.len() as u64)).ok()?;
    files.into_iter().nth(at)
}

/// Turns one bit. Done twice it is as before.
fn flip(path: &Path, bit: u64) -> Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, bit / 8)?;
    file.write_all_at(&[byte[0] ^ (1_u8 << (bit % 8))], bit / 8)?;
    Ok(file.sync_all()?)
}

impl Damage {
    /// Does it; says what was done.
    fn inflict(self, data_dir: &Path, rng: &mut Rng) -> Result<String> {
        let tables = |folder: &str| files(&data_dir.join(folder), ".sst");
        let file = match self {
            Damage::LogTail | Damage::LogCut => None,
            Damage::LogFacts => tables("log")?.into_iter().next(),
            Damage::LogTable => any(rng, tables("log")?),
            Damage::State => any(rng, tables("state")?),
            Damage::Snapshot => any(rng, files(&data_dir.join("snapshots"), "")?),
        };
        // A node that ran for a short time may have no such file yet.
        let file = file.map_or_else(|| newest_log(data_dir), Ok)?;
        let (name, bytes) = (file.display(), fs::metadata(&file)?.len());
        if matches!(self, Damage::LogCut) {
            let left = rng.below(bytes);
            OpenOptions::new().write(true).open(&file)?.set_len(left)?;
            return Ok(format!("{self:?}: {name} cut from {bytes} to {left} bytes"));
        }
        let bit = rng.below(bytes * 8);
        flip(&file, bit)?;
        Ok(format!("{self:?}: {name}, bit {bit} of byte {}", bit / 8))
    }
}

/// How a node with damaged data fared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Refused,
    /// What was damaged is not read, or does not matter: an end of the log that never was acknowledged.
    Equal,
}

/// Whether the node has refused its data; an end without a word of what to do is an error.
fn has_refused(cluster: &mut LocalCluster, id: u64, mark: Mark) -> Result<bool> {
    let ended = cluster.exited(id)?;
    let said = cluster.logs_since(id, mark);
    match ended {
        Some(status) => {
            ensure!(!status.success() && said.contains(REMEDY), "node {id} ended with {status}:\n{said}");
            Ok(true)
        }
        None => Ok(said.contains(REMEDY)),
    }
}

/// Waits until the node is ready or has refused.
async fn comes_up(cluster: &mut LocalCluster, id: u64, mark: Mark) -> Result<Fate> {
    let (address, began) = (cluster.http(id)?, Instant::now());
    loop {
        if has_refused(cluster, id, mark)? {
            return Ok(Fate::Refused);
        }
        if matches!(http::get(&address, "/health/ready").await, Ok((200, _))) {
            return Ok(Fate::Equal);
        }
        let waited = began.elapsed();
        ensure!(waited < LIMIT, "node {id} neither works nor refuses:\n{}", cluster.logs_since(id, mark));
        tokio::time::sleep(POLL).await;
    }
}

/// Lets a ready node read every row it has. It may find the damage now; another digest than the others' is the one thing
/// that must never be.
async fn reads_all(cluster: &mut LocalCluster, id: u64, mark: Mark) -> Result<Fate> {
    let began = Instant::now();
    loop {
        if has_refused(cluster, id, mark)? {
            return Ok(Fate::Refused);
        }
        if cluster.wait_converged(Duration::ZERO).await.is_ok() {
            match cluster.digests(true).await {
                Ok(digests) => {
                    let same = digests.windows(2).all(|pair| (pair[0].1, &pair[0].2) == (pair[1].1, &pair[1].2));
                    ensure!(same, "wrong data is served: {digests:?}");
                    return Ok(Fate::Equal);
                }
                // An answer that says so is as good as an end that does.
                Err(error) if format!("{error:#}").to_lowercase().contains("corrupt") => return Ok(Fate::Refused),
                Err(_) => {}
            }
        }
        let waited = began.elapsed();
        ensure!(waited < LIMIT, "node {id} neither reads its rows nor refuses:\n{}", cluster.logs_since(id, mark));
        tokio::time::sleep(POLL).await;
    }
}

/// As an operator does it: with the flag that the refusal names, where the state does not even say who the others are.
async fn rebuild(cluster: &LocalCluster, data_dir: &Path) -> Result<()> {
    let dir = data_dir.to_str().context("an unusual path")?;
    let ran = cluster.cli(&["cluster", "rebuild", "--data-dir", dir]).await?;
    if ran.code == 0 {
        return Ok(());
    }
    let said = ran.refused()?;
    ensure!(said.contains("--others-have-it"), "refused for another reason: {said}");
    cluster.cli(&["cluster", "rebuild", "--data-dir", dir, "--others-have-it"]).await?.succeeded()?;
    Ok(())
}

/// Damages one node under writes, and rebuilds it.
async fn round(cluster: &mut LocalCluster, client: &Client, n: u64, rng: &mut Rng) -> Result<Fate> {
    let damage = DAMAGES[usize::try_from(n)? % DAMAGES.len()];
    let victim = 1 + rng.below(3);
    let load = Steady::start(client, WRITERS, &format!("round-{n}")).await?;
    if rng.below(2) == 0 {
        cluster.kill(victim)?;
    } else {
        cluster.terminate(victim).await?;
    }
    // The other two have a leader before the damaged one comes: it cannot help to elect one that lacks something.
    load.wait_success().await?;
    let data_dir = cluster.data_dir(victim)?.to_owned();
    let done = damage.inflict(&data_dir, rng)?;
    let mark = cluster.log_mark(victim);
    cluster.start(victim)?;
    let mut fate = comes_up(cluster, victim, mark).await?;
    load.wait_success().await?;
    let outcome = load.stop().await?;
    if fate == Fate::Equal {
        fate = reads_all(cluster, victim, mark).await?;
    }
    eprintln!("round {n}, node {victim}: {done}: {fate:?}; {}", outcome.summary());
    cluster.kill(victim)?;
    for id in cluster.running() {
        ensure!(cluster.exited(id)?.is_none(), "node {id} ended too:\n{}", cluster.logs_tail(id)?);
    }
    outcome.check_none_failed()?;

    rebuild(cluster, &data_dir).await?;
    cluster.restart(victim).await.context("after rebuild")?;
    cluster.check_replicas_equal().await.context("after rebuild")?;
    outcome.check_kept(client).await?;
    Ok(fate)
}

fn flags() -> [&'static str; 4] {
    ["--snapshot-every", "100", "--log-keep", "50"]
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_on_one_disk_is_told_or_harmless_and_the_others_go_on() -> Result<()> {
    let rounds = env_u64("QUORATE_ROUNDS", DAMAGES.len() as u64);
    let mut rng = Rng::new(seed());
    let mut cluster = LocalCluster::builder().extra_args(flags()).start().await?;
    let client = cluster.client()?;
    load::fill(&client, "state", 1).await?;
    let mut refused = 0;
    for n in 0..rounds {
        if round(&mut cluster, &client, n, &mut rng).await.with_context(|| format!("round {n}"))? == Fate::Refused {
            refused += 1;
        }
    }
    eprintln!("{refused} of {rounds} damages were refused, the others harmless");
    cluster.close()
}

/// A client that gives up soon.
fn hasty(cluster: &LocalCluster) -> Result<Client> {
    let mut config = Config::new(cluster.endpoints());
    config.call_timeout = Duration::from_secs(3);
    config.attempt_timeout = Duration::from_secs(2);
    Ok(Client::connect(config)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_majority_refuses_and_what_is_mended_is_whole() -> Result<()> {
    let mut cluster = LocalCluster::builder().extra_args(flags()).start().await?;
    let client = cluster.client()?;
    let load = Steady::start(&client, WRITERS, "majority").await?;
    load.wait_success().await?;
    let acked = load.stop().await?.acked;
    cluster.kill_all()?;

    // The first record of the file without which the log cannot be opened at all.
    let mut turned = Vec::new();
    for id in [1, 2] {
        for file in files(&cluster.data_dir(id)?.join("log"), "")? {
            if file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("MANIFEST-")) {
                flip(&file, 8 * 12)?;
                turned.push(file);
            }
        }
    }
    ensure!(turned.len() >= 2, "not every log has a manifest: {turned:?}");
    let marks = [1, 2].map(|id| (id, cluster.log_mark(id)));
    for id in cluster.node_ids() {
        cluster.start(id)?;
    }
    for (id, mark) in marks {
        let fate = comes_up(&mut cluster, id, mark).await?;
        ensure!(fate == Fate::Refused, "node {id} works with a damaged log");
    }
    cluster.wait_live(3).await?;
    let address = cluster.http(3)?;
    until("the last node says that it is not ready", LIMIT, || async {
        Ok(http::get(&address, "/health/ready").await.is_ok_and(|(code, _)| code == 503).then_some(()))
    })
    .await?;
    let alone = hasty(&cluster)?;
    let one = acked.first().context("nothing was acknowledged")?;
    match alone.tasks().get(one).await {
        Err(Error::Unavailable { .. }) => {}
        other => bail!("a read without a majority gave {other:?}"),
    }
    let written = alone.tasks().submit_one(tasks::spec("alone", "nobody")).await;
    let refused = matches!(written, Err(Error::Unavailable { .. } | Error::OutcomeUnknown { .. }));
    ensure!(refused, "a write without a majority gave {written:?}");

    // Refusing has changed nothing: with the bits turned back, all is there.
    cluster.kill_all()?;
    for file in &turned {
        flip(file, 8 * 12)?;
    }
    cluster.start_all().await?;
    gaps::check_kept(&client, &acked).await?;
    cluster.check_replicas_equal().await?;
    cluster.close()
}
