//! A leader on a slow disk hands over to a voter on a faster one.
//!
//! Every write waits for the leader's disk and for the fastest others that make a majority with it. A slow follower costs
//! nothing; a slow leader slows everything, and lives, so that no election replaces it.
//!
//! Deliberately absent: a judgement of disks as such. Only a large and lasting difference between this disk and another one
//! counts, and no more than one handover comes of it in a minute: where all are slow, nothing moves.

use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_proto::peer::HealthReply;
use quorate_proto::v1::DiskState;

use crate::core::Core;
use crate::grpc;

const LOOK: Duration = Duration::from_secs(2);
const REST: Duration = Duration::from_secs(60);
/// So many looks in a row must say the same: more than twice the time that each of them looks back.
const LOOKS: u32 = 7;
/// Faster than this is no trouble, whatever others can do.
const BEARABLE_US: u64 = 20_000;
const TIMES: u64 = 5;
/// A voter that lacks no more entries than these takes over at once.
const CLOSE: u64 = 1_000;

/// Starts the loop.
pub(crate) fn start(core: &Arc<Core>) {
    tokio::spawn(run(core.clone()));
}

async fn run(core: Arc<Core>) {
    let mut patience = Patience::default();
    let mut in_office: Option<(u64, Instant)> = None;
    loop {
        tokio::time::sleep(LOOK).await;
        let Some(term) = core.office() else {
            patience = Patience::default();
            continue;
        };
        // Whoever has just been handed the office keeps it for a while: the cluster moves once a minute, not each node.
        if in_office.is_none_or(|(known, _)| known != term) {
            in_office = Some((term, Instant::now()));
        }
        if in_office.is_some_and(|(_, since)| since.elapsed() < REST) {
            continue;
        }
        let (own_us, _) = core.log.sync_times();
        let others: Vec<(u64, u64)> = caught_up(&core)
            .into_iter()
            .filter(|(_, reply)| has_room(reply))
            .map(|(id, reply)| (id, reply.sync_p50_us))
            .collect();
        let Some((target, target_us)) = patience.after(much_faster(own_us, &others)) else { continue };
        tracing::warn!(own_us, target, target_us, "this leader's disk is slow, another's is not: handing over");
        if let Err(error) = grpc::hand_over(&core, target).await {
            tracing::warn!(%error, "leadership was not handed over, though this node's disk is slow");
        }
        patience = Patience::default();
        tokio::time::sleep(REST).await;
    }
}

/// The other voters that have nearly all of this leader's log and were heard lately, with what they said.
pub(crate) fn caught_up(core: &Core) -> Vec<(u64, HealthReply)> {
    let metrics = core.metrics();
    let this = metrics.id;
    let last = metrics.last_log_index.unwrap_or(0);
    let replication = metrics.replication.unwrap_or_default();
    let has_it = |id: &u64| replication.get(id).copied().flatten().is_some_and(|at| at.index + CLOSE >= last);
    let heard = |id: u64| core.neighbours.health(id).filter(|heard| heard.is_fresh()).map(|heard| (id, heard.reply));
    core.voters().into_iter().filter(|id| *id != this && has_it(id)).filter_map(heard).collect()
}

/// Whether it says that its disk has room.
pub(crate) fn has_room(reply: &HealthReply) -> bool {
    reply.disk.as_ref().is_some_and(|disk| disk.state() == DiskState::Ok)
}

/// The fastest other voter and its time, if this one is much slower. 0 us: it wrote nothing lately.
fn much_faster(own_us: u64, others: &[(u64, u64)]) -> Option<(u64, u64)> {
    let wrote = others.iter().copied().filter(|(_, us)| *us > 0);
    let (best, best_us) = wrote.min_by_key(|(id, us)| (*us, *id))?;
    (own_us > BEARABLE_US && own_us > best_us.saturating_mul(TIMES)).then_some((best, best_us))
}

/// Counts looks in a row.
#[derive(Debug, Default)]
struct Patience {
    looks: u32,
}

impl Patience {
    /// What to act on after this look. It need not be the same voter that is fastest each time.
    fn after(&mut self, seen: Option<(u64, u64)>) -> Option<(u64, u64)> {
        self.looks = if seen.is_some() { self.looks + 1 } else { 0 };
        seen.filter(|_| self.looks >= LOOKS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_large_difference_counts() {
        let others = [(2, 4_000), (3, 3_000)];
        assert_eq!(much_faster(20_001, &others), Some((3, 3_000)));
        assert_eq!(much_faster(20_000, &others), None, "bearable");
        assert_eq!(much_faster(50_000, &[(2, 10_000)]), None, "five times is not more than five times");
        assert_eq!(much_faster(50_001, &[(2, 10_000)]), Some((2, 10_000)));
        assert_eq!(much_faster(900_000, &[(2, 400_000), (3, 500_000)]), None, "all are slow");
    }

    #[test]
    fn who_wrote_nothing_is_not_fast() {
        assert_eq!(much_faster(100_000, &[(2, 0)]), None);
        assert_eq!(much_faster(100_000, &[(2, 0), (3, 1_000)]), Some((3, 1_000)));
        assert_eq!(much_faster(100_000, &[]), None);
        assert_eq!(much_faster(0, &[(2, 1_000)]), None);
    }

    #[test]
    fn it_takes_many_looks_in_a_row() {
        let (mut patience, slow) = (Patience::default(), Some((2, 1_000)));
        let mut acted = |seen| patience.after(seen).is_some();
        let many = LOOKS as usize;
        assert!(std::iter::repeat_n(slow, many - 1).all(|seen| !acted(seen)));
        assert!(!acted(None), "one that says nothing of the kind");
        assert!(std::iter::repeat_n(slow, many - 1).all(|seen| !acted(seen)));
        assert!(acted(slow) && acted(slow));
    }
}
