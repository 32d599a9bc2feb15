//! What an event brings: an object of some room as it was then, as JSON and as one word.

use prost::Message;
use quorate_client::v1::{
    Agent, Attempt, Breaker, Checkpoint, DeadMessage, Event, EventKind, KvEntry, Limit, LimitUse, Lock, RetryProfile,
    Schedule, ScheduleRun, ScopeLease, Session, ShareWeight, Subscription, Task,
};
use serde_json::{Value, json};

use crate::cli::output::short;
use crate::cli::{breaker, checkpoint, limit, retry, schedule, view};

/// How long a word may be.
const WORD: usize = 60;

/// An object that was put.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) view: Value,
    pub(super) word: String,
}

impl Object {
    /// `None`: the event says only that it was put or deleted.
    pub(super) fn of(event: &Event) -> Option<Self> {
        // A put that brings nothing: values were left out. A message whose fields are all unset does not occur.
        if event.kind() != EventKind::Put || event.value.is_empty() {
            return None;
        }
        Some(known(&event.room, &event.value).unwrap_or_else(|| Object {
            // A room that is newer than this program.
            view: Value::String(view::hex(&event.value)),
            word: "put".to_owned(),
        }))
    }
}

/// An object of a room that has a name here.
fn known(room: &str, put: &[u8]) -> Option<Object> {
    match room {
        "sessions" => read(put, |session: &Session| (session_view(session), "open".to_owned())),
        "agents" => read(put, |agent: &Agent| (view::agent(agent), view::agent_status(agent.status))),
        "tasks" => read(put, |task: &Task| (view::task(task), view::task_status(task.status))),
        "attempts" => read(put, |attempt: &Attempt| (view::attempt(attempt), view::attempt_outcome(attempt.outcome))),
        "locks" => read(put, |lock: &Lock| (view::lock(lock), lock_word(lock))),
        "scopes" => read(put, |lease: &ScopeLease| (view::scope(lease), view::who(&lease.session_id, &lease.owner))),
        "kv" => read(put, |entry: &KvEntry| (view::kv_entry(entry, &entry.value), kv_word(entry))),
        "subscriptions" => read(put, |sub: &Subscription| (view::subscription(sub), subscription_word(sub).to_owned())),
        "dead_messages" => read(put, |dead: &DeadMessage| (view::dead(dead), dead.reason.clone())),
        "breakers" => read(put, |one: &Breaker| (breaker::view(one), breaker::state_name(one.state))),
        "schedules" => read(put, |one: &Schedule| (schedule::schedule_view(one), schedule_word(one).to_owned())),
        "runs" => read(put, |run: &ScheduleRun| (schedule::run_view(run), schedule::run_outcome(run.outcome))),
        "limits" => read(put, |limit: &Limit| (limit_view(limit), format!("at most {}", limit.max))),
        "shares" => read(put, |share: &ShareWeight| {
            (json!({ "name": share.name, "weight": share.weight }), format!("weight {}", share.weight))
        }),
        "retries" => read(put, |profile: &RetryProfile| (retry::view(profile), "put".to_owned())),
        "checkpoints" => read(put, |one: &Checkpoint| (checkpoint::view(one), one.milestone.clone())),
        _ => None,
    }
}

/// `None`: it is no message of this kind.
fn read<M: Message + Default>(put: &[u8], show: impl FnOnce(&M) -> (Value, String)) -> Option<Object> {
    let (view, word) = show(&M::decode(put).ok()?);
    Some(Object { view, word: short(&word, WORD) })
}

fn session_view(session: &Session) -> Value {
    json!({
        "id": session.id,
        "epoch": session.epoch,
        "ttl_ms": session.ttl_ms,
        "client": session.client,
        "opened_at_ms": session.opened_at_ms,
    })
}

/// `held by s1/builder, 2 wait`
fn lock_word(lock: &Lock) -> String {
    let holders: Vec<String> = lock.holders.iter().map(|held| view::who(&held.session_id, &held.owner)).collect();
    let held = if holders.is_empty() { "free".to_owned() } else { format!("held by {}", holders.join(", ")) };
    match lock.waiters.len() {
        0 => held,
        count => format!("{held}, {count} wait"),
    }
}

fn kv_word(entry: &KvEntry) -> String {
    format!("version {}: {}", entry.version, view::bytes_line(&entry.value))
}

fn subscription_word(subscription: &Subscription) -> &'static str {
    match &subscription.spec {
        _ if subscription.removing => "is being removed",
        Some(spec) if !spec.session_id.is_empty() => "of a session",
        _ => "durable",
    }
}

fn schedule_word(schedule: &Schedule) -> &'static str {
    if schedule.paused { "paused" } else { "runs" }
}

fn limit_view(of: &Limit) -> Value {
    limit::limit_view(&LimitUse { limit: Some(of.clone()), ..LimitUse::default() }, false)
}

#[cfg(test)]
mod tests {
    use quorate_client::v1::{LockHolder, LockWaiter};

    use super::*;

    fn event(room: &str, object: &impl Message) -> Event {
        Event {
            room: room.to_owned(),
            kind: EventKind::Put as i32,
            value: object.encode_to_vec().into(),
            ..Event::default()
        }
    }

    #[test]
    fn objects_of_known_rooms_are_read() {
        let holder = LockHolder { session_id: "s1".into(), owner: "o".into(), ..LockHolder::default() };
        let lock = Lock { name: "a".into(), holders: vec![holder], waiters: vec![LockWaiter::default(); 2] };
        let read = Object::of(&event("locks", &lock)).unwrap();
        assert_eq!((read.word.as_str(), &read.view["name"]), ("held by s1/o, 2 wait", &json!("a")));
        let entry = KvEntry { key: "k".into(), value: "8".into(), version: 3, ..KvEntry::default() };
        let read = Object::of(&event("kv", &entry)).unwrap();
        assert_eq!((read.word.as_str(), &read.view["value"]), ("version 3: 8", &json!(8)));
        let limit = Limit { name: "gpu".into(), max: 3, ..Limit::default() };
        assert_eq!(Object::of(&event("limits", &limit)).unwrap().word, "at most 3");
    }

    #[test]
    fn what_is_newer_than_this_program_is_shown_as_it_is() {
        let read = Object::of(&event("a-new-room", &Limit { max: 3, ..Limit::default() })).unwrap();
        assert_eq!((read.view, read.word), (json!("hex:1803"), "put".to_owned()));
        assert!(Object::of(&Event { kind: EventKind::Delete as i32, ..event("kv", &Limit::default()) }).is_none());
    }
}
