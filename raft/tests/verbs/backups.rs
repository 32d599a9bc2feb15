//! `backup_policy TARGET every= keep=`, `backed_up ID rev= at=` (or `error=`), and the read `backups`.

use quorate_proto::log::{RecordBackup, answer, command};
use quorate_proto::v1::{BackupPolicy, BackupRecord, SetBackupPolicyRequest};
use quorate_raft::apply::Machine;
use quorate_raft::state::backups;

use super::Line;

pub(crate) fn body(line: &Line<'_>) -> Option<command::Body> {
    use command::Body as B;
    Some(match line.verb {
        "backup_policy" => B::SetBackupPolicy(SetBackupPolicyRequest {
            policy: Some(BackupPolicy {
                target: line.id(),
                every_ms: line.number("every", 0),
                keep_ms: line.number("keep", 0),
            }),
        }),
        "backed_up" => B::RecordBackup(RecordBackup {
            record: Some(BackupRecord {
                id: line.id(),
                rev: line.number("rev", 0),
                ended_ms: line.number("at", 0),
                error: line.text("error"),
                ..BackupRecord::default()
            }),
        }),
        _ => return None,
    })
}

pub(crate) fn show(body: &answer::Body) -> Option<String> {
    match body {
        answer::Body::SetBackupPolicy(_) => Some("set".to_owned()),
        answer::Body::RecordBackup(_) => Some("ok".to_owned()),
        _ => None,
    }
}

pub(crate) fn read(machine: &Machine, _now_ms: u64, line: &Line<'_>) -> Option<String> {
    if line.verb != "backups" {
        return None;
    }
    let row = backups::get(&machine.rows).expect("a row that can be read");
    let policy = backups::resolved(&row.policy.unwrap_or_default());
    let target = if policy.target.is_empty() { "none" } else { policy.target.as_str() };
    let good = row.last_success.map_or("none".to_owned(), |record| format!("{}@{}", record.id, record.ended_ms));
    let bad = row.last_failure.map_or("none".to_owned(), |record| format!("{}@{}", record.error, record.ended_ms));
    let (every_ms, keep_ms, failures) = (policy.every_ms, policy.keep_ms, row.failures);
    Some(format!("{target} every={every_ms} keep={keep_ms} good={good} bad={bad} failures={failures}"))
}
