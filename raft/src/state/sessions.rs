//! Sessions: the one lease everything else hangs on, and the record of answered requests.
//!
//! Owns the Session rows, the Request rows, and in memory the live sessions with the sequences they had answered.
//! A Request row's value is the session's `done_below` at that time (8 bytes, big endian) followed by the encoded
//! `log.Answer`: the newest kept row always carries the highest `done_below`, so it needs no row of its own.
//!
//! Deliberately absent: deadlines and keep-alives. Those are the leader's memory; only opening, closing and expiry
//! are commands.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{BufMut, BytesMut};
use prost::Message;
use quorate_proto::log::{Answer, Done, ExpireSession};
use quorate_proto::v1::{
    CloseSessionRequest, CloseSessionResponse, OpenSessionRequest, OpenSessionResponse, RegisterAgentRequest,
    RegisterAgentResponse, Rejection, RejectionCode, RequestId, Session,
};

use crate::effect::Effect;
use crate::error::{Fatal, Outcome, exhausted, invalid, not_found, reject};
use crate::state::{Ctx, Out, Rooms, agents, bus, check_id, check_quota, kv, locks, tasks};
use crate::storage::keys::{Key, Table};
use crate::storage::rows::{self, Rows};

/// The most sessions that may live at once.
pub const MAX_SESSIONS: usize = 20_000;
/// The shortest time to live a session may ask for.
pub const MIN_TTL_MS: u64 = 1_000;
/// The longest time to live a session may ask for.
pub const MAX_TTL_MS: u64 = 3_600_000;
/// How many answers one session may leave unacknowledged.
pub const MAX_KEPT_ANSWERS: usize = 4_096;

const MAX_CLIENT_BYTES: usize = 512;
const DONE_BELOW_BYTES: usize = 8;

/// The live sessions.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Sessions {
    live: BTreeMap<String, Live>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Live {
    session: Session,
    /// Sequences whose answer is kept.
    answered: BTreeSet<u64>,
    /// Every sequence below this one was acknowledged by the client, and its answer forgotten.
    done_below: u64,
}

impl Live {
    fn new(session: Session) -> Self {
        Live { session, answered: BTreeSet::new(), done_below: 0 }
    }
}

/// What the request record knows about a command.
#[derive(Debug, Clone, PartialEq)]
pub enum Recorded {
    /// Never seen: run it.
    New,
    /// Answered before: give this answer again.
    Answered(Box<Answer>),
    /// It can neither be run nor be answered.
    Refused(Rejection),
}

impl Sessions {
    /// Builds the index from the rows.
    pub fn rebuild(rows: &dyn Rows) -> Result<Self, Fatal> {
        let mut live = BTreeMap::new();
        rows::scan_prefix::<Session>(rows, &Key::table(Table::Session), |_, session| {
            live.insert(session.id.clone(), Live::new(session));
            Ok(true)
        })?;
        let requests = Key::table(Table::Request);
        rows.scan(requests.as_bytes(), &requests.prefix_end(), &mut |key, value| {
            let (session_id, sequence) = split_request_key(key)?;
            let Some(live) = live.get_mut(session_id) else {
                return Err(Fatal::Corrupt(format!("a request row of the unknown session {session_id:?}")));
            };
            live.answered.insert(sequence);
            live.done_below = live.done_below.max(split_request_value(value)?.0);
            Ok(true)
        })?;
        Ok(Sessions { live })
    }

    /// A live session.
    pub fn get(&self, id: &str) -> Option<&Session> {
        self.live.get(id).map(|live| &live.session)
    }

    /// Every live session, by id.
    pub fn iter(&self) -> impl Iterator<Item = &Session> {
        self.live.values().map(|live| &live.session)
    }

    /// How many sessions live.
    pub fn len(&self) -> usize {
        self.live.len()
    }

    /// Whether no session lives.
    pub fn is_empty(&self) -> bool {
        self.live.is_empty()
    }

    /// Looks a request up before it is run.
    pub fn recorded(&self, rows: &dyn Rows, req: &RequestId) -> Result<Recorded, Fatal> {
        let Some(live) = self.live.get(&req.session_id) else {
            let message = format!("session {:?} has ended or never was; open a new one", req.session_id);
            return Ok(refused(RejectionCode::NotFound, "request.session_id", message));
        };
        if req.done_below > req.sequence {
            let message =
                format!("request.done_below must be at most the sequence {}; got {}", req.sequence, req.done_below);
            return Ok(refused(RejectionCode::InvalidArgument, "request.done_below", message));
        }
        if req.sequence < live.done_below {
            let message = format!(
                "request.sequence {} was acknowledged by done_below {} and its answer is forgotten",
                req.sequence, live.done_below
            );
            return Ok(refused(RejectionCode::FailedPrecondition, "request.sequence", message));
        }
        if live.answered.contains(&req.sequence) {
            let key = request_key(&req.session_id, req.sequence);
            let Some(value) = rows.get_bytes(key.as_bytes())? else {
                return Err(Fatal::Corrupt(format!("no row for the answered request {req:?}")));
            };
            return Ok(Recorded::Answered(Box::new(Answer::decode(split_request_value(&value)?.1)?)));
        }
        // Counting is needed only when there could be too many: this request may acknowledge some itself.
        if live.answered.len() >= MAX_KEPT_ANSWERS && live.answered.range(req.done_below..).count() >= MAX_KEPT_ANSWERS
        {
            let message =
                format!("the session has {MAX_KEPT_ANSWERS} answers unacknowledged; raise request.done_below to go on");
            return Ok(refused(RejectionCode::ResourceExhausted, "request.done_below", message));
        }
        Ok(Recorded::New)
    }

    /// Keeps the answer of a request that [`Sessions::recorded`] called new, and forgets what the client acknowledged.
    pub fn record(&mut self, out: &mut Out<'_, '_>, req: &RequestId, answer: &Answer) {
        let Some(live) = self.live.get_mut(&req.session_id) else {
            return;
        };
        if req.done_below > live.done_below {
            live.done_below = req.done_below;
            let kept = live.answered.split_off(&req.done_below);
            for sequence in std::mem::replace(&mut live.answered, kept) {
                out.txn.delete(&request_key(&req.session_id, sequence));
            }
        }
        live.answered.insert(req.sequence);
        let mut value = BytesMut::with_capacity(DONE_BELOW_BYTES + answer.encoded_len());
        value.put_u64(live.done_below);
        value.put_slice(&answer.encode_to_vec());
        out.txn.put_bytes(&request_key(&req.session_id, req.sequence), value.freeze());
    }
}

/// Opens a session, or resumes a live one: its epoch moves on, so an expiry proposed before is refused.
pub fn open(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    req: OpenSessionRequest,
) -> Outcome<OpenSessionResponse> {
    check_id("session_id", &req.session_id)?;
    if !(MIN_TTL_MS..=MAX_TTL_MS).contains(&req.ttl_ms) {
        return Err(invalid("ttl_ms", format!("ttl_ms must be {MIN_TTL_MS} to {MAX_TTL_MS}; got {}", req.ttl_ms)));
    }
    if req.client.len() > MAX_CLIENT_BYTES {
        return Err(invalid("client", format!("client must be at most {MAX_CLIENT_BYTES} bytes")));
    }
    let sessions = &mut rooms.sessions.live;
    if !sessions.contains_key(&req.session_id) && sessions.len() >= MAX_SESSIONS {
        return Err(exhausted("session_id", format!("{MAX_SESSIONS} sessions are open; close some first")));
    }
    if !sessions.contains_key(&req.session_id) {
        check_quota("max_sessions", rooms.quotas.max_sessions, sessions.len() as u64, 1)?;
    }
    let live = sessions
        .entry(req.session_id.clone())
        .or_insert_with(|| Live::new(Session { id: req.session_id, opened_at_ms: ctx.now_ms, ..Session::default() }));
    live.session.epoch = ctx.rev;
    live.session.ttl_ms = req.ttl_ms;
    if !req.client.is_empty() {
        live.session.client = req.client;
    }
    let session = live.session.clone();
    out.txn.put(&session_key(&session.id), &session);
    out.effects.push(Effect::SessionOpened {
        session_id: session.id.clone(),
        epoch: session.epoch,
        ttl_ms: session.ttl_ms,
    });
    Ok(OpenSessionResponse { session: Some(session), rev: ctx.rev })
}

/// Registers an agent under a live session: the one fact about agents that only this room knows.
pub fn register_agent(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    req: RegisterAgentRequest,
) -> Outcome<RegisterAgentResponse> {
    check_id("session_id", &req.session_id)?;
    if rooms.sessions.get(&req.session_id).is_none() {
        let message = format!("session {:?} has ended or never was; open one first", req.session_id);
        return Err(not_found("session_id", message));
    }
    agents::register(rooms, out, ctx, req)
}

/// Ends a session because its client says so.
pub fn close(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    req: CloseSessionRequest,
) -> Outcome<CloseSessionResponse> {
    if rooms.sessions.get(&req.session_id).is_none() {
        return Err(no_session(&req.session_id));
    }
    let released_tasks = end(rooms, out, ctx, &req.session_id)?;
    Ok(CloseSessionResponse { released_tasks, rev: ctx.rev })
}

/// Ends a session because a leader saw its deadline pass, unless it was resumed since.
pub fn expire(rooms: &mut Rooms, out: &mut Out<'_, '_>, ctx: &Ctx, req: ExpireSession) -> Outcome<Done> {
    let Some(session) = rooms.sessions.get(&req.session_id) else {
        return Err(no_session(&req.session_id));
    };
    if session.epoch != req.epoch {
        let message = format!("session {:?} is at epoch {}, not {}", req.session_id, session.epoch, req.epoch);
        return Err(reject(RejectionCode::Aborted, "epoch", message));
    }
    end(rooms, out, ctx, &req.session_id)?;
    Ok(Done {})
}

/// Claims first: they give load back to the agents, which are looked at next.
fn end(rooms: &mut Rooms, out: &mut Out<'_, '_>, ctx: &Ctx, session_id: &str) -> Result<u64, Fatal> {
    let released = tasks::session_ended(rooms, out, ctx, session_id)?;
    agents::session_ended(rooms, out, ctx, session_id)?;
    locks::session_ended(rooms, out, ctx, session_id)?;
    bus::session_ended(rooms, out, ctx, session_id)?;
    kv::session_ended(rooms, out, ctx, session_id)?;
    if let Some(live) = rooms.sessions.live.remove(session_id) {
        for sequence in live.answered {
            out.txn.delete(&request_key(session_id, sequence));
        }
    }
    out.txn.delete(&session_key(session_id));
    out.effects.push(Effect::SessionEnded { session_id: session_id.to_owned() });
    Ok(released)
}

fn no_session(session_id: &str) -> crate::error::Error {
    not_found("session_id", format!("session {session_id:?} has ended or never was"))
}

fn refused(code: RejectionCode, field: &str, message: String) -> Recorded {
    Recorded::Refused(Rejection { code: code as i32, field: field.to_owned(), message })
}

fn session_key(session_id: &str) -> Key {
    Key::table(Table::Session).text(session_id)
}

fn request_key(session_id: &str, sequence: u64) -> Key {
    Key::table(Table::Request).text(session_id).number(sequence)
}

/// Session id and sequence out of a Request key: tag, id, zero, 8 bytes.
fn split_request_key(key: &[u8]) -> Result<(&str, u64), Fatal> {
    let corrupt = || Fatal::Corrupt(format!("not a request key: {key:?}"));
    let (text, number) = key.split_last_chunk::<8>().ok_or_else(corrupt)?;
    let id = text.strip_suffix(&[0_u8]).and_then(|text| text.get(1..)).ok_or_else(corrupt)?;
    Ok((std::str::from_utf8(id).map_err(|_| corrupt())?, u64::from_be_bytes(*number)))
}

/// `done_below` and the encoded answer out of a Request row.
fn split_request_value(value: &[u8]) -> Result<(u64, &[u8]), Fatal> {
    let (done_below, answer) = value
        .split_first_chunk::<DONE_BELOW_BYTES>()
        .ok_or_else(|| Fatal::Corrupt("a request row is shorter than its header".to_owned()))?;
    Ok((u64::from_be_bytes(*done_below), answer))
}
