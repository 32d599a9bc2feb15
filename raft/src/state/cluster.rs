//! The cluster's own row: what it is called.
//!
//! Owns the one Cluster row, written once by the node that founds the cluster. No index: it is read from the row.
//! Deliberately absent: members and addresses, which consensus keeps.

use quorate_proto::log::Done;
use quorate_proto::v1::ClusterInfo;

use crate::error::{Fatal, Outcome, precondition};
use crate::state::{Ctx, Out, check_id};
use crate::storage::keys::{Key, Table};
use crate::storage::rows::{self, Rows};

/// Names the cluster. Naming it again the same way changes nothing.
pub fn describe(out: &mut Out<'_, '_>, _ctx: &Ctx, info: ClusterInfo) -> Outcome<Done> {
    check_id("cluster_id", &info.cluster_id)?;
    match get(&*out.txn)? {
        Some(known) if known.cluster_id != info.cluster_id => Err(precondition(
            "cluster_id",
            format!("this cluster is {:?} and cannot become {:?}", known.cluster_id, info.cluster_id),
        )),
        Some(_) => Ok(Done {}),
        None => {
            out.txn.put(&Key::table(Table::Cluster), &info);
            Ok(Done {})
        }
    }
}

/// What the cluster is; `None` before it was named.
pub fn get(rows: &dyn Rows) -> Result<Option<ClusterInfo>, Fatal> {
    rows::get(rows, &Key::table(Table::Cluster))
}
