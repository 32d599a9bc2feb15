//! `quorate cluster`: who is in it, who leads, how far each node is, what is wrong; and the changes of all that.
//!
//! ```text
//!   init     the settings files of a new cluster
//!   join     that of a node which joins one that runs
//!   change   add, remove, replace
//!   doctor   what is wrong, and what mends it
//!   shown    the status as a table and as JSON
//! ```

mod change;
mod doctor;
mod init;
mod join;
mod shown;

use clap::Subcommand;
use futures::future::join_all;
use quorate_client::v1::NodeStatusResponse;
use serde_json::json;

use self::init::InitArgs;
use self::join::JoinArgs;
use super::Context;
use super::exit::Failure;

const STATUS_EXAMPLES: &str = "\
EXAMPLES:
  quorate cluster status
      one line a node; nodes at the same rev must have the same digest
  quorate cluster status --digest -o json
      all that is known, and a hash over every stored row of each node";

const RAISE_EXAMPLES: &str = "\
EXAMPLES:
  quorate cluster raise-level
      after an upgrade, once every node runs the new version

There is no way back: from then on nodes of the older version are refused.";

const TRANSFER_EXAMPLES: &str = "\
EXAMPLES:
  quorate cluster transfer-leader --to 2
      before the machine of the leader is taken down; clients notice a redirect and nothing else";

const SNAPSHOT_EXAMPLES: &str = "\
EXAMPLES:
  quorate cluster snapshot --node 10.0.0.2:7401
      lets node 2 write its state down, so that its log can be cut";

/// `quorate cluster …`
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Write the settings files of a new cluster
    #[command(after_help = init::EXAMPLES)]
    Init(InitArgs),
    /// Show every node: its role, how far it is, whether it is ready
    #[command(after_help = STATUS_EXAMPLES)]
    Status {
        /// Let each node hash all its rows, which takes time in proportion to the state
        #[arg(long)]
        digest: bool,
    },
    /// Say what is wrong, worst first, and what mends it
    #[command(after_help = doctor::EXAMPLES)]
    Doctor {
        /// Let each node hash all its rows, to compare them
        #[arg(long)]
        full: bool,
    },
    /// Write the settings file of a node that joins this cluster
    #[command(after_help = join::EXAMPLES)]
    Join(JoinArgs),
    /// Let a node in that was started with the file of `join`
    #[command(after_help = change::ADD_EXAMPLES)]
    Add {
        /// Its number, and where the others reach it
        #[arg(value_name = "N=HOST:PORT", value_parser = change::member)]
        member: (u64, String),
    },
    /// Let a node go; its number is never used again
    #[command(after_help = change::REMOVE_EXAMPLES)]
    Remove {
        /// Its number
        #[arg(value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        node: u64,
    },
    /// Let a node in, in place of another that may be dead
    #[command(after_help = change::REPLACE_EXAMPLES)]
    Replace {
        /// The number of the one that goes
        #[arg(value_name = "OLD", value_parser = clap::value_parser!(u64).range(1..))]
        old: u64,
        /// The number of the one that comes, and where the others reach it
        #[arg(value_name = "N=HOST:PORT", value_parser = change::member)]
        member: (u64, String),
    },
    /// Let commands in that only the newer version understands
    #[command(after_help = RAISE_EXAMPLES)]
    RaiseLevel {
        /// The level; without it, the highest that every node understands
        #[arg(long, value_name = "LEVEL", value_parser = clap::value_parser!(u32).range(1..))]
        to: Option<u32>,
    },
    /// Move a node's damaged data aside, so that it fetches everything from the others
    #[command(after_help = super::rebuild::REBUILD_HELP)]
    Rebuild(super::rebuild::RebuildArgs),
    /// Make the data of a node that was alone the first of a new cluster
    #[command(after_help = super::rebuild::ADOPT_HELP)]
    Adopt(super::rebuild::AdoptArgs),
    /// Hand leadership to another node
    #[command(after_help = TRANSFER_EXAMPLES)]
    TransferLeader {
        /// The node to lead; without it, the one that is the most caught up
        #[arg(long, value_name = "NODE", value_parser = clap::value_parser!(u64).range(1..))]
        to: Option<u64>,
    },
    /// Let one node take a snapshot now
    #[command(after_help = SNAPSHOT_EXAMPLES)]
    Snapshot {
        /// The node; without it, the first of --endpoints
        #[arg(long, value_name = "HOST:PORT")]
        node: Option<String>,
    },
}

/// Does what the arguments say.
pub(crate) async fn run(context: &Context, command: Command) -> Result<(), Failure> {
    let cluster = context.client.cluster();
    match command {
        Command::Init(args) => init::run(context, &args),
        Command::Status { digest } => status(context, digest).await,
        Command::Doctor { full } => doctor::run(context, full).await,
        Command::Join(args) => join::run(context, args).await,
        Command::Add { member: (node_id, address) } => {
            change::follow(context, cluster.add_member(node_id, address)).await
        }
        Command::Remove { node } => change::follow(context, cluster.remove_member(node)).await,
        Command::Replace { old, member: (node_id, address) } => {
            change::follow(context, cluster.replace_member(old, node_id, address)).await
        }
        Command::RaiseLevel { to } => raise_level(context, to.unwrap_or_default()).await,
        Command::Rebuild(args) => super::rebuild::rebuild(context, args).await,
        Command::Adopt(args) => super::rebuild::adopt(context, args).await,
        Command::TransferLeader { to } => transfer_leader(context, to.unwrap_or_default()).await,
        Command::Snapshot { node } => snapshot(context, node.as_deref()).await,
    }
}

async fn status(context: &Context, digest: bool) -> Result<(), Failure> {
    let mut status = context.client.cluster().status().await?;
    if digest {
        add_full_digests(context, &mut status.nodes).await;
    }
    status.nodes.sort_by_key(|node| node.node_id);
    context.out.show(|| shown::json(&status), || shown::text(&status, digest))?;
    match divergence(&status.nodes) {
        Some(message) => Err(Failure::failed(message)),
        None => Ok(()),
    }
}

/// Asks each node for itself; one that does not answer keeps the row it has, and is named.
async fn add_full_digests(context: &Context, nodes: &mut [NodeStatusResponse]) {
    let cluster = context.client.cluster();
    context.out.progress("hashing all rows of every node");
    let reachable = |node: &NodeStatusResponse| node.role != "unreachable" && !node.address.is_empty();
    let calls = nodes.iter().filter(|node| reachable(node)).map(|node| {
        let (id, address, cluster) = (node.node_id, node.address.clone(), &cluster);
        async move { (id, cluster.node_status(&address, true).await) }
    });
    for (id, answer) in join_all(calls.collect::<Vec<_>>()).await {
        match answer {
            Ok(answer) => {
                if let Some(node) = nodes.iter_mut().find(|node| node.node_id == id) {
                    *node = answer;
                }
            }
            Err(error) => context.out.note(&format!("node {id} gave no digest: {error}")),
        }
    }
}

/// Two nodes at the same rev must be equal.
fn divergence(nodes: &[NodeStatusResponse]) -> Option<String> {
    let differ = |a: &str, b: &str| !a.is_empty() && !b.is_empty() && a != b;
    nodes.iter().enumerate().find_map(|(at, one)| {
        let other = nodes[at + 1..].iter().find(|other| {
            one.rev == other.rev && (differ(&one.digest, &other.digest) || differ(&one.full_digest, &other.full_digest))
        })?;
        Some(format!("nodes {} and {} differ at rev {}", one.node_id, other.node_id, one.rev))
    })
}

async fn raise_level(context: &Context, level: u32) -> Result<(), Failure> {
    let answer = context.client.cluster().raise_feature_level(level).await?;
    context.out.show(
        || json!({ "level": answer.level, "rev": answer.rev }),
        || format!("the cluster runs at feature level {}", answer.level),
    )
}

async fn transfer_leader(context: &Context, to: u64) -> Result<(), Failure> {
    let answer = context.client.cluster().transfer_leader(to).await?;
    context.out.show(|| json!({ "leader_id": answer.leader_id }), || format!("node {} leads", answer.leader_id))
}

async fn snapshot(context: &Context, node: Option<&str>) -> Result<(), Failure> {
    let node = node.or_else(|| context.endpoints.first().map(String::as_str)).unwrap_or_default();
    let answer = context.client.cluster().snapshot(node).await?;
    context.out.show(
        || json!({ "node": node, "snapshot_index": answer.snapshot_index }),
        || format!("{node} has a snapshot up to log index {}", answer.snapshot_index),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(node_id: u64, rev: u64, digest: &str) -> NodeStatusResponse {
        NodeStatusResponse { node_id, rev, digest: digest.into(), ..Default::default() }
    }

    #[test]
    fn only_nodes_at_the_same_rev_can_differ() {
        assert_eq!(divergence(&[node(1, 7, "aa"), node(2, 8, "bb"), node(3, 7, "aa")]), None);
        assert_eq!(divergence(&[node(1, 0, ""), node(2, 0, "bb")]), None);
        let message = divergence(&[node(1, 7, "aa"), node(2, 8, "bb"), node(3, 7, "cc")]);
        assert_eq!(message, Some("nodes 1 and 3 differ at rev 7".into()));
    }
}
