//! Watchers against the history: whatever happens to the nodes, each is told every event that it asked for, once and in
//! order; and where that cannot be, because the history was compacted, it is told so.
//!
//! Six watchers know one node only, and must find their place again when it returns; two know all nodes, and must find it
//! at another. Needs Linux: see [`quorate_jepsen::links`].

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use prost::Message;
use quorate_client::v1::{Event, EventKind, EventsRequest, KvEntry, KvListRequest, WatchFilter, WatchRequest};
use quorate_client::{Client, Config, Error};
use quorate_jepsen::events::{self, History};
use quorate_jepsen::rng::{Rng, env_u64, seed};
use quorate_jepsen::until::until;
use quorate_jepsen::witness::Witness;
use quorate_jepsen::{LocalCluster, faults, tasks};
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::{Code, Status};

const LIMIT: Duration = Duration::from_secs(60);
/// Between two writes of one writer: enough revs to fill several pages, few enough to compare them all.
const PACE: Duration = Duration::from_millis(2);
/// Documents of one writer: each is written and removed many times.
const KEYS: u64 = 40;
const LOCKS: u64 = 2;
/// Longer than the faults, so that the lockers keep their sessions.
const SESSION: Duration = Duration::from_secs(60);
/// Each writer must have got so far, or the test says little.
const FEWEST_WRITES: u64 = 20;
/// So many revs happen while a node is cut off or stopped.
const MEANWHILE: u64 = 100;
/// Nobody will have written so much by the end.
const FAR_AHEAD: u64 = 1 << 40;

/// Writers of documents, tasks and locks.
struct Writers {
    stop: watch::Sender<bool>,
    running: Vec<JoinHandle<Result<u64>>>,
}

impl Writers {
    fn start(cluster: &LocalCluster, seed: u64) -> Result<Self> {
        let mut config = Config::new(cluster.endpoints());
        // A node that is cut off answers nothing: the writers shall be elsewhere soon.
        config.attempt_timeout = Duration::from_secs(1);
        let client = Client::connect(config)?;
        let (stop, stopped) = watch::channel(false);
        let mut running = vec![tokio::spawn(write_tasks(client.clone(), stopped.clone()))];
        for n in 0..2 {
            running.push(tokio::spawn(write_documents(client.clone(), n, Rng::new(seed ^ n), stopped.clone())));
            running.push(tokio::spawn(take_locks(client.clone(), Rng::new(seed ^ n), stopped.clone())));
        }
        Ok(Self { stop, running })
    }

    async fn stop(self) -> Result<()> {
        self.stop.send_replace(true);
        let mut acknowledged = Vec::new();
        for writer in self.running {
            acknowledged.push(writer.await??);
        }
        eprintln!("acknowledged writes: {acknowledged:?}");
        ensure!(acknowledged.iter().all(|count| *count >= FEWEST_WRITES), "too few writes to say anything");
        Ok(())
    }
}

/// 1 for an acknowledged write, 0 for one that got no answer.
fn counted<T>(written: Result<T, Error>) -> Result<u64> {
    match written {
        Ok(_) => Ok(1),
        Err(Error::Unavailable { .. } | Error::OutcomeUnknown { .. }) => Ok(0),
        Err(error) => Err(error).context("a write was refused"),
    }
}

async fn write_documents(client: Client, n: u64, mut rng: Rng, stopped: watch::Receiver<bool>) -> Result<u64> {
    let mut acknowledged = 0;
    while !*stopped.borrow() {
        let key = document(n, rng.below(KEYS));
        acknowledged += if rng.below(4) == 0 {
            counted(client.kv().delete(key).send().await)?
        } else {
            let value = rng.next_u64().to_string();
            counted(client.kv().put(key, value).send().await)?
        };
        tokio::time::sleep(PACE).await;
    }
    Ok(acknowledged)
}

async fn write_tasks(client: Client, stopped: watch::Receiver<bool>) -> Result<u64> {
    let (mut acknowledged, mut n) = (0, 0);
    while !*stopped.borrow() {
        n += 1;
        let spec = tasks::spec(format!("task-{n}"), "nobody");
        acknowledged += counted(client.tasks().submit_one(spec).await)?;
        tokio::time::sleep(PACE).await;
    }
    Ok(acknowledged)
}

/// Takes and gives back locks that others take too. What comes of each is not of interest, only that it is told.
async fn take_locks(client: Client, mut rng: Rng, stopped: watch::Receiver<bool>) -> Result<u64> {
    let session = client.sessions().open(SESSION).await?;
    let mut acknowledged = 0;
    while !*stopped.borrow() {
        let name = format!("lock-{}", rng.below(LOCKS));
        if let Ok(guard) = client.locks().lock(&session, name).wait(Duration::from_secs(1)).acquire().await {
            acknowledged += u64::from(guard.release().await.is_ok());
        }
        tokio::time::sleep(PACE).await;
    }
    // What of the session is left would go on at some time after the test has looked.
    session.close().await?;
    Ok(acknowledged)
}

fn document(writer: u64, n: u64) -> String {
    format!("documents-{writer}/{n}")
}

fn only(room: &str, key: &str, prefix: &str) -> WatchFilter {
    WatchFilter { room: room.to_owned(), key: key.to_owned(), prefix: prefix.to_owned() }
}

fn from(from_rev: u64, filters: Vec<WatchFilter>) -> WatchRequest {
    WatchRequest { from_rev, filters, ..WatchRequest::default() }
}

/// A watcher that knows one node, or all of them.
fn witness(cluster: &LocalCluster, node: Option<u64>, what: &str, request: WatchRequest) -> Result<Witness> {
    let (endpoints, place) = match node {
        Some(id) => (vec![cluster.endpoint(id)?], format!("node {id}")),
        None => (cluster.endpoints(), "any node".to_owned()),
    };
    let client = Client::connect(Config::new(endpoints))?;
    Ok(Witness::start(format!("{what} at {place}"), &client, request))
}

/// Two at each node, and two that move. `rev`: something happened up to here.
fn eight(cluster: &LocalCluster, rev: u64) -> Result<Vec<Witness>> {
    let at = |node: Option<u64>, what: &str, request: WatchRequest| witness(cluster, node, what, request);
    let mixed = vec![only("kv", &document(0, 0), ""), only("locks", "", "lock-")];
    let keys_only = WatchRequest { keys_only: true, ..from(1, vec![only("tasks", "", ""), only("kv", "", "")]) };
    Ok(vec![
        at(None, "everything from the beginning", from(1, vec![]))?,
        at(None, "one document and the locks", from(rev / 2, mixed))?,
        at(Some(1), "everything from the beginning", from(1, vec![]))?,
        at(Some(1), "documents from now on", from(0, vec![only("kv", "", "")]))?,
        at(Some(2), "tasks from the next rev on", from(rev + 1, vec![only("tasks", "", "")]))?,
        at(Some(2), "one writer's documents", from(rev / 2, vec![only("kv", "", "documents-1/")]))?,
        at(Some(3), "locks from now on", from(0, vec![only("locks", "", "")]))?,
        at(Some(3), "keys of tasks and documents", keys_only)?,
    ])
}

/// So many documents at first, for watchers that begin in the past. Gives the last one's rev.
async fn write_some(client: &Client) -> Result<u64> {
    let mut rev = 0;
    for n in 0..2 * KEYS {
        rev = client.kv().put(document(n % 2, n / 2), "first").send().await?.rev;
    }
    Ok(rev)
}

/// The writers go on at a majority: so many more revs at this node.
async fn goes_on(cluster: &LocalCluster, node: u64) -> Result<()> {
    let rev = cluster.status(node).await?.rev;
    until("the writers go on", LIMIT, || async {
        let status = cluster.status(node).await;
        Ok(status.ok().filter(|status| status.rev >= rev + MEANWHILE).map(|_| ()))
    })
    .await
}

async fn isolate_leader(cluster: &mut LocalCluster) -> Result<()> {
    let old = cluster.leader().await?;
    cluster.links()?.isolate(old);
    let rest: &LocalCluster = cluster;
    let new = until("another node leads", LIMIT, || async { Ok(rest.leader_except(old).await) }).await?;
    let gone_on = goes_on(cluster, new).await;
    cluster.links()?.heal();
    gone_on?;
    cluster.wait_all_ready().await
}

/// A follower that does not answer, nor close anything: a watcher that can leave it must.
async fn stop_follower(cluster: &mut LocalCluster, free: &[Witness]) -> Result<()> {
    let leader = cluster.leader().await?;
    let follower = *cluster.followers().await?.first().context("no follower")?;
    let process = Pid::from_raw(cluster.pid(follower)?.cast_signed()).context("no process")?;
    kill_process(process, Signal::STOP)?;
    let left = async {
        goes_on(cluster, leader).await?;
        let rev = cluster.status(leader).await?.rev;
        for witness in free {
            witness.wait_through(rev, LIMIT).await?;
        }
        anyhow::Ok(())
    };
    let left = left.await;
    kill_process(process, Signal::CONT)?;
    left?;
    cluster.wait_all_ready().await
}

/// A follower loses its disk and comes back by a snapshot, which must bring the history along.
async fn wipe_follower(cluster: &mut LocalCluster) -> Result<u64> {
    let victim = *cluster.followers().await?.last().context("no follower")?;
    cluster.kill(victim)?;
    cluster.wipe(victim)?;
    let rest: &LocalCluster = cluster;
    let purged = until("the log is purged on every running node", LIMIT, || async {
        let mut lowest = u64::MAX;
        for id in rest.running() {
            lowest = lowest.min(rest.status(id).await?.purged_index);
        }
        Ok((lowest > 0).then_some(lowest))
    })
    .await?;
    cluster.restart(victim).await?;
    let rest: &LocalCluster = cluster;
    until("it has come back by a snapshot", LIMIT, || async {
        Ok((rest.status(victim).await?.snapshot_index >= purged).then_some(victim))
    })
    .await
}

/// The history of each node up to the rev, which must be the same. Gives it once.
async fn one_history(cluster: &LocalCluster, rev: u64) -> Result<History> {
    let mut known: Option<History> = None;
    for id in cluster.node_ids() {
        let history = events::read(&cluster.endpoint(id)?, rev).await?;
        if let Some(known) = &known {
            let same = known.oldest_rev == history.oldest_rev && known.events == history.events;
            ensure!(same, "node {id} has {} events, others {}", history.events.len(), known.events.len());
        }
        known = Some(history);
    }
    known.context("no node")
}

/// The documents that come of all events, applied in order to nothing.
fn replayed(history: &[Event]) -> Result<BTreeMap<String, KvEntry>> {
    let mut documents = BTreeMap::new();
    for event in history.iter().filter(|event| event.room == "kv") {
        match event.kind() {
            EventKind::Put => {
                let entry = KvEntry::decode(event.value.clone())?;
                ensure!(entry.key == event.key, "{} holds {}", events::brief(event), entry.key);
                documents.insert(event.key.clone(), entry);
            }
            EventKind::Delete => {
                let before = documents.remove(&event.key);
                ensure!(before.is_some(), "{}: there was none", events::brief(event));
            }
            EventKind::Unspecified => bail!("{}", events::brief(event)),
        }
    }
    Ok(documents)
}

async fn listed(client: &Client) -> Result<BTreeMap<String, KvEntry>> {
    let mut documents = BTreeMap::new();
    let mut request = KvListRequest { limit: 1_000, ..KvListRequest::default() };
    loop {
        let page = client.kv().list(request.clone()).await?;
        documents.extend(page.entries.into_iter().map(|entry| (entry.key.clone(), entry)));
        if page.next.is_empty() {
            return Ok(documents);
        }
        request.from = page.next;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_watcher_is_told_the_history_whatever_happens_to_the_nodes() -> Result<()> {
    let rounds = env_u64("QUORATE_WATCH_ROUNDS", 1);
    let flags = ["--snapshot-every", "500", "--log-keep", "200"];
    let mut cluster = LocalCluster::builder().with_links().extra_args(flags).start().await?;
    let client = cluster.client()?;
    let rev = write_some(&client).await?;
    let mut witnesses = eight(&cluster, rev)?;
    for now in [3, 6] {
        witnesses[now].wait_begun(LIMIT).await?;
    }
    let writers = Writers::start(&cluster, seed())?;
    for round in 1..=rounds {
        faults::replace_leader(&mut cluster).await?;
        cluster.wait_all_ready().await?;
        isolate_leader(&mut cluster).await?;
        stop_follower(&mut cluster, &witnesses[..2]).await?;
        let wiped = wipe_follower(&mut cluster).await?;
        // What was told before this node had a disk, told by it.
        witnesses.push(witness(&cluster, Some(wiped), "everything, late,", from(1, vec![]))?);
        eprintln!("round {round} of {rounds}: killed, isolated, stopped, wiped");
    }
    writers.stop().await?;
    cluster.check_replicas_equal().await?;

    let rev = cluster.status(cluster.leader().await?).await?.rev;
    let history = one_history(&cluster, rev).await?;
    ensure!(history.oldest_rev == 1, "the history begins at rev {}", history.oldest_rev);
    for witness in &witnesses {
        let count = witness.check(&history.events, rev, LIMIT).await?;
        ensure!(count > 0, "{}: there was nothing to tell", witness.name());
    }
    eprintln!("{} events up to rev {rev}, told to {} watchers", history.events.len(), witnesses.len());
    ensure!(replayed(&history.events)? == listed(&client).await?, "the events do not give the documents there are");
    cluster.close()
}

/// From where on the node says that it keeps the history.
fn oldest_said(status: &Status) -> Option<u64> {
    status.metadata().get("quorate-oldest-rev")?.to_str().ok()?.parse().ok()
}

/// What is gone is refused with what is left, by watch and by page, and so is what has not happened.
async fn check_bounds(cluster: &LocalCluster, id: u64) -> Result<()> {
    let mut node = events::connect(&cluster.endpoint(id)?).await?;
    let one = EventsRequest { limit: 1, ..EventsRequest::default() };
    let before = node.events(one.clone()).await?.into_inner().oldest_rev;
    let watched = node.watch(from(1, vec![])).await.err();
    let paged = node.events(EventsRequest { from_rev: 1, ..one.clone() }).await.err();
    let after = node.events(one).await?.into_inner();
    for status in [watched, paged] {
        let status = status.with_context(|| format!("node {id} gave what is gone"))?;
        ensure!(status.code() == Code::OutOfRange, "node {id}: {status:?}");
        let oldest =
            oldest_said(&status).with_context(|| format!("node {id} does not say what is left: {status:?}"))?;
        let kept = before..=after.oldest_rev;
        ensure!(kept.contains(&oldest), "node {id} says {oldest}, it keeps {kept:?}");
    }
    let ahead = node.watch(from(after.rev + FAR_AHEAD, vec![])).await.err();
    let status = ahead.with_context(|| format!("node {id} watches what has not happened"))?;
    ensure!(status.code() == Code::OutOfRange && oldest_said(&status).is_none(), "node {id}: {status:?}");
    Ok(())
}

/// The library passes the refusal on.
async fn check_library(client: &Client) -> Result<()> {
    let next = tokio::time::timeout(LIMIT, async { client.watch(from(1, vec![])).next().await }).await?;
    let Some(Err(Error::Compacted { oldest_rev, .. })) = next else { bail!("a watch from rev 1 gave {next:?}") };
    ensure!(oldest_rev > 1, "compacted up to rev {oldest_rev}");
    Ok(())
}

/// Waits until every node has forgotten the rev.
async fn compacted(cluster: &LocalCluster, rev: u64) -> Result<()> {
    for id in cluster.node_ids() {
        let node = events::connect(&cluster.endpoint(id)?).await?;
        until("the history is compacted", LIMIT, || {
            let page = EventsRequest { limit: 1, ..EventsRequest::default() };
            let mut node = node.clone();
            async move { Ok(node.events(page).await.ok().filter(|page| page.get_ref().oldest_rev > rev).map(|_| ())) }
        })
        .await?;
    }
    Ok(())
}

/// All that were told up to `end` were told the same, and one that was not missed something and knows it. What is left of
/// the history is the end of what they were told.
async fn check_agreement(cluster: &LocalCluster, witnesses: &[Witness], end: u64) -> Result<()> {
    let mut left = Vec::new();
    for id in cluster.node_ids() {
        let endpoint = cluster.endpoint(id)?;
        // While it is read, more may be compacted: then it is read anew.
        let read = until("what is left", LIMIT, || async { Ok(events::read(&endpoint, end).await.ok()) }).await?;
        ensure!(!read.events.is_empty(), "node {id} has forgotten what has just happened");
        left.push(read);
    }
    let mut told: Option<Vec<Event>> = None;
    for witness in witnesses.iter().filter(|witness| witness.ended().is_none()) {
        let reached = witness.wait_through(end, LIMIT).await;
        if witness.ended().is_some() {
            continue;
        }
        reached?;
        for history in &left {
            witness.compare(&history.events, end)?;
        }
        let one = witness.told(end);
        if let Some(told) = &told {
            ensure!(*told == one, "{}: {} events, another was told {}", witness.name(), one.len(), told.len());
        }
        told = Some(one);
    }
    let told = told.context("no watcher is left")?;
    for witness in witnesses {
        let Some(ended) = witness.ended() else { continue };
        let missed = matches!(ended, Error::Compacted { oldest_rev, .. } if oldest_rev > witness.through() + 1);
        ensure!(missed, "{} ended at rev {}: {ended:?}", witness.name(), witness.through());
        ensure!(told.starts_with(&witness.told(end)), "{} was told something else before it ended", witness.name());
    }
    eprintln!("{} events up to rev {end}, the same for all", told.len());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_compacted_is_refused_and_what_is_left_is_whole() -> Result<()> {
    let rounds = env_u64("QUORATE_WATCH_ROUNDS", 1);
    let mut cluster = LocalCluster::builder().extra_args(["--events-keep-ms", "3000"]).start().await?;
    let client = cluster.client()?;
    let writers = Writers::start(&cluster, seed())?;
    for _ in 0..rounds {
        let begin = client.kv().put("begin", "").send().await?.rev;
        let places = [None, Some(1), Some(2), Some(3)];
        let witnesses: Vec<Witness> = places
            .into_iter()
            .map(|node| witness(&cluster, node, "everything", from(begin, vec![])))
            .collect::<Result<_>>()?;
        faults::replace_leader(&mut cluster).await?;
        compacted(&cluster, begin).await?;
        for id in cluster.node_ids() {
            check_bounds(&cluster, id).await?;
        }
        check_library(&client).await?;
        let end = client.kv().put("end", "").send().await?.rev;
        check_agreement(&cluster, &witnesses, end).await?;
    }
    writers.stop().await?;
    cluster.check_replicas_equal().await?;
    cluster.close()
}
