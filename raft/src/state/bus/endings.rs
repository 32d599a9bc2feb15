//! What becomes of a message in a subscription: it goes, it comes back, or it is dead. Each function writes the row and
//! moves the indexes together.

use quorate_proto::v1::{DeadMessage, DeliveryFailure, PendingDelivery};

use super::{Bus, dead, messages, pending_key};
use crate::error::Fatal;
use crate::faults::{Bug, planted};
use crate::state::{Ctx, Out};

/// How many failed deliveries of a message are remembered: the last ones. All of them are counted.
pub const MAX_FAILURES: usize = 10;

/// It was acknowledged.
pub(super) fn acked(bus: &mut Bus, out: &mut Out<'_, '_>, row: &PendingDelivery) -> Result<(), Fatal> {
    bus.count(&row.subscription, |counts| counts.acked += 1)?;
    leave(bus, out, row)
}

/// It is too old to be delivered.
pub(super) fn expire(bus: &mut Bus, out: &mut Out<'_, '_>, row: &PendingDelivery) -> Result<(), Fatal> {
    bus.count(&row.subscription, |counts| counts.expired += 1)?;
    leave(bus, out, row)
}

/// It makes room for another.
pub(super) fn drop_oldest(bus: &mut Bus, out: &mut Out<'_, '_>, row: &PendingDelivery) -> Result<(), Fatal> {
    bus.count(&row.subscription, |counts| counts.dropped += 1)?;
    leave(bus, out, row)
}

/// The delivery was not begun: to anybody, at once. It is no attempt.
pub(super) fn give_back(bus: &mut Bus, out: &mut Out<'_, '_>, ctx: &Ctx, row: &PendingDelivery) -> Result<(), Fatal> {
    come_back(bus, out, ctx, row, waiting(row))
}

/// The delivery ended without an acknowledgement. The message rests for `pause_ms`, or as its subscription says.
pub(super) fn fail(
    bus: &mut Bus,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    row: &PendingDelivery,
    reason: &str,
    pause_ms: Option<u64>,
) -> Result<(), Fatal> {
    let mut next = attempted(ctx, row, reason);
    let rules = &bus.sub(&row.subscription)?.rules;
    if next.attempts >= rules.max_attempts {
        let why = format!("deliveries that failed: {}; the last one: {reason}", next.attempts);
        return bury(bus, out, ctx, row, next, why);
    }
    let pause_ms = pause_ms.unwrap_or_else(|| rules.pause_ms(next.attempts));
    if pause_ms > 0 {
        next.not_before_ms = ctx.now_ms.saturating_add(pause_ms);
    }
    come_back(bus, out, ctx, row, next)
}

/// The delivery failed for good.
pub(super) fn reject(
    bus: &mut Bus,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    row: &PendingDelivery,
    reason: &str,
) -> Result<(), Fatal> {
    let next = attempted(ctx, row, reason);
    bury(bus, out, ctx, row, next, reason.to_owned())
}

/// The row of a message that stays changes.
pub(super) fn replace(
    bus: &mut Bus,
    out: &mut Out<'_, '_>,
    before: &PendingDelivery,
    after: &PendingDelivery,
) -> Result<(), Fatal> {
    bus.change(&before.subscription, |sub| sub.queue.replace(before, after))?;
    out.txn.put(&pending_key(&after.subscription, after.seq), after);
    Ok(())
}

/// Whether it must not be delivered any more.
pub(super) fn is_expired(row: &PendingDelivery, ctx: &Ctx) -> bool {
    row.expires_at_ms > 0 && row.expires_at_ms <= ctx.now_ms
}

/// A message whose time ended while it was delivered goes now that it is back.
fn come_back(
    bus: &mut Bus,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    before: &PendingDelivery,
    after: PendingDelivery,
) -> Result<(), Fatal> {
    match is_expired(before, ctx) {
        true => expire(bus, out, before),
        false => replace(bus, out, before, &after),
    }
}

/// Where dead messages are kept, the dead row takes the pending one's place, and the message stays as it is.
fn bury(
    bus: &mut Bus,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    before: &PendingDelivery,
    after: PendingDelivery,
    reason: String,
) -> Result<(), Fatal> {
    bus.count(&before.subscription, |counts| counts.dead += 1)?;
    if bus.sub(&before.subscription)?.rules.drops_dead || planted(Bug::DeadLetterLost) {
        return leave(bus, out, before);
    }
    part(bus, out, before)?;
    let dead = DeadMessage {
        subscription: after.subscription,
        message: None,
        reason,
        failures: after.failures,
        dead_at_ms: ctx.now_ms,
        seq: after.seq,
    };
    dead::write(bus, out, &dead)
}

fn leave(bus: &mut Bus, out: &mut Out<'_, '_>, row: &PendingDelivery) -> Result<(), Fatal> {
    part(bus, out, row)?;
    messages::release(bus, out, row.seq)
}

/// It is no longer in the queue. Whoever calls this says what becomes of the message.
fn part(bus: &mut Bus, out: &mut Out<'_, '_>, row: &PendingDelivery) -> Result<(), Fatal> {
    bus.change(&row.subscription, |sub| {
        sub.queue.leave(row);
        Ok(())
    })?;
    out.txn.delete(&pending_key(&row.subscription, row.seq));
    Ok(())
}

/// The row once nobody has it.
fn waiting(row: &PendingDelivery) -> PendingDelivery {
    PendingDelivery {
        not_before_ms: 0,
        consumer_id: String::new(),
        token: 0,
        deadline_ms: 0,
        since_ms: 0,
        ..row.clone()
    }
}

fn attempted(ctx: &Ctx, row: &PendingDelivery, reason: &str) -> PendingDelivery {
    let mut next = waiting(row);
    next.attempts += 1;
    next.failures.push(DeliveryFailure {
        attempt: next.attempts,
        at_ms: ctx.now_ms,
        consumer_id: row.consumer_id.clone(),
        reason: reason.to_owned(),
    });
    let forgotten = next.failures.len().saturating_sub(MAX_FAILURES);
    next.failures.drain(..forgotten);
    next
}
