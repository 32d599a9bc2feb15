//! Subscriptions come and go. One that goes is detached at once: nothing enters it, nobody holds anything of it. Its
//! rows are removed a part at a time, by ticks if they are many.

use std::sync::Arc;

use quorate_proto::v1::{
    PublishRequest, RejectionCode, SubscribeRequest, SubscribeResponse, Subscription, SubscriptionSpec,
    UnsubscribeRequest, UnsubscribeResponse,
};

use super::queue::Queue;
use super::{Bus, Left, Rules, Sub, checked, consumers, counts_key, dead, messages, numbers, pending_key, sub_key};
use crate::error::{Error, Fatal, Outcome, exhausted, not_found, precondition, reject};
use crate::state::{Ctx, Out, Rooms, check_id};
use crate::storage::keys::Table;
use crate::storage::rows::Rows;

/// The most subscriptions that may exist at once.
pub const MAX_SUBSCRIPTIONS: usize = 50_000;
/// How many of them may go with one session.
pub const MAX_SESSION_SUBSCRIPTIONS: usize = 1_024;
/// How many messages one command removes of subscriptions that go. A tick goes on with the rest.
pub const REMOVE_PER_COMMAND: usize = 1_000;

/// Creates a subscription, finds it as it is, or gives it another specification.
pub fn subscribe(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    req: SubscribeRequest,
) -> Outcome<SubscribeResponse> {
    let spec = checked::spec(req.spec)?;
    let known = rooms.bus.subs.get(spec.name.as_str());
    let existed = known.is_some();
    match known {
        Some(known) if known.row.removing => return Err(being_removed("spec.name", &spec.name)),
        Some(known) if known.row.spec.as_ref() == Some(&spec) => {
            return Ok(SubscribeResponse { subscription: Some(known.row.clone()), existed, rev: ctx.rev });
        }
        Some(_) if !req.replace => {
            let message = format!("subscription {:?} exists with another specification; set replace", spec.name);
            return Err(reject(RejectionCode::AlreadyExists, "spec.name", message));
        }
        Some(_) => {}
        None => check_room(&rooms.bus, "spec.name")?,
    }
    check_session(rooms, &spec)?;
    let name = spec.name.clone();
    if existed {
        respecify(&mut rooms.bus, spec)?;
    } else {
        create(&mut rooms.bus, ctx, spec)?;
    }
    store(&mut rooms.bus, out, &name)?;
    let subscription = Some(rooms.bus.sub(&name)?.row.clone());
    Ok(SubscribeResponse { subscription, existed, rev: ctx.rev })
}

/// Removes a subscription with all that is in it.
pub fn unsubscribe(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    req: UnsubscribeRequest,
) -> Outcome<UnsubscribeResponse> {
    check_id("name", &req.name)?;
    let Some(sub) = rooms.bus.subs.get(req.name.as_str()) else {
        return Err(not_found("name", format!("no subscription {:?} exists", req.name)));
    };
    if !sub.row.removing {
        begin_removal(&mut rooms.bus, out, &req.name)?;
        remove_some(&mut rooms.bus, out, &req.name, REMOVE_PER_COMMAND)?;
    }
    Ok(UnsubscribeResponse { rev: ctx.rev })
}

/// Creates the subscription that a publisher wants to be there, if it is not.
pub(super) fn ensure(rooms: &mut Rooms, out: &mut Out<'_, '_>, ctx: &Ctx, req: &PublishRequest) -> Result<(), Fatal> {
    let name = req.ensure_subscription.as_str();
    if let Some(first) = req.messages.first()
        && !name.is_empty()
        && !rooms.bus.subs.contains_key(name)
    {
        create(&mut rooms.bus, ctx, checked::default_spec(name, &first.subject))?;
        store(&mut rooms.bus, out, name)?;
    }
    Ok(())
}

/// Whether one more may be created.
pub(super) fn check_room(bus: &Bus, field: &str) -> Outcome<()> {
    if bus.subs.len() >= MAX_SUBSCRIPTIONS {
        return Err(exhausted(field, format!("{MAX_SUBSCRIPTIONS} subscriptions exist; remove some first")));
    }
    Ok(())
}

pub(super) fn being_removed(field: &str, name: &str) -> Error {
    precondition(field, format!("subscription {name:?} is being removed; try again in a moment"))
}

/// The session's subscriptions go with it.
pub(super) fn session_ended(bus: &mut Bus, out: &mut Out<'_, '_>, session_id: &str) -> Result<(), Fatal> {
    let names: Vec<Arc<str>> = bus.ephemeral.get(session_id).into_iter().flatten().cloned().collect();
    let mut left = REMOVE_PER_COMMAND;
    for name in names {
        begin_removal(bus, out, &name)?;
        left = left.saturating_sub(remove_some(bus, out, &name, left)?.max(1));
    }
    Ok(())
}

/// Goes on removing, at most `most` steps, and tells how many it were. An empty subscription is a step too.
pub(super) fn remove_due(bus: &mut Bus, out: &mut Out<'_, '_>, most: usize) -> Result<usize, Fatal> {
    let mut removed = 0;
    while removed < most
        && let Some(name) = bus.removing.first().cloned()
    {
        removed += remove_some(bus, out, &name, most - removed)?.max(1);
    }
    Ok(removed)
}

/// The session that a subscription goes with lives, and has room for it.
fn check_session(rooms: &Rooms, spec: &SubscriptionSpec) -> Outcome<()> {
    let id = spec.session_id.as_str();
    if id.is_empty() {
        return Ok(());
    }
    if rooms.sessions.get(id).is_none() {
        return Err(not_found("spec.session_id", format!("session {id:?} has ended or never was")));
    }
    let of_session = rooms.bus.ephemeral.get(id);
    let counted = of_session.is_some_and(|names| names.contains(spec.name.as_str()));
    if !counted && of_session.is_some_and(|names| names.len() >= MAX_SESSION_SUBSCRIPTIONS) {
        let message = format!("session {id:?} has {MAX_SESSION_SUBSCRIPTIONS} subscriptions; remove some first");
        return Err(exhausted("spec.session_id", message));
    }
    Ok(())
}

fn create(bus: &mut Bus, ctx: &Ctx, spec: SubscriptionSpec) -> Result<(), Fatal> {
    let row =
        Subscription { spec: Some(spec), created_at_ms: ctx.now_ms, created_rev: ctx.rev, ..Subscription::default() };
    bus.add(Sub::new(row)?);
    Ok(())
}

/// What is in it stays, and so do its counters.
fn respecify(bus: &mut Bus, spec: SubscriptionSpec) -> Result<(), Fatal> {
    bus.detach(&spec.name);
    let Some(mut sub) = bus.subs.remove(spec.name.as_str()) else {
        return Err(super::no_sub(&spec.name));
    };
    sub.rules = Rules::of(&spec);
    sub.row.spec = Some(spec);
    bus.add(sub);
    Ok(())
}

fn store(bus: &mut Bus, out: &mut Out<'_, '_>, name: &str) -> Result<(), Fatal> {
    out.txn.put(&sub_key(name), &bus.sub(name)?.row);
    Ok(())
}

/// From here on it is only rows. [`remove_some`] finds the first of the dead ones, which memory does not know.
fn begin_removal(bus: &mut Bus, out: &mut Out<'_, '_>, name: &str) -> Result<(), Fatal> {
    consumers::all_leave(bus, out, name)?;
    bus.detach(name);
    let dead = bus.change(name, |sub| {
        sub.left = Left { pending: sub.queue.oldest(), dead: (sub.dead > 0).then_some(0) };
        sub.queue = Queue::default();
        sub.row.removing = true;
        Ok(sub.dead)
    })?;
    bus.count_dead(name, -i64::try_from(dead).unwrap_or(i64::MAX))?;
    bus.removing.insert(Arc::clone(&bus.sub(name)?.name));
    store(bus, out, name)
}

/// Removes a part of what is left: messages, then dead ones, with the last of them the subscription. Tells how many
/// messages.
fn remove_some(bus: &mut Bus, out: &mut Out<'_, '_>, name: &str, most: usize) -> Result<usize, Fatal> {
    let mut left = bus.sub(name)?.left;
    let waiting = take(&*out.txn, Table::Pending, name, &mut left.pending, most)?;
    for seq in &waiting {
        out.txn.delete(&pending_key(name, *seq));
        messages::release(bus, out, *seq)?;
    }
    let buried = take(&*out.txn, Table::DeadMessage, name, &mut left.dead, most - waiting.len())?;
    for seq in &buried {
        dead::remove(bus, out, name, *seq)?;
    }
    if left == Left::default() {
        out.txn.delete(&sub_key(name));
        out.txn.delete(&counts_key(name));
        bus.removing.remove(name);
        bus.subs.remove(name);
    } else {
        bus.sub_mut(name)?.left = left;
    }
    Ok(waiting.len() + buried.len())
}

/// The next of the numbers in a table, at most `most`. `left` becomes the one behind them.
fn take(rows: &dyn Rows, table: Table, name: &str, left: &mut Option<u64>, most: usize) -> Result<Vec<u64>, Fatal> {
    let Some(from) = *left else { return Ok(Vec::new()) };
    let mut found = numbers(rows, table, name, from, most + 1)?;
    *left = if found.len() > most { found.pop() } else { None };
    Ok(found)
}
