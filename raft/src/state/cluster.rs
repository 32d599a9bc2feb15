//! The cluster's own row: what it is called, the level of commands in use, and the numbers that no node may have again.
//!
//! Owns the one Cluster row, written first by the node that founds the cluster. The index is the level, which every
//! command asks for; everything else is read from the row. Invariant: the level never falls, and is never above what
//! this binary understands: one that is too old stops.
//!
//! Deliberately absent: members and addresses, which consensus keeps; whether every member understands a level, which
//! the leader asks them before it proposes to raise it.

use quorate_proto::log::{Done, RaiseFeatureLevel, RetireNode};
use quorate_proto::v1::ClusterInfo;

use crate::error::{Error, Fatal, Outcome, exhausted, invalid, precondition};
use crate::level;
use crate::state::{Out, check_id};
use crate::storage::keys::{Key, Table};
use crate::storage::rows::{self, Rows};

/// The most numbers of removed nodes that are remembered: what a cluster outlives.
pub const MAX_RETIRED: usize = 1_000;

/// What every command asks of the cluster.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Cluster {
    level: Option<u32>,
}

impl Cluster {
    /// Builds the index from the row. A binary that is too old for the cluster gets no further.
    pub fn rebuild(rows: &dyn Rows) -> Result<Self, Fatal> {
        let level = get(rows)?.map(|info| level_of(&info));
        level.map_or(Ok(()), level::check)?;
        Ok(Cluster { level })
    }

    /// The level of commands in use; `None` before the cluster was named.
    pub fn feature_level(&self) -> Option<u32> {
        self.level
    }
}

/// Names the cluster. Naming it again the same way changes nothing.
pub fn describe(cluster: &mut Cluster, out: &mut Out<'_, '_>, info: ClusterInfo) -> Outcome<Done> {
    check_id("cluster_id", &info.cluster_id)?;
    match get(&*out.txn)? {
        Some(known) if known.cluster_id != info.cluster_id => Err(precondition(
            "cluster_id",
            format!("this cluster is {:?} and cannot become {:?}", known.cluster_id, info.cluster_id),
        )),
        Some(_) => Ok(Done {}),
        None => {
            put(cluster, out, &info)?;
            Ok(Done {})
        }
    }
}

/// Remembers that a node left. To say so again changes nothing.
pub fn retire(cluster: &mut Cluster, out: &mut Out<'_, '_>, req: RetireNode) -> Outcome<Done> {
    if req.node_id == 0 {
        return Err(invalid("node_id", "node_id must be 1 or more; got 0"));
    }
    let mut info = get(&*out.txn)?.ok_or_else(nameless)?;
    let Err(place) = info.retired_node_ids.binary_search(&req.node_id) else { return Ok(Done {}) };
    if info.retired_node_ids.len() >= MAX_RETIRED {
        return Err(exhausted("node_id", format!("{MAX_RETIRED} nodes were removed already; no more are remembered")));
    }
    info.retired_node_ids.insert(place, req.node_id);
    put(cluster, out, &info)?;
    Ok(Done {})
}

/// Lets in the commands of a higher level.
pub fn raise(cluster: &mut Cluster, out: &mut Out<'_, '_>, req: RaiseFeatureLevel) -> Outcome<Done> {
    let mut info = get(&*out.txn)?.ok_or_else(nameless)?;
    let in_use = level_of(&info);
    if req.level <= in_use {
        let message =
            format!("the cluster runs at feature level {in_use} already; level must be higher, got {}", req.level);
        return Err(precondition("level", message));
    }
    info.feature_level = req.level;
    put(cluster, out, &info)?;
    Ok(Done {})
}

/// What the cluster is; `None` before it was named.
pub fn get(rows: &dyn Rows) -> Result<Option<ClusterInfo>, Fatal> {
    rows::get(rows, &Key::table(Table::Cluster))
}

fn put(cluster: &mut Cluster, out: &mut Out<'_, '_>, info: &ClusterInfo) -> Result<(), Fatal> {
    let level = level_of(info);
    level::check(level)?;
    out.txn.put(&Key::table(Table::Cluster), info);
    cluster.level = Some(level);
    Ok(())
}

/// There is no level below the first.
fn level_of(info: &ClusterInfo) -> u32 {
    info.feature_level.max(1)
}

fn nameless() -> Error {
    precondition("", "the cluster has no name yet; its leader gives it one when it takes office")
}
