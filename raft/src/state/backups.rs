//! Backups: when they are to be taken, and how the last ones went.
//!
//! Owns the one Backups row, which is the cluster's and of no namespace. No index: whoever plans a backup reads the
//! row. A policy is kept as it was said; readers fill in what it leaves open ([`resolved`]).
//!
//! Deliberately absent: the backups themselves, which nodes take and whose targets list them; and when the next one is
//! due, which the leader computes from the row.

use quorate_proto::log::{Done, RecordBackup};
use quorate_proto::v1::{BackupPolicy, BackupRecord, BackupsRow, SetBackupPolicyRequest, SetBackupPolicyResponse};

use crate::error::{Fatal, Outcome, invalid};
use crate::state::{Ctx, Out};
use crate::storage::keys::{Key, Table};
use crate::storage::rows::{self, Rows};

/// Between two backups, if the policy does not say.
pub const DEFAULT_EVERY_MS: u64 = 6 * 3_600_000;
/// How long a backup stays, if the policy does not say.
pub const DEFAULT_KEEP_MS: u64 = 90 * 86_400_000;
/// The shortest time between two.
pub const MIN_EVERY_MS: u64 = 60_000;
/// The longest target.
pub const MAX_TARGET_BYTES: usize = 1_024;
/// How much of a backup's name is kept.
const MAX_NAME_BYTES: usize = 256;
/// How much is kept of why a backup failed: the beginning of it.
const MAX_ERROR_BYTES: usize = 4_096;

/// Says when backups are taken and how long they stay.
pub fn set_policy(out: &mut Out<'_, '_>, ctx: &Ctx, req: SetBackupPolicyRequest) -> Outcome<SetBackupPolicyResponse> {
    let Some(policy) = req.policy else {
        return Err(invalid("policy", "policy must be given; one without a target switches scheduled backups off"));
    };
    check_policy(&policy)?;
    let row = BackupsRow { policy: Some(policy), ..get(&*out.txn)? };
    out.txn.put(&key(), &row);
    Ok(SetBackupPolicyResponse { rev: ctx.rev })
}

/// Notes how a backup went. One that succeeded makes up for those that failed before it.
pub fn record(out: &mut Out<'_, '_>, req: RecordBackup) -> Outcome<Done> {
    let Some(record) = req.record else {
        return Err(invalid("record", "record must be given"));
    };
    if record.error.is_empty() && record.id.is_empty() {
        return Err(invalid("record.id", "record.id must name the backup, or record.error say why there is none"));
    }
    let record = clipped(record);
    let mut row = get(&*out.txn)?;
    if record.error.is_empty() {
        row = BackupsRow { policy: row.policy, last_success: Some(record), last_failure: None, failures: 0 };
    } else {
        row.last_failure = Some(record);
        row.failures = row.failures.saturating_add(1);
    }
    out.txn.put(&key(), &row);
    Ok(Done {})
}

/// The policy, and how the last backups went.
pub fn get(rows: &dyn Rows) -> Result<BackupsRow, Fatal> {
    Ok(rows::get(rows, &key())?.unwrap_or_default())
}

/// The policy with what it leaves open filled in. The newest backup stays at least until the next one.
pub fn resolved(policy: &BackupPolicy) -> BackupPolicy {
    let or = |said: u64, default: u64| if said == 0 { default } else { said };
    let every_ms = or(policy.every_ms, DEFAULT_EVERY_MS);
    let keep_ms = or(policy.keep_ms, DEFAULT_KEEP_MS.max(every_ms));
    BackupPolicy { target: policy.target.clone(), every_ms, keep_ms }
}

/// Checks where backups go: a directory of the nodes, or a bucket.
pub fn check_target(field: &str, target: &str) -> Outcome<()> {
    let bucket = target.strip_prefix("s3://").is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/'));
    let fits = target.len() <= MAX_TARGET_BYTES && !target.chars().any(char::is_control);
    if fits && (bucket || target.starts_with("file:///")) {
        return Ok(());
    }
    let shown = &target[..target.floor_char_boundary(80)];
    let message = format!(
        "{field} must be file:///a/directory or s3://bucket/prefix, of {MAX_TARGET_BYTES} bytes at most; got {shown:?}"
    );
    Err(invalid(field, message))
}

fn check_policy(policy: &BackupPolicy) -> Outcome<()> {
    if !policy.target.is_empty() {
        check_target("policy.target", &policy.target)?;
    }
    if policy.every_ms != 0 && policy.every_ms < MIN_EVERY_MS {
        let message = format!(
            "policy.every_ms must be {MIN_EVERY_MS} or more, or 0 for {DEFAULT_EVERY_MS}; got {}",
            policy.every_ms
        );
        return Err(invalid("policy.every_ms", message));
    }
    let every_ms = resolved(policy).every_ms;
    if policy.keep_ms != 0 && policy.keep_ms < every_ms {
        let message = format!(
            "policy.keep_ms must be at least the time between two backups, {every_ms}, or 0 for {DEFAULT_KEEP_MS}; got {}",
            policy.keep_ms
        );
        return Err(invalid("policy.keep_ms", message));
    }
    Ok(())
}

/// What a target or a file system says may be long; the row is read with every look at the policy.
fn clipped(mut record: BackupRecord) -> BackupRecord {
    let texts = [
        (&mut record.id, MAX_NAME_BYTES),
        (&mut record.target, MAX_TARGET_BYTES),
        (&mut record.error, MAX_ERROR_BYTES),
    ];
    for (text, most) in texts {
        text.truncate(text.floor_char_boundary(most));
    }
    record
}

fn key() -> Key {
    Key::table(Table::Backups)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(every_ms: u64, keep_ms: u64) -> BackupPolicy {
        BackupPolicy { target: "s3://bucket".to_owned(), every_ms, keep_ms }
    }

    #[test]
    fn what_a_policy_leaves_open_is_filled_in() {
        assert_eq!(resolved(&policy(0, 0)), policy(DEFAULT_EVERY_MS, DEFAULT_KEEP_MS));
        assert_eq!(resolved(&policy(60_000, 70_000)), policy(60_000, 70_000));
        // A backup is not gone before the next one is there.
        let seldom = 2 * DEFAULT_KEEP_MS;
        assert_eq!(resolved(&policy(seldom, 0)), policy(seldom, seldom));
    }

    #[test]
    fn a_target_is_a_directory_or_a_bucket() {
        for good in ["file:///", "file:///mnt/my nas", "s3://b", "s3://b/p/q"] {
            assert!(check_target("target", good).is_ok(), "{good}");
        }
        let long = format!("s3://{}", "ü".repeat(MAX_TARGET_BYTES));
        for bad in ["", "/mnt", "file://host/x", "file:/x", "s3://", "s3:///p", "ftp://b", "s3://b\n", long.as_str()] {
            assert!(check_target("target", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let error = "ü".repeat(MAX_ERROR_BYTES);
        let kept = clipped(BackupRecord { error: format!("x{error}"), ..BackupRecord::default() }).error;
        assert_eq!(kept.len(), MAX_ERROR_BYTES - 1);
    }
}
