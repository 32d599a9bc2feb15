//! Keeps the event history bounded: by age and by size, oldest first.
//!
//! The leader looks now and then and proposes how far the history goes; every node then gives back the disk space. All nodes forget the same, so a watcher that goes
//! from one to another finds the same history there. An idle cluster proposes this only when something has become old.

use std::sync::Arc;
use std::time::Duration;

use quorate_proto::log::{CompactEvents, command};
use quorate_raft::error::Fatal;
use quorate_raft::state::namespaces::DEFAULT;

use crate::core::Core;
use crate::stop::Reason;

const LONGEST_PAUSE: Duration = Duration::from_secs(30);
const SHORTEST_PAUSE: Duration = Duration::from_millis(500);
/// When there is too much, this part of the revs goes at once: sizes are estimates, and small steps would be many.
const PART: u64 = 4;

/// Starts the loop.
pub(crate) fn start(core: &Arc<Core>) {
    tokio::spawn(run(core.clone()));
}

async fn run(core: Arc<Core>) {
    let mut dropped_rev = core.replica.head().events_compacted_rev;
    let keep = Duration::from_millis(core.settings.config.events_keep_ms);
    loop {
        tokio::time::sleep((keep / 4).clamp(SHORTEST_PAUSE, LONGEST_PAUSE)).await;
        if core.replica.head().events_compacted_rev > dropped_rev {
            let dropping = core.clone();
            match tokio::task::spawn_blocking(move || dropping.replica.drop_compacted_events()).await {
                Ok(Ok(through_rev)) => dropped_rev = through_rev,
                Ok(Err(fatal)) => return core.stop.now(Reason::Fault(fatal.to_string())),
                Err(error) => return core.stop.now(Reason::Fault(error.to_string())),
            }
        }
        let Some(term) = core.office() else { continue };
        let looking = core.clone();
        let looked = tokio::task::spawn_blocking(move || outdated(&looking)).await;
        match looked {
            Ok(Ok(Some(through_rev))) => {
                let compact = command::Body::CompactEvents(CompactEvents { through_rev });
                if let Err(error) = core.proposer.propose_as_leader(DEFAULT, compact, term).await {
                    tracing::debug!(%error, "the history was not compacted");
                }
            }
            Ok(Ok(None)) => {}
            Ok(Err(fatal)) => return core.stop.now(Reason::Fault(fatal.to_string())),
            Err(error) => return core.stop.now(Reason::Fault(error.to_string())),
        }
    }
}

/// Up to which rev the history is too old or too much; `None`: it is neither.
fn outdated(core: &Core) -> Result<Option<u64>, Fatal> {
    let config = &core.settings.config;
    let head = core.replica.head();
    let now_ms = core.clock.now_ms().max(head.now_ms);
    let cutoff_ms = now_ms.saturating_sub(config.events_keep_ms);
    let first = head.events_compacted_rev + 1;
    let too_old = last_before(first, head.rev, |from| {
        Ok(core.replica.first_event(from)?.filter(|(_, at_ms)| *at_ms < cutoff_ms).map(|(rev, _)| rev))
    })?;
    if core.replica.events_bytes()? <= config.events_max_bytes && !core.disk.cluster_is_low() {
        return Ok(too_old);
    }
    let too_much = head.events_compacted_rev + (head.rev - head.events_compacted_rev) / PART;
    Ok(too_old.max(Some(too_much).filter(|through| (first..head.rev).contains(through))))
}

/// The last rev from `first` to before `end` at which something is, all of which is outdated up to some point: `outdated(from)` gives the first
/// rev at or after `from` at which something is, if that is outdated. Time never goes back, so halving finds the point.
fn last_before(
    first: u64,
    end: u64,
    outdated: impl Fn(u64) -> Result<Option<u64>, Fatal>,
) -> Result<Option<u64>, Fatal> {
    let (mut low, mut high, mut last) = (first, end, None);
    while low < high {
        let middle = low + (high - low) / 2;
        match outdated(middle)?.filter(|rev| *rev < end) {
            Some(rev) => {
                last = Some(rev);
                low = rev + 1;
            }
            None => high = middle,
        }
    }
    Ok(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halving_finds_the_last_one_that_is_outdated() {
        let revs = [3_u64, 4, 9, 10, 20, 21, 40];
        for cutoff in 0..50 {
            for end in 1..50 {
                let outdated = |from| Ok(revs.iter().copied().find(|rev| *rev >= from).filter(|rev| *rev < cutoff));
                let expected = revs.iter().copied().filter(|rev| *rev < cutoff && *rev < end).max();
                assert_eq!(last_before(1, end, outdated).unwrap(), expected, "cutoff {cutoff}, end {end}");
            }
        }
    }
}
