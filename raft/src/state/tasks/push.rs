//! Push: ready tasks are assigned to agents with a standing order in the very command that brought the two together.
//!
//! Submit and assign, finish and assign, a raised limit and assign: one log entry each. The best candidate goes first, to
//! the least loaded agent that may take it; a candidate that nobody standing may take stays where it is, for a claim.

use std::collections::BTreeSet;

use quorate_proto::log::{Done, StandingOrder};
use quorate_proto::v1::Agent;

use super::claim::{self, Gate, Picked};
use super::queue::{Candidate, LineKey, NO_PIN};
use super::{aftermath, load_live};
use crate::effect::Effect;
use crate::error::{Fatal, Outcome};
use crate::state::{Ctx, Out, Rooms, agents, check_id};

/// How many tasks one command assigns. A tick goes on with the rest.
const PER_COMMAND: usize = 1_024;

/// Work is pushed to the agent from now on.
pub fn standing_order(rooms: &mut Rooms, out: &mut Out<'_, '_>, ctx: &Ctx, req: StandingOrder) -> Outcome<Done> {
    check_id("agent_id", &req.agent_id)?;
    check_id("session_id", &req.session_id)?;
    agents::stand(rooms, out, ctx, &req.agent_id, &req.session_id)?;
    Ok(Done {})
}

/// What every command ends with: others hear of what ended, and what can start does. `out.effects` are its own.
pub fn settle(rooms: &mut Rooms, out: &mut Out<'_, '_>, ctx: &Ctx, is_tick: bool) -> Result<(), Fatal> {
    if !rooms.tasks.aftermath.is_empty() {
        aftermath::tell(rooms, out, ctx)?;
    }
    if is_tick || out.effects.iter().any(Effect::lets_work_start) {
        push(rooms, out, ctx)?;
    }
    Ok(())
}

fn push(rooms: &mut Rooms, out: &mut Out<'_, '_>, ctx: &Ctx) -> Result<(), Fatal> {
    if !rooms.agents.has_standing() || !rooms.tasks.has_ready() {
        return Ok(());
    }
    let free = rooms.agents.standing_for(&[], "").map(|agent| agent.id.as_str());
    let mut lines = rooms.tasks.queues.waiting_lines(free);
    // An agent that may start nothing is asked once in a command, not once a line.
    let mut refused = BTreeSet::new();
    for _ in 0..PER_COMMAND {
        let Some((agent_id, picked)) = next_pair(rooms, ctx, &mut lines, &mut refused) else { return Ok(()) };
        let task = load_live(&*out.txn, &picked.task_id)?;
        let task = claim::assign(rooms, out, ctx, &agent_id, &picked, task)?;
        agents::take(rooms, out, ctx, &agent_id, 1)?;
        out.effects.push(Effect::Assigned { agent_id, task_id: task.id, token: ctx.rev });
    }
    out.effects.push(Effect::WorkLeft);
    Ok(())
}

/// The first head that somebody may take, and who. A line that is closed, empty or has no taker stays so for the rest of
/// the command: assigning only takes room away.
fn next_pair(
    rooms: &Rooms,
    ctx: &Ctx,
    lines: &mut Vec<LineKey>,
    refused: &mut BTreeSet<String>,
) -> Option<(String, Picked)> {
    let gate = Gate { rooms, now_ms: ctx.now_ms };
    let order = claim::order(rooms, ctx.now_ms);
    let head = |line: &LineKey| rooms.tasks.queues.head(line, order).filter(|_| gate.opens(&line.needs));
    lines.retain(|line| head(line).is_some());
    let mut heads: Vec<(usize, Candidate<'_>)> =
        lines.iter().enumerate().filter_map(|(at, line)| Some((at, head(line)?))).collect();
    heads.sort_unstable_by(|(_, a), (_, b)| a.cmp(b));
    let mut without_taker = BTreeSet::new();
    let mut found = None;
    for (at, candidate) in &heads {
        if let Some(agent) = taker(rooms, &gate, candidate, refused) {
            found = Some((agent.id.clone(), Picked { task_id: candidate.task_id(), band: candidate.band }));
            break;
        }
        without_taker.insert(*at);
    }
    drop(heads);
    let mut at = 0;
    lines.retain(|_| {
        at += 1;
        !without_taker.contains(&(at - 1))
    });
    found
}

fn taker<'a>(
    rooms: &'a Rooms,
    gate: &Gate<'_>,
    candidate: &Candidate<'_>,
    refused: &mut BTreeSet<String>,
) -> Option<&'a Agent> {
    let mut may = |agent: &&Agent| {
        if refused.contains(&agent.id) || !candidate.needs.fit(agent) {
            return false;
        }
        let admitted = gate.admits(agent);
        if !admitted {
            refused.insert(agent.id.clone());
        }
        admitted
    };
    let needs = candidate.needs;
    if candidate.pin == NO_PIN {
        return rooms.agents.standing_for(&needs.capabilities, &needs.agent_type).find(|agent| may(agent));
    }
    rooms.agents.get(candidate.pin).filter(|agent| agent.standing && agents::is_available(agent) && may(agent))
}
