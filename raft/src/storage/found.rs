//! Founding: makes a data directory that holds some state the first node of a new cluster.
//!
//! The state may come from a backup or from a node that was alone. Everything new is made in `founding/`, which a rename
//! to `founded/` puts in force; what is there then takes the place of what it is named like, again after a crash
//! ([`finish`]). So a crash leaves the old directory or the new one:
//!
//! ```text
//! founding/state/       a generation: the tables linked, head, cluster and backup policy rewritten
//! founding/log/         empty; begins after what is applied
//! founding/snapshots/   empty: those that there are name the old members
//! founding/<file>       small files of the node's own, such as its identity
//! ```
//!
//! Invariants: the one voter is the new node; its vote is of the term of the last entry, so the next leader's term is later
//! than every entry's; nothing that was applied is lost.
//!
//! Deliberately absent: where the state comes from, and whether its digest is the right one. The directory's databases are
//! closed.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::Path;

use prost::Message;
use quorate_proto::peer as pb;
use quorate_proto::v1::{BackupsRow, ClusterInfo};

use crate::consensus::log_storage::LogStorage;
use crate::error::Fatal;
use crate::storage::dir::sync_dir;
use crate::storage::keys::{Key, Table};
use crate::storage::rows;
use crate::storage::snapshot::{Layout, link_or_copy, read_head};
use crate::storage::state_db::{SMALL_BUFFER_BYTES, StateDb};
use crate::storage::txn::Txn;

const FOUNDING: &str = "founding";
const FOUNDED: &str = "founded";
/// The generation that a founded directory begins with.
const FIRST: &str = "000001";

/// What the new cluster is.
#[derive(Debug, Clone, Default)]
pub struct Founding {
    /// Its name.
    pub cluster_id: String,
    /// Its first node.
    pub node_id: u64,
    /// Where that node is reached, `host:port`.
    pub address: String,
    /// How far revs, and fencing tokens with them, jump. Not 0 if the old cluster may have gone on after this state: no
    /// rev is given out twice, and the event history up to there is gone, which tells watchers to begin anew.
    pub bump_rev: u64,
    /// No backups are taken by the old cluster's policy: they would go, and be pruned, where its own are.
    pub drop_backup_policy: bool,
    /// Small files of the data directory, by name, that change in the same step.
    pub files: Vec<(String, Vec<u8>)>,
}

/// What was founded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Founded {
    /// Term and index of the last entry that the state holds.
    pub applied: (u64, u64),
    /// The rev to go on from.
    pub rev: u64,
    /// The cluster that the state was of; empty: it had no name yet.
    pub old_cluster_id: String,
}

/// Makes the directory `root`, which nobody has open, the first node of a new cluster.
pub fn found(root: &Path, founding: &Founding) -> Result<Founded, Fatal> {
    finish(root)?;
    let new = root.join(FOUNDING);
    for dir in ["", "state", "snapshots"] {
        fs::create_dir_all(new.join(dir))?;
    }
    let current = Layout::open(root)?.current_generation()?;
    let generation = new.join("state").join(FIRST);
    link_or_copy(&current, &generation)?;
    let founded = rewrite(&generation, founding)?;
    write_synced(&new.join("state").join("CURRENT"), FIRST.as_bytes())?;
    LogStorage::begin(&new.join("log"), founding.node_id, founded.applied)?;
    for (name, content) in &founding.files {
        write_synced(&new.join(name), content)?;
    }
    for dir in ["state", "log", "snapshots", ""] {
        sync_dir(&new.join(dir))?;
    }
    fs::rename(&new, root.join(FOUNDED))?;
    sync_dir(root)?;
    finish(root)?;
    Ok(founded)
}

/// Finishes what a crash left of a founding: completes it if it was in force, forgets it if not. Whoever opens a data
/// directory calls this first, before anything is read from it.
pub fn finish(root: &Path) -> Result<(), Fatal> {
    remove(&root.join(FOUNDING))?;
    let founded = root.join(FOUNDED);
    let entries = match fs::read_dir(&founded) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    for entry in entries {
        let entry = entry?;
        let target = root.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            remove(&target)?;
        }
        fs::rename(entry.path(), &target)?;
    }
    // Everything is in its place before what says that it is to be put there goes.
    sync_dir(root)?;
    remove(&founded)?;
    sync_dir(root)
}

fn remove(dir: &Path) -> Result<(), Fatal> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

fn write_synced(path: &Path, content: &[u8]) -> Result<(), Fatal> {
    let mut file = File::create(path)?;
    file.write_all(content)?;
    Ok(file.sync_all()?)
}

/// Rewrites the rows that say whose state this is, in one write, and makes them durable.
fn rewrite(generation: &Path, founding: &Founding) -> Result<Founded, Fatal> {
    let db = StateDb::open(generation, SMALL_BUFFER_BYTES)?;
    let mut head = read_head(&db)?;
    let Some(applied) = head.applied else {
        return Err(Fatal::Corrupt("the state is empty: nothing was ever applied to it".to_owned()));
    };
    let cluster = Key::table(Table::Cluster);
    let info: ClusterInfo = rows::get(&db, &cluster)?.unwrap_or_default();
    let old_cluster_id = info.cluster_id.clone();
    head.rev = head.rev.checked_add(founding.bump_rev).ok_or_else(|| Fatal::Corrupt("revs have no room".to_owned()))?;
    head.membership = only_voter(applied, founding).encode_to_vec().into();
    let mut txn = Txn::new(&db, head.digest);
    // Under another name nobody knows the old numbers. Under the same one, a node that was removed may still run.
    let is_renamed = info.cluster_id != founding.cluster_id;
    let retired_node_ids = if is_renamed { Vec::new() } else { info.retired_node_ids.clone() };
    let renamed = ClusterInfo { cluster_id: founding.cluster_id.clone(), retired_node_ids, ..info };
    txn.put(&cluster, &renamed);
    if founding.drop_backup_policy {
        let backups = Key::table(Table::Backups);
        if rows::get::<BackupsRow>(&db, &backups)?.is_some() {
            txn.delete(&backups);
        }
    }
    if founding.bump_rev > 0 {
        txn.forget_events(head.rev);
        head.events_compacted_rev = head.rev;
    }
    head.digest = txn.digest();
    // The head is no part of the digest that it holds.
    txn.put(&Key::table(Table::Head), &head.to_row());
    db.write(txn.into_writes())?;
    db.flush()?;
    Ok(Founded { applied, rev: head.rev, old_cluster_id })
}

/// The membership as [`crate::consensus::wire`] stores it.
fn only_voter((term, index): (u64, u64), founding: &Founding) -> pb::StoredMembership {
    let node = pb::Node { node_id: founding.node_id, address: founding.address.clone() };
    let voters = pb::VoterSet { node_ids: vec![founding.node_id] };
    pb::StoredMembership {
        log_id: Some(pb::LogId { term, index }),
        membership: Some(pb::Membership { configs: vec![voters], nodes: vec![node] }),
    }
}

#[cfg(test)]
mod tests {
    use quorate_proto::log::{Batch, Command, command};
    use quorate_proto::v1::KvPutRequest;

    use super::*;
    use crate::apply::Head;
    use crate::consensus::wire;
    use crate::replica::{Applicable, Content, Replica};

    const BUFFER: u64 = 1 << 20;

    fn founding() -> Founding {
        Founding {
            cluster_id: "new".to_owned(),
            node_id: 4,
            address: "host:7401".to_owned(),
            bump_rev: 1_000,
            files: vec![("IDENTITY.toml".to_owned(), b"new".to_vec())],
            ..Founding::default()
        }
    }

    fn replica(root: &Path) -> Replica {
        Replica::open(root, BUFFER, tokio::sync::mpsc::unbounded_channel().0).unwrap()
    }

    /// A node of a cluster with the name "old", at entry 3 of term 7 and rev 3, with a snapshot.
    fn old(root: &Path) {
        let replica = replica(root);
        let info = ClusterInfo { cluster_id: "old".to_owned(), feature_level: 1, ..ClusterInfo::default() };
        let put = |key: &str| command::Body::KvPut(KvPutRequest { key: key.to_owned(), ..KvPutRequest::default() });
        let bodies = [command::Body::DescribeCluster(info), put("a"), put("b")];
        for (index, body) in (1..).zip(bodies) {
            let command = Command { body: Some(body), ..Command::default() };
            let batch = Batch { now_ms: 1, entropy: 0, commands: vec![command.encode_to_vec().into()] };
            let content = Content::Batch(batch.encode_to_vec().into());
            replica.apply(vec![Applicable { log_id: (7, index), content }]).unwrap();
        }
        replica.take_snapshot().unwrap();
        fs::write(root.join("IDENTITY.toml"), "old").unwrap();
        LogStorage::begin(&root.join("log"), 1, (7, 3)).unwrap();
    }

    fn is_new(root: &Path) -> bool {
        let replica = replica(root);
        let info = replica.read(|whole| crate::state::cluster::get(whole.rows)).unwrap().unwrap();
        let identity = fs::read_to_string(root.join("IDENTITY.toml")).unwrap();
        assert_eq!(info.cluster_id, identity, "all of it or nothing");
        assert_eq!(replica.current_snapshot().unwrap().is_some(), identity == "old");
        identity == "new"
    }

    #[test]
    fn a_founded_directory_goes_on_from_what_it_holds() {
        let dir = tempfile::tempdir().unwrap();
        old(dir.path());
        let founded = found(dir.path(), &founding()).unwrap();
        assert_eq!(founded, Founded { applied: (7, 3), rev: 1_003, old_cluster_id: "old".to_owned() });
        assert!(is_new(dir.path()));
        let (replica, log) = (replica(dir.path()), LogStorage::open(&dir.path().join("log"), BUFFER).unwrap());
        let head = replica.head();
        assert_eq!((head.rev, head.applied, head.events_compacted_rev), (1_003, Some((7, 3)), 1_003));
        let membership = wire::decode_stored_membership(head.membership).unwrap();
        assert_eq!(membership.membership().voter_ids().collect::<Vec<_>>(), [4]);
        assert_eq!(
            membership.membership().nodes().map(|(_, node)| node.addr.as_str()).collect::<Vec<_>>(),
            ["host:7401"]
        );
        assert_eq!(replica.first_event(0).unwrap(), None);
        log.check(&replica).unwrap();
        assert_eq!(log.replay_alone(&replica, 4).unwrap(), Some(0));
        assert_eq!(log.replay_alone(&replica, 5).unwrap(), None, "another one votes");
    }

    #[test]
    fn a_cluster_of_one_keeps_its_history() {
        let dir = tempfile::tempdir().unwrap();
        old(dir.path());
        let before = replica(dir.path()).first_event(0).unwrap();
        let founding = Founding { bump_rev: 0, ..founding() };
        found(dir.path(), &founding).unwrap();
        let founded = found(dir.path(), &founding).unwrap();
        assert_eq!((founded.rev, founded.old_cluster_id.as_str()), (3, "new"), "it may be repeated");
        assert!(before.is_some());
        assert_eq!(replica(dir.path()).first_event(0).unwrap(), before);
    }

    #[test]
    fn a_crash_leaves_the_old_or_the_new() {
        let dir = tempfile::tempdir().unwrap();
        old(dir.path());
        // Before it is in force.
        fs::create_dir_all(dir.path().join(FOUNDING).join("state")).unwrap();
        finish(dir.path()).unwrap();
        assert!(!is_new(dir.path()) && !dir.path().join(FOUNDING).exists());
        // After it, with each number of moves done: founded elsewhere, put in place one by one.
        let made = tempfile::tempdir().unwrap();
        old(made.path());
        found(made.path(), &founding()).unwrap();
        let founded = dir.path().join(FOUNDED);
        fs::create_dir(&founded).unwrap();
        for name in ["state", "log", "snapshots", "IDENTITY.toml"] {
            fs::rename(made.path().join(name), founded.join(name)).unwrap();
        }
        fs::remove_dir_all(dir.path().join("log")).unwrap();
        fs::rename(founded.join("log"), dir.path().join("log")).unwrap();
        fs::remove_dir_all(dir.path().join("state")).unwrap();
        finish(dir.path()).unwrap();
        assert!(is_new(dir.path()) && !founded.exists());
    }

    #[test]
    fn an_empty_state_founds_nothing() {
        let dir = tempfile::tempdir().unwrap();
        drop(replica(dir.path()));
        assert!(found(dir.path(), &founding()).is_err());
        finish(dir.path()).unwrap();
        assert_eq!(replica(dir.path()).head(), Head::default());
    }
}
