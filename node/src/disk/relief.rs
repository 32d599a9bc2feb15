//! What a node does about its disk while that has little room: makes some, and lets another lead.

use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_proto::v1::DiskState;
use quorate_raft::error::Fatal;

use super::NEAR;
use crate::core::Core;
use crate::stop::Reason;
use crate::{grpc, slow};

/// The least time between two attempts, to make room or to hand over.
const PAUSE: Duration = Duration::from_secs(10);
/// An attempt takes at most this part of the time: to write everything anew is work that others on this disk feel.
const PART: u32 = 10;
/// How long the purge after a snapshot is waited for.
const WAIT: Duration = Duration::from_secs(10);

/// Purges and compacts while there is little room. What was done at some rev is not done again at the same.
pub(super) async fn make_room(core: Arc<Core>) {
    let mut done_at: Option<u64> = None;
    loop {
        tokio::time::sleep(NEAR).await;
        let rev = core.replica.head().rev;
        if core.disk.state() == DiskState::Ok || done_at == Some(rev) {
            continue;
        }
        let began = Instant::now();
        let before = core.disk.now().free_bytes;
        match relieve(&core).await {
            Ok(is_done) => {
                done_at = is_done.then_some(rev);
                tracing::info!(before, elapsed = ?began.elapsed(), is_done, "made what room there was to make");
            }
            Err(fatal) => return core.stop.now(Reason::Fault(fatal.to_string())),
        }
        tokio::time::sleep(PAUSE.max(began.elapsed() * PART)).await;
    }
}

/// Whether all was done that can be done.
async fn relieve(core: &Arc<Core>) -> Result<bool, Fatal> {
    let Some(covered) = snapshot(core).await else { return Ok(false) };
    if core.raft.trigger().purge_log(covered).await.is_err() {
        return Ok(false);
    }
    let purged = core.raft.wait(Some(WAIT));
    let purged = purged.metrics(
        |metrics| metrics.purged.is_some_and(|purged| purged.index >= covered),
        "the log is purged up to the snapshot",
    );
    let is_purged = purged.await.is_ok();
    let compacting = core.clone();
    let compacted = tokio::task::spawn_blocking(move || compact(&compacting)).await;
    let is_compacted = compacted.map_err(|error| Fatal::Storage(format!("compaction failed: {error}")))??;
    Ok(is_purged && is_compacted)
}

/// Takes a snapshot of what is applied, unless there is one; says which index it covers. The one before it goes, and with
/// it the files that only it still holds.
async fn snapshot(core: &Core) -> Option<u64> {
    let metrics = core.metrics();
    let applied = metrics.last_applied?;
    if metrics.snapshot.is_none_or(|snapshot| snapshot < applied) {
        grpc::take_snapshot(core).await.ok()?;
    }
    Some(applied.index)
}

/// The log first: after a purge almost nothing of it is left to write. The state is written anew in pieces, as far as there is
/// room for the next one.
fn compact(core: &Core) -> Result<bool, Fatal> {
    core.log.compact()?;
    core.disk.look();
    // What is left must do for what is written meanwhile.
    let least = core.disk.reserve() / 4;
    core.replica.compact(|bytes| {
        core.disk.look();
        core.disk.now().free_bytes >= bytes.saturating_add(least)
    })
}

/// A leader without room hands over to a voter that has some and is not behind.
pub(super) async fn lead_elsewhere(core: Arc<Core>) {
    loop {
        tokio::time::sleep(NEAR).await;
        if core.disk.state() == DiskState::Ok || core.office().is_none() {
            continue;
        }
        let candidates = slow::caught_up(&core);
        let roomy = candidates.into_iter().filter(|(_, reply)| slow::has_room(reply));
        let Some((target, _)) = roomy.max_by_key(|(_, reply)| reply.disk.as_ref().map_or(0, |disk| disk.free_bytes))
        else {
            continue;
        };
        match grpc::hand_over(&core, target).await {
            Ok(leader) => tracing::info!(leader, "leadership handed over: this node's disk has little room"),
            Err(error) => tracing::warn!(%error, "leadership was not handed over, though this disk has little room"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}
