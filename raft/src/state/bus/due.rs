//! Due things: subscriptions that go, messages that are too old, deliveries that nobody acknowledged in time, pauses
//! and delays that are over, message ids to forget.

use std::sync::Arc;

use quorate_proto::v1::PendingDelivery;

use super::queue::Due;
use super::{Bus, endings, load, publish, subscribe};
use crate::effect::Effect;
use crate::error::{Fatal, Outcome};
use crate::state::{Ctx, Out, Rooms};

/// Does what is due, at most `limit` things of each of three sorts. The rest stays due.
pub fn run_due(rooms: &mut Rooms, out: &mut Out<'_, '_>, ctx: &Ctx, limit: usize) -> Outcome<()> {
    let bus = &mut rooms.bus;
    subscribe::remove_due(bus, out, limit)?;
    for _ in 0..limit {
        let Some(name) = first_due(bus, ctx) else { break };
        step(bus, out, ctx, &name)?;
    }
    for _ in 0..limit {
        if !publish::forget_due(bus, out, ctx) {
            break;
        }
    }
    Ok(())
}

fn first_due(bus: &Bus, ctx: &Ctx) -> Option<Arc<str>> {
    let (at_ms, name) = bus.due.first()?;
    (*at_ms <= ctx.now_ms).then(|| Arc::clone(name))
}

/// One due thing of a subscription that has some.
fn step(bus: &mut Bus, out: &mut Out<'_, '_>, ctx: &Ctx, name: &str) -> Result<(), Fatal> {
    let Some(due) = bus.sub(name)?.queue.due(ctx.now_ms) else {
        return Err(Fatal::Corrupt(format!("nothing is due in {name:?}, but an index says so")));
    };
    match due {
        Due::Expiry(seq) => {
            let row = load(&*out.txn, name, seq)?;
            endings::expire(bus, out, &row)
        }
        Due::Deadline(seq) => {
            let row = load(&*out.txn, name, seq)?;
            let reason = format!("no ack within {} ms", row.deadline_ms.saturating_sub(row.since_ms));
            out.effects.push(Effect::DeliveryGone {
                subscription: name.to_owned(),
                consumer_id: row.consumer_id.clone(),
                seq,
                token: row.token,
            });
            endings::fail(bus, out, ctx, &row, &reason, None)
        }
        Due::Delay(seq) => {
            let row = load(&*out.txn, name, seq)?;
            let next = PendingDelivery { not_before_ms: 0, ..row.clone() };
            endings::replace(bus, out, &row, &next)
        }
    }
}
