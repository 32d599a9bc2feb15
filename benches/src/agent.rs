//! One agent by hand: a session, a registration, and the finish that answers a claim.
//!
//! Deliberately absent: the library's `Worker`. It is pushed its tasks, and so would hide what a claim costs.

use std::time::Duration;

use anyhow::{Context, Result};
use quorate_client::v1::{ClaimTasksResponse, FinishKind, FinishTaskRequest, RegisterAgentRequest};
use quorate_client::{Client, Session};

/// What every agent here offers and every task requires: one queue, as a fleet has.
pub(crate) const CAPABILITY: &str = "bench";

/// Opens a session and registers an agent under it; gives its id back with the session.
pub(crate) async fn open(client: &Client, agent_id: String) -> Result<(Session, String)> {
    let session = client.sessions().open(Duration::from_secs(15)).await?;
    let request = RegisterAgentRequest {
        agent_id: agent_id.clone(),
        session_id: session.id().to_string(),
        agent_type: "bench".into(),
        capabilities: vec![CAPABILITY.into()],
        ..Default::default()
    };
    client.agents().register(&session, request).await?;
    Ok((session, agent_id))
}

/// The finish of the one task that a claim brought.
pub(crate) fn completed(claimed: ClaimTasksResponse) -> Result<FinishTaskRequest> {
    let task = claimed.tasks.into_iter().next().context("nothing to claim although there must be a ready task")?;
    let token = task.claim.context("a claimed task without its claim")?.token;
    Ok(FinishTaskRequest { task_id: task.id, token, kind: FinishKind::Completed as i32, ..Default::default() })
}
