//! The clients: each does one thing after another, and sends a request again, under the same id, until it is answered.
//!
//! A client holds a session and keeps it alive. It puts and reads documents, takes locks and writes under their tokens
//! (sometimes after its time is up), submits, claims and finishes tasks. What it is answered goes to the model. Of its
//! own it knows one more thing: its session must not end before the last confirmed keep-alive and the time to live
//! since then.
//!
//! Deliberately absent: the bus, breakers and schedules. Their commands go through the same door.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::channel::oneshot;
use openraft::AsyncRuntime;
use openraft_rt_sim::SimRuntime;
use parking_lot::Mutex;
use prost::Message;
use quorate_proto::log::{Answer, Command, answer, command};
use quorate_proto::v1::{
    AcquireLockRequest, ClaimTasksRequest, Fence, FenceKind, FinishKind, FinishTaskRequest, KvEntry, KvPutRequest,
    LockMode, OpenSessionRequest, RegisterAgentRequest, ReleaseLockRequest, RequestId, SubmitTasksRequest, TaskSpec,
};

use crate::model::Begun;
use crate::node::{Cluster, Running};
use crate::propose::Refusal;
use crate::rng::Rng;
use crate::types::{sleep_ms, sleep_us, spawn};
use crate::world::World;

/// The time to live that a session asks for.
const TTL: Duration = Duration::from_secs(3);
/// A session is kept alive when its last beat is so old.
const BEAT: Duration = Duration::from_millis(800);
/// A call that is not answered in this time is given up, its outcome unknown.
const PATIENCE: Duration = Duration::from_secs(6);
const KEYS: u64 = 6;
const LOCKS: u64 = 2;

/// What the clients and whoever watches them share.
#[derive(Default)]
pub(crate) struct Load {
    over: AtomicBool,
    /// For each client: when the last of its calls began that was answered.
    answered: Mutex<BTreeMap<u64, Duration>>,
}

impl Load {
    /// No call is begun any more.
    pub(crate) fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// The clients of which no call that began since then was answered.
    pub(crate) fn stuck_since(&self, since: Duration) -> Vec<u64> {
        let answered = self.answered.lock();
        answered.iter().filter(|(_, begun)| **begun < since).map(|(client, _)| *client).collect()
    }

    fn note(&self, client: u64, begun: Duration) {
        let mut answered = self.answered.lock();
        let newest = answered.entry(client).or_default();
        *newest = begun.max(*newest);
    }
}

struct Session {
    id: String,
    sequence: u64,
    /// When the last confirmed beat began.
    alive: Duration,
}

/// One client.
pub(crate) struct Client {
    number: u64,
    world: Arc<World>,
    cluster: Arc<Cluster>,
    load: Arc<Load>,
    rng: Rng,
    session: Option<Session>,
    sessions: u64,
    written: u64,
    leader: u64,
    /// The newest rev known of each key.
    known: BTreeMap<String, u64>,
}

fn is_no_session(answer: &Answer) -> bool {
    // What is asked of a session is refused before it is looked at any further.
    matches!(&answer.body, Some(answer::Body::Rejected(rejection)) if rejection.field == "request.session_id")
}

/// One attempt, as a task of its own: a call that its client has given up goes on.
async fn attempt<T: Send + 'static>(
    cluster: Arc<Cluster>,
    node: u64,
    call: impl AsyncCall<T>,
    answer: oneshot::Sender<Result<T, Refusal>>,
) {
    sleep_us(cluster.world.between(100, 2_000)).await;
    cluster.network.pass(node).await;
    let outcome = match cluster.get(node) {
        Some(running) => {
            let outcome = call.on(running.clone()).await;
            cluster.network.pass(node).await;
            sleep_us(cluster.world.between(100, 2_000)).await;
            if running.is_up() { outcome } else { Err(Refusal::Unknown) }
        }
        None => Err(Refusal::NotNow),
    };
    drop(answer.send(outcome));
}

/// What is asked of a node.
trait AsyncCall<T>: Send + 'static {
    /// Asks it.
    fn on(self, running: Arc<Running>) -> impl Future<Output = Result<T, Refusal>> + Send;
}

struct Ask(Bytes);

impl AsyncCall<Answer> for Ask {
    async fn on(self, running: Arc<Running>) -> Result<Answer, Refusal> {
        running.ask(self.0).await
    }
}

struct Read(String);

impl AsyncCall<(u64, Option<KvEntry>)> for Read {
    async fn on(self, running: Arc<Running>) -> Result<(u64, Option<KvEntry>), Refusal> {
        running.read(&self.0).await
    }
}

struct Beat(String);

impl AsyncCall<()> for Beat {
    async fn on(self, running: Arc<Running>) -> Result<(), Refusal> {
        running.keep_alive(&self.0).await
    }
}

impl Client {
    /// A client with choices of its own.
    pub(crate) fn new(number: u64, seed: u64, cluster: Arc<Cluster>, load: Arc<Load>) -> Self {
        load.note(number, Duration::ZERO);
        Client {
            number,
            world: cluster.world.clone(),
            cluster,
            load,
            rng: Rng::new(seed, 100 + number),
            session: None,
            sessions: 0,
            written: 0,
            leader: 1,
            known: BTreeMap::new(),
        }
    }

    /// Does one thing after another.
    pub(crate) async fn run(mut self) {
        while !self.load.is_over() && !self.world.has_failed() {
            if self.session.is_none() {
                self.open().await;
                continue;
            }
            self.beat().await;
            match self.rng.below(100) {
                0..35 => self.put(false).await,
                35..50 => self.put(true).await,
                50..65 => self.read().await,
                65..78 => self.hold_lock().await,
                78..88 => self.submit().await,
                _ => self.work().await,
            }
            sleep_ms(self.rng.between(5, 120)).await;
        }
    }

    /// Asks one node once.
    async fn once<T: Send + 'static>(&mut self, call: impl AsyncCall<T>, within: Duration) -> Result<T, Refusal> {
        let node = self.leader;
        let (answer, answered) = oneshot::channel();
        spawn(attempt(self.cluster.clone(), node, call, answer));
        let outcome = match SimRuntime::timeout(within, answered).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) | Err(_) => Err(Refusal::Unknown),
        };
        if outcome.is_err() {
            self.look_elsewhere(node);
        }
        outcome
    }

    /// Whom the node named, else anybody.
    fn look_elsewhere(&mut self, node: u64) {
        let named = self.cluster.get(node).and_then(|running| running.leader()).filter(|named| *named != node);
        let size = self.cluster.disks.len() as u64;
        self.leader = match named {
            Some(named) if self.rng.chance(700) => named,
            _ => self.rng.between(1, size + 1),
        };
    }

    /// Asks until it is answered or patience ends.
    async fn ask(&mut self, command: &Command) -> Option<Answer> {
        let bytes = Bytes::from(command.encode_to_vec());
        let started = self.world.now();
        let begun: Begun = self.world.model.lock().begin();
        while self.world.now() < started + PATIENCE && !self.world.has_failed() {
            let within = Duration::from_millis(self.rng.between(200, 1_200));
            match self.once(Ask(bytes.clone()), within).await {
                Ok(answer) => {
                    self.answered(begun, started, &answer);
                    return Some(answer);
                }
                // Without a request id there is no asking again: it could happen twice.
                Err(Refusal::Unknown) if command.request.is_none() => break,
                Err(_) => sleep_ms(self.rng.between(10, 80)).await,
            }
        }
        self.world.totals.lock().unknown += 1;
        self.world.note(format_args!("c{} gives up", self.number));
        None
    }

    fn answered(&mut self, begun: Begun, started: Duration, answer: &Answer) {
        let held = self.world.model.lock().answered(begun, answer);
        self.world.note(format_args!("c{} is answered at rev {}", self.number, answer.rev));
        self.world.check(held);
        self.world.totals.lock().answered += 1;
        self.load.note(self.number, started);
        if is_no_session(answer)
            && let Some(session) = self.session.take()
        {
            let (now, until) = (self.world.now(), session.alive + TTL);
            if now < until {
                self.world.violated(format!("session {} ended at {now:?}, and was good until {until:?}", session.id));
            }
        }
    }

    /// Asks under the next request id, with these fences.
    async fn request(&mut self, body: command::Body, fences: Vec<Fence>) -> Option<answer::Body> {
        let session = self.session.as_mut()?;
        session.sequence += 1;
        let (session_id, sequence) = (session.id.clone(), session.sequence);
        let request = Some(RequestId { session_id, sequence, done_below: sequence });
        let command = Command { request, fences, body: Some(body), ..Command::default() };
        self.ask(&command).await?.body
    }

    fn session_id(&self) -> String {
        self.session.as_ref().map_or_else(String::new, |session| session.id.clone())
    }

    async fn open(&mut self) {
        self.sessions += 1;
        let id = format!("c{}-{}", self.number, self.sessions);
        let ttl_ms = u64::try_from(TTL.as_millis()).unwrap_or(u64::MAX);
        let open = OpenSessionRequest { session_id: id.clone(), ttl_ms, ..OpenSessionRequest::default() };
        let alive = self.world.now();
        let command = Command { body: Some(command::Body::OpenSession(open)), ..Command::default() };
        let Some(answer) = self.ask(&command).await else { return };
        if !matches!(answer.body, Some(answer::Body::OpenSession(_))) {
            return self.world.violated(format!("session {id} was not opened: {answer:?}"));
        }
        self.session = Some(Session { id: id.clone(), sequence: 0, alive });
        let register = RegisterAgentRequest {
            agent_id: format!("a{}", self.number),
            session_id: id,
            capabilities: vec!["work".to_owned()],
            capacity: 4,
            ..RegisterAgentRequest::default()
        };
        self.request(command::Body::RegisterAgent(register), Vec::new()).await;
    }

    async fn beat(&mut self) {
        let Some(session) = &self.session else { return };
        let (id, now) = (session.id.clone(), self.world.now());
        if now < session.alive + BEAT {
            return;
        }
        let confirmed = self.once(Beat(id), Duration::from_millis(500)).await.is_ok();
        if let Some(session) = self.session.as_mut().filter(|_| confirmed) {
            session.alive = now;
        }
    }

    /// A new value for some key, perhaps only if it is as it was known.
    async fn put(&mut self, compares: bool) {
        let key = format!("k{}", self.rng.below(KEYS));
        let if_mod_rev = if compares { self.known.get(&key).copied().unwrap_or_default() } else { 0 };
        self.write(key, if_mod_rev, Vec::new()).await;
    }

    async fn write(&mut self, key: String, if_mod_rev: u64, fences: Vec<Fence>) {
        self.written += 1;
        let value = Bytes::from(format!("c{}-{}", self.number, self.written));
        let put = KvPutRequest { key: key.clone(), value, if_mod_rev, ..KvPutRequest::default() };
        if let Some(answer::Body::KvPut(response)) = self.request(command::Body::KvPut(put), fences).await
            && let Some(entry) = response.entry
        {
            self.known.insert(key, entry.mod_rev);
        }
    }

    async fn read(&mut self) {
        let key = format!("k{}", self.rng.below(KEYS));
        let started = self.world.now();
        let begun = self.world.model.lock().begin();
        let within = Duration::from_millis(self.rng.between(200, 1_200));
        let Ok((rev, found)) = self.once(Read(key.clone()), within).await else { return };
        let held = self.world.model.lock().read(begun, rev, &key, found.as_ref());
        self.world.note(format_args!("c{} reads {key} at rev {rev}", self.number));
        self.world.check(held);
        self.world.totals.lock().answered += 1;
        self.load.note(self.number, started);
        self.known.insert(key, found.map_or(0, |entry| entry.mod_rev));
    }

    /// Takes a lock, writes under its token, sometimes too late, and lets go.
    async fn hold_lock(&mut self) {
        let name = format!("l{}", self.rng.below(LOCKS));
        let acquire = AcquireLockRequest {
            name: name.clone(),
            session_id: self.session_id(),
            mode: LockMode::Exclusive as i32,
            ttl_ms: self.rng.between(200, 1_500),
            ..AcquireLockRequest::default()
        };
        let granted = self.request(command::Body::AcquireLock(acquire), Vec::new()).await;
        let Some(answer::Body::AcquireLock(granted)) = granted else { return };
        let Some(holder) = granted.holder else { return };
        sleep_ms(self.rng.below(900)).await;
        let fence = Fence { kind: FenceKind::Lock as i32, name: name.clone(), token: holder.token };
        self.write(format!("f-{name}"), 0, vec![fence]).await;
        let session_id = self.session_id();
        let release = ReleaseLockRequest { name, token: holder.token, session_id, ..ReleaseLockRequest::default() };
        self.request(command::Body::ReleaseLock(release), Vec::new()).await;
    }

    async fn submit(&mut self) {
        self.written += 1;
        let task = TaskSpec {
            task_id: format!("t{}-{}", self.number, self.written),
            title: "work".to_owned(),
            required_capabilities: vec!["work".to_owned()],
            ..TaskSpec::default()
        };
        let submit = SubmitTasksRequest { tasks: vec![task], ..SubmitTasksRequest::default() };
        self.request(command::Body::SubmitTasks(submit), Vec::new()).await;
    }

    /// Claims a task and finishes it, sometimes long after.
    async fn work(&mut self) {
        let (agent_id, session_id) = (format!("a{}", self.number), self.session_id());
        let claim = ClaimTasksRequest { agent_id, session_id, max_tasks: 2, ..ClaimTasksRequest::default() };
        let claimed = self.request(command::Body::ClaimTasks(claim), Vec::new()).await;
        let Some(answer::Body::ClaimTasks(claimed)) = claimed else { return };
        for task in claimed.tasks {
            sleep_ms(self.rng.below(200)).await;
            let finish = FinishTaskRequest {
                task_id: task.id,
                token: task.claim.map_or(0, |claim| claim.token),
                kind: FinishKind::Completed as i32,
                ..FinishTaskRequest::default()
            };
            self.request(command::Body::FinishTask(finish), Vec::new()).await;
        }
    }
}
