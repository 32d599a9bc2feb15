//! `retire NODE`, `raise LEVEL`, and the read `cluster`. `describe NAME level=` is among the common verbs.

use quorate_proto::log::{RaiseFeatureLevel, RetireNode, answer, command};
use quorate_raft::apply::Machine;
use quorate_raft::state::cluster;

use super::Line;

pub(crate) fn body(line: &Line<'_>) -> Option<command::Body> {
    use command::Body as B;
    Some(match line.verb {
        "retire" => B::RetireNode(RetireNode { node_id: line.id().parse().unwrap() }),
        "raise" => B::RaiseFeatureLevel(RaiseFeatureLevel { level: line.id().parse().unwrap() }),
        _ => return None,
    })
}

pub(crate) fn show(body: &answer::Body) -> Option<String> {
    use answer::Body as B;
    matches!(body, B::RetireNode(_) | B::RaiseFeatureLevel(_)).then(|| "ok".to_owned())
}

pub(crate) fn read(machine: &Machine, _now_ms: u64, line: &Line<'_>) -> Option<String> {
    if line.verb != "cluster" {
        return None;
    }
    let Some(info) = cluster::get(&machine.rows).expect("a row that can be read") else {
        return Some("nameless".to_owned());
    };
    let retired: Vec<String> = info.retired_node_ids.iter().map(u64::to_string).collect();
    let retired = if retired.is_empty() { String::new() } else { format!(" retired={}", retired.join(",")) };
    Some(format!("{} level={}{retired}", info.cluster_id, info.feature_level))
}
