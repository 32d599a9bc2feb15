//! The HTTP door: is this node alive, can it serve.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;

use crate::core::Core;

const READY: Duration = Duration::from_millis(1_500);

/// What `/health/…` answers.
#[derive(Debug, Serialize)]
struct Health {
    node_id: u64,
    ok: bool,
    /// Why not; empty if all is well.
    reason: String,
    /// The leader this node knows; 0 if none.
    leader_id: u64,
    applied_index: u64,
    rev: u64,
    /// Entries known here but not applied yet.
    apply_lag: u64,
    log_bytes: u64,
    state_bytes: u64,
}

/// The routes of the HTTP port.
pub(crate) fn router(core: Arc<Core>) -> Router {
    Router::new().route("/health/live", get(live)).route("/health/ready", get(ready_handler)).with_state(core)
}

async fn live(State(core): State<Arc<Core>>) -> (StatusCode, Json<Health>) {
    (StatusCode::OK, Json(health(&core, Ok(()))))
}

async fn ready_handler(State(core): State<Arc<Core>>) -> (StatusCode, Json<Health>) {
    let ready = ready(&core, READY).await;
    let code = if ready.is_ok() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(health(&core, ready)))
}

/// Ready means: a linearizable read works here now. That takes a leader, a majority behind it, and a state that keeps
/// up, so there is nothing else to check.
pub(crate) async fn ready(core: &Core, within: Duration) -> Result<(), String> {
    if core.stop.is_thrown() {
        return Err("this node is stopping".to_owned());
    }
    match tokio::time::timeout(within, core.reads.pass()).await {
        Ok(result) => result,
        Err(_) => Err(format!("no linearizable read within {within:?}")),
    }
}

fn health(core: &Core, ready: Result<(), String>) -> Health {
    let metrics = core.metrics();
    let head = core.replica.head();
    let applied_index = head.applied.map_or(0, |(_, index)| index);
    Health {
        node_id: metrics.id,
        ok: ready.is_ok(),
        reason: ready.err().unwrap_or_default(),
        leader_id: metrics.current_leader.unwrap_or(0),
        applied_index,
        rev: head.rev,
        apply_lag: metrics.last_log_index.unwrap_or(0).saturating_sub(applied_index),
        log_bytes: core.log.size_bytes(),
        state_bytes: core.replica.size_bytes(),
    }
}
