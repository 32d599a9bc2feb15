//! Documents on three nodes: writers at different nodes lose nothing to each other, what one node was told another says,
//! an agent that keeps its state in one takes every event once, and namespaces keep apart what they hold.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures::future::try_join_all;
use quorate_client::v1::kv_client::KvClient;
use quorate_client::v1::{
    BusMessage, KvEntry, KvGetRequest, KvMerge, KvPutRequest, KvPutResponse, PublishRequest, Quotas, RejectionCode,
    SubscriptionSpec,
};
use quorate_client::{Client, Config, ContinuousAgent, ContinuousReport, Error, Session, Step};
use quorate_jepsen::coordination::{
    Mortal, Progress, backlog, drained, insist, kill_leaders, only, standing, told as time_to_stop,
};
use quorate_jepsen::rng::env_u64;
use quorate_jepsen::{LocalCluster, faults, tasks};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tonic::{Code, Status};

const LIMIT: Duration = Duration::from_secs(60);
/// Longer than the faults: no session ends here that is not meant to.
const LEASE: Duration = Duration::from_secs(60);
const COUNTER: &str = "counter";
const LIST: &str = "list";
const AT_EACH_NODE: usize = 2;
const ROUNDS: usize = 5;
const AGENT: &str = "adder";
const OUTPUTS: &str = "outputs";
/// How soon the cluster misses an agent that died.
const MISSED: Duration = Duration::from_secs(1);
const CREDIT: u32 = 64;

/// A client that knows one node. The library would go to the leader.
struct Writer {
    name: String,
    kv: KvClient<Channel>,
    /// Kept alive elsewhere: its request ids are what is needed here.
    session: Session,
}

impl Writer {
    async fn at(cluster: &LocalCluster, node: u64, number: usize) -> Result<Self> {
        let session = cluster.client()?.sessions().open(LEASE).await?;
        let kv = KvClient::new(only(&cluster.endpoint(node)?)?);
        Ok(Self { name: format!("{node}-{number}"), kv, session })
    }

    async fn get(&self, key: &str) -> Result<Option<KvEntry>> {
        let request = KvGetRequest { key: key.to_owned(), ..Default::default() };
        let found = insist(&format!("{} reads {key}", self.name), LIMIT, || {
            let (mut kv, request) = (self.kv.clone(), request.clone());
            async move { kv.get(request).await }
        })
        .await?;
        match found {
            Ok(found) => Ok(found.entry),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(status.into()),
        }
    }

    /// Sends a write, always under the same request id, until this very node answers.
    async fn put(&self, request: KvPutRequest) -> Result<Result<KvPutResponse, Status>> {
        let id = self.session.next_request();
        let sequence = id.sequence;
        let request = KvPutRequest { updated_by: self.name.clone(), request: Some(id), ..request };
        let answer = insist(&format!("{} writes {}", self.name, request.key), LIMIT, || {
            let (mut kv, request) = (self.kv.clone(), request.clone());
            async move { kv.put(request).await }
        })
        .await;
        self.session.done(sequence);
        answer
    }

    /// Adds one, on condition that nobody else did meanwhile. Gives how often somebody had.
    async fn increment(&self) -> Result<u64> {
        let mut beaten = 0;
        loop {
            let found = self.get(COUNTER).await?;
            let value = found.as_ref().map_or(Ok(0), number_in)?;
            let if_mod_rev = found.map_or(0, |entry| entry.mod_rev);
            let put = KvPutRequest {
                key: COUNTER.to_owned(),
                value: (value + 1).to_string().into(),
                if_mod_rev,
                if_absent: if_mod_rev == 0,
                ..Default::default()
            };
            match self.put(put).await? {
                Ok(_) => return Ok(beaten),
                Err(status) if status.code() == Code::FailedPrecondition => beaten += 1,
                Err(status) => return Err(status.into()),
            }
        }
    }

    async fn append(&self, n: u64) -> Result<()> {
        let put = KvPutRequest {
            key: LIST.to_owned(),
            value: format!(r#"["{}/{n}"]"#, self.name).into(),
            merge: KvMerge::JsonAppend as i32,
            ..Default::default()
        };
        self.put(put).await??;
        Ok(())
    }

    /// Increments and appends in turn. Gives its name, and how often it was beaten.
    async fn write(self, each: u64, progress: Arc<Progress>) -> Result<(String, u64)> {
        let mut beaten = 0;
        for n in 0..each {
            beaten += self.increment().await?;
            self.append(n).await?;
            progress.add(1);
        }
        self.session.close().await?;
        Ok((self.name, beaten))
    }
}

fn number_in(entry: &KvEntry) -> Result<u64> {
    Ok(std::str::from_utf8(&entry.value)?.parse()?)
}

async fn document(client: &Client, key: &str) -> Result<KvEntry> {
    client.kv().get(key).await?.with_context(|| format!("there is no {key}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_at_three_nodes_lose_nothing_to_each_other() -> Result<()> {
    let (each, kills) = (env_u64("QUORATE_INCREMENTS", 40), env_u64("QUORATE_KILLS", 1));
    let mut cluster = LocalCluster::builder().start().await?;
    let client = cluster.client()?;
    let places = cluster.node_ids().into_iter().flat_map(|node| (0..AT_EACH_NODE).map(move |n| (node, n)));
    let writers = try_join_all(places.map(|(node, number)| Writer::at(&cluster, node, number))).await?;
    let total = each * writers.len() as u64;
    let progress = Arc::new(Progress::of(total));
    let writing = writers.into_iter().map(|writer| writer.write(each, Arc::clone(&progress)));
    let running = tokio::spawn(try_join_all(writing.collect::<Vec<_>>()));
    let killed = kill_leaders(&mut cluster, kills, &progress, &running).await?;
    let written = running.await??;

    let counter = document(&client, COUNTER).await?;
    let value = number_in(&counter)?;
    ensure!(value == total && counter.version == total, "{total} increments gave {value}, version {}", counter.version);
    let list = document(&client, LIST).await?;
    let elements: Vec<String> = serde_json::from_slice(&list.value)?;
    ensure!(elements.len() as u64 == total && list.version == total, "{} elements of {total}", elements.len());
    for (name, _) in &written {
        let own = elements.iter().filter_map(|element| element.strip_prefix(name.as_str())?.strip_prefix('/'));
        let own: Vec<&str> = own.collect();
        let expected: Vec<String> = (0..each).map(|n| n.to_string()).collect();
        ensure!(own == expected, "{name} appended {expected:?}; there is {own:?}");
    }
    let beaten: u64 = written.iter().map(|(_, beaten)| beaten).sum();
    eprintln!("{total} increments and as many appends, {beaten} refused in between, {killed} leaders killed");
    ensure!(beaten > 0 && killed == kills, "too little happened to say anything");
    cluster.check_replicas_equal().await?;
    cluster.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_node_was_told_every_other_says() -> Result<()> {
    let mut cluster = LocalCluster::builder().start().await?;
    let mut nodes = BTreeMap::new();
    for id in cluster.node_ids() {
        nodes.insert(id, Writer::at(&cluster, id, 0).await?);
    }
    let save = async |at: &Writer, text: &str| -> Result<()> {
        let (key, value) = ("plan".to_owned(), text.to_owned().into());
        at.put(KvPutRequest { key, value, ..Default::default() }).await??;
        Ok(())
    };
    for round in 0..ROUNDS {
        for (id, writer) in &nodes {
            let text = format!("round {round} at node {id}");
            save(writer, &text).await?;
            for (other, reader) in &nodes {
                let found = reader.get("plan").await?.context("nothing is there")?;
                ensure!(found.value == text, "saved as {text:?}, node {other} has {:?}", found.value);
                ensure!(found.updated_by == writer.name, "node {other} says that {} saved it", found.updated_by);
            }
        }
    }

    let gone = *cluster.followers().await?.first().context("no follower")?;
    save(nodes.get(&gone).context("no such node")?, "its last words").await?;
    cluster.kill(gone)?;
    for (id, reader) in nodes.iter().filter(|(id, _)| **id != gone) {
        let found = reader.get("plan").await?.context("nothing is there")?;
        ensure!(found.value == "its last words", "node {id} has {:?}", found.value);
    }
    cluster.restart(gone).await?;
    for writer in nodes.values() {
        writer.session.close().await?;
    }
    cluster.check_replicas_equal().await?;
    cluster.close()
}

/// What the agent makes of an event: its state is the sum of all numbers so far.
fn add(state: &[u8], event: &BusMessage) -> Result<Step, String> {
    let number = |text: &[u8]| -> Option<u64> { std::str::from_utf8(text).ok()?.parse().ok() };
    let before = if state.is_empty() { Some(0) } else { number(state) };
    let (before, n) = before.zip(number(&event.payload)).ok_or_else(|| format!("{state:?} and {event:?}"))?;
    let sum = before + n;
    Ok(Step::new(sum.to_string()).output(format!("{n} {sum}")))
}

/// Starts the agent in a place that can be killed.
fn start_agent(
    endpoints: Vec<String>,
    runs: Arc<AtomicU64>,
    mut stop: watch::Receiver<bool>,
) -> Result<Mortal<ContinuousReport>> {
    Mortal::start(async move {
        let client = Client::connect(Config::new(endpoints))?;
        let agent = ContinuousAgent::new(client, AGENT).session_ttl(MISSED);
        let stopping = async move { time_to_stop(&mut stop).await };
        let running = agent.run(
            move |state, event| {
                runs.fetch_add(1, Ordering::Relaxed);
                std::future::ready(add(&state, &event))
            },
            stopping,
        );
        Ok(running.await?)
    })
}

/// The numbers from 1 on, each once, in the order of one key.
async fn send_inputs(client: Client, inputs: u64) -> Result<()> {
    let queue = format!("agent.input.{AGENT}");
    for n in 1..=inputs {
        let message = BusMessage {
            id: format!("input-{n}"),
            subject: queue.clone(),
            order_key: AGENT.to_owned(),
            payload: n.to_string().into(),
            ..Default::default()
        };
        let request =
            PublishRequest { messages: vec![message], ensure_subscription: queue.clone(), ..Default::default() };
        client.bus().publish_all(None, request).await?;
    }
    Ok(())
}

/// Takes what the agent says until it said enough: by the number under which it was published.
async fn collect(client: Client, inputs: u64, progress: Arc<Progress>) -> Result<BTreeMap<u64, String>> {
    let session = client.sessions().open(LEASE).await?;
    let mut consumer = client.bus().consume(&session, OUTPUTS).credit(CREDIT).start();
    let mut said = BTreeMap::new();
    while (said.len() as u64) < inputs {
        let delivery = consumer.next().await.context("the outputs have ended")??;
        let text = std::str::from_utf8(&delivery.message().payload)?.to_owned();
        let known = said.insert(delivery.message().seq, text);
        ensure!(known.is_none(), "{known:?} was delivered twice");
        delivery.ack().await?;
        progress.add(1);
    }
    consumer.close().await?;
    session.close().await?;
    Ok(said)
}

/// Kills the agent as many times as asked, evenly over the work, and after each of the first `kills` deaths a leader too.
/// Gives the agent that is there at the end, and how many died.
async fn kill_agents(
    cluster: &mut LocalCluster,
    (deaths, kills): (u64, u64),
    start: impl Fn() -> Result<Mortal<ContinuousReport>>,
    progress: &Progress,
    running: &JoinHandle<Result<BTreeMap<u64, String>>>,
) -> Result<(Mortal<ContinuousReport>, u64)> {
    let mut agent = start()?;
    for died in 0..deaths {
        if !progress.reach(died + 1, deaths + 1, running).await? {
            return Ok((agent, died));
        }
        agent.kill();
        agent = start()?;
        if died < kills {
            faults::replace_leader(cluster).await?;
        }
    }
    Ok((agent, deaths))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_dies_takes_every_event_once() -> Result<()> {
    let inputs = env_u64("QUORATE_INPUTS", 200);
    let (deaths, kills) = (env_u64("QUORATE_DEATHS", 3), env_u64("QUORATE_KILLS", 1));
    let mut cluster = LocalCluster::builder().start().await?;
    let client = cluster.client()?;
    let patterns = vec![format!("agent.output.{AGENT}")];
    let outputs = SubscriptionSpec { name: OUTPUTS.to_owned(), patterns, ..Default::default() };
    client.bus().subscribe(outputs).await?;

    let progress = Arc::new(Progress::of(inputs));
    let collecting = tokio::spawn(collect(client.clone(), inputs, Arc::clone(&progress)));
    let sending = tokio::spawn(send_inputs(client.clone(), inputs));
    let (stop, stopped) = watch::channel(false);
    let (runs, endpoints) = (Arc::new(AtomicU64::new(0)), cluster.endpoints());
    let start = || start_agent(endpoints.clone(), Arc::clone(&runs), stopped.clone());
    let (agent, died) = kill_agents(&mut cluster, (deaths, kills), start, &progress, &collecting).await?;
    sending.await??;
    let said = collecting.await??;
    let input = format!("agent.input.{AGENT}");
    drained(&client, &input).await?;
    stop.send_replace(true);
    agent.end().await?;

    ensure!(died == deaths, "only {died} of {deaths} agents died");
    for (text, n) in said.into_values().zip(1_u64..) {
        let expected = format!("{n} {}", n * (n + 1) / 2);
        ensure!(text == expected, "where {expected:?} was to come, it said {text:?}");
    }
    check_once(&client, inputs).await?;
    eprintln!("{inputs} events, {deaths} deaths, {} runs of the handler", runs.load(Ordering::Relaxed));
    faults::sessions_end(&cluster, LIMIT).await?;
    cluster.check_replicas_equal().await?;
    cluster.close()
}

/// As many writes of the state, acknowledged events and outputs as there were events, and nothing besides.
async fn check_once(client: &Client, inputs: u64) -> Result<()> {
    let state = document(client, &format!("agents/{AGENT}/state")).await?;
    let sum = number_in(&state)?;
    ensure!(sum == inputs * (inputs + 1) / 2, "the state is {sum}");
    ensure!(state.version == inputs, "the state was written {} times", state.version);
    let (taken, _) = standing(client, &format!("agent.input.{AGENT}")).await?;
    let counts = (taken.published, taken.acked, taken.dead);
    ensure!(counts == (inputs, inputs, 0), "published, acknowledged, dead: {counts:?}");
    let (said, _) = standing(client, OUTPUTS).await?;
    let left = backlog(client, OUTPUTS).await?;
    ensure!((said.published, left) == (inputs, 0), "{} outputs, {left} of them left", said.published);
    Ok(())
}

fn is_refused<T>(answer: &Result<T, Error>, wanted: RejectionCode) -> bool {
    matches!(answer, Err(Error::Rejected { code, .. }) if *code == wanted)
}

/// The same ids mean something else in each of them.
async fn check_apart(blue: &Client, red: &Client) -> Result<()> {
    for (client, text) in [(blue, "blue"), (red, "red")] {
        client.kv().put("plan", text).send().await?;
        client.tasks().submit_one(tasks::spec("build", text)).await?;
    }
    for (client, text) in [(blue, "blue"), (red, "red")] {
        let entry = document(client, "plan").await?;
        ensure!(entry.value == text && entry.version == 1, "the plan of {text} is {entry:?}");
        let task = client.tasks().get("build").await?.task.context("no task")?;
        let needed = task.spec.unwrap_or_default().required_capabilities;
        ensure!(needed == [text], "the task of {text} is for {needed:?}");
    }
    let in_blue = blue.sessions().open(LEASE).await?;
    let in_red = red.sessions().open(LEASE).await?;
    let held = blue.locks().lock(&in_blue, "deploy").acquire().await?;
    let held_too = red.locks().lock(&in_red, "deploy").acquire().await?;
    let fenced = red.fenced([held.fence()])?.kv().put("plan", "of another").send().await;
    ensure!(matches!(fenced, Err(Error::Fenced { .. })), "a grant in blue let a write in red pass: {fenced:?}");

    let stranger = red.kv().put("plan", "of a stranger").session(&in_blue).send().await;
    ensure!(is_refused(&stranger, RejectionCode::NotFound), "a session of blue in red gave {stranger:?}");
    let stranger = red.locks().lock(&in_blue, "other").acquire().await;
    ensure!(is_refused(&stranger, RejectionCode::NotFound), "a session of blue in red gave {stranger:?}");

    let patterns = vec!["news".to_owned()];
    blue.bus().subscribe(SubscriptionSpec { name: "news".to_owned(), patterns, ..Default::default() }).await?;
    let news = BusMessage { subject: "news".to_owned(), payload: "for blue".into(), ..Default::default() };
    let publish = || PublishRequest { messages: vec![news.clone()], must_match: true, ..Default::default() };
    let unheard = red.bus().publish_all(Some(&in_red), publish()).await;
    ensure!(is_refused(&unheard, RejectionCode::FailedPrecondition), "blue hears what red says: {unheard:?}");
    let heard = blue.bus().publish_all(Some(&in_blue), publish()).await?.published;
    ensure!(heard.len() == 1 && heard[0].matched == 1, "{heard:?}");
    held.release().await?;
    held_too.release().await?;
    in_blue.close().await?;
    in_red.close().await?;
    Ok(())
}

/// Two documents fit, the third does not, whoever leads.
async fn check_quota(cluster: &mut LocalCluster, blue: &Client, others: &[&Client]) -> Result<()> {
    blue.kv().put("second", "fits").send().await?;
    for round in ["before", "after"] {
        ensure!(blue.kv().get("third").await?.is_none(), "{round} a kill, what was refused is there");
        let third = blue.kv().put("third", "does not fit").send().await;
        ensure!(is_refused(&third, RejectionCode::ResourceExhausted), "{round} a kill, it gave {third:?}");
        blue.kv().put("second", format!("again, {round}")).send().await?;
        for other in others {
            other.kv().put(format!("third/{round}"), "fits").send().await?;
        }
        if round == "before" {
            faults::replace_leader(cluster).await?;
        }
    }
    let more = blue.tasks().submit_one(tasks::spec("another", "blue")).await;
    ensure!(is_refused(&more, RejectionCode::ResourceExhausted), "a task over the quota gave {more:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn namespaces_are_apart_and_hold_no_more_than_they_may() -> Result<()> {
    let mut cluster = LocalCluster::builder().start().await?;
    let client = cluster.client()?;
    let (blue, red) = (client.in_namespace("blue")?, client.in_namespace("red")?);
    let early = blue.kv().put("plan", "too early").send().await;
    ensure!(is_refused(&early, RejectionCode::NotFound), "a namespace that nobody created gave {early:?}");
    let quotas = Quotas { max_kv_keys: 2, max_live_tasks: 1, ..Default::default() };
    client.namespaces().set("blue", quotas).await?;
    client.namespaces().set("red", Quotas::default()).await?;
    check_apart(&blue, &red).await?;
    check_quota(&mut cluster, &blue, &[&red, &client]).await?;

    client.namespaces().set("blue", Quotas { max_kv_keys: 3, ..quotas }).await?;
    blue.kv().put("third", "fits now").send().await?;
    ensure!(document(&blue, "plan").await?.value == "blue", "a quota that changed took something away");
    let usage = client.namespaces().list().await?.namespaces.into_iter();
    let usage: BTreeMap<String, u64> = usage
        .filter_map(|info| Some((info.namespace?.name, info.usage?.kv_keys)))
        .filter(|(name, _)| name != "default")
        .collect();
    ensure!(usage == BTreeMap::from([("blue".to_owned(), 3), ("red".to_owned(), 3)]), "documents: {usage:?}");

    let in_use = client.namespaces().delete("blue").await;
    ensure!(is_refused(&in_use, RejectionCode::FailedPrecondition), "a namespace in use gave {in_use:?}");
    client.namespaces().set("green", Quotas::default()).await?;
    client.namespaces().delete("green").await?;
    match client.in_namespace("green")?.kv().put("plan", "too late").send().await {
        Err(error) if error.is_not_found() => {}
        other => bail!("a namespace that is gone gave {other:?}"),
    }
    cluster.check_replicas_equal().await?;
    cluster.close()
}
