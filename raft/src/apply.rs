//! The only door into the state.
//!
//! One log entry holds a [`Batch`] of commands. Each gets its `rev`, the cluster's time and its share of chance, finds its
//! namespace, passes the request record (a resend is answered, not run) and its fences, runs in its room, and leaves an
//! [`Answer`] and its part of the event history.
//!
//! Invariants:
//! - time never goes back: `now_ms = max(previous, proposed)`, kept in the head;
//! - a rejected command wrote nothing; one that did stops the node;
//! - a command this binary does not know stops the node: skipping it would make this replica differ;
//! - a command above the cluster's feature level is refused ([`crate::level`]).

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use quorate_proto::log::{Answer, Batch, Command, CompactEvents, Done, StateHead, answer, command};
use quorate_proto::v1::{Rejection, RejectionCode, RequestId};

use crate::effect::Effect;
use crate::error::{Error, Fatal, Outcome, invalid};
use crate::faults::{Bug, planted};
use crate::history;
use crate::level;
use crate::state::namespaces::{self, Namespaces, Part};
use crate::state::sessions::Recorded;
use crate::state::{
    Ctx, Out, Rooms, agents, backups, breakers, bus, cluster, dispatch, fence, kv, locks, news, retries, schedules,
    sessions, tasks, transact,
};
use crate::storage::rows::MemoryRows;
use crate::storage::txn::Txn;

/// How many due things of each room one tick handles. What is left is due at once again.
const DUE_PER_TICK: usize = 1_000;

/// What the commands of one entry may write, rows and events: those after are turned away.
const ENTRY_BYTES: usize = 64 << 20;

/// Where the state stands: written in the same batch as the rows it describes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Head {
    /// The ordinal of the last command.
    pub rev: u64,
    /// The cluster's time.
    pub now_ms: u64,
    /// Term and index of the last applied entry.
    pub applied: Option<(u64, u64)>,
    /// The last applied membership, encoded by `consensus`.
    pub membership: Bytes,
    /// Running digest over every row written.
    pub digest: u128,
    /// The event history up to this rev is gone.
    pub events_compacted_rev: u64,
    /// The level of commands that have been let in, as it is written with the rows: a binary that does not know it refuses
    /// to open them, one from before there were levels included.
    pub format_version: u32,
}

impl Head {
    /// Reads the stored form.
    pub fn from_row(row: StateHead) -> Result<Self, Fatal> {
        level::check(row.format_version)?;
        let digest = <[u8; 16]>::try_from(row.digest.as_ref())
            .map_err(|_| Fatal::Corrupt("the state's digest is not 16 bytes".to_owned()))?;
        Ok(Head {
            rev: row.rev,
            now_ms: row.now_ms,
            applied: row.applied_any.then_some((row.applied_term, row.applied_index)),
            membership: row.membership,
            digest: u128::from_be_bytes(digest),
            events_compacted_rev: row.events_compacted_rev,
            format_version: row.format_version,
        })
    }

    /// The stored form.
    pub fn to_row(&self) -> StateHead {
        let (applied_term, applied_index) = self.applied.unwrap_or_default();
        StateHead {
            rev: self.rev,
            now_ms: self.now_ms,
            applied_term,
            applied_index,
            applied_any: self.applied.is_some(),
            membership: self.membership.clone(),
            digest: Bytes::copy_from_slice(&self.digest.to_be_bytes()),
            format_version: self.format_version.max(1),
            events_compacted_rev: self.events_compacted_rev,
        }
    }
}

/// Something that happened in a namespace, for whoever listens on this node.
#[derive(Debug, Clone, PartialEq)]
pub struct Happened {
    /// Where.
    pub namespace: Arc<str>,
    /// What.
    pub effect: Effect,
}

/// Applies one entry's batch; the answers are in the order of its commands.
pub fn apply_batch(
    namespaces: &mut Namespaces,
    txn: &mut Txn<'_>,
    head: &mut Head,
    payload: Bytes,
    happened: &mut Vec<Happened>,
) -> Result<Vec<Answer>, Fatal> {
    let batch = Batch::decode(payload)?;
    head.now_ms = head.now_ms.max(batch.now_ms);
    let mut answers = Vec::with_capacity(batch.commands.len());
    let before = txn.bytes();
    for (position, bytes) in batch.commands.into_iter().enumerate() {
        head.rev += 1;
        let ctx = Ctx { now_ms: head.now_ms, rev: head.rev, entropy: mix(batch.entropy, position as u64) };
        let command = Command::decode(bytes)?;
        if txn.bytes() - before > ENTRY_BYTES && !command.body.as_ref().is_some_and(is_the_leaders) {
            answers.push(Answer { rev: ctx.rev, body: Some(answer::Body::Rejected(too_much())) });
            continue;
        }
        answers.push(run(namespaces, txn, head, &ctx, command, happened)?);
    }
    Ok(answers)
}

/// A small request may write much: a byte appended to a large document writes all of it. What one entry may write is
/// bounded, or a thousand such requests that happen to share it would take every replica's memory, again at each restart.
fn too_much() -> Rejection {
    Rejection {
        code: RejectionCode::Overloaded as i32,
        field: String::new(),
        message: format!("the commands before this one wrote more than {ENTRY_BYTES} bytes at once; try again"),
    }
}

/// What only a leader says, and only of itself. It must not be put off: time and sessions depend on it.
pub fn is_the_leaders(body: &command::Body) -> bool {
    use command::Body as C;
    matches!(
        body,
        C::Tick(_)
            | C::ExpireSession(_)
            | C::FireSchedule(_)
            | C::DescribeCluster(_)
            | C::CompactEvents(_)
            | C::RetireNode(_)
            | C::RaiseFeatureLevel(_)
            | C::RecordBackup(_)
            | C::ForgetTasks(_)
    )
}

/// One command, behind its request record.
fn run(
    namespaces: &mut Namespaces,
    txn: &mut Txn<'_>,
    head: &mut Head,
    ctx: &Ctx,
    command: Command,
    happened: &mut Vec<Happened>,
) -> Result<Answer, Fatal> {
    let answer = |body| Answer { rev: ctx.rev, body: Some(body) };
    let Command { request, namespace, fences, body } = command;
    let Some(body) = body.filter(|body| level::level_of(body) <= level::understood()) else {
        return Err(Fatal::UnknownCommand(format!("at rev {}", ctx.rev)));
    };
    let in_use = namespaces.cluster.feature_level();
    let part = match namespaces.existing_mut(&namespace) {
        Ok(part) => part,
        Err(error) => return Ok(answer(rejected(error)?)),
    };
    txn.enter(part.row.number);
    if let Some(request) = request.as_ref().filter(|_| !planted(Bug::ResendRun)) {
        match part.rooms.sessions.recorded(txn, request)? {
            Recorded::New => {}
            Recorded::Answered(recorded) => return Ok(*recorded),
            Recorded::Refused(rejection) => return Ok(answer(answer::Body::Rejected(rejection))),
        }
    }
    let writes = txn.write_count();
    let checked = level::admit(in_use, &body)
        .and_then(|()| fences.iter().try_for_each(|fence| fence::check(&part.rooms, txn, fence)));
    let outcome = match checked {
        Err(error) => Err(error),
        Ok(()) if is_whole(&body) => run_whole(namespaces, txn, head, ctx, body, happened),
        Ok(()) => run_in(part, txn, ctx, happened, false, |rooms, out| route(rooms, out, ctx, body)),
    };
    let answer = answer(match outcome {
        Ok(body) => body,
        Err(Error::Rejected(rejection)) if txn.write_count() != writes => {
            let message = format!("a rejected command wrote at rev {}: {}", ctx.rev, rejection.message);
            return Err(Fatal::Corrupt(message));
        }
        Err(error) => rejected(error)?,
    });
    if let Some(request) = &request
        && let Ok(part) = namespaces.existing_mut(&namespace)
    {
        txn.enter(part.row.number);
        record(&mut part.rooms, &mut Out { txn, effects: &mut Vec::new() }, request, &answer);
    }
    Ok(answer)
}

fn rejected(error: Error) -> Result<answer::Body, Fatal> {
    match error {
        Error::Rejected(rejection) => Ok(answer::Body::Rejected(rejection)),
        Error::Fatal(fatal) => Err(fatal),
    }
}

/// Runs something in one namespace, with all that follows from it there: what waited hears of it, what can start is
/// assigned, what changed goes into the history.
fn run_in<T>(
    part: &mut Part,
    txn: &mut Txn<'_>,
    ctx: &Ctx,
    happened: &mut Vec<Happened>,
    is_tick: bool,
    f: impl FnOnce(&mut Rooms, &mut Out<'_, '_>) -> Outcome<T>,
) -> Outcome<T> {
    txn.enter(part.row.number);
    let mut effects = Vec::new();
    let out = &mut Out { txn, effects: &mut effects };
    let result = f(&mut part.rooms, out)?;
    tasks::settle(&mut part.rooms, out, ctx, is_tick)?;
    news::tell(&mut part.rooms, out, ctx)?;
    bus::settle(&mut part.rooms, out, ctx)?;
    let written = out.txn.take_written();
    history::record(out.txn, ctx, part.row.number, &written)?;
    happened.extend(effects.into_iter().map(|effect| Happened { namespace: part.name.clone(), effect }));
    Ok(result)
}

/// Keeps the answer, unless the command itself ended the session. A claim that brought nothing is not kept either: it
/// had no effect to protect, and the same request may be proposed again while its caller waits for work.
fn record(rooms: &mut Rooms, out: &mut Out<'_, '_>, request: &RequestId, answer: &Answer) {
    let nothing = matches!(&answer.body, Some(answer::Body::ClaimTasks(claim)) if claim.tasks.is_empty());
    if !nothing && rooms.sessions.get(&request.session_id).is_some() {
        rooms.sessions.record(out, request, answer);
    }
}

/// Whether a command is about the cluster as a whole, and not about one namespace.
fn is_whole(body: &command::Body) -> bool {
    use command::Body as C;
    matches!(
        body,
        C::DescribeCluster(_)
            | C::RetireNode(_)
            | C::RaiseFeatureLevel(_)
            | C::SetBackupPolicy(_)
            | C::RecordBackup(_)
            | C::CompactEvents(_)
            | C::SetNamespace(_)
            | C::DeleteNamespace(_)
            | C::Tick(_)
    )
}

fn run_whole(
    namespaces: &mut Namespaces,
    txn: &mut Txn<'_>,
    head: &mut Head,
    ctx: &Ctx,
    body: command::Body,
    happened: &mut Vec<Happened>,
) -> Outcome<answer::Body> {
    use answer::Body as A;
    use command::Body as C;
    txn.enter(0);
    let out = &mut Out { txn, effects: &mut Vec::new() };
    let answer = match body {
        C::DescribeCluster(r) => A::DescribeCluster(cluster::describe(&mut namespaces.cluster, out, r)?),
        C::RetireNode(r) => A::RetireNode(cluster::retire(&mut namespaces.cluster, out, r)?),
        C::RaiseFeatureLevel(r) => A::RaiseFeatureLevel(cluster::raise(&mut namespaces.cluster, out, r)?),
        C::SetBackupPolicy(r) => A::SetBackupPolicy(backups::set_policy(out, ctx, r)?),
        C::RecordBackup(r) => A::RecordBackup(backups::record(out, r)?),
        C::CompactEvents(r) => A::CompactEvents(compact_events(out, head, &r)?),
        C::SetNamespace(r) => A::SetNamespace(namespaces::set(namespaces, out, ctx, r)?),
        C::DeleteNamespace(r) => A::DeleteNamespace(namespaces::delete(namespaces, out, ctx, r)?),
        C::Tick(_) => {
            tick(namespaces, txn, ctx, happened)?;
            A::Tick(Done {})
        }
        other => return Err(Fatal::UnknownCommand(format!("not about the whole cluster: {other:?}")).into()),
    };
    head.format_version = namespaces.cluster.feature_level().unwrap_or(head.format_version);
    Ok(answer)
}

/// Everything that is due, in every namespace, up to a bound in each.
fn tick(namespaces: &mut Namespaces, txn: &mut Txn<'_>, ctx: &Ctx, happened: &mut Vec<Happened>) -> Result<(), Fatal> {
    for name in namespaces.to_tick(ctx) {
        let Ok(part) = namespaces.existing_mut(&name) else { continue };
        let run = run_in(part, txn, ctx, happened, true, |rooms, out| {
            agents::run_due(rooms, out, ctx, DUE_PER_TICK)?;
            breakers::run_due(rooms, out, ctx, DUE_PER_TICK)?;
            locks::run_due(rooms, out, ctx, DUE_PER_TICK)?;
            kv::run_due(rooms, out, ctx, DUE_PER_TICK)?;
            bus::run_due(rooms, out, ctx, DUE_PER_TICK)?;
            tasks::run_due(rooms, out, ctx, DUE_PER_TICK)?;
            Ok(())
        });
        match run {
            Ok(()) => {}
            Err(Error::Fatal(fatal)) => return Err(fatal),
            Err(Error::Rejected(r)) => return Err(Fatal::Corrupt(format!("a tick was rejected: {}", r.message))),
        }
    }
    Ok(())
}

/// Removes the oldest part of the event history.
fn compact_events(out: &mut Out<'_, '_>, head: &mut Head, req: &CompactEvents) -> Outcome<Done> {
    if req.through_rev >= head.rev {
        let message = format!("through_rev must be below {}, which is happening now", head.rev);
        return Err(invalid("through_rev", message));
    }
    if req.through_rev > head.events_compacted_rev {
        head.events_compacted_rev = req.through_rev;
        out.txn.forget_events(req.through_rev);
    }
    Ok(Done {})
}

/// The one switch: which room runs what.
fn route(rooms: &mut Rooms, out: &mut Out<'_, '_>, ctx: &Ctx, body: command::Body) -> Outcome<answer::Body> {
    use answer::Body as A;
    use command::Body as C;
    Ok(match body {
        C::OpenSession(r) => A::OpenSession(sessions::open(rooms, out, ctx, r)?),
        C::CloseSession(r) => A::CloseSession(sessions::close(rooms, out, ctx, r)?),
        C::ExpireSession(r) => A::ExpireSession(sessions::expire(rooms, out, ctx, r)?),
        C::RegisterAgent(r) => A::RegisterAgent(sessions::register_agent(rooms, out, ctx, r)?),
        C::ReportAgent(r) => A::ReportAgent(agents::report(rooms, out, ctx, r)?),
        C::DrainAgent(r) => A::DrainAgent(agents::drain(rooms, out, ctx, r)?),
        C::DeregisterAgent(r) => A::DeregisterAgent(tasks::deregister_agent(rooms, out, ctx, r)?),
        C::SubmitTasks(r) => A::SubmitTasks(tasks::submit(rooms, out, ctx, r)?),
        C::ClaimTasks(r) => A::ClaimTasks(tasks::claim(rooms, out, ctx, r)?),
        C::FinishTask(r) => A::FinishTask(tasks::finish(rooms, out, ctx, r)?),
        C::CancelTask(r) => A::CancelTask(tasks::cancel(rooms, out, ctx, r)?),
        C::DecideTask(r) => A::DecideTask(tasks::decide(rooms, out, ctx, r)?),
        C::AddDependencies(r) => A::AddDependencies(tasks::add_dependencies(rooms, out, ctx, r)?),
        C::RedriveTasks(r) => A::RedriveTasks(tasks::redrive(rooms, out, ctx, r)?),
        C::PurgeTasks(r) => A::PurgeTasks(tasks::purge(rooms, out, ctx, r)?),
        C::ForgetTasks(r) => A::ForgetTasks(tasks::forget(rooms, out, ctx, r)?),
        C::ResolveDeadlocks(r) => A::ResolveDeadlocks(tasks::resolve_deadlocks(rooms, out, ctx, r)?),
        C::StandingOrder(r) => A::StandingOrder(tasks::standing_order(rooms, out, ctx, r)?),
        C::SetLimit(r) => A::SetLimit(dispatch::set_limit(rooms, out, ctx, r)?),
        C::DeleteLimit(r) => A::DeleteLimit(dispatch::delete_limit(rooms, out, ctx, r)?),
        C::SetShare(r) => A::SetShare(dispatch::set_share(rooms, out, ctx, r)?),
        C::SetDispatchPolicy(r) => A::SetDispatchPolicy(dispatch::set_policy(rooms, out, ctx, r)?),
        C::SetRoutes(r) => A::SetRoutes(dispatch::set_routes(rooms, out, ctx, r)?),
        C::AcquireBreaker(r) => A::AcquireBreaker(breakers::acquire(rooms, out, ctx, r)?),
        C::ReportBreaker(r) => A::ReportBreaker(breakers::report(rooms, out, ctx, r)?),
        C::ConfigureBreaker(r) => A::ConfigureBreaker(breakers::configure(rooms, out, ctx, r)?),
        C::ForceBreaker(r) => A::ForceBreaker(breakers::force(rooms, out, ctx, r)?),
        C::SetRetryProfile(r) => A::SetRetryProfile(retries::set_profile(rooms, out, ctx, r)?),
        C::DeleteRetryProfile(r) => A::DeleteRetryProfile(retries::delete_profile(rooms, out, ctx, r)?),
        C::CreateSchedule(r) => A::CreateSchedule(schedules::create(rooms, out, ctx, r)?),
        C::DeleteSchedule(r) => A::DeleteSchedule(schedules::delete(rooms, out, ctx, r)?),
        C::PauseSchedule(r) => A::PauseSchedule(schedules::pause(rooms, out, ctx, r)?),
        C::RunScheduleNow(r) => A::RunScheduleNow(schedules::run_now(rooms, out, ctx, r)?),
        C::FireSchedule(r) => A::FireSchedule(schedules::fire(rooms, out, ctx, r)?),
        C::AcquireLock(r) => A::AcquireLock(fence::acquire_lock(rooms, out, ctx, r)?),
        C::ExtendLock(r) => A::ExtendLock(locks::extend(rooms, out, ctx, r)?),
        C::ReleaseLock(r) => A::ReleaseLock(locks::release(rooms, out, ctx, r)?),
        C::ForceReleaseLock(r) => A::ForceReleaseLock(locks::force_release(rooms, out, ctx, r)?),
        C::AcquireScope(r) => A::AcquireScope(fence::acquire_scope(rooms, out, ctx, r)?),
        C::ReleaseScope(r) => A::ReleaseScope(locks::release_scope(rooms, out, ctx, r)?),
        C::ForceReleaseScope(r) => A::ForceReleaseScope(locks::force_release_scope(rooms, out, ctx, r)?),
        C::Publish(r) => A::Publish(bus::publish(rooms, out, ctx, r)?),
        C::Subscribe(r) => A::Subscribe(bus::subscribe(rooms, out, ctx, r)?),
        C::Unsubscribe(r) => A::Unsubscribe(bus::unsubscribe(rooms, out, ctx, r)?),
        C::Consume(r) => A::Consume(bus::consume(rooms, out, ctx, r)?),
        C::Leave(r) => A::Leave(bus::leave(rooms, out, ctx, r)?),
        C::Ack(r) => A::Ack(bus::ack(rooms, out, ctx, r)?),
        C::RedriveDead(r) => A::RedriveDead(bus::redrive_dead(rooms, out, ctx, r)?),
        C::PurgeDead(r) => A::PurgeDead(bus::purge_dead(rooms, out, ctx, r)?),
        C::KvPut(r) => A::KvPut(kv::put(rooms, out, ctx, r)?),
        C::KvDelete(r) => A::KvDelete(kv::delete(rooms, out, ctx, r)?),
        C::KvRollback(r) => A::KvRollback(kv::rollback(rooms, out, ctx, r)?),
        C::SetKvPolicy(r) => A::SetKvPolicy(kv::set_policy(rooms, out, ctx, r)?),
        C::DeleteKvPolicy(r) => A::DeleteKvPolicy(kv::delete_policy(rooms, out, ctx, r)?),
        C::Transact(r) => A::Transact(transact::run(rooms, out, ctx, r)?),
        whole @ (C::DescribeCluster(_)
        | C::RetireNode(_)
        | C::RaiseFeatureLevel(_)
        | C::SetBackupPolicy(_)
        | C::RecordBackup(_)
        | C::CompactEvents(_)
        | C::SetNamespace(_)
        | C::DeleteNamespace(_)
        | C::Tick(_)) => {
            return Err(Fatal::UnknownCommand(format!("not about one namespace: {whole:?}")).into());
        }
    })
}

/// Spreads one drawn number over the commands of a batch (SplitMix64's finalizer).
fn mix(entropy: u64, position: u64) -> u64 {
    let mut z = entropy.wrapping_add(position.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The whole state machine in memory, without RocksDB or Raft: for tests and models.
#[derive(Debug, Default, Clone)]
pub struct Machine {
    /// The indexes.
    pub namespaces: Namespaces,
    /// The rows.
    pub rows: MemoryRows,
    /// The event history, by rev and namespace number.
    pub events: BTreeMap<(u64, u64), Bytes>,
    /// Where it stands.
    pub head: Head,
    /// The hints of the last batch.
    pub happened: Vec<Happened>,
}

impl Machine {
    /// An empty state.
    pub fn in_memory() -> Self {
        Machine::default()
    }

    /// Applies the commands as one entry.
    pub fn apply(&mut self, now_ms: u64, entropy: u64, commands: Vec<Command>) -> Result<Vec<Answer>, Fatal> {
        let commands = commands.iter().map(|c| Bytes::from(c.encode_to_vec())).collect();
        let payload = Bytes::from(Batch { now_ms, entropy, commands }.encode_to_vec());
        self.happened.clear();
        let mut txn = Txn::new(&self.rows, self.head.digest);
        let answers = apply_batch(&mut self.namespaces, &mut txn, &mut self.head, payload, &mut self.happened)?;
        self.head.digest = txn.digest();
        let writes = txn.into_writes();
        for (key, value) in writes.rows {
            match value {
                Some(value) => self.rows.0.insert(key, value),
                None => self.rows.0.remove(&key),
            };
        }
        for (from, to) in writes.ranges_gone {
            self.rows.0.retain(|key, _| *key < from || *key >= to);
        }
        self.events.extend(writes.events);
        if let Some(through_rev) = writes.events_gone {
            self.events = self.events.split_off(&(through_rev.saturating_add(1), 0));
        }
        Ok(answers)
    }

    /// The rooms of the default namespace.
    pub fn rooms(&self) -> &Rooms {
        &self.namespaces.default_part().rooms
    }

    /// The hints of the last batch, of every namespace.
    pub fn effects(&self) -> impl Iterator<Item = &Effect> {
        self.happened.iter().map(|happened| &happened.effect)
    }

    /// The running digest.
    pub fn digest(&self) -> u128 {
        self.head.digest
    }
}
