//! Acknowledgements: what consumers say of their deliveries. A token that was superseded moves nothing.

use quorate_proto::v1::{AckItem, AckKind, AckRequest, AckResponse, RejectionCode};

use super::endings::{acked, fail, give_back, reject as bury, replace};
use super::{Bus, checked, load};
use crate::error::{Error, Fatal, Outcome, invalid, reject};
use crate::faults::{Bug, planted};
use crate::state::{Ctx, Out, Rooms};

/// The most deliveries that one request may speak of.
pub const MAX_ACKS: usize = 1_024;

/// What a failure is called that its consumer gave no reason for.
const NO_REASON: &str = "no reason given";

/// Says what became of deliveries. Those that were superseded are listed; if all were, the call is refused.
pub fn ack(rooms: &mut Rooms, out: &mut Out<'_, '_>, ctx: &Ctx, req: AckRequest) -> Outcome<AckResponse> {
    if !(1..=MAX_ACKS).contains(&req.items.len()) {
        return Err(invalid("items", format!("items must be 1 to {MAX_ACKS}; got {}", req.items.len())));
    }
    for (i, item) in req.items.iter().enumerate() {
        checked::ack_item(&format!("items[{i}]."), item)?;
    }
    if !req.items.iter().any(|item| is_held(&rooms.bus, item)) {
        return Err(match req.items.first() {
            Some(item) if req.items.len() == 1 => superseded("items[0].token", item),
            _ => reject(RejectionCode::Aborted, "items", "all of these deliveries are over"),
        });
    }
    let mut stale = Vec::new();
    for (i, item) in (0_u32..).zip(&req.items) {
        // Two items may name one delivery: the second finds it over, unless the first extended it.
        if is_held(&rooms.bus, item) {
            carry_out(&mut rooms.bus, out, ctx, item)?;
        } else {
            stale.push(i);
        }
    }
    Ok(AckResponse { stale, rev: ctx.rev })
}

/// Makes every refusal of one acknowledgement, and writes nothing. `at` stands before the names of its fields.
pub fn check_ack(rooms: &Rooms, item: &AckItem, at: &str) -> Outcome<()> {
    checked::ack_item(at, item)?;
    match is_held(&rooms.bus, item) {
        true => Ok(()),
        false => Err(superseded(&format!("{at}token"), item)),
    }
}

/// Carries out what [`check_ack`] let pass.
pub fn do_ack(rooms: &mut Rooms, out: &mut Out<'_, '_>, ctx: &Ctx, item: AckItem) -> Result<(), Fatal> {
    if !is_held(&rooms.bus, &item) {
        return Err(Fatal::Corrupt(format!("an acknowledgement that was checked is of no delivery: {item:?}")));
    }
    carry_out(&mut rooms.bus, out, ctx, &item)
}

fn is_held(bus: &Bus, item: &AckItem) -> bool {
    let held = bus.subs.get(item.subscription.as_str()).and_then(|sub| sub.queue.held(item.seq));
    held.is_some_and(|held| held.token == item.token)
}

fn superseded(field: &str, item: &AckItem) -> Error {
    let over = "it was acknowledged, its time was up, or its consumer is gone";
    let (seq, name, token) = (item.seq, &item.subscription, item.token);
    let message = format!("the delivery of message {seq} of {name:?} under token {token} is over: {over}");
    reject(RejectionCode::Aborted, field, message)
}

fn carry_out(bus: &mut Bus, out: &mut Out<'_, '_>, ctx: &Ctx, item: &AckItem) -> Result<(), Fatal> {
    let row = load(&*out.txn, &item.subscription, item.seq)?;
    let reason = if item.reason.is_empty() { NO_REASON } else { item.reason.as_str() };
    match item.kind() {
        AckKind::Ack if planted(Bug::AckForgotten) && row.seq.is_multiple_of(20) => give_back(bus, out, ctx, &row),
        AckKind::Ack => acked(bus, out, &row),
        AckKind::Nack => fail(bus, out, ctx, &row, reason, (item.delay_ms > 0).then_some(item.delay_ms)),
        AckKind::Reject => bury(bus, out, ctx, &row, reason),
        AckKind::Release => give_back(bus, out, ctx, &row),
        AckKind::Extend => {
            let mut next = row.clone();
            next.deadline_ms = bus.sub(&row.subscription)?.deadline_ms(ctx.now_ms);
            replace(bus, out, &row, &next)
        }
        AckKind::Unspecified => Err(Fatal::Corrupt(format!("an acknowledgement of no kind was let pass: {item:?}"))),
    }
}
