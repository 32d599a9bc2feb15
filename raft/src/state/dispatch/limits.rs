//! The commands on limits. A limit that is lowered below what runs stops nothing: it holds back what comes next.

use quorate_proto::v1::{
    DeleteLimitRequest, DeleteLimitResponse, Limit, LimitScope, SetLimitRequest, SetLimitResponse,
};

use crate::effect::Effect;
use crate::error::{Outcome, exhausted, invalid, not_found};
use crate::state::{Ctx, Out, Rooms, check_id};
use crate::storage::keys::{Key, Table};

/// The most limits.
pub const MAX_LIMITS: usize = 10_000;
/// The highest limit.
pub const MAX_RUNNING: u32 = 1_000_000;

/// Sets how many may run at once under one key.
pub fn set_limit(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    req: SetLimitRequest,
) -> Outcome<SetLimitResponse> {
    let scope = check_limit(req.scope, &req.name)?;
    if req.max == 0 {
        let message = format!("max must be 1 to {MAX_RUNNING}; got 0, under which nothing would ever run");
        return Err(invalid("max", message));
    }
    if req.max > MAX_RUNNING {
        return Err(invalid("max", format!("max must be 1 to {MAX_RUNNING}; got {}", req.max)));
    }
    let before = rooms.dispatch.limit(scope, &req.name);
    if before.is_none() && rooms.dispatch.limits().count() >= MAX_LIMITS {
        return Err(exhausted("name", format!("there are {MAX_LIMITS} limits; delete some first")));
    }
    let limit = Limit { scope: scope as i32, name: req.name, max: req.max, updated_at_ms: ctx.now_ms };
    out.txn.put(&row(scope, &limit.name), &limit);
    rooms.dispatch.put_limit(limit.clone());
    if before.is_some_and(|before| before < limit.max) {
        out.effects.push(Effect::LimitsChanged);
    }
    Ok(SetLimitResponse { limit: Some(limit), rev: ctx.rev })
}

/// Lifts a limit.
pub fn delete_limit(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    req: DeleteLimitRequest,
) -> Outcome<DeleteLimitResponse> {
    let scope = check_limit(req.scope, &req.name)?;
    if !rooms.dispatch.remove_limit(scope, &req.name) {
        return Err(not_found("name", format!("there is no limit on {}", subject(scope, &req.name))));
    }
    out.txn.delete(&row(scope, &req.name));
    out.effects.push(Effect::LimitsChanged);
    Ok(DeleteLimitResponse { rev: ctx.rev })
}

/// Checks what a limit is about.
pub fn check_limit(scope: i32, name: &str) -> Outcome<LimitScope> {
    match LimitScope::try_from(scope) {
        Ok(LimitScope::Total) if name.is_empty() => Ok(LimitScope::Total),
        Ok(LimitScope::Total) => Err(invalid("name", "name must be empty with scope TOTAL")),
        Ok(scope @ (LimitScope::AgentType | LimitScope::Key)) => check_id("name", name).map(|()| scope),
        Ok(LimitScope::Unspecified) | Err(_) => {
            Err(invalid("scope", format!("scope must be TOTAL, AGENT_TYPE or KEY; got {scope}")))
        }
    }
}

fn subject(scope: LimitScope, name: &str) -> String {
    match scope {
        LimitScope::AgentType => format!("agent type {name:?}"),
        LimitScope::Key => format!("key {name:?}"),
        LimitScope::Total | LimitScope::Unspecified => "the total".to_owned(),
    }
}

fn row(scope: LimitScope, name: &str) -> Key {
    Key::table(Table::Limit).number(scope as u64).text(name)
}
