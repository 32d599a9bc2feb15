//! What every command ends with: what is ready goes to consumers that have room, and the counters are written.

use std::sync::Arc;

use super::{Bus, counts_key, endings, load, totals_key};
use crate::effect::Effect;
use crate::error::Fatal;
use crate::state::{Ctx, Out, Rooms};

/// How many messages one command assigns. A tick goes on with the rest.
pub const ASSIGN_PER_COMMAND: usize = 1_024;

/// Assigns what can be, and writes down what the command counted.
pub fn settle(rooms: &mut Rooms, out: &mut Out<'_, '_>, ctx: &Ctx) -> Result<(), Fatal> {
    let bus = &mut rooms.bus;
    let mut left = ASSIGN_PER_COMMAND;
    while left > 0 && !bus.assignable.is_empty() {
        // Each gets its share, so that a busy one does not keep the others waiting.
        let names: Vec<Arc<str>> = bus.assignable.iter().take(left).cloned().collect();
        let share = (left / names.len().max(1)).max(1);
        for name in names {
            left -= assign(bus, out, ctx, &name, share.min(left))?;
        }
    }
    if !bus.assignable.is_empty() {
        out.effects.push(Effect::BusLeft);
    }
    write_down(bus, out);
    Ok(())
}

/// Assigns up to `most` messages of one subscription, and tells how many steps it took.
fn assign(bus: &mut Bus, out: &mut Out<'_, '_>, ctx: &Ctx, name: &str, most: usize) -> Result<usize, Fatal> {
    for step in 0..most {
        let Some((seq, consumer_id)) = bus.sub(name)?.queue.next_pair() else { return Ok(step) };
        let row = load(&*out.txn, name, seq)?;
        if endings::is_expired(&row, ctx) {
            endings::expire(bus, out, &row)?;
            continue;
        }
        let mut next = row.clone();
        next.consumer_id = consumer_id.to_string();
        next.token = ctx.rev;
        next.since_ms = ctx.now_ms;
        next.deadline_ms = bus.sub(name)?.deadline_ms(ctx.now_ms);
        endings::replace(bus, out, &row, &next)?;
        if next.attempts > 0 {
            bus.count(name, |counts| counts.redelivered += 1)?;
        }
        out.effects.push(Effect::Delivered {
            subscription: next.subscription,
            consumer_id: next.consumer_id,
            seq,
            token: ctx.rev,
        });
    }
    Ok(most)
}

/// Each counter's row is written once a command, however often it moved.
fn write_down(bus: &mut Bus, out: &mut Out<'_, '_>) {
    let moved = std::mem::take(&mut bus.moved);
    for name in &moved.counts {
        // One that was removed meanwhile has no row any more.
        if let Some(sub) = bus.subs.get(name) {
            out.txn.put(&counts_key(name), &sub.counts);
        }
    }
    if moved.totals {
        out.txn.put(&totals_key(), &bus.totals);
    }
}
