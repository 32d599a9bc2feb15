//! `quorate cluster`: who is in it, who leads, how far each node is.

use clap::Subcommand;
use futures::future::join_all;
use quorate_client::v1::{ClusterStatusResponse, NodeStatusResponse};
use serde_json::json;

use super::exit::Failure;
use super::output::{or_dash, span, table};
use super::{Context, view};

/// `quorate cluster …`
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Show every node: its role, how far it is, whether it is ready
    Status {
        /// Let each node hash all its rows, which takes time in proportion to the state
        #[arg(long)]
        digest: bool,
    },
    /// Hand leadership to another node
    TransferLeader {
        /// The node to lead; without it, the one that is the most caught up
        #[arg(long, value_name = "NODE", value_parser = clap::value_parser!(u64).range(1..))]
        to: Option<u64>,
    },
    /// Let one node take a snapshot now
    Snapshot {
        /// The node; without it, the first of --endpoints
        #[arg(long, value_name = "HOST:PORT")]
        node: Option<String>,
    },
}

/// Does what the arguments say.
pub(crate) async fn run(context: &Context, command: Command) -> Result<(), Failure> {
    match command {
        Command::Status { digest } => status(context, digest).await,
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
    context.out.show(
        || {
            let nodes: Vec<_> = status.nodes.iter().map(view::node).collect();
            json!({ "cluster_id": status.cluster_id, "leader_id": status.leader_id, "nodes": nodes })
        },
        || text(&status, digest),
    )?;
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

fn text(status: &ClusterStatusResponse, full: bool) -> String {
    let leader = match status.leader_id {
        0 => "no leader known".to_owned(),
        id => format!("leader: node {id}"),
    };
    let header =
        ["node", "address", "role", "term", "applied", "rev", "snapshot", "digest", "ready", "version", "uptime"];
    let rows = status.nodes.iter().map(|node| row(node, full)).collect();
    format!("cluster {}, {leader}\n{}", or_dash(&status.cluster_id), table(header, rows, "no nodes"))
}

fn row(node: &NodeStatusResponse, full: bool) -> [String; 11] {
    let ready = match (node.ready, node.reason.as_str()) {
        (true, _) => "yes".to_owned(),
        (false, "") => "no".to_owned(),
        (false, reason) => format!("no: {reason}"),
    };
    [
        node.node_id.to_string(),
        or_dash(&node.address),
        or_dash(&node.role),
        node.term.to_string(),
        node.applied_index.to_string(),
        node.rev.to_string(),
        node.snapshot_index.to_string(),
        or_dash(if full { &node.full_digest } else { &node.digest }),
        ready,
        or_dash(&node.version),
        span(node.uptime_ms),
    ]
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
