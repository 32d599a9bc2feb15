//! When the next backup is due, and the loop of the leader that takes it.
//!
//! All that is remembered is in the state: the policy, and how the last backups went. So a new leader goes on where the
//! old one was, and one that was cut off half-way is taken anew: what it sent is there already.
//!
//! A target that fails is tried again after a minute, then after twice that, up to half of the time between two
//! backups, and an hour at most. Nothing else waits for it.
//!
//! Deliberately absent: making up for backups that were missed. One is as good as many.

use std::sync::Arc;
use std::time::Duration;

use quorate_proto::log::{RecordBackup, answer, command};
use quorate_proto::v1::{BackupPolicy, BackupRecord, BackupsRow};
use quorate_raft::error::Fatal;
use quorate_raft::state::backups::{self, resolved};
use quorate_raft::state::namespaces::DEFAULT;

use super::create::{while_leading, who};
use super::prune::KEEP_NEWEST;
use super::{open, prune, take, turn};
use crate::core::Core;
use crate::stop::Reason;

/// How often the loop looks whether one is due.
const LOOK: Duration = Duration::from_secs(1);
const FIRST_RETRY_MS: u64 = 60_000;
const LONGEST_RETRY_MS: u64 = 3_600_000;

/// When a backup is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    At(u64),
    Never,
}

/// Starts the loop.
pub(crate) fn start(core: &Arc<Core>) {
    tokio::spawn(run(core.clone()));
}

/// The policy, and how the last backups went.
pub(crate) fn row(core: &Core) -> Result<BackupsRow, Fatal> {
    core.replica.read(|whole| backups::get(whole.rows))
}

/// When the next scheduled backup is due, by the cluster's clock; 0: never.
pub(crate) fn next_at_ms(row: &BackupsRow, now_ms: u64) -> u64 {
    match next(&policy(row), row, now_ms) {
        Next::At(at_ms) => at_ms,
        Next::Never => 0,
    }
}

/// Tells the cluster how a backup went. A backup that nobody heard of is in its target nevertheless.
pub(crate) async fn note(core: &Core, term: u64, record: BackupRecord) {
    let body = command::Body::RecordBackup(RecordBackup { record: Some(record) });
    match core.proposer.propose_as_leader(DEFAULT, body, term).await.map(|answer| answer.body) {
        Ok(Some(answer::Body::Rejected(rejection))) => {
            tracing::warn!(reason = rejection.message, "how a backup went is not noted");
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "how a backup went is not noted"),
    }
}

fn policy(row: &BackupsRow) -> BackupPolicy {
    resolved(&row.policy.clone().unwrap_or_default())
}

/// When the next backup is due under this policy. Only what was tried with its own target counts: a copy that somebody
/// made elsewhere is not where the policy wants one.
fn next(policy: &BackupPolicy, row: &BackupsRow, now_ms: u64) -> Next {
    if policy.target.is_empty() {
        return Next::Never;
    }
    let here = |record: &&BackupRecord| record.target == policy.target;
    // A clock that was ahead must not put it off for longer than the policy does.
    let latest_ms = now_ms.saturating_add(policy.every_ms);
    let regular_ms = match row.last_success.as_ref().filter(here) {
        Some(success) => success.began_ms.saturating_add(policy.every_ms).min(latest_ms),
        None => now_ms,
    };
    Next::At(match row.last_failure.as_ref().filter(here) {
        Some(failure) => {
            let retry_ms = failure.ended_ms.saturating_add(pause_ms(policy.every_ms, row.failures));
            regular_ms.max(retry_ms.min(latest_ms))
        }
        None => regular_ms,
    })
}

/// How long to wait after so many failures.
fn pause_ms(every_ms: u64, failures: u32) -> u64 {
    let doublings = failures.saturating_sub(1).min(16);
    (FIRST_RETRY_MS << doublings).min(every_ms / 2).min(LONGEST_RETRY_MS)
}

async fn run(core: Arc<Core>) {
    loop {
        tokio::time::sleep(LOOK).await;
        if core.stop.is_thrown() {
            return;
        }
        let Some(term) = core.office() else { continue };
        let row = match row(&core) {
            Ok(row) => row,
            Err(fatal) => return core.stop.now(Reason::Fault(fatal.to_string())),
        };
        let (policy, now_ms) = (policy(&row), core.clock.now_ms());
        let is_due = matches!(next(&policy, &row, now_ms), Next::At(at_ms) if at_ms <= now_ms);
        if is_due && let Some(_turn) = turn() {
            backup(&core, &policy, term).await;
        }
    }
}

/// Takes one, lets the old ones go, and notes it.
async fn backup(core: &Arc<Core>, policy: &BackupPolicy, term: u64) {
    let record = take(core, &policy.target, term, &mut |_, _| {}).await;
    let succeeded = record.error.is_empty();
    // First of all: a prune that takes long must not make the next one come early.
    note(core, term, record).await;
    if succeeded && let Err(error) = let_go(core, policy, term).await {
        tracing::warn!(to = policy.target, error = format!("{error:#}"), "old backups were not removed");
    }
}

async fn let_go(core: &Core, policy: &BackupPolicy, term: u64) -> anyhow::Result<()> {
    let target = while_leading(core, term, open(&policy.target)).await?;
    let who = who(core);
    // What is left to do is little: if this node loses its office over it, the lock lapses.
    let pruned = prune(&target, &who, policy.keep_ms, core.clock.now_ms(), KEEP_NEWEST);
    let pruned = while_leading(core, term, pruned).await?;
    if !pruned.backups.is_empty() {
        let (backups, objects) = (pruned.backups.len(), pruned.objects);
        tracing::info!(backups, objects, bytes = pruned.bytes, "old backups were removed");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::Manifest;
    use super::super::manifest::id_of;
    use super::super::prune::outdated;
    use super::*;

    const MINUTE: u64 = 60_000;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    const BEGIN: u64 = 1_795_285_800_000;

    fn daily_four() -> BackupPolicy {
        BackupPolicy { target: "file:///backups".to_owned(), every_ms: 6 * HOUR, keep_ms: 90 * DAY }
    }

    fn tried(at_ms: u64, error: &str) -> BackupRecord {
        let target = daily_four().target;
        BackupRecord { target, began_ms: at_ms, ended_ms: at_ms, error: error.to_owned(), ..BackupRecord::default() }
    }

    #[test]
    fn four_a_day_over_a_hundred_days_leave_those_of_ninety() {
        let (policy, mut row, mut now_ms) = (daily_four(), BackupsRow::default(), BEGIN);
        let (mut kept, mut taken): (Vec<Manifest>, u64) = (Vec::new(), 0);
        while let Next::At(at_ms) = next(&policy, &row, now_ms) {
            // The loop looks once a second.
            now_ms = at_ms.max(now_ms) + 1_000;
            if now_ms > BEGIN + 100 * DAY {
                break;
            }
            taken += 1;
            row.last_success = Some(tried(now_ms, ""));
            kept.push(Manifest { id: id_of(now_ms, taken), taken_at_ms: now_ms, ..Manifest::default() });
            let gone: Vec<String> =
                outdated(&kept, policy.keep_ms, now_ms, KEEP_NEWEST).into_iter().map(str::to_owned).collect();
            kept.retain(|manifest| !gone.contains(&manifest.id));
        }
        assert_eq!(taken, 400);
        let last_ms = kept.last().unwrap().taken_at_ms;
        assert!(kept.iter().all(|manifest| manifest.taken_at_ms + policy.keep_ms >= last_ms));
        assert_eq!(kept.len(), 360, "four a day for ninety days");
        let gaps = kept.windows(2).map(|two| two[1].taken_at_ms - two[0].taken_at_ms);
        assert!(gaps.into_iter().all(|gap| gap == 6 * HOUR + 1_000));
    }

    #[test]
    fn a_failing_target_is_tried_again_ever_more_seldom() {
        let policy = daily_four();
        let mut row = BackupsRow { last_success: Some(tried(BEGIN, "")), ..BackupsRow::default() };
        let due = BEGIN + 6 * HOUR;
        let mut now_ms = due;
        let mut pauses = Vec::new();
        for failures in 1..=9 {
            row.last_failure = Some(tried(now_ms, "the share is gone"));
            row.failures = failures;
            let Next::At(at_ms) = next(&policy, &row, now_ms) else { panic!("it is given up") };
            pauses.push((at_ms - now_ms) / MINUTE);
            now_ms = at_ms;
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(pause_ms(MINUTE, 1), MINUTE / 2, "never longer than half of the time between two");
        assert_eq!(pause_ms(6 * HOUR, u32::MAX), HOUR);
    }

    #[test]
    fn only_what_was_tried_with_the_policys_own_target_counts() {
        let (policy, now_ms) = (daily_four(), BEGIN + HOUR);
        let elsewhere = |at_ms, error| BackupRecord { target: "file:///tmp".to_owned(), ..tried(at_ms, error) };
        let never = BackupsRow::default();
        assert_eq!(next(&policy, &never, now_ms), Next::At(now_ms));
        assert_eq!(next(&BackupPolicy::default(), &never, now_ms), Next::Never);
        let copied = BackupsRow { last_success: Some(elsewhere(BEGIN, "")), ..BackupsRow::default() };
        assert_eq!(next(&policy, &copied, now_ms), Next::At(now_ms));
        let last_failure = Some(elsewhere(now_ms, "no"));
        let failed = BackupsRow { last_success: Some(tried(BEGIN, "")), last_failure, failures: 1, policy: None };
        assert_eq!(next(&policy, &failed, now_ms), Next::At(BEGIN + 6 * HOUR));
    }

    #[test]
    fn a_clock_that_was_ahead_does_not_put_it_off() {
        let policy = daily_four();
        let row = BackupsRow { last_success: Some(tried(BEGIN + 900 * DAY, "")), ..BackupsRow::default() };
        assert_eq!(next(&policy, &row, BEGIN), Next::At(BEGIN + policy.every_ms));
    }
}
