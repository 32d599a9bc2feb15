//! A node's own view of itself, asked over a fresh connection.
//!
//! Deliberately absent: the client library. What the harness believes about a node must not depend on the library's
//! retries, nor on which node it likes best.

use std::time::Duration;

use anyhow::Result;
use quorate_proto::v1::cluster_client::ClusterClient;
use quorate_proto::v1::{NodeStatusRequest, NodeStatusResponse};
use tonic::transport::Endpoint;

/// Asks the node at `endpoint` ("host:port"). With `full_digest` it hashes every row, which may take a while.
pub async fn node_status(endpoint: &str, full_digest: bool) -> Result<NodeStatusResponse> {
    let limit = if full_digest { Duration::from_secs(60) } else { Duration::from_secs(2) };
    let channel = Endpoint::from_shared(format!("http://{endpoint}"))?
        .connect_timeout(Duration::from_millis(500))
        .timeout(limit)
        .connect()
        .await?;
    let answer = ClusterClient::new(channel).node_status(NodeStatusRequest { full_digest }).await?;
    Ok(answer.into_inner())
}
