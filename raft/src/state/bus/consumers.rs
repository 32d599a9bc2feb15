//! Consumers: the members of a subscription, each with its credit. A consumer belongs to a session and ends with it, or
//! when it leaves; a broken stream is not the end of it.

use std::sync::Arc;

use quorate_proto::log::Done;
use quorate_proto::v1::{ConsumeRequest, Consumer, LeaveRequest, LeaveResponse};

use super::{Bus, endings, load, subscribe};
use crate::effect::Effect;
use crate::error::{Error, Fatal, Outcome, exhausted, invalid, not_found, precondition};
use crate::state::{Ctx, Out, Rooms, check_id, remove_from};
use crate::storage::keys::{Key, Table};

/// The most consumers of one subscription.
pub const MAX_CONSUMERS: usize = 1_000;
/// The most consumers of one session.
pub const MAX_SESSION_CONSUMERS: usize = 64;
/// The most deliveries that one consumer may have unacknowledged.
pub const MAX_CREDIT: u32 = 1_024;
/// The most that all consumers of one session may: its end moves each of them in one command.
pub const MAX_SESSION_CREDIT: u64 = 16_384;

/// What a delivery ended with whose session did.
const SESSION_ENDED: &str = "session ended";

/// Makes the session a consumer, or gives the one that it is another credit. What it holds stays with it.
pub fn consume(rooms: &mut Rooms, out: &mut Out<'_, '_>, ctx: &Ctx, req: ConsumeRequest) -> Outcome<Done> {
    check_id("subscription", &req.subscription)?;
    check_id("session_id", &req.session_id)?;
    let consumer_id = or_session(&req.consumer_id, &req.session_id)?;
    let credit = match req.credit {
        0 => 1,
        credit @ 1..=MAX_CREDIT => credit,
        got => return Err(invalid("credit", format!("credit must be 1 to {MAX_CREDIT}, or 0 for 1; got {got}"))),
    };
    if rooms.sessions.get(&req.session_id).is_none() {
        let message = format!("session {:?} has ended or never was", req.session_id);
        return Err(not_found("session_id", message));
    }
    let since_ms = match existing(&rooms.bus, &req.subscription, consumer_id)? {
        Some(known) if known.session_id != req.session_id => {
            return Err(of_another(known));
        }
        // The same once more: a stream that begins again.
        Some(known) if known.credit == credit => return Ok(Done {}),
        Some(known) => known.since_ms,
        None => {
            check_room(&rooms.bus, &req)?;
            ctx.now_ms
        }
    };
    check_credit(&rooms.bus, &req, consumer_id, credit)?;
    let row = Consumer {
        subscription: req.subscription.clone(),
        consumer_id: consumer_id.to_owned(),
        session_id: req.session_id.clone(),
        credit,
        since_ms,
        in_flight: 0,
    };
    out.txn.put(&key(&req.subscription, consumer_id), &row);
    rooms.bus.join(row)?;
    Ok(Done {})
}

/// The consumer goes. What it holds goes to others at once, and was no attempt.
pub fn leave(rooms: &mut Rooms, out: &mut Out<'_, '_>, ctx: &Ctx, req: LeaveRequest) -> Outcome<LeaveResponse> {
    check_id("subscription", &req.subscription)?;
    check_id("session_id", &req.session_id)?;
    let consumer_id = or_session(&req.consumer_id, &req.session_id)?;
    let Some(known) = existing(&rooms.bus, &req.subscription, consumer_id)? else {
        let message = format!("subscription {:?} has no consumer {consumer_id:?}", req.subscription);
        return Err(not_found("consumer_id", message));
    };
    if known.session_id != req.session_id {
        return Err(of_another(known));
    }
    let bus = &mut rooms.bus;
    let held = held(bus, &req.subscription, consumer_id)?;
    for seq in &held {
        let row = load(&*out.txn, &req.subscription, *seq)?;
        endings::give_back(bus, out, ctx, &row)?;
    }
    remove(bus, out, &req.subscription, consumer_id)?;
    Ok(LeaveResponse { released: held.len() as u64, rev: ctx.rev })
}

/// The session's subscriptions and consumers go with it. What the consumers held has failed once more.
pub fn session_ended(rooms: &mut Rooms, out: &mut Out<'_, '_>, ctx: &Ctx, session_id: &str) -> Result<(), Fatal> {
    let bus = &mut rooms.bus;
    subscribe::session_ended(bus, out, session_id)?;
    let consumers: Vec<(Arc<str>, Arc<str>)> = bus.by_session.get(session_id).into_iter().flatten().cloned().collect();
    for (name, consumer_id) in consumers {
        for seq in held(bus, &name, &consumer_id)? {
            let row = load(&*out.txn, &name, seq)?;
            endings::fail(bus, out, ctx, &row, SESSION_ENDED, None)?;
        }
        remove(bus, out, &name, &consumer_id)?;
    }
    Ok(())
}

/// The subscription goes, and what its consumers hold with it.
pub(super) fn all_leave(bus: &mut Bus, out: &mut Out<'_, '_>, name: &str) -> Result<(), Fatal> {
    let ids: Vec<String> = bus.sub(name)?.queue.members().map(|member| member.row.consumer_id.clone()).collect();
    for consumer_id in ids {
        remove(bus, out, name, &consumer_id)?;
    }
    Ok(())
}

fn or_session<'a>(consumer_id: &'a str, session_id: &'a str) -> Outcome<&'a str> {
    if consumer_id.is_empty() {
        return Ok(session_id);
    }
    check_id("consumer_id", consumer_id)?;
    Ok(consumer_id)
}

/// A consumer of a subscription that exists.
fn existing<'a>(bus: &'a Bus, name: &str, consumer_id: &str) -> Outcome<Option<&'a Consumer>> {
    match bus.subs.get(name) {
        None => Err(not_found("subscription", format!("no subscription {name:?} exists"))),
        Some(sub) if sub.row.removing => Err(not_found("subscription", format!("{name:?} is being removed"))),
        Some(sub) => Ok(sub.queue.member(consumer_id).map(|member| &member.row)),
    }
}

fn of_another(known: &Consumer) -> Error {
    let message = format!(
        "consumer {:?} of {:?} belongs to session {:?}, which has not ended; take another id, or close that session",
        known.consumer_id, known.subscription, known.session_id
    );
    precondition("consumer_id", message)
}

/// One consumer more fits.
fn check_room(bus: &Bus, req: &ConsumeRequest) -> Outcome<()> {
    let members = bus.subs.get(req.subscription.as_str()).map_or(0, |sub| sub.queue.members().len());
    if members >= MAX_CONSUMERS {
        let message = format!("subscription {:?} has {MAX_CONSUMERS} consumers", req.subscription);
        return Err(exhausted("subscription", message));
    }
    if bus.by_session.get(&req.session_id).is_some_and(|all| all.len() >= MAX_SESSION_CONSUMERS) {
        let message = format!("session {:?} is {MAX_SESSION_CONSUMERS} consumers already", req.session_id);
        return Err(exhausted("session_id", message));
    }
    Ok(())
}

/// The session's consumers together have a bound. What a consumer holds counts, so that lowering its credit makes no
/// room for another before it has let go of that.
fn check_credit(bus: &Bus, req: &ConsumeRequest, consumer_id: &str, credit: u32) -> Outcome<()> {
    let others = bus.by_session.get(&req.session_id).into_iter().flatten();
    let others = others.filter(|(name, id)| (&**name, &**id) != (req.subscription.as_str(), consumer_id));
    let of_others: u64 =
        others.filter_map(|(name, id)| bus.subs.get(name)?.queue.member(id)).map(|member| member.reach() as u64).sum();
    let held = bus.subs.get(req.subscription.as_str()).and_then(|sub| sub.queue.member(consumer_id));
    let own = u64::from(credit).max(held.map_or(0, |member| member.held().len() as u64));
    if of_others + own > MAX_SESSION_CREDIT {
        let message = format!(
            "a session's consumers have at most {MAX_SESSION_CREDIT} credit, or deliveries where these are more; its \
             others have {of_others}"
        );
        return Err(exhausted("credit", message));
    }
    Ok(())
}

/// The numbers of what a consumer holds.
fn held(bus: &Bus, name: &str, consumer_id: &str) -> Result<Vec<u64>, Fatal> {
    let member = bus.sub(name)?.queue.member(consumer_id);
    Ok(member.into_iter().flat_map(|member| member.held()).map(|(seq, _)| seq).collect())
}

fn remove(bus: &mut Bus, out: &mut Out<'_, '_>, name: &str, consumer_id: &str) -> Result<(), Fatal> {
    let sub = bus.sub(name)?;
    let session_id = sub.queue.member(consumer_id).map_or("", |member| &member.row.session_id).to_owned();
    let pair = (Arc::clone(&sub.name), Arc::from(consumer_id));
    remove_from(&mut bus.by_session, session_id.as_str(), &pair);
    bus.change(name, |sub| {
        sub.queue.part(consumer_id);
        Ok(())
    })?;
    out.txn.delete(&key(name, consumer_id));
    out.effects.push(Effect::ConsumerGone { subscription: name.to_owned(), consumer_id: consumer_id.to_owned() });
    Ok(())
}

fn key(name: &str, consumer_id: &str) -> Key {
    Key::table(Table::Consumer).text(name).text(consumer_id)
}
