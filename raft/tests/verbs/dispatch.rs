//! Verbs of the dispatch room.
//!
//! ```text
//! set_limit total|type:T|key:K max=N    delete_limit total|type:T|key:K    limits
//! set_share NAME weight=N               shares
//! set_policy order=O ageing=MS          policy
//! set_routes rules=NAME:PATTERN:TYPE,.. epics=EPIC:TYPE,.. fallback=TYPE version=N     routes
//! explain WORDS OF A TITLE epic=E       woken: whether the last command may let others run
//! ```
//!
//! A pattern may hold colons, but no blank, comma or number sign.

use quorate_proto::log::{answer, command};
use quorate_proto::v1::{
    BandOrder, DeleteLimitRequest, DispatchPolicy, EpicRoute, Limit, LimitScope, RouteRule, RoutingTable,
    SetDispatchPolicyRequest, SetLimitRequest, SetRoutesRequest, SetShareRequest,
};
use quorate_raft::apply::Machine;
use quorate_raft::effect::Effect;

use super::Line;

/// The command of a line.
pub(crate) fn body(line: &Line<'_>) -> Option<command::Body> {
    use command::Body as B;
    Some(match line.verb {
        "set_limit" => {
            let (scope, name) = limit_key(&line.id());
            B::SetLimit(SetLimitRequest { scope: scope as i32, name, max: line.small("max", 0), request: None })
        }
        "delete_limit" => {
            let (scope, name) = limit_key(&line.id());
            B::DeleteLimit(DeleteLimitRequest { scope: scope as i32, name, request: None })
        }
        "set_share" => B::SetShare(SetShareRequest { name: line.id(), weight: line.small("weight", 0), request: None }),
        "set_policy" => B::SetDispatchPolicy(SetDispatchPolicyRequest { policy: Some(policy(line)), request: None }),
        "set_routes" => B::SetRoutes(SetRoutesRequest {
            table: Some(table(line)),
            if_version: line.named.contains_key("version").then(|| line.number("version", 0)),
            request: None,
        }),
        _ => return None,
    })
}

/// How an answer is shown.
pub(crate) fn show(body: &answer::Body) -> Option<String> {
    use answer::Body as B;
    Some(match body {
        B::SetLimit(r) => show_limit(r.limit.as_ref().unwrap()),
        B::DeleteLimit(_) => "lifted".to_owned(),
        B::SetShare(r) => {
            let share = r.share.as_ref().unwrap();
            format!("{} weight={}", share.name, share.weight)
        }
        B::SetDispatchPolicy(r) => show_policy(r.policy.as_ref().unwrap()),
        B::SetRoutes(r) => show_table(r.table.as_ref().unwrap()),
        _ => return None,
    })
}

/// What a reading verb says.
pub(crate) fn read(machine: &Machine, _now_ms: u64, line: &Line<'_>) -> Option<String> {
    let dispatch = &machine.rooms().dispatch;
    Some(match line.verb {
        "limits" => joined(dispatch.limits().map(show_limit).collect()),
        "shares" => joined(dispatch.weights().map(|(name, weight)| format!("{name} weight={weight}")).collect()),
        "policy" => show_policy(dispatch.policy()),
        "routes" => show_table(dispatch.routes().table()),
        "explain" => {
            let routed = dispatch.routes().route(&line.plain.join(" "), "", &line.text("epic"));
            let agent_type = if routed.agent_type.is_empty() { "nobody" } else { &routed.agent_type };
            format!("{agent_type} by={} matched={:?} tried={}", routed.by, routed.matched, routed.tried.join(","))
        }
        "woken" => {
            let woken = machine.effects().any(|effect| *effect == Effect::LimitsChanged);
            (if woken { "yes" } else { "no" }).to_owned()
        }
        _ => return None,
    })
}

fn limit_key(text: &str) -> (LimitScope, String) {
    match text.split_once(':') {
        Some(("type", name)) => (LimitScope::AgentType, name.to_owned()),
        Some(("key", name)) => (LimitScope::Key, name.to_owned()),
        Some(("total", name)) => (LimitScope::Total, name.to_owned()),
        _ if text == "total" => (LimitScope::Total, String::new()),
        _ => (LimitScope::Unspecified, text.to_owned()),
    }
}

fn policy(line: &Line<'_>) -> DispatchPolicy {
    let order = match line.text("order").as_str() {
        "" => BandOrder::Unspecified as i32,
        "strict" => BandOrder::Strict as i32,
        "weighted" => BandOrder::Weighted as i32,
        number => number.parse().unwrap(),
    };
    DispatchPolicy { order, ageing_ms: line.number("ageing", 0) }
}

fn table(line: &Line<'_>) -> RoutingTable {
    let rules = line.list("rules").into_iter().map(|text| {
        let (name, rest) = text.split_once(':').unwrap();
        let (pattern, agent_type) = rest.rsplit_once(':').unwrap();
        RouteRule { name: name.to_owned(), pattern: pattern.to_owned(), agent_type: agent_type.to_owned() }
    });
    let epics = line.list("epics").into_iter().map(|text| {
        let (epic, agent_type) = text.split_once(':').unwrap();
        EpicRoute { epic: epic.to_owned(), agent_type: agent_type.to_owned() }
    });
    let (rules, epics) = (rules.collect(), epics.collect());
    RoutingTable { rules, epics, fallback_agent_type: line.text("fallback"), version: 0 }
}

fn show_limit(limit: &Limit) -> String {
    let key = match limit.scope() {
        LimitScope::AgentType => format!("type:{}", limit.name),
        LimitScope::Key => format!("key:{}", limit.name),
        LimitScope::Total | LimitScope::Unspecified => "total".to_owned(),
    };
    format!("{key} max={}", limit.max)
}

fn show_policy(policy: &DispatchPolicy) -> String {
    let order = match policy.order() {
        BandOrder::Unspecified => "unspecified",
        BandOrder::Strict => "strict",
        BandOrder::Weighted => "weighted",
    };
    format!("{order} ageing={}", policy.ageing_ms)
}

fn show_table(table: &RoutingTable) -> String {
    let rules: Vec<&str> = table.rules.iter().map(|rule| rule.name.as_str()).collect();
    let epics: Vec<&str> = table.epics.iter().map(|route| route.epic.as_str()).collect();
    let (rules, epics, fallback) = (rules.join(","), epics.join(","), &table.fallback_agent_type);
    format!("version={} rules={rules} epics={epics} fallback={fallback}", table.version)
}

fn joined(all: Vec<String>) -> String {
    if all.is_empty() { "none".to_owned() } else { all.join(", ") }
}
