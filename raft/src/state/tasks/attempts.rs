//! Attempts: one row for each try at a task, kept as long as the task.
//!
//! Owns the Attempt and AgentAttempt rows. An AgentAttempt key ends with the task's id, because one command may grant
//! an agent several tasks under the same token. Its value is the task's id, a NUL and the number (8 bytes, big endian).

use bytes::{BufMut, Bytes, BytesMut};
use quorate_proto::v1::{Agent, Attempt, AttemptOutcome, Claim, FinishTaskRequest, Orphan, Task};

use crate::error::Fatal;
use crate::state::breakers::{self, Verdict};
use crate::state::retries::policy as retry;
use crate::state::{Ctx, Out, Rooms, locks, progress};
use crate::storage::keys::{Key, Table};
use crate::storage::rows::{self, Rows};

/// How much of an attempt's output is kept: the end of it.
pub const MAX_OUTPUT_BYTES: usize = 64 * 1024;
/// How much of an error message is kept: the beginning of it.
pub const MAX_ERROR_BYTES: usize = 64 * 1024;

/// The error class of a provider that asks for a pause: nobody's failure.
pub(super) const RATE_LIMITED: &str = "rate_limited";

/// How an attempt ended.
#[derive(Debug, Default)]
pub(super) struct Ending {
    pub(super) outcome: AttemptOutcome,
    pub(super) exit_code: Option<i32>,
    pub(super) stdout: Bytes,
    pub(super) stderr: Bytes,
    pub(super) error: String,
    pub(super) error_class: String,
    /// The worker said that it stopped.
    pub(super) acknowledged: bool,
}

impl Ending {
    pub(super) fn of(outcome: AttemptOutcome, error: &str) -> Self {
        Ending { outcome, error: error.to_owned(), ..Ending::default() }
    }

    pub(super) fn classed(outcome: AttemptOutcome, error: &str, class: &str) -> Self {
        Ending { error_class: class.to_owned(), ..Ending::of(outcome, error) }
    }
}

pub(super) fn key(task_id: &str, number: u32) -> Key {
    Key::table(Table::Attempt).text(task_id).number(u64::from(number))
}

/// Newest first: the greater the token, the smaller the key.
pub(super) fn agent_key(agent_id: &str) -> Key {
    Key::table(Table::AgentAttempt).text(agent_id)
}

/// Writes the rows of an attempt that begins with this claim.
pub(super) fn begin(out: &mut Out<'_, '_>, task_id: &str, agent: &Agent, claim: &Claim) {
    let attempt = Attempt {
        task_id: task_id.to_owned(),
        number: claim.attempt,
        agent_id: agent.id.clone(),
        agent_type: agent.agent_type.clone(),
        session_id: claim.session_id.clone(),
        token: claim.token,
        outcome: AttemptOutcome::Running as i32,
        started_at_ms: claim.claimed_at_ms,
        ..Attempt::default()
    };
    out.txn.put(&key(task_id, claim.attempt), &attempt);
    let mut value = BytesMut::with_capacity(task_id.len() + 9);
    value.put_slice(task_id.as_bytes());
    value.put_u8(0);
    value.put_u64(u64::from(claim.attempt));
    out.txn.put_bytes(&agent_key(&agent.id).number(u64::MAX - claim.token).text(task_id), value.freeze());
}

/// Writes down how the attempt of this claim ended, and lets the breakers that it ran under know.
pub(super) fn end(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    task: &Task,
    claim: &Claim,
    ending: Ending,
) -> Result<(), Fatal> {
    let mut attempt = get(&*out.txn, &task.id, claim.attempt)?;
    feed_breakers(rooms, out, ctx, task, claim, &ending);
    attempt.outcome = ending.outcome as i32;
    attempt.ended_at_ms = ctx.now_ms;
    attempt.exit_code = ending.exit_code;
    attempt.stdout = tail(ending.stdout);
    attempt.stderr = tail(ending.stderr);
    attempt.error = ending.error;
    attempt.error_class = ending.error_class;
    attempt.cancel_acknowledged = ending.acknowledged;
    out.txn.put(&key(&task.id, claim.attempt), &attempt);
    progress::attempt_ended(rooms, out, ctx);
    locks::attempt_ended(rooms, out, ctx, &task.id, claim.token)?;
    Ok(())
}

/// A failure that is the task's own fault (its class is final) says nothing about the agent or the provider.
fn feed_breakers(rooms: &mut Rooms, out: &mut Out<'_, '_>, ctx: &Ctx, task: &Task, claim: &Claim, ending: &Ending) {
    let own_fault = retry::is_final(&super::policy(task), &ending.error_class);
    let verdict = match ending.outcome {
        AttemptOutcome::Completed => Verdict::Success,
        AttemptOutcome::Lost => Verdict::Lost { error: &ending.error },
        AttemptOutcome::Failed if own_fault || ending.error_class == RATE_LIMITED => Verdict::Nothing,
        AttemptOutcome::Failed | AttemptOutcome::TimedOut => {
            Verdict::Failure { error: &ending.error, class: &ending.error_class }
        }
        _ => Verdict::Nothing,
    };
    // Nothing was ever said of any, and this says nothing against one.
    if rooms.breakers.is_quiet() && matches!(verdict, Verdict::Success | Verdict::Nothing) {
        return;
    }
    let uses = task.spec.iter().flat_map(|spec| &spec.uses).cloned();
    for name in uses.chain([breakers::agent_breaker(&claim.agent_id)]) {
        let probe = claim.probes.contains(&name).then_some(claim.token);
        // A worker that dies is its own fault, not the provider's.
        let verdict = match verdict {
            Verdict::Lost { .. } if name != breakers::agent_breaker(&claim.agent_id) => Verdict::Nothing,
            verdict => verdict,
        };
        breakers::record(&mut rooms.breakers, out, ctx, &name, verdict, probe);
    }
}

/// Keeps a finish that came too late, for audit. The first one counts.
pub(super) fn keep_orphan(out: &mut Out<'_, '_>, ctx: &Ctx, mut attempt: Attempt, req: &FinishTaskRequest) {
    if attempt.orphan.is_none() {
        attempt.orphan = Some(Orphan {
            kind: req.kind,
            result: req.result.clone(),
            error: clip(&req.error),
            received_at_ms: ctx.now_ms,
        });
        out.txn.put(&key(&attempt.task_id, attempt.number), &attempt);
    }
}

/// One attempt that must exist.
pub(super) fn get(rows: &dyn Rows, task_id: &str, number: u32) -> Result<Attempt, Fatal> {
    rows::get(rows, &key(task_id, number))?
        .ok_or_else(|| Fatal::Corrupt(format!("attempt {number} of task {task_id:?} has no row")))
}

/// The attempt that had this token. Numbers and tokens rise together, so halving finds it however many there are.
pub(super) fn find(rows: &dyn Rows, task: &Task, token: u64) -> Result<Option<Attempt>, Fatal> {
    let (mut from, mut to) = (1, task.attempts);
    while from <= to {
        let middle = from + (to - from) / 2;
        let attempt = get(rows, &task.id, middle)?;
        if attempt.token == token {
            return Ok(Some(attempt));
        }
        if attempt.token < token {
            from = middle + 1;
        } else {
            to = middle - 1;
        }
    }
    Ok(None)
}

/// Task id and attempt number out of an AgentAttempt row's value.
pub(super) fn split_agent_value(value: &[u8]) -> Result<(&str, u32), Fatal> {
    let corrupt = || Fatal::Corrupt(format!("not an agent's attempt: {value:?}"));
    let (text, number) = value.split_last_chunk::<8>().ok_or_else(corrupt)?;
    let id = text.strip_suffix(&[0_u8]).ok_or_else(corrupt)?;
    let number = u32::try_from(u64::from_be_bytes(*number)).map_err(|_| corrupt())?;
    Ok((std::str::from_utf8(id).map_err(|_| corrupt())?, number))
}

/// The beginning of an error message.
pub(super) fn clip(error: &str) -> String {
    error[..error.floor_char_boundary(MAX_ERROR_BYTES)].to_owned()
}

/// The end of an output.
fn tail(output: Bytes) -> Bytes {
    output.slice(output.len().saturating_sub(MAX_OUTPUT_BYTES)..)
}
