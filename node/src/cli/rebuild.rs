//! `quorate cluster rebuild` and `quorate cluster adopt`: what is done to the data of a node that does not run.
//!
//! Deliberately absent: the work itself, which is [`crate::offline`]'s.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::Context;
use super::exit::Failure;
use crate::offline;

/// Shown under `quorate cluster rebuild --help`.
pub(crate) const REBUILD_HELP: &str = "\
For a node that does not start because its data is damaged, or that stopped because it has lost what it had acknowledged.
The damaged data stays in damaged-N beside; remove it once nobody wants to look at it.

  quorate cluster rebuild --data-dir /var/lib/quorate
  quorate serve …                  # as before: it fetches everything from the others
  quorate cluster status           # until it is ready

All other members must be up for it to rejoin: it has forgotten its votes.";

/// Shown under `quorate cluster adopt --help`.
pub(crate) const ADOPT_HELP: &str = "\
Nothing is lost: history, tasks and documents go on. Stop the node first.

  quorate cluster adopt --data-dir ./dev --cluster-id fleet-7f3a --advertise 10.0.0.1:7401
  quorate serve --data-dir ./dev --cluster-id fleet-7f3a --node-id 1 --advertise 10.0.0.1:7401 …
  quorate cluster add 2=10.0.0.2:7401";

/// `quorate cluster rebuild`
#[derive(Args)]
pub(crate) struct RebuildArgs {
    /// The data directory of the node, which does not run
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// Other members have the data, though this directory does not say any more that there are any
    #[arg(long)]
    others_have_it: bool,
}

/// `quorate cluster adopt`
#[derive(Args)]
pub(crate) struct AdoptArgs {
    /// The data directory of the node, which does not run
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// What the cluster is called from now on
    #[arg(long, value_name = "NAME")]
    cluster_id: String,
    /// Where other nodes and clients reach this one
    #[arg(long, value_name = "HOST:PORT")]
    advertise: String,
}

/// Moves what is damaged aside.
pub(crate) async fn rebuild(context: &Context, args: RebuildArgs) -> Result<(), Failure> {
    let RebuildArgs { data_dir, others_have_it } = args;
    let moved = tokio::task::spawn_blocking(move || offline::rebuild(&data_dir, others_have_it)).await;
    let aside = moved.map_err(|error| Failure::failed(error.to_string()))?.map_err(|e| Failure::from_anyhow(&e))?;
    context.out.show(
        || json!({ "moved_to": aside.display().to_string() }),
        || format!("moved to {}; start the node again and it fetches everything from the others", aside.display()),
    )
}

/// Makes a node that was alone the first of a cluster.
pub(crate) async fn adopt(context: &Context, args: AdoptArgs) -> Result<(), Failure> {
    let AdoptArgs { data_dir, cluster_id, advertise } = args;
    let (dir, name, address) = (data_dir.clone(), cluster_id.clone(), advertise.clone());
    let adopted = tokio::task::spawn_blocking(move || offline::adopt(&dir, &name, &address)).await;
    let (node_id, founded) =
        adopted.map_err(|error| Failure::failed(error.to_string()))?.map_err(|e| Failure::from_anyhow(&e))?;
    context.out.show(
        || json!({ "cluster_id": cluster_id, "node_id": node_id, "rev": founded.rev, "was": founded.old_cluster_id }),
        || next_steps(&data_dir.display().to_string(), &cluster_id, node_id, &advertise, founded.rev),
    )
}

/// What to do with a directory that holds the first node of a cluster.
pub(super) fn next_steps(data_dir: &str, cluster_id: &str, node_id: u64, address: &str, rev: u64) -> String {
    format!(
        "{data_dir} is node {node_id} of cluster {cluster_id}, at rev {rev}. Start it:\n\
         \x20 quorate serve --data-dir {data_dir} --cluster-id {cluster_id} --node-id {node_id} --advertise {address} --listen \
         HOST:PORT\n\
         Then, for each further node, on its machine:\n\
         \x20 quorate cluster join --endpoints {address} --listen HOST:PORT\n\
         and start it and let it in as that says"
    )
}
