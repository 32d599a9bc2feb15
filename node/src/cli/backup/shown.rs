//! How backups are shown.

use quorate_client::v1::{BackupPolicy, BackupRecord, BackupStatusResponse};
use serde_json::{Value, json};

use crate::backup::Manifest;
use crate::cli::output::{age, facts, or_dash, span, table};

/// `512 B`, `3.4 MiB`
pub(super) fn amount(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut tenths = u128::from(bytes) * 10;
    let mut unit = "B";
    for larger in UNITS {
        if tenths < 10_240 {
            break;
        }
        (tenths, unit) = (tenths / 1_024, larger);
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{}.{} {unit}", tenths / 10, tenths % 10) }
}

pub(super) fn manifest_view(manifest: &Manifest) -> Value {
    json!({
        "id": manifest.id,
        "cluster_id": manifest.cluster_id,
        "rev": manifest.rev,
        "taken_at_ms": manifest.taken_at_ms,
        "bytes": manifest.bytes(),
        "files": manifest.files.len(),
        "chunks": manifest.chunks.len(),
        "digest": manifest.full_digest,
        "feature_level": manifest.feature_level,
        "quorate_version": manifest.quorate_version,
    })
}

pub(super) fn backups_table(manifests: &[Manifest], now_ms: u64) -> String {
    let rows = manifests.iter().map(|manifest| {
        [
            manifest.id.clone(),
            age(manifest.taken_at_ms, now_ms),
            manifest.cluster_id.clone(),
            manifest.rev.to_string(),
            amount(manifest.bytes()),
            manifest.quorate_version.clone(),
        ]
    });
    table(["id", "age", "cluster", "rev", "size", "version"], rows.collect(), "no backups")
}

pub(super) fn record_view(record: &BackupRecord) -> Value {
    json!({
        "id": record.id,
        "target": record.target,
        "node_id": record.node_id,
        "began_ms": record.began_ms,
        "ended_ms": record.ended_ms,
        "rev": record.rev,
        "bytes": record.bytes,
        "sent_bytes": record.sent_bytes,
        "error": record.error,
    })
}

/// `20261121T183000Z-000000004711: 1.2 GiB, 3.4 MiB of it sent, in 4.2s, by node 2 to s3://b/p`
pub(super) fn record_line(record: &BackupRecord) -> String {
    let BackupRecord { id, target, node_id, .. } = record;
    let (bytes, sent) = (amount(record.bytes), amount(record.sent_bytes));
    let took = span(record.ended_ms.saturating_sub(record.began_ms));
    format!("{id}: {bytes}, {sent} of it sent, in {took}, by node {node_id} to {target}")
}

pub(super) fn policy_view(policy: &BackupPolicy) -> Value {
    json!({ "target": policy.target, "every_ms": policy.every_ms, "keep_ms": policy.keep_ms })
}

/// `to s3://b/p every 6h, kept for 90d`
pub(super) fn policy_line(policy: &BackupPolicy) -> String {
    if policy.target.is_empty() {
        return "no backups are scheduled".to_owned();
    }
    // What was never said the cluster fills in.
    let or_default = |ms: u64, default: &str| if ms == 0 { default.to_owned() } else { span(ms) };
    let (every, keep) = (or_default(policy.every_ms, "6h"), or_default(policy.keep_ms, "90d"));
    format!("to {} every {every}, kept for {keep}", policy.target)
}

pub(super) fn status_view(status: &BackupStatusResponse) -> Value {
    json!({
        "policy": status.policy.as_ref().map(policy_view),
        "last_success": status.last_success.as_ref().map(record_view),
        "last_failure": status.last_failure.as_ref().map(record_view),
        "failures": status.failures,
        "next_at_ms": (status.next_at_ms > 0).then_some(status.next_at_ms),
    })
}

pub(super) fn status_text(status: &BackupStatusResponse, now_ms: u64) -> String {
    let ago = |record: &BackupRecord| format!("{} ago", age(record.ended_ms, now_ms));
    let success = status.last_success.as_ref().map(|record| format!("{}, {}", ago(record), record_line(record)));
    let failure = status.last_failure.as_ref().map(|record| {
        let BackupRecord { node_id, target, error, .. } = record;
        format!("{}, {} in a row; node {node_id} to {target}: {error}", ago(record), status.failures)
    });
    let next = match status.next_at_ms {
        0 => String::new(),
        at_ms if at_ms <= now_ms => "now".to_owned(),
        at_ms => format!("in {}", span(at_ms - now_ms)),
    };
    facts(vec![
        ("schedule", policy_line(&status.policy.clone().unwrap_or_default())),
        ("last backup", or_dash(&success.unwrap_or_default())),
        ("last failure", failure.unwrap_or_default()),
        ("next", next),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_one_digit_behind_the_point() {
        let cases = [(0, "0 B"), (1_023, "1023 B"), (1_024, "1.0 KiB"), (3_565_158, "3.3 MiB"), (1 << 40, "1.0 TiB")];
        for (bytes, text) in cases {
            assert_eq!(amount(bytes), text);
        }
        assert!(amount(u64::MAX).ends_with("PiB"));
    }

    #[test]
    fn a_status_names_the_node_and_the_reason() {
        let policy = Some(BackupPolicy { target: "s3://b/p".to_owned(), every_ms: 21_600_000, keep_ms: 0 });
        let last_success = Some(BackupRecord {
            id: "one".to_owned(),
            target: "s3://b/p".to_owned(),
            node_id: 2,
            began_ms: 1_000,
            ended_ms: 5_200,
            bytes: 2_048,
            ..BackupRecord::default()
        });
        let error = "the share is gone".to_owned();
        let last_failure = Some(BackupRecord { error, node_id: 3, ended_ms: 61_000, ..BackupRecord::default() });
        let status = BackupStatusResponse { policy, last_success, last_failure, next_at_ms: 181_000, failures: 2 };
        let text = status_text(&status, 121_000);
        for part in [
            "to s3://b/p every 6h, kept for 90d",
            "1m 55s ago, one: 2.0 KiB, 0 B of it sent, in 4.2s, by node 2",
            "1m ago, 2 in a row; node 3",
            "the share is gone",
            "in 1m",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(status_text(&BackupStatusResponse::default(), 0).contains("no backups are scheduled"));
    }
}
