//! The loop that keeps this node's chunks as the state wants them: brings what is referred to and missing (a snapshot
//! came, a disk is new, a file was damaged), removes what nobody refers to and nobody has asked for within the grace.
//!
//! Each round is bounded, and goes on where the last one ended. Whatever is missed is found by the next pass.
//!
//! Invariant: nothing is removed before a linearizable read has shown that nobody refers to it. A node that lags behind
//! brings what it knows of and removes nothing.

use std::sync::Arc;
use std::time::Duration;

use quorate_raft::error::Fatal;
use quorate_raft::replica::Replica;

use super::fetch::Fetched;
use super::pace::TRANSFER;
use super::store::DiskError;
use super::{ChunkHash, shown};
use crate::core::Core;
use crate::stop::Reason;

/// Between rounds.
const ROUND: Duration = Duration::from_secs(60);
/// Between rounds while there is more to bring.
const SOON: Duration = Duration::from_secs(1);
/// How long a chunk stays that nobody refers to: an hour after its upload was acknowledged, and that may have taken a
/// while.
const GRACE: Duration = Duration::from_secs(60 * 60).saturating_add(TRANSFER);
/// References that are read at a time.
const PAGE: usize = 1_000;
/// Pages that one round looks through. It ends with the first in which something was missing.
const PAGES_PER_ROUND: usize = 10;
/// Files whose age one round looks at, up to the end of a directory.
const FILES_PER_ROUND: usize = 10_000;

/// Starts the loop.
pub(crate) fn start(core: &Arc<Core>) {
    tokio::spawn(run(core.clone()));
}

async fn run(core: Arc<Core>) {
    let (mut repair, mut sweep) = (Repair::default(), Sweep::default());
    let mut pause = ROUND;
    loop {
        tokio::time::sleep(pause).await;
        pause = match repair.round(&core).await {
            Ok(true) => SOON,
            Ok(false) => ROUND,
            Err(error) => {
                tracing::warn!(%error, "chunks that are missing here could not be brought; trying again later");
                ROUND
            }
        };
        if let Err(error) = sweep.round(&core).await {
            tracing::warn!(%error, "chunks that nobody refers to could not be removed; trying again later");
        }
    }
}

/// Asks the state, away from the threads that serve calls. A fault met while reading stops the node.
async fn of_state<T: Send + 'static>(
    core: &Core,
    ask: impl FnOnce(&Replica) -> Result<T, Fatal> + Send + 'static,
) -> Result<T, DiskError> {
    let replica = core.replica.clone();
    let asked = tokio::task::spawn_blocking(move || ask(&replica)).await;
    let answer = asked.unwrap_or_else(|_| Err(Fatal::Storage("this node is stopping".to_owned())));
    answer.map_err(|fatal| {
        core.stop.now(Reason::Fault(fatal.to_string()));
        DiskError::Fault(fatal)
    })
}

/// The pass that brings what is missing.
#[derive(Default)]
struct Repair {
    /// The namespace's number and the chunk that were looked at last.
    cursor: Option<(u64, ChunkHash)>,
    /// What this pass found nowhere.
    lost: usize,
}

impl Repair {
    /// Whether there is likely more to bring.
    async fn round(&mut self, core: &Core) -> Result<bool, DiskError> {
        for _ in 0..PAGES_PER_ROUND {
            let cursor = self.cursor;
            let page = of_state(core, move |replica| replica.chunks_after(cursor, PAGE)).await?;
            let chunks: Vec<ChunkHash> = page.iter().map(|(_, chunk)| *chunk).collect();
            let absent = core.blobs.on_disk(move |store| store.absent(chunks)).await?;
            let brought = self.bring(core, &absent).await?;
            self.cursor = page.last().copied().filter(|_| page.len() == PAGE);
            if self.cursor.is_none() {
                self.end_pass();
                return Ok(false);
            }
            if brought > 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// How many of the chunks could be had. If nobody answers, the rest is left for the next pass.
    async fn bring(&mut self, core: &Core, absent: &[ChunkHash]) -> Result<usize, DiskError> {
        let mut brought = 0;
        for chunk in absent {
            match core.blobs.fetch(*chunk).await? {
                Fetched::Kept(_) => brought += 1,
                Fetched::NoRoom(_) => return Err(DiskError::Full),
                Fetched::Nowhere { answered: 0 } => return Ok(brought),
                Fetched::Nowhere { .. } => {
                    tracing::debug!(chunk = shown(chunk), "a chunk that is referred to was found nowhere");
                    self.lost += 1;
                }
            }
        }
        if brought > 0 {
            tracing::info!(chunks = brought, "brought chunks that were missing here");
        }
        Ok(brought)
    }

    fn end_pass(&mut self) {
        if self.lost > 0 {
            tracing::error!(chunks = self.lost, "chunks that are referred to are on no node that can be reached");
        }
        self.lost = 0;
    }
}

/// The pass that removes what nobody refers to.
#[derive(Default)]
struct Sweep {
    /// The directory that the next round begins with.
    shard: u8,
}

impl Sweep {
    async fn round(&mut self, core: &Core) -> Result<(), DiskError> {
        let shard = self.shard;
        let look = core.blobs.on_disk(move |store| store.aged(shard, FILES_PER_ROUND, GRACE));
        let (aged, next) = look.await?;
        self.shard = next;
        let suspects = unreferenced(core, aged).await?;
        if suspects.is_empty() || core.reads.pass().await.is_err() {
            return Ok(());
        }
        let garbage = unreferenced(core, suspects).await?;
        let removed = core.blobs.on_disk(move |store| store.remove_aged(&garbage, GRACE)).await?;
        if removed > 0 {
            tracing::info!(chunks = removed, "removed chunks that nobody refers to");
        }
        Ok(())
    }
}

async fn unreferenced(core: &Core, chunks: Vec<ChunkHash>) -> Result<Vec<ChunkHash>, DiskError> {
    of_state(core, move |replica| {
        let mut unreferenced = Vec::new();
        for chunk in chunks {
            if !replica.is_chunk_referenced(&chunk)? {
                unreferenced.push(chunk);
            }
        }
        Ok(unreferenced)
    })
    .await
}
