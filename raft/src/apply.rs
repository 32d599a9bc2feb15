//! The only door into the state.
//!
//! One log entry holds a [`Batch`] of commands. Each gets its `rev`, the cluster's time and its share of chance, passes
//! the request record (a resend is answered, not run), runs in its room, and leaves an [`Answer`].
//!
//! Invariants:
//! - time never goes back: `now_ms = max(previous, proposed)`, kept in the head;
//! - a rejected command wrote nothing; one that did stops the node;
//! - a command this binary does not know stops the node: skipping it would make this replica differ.

use bytes::Bytes;
use prost::Message;
use quorate_proto::log::{Answer, Batch, Command, Done, StateHead, answer, command};
use quorate_proto::v1::RequestId;

use crate::effect::Effect;
use crate::error::{Error, Fatal, Outcome};
use crate::state::sessions::Recorded;
use crate::state::{Ctx, Out, Rooms, agents, breakers, cluster, dispatch, retries, schedules, sessions, tasks};
use crate::storage::rows::MemoryRows;
use crate::storage::txn::Txn;

/// The version of the stored rows and keys that this binary writes.
pub const FORMAT_VERSION: u32 = 1;

/// How many due things of each room one tick handles. What is left is due at once again.
const DUE_PER_TICK: usize = 1_000;

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
}

impl Head {
    /// Reads the stored form.
    pub fn from_row(row: StateHead) -> Result<Self, Fatal> {
        if row.format_version > FORMAT_VERSION {
            return Err(Fatal::Corrupt(format!(
                "the state has format {}, this binary knows up to {FORMAT_VERSION}",
                row.format_version
            )));
        }
        let digest = <[u8; 16]>::try_from(row.digest.as_ref())
            .map_err(|_| Fatal::Corrupt("the state's digest is not 16 bytes".to_owned()))?;
        Ok(Head {
            rev: row.rev,
            now_ms: row.now_ms,
            applied: row.applied_any.then_some((row.applied_term, row.applied_index)),
            membership: row.membership,
            digest: u128::from_be_bytes(digest),
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
            format_version: FORMAT_VERSION,
        }
    }
}

/// Applies one entry's batch; the answers are in the order of its commands.
pub fn apply_batch(
    rooms: &mut Rooms,
    txn: &mut Txn<'_>,
    head: &mut Head,
    payload: Bytes,
    effects: &mut Vec<Effect>,
) -> Result<Vec<Answer>, Fatal> {
    let batch = Batch::decode(payload)?;
    head.now_ms = head.now_ms.max(batch.now_ms);
    let mut answers = Vec::with_capacity(batch.commands.len());
    for (position, bytes) in batch.commands.into_iter().enumerate() {
        head.rev += 1;
        let ctx = Ctx { now_ms: head.now_ms, rev: head.rev, entropy: mix(batch.entropy, position as u64) };
        let command = Command::decode(bytes)?;
        answers.push(run(rooms, &mut Out { txn, effects }, &ctx, command)?);
    }
    Ok(answers)
}

/// One command, behind its request record.
fn run(rooms: &mut Rooms, out: &mut Out<'_, '_>, ctx: &Ctx, command: Command) -> Result<Answer, Fatal> {
    let request = command.request;
    if let Some(request) = &request {
        match rooms.sessions.recorded(out.txn, request)? {
            Recorded::New => {}
            Recorded::Answered(answer) => return Ok(*answer),
            Recorded::Refused(rejection) => {
                return Ok(Answer { rev: ctx.rev, body: Some(answer::Body::Rejected(rejection)) });
            }
        }
    }
    let Some(body) = command.body else {
        return Err(Fatal::UnknownCommand(format!("at rev {}", ctx.rev)));
    };
    let (writes, hints) = (out.txn.write_count(), out.effects.len());
    let is_tick = matches!(body, command::Body::Tick(_));
    let body = match route(rooms, out, ctx, body) {
        Ok(body) => {
            tasks::settle(rooms, out, ctx, hints, is_tick)?;
            body
        }
        Err(Error::Fatal(fatal)) => return Err(fatal),
        Err(Error::Rejected(rejection)) => {
            if out.txn.write_count() != writes {
                return Err(Fatal::Corrupt(format!(
                    "a rejected command wrote at rev {}: {}",
                    ctx.rev, rejection.message
                )));
            }
            out.effects.truncate(hints);
            answer::Body::Rejected(rejection)
        }
    };
    let answer = Answer { rev: ctx.rev, body: Some(body) };
    if let Some(request) = &request {
        record(rooms, out, request, &answer);
    }
    Ok(answer)
}

/// Keeps the answer, unless the command itself ended the session. A claim that brought nothing is not kept either: it
/// had no effect to protect, and the same request may be proposed again while its caller waits for work.
fn record(rooms: &mut Rooms, out: &mut Out<'_, '_>, request: &RequestId, answer: &Answer) {
    let nothing = matches!(&answer.body, Some(answer::Body::ClaimTasks(claim)) if claim.tasks.is_empty());
    if !nothing && rooms.sessions.get(&request.session_id).is_some() {
        rooms.sessions.record(out, request, answer);
    }
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
        C::DescribeCluster(r) => A::DescribeCluster(cluster::describe(out, ctx, r)?),
        C::Tick(_) => {
            agents::run_due(rooms, out, ctx, DUE_PER_TICK)?;
            breakers::run_due(rooms, out, ctx, DUE_PER_TICK)?;
            tasks::run_due(rooms, out, ctx, DUE_PER_TICK)?;
            A::Tick(Done {})
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
    pub rooms: Rooms,
    /// The rows.
    pub rows: MemoryRows,
    /// Where it stands.
    pub head: Head,
    /// The hints of the last batch.
    pub effects: Vec<Effect>,
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
        self.effects.clear();
        let mut txn = Txn::new(&self.rows, self.head.digest);
        let answers = apply_batch(&mut self.rooms, &mut txn, &mut self.head, payload, &mut self.effects)?;
        self.head.digest = txn.digest();
        for (key, value) in txn.into_writes() {
            match value {
                Some(value) => self.rows.0.insert(key, value),
                None => self.rows.0.remove(&key),
            };
        }
        Ok(answers)
    }

    /// The running digest.
    pub fn digest(&self) -> u128 {
        self.head.digest
    }
}
