//! What the status of a cluster looks like: as JSON, and as a table that fits a screen.

use quorate_client::v1::{ClusterStatusResponse, Disk, DiskState, NodeStatusResponse};
use serde_json::{Value, json};

use super::super::output::{or_dash, short, span, table};
use super::super::view;

/// As much of a running digest as tells two replicas apart by eye.
const DIGEST_SHOWN: usize = 8;

/// A node, with what only its operator asks about.
pub(super) fn node(node: &NodeStatusResponse) -> Value {
    let mut value = view::node(node);
    value["voter"] = json!(node.voter);
    value["voter_ids"] = json!(node.voter_ids);
    value["feature_level"] = json!(node.feature_level);
    value["sync_p50_us"] = json!(node.sync_p50_us);
    value["sync_p99_us"] = json!(node.sync_p99_us);
    value["disk"] = node.disk.as_ref().map_or(
        Value::Null,
        |disk| json!({ "state": disk_state(disk), "free_bytes": disk.free_bytes, "total_bytes": disk.total_bytes }),
    );
    value
}

pub(super) fn json(status: &ClusterStatusResponse) -> Value {
    json!({
        "cluster_id": status.cluster_id,
        "leader_id": status.leader_id,
        "feature_level": status.feature_level,
        "retired_node_ids": status.retired_node_ids,
        "nodes": status.nodes.iter().map(node).collect::<Vec<_>>(),
    })
}

pub(super) fn text(status: &ClusterStatusResponse, full: bool) -> String {
    let leader = match status.leader_id {
        0 => "no leader known".to_owned(),
        id => format!("leader: node {id}"),
    };
    let retired: Vec<String> = status.retired_node_ids.iter().map(u64::to_string).collect();
    let retired = if retired.is_empty() { String::new() } else { format!(", retired: {}", retired.join(" ")) };
    let header = [
        "node",
        "address",
        "role",
        "voter",
        "term",
        "applied",
        "rev",
        "digest",
        "ready",
        "disk free",
        "version",
        "uptime",
    ];
    let rows = status.nodes.iter().map(|node| row(node, full)).collect();
    let name = or_dash(&status.cluster_id);
    let table = table(header, rows, "no nodes");
    format!("cluster {name}, {leader}, feature level {}{retired}\n{table}", status.feature_level)
}

fn row(node: &NodeStatusResponse, full: bool) -> [String; 12] {
    let ready = match (node.ready, node.reason.as_str()) {
        (true, _) => "yes".to_owned(),
        (false, "") => "no".to_owned(),
        (false, reason) => format!("no: {reason}"),
    };
    let digest = if full { node.full_digest.clone() } else { short(&node.digest, DIGEST_SHOWN) };
    [
        node.node_id.to_string(),
        or_dash(&node.address),
        or_dash(&node.role),
        if node.voter { "yes" } else { "no" }.to_owned(),
        node.term.to_string(),
        node.applied_index.to_string(),
        node.rev.to_string(),
        or_dash(&digest),
        ready,
        node.disk.as_ref().map_or_else(|| "-".to_owned(), disk),
        or_dash(&node.version),
        span(node.uptime_ms),
    ]
}

fn disk(disk: &Disk) -> String {
    let free = size(disk.free_bytes);
    match disk.state() {
        DiskState::Low | DiskState::Full => format!("{free}, {}", disk_state(disk)),
        DiskState::Ok | DiskState::Unspecified => free,
    }
}

/// `low`, for example.
pub(super) fn disk_state(disk: &Disk) -> &'static str {
    match disk.state() {
        DiskState::Unspecified => "unknown",
        DiskState::Ok => "ok",
        DiskState::Low => "low",
        DiskState::Full => "full",
    }
}

/// `37 GiB`
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match UNITS.iter().find(|(_, shift)| bytes >> shift >= 1) {
        // A tenth more where it would be a single digit.
        Some((unit, shift)) if bytes >> shift < 10 => {
            let tenths = (bytes >> (shift - 10)) * 10 / 1_024;
            format!("{}.{} {unit}", tenths / 10, tenths % 10)
        }
        Some((unit, shift)) => format!("{} {unit}", bytes >> shift),
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        let cases = [(0, "0 B"), (1_023, "1023 B"), (1_536, "1.5 KiB"), (16 << 20, "16 MiB"), (37 << 30, "37 GiB")];
        for (bytes, text) in cases {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn who_left_and_what_is_short_is_seen_at_once() {
        let disk = Disk { total_bytes: 10 << 30, free_bytes: 1 << 29, state: DiskState::Low as i32 };
        let node = NodeStatusResponse { node_id: 2, voter: true, disk: Some(disk), ..Default::default() };
        let status = ClusterStatusResponse {
            cluster_id: "c".into(),
            leader_id: 2,
            nodes: vec![node],
            feature_level: 2,
            retired_node_ids: vec![1, 3],
        };
        let shown = text(&status, false);
        assert!(shown.starts_with("cluster c, leader: node 2, feature level 2, retired: 1 3\n"), "{shown}");
        assert!(shown.contains("512 MiB, low"), "{shown}");
        assert_eq!(json(&status)["nodes"][0]["disk"]["state"], "low");
    }
}
