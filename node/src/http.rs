//! The HTTP door: is this node alive, can it serve, how far is the work, what was given up.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use quorate_proto::v1::{Disk, DiskState};
use quorate_raft::error::Fatal;
use serde::{Deserialize, Serialize};

use crate::core::Core;
use crate::stop::Reason;

const READY: Duration = Duration::from_millis(1_500);
const HOUR_MS: u64 = 3_600_000;
/// All that are kept.
const MAX_SAMPLES: usize = 10_080;

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
    term: u64,
    /// What the newest snapshot covers; 0 if there is none.
    snapshot_index: u64,
    /// How long the last 5 s of log writes took to be durable; 0: there were none.
    sync_p99_us: u64,
    disk: DiskHealth,
}

#[derive(Debug, Serialize)]
struct DiskHealth {
    /// `ok`, `low`: what takes space is refused; `full`: this node takes nothing more.
    state: &'static str,
    free_bytes: u64,
}

/// What `/api/status` answers: the work as this node has applied it, never waiting for another node.
#[derive(Debug, Serialize)]
struct Work {
    total: u64,
    completed: u64,
    in_progress: u64,
    /// Ready, or waiting for their time.
    pending: u64,
    blocked: u64,
    /// Done, and to be accepted.
    reported: u64,
    failed: u64,
    cancelled: u64,
    skipped: u64,
    completed_percent: f64,
    /// Of those completed or failed, how many were completed; of those completed, how many no person touched. Absent before
    /// there are any.
    success_percent: Option<f64>,
    unaided_percent: Option<f64>,
    completed_last_hour: u64,
    agents: usize,
    uptime_ms: u64,
    leader_id: u64,
    rev: u64,
}

/// What `/api/dlq` answers: how much waits for somebody to redrive or purge it, as this node has applied it.
#[derive(Debug, Serialize)]
struct DeadLetters {
    /// Failed for good, or out of time.
    tasks: u64,
    /// Given up by their subscriptions.
    messages: u64,
    rev: u64,
}

/// The routes of the HTTP port.
pub(crate) fn router(core: Arc<Core>) -> Router {
    Router::new()
        .route("/health/live", get(live))
        .route("/health/ready", get(ready_handler))
        .route("/api/status", get(status))
        .route("/api/dlq", get(dead_letters))
        .with_state(core)
}

async fn live(State(core): State<Arc<Core>>) -> (StatusCode, Json<Health>) {
    (StatusCode::OK, Json(health(&core, Ok(()))))
}

/// Which namespace is asked about; none: `default`.
#[derive(Debug, Deserialize)]
struct Asked {
    #[serde(default)]
    namespace: String,
}

async fn status(State(core): State<Arc<Core>>, Query(asked): Query<Asked>) -> Result<Json<Work>, StatusCode> {
    match work(&core, &asked.namespace) {
        Some(Ok(work)) => Ok(Json(work)),
        None => Err(StatusCode::NOT_FOUND),
        Some(Err(fatal)) => {
            // A fault met while reading stops the node as one met while applying does.
            core.stop.now(Reason::Fault(fatal.to_string()));
            Err(StatusCode::INTERNAL_SERVER_ERROR)
        }
    }
}

async fn dead_letters(
    State(core): State<Arc<Core>>,
    Query(asked): Query<Asked>,
) -> Result<Json<DeadLetters>, StatusCode> {
    let counted = core.replica.read_in(&asked.namespace, |view| {
        let stats = view.rooms.progress.totals();
        let messages = view.rooms.bus.dead_total("");
        DeadLetters { tasks: stats.failed + stats.timed_out, messages, rev: view.head.rev }
    });
    counted.map(Json).ok_or(StatusCode::NOT_FOUND)
}

fn work(core: &Core, namespace: &str) -> Option<Result<Work, Fatal>> {
    let leader_id = core.metrics().current_leader.unwrap_or(0);
    core.replica.read_in(namespace, |view| {
        let stats = view.rooms.progress.totals();
        let failed = stats.failed + stats.timed_out;
        let ended = stats.completed + failed + stats.cancelled + stats.skipped;
        let pending = stats.ready + stats.pending;
        let total = ended + pending + stats.blocked + stats.in_progress + stats.reported;
        let hour_ago = core.clock.now_ms().max(view.head.now_ms).saturating_sub(HOUR_MS);
        let before = view.rooms.progress.history(view.rows, 0, hour_ago, MAX_SAMPLES)?;
        let then = before.last().and_then(|sample| sample.counts.as_ref()).map_or(0, |counts| counts.completed);
        Ok(Work {
            total,
            completed: stats.completed,
            in_progress: stats.in_progress,
            pending,
            blocked: stats.blocked,
            reported: stats.reported,
            failed,
            cancelled: stats.cancelled,
            skipped: stats.skipped,
            completed_percent: percent(stats.completed, total).unwrap_or(0.0),
            success_percent: percent(stats.completed, stats.completed + failed),
            unaided_percent: percent(view.rooms.progress.completed_unaided(), stats.completed),
            completed_last_hour: stats.completed.saturating_sub(then),
            agents: view.rooms.agents.len(),
            uptime_ms: u64::try_from(core.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            leader_id,
            rev: view.head.rev,
        })
    })
}

fn percent(part: u64, of: u64) -> Option<f64> {
    // One decimal is enough for people.
    (of > 0).then(|| (part as f64 * 1_000.0 / of as f64).round() / 10.0)
}

async fn ready_handler(State(core): State<Arc<Core>>) -> (StatusCode, Json<Health>) {
    let ready = ready(&core, READY).await;
    let code = if ready.is_ok() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(health(&core, ready)))
}

/// Ready means: a linearizable read works here now. That takes a leader, a majority behind it, and a state that keeps
/// up, and that this node counts: whoever waits for it before the next one is stopped relies on its vote. A node whose disk
/// is full falls behind as soon as something is written, so it says so before that.
pub(crate) async fn ready(core: &Core, within: Duration) -> Result<(), String> {
    if core.stop.is_thrown() {
        return Err("this node is stopping".to_owned());
    }
    if !core.disk.takes_entries() {
        return Err("disk full".to_owned());
    }
    match tokio::time::timeout(within, core.reads.pass()).await {
        Ok(Ok(())) if !core.joined() => Err("this node has not joined its cluster yet: it does not vote".to_owned()),
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
        term: metrics.current_term,
        snapshot_index: metrics.snapshot.map_or(0, |id| id.index),
        sync_p99_us: core.log.sync_times().1,
        disk: disk_health(&core.disk.now()),
    }
}

fn disk_health(disk: &Disk) -> DiskHealth {
    let state = match disk.state() {
        DiskState::Ok | DiskState::Unspecified => "ok",
        DiskState::Low => "low",
        DiskState::Full => "full",
    };
    DiskHealth { state, free_bytes: disk.free_bytes }
}
