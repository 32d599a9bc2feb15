//! The commands on share weights and on the order of bands. Both change whose turn is next, never who may run.

use quorate_proto::v1::{
    BandOrder, DispatchPolicy, SetDispatchPolicyRequest, SetDispatchPolicyResponse, SetShareRequest, SetShareResponse,
    ShareWeight,
};

use crate::effect::Effect;
use crate::error::{Outcome, exhausted, invalid};
use crate::state::{Ctx, Out, Rooms, check_id};
use crate::storage::keys::{Key, Table};

/// The weight that every share starts with.
pub const DEFAULT_WEIGHT: u32 = 1;
/// The highest weight.
pub const MAX_WEIGHT: u32 = 1_000;
/// The most shares with a weight of their own.
pub const MAX_WEIGHTS: usize = 10_000;
/// The shortest ageing, if there is any.
pub const MIN_AGEING_MS: u64 = 1_000;
/// The longest ageing: 30 days.
pub const MAX_AGEING_MS: u64 = 86_400_000 * 30;

/// Sets a share's weight. The default weight needs no row.
pub fn set_share(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    req: SetShareRequest,
) -> Outcome<SetShareResponse> {
    check_id("name", &req.name)?;
    if !(1..=MAX_WEIGHT).contains(&req.weight) {
        return Err(invalid("weight", format!("weight must be 1 to {MAX_WEIGHT}; got {}", req.weight)));
    }
    let weights = &mut rooms.dispatch.weights;
    let before = weights.get(&req.name).copied();
    if before.is_none() && req.weight != DEFAULT_WEIGHT && weights.len() >= MAX_WEIGHTS {
        let message = format!("{MAX_WEIGHTS} shares have a weight of their own; set some back to {DEFAULT_WEIGHT}");
        return Err(exhausted("name", message));
    }
    let key = Key::table(Table::ShareWeight).text(&req.name);
    let share = ShareWeight { name: req.name, weight: req.weight };
    if before.unwrap_or(DEFAULT_WEIGHT) != share.weight {
        if share.weight == DEFAULT_WEIGHT {
            weights.remove(&share.name);
            out.txn.delete(&key);
        } else {
            weights.insert(share.name.clone(), share.weight);
            out.txn.put(&key, &share);
        }
        out.effects.push(Effect::LimitsChanged);
    }
    Ok(SetShareResponse { share: Some(share), rev: ctx.rev })
}

/// Replaces the policy as a whole.
pub fn set_policy(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    req: SetDispatchPolicyRequest,
) -> Outcome<SetDispatchPolicyResponse> {
    let Some(asked) = req.policy else {
        return Err(invalid("policy", "policy must be given"));
    };
    let order = match BandOrder::try_from(asked.order) {
        Ok(BandOrder::Unspecified | BandOrder::Strict) => BandOrder::Strict,
        Ok(BandOrder::Weighted) => BandOrder::Weighted,
        Err(_) => {
            let message = format!("policy.order must be STRICT or WEIGHTED; got {}", asked.order);
            return Err(invalid("policy.order", message));
        }
    };
    let ageing_ms = asked.ageing_ms;
    if ageing_ms != 0 && !(MIN_AGEING_MS..=MAX_AGEING_MS).contains(&ageing_ms) {
        let message =
            format!("policy.ageing_ms must be 0 (never) or {MIN_AGEING_MS} to {MAX_AGEING_MS}; got {ageing_ms}");
        return Err(invalid("policy.ageing_ms", message));
    }
    let policy = DispatchPolicy { order: order as i32, ageing_ms };
    if rooms.dispatch.policy != policy {
        out.txn.put(&Key::table(Table::DispatchPolicy), &policy);
        rooms.dispatch.policy = policy;
        out.effects.push(Effect::LimitsChanged);
    }
    Ok(SetDispatchPolicyResponse { policy: Some(policy), rev: ctx.rev })
}
