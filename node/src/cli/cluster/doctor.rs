//! `quorate cluster doctor`: what is wrong, worst first, each with what mends it.
//!
//! Owns: the findings, made of what the nodes say of themselves. Deliberately absent: mending.

use std::collections::BTreeSet;

use quorate_client::v1::{BackupRecord, BackupStatusResponse, ClusterStatusResponse, DiskState, NodeStatusResponse};
use serde_json::{Value, json};

use super::super::Context;
use super::super::exit::Failure;
use super::super::output::{age, now_ms, table};
use super::shown::size;

pub(super) const EXAMPLES: &str = "\
EXAMPLES:
  quorate cluster doctor
      what is wrong, worst first, and the command that mends it
  quorate cluster doctor --full -o json
      for a program; each node also hashes all its rows, which takes time in proportion to the state

Exit code 0 if there is nothing worse than a note, else 1.";

/// Slower than this a log is slow, whatever the others do.
const SLOW_US: u64 = 100_000;
/// Or so many times slower than the others'.
const SLOW_TIMES: u64 = 5;
/// What every disk takes now and then is not slow.
const NEVER_SLOW_US: u64 = 10_000;
/// Entries that a node knows and has not applied.
const LAG: u64 = 10_000;
/// Between backups, if the policy does not say.
const BACKUP_EVERY_MS: u64 = 6 * 3_600_000;

/// How bad it is; the worst comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Severity {
    Critical,
    Warning,
    Note,
}

impl Severity {
    fn name(self) -> &'static str {
        match self {
            Severity::Critical => "critical",
            Severity::Warning => "warning",
            Severity::Note => "note",
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    severity: Severity,
    /// The node that it is about, if it is about one.
    node_id: Option<u64>,
    finding: String,
    remedy: String,
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, severity: Severity, node_id: Option<u64>, finding: impl Into<String>, remedy: impl Into<String>) {
        self.0.push(Finding { severity, node_id, finding: finding.into(), remedy: remedy.into() });
    }
}

/// Asks, and says what was found.
pub(super) async fn run(context: &Context, full: bool) -> Result<(), Failure> {
    let mut status = context.client.cluster().status().await?;
    if full {
        super::add_full_digests(context, &mut status.nodes).await;
    }
    let backups = match context.client.backups().status().await {
        Ok(backups) => Some(backups),
        Err(error) => {
            context.out.note(&format!("nothing is known of backups: {error}"));
            None
        }
    };
    let found = findings(&status, backups.as_ref(), now_ms());
    context.out.show(|| Value::Array(found.iter().map(view).collect()), || text(&found))?;
    match found.iter().filter(|one| one.severity != Severity::Note).count() {
        0 => Ok(()),
        1 => Err(Failure::failed("one thing needs attention")),
        many => Err(Failure::failed(format!("{many} things need attention"))),
    }
}

fn view(found: &Finding) -> Value {
    json!({
        "severity": found.severity.name(),
        "node_id": found.node_id,
        "finding": found.finding,
        "do": found.remedy,
    })
}

fn text(found: &[Finding]) -> String {
    let rows = found.iter().map(|one| {
        let node = one.node_id.map_or_else(|| "-".to_owned(), |id| id.to_string());
        [one.severity.name().to_owned(), node, one.finding.clone(), one.remedy.clone()]
    });
    table(["severity", "node", "finding", "do"], rows.collect(), "all is well")
}

/// What is wrong, worst first.
pub(super) fn findings(
    status: &ClusterStatusResponse,
    backups: Option<&BackupStatusResponse>,
    now_ms: u64,
) -> Vec<Finding> {
    let mut found = Findings::default();
    if status.leader_id == 0 {
        let remedy = "bring back a majority of the voters: see `quorate cluster status`";
        found.add(Severity::Critical, None, "no leader is known: nothing can be written", remedy);
    }
    if let Some(message) = super::divergence(&status.nodes) {
        let remedy = "rebuild the one that differs from the others: `quorate cluster rebuild` on it";
        found.add(Severity::Critical, None, message, remedy);
    }
    for node in &status.nodes {
        if node.role == "unreachable" {
            let finding = format!("does not answer at {}: {}", node.address, node.reason);
            let id = node.node_id;
            let remedy = format!("start it again; if it is lost for good: `quorate cluster replace {id} N=HOST:PORT`");
            found.add(Severity::Critical, Some(id), finding, remedy);
        } else {
            state(&mut found, node);
            disk(&mut found, node);
        }
    }
    slow_disks(&mut found, &status.nodes);
    membership(&mut found, &status.nodes);
    versions(&mut found, status);
    if let Some(backups) = backups {
        backup(&mut found, backups, now_ms);
    }
    found.0.sort_by_key(|one| (one.severity, one.node_id));
    found.0
}

fn state(found: &mut Findings, node: &NodeStatusResponse) {
    let id = Some(node.node_id);
    if !node.ready {
        let finding = format!("is not ready: {}", node.reason);
        found.add(Severity::Warning, id, finding, "wait if it has just started; else look at its log");
    }
    let lag = node.last_log_index.saturating_sub(node.applied_index);
    if lag > LAG {
        let finding = format!("has {lag} entries that it has not applied");
        found.add(Severity::Warning, id, finding, "look whether its machine is short of CPU or its disk is slow");
    }
}

fn disk(found: &mut Findings, node: &NodeStatusResponse) {
    let Some(disk) = &node.disk else { return };
    let free = size(disk.free_bytes);
    let remedy = "free space or enlarge the disk: it goes on by itself once there is room";
    match disk.state() {
        DiskState::Full => {
            let finding = format!("its disk is full ({free} free): it takes nothing more");
            found.add(Severity::Critical, Some(node.node_id), finding, remedy);
        }
        DiskState::Low => {
            let finding = format!("its disk is nearly full ({free} free): only what frees space is taken");
            found.add(Severity::Warning, Some(node.node_id), finding, remedy);
        }
        DiskState::Ok | DiskState::Unspecified => {}
    }
}

fn slow_disks(found: &mut Findings, nodes: &[NodeStatusResponse]) {
    for node in nodes.iter().filter(|node| node.sync_p99_us > 0) {
        let p99 = node.sync_p99_us;
        let others = nodes.iter().filter(|other| other.node_id != node.node_id).map(|other| other.sync_p99_us);
        let usual = median(others.filter(|p99| *p99 > 0).collect());
        let stands_out = usual.is_some_and(|usual| p99 > usual * SLOW_TIMES) && p99 > NEVER_SLOW_US;
        if p99 > SLOW_US || stands_out {
            let than = usual.map_or_else(String::new, |usual| format!("; the others' {} ms", usual / 1_000));
            let finding = format!("its disk is slow: a log write takes up to {} ms (p99){than}", p99 / 1_000);
            let remedy =
                format!("look what else uses the disk, or `quorate cluster replace {} N=HOST:PORT`", node.node_id);
            found.add(Severity::Warning, Some(node.node_id), finding, remedy);
        }
    }
}

fn median(mut values: Vec<u64>) -> Option<u64> {
    values.sort_unstable();
    values.get(values.len() / 2).copied()
}

fn membership(found: &mut Findings, nodes: &[NodeStatusResponse]) {
    let voters = nodes.iter().filter(|node| node.voter).count();
    match voters {
        0 => {}
        1 => {
            let finding = "one voter: nothing outlives its loss";
            found.add(Severity::Note, None, finding, "`quorate cluster join` on two other machines");
        }
        even if even.is_multiple_of(2) => {
            let finding = format!("{even} voters outlive no more losses than {}", even - 1);
            found.add(Severity::Warning, None, finding, "go on to an odd number: `quorate cluster add` or `remove`");
        }
        _ => {}
    }
    for learner in nodes.iter().filter(|node| !node.voter && node.role != "unreachable") {
        let (id, address) = (learner.node_id, &learner.address);
        let remedy = format!("`quorate cluster add {id}={address}` goes on, `quorate cluster remove {id}` gives it up");
        found.add(Severity::Warning, Some(id), "receives the log and has no vote: a change was not ended", remedy);
    }
}

fn versions(found: &mut Findings, status: &ClusterStatusResponse) {
    let nodes: Vec<&NodeStatusResponse> = status.nodes.iter().filter(|node| node.role != "unreachable").collect();
    let versions: BTreeSet<&str> = nodes.iter().map(|node| node.version.as_str()).collect();
    if versions.len() > 1 {
        let versions: Vec<&str> = versions.into_iter().collect();
        let finding = format!("the nodes run different versions: {}", versions.join(", "));
        found.add(Severity::Note, None, finding, "go on with the upgrade, one node at a time");
    }
    let levels: BTreeSet<u32> = nodes.iter().map(|node| node.feature_level).filter(|level| *level > 0).collect();
    let everybody = nodes.len() == status.nodes.len() && nodes.iter().all(|node| node.feature_level > 0);
    match levels.first() {
        Some(lowest) if everybody && status.feature_level > 0 && *lowest > status.feature_level => {
            let finding = format!("every node understands level {lowest}, level {} is in use", status.feature_level);
            let remedy = "`quorate cluster raise-level`, once you will not go back to the older version";
            found.add(Severity::Note, None, finding, remedy);
        }
        _ => {}
    }
}

fn backup(found: &mut Findings, backups: &BackupStatusResponse, now_ms: u64) {
    let schedule = "`quorate backup schedule --to URL`";
    let policy = backups.policy.as_ref().filter(|policy| !policy.target.is_empty());
    if let Some(BackupRecord { error, ended_ms, .. }) = &backups.last_failure {
        let finding = format!("the last backup failed {} ago: {error}", age(*ended_ms, now_ms));
        found.add(Severity::Warning, None, finding, "mend the target, then `quorate backup create`");
    }
    let Some(policy) = policy else {
        found.add(Severity::Warning, None, "no backups are scheduled", schedule);
        return;
    };
    let every_ms = if policy.every_ms == 0 { BACKUP_EVERY_MS } else { policy.every_ms };
    match &backups.last_success {
        Some(last) if now_ms.saturating_sub(last.ended_ms) > every_ms.saturating_mul(2) => {
            let finding = format!("the last good backup is {} old", age(last.ended_ms, now_ms));
            found.add(Severity::Warning, None, finding, "look at `quorate backup status`");
        }
        Some(_) => {}
        None if backups.last_failure.is_none() => {
            found.add(Severity::Note, None, "backups are scheduled, none was taken yet", "`quorate backup create`");
        }
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use quorate_client::v1::{BackupPolicy, Disk};

    use super::*;

    type Change = fn(&mut ClusterStatusResponse);

    fn node(node_id: u64) -> NodeStatusResponse {
        NodeStatusResponse {
            node_id,
            address: format!("h{node_id}:7401"),
            role: if node_id == 1 { "leader" } else { "follower" }.to_owned(),
            ready: true,
            voter: true,
            version: "1.0.0".to_owned(),
            feature_level: 2,
            sync_p50_us: 500,
            sync_p99_us: 2_000,
            disk: Some(Disk { total_bytes: 1 << 40, free_bytes: 1 << 39, state: DiskState::Ok as i32 }),
            ..NodeStatusResponse::default()
        }
    }

    fn healthy() -> ClusterStatusResponse {
        let nodes = vec![node(1), node(2), node(3)];
        ClusterStatusResponse { leader_id: 1, nodes, feature_level: 2, ..ClusterStatusResponse::default() }
    }

    fn backed_up(ended_ms: u64) -> BackupStatusResponse {
        let policy = BackupPolicy { target: "file:///mnt".to_owned(), every_ms: 1_000, keep_ms: 0 };
        let last_success = Some(BackupRecord { ended_ms, ..BackupRecord::default() });
        BackupStatusResponse { policy: Some(policy), last_success, ..BackupStatusResponse::default() }
    }

    #[test]
    fn a_healthy_cluster_gives_no_finding() {
        assert!(findings(&healthy(), Some(&backed_up(9_000)), 10_000).is_empty());
    }

    #[test]
    fn every_ill_is_found_and_comes_with_its_remedy() {
        let cases: [(Severity, Option<u64>, &str, &str, Change); 13] = [
            (Severity::Critical, None, "no leader", "majority", |s| s.leader_id = 0),
            (Severity::Critical, Some(3), "does not answer", "replace 3", |s| s.nodes[2].role = "unreachable".into()),
            (Severity::Critical, None, "differ at rev 0", "rebuild", |s| {
                s.nodes[0].digest = "aa".into();
                s.nodes[1].digest = "bb".into();
            }),
            (Severity::Warning, Some(2), "is not ready", "log", |s| s.nodes[1].ready = false),
            (Severity::Critical, Some(2), "disk is full (1.0 MiB free)", "free space", |s| {
                s.nodes[1].disk = Some(Disk { total_bytes: 1, free_bytes: 1 << 20, state: DiskState::Full as i32 });
            }),
            (Severity::Warning, Some(2), "nearly full", "free space", |s| {
                s.nodes[1].disk = Some(Disk { total_bytes: 1, free_bytes: 1 << 20, state: DiskState::Low as i32 });
            }),
            (Severity::Warning, Some(2), "up to 150 ms", "replace 2", |s| s.nodes[1].sync_p99_us = 150_000),
            (Severity::Warning, Some(2), "up to 20 ms (p99); the others' 2 ms", "disk", |s| {
                s.nodes[1].sync_p99_us = 20_000;
            }),
            (Severity::Warning, None, "2 voters outlive no more losses than 1", "odd", |s| s.nodes.truncate(2)),
            (Severity::Warning, Some(4), "no vote", "add 4=h4:7401", |s| {
                s.nodes.push(NodeStatusResponse { voter: false, ..node(4) });
            }),
            (Severity::Note, None, "different versions: 1.0.0, 1.1.0", "upgrade", |s| {
                s.nodes[0].version = "1.1.0".into();
            }),
            (Severity::Note, None, "level 2, level 1 is in use", "raise-level", |s| s.feature_level = 1),
            (Severity::Warning, Some(1), "10001 entries", "CPU", |s| s.nodes[0].last_log_index = 10_001),
        ];
        for (severity, node_id, finding, remedy, change) in cases {
            let mut status = healthy();
            change(&mut status);
            let found = findings(&status, None, 0);
            let [one] = found.as_slice() else { panic!("{finding}: {found:?}") };
            assert_eq!((one.severity, one.node_id), (severity, node_id), "{one:?}");
            assert!(one.finding.contains(finding) && one.remedy.contains(remedy), "{one:?}");
        }
    }

    #[test]
    fn what_is_fast_enough_is_not_slow() {
        let mut status = healthy();
        status.nodes[1].sync_p99_us = NEVER_SLOW_US;
        status.nodes[0].sync_p99_us = 100;
        status.nodes[2].sync_p99_us = 0;
        assert!(findings(&status, None, 0).is_empty());
    }

    #[test]
    fn backups_are_found_wanting() {
        let found = |backups: &BackupStatusResponse| {
            let found = findings(&healthy(), Some(backups), 10_000);
            found.into_iter().map(|one| one.finding).collect::<Vec<_>>()
        };
        assert_eq!(found(&BackupStatusResponse::default()), ["no backups are scheduled"]);
        assert_eq!(found(&backed_up(7_000)), ["the last good backup is 3.0s old"]);
        let last_failure =
            Some(BackupRecord { ended_ms: 9_000, error: "no such host".to_owned(), ..Default::default() });
        let failed = BackupStatusResponse { last_failure, ..backed_up(9_000) };
        assert_eq!(found(&failed), ["the last backup failed 1.0s ago: no such host"]);
        let young = BackupStatusResponse { last_success: None, ..backed_up(0) };
        assert_eq!(found(&young), ["backups are scheduled, none was taken yet"]);
    }

    #[test]
    fn the_worst_comes_first() {
        let mut status = healthy();
        status.feature_level = 1;
        status.nodes[0].ready = false;
        status.nodes[2].role = "unreachable".to_owned();
        let found = findings(&status, None, 0);
        let severities: Vec<Severity> = found.iter().map(|one| one.severity).collect();
        assert_eq!(severities, [Severity::Critical, Severity::Warning], "who is silent may be older: {found:?}");
        assert_eq!(view(&found[1])["do"], "wait if it has just started; else look at its log");
    }
}
