//! News: what happened to the work, said on the bus.
//!
//! No room publishes. Each says what happened as an effect, and this turns those that people wait for into messages, in
//! the same command. Who does not subscribe costs nothing: a message without a subscription is not kept. How much one
//! command says is bounded on the bus ([`bus::emit()`]).
//!
//! | subject | when | payload |
//! |---|---|---|
//! | `scheduled.tasks` | a schedule submitted a task | `schedule_id`, `task_id`, `agent_id`, `tick_ms` |
//! | `system.breaker.opened`, `.half_opened`, `.closed` | a circuit breaker changed | `breaker` |
//! | `system.task.timed_out` | an attempt or a task ran out of time | `task_id`, `token` (0: the task) |
//! | `system.deadlock.resolved` | a circle of tasks was broken | `victim`, `task_ids` (100 at most), `count` |
//!
//! Payloads are JSON objects. Ids consist of letters, digits and `. _ - : / @`, so nothing in them needs escaping.

use quorate_proto::v1::{BreakerState, BusMessage};

use crate::effect::Effect;
use crate::error::Fatal;
use crate::state::{Ctx, Out, Rooms, bus};

const FROM: &str = "quorate";
/// How many tasks of a circle are named: it may be as long as there are tasks, a payload may not.
const NAMED: usize = 100;

/// Publishes what this command's effects say.
pub(crate) fn tell(rooms: &mut Rooms, out: &mut Out<'_, '_>, ctx: &Ctx) -> Result<(), Fatal> {
    let messages: Vec<BusMessage> = out.effects.iter().filter_map(|effect| message(rooms, effect)).collect();
    bus::emit(rooms, out, ctx, messages)
}

fn message(rooms: &Rooms, effect: &Effect) -> Option<BusMessage> {
    let (subject, task_id, payload) = match effect {
        Effect::ScheduleFired { schedule_id, tick_ms, task_id, .. } => {
            let task = rooms.schedules.get(schedule_id).and_then(|schedule| schedule.spec.as_ref()?.task.as_ref());
            let agent_id = task.map_or("", |task| &task.agent_id);
            let payload = format!(
                r#"{{"schedule_id":"{schedule_id}","task_id":"{task_id}","agent_id":"{agent_id}","tick_ms":{tick_ms}}}"#
            );
            ("scheduled.tasks", task_id.as_str(), payload)
        }
        Effect::BreakerChanged { name, state, .. } => {
            let subject = match state {
                BreakerState::Open => "system.breaker.opened",
                BreakerState::HalfOpen => "system.breaker.half_opened",
                BreakerState::Closed | BreakerState::Unspecified => "system.breaker.closed",
            };
            (subject, "", format!(r#"{{"breaker":"{name}"}}"#))
        }
        Effect::TaskTimedOut { task_id, token } => {
            ("system.task.timed_out", task_id.as_str(), format!(r#"{{"task_id":"{task_id}","token":{token}}}"#))
        }
        Effect::DeadlockResolved { victim, task_ids } => {
            let ids = task_ids.iter().take(NAMED).map(|id| format!("\"{id}\"")).collect::<Vec<_>>().join(",");
            let payload = format!(r#"{{"victim":"{victim}","task_ids":[{ids}],"count":{}}}"#, task_ids.len());
            ("system.deadlock.resolved", victim.as_str(), payload)
        }
        _ => return None,
    };
    Some(BusMessage {
        subject: subject.to_owned(),
        from: FROM.to_owned(),
        task_id: task_id.to_owned(),
        r#type: "news".to_owned(),
        payload: payload.into_bytes().into(),
        ..BusMessage::default()
    })
}
