//! Locks and scope leases on three nodes: one holder at a time, in the order of the line; whoever comes too late writes
//! nothing; and what the dead held is free again.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use futures::future::try_join_all;
use prost::Message;
use quorate_client::v1::{
    Event, EventKind, Fence, FinishKind, FinishTaskRequest, KvEntry, ListLocksRequest, Lock, RegisterAgentRequest,
    RejectionCode, WatchFilter,
};
use quorate_client::{Client, Config, Error, LockGuard, Session};
use quorate_jepsen::coordination::grants::{Change, Grants};
use quorate_jepsen::coordination::{Mortal, Progress, history, kill_leaders};
use quorate_jepsen::rng::{Rng, env_u64, seed};
use quorate_jepsen::until::until;
use quorate_jepsen::{LocalCluster, faults, tasks};
use tokio::sync::oneshot;

const LIMIT: Duration = Duration::from_secs(60);
/// Longer than the faults: no session ends here that is not meant to.
const LEASE: Duration = Duration::from_secs(60);
const LOCKS: [&str; 2] = ["lock-a", "lock-b"];
const REGISTERS: &str = "registers/";
const CONTENDERS: usize = 16;
/// One acquisition in so many is that of a holder who falls asleep.
const FREEZE_EVERY: u64 = 50;
/// How long the grant of such a holder lasts.
const SHORT: Duration = Duration::from_millis(200);
/// How soon the cluster misses a session whose holder died; longer than it takes to look before that.
const MISSED: Duration = Duration::from_secs(3);
const WAITERS: usize = 8;

/// The nodes, another first each time.
fn rotated(cluster: &LocalCluster, first: usize) -> Vec<String> {
    let mut endpoints = cluster.endpoints();
    let places = endpoints.len().max(1);
    endpoints.rotate_left(first % places);
    endpoints
}

/// Whether the call may have happened or not, and might be answered if it were made again.
fn is_open(error: &Error) -> bool {
    matches!(error, Error::Unavailable { .. } | Error::OutcomeUnknown { .. })
}

fn is_fenced<T>(answer: &Result<T, Error>) -> bool {
    matches!(answer, Err(Error::Fenced { .. }))
}

/// What a process left behind that took a lock and was killed, or sleeps.
struct Left {
    fence: Fence,
    owner: String,
}

/// Takes a lock in a process that dies with it: nobody extends it any more, and nobody gives it back. With `ttl` it is the
/// grant that ends then; the session, if it is somebody else's, lives on.
async fn take_and_die(
    endpoints: Vec<String>,
    session: Option<Session>,
    name: &'static str,
    ttl: Option<Duration>,
) -> Result<Left> {
    let (tell, told) = oneshot::channel();
    let holder = Mortal::start(async move {
        let client = Client::connect(Config::new(endpoints))?;
        let session = match session {
            Some(session) => session,
            None => client.sessions().open(MISSED).await?,
        };
        let guard = loop {
            let lock = client.locks().lock(&session, name).wait(LIMIT);
            let lock = if let Some(ttl) = ttl { lock.ttl(ttl) } else { lock };
            match lock.acquire().await {
                Ok(guard) => break guard,
                // A leader was lost in the middle. What may have been granted is withdrawn by the library.
                Err(error) if is_open(&error) => {}
                Err(error) => return Err(error).with_context(|| format!("{name} was refused")),
            }
        };
        // If the test has failed meanwhile, there is nobody to tell.
        let _ = tell.send(Left { fence: guard.fence(), owner: guard.owner().to_owned() });
        std::future::pending::<()>().await;
        drop(guard);
        Ok(())
    })?;
    match told.await {
        Ok(left) => {
            holder.kill();
            Ok(left)
        }
        Err(_) => Err(holder.end().await.err().unwrap_or_else(|| anyhow!("the holder ended before it held {name}"))),
    }
}

/// What all contenders share.
struct Contest {
    total: u64,
    begun: AtomicU64,
    progress: Progress,
}

/// What one contender knows afterwards, by lock and token.
#[derive(Default)]
struct Known {
    /// With who held it.
    granted: BTreeSet<(String, u64, String)>,
    written: BTreeSet<(String, u64)>,
    refused: BTreeSet<(String, u64)>,
}

struct Contender {
    client: Client,
    session: Session,
    endpoints: Vec<String>,
    rng: Rng,
    known: Known,
}

impl Contender {
    async fn new(cluster: &LocalCluster, number: usize, seed: u64) -> Result<Self> {
        let endpoints = rotated(cluster, number);
        let client = Client::connect(Config::new(endpoints.clone()))?;
        let session = client.sessions().open(LEASE).await?;
        let rng = Rng::new(seed ^ number as u64);
        Ok(Self { client, session, endpoints, rng, known: Known::default() })
    }

    async fn contend(mut self, contest: Arc<Contest>) -> Result<Known> {
        while contest.begun.fetch_add(1, Ordering::Relaxed) < contest.total {
            let name = LOCKS[self.rng.below(LOCKS.len() as u64) as usize];
            if self.rng.below(FREEZE_EVERY) == 0 {
                self.freeze(name).await?;
            } else {
                self.write_in_time(name).await?;
            }
            contest.progress.add(1);
        }
        self.session.close().await?;
        Ok(self.known)
    }

    async fn acquire(&self, name: &str) -> Result<LockGuard> {
        loop {
            match self.client.locks().lock(&self.session, name).wait(LIMIT).acquire().await {
                Ok(guard) => return Ok(guard),
                // What may have been granted is withdrawn by the library.
                Err(error) if is_open(&error) => {}
                Err(error) => return Err(error).with_context(|| format!("{name} was refused")),
            }
        }
    }

    /// Writes while it holds the lock.
    async fn write_in_time(&mut self, name: &str) -> Result<()> {
        let guard = self.acquire(name).await?;
        let grant = (name.to_owned(), guard.token());
        self.known.granted.insert((name.to_owned(), guard.token(), guard.owner().to_owned()));
        match self.write(name, guard.fence(), guard.owner()).await {
            Ok(()) => {
                self.known.written.insert(grant);
            }
            Err(error) if is_open(&error) => {}
            Err(error) => return Err(error).with_context(|| format!("the holder of {name} could not write")),
        }
        match guard.release().await {
            Err(error) if !is_open(&error) => Err(error).with_context(|| format!("{name} was lost")),
            _ => Ok(()),
        }
    }

    /// Takes the lock, sleeps until it is over, and writes without knowing.
    async fn freeze(&mut self, name: &'static str) -> Result<()> {
        let left = take_and_die(self.endpoints.clone(), Some(self.session.clone()), name, Some(SHORT)).await?;
        let token = left.fence.token;
        self.known.granted.insert((name.to_owned(), token, left.owner.clone()));
        until(&format!("the time of token {token} of {name} is up"), LIMIT, || async {
            let lock = self.client.locks().get(name).await?.lock.unwrap_or_default();
            Ok(lock.holders.iter().all(|holder| holder.token != token).then_some(()))
        })
        .await?;
        let late = self.write(name, left.fence, &left.owner).await;
        ensure!(is_fenced(&late), "what token {token} of {name} wrote too late gave {late:?}");
        self.known.refused.insert((name.to_owned(), token));
        Ok(())
    }

    async fn write(&self, name: &str, fence: Fence, owner: &str) -> Result<(), Error> {
        let token = fence.token.to_string();
        let kv = self.client.fenced([fence])?.kv();
        kv.put(format!("{REGISTERS}{name}"), token).updated_by(owner).request(&self.session).send().await.map(drop)
    }
}

/// What an event says of a lock or of its register.
fn change(event: &Event) -> Result<Change> {
    match (event.room.as_str(), event.kind()) {
        ("locks", EventKind::Put) => {
            let lock = Lock::decode(event.value.clone())?;
            Ok(Change::Lock { rev: event.rev, at_ms: event.at_ms, lock })
        }
        ("locks", EventKind::Delete) => Ok(Change::Free(event.key.clone())),
        ("kv", EventKind::Put) => {
            let entry = KvEntry::decode(event.value.clone())?;
            let name = event.key.strip_prefix(REGISTERS).context("not a register")?.to_owned();
            let token = std::str::from_utf8(&entry.value)?.parse()?;
            Ok(Change::Write { name, token, by: entry.updated_by })
        }
        _ => bail!("nobody did this: {event:?}"),
    }
}

async fn replayed(client: &Client) -> Result<Grants> {
    let filter = |room: &str, prefix: &str| WatchFilter {
        room: room.to_owned(),
        prefix: prefix.to_owned(),
        ..WatchFilter::default()
    };
    let events = history(client, vec![filter("locks", "lock-"), filter("kv", REGISTERS)]).await?;
    let changes = events.iter().map(change).collect::<Result<Vec<_>>>()?;
    Grants::replay(changes)
}

/// What the contenders know is what the history says.
fn check(known: &[Known], grants: &Grants) -> Result<()> {
    for (name, token, owner) in known.iter().flat_map(|known| &known.granted) {
        let by = grants.granted.get(&(name.clone(), *token));
        ensure!(by == Some(owner), "token {token} of {name} went to {owner}, the history says {by:?}");
    }
    for write in known.iter().flat_map(|known| &known.written) {
        ensure!(grants.written.contains(write), "an acknowledged write is gone: {write:?}");
    }
    for write in known.iter().flat_map(|known| &known.refused) {
        ensure!(!grants.written.contains(write), "a refused write is there: {write:?}");
    }
    ensure!(grants.still_held().is_empty(), "still held: {:?}", grants.still_held());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_holds_at_a_time_in_turn_and_who_is_late_writes_nothing() -> Result<()> {
    let seed = seed();
    let (total, kills) = (env_u64("QUORATE_ACQUISITIONS", 600), env_u64("QUORATE_KILLS", 2));
    let mut cluster = LocalCluster::builder().start().await?;
    let client = cluster.client()?;
    let contest = Arc::new(Contest { total, begun: AtomicU64::new(0), progress: Progress::of(total) });
    let contenders = try_join_all((0..CONTENDERS).map(|number| Contender::new(&cluster, number, seed))).await?;
    let began = Instant::now();
    let contending = contenders.into_iter().map(|contender| contender.contend(Arc::clone(&contest)));
    let running = tokio::spawn(try_join_all(contending.collect::<Vec<_>>()));
    let killed = kill_leaders(&mut cluster, kills, &contest.progress, &running).await?;
    let known = running.await??;
    let took = began.elapsed();
    until("every lock is free", LIMIT, || async {
        Ok(client.locks().list(ListLocksRequest::default()).await?.locks.is_empty().then_some(()))
    })
    .await?;

    let grants = replayed(&client).await?;
    check(&known, &grants)?;
    let late: usize = known.iter().map(|known| known.refused.len()).sum();
    let (granted, in_turn) = (grants.granted.len(), grants.in_turn);
    eprintln!("{granted} grants in {took:?}, {in_turn} from hand to hand, {late} too late, {killed} leaders killed");
    ensure!(killed == kills, "only {killed} of {kills} leaders were killed");
    ensure!(granted as u64 >= total && in_turn > 0, "too little happened to say anything");
    ensure!(late > 0 || total < 10 * FREEZE_EVERY, "nobody was late");
    cluster.check_replicas_equal().await?;
    cluster.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_first_is_served_first_whoever_leads() -> Result<()> {
    let mut cluster = LocalCluster::builder().start().await?;
    let client = cluster.client()?;
    let session = client.sessions().open(LEASE).await?;
    let first = client.locks().lock(&session, "line").acquire().await?;
    let served = Arc::new(Mutex::new(Vec::new()));
    let mut waiting = Vec::new();
    for number in 0..WAITERS {
        let own = Client::connect(Config::new(rotated(&cluster, number)))?;
        waiting.push(tokio::spawn(wait_in_line(own, number, Arc::clone(&served))));
        until(&format!("{number} stands in line"), LIMIT, || async {
            let lock = client.locks().get("line").await?.lock.unwrap_or_default();
            Ok((lock.waiters.len() == number + 1).then_some(()))
        })
        .await?;
    }
    let line = |lock: Option<Lock>| -> Vec<(String, u64)> {
        lock.unwrap_or_default().waiters.into_iter().map(|waiter| (waiter.owner, waiter.ticket)).collect()
    };
    let before = line(client.locks().get("line").await?.lock);
    faults::replace_leader(&mut cluster).await?;
    let after = line(client.locks().get("line").await?.lock);
    ensure!(before == after, "the line was {before:?} and is {after:?}");
    let owners: Vec<String> = before.into_iter().map(|(owner, _)| owner).collect();
    ensure!(owners == (0..WAITERS).map(owner_of).collect::<Vec<_>>(), "the line is {owners:?}");

    let mut newest = first.token();
    first.release().await?;
    for waited in waiting {
        let token = waited.await??;
        ensure!(token > newest, "token {token} after {newest}");
        newest = token;
    }
    let served = served.lock().unwrap_or_else(PoisonError::into_inner).clone();
    ensure!(served == (0..WAITERS).collect::<Vec<_>>(), "served in the order {served:?}");
    session.close().await?;
    cluster.check_replicas_equal().await?;
    cluster.close()
}

fn owner_of(number: usize) -> String {
    format!("waiter-{number}")
}

/// Gives the token that it was granted.
async fn wait_in_line(client: Client, number: usize, served: Arc<Mutex<Vec<usize>>>) -> Result<u64> {
    let session = client.sessions().open(LEASE).await?;
    let guard = client.locks().lock(&session, "line").owner(owner_of(number)).wait(LIMIT).acquire().await?;
    let token = guard.token();
    served.lock().unwrap_or_else(PoisonError::into_inner).push(number);
    guard.release().await?;
    session.close().await?;
    Ok(token)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_death_of_a_holder_frees_its_lock() -> Result<()> {
    let cluster = LocalCluster::builder().start().await?;
    let client = cluster.client()?;
    let session = client.sessions().open(LEASE).await?;
    let dead = take_and_die(cluster.endpoints(), None, "deploy", None).await?;
    let died = Instant::now();
    let refused = client.locks().lock(&session, "deploy").acquire().await;
    let names_it = matches!(&refused, Err(Error::Rejected { code: RejectionCode::FailedPrecondition, message, .. })
        if message.contains(&dead.owner));
    ensure!(names_it, "while it counted as alive, asking without waiting gave {refused:?}");

    let guard = client.locks().lock(&session, "deploy").wait(LIMIT).acquire().await?;
    eprintln!("free {} ms after the death of its holder", died.elapsed().as_millis());
    ensure!(guard.token() > dead.fence.token, "token {} after {}", guard.token(), dead.fence.token);
    let late = client.fenced([dead.fence])?.kv().put("deployed", "by the dead").request(&session).send().await;
    ensure!(is_fenced(&late), "the dead wrote: {late:?}");
    client.fenced([guard.fence()])?.kv().put("deployed", "by the living").request(&session).send().await?;
    guard.release().await?;
    session.close().await?;
    faults::sessions_end(&cluster, LIMIT).await?;
    cluster.check_replicas_equal().await?;
    cluster.close()
}

/// Registers an agent and lets it claim the one task there is. Gives the token of its attempt.
async fn begin_task(client: &Client, session: &Session, task_id: &str) -> Result<u64> {
    let agent_id = String::from("writer");
    let capabilities = vec!["work".to_owned()];
    let register = RegisterAgentRequest { agent_id: agent_id.clone(), capabilities, ..Default::default() };
    client.agents().register(session, register).await?;
    client.tasks().submit_one(tasks::spec(task_id, "work")).await?;
    let claimed = client.tasks().claim(session, &agent_id, 1, Duration::from_secs(10)).await?.tasks;
    let claim = claimed.into_iter().next().and_then(|task| task.claim);
    Ok(claim.with_context(|| format!("{task_id} was not claimed"))?.token)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_overlaps_is_told_who_is_in_the_way_until_that_ones_attempt_ends() -> Result<()> {
    const REALM: &str = "repo:web";
    const INNER: [&str; 2] = ["docs/api.md", "src/api/*.rs"];
    let mut cluster = LocalCluster::builder().start().await?;
    let client = cluster.client()?;
    let writer = client.sessions().open(LEASE).await?;
    let other = client.sessions().open(LEASE).await?;
    let token = begin_task(&client, &writer, "rewrite").await?;
    let lease = client.locks().acquire_scope(&writer, REALM, ["src/**"]).owner("writer").for_task("rewrite", token);
    let lease = lease.note("see 812").acquire().await?;

    faults::replace_leader(&mut cluster).await?;
    let refused = client.locks().acquire_scope(&other, REALM, INNER).owner("other").acquire().await;
    let Err(Error::Rejected { code: RejectionCode::FailedPrecondition, message, .. }) = &refused else {
        bail!("what overlaps gave {refused:?}");
    };
    for told in [writer.id(), "writer", "rewrite", "see 812", "src/**"] {
        ensure!(message.contains(told), "{told:?} is not told: {message}");
    }
    let beside = client.locks().acquire_scope(&other, REALM, ["docs/**", "README.md"]).owner("other").acquire().await?;
    let elsewhere = client.locks().acquire_scope(&other, "repo:app", ["src/**"]).owner("other").acquire().await?;
    let in_the_way = client.locks().scopes(REALM, ["src/api/users.rs"]).await?.leases;
    ensure!(in_the_way.len() == 1 && in_the_way[0].id == lease.id(), "in the way: {in_the_way:?}");
    client.fenced([lease.fence()])?.kv().put("page", "held").request(&writer).send().await?;

    let kind = FinishKind::Completed as i32;
    let finish = FinishTaskRequest { task_id: "rewrite".into(), token, kind, ..Default::default() };
    client.tasks().finish(Some(&writer), finish).await?;
    let taken = client.locks().acquire_scope(&other, REALM, INNER).owner("other").acquire().await?;
    ensure!(taken.token() > lease.token(), "token {} after {}", taken.token(), lease.token());
    let late = client.fenced([lease.fence()])?.kv().put("page", "late").request(&writer).send().await;
    ensure!(is_fenced(&late), "a lease that ended with its attempt wrote: {late:?}");
    let given_back = lease.release().await;
    ensure!(is_fenced(&given_back), "it was given back as if it were held: {given_back:?}");
    for lease in [beside, elsewhere, taken] {
        lease.release().await?;
    }
    let left = client.locks().scopes("", Vec::<String>::new()).await?.leases;
    ensure!(left.is_empty(), "leases that nobody holds: {left:?}");
    for session in [writer, other] {
        session.close().await?;
    }
    cluster.check_replicas_equal().await?;
    cluster.close()
}
