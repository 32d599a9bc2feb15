//! `namespace NAME tasks=… agents=… sessions=… messages=… bytes=… keys=… kv_bytes=…`, `namespace_delete NAME`,
//! `compact REV`, and the reads `namespaces` and `events ROOM` (of `ns=`).
//!
//! Any command may have `ns=NAME`; without it the default namespace is meant.

use quorate_proto::log::{CompactEvents, answer, command};
use quorate_proto::v1::{DeleteNamespaceRequest, EventKind, Quotas, SetNamespaceRequest};
use quorate_raft::apply::Machine;
use quorate_raft::history;
use quorate_raft::state::namespaces::usage;

use super::Line;

pub(crate) fn body(line: &Line<'_>) -> Option<command::Body> {
    use command::Body as B;
    Some(match line.verb {
        "namespace" => B::SetNamespace(SetNamespaceRequest {
            name: line.id(),
            quotas: Some(Quotas {
                max_live_tasks: line.number("tasks", 0),
                max_agents: line.number("agents", 0),
                max_sessions: line.number("sessions", 0),
                max_messages: line.number("messages", 0),
                max_message_bytes: line.number("bytes", 0),
                max_kv_keys: line.number("keys", 0),
                max_kv_bytes: line.number("kv_bytes", 0),
            }),
            request: None,
        }),
        "namespace_delete" => B::DeleteNamespace(DeleteNamespaceRequest { name: line.id(), request: None }),
        "compact" => B::CompactEvents(CompactEvents { through_rev: line.id().parse().unwrap() }),
        _ => return None,
    })
}

pub(crate) fn show(body: &answer::Body) -> Option<String> {
    match body {
        answer::Body::SetNamespace(r) => r.namespace.as_ref().map(|namespace| format!("{} set", namespace.name)),
        answer::Body::DeleteNamespace(_) => Some("deleted".to_owned()),
        answer::Body::CompactEvents(_) => Some("ok".to_owned()),
        _ => None,
    }
}

pub(crate) fn read(machine: &Machine, _now_ms: u64, line: &Line<'_>) -> Option<String> {
    match line.verb {
        "namespaces" => {
            let shown = machine.namespaces.iter().map(|part| {
                let used = usage(&part.rooms);
                let rows = machine.rows.0.keys().filter(|key| is_of(key, part.row.number)).count();
                format!(
                    "{} sessions={} agents={} tasks={} rows={rows}",
                    part.name, used.sessions, used.agents, used.live_tasks
                )
            });
            Some(shown.collect::<Vec<_>>().join(", "))
        }
        "rows" => Some(machine.rows.0.len().to_string()),
        "events" => {
            let name = line.text("ns");
            let number = machine.namespaces.get(&name).map_or(u64::MAX, |part| part.row.number);
            let rows = machine.events.iter().filter(|((_, namespace), _)| *namespace == number);
            let events = rows.flat_map(|(_, row)| history::decode(row).unwrap().events);
            let shown = events.filter(|event| event.room == line.id()).map(|event| {
                let kind = if event.kind() == EventKind::Put { "put" } else { "delete" };
                format!("{}:{kind} {}", event.rev, event.key)
            });
            let shown = shown.collect::<Vec<_>>().join(", ");
            Some(if shown.is_empty() { "none".to_owned() } else { shown })
        }
        _ => None,
    }
}

/// Whether a row's key is in the space of that number.
fn is_of(key: &[u8], number: u64) -> bool {
    let tagged = key.first() == Some(&quorate_raft::storage::space::TAG);
    if number == 0 { !tagged } else { tagged && key[1..9] == number.to_be_bytes() }
}
