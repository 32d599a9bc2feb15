//! The commands: ask, report, set up, force. Checked in full before anything is written.

use quorate_proto::v1::{
    AcquireBreakerRequest, AcquireBreakerResponse, Agent, AgentFilter, AgentStatus, BreakerForce, BreakerState,
    ConfigureBreakerRequest, ConfigureBreakerResponse, ForceBreakerRequest, ForceBreakerResponse, RejectionCode,
    ReportBreakerRequest, ReportBreakerResponse,
};

use super::{
    AGENT_PREFIX, Admission, Breakers, MAX_BREAKERS, MAX_OPEN_MS, Verdict, agent_breaker, begin, check_name, checked,
    circuit, defaults_key, record, remove, store, throttle,
};
use crate::error::{Outcome, exhausted, invalid, reject};
use crate::state::{Ctx, Out, Rooms, agents, check_id};

/// How many agents are looked at in search of a fallback.
const FALLBACK_LOOK: usize = 100;
/// While another call probes: its outcome is known soon, long before the probe's own limit.
const ASK_AGAIN_MS: u64 = 1_000;
/// Why a breaker is open that somebody opened without saying why.
const BY_HAND: &str = "opened by hand";

/// Says whether a call may be made; while HALF_OPEN, to exactly one that it is the probe.
pub fn acquire(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    req: AcquireBreakerRequest,
) -> Outcome<AcquireBreakerResponse> {
    check_name(&req.name)?;
    if !req.holder.is_empty() {
        check_id("holder", &req.holder)?;
    }
    let answer = AcquireBreakerResponse { rev: ctx.rev, ..AcquireBreakerResponse::default() };
    Ok(match rooms.breakers.admission(&req.name, ctx.now_ms) {
        Admission::Yes => AcquireBreakerResponse { allowed: true, state: BreakerState::Closed as i32, ..answer },
        Admission::Probe => {
            let deadline_ms = ctx.now_ms.saturating_add(rooms.breakers.effective(&req.name).probe_timeout_ms);
            begin(&mut rooms.breakers, out, ctx, &req.name, &req.holder, ctx.rev, deadline_ms);
            let state = BreakerState::HalfOpen as i32;
            AcquireBreakerResponse { allowed: true, state, probe_token: ctx.rev, ..answer }
        }
        Admission::No { retry_at_ms } => {
            let state = rooms.breakers.now(&req.name, ctx.now_ms).state();
            let left_ms = retry_at_ms.saturating_sub(ctx.now_ms);
            let probed = state == BreakerState::HalfOpen;
            AcquireBreakerResponse {
                state: state as i32,
                retry_after_ms: if probed { left_ms.min(ASK_AGAIN_MS) } else { left_ms },
                fallback_agent_id: fallback(rooms, &req.name, ctx.now_ms),
                ..answer
            }
        }
    })
}

/// Takes a caller's word on what came of its call.
pub fn report(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    req: ReportBreakerRequest,
) -> Outcome<ReportBreakerResponse> {
    check_name(&req.name)?;
    if !req.error_class.is_empty() {
        check_id("error_class", &req.error_class)?;
    }
    if req.retry_after_ms > MAX_OPEN_MS {
        let message = format!("retry_after_ms must be at most {MAX_OPEN_MS}; got {}", req.retry_after_ms);
        return Err(invalid("retry_after_ms", message));
    }
    let breakers = &mut rooms.breakers;
    let probe_token = Some(req.probe_token).filter(|token| *token > 0);
    if let Some(token) = probe_token {
        check_probe(breakers, ctx, &req.name, token)?;
    }
    let verdict =
        if req.success { Verdict::Success } else { Verdict::Failure { error: &req.error, class: &req.error_class } };
    if req.retry_after_ms > 0 || breakers.counts(&req.name, verdict) {
        check_room(breakers, &req.name)?;
    }
    if req.retry_after_ms > 0 {
        throttle(breakers, out, ctx, &req.name, req.retry_after_ms);
    } else {
        record(breakers, out, ctx, &req.name, verdict, probe_token);
    }
    Ok(ReportBreakerResponse { breaker: Some(breakers.now(&req.name, ctx.now_ms)), rev: ctx.rev })
}

/// Changes the settings of one breaker, or of all that have none of their own.
///
/// What has happened stays: a breaker that is open stays open as long as it was to be, and failures already counted
/// are held to the new threshold when the next one comes.
pub fn configure(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    req: ConfigureBreakerRequest,
) -> Outcome<ConfigureBreakerResponse> {
    let Some(wanted) = req.settings else {
        return Err(invalid("settings", "settings must be given"));
    };
    let breakers = &mut rooms.breakers;
    if req.name.is_empty() {
        let settings = checked::settings(wanted, breakers.defaults())?;
        if settings != *breakers.defaults() {
            out.txn.put(&defaults_key(), &settings);
            breakers.defaults = settings.clone();
        }
        return Ok(ConfigureBreakerResponse { settings: Some(settings), rev: ctx.rev });
    }
    check_name(&req.name)?;
    let settings = checked::settings(wanted, breakers.settings(&req.name))?;
    check_room(breakers, &req.name)?;
    let mut breaker = breakers.now(&req.name, ctx.now_ms);
    breaker.settings = Some(settings.clone());
    store(breakers, out, ctx, breaker);
    Ok(ConfigureBreakerResponse { settings: Some(settings), rev: ctx.rev })
}

/// Opens it until it is closed by hand, closes it, or forgets it. Of one that nothing is known of, closing and
/// forgetting change nothing.
pub fn force(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    req: ForceBreakerRequest,
) -> Outcome<ForceBreakerResponse> {
    check_name(&req.name)?;
    checked::length("reason", &req.reason)?;
    let breakers = &mut rooms.breakers;
    let mut breaker = breakers.now(&req.name, ctx.now_ms);
    match BreakerForce::try_from(req.force) {
        Ok(BreakerForce::Open) => {
            check_room(breakers, &req.name)?;
            let reason = if req.reason.is_empty() { BY_HAND.to_owned() } else { req.reason };
            circuit::open(&mut breaker, 0, reason);
            store(breakers, out, ctx, breaker);
        }
        Ok(BreakerForce::Close) => {
            circuit::close(&mut breaker);
            store(breakers, out, ctx, breaker);
        }
        Ok(BreakerForce::Reset) => remove(breakers, out, ctx, &req.name),
        Ok(BreakerForce::Unspecified) | Err(_) => {
            return Err(invalid("force", "force must be OPEN, CLOSE or RESET"));
        }
    }
    Ok(ForceBreakerResponse { breaker: Some(breakers.now(&req.name, ctx.now_ms)), rev: ctx.rev })
}

/// Whether this token is that of the probe that is under way.
fn check_probe(breakers: &Breakers, ctx: &Ctx, name: &str, token: u64) -> Outcome<()> {
    if breakers.now(name, ctx.now_ms).probe.is_some_and(|probe| probe.token == token) {
        return Ok(());
    }
    let message = format!(
        "probe_token {token} of breaker {name:?} was superseded: it was reported already, came too late, or the \
         breaker was opened, closed or reset meanwhile"
    );
    Err(reject(RejectionCode::Aborted, "probe_token", message))
}

fn check_room(breakers: &Breakers, name: &str) -> Outcome<()> {
    if breakers.has_room_for(name) {
        return Ok(());
    }
    let message = format!("{MAX_BREAKERS} breakers are kept and none of them is idle; name {name:?} would be one more");
    Err(exhausted("name", message))
}

/// For an agent's breaker: the least loaded other agent that offers the same and has room. One whose own breaker is
/// closed comes before one that would be probed.
fn fallback(rooms: &Rooms, name: &str, now_ms: u64) -> String {
    let Some(agent) = name.strip_prefix(AGENT_PREFIX).and_then(|id| rooms.agents.get(id)) else {
        return String::new();
    };
    let filter = AgentFilter {
        capabilities: agent.capabilities.clone(),
        statuses: vec![AgentStatus::Available as i32],
        ..AgentFilter::default()
    };
    let found = rooms.agents.find(&filter, FALLBACK_LOOK);
    let others: Vec<&Agent> =
        found.iter().filter(|other| other.id != agent.id && agents::is_available(other)).collect();
    let with = |wanted: Admission| {
        others.iter().find(|other| rooms.breakers.admission(&agent_breaker(&other.id), now_ms) == wanted)
    };
    with(Admission::Yes).or_else(|| with(Admission::Probe)).map(|other| other.id.clone()).unwrap_or_default()
}
