//! `quorate restore`: a new cluster from a backup.
//!
//! Deliberately absent: putting a backup into a cluster that runs. What it did since the backup was taken is not undone by
//! older rows; a cluster that goes back in time is another one, and its tokens and watchers must know.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::Context;
use super::backup::target_url;
use super::exit::Failure;
use super::rebuild::next_steps;
use crate::backup::Target;
use crate::offline::{self, NewCluster};

/// Shown under `quorate restore --help`.
pub(crate) const HELP: &str = "\
Makes the first node of a new cluster, in a directory that does not exist yet. The old cluster is not touched; if it may
still run, keep its agents away from one of the two.

  quorate restore latest --from /mnt/nas/quorate --data-dir /var/lib/quorate \\
      --cluster-id fleet-restored --advertise 10.0.0.1:7401

Revs go on far behind those of the backup, so that no fencing token is given out twice. Watchers begin anew. The new cluster
takes no backups until it is told to: `quorate backup schedule`.";

/// `quorate restore`
#[derive(Args)]
pub(crate) struct RestoreArgs {
    /// Which backup: a name that `quorate backup list` shows, or latest
    #[arg(value_name = "ID|latest")]
    id: String,
    /// Where the backups are: a directory, file:///…, or s3://bucket/prefix
    #[arg(long, value_name = "URL|DIR")]
    from: String,
    /// Where the node's data is to be
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// What the new cluster is called; not as the old one
    #[arg(long, value_name = "NAME")]
    cluster_id: String,
    /// The number of its first node
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    node_id: u64,
    /// Where other nodes and clients reach that node
    #[arg(long, value_name = "HOST:PORT")]
    advertise: String,
    /// How far revs jump: more than the old cluster has advanced since the backup
    #[arg(long, value_name = "REVS", default_value_t = 1_000_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    bump_rev: u64,
}

/// Does what the arguments say.
pub(crate) async fn run(context: &Context, args: RestoreArgs) -> Result<(), Failure> {
    let from = target_url(&args.from)?;
    let target = Target::open(&from).map_err(|error| Failure::from_anyhow(&error))?;
    let RestoreArgs { cluster_id, node_id, advertise, .. } = args;
    let new = NewCluster { cluster_id, node_id, address: advertise };
    let (out, mut told) = (context.out, 0);
    let mut progress = |done: u64, all: u64| {
        let tenths = done.saturating_mul(10).checked_div(all).unwrap_or(10);
        if tenths > told {
            told = tenths;
            out.progress(&format!("{done} of {all} bytes"));
        }
    };
    let restored = offline::restore(&target, &args.id, &args.data_dir, &new, args.bump_rev, &mut progress).await;
    let (manifest, founded) = restored.map_err(|error| Failure::from_anyhow(&error))?;
    context.out.show(
        || json!({ "backup": manifest.id, "cluster_id": new.cluster_id, "node_id": node_id, "rev": founded.rev }),
        || {
            let dir = args.data_dir.display().to_string();
            let steps = next_steps(&dir, &new.cluster_id, node_id, &new.address, founded.rev);
            format!("restored {} of cluster {}\n{steps}", manifest.id, manifest.cluster_id)
        },
    )
}
