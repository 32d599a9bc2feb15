//! Bugs that are planted to see whether they are seen, each with the scenario that must catch it.
//!
//! A build of the server with the feature `faults` has them all, and one process has the one that its environment names.
//!
//! Deliberately absent: bugs of consensus itself. Those are for the simulation (`jepsen/sim`).

/// One bug and what must catch it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planted {
    /// What the server calls it.
    pub bug: &'static str,
    /// What it stands for.
    pub about: &'static str,
    /// The nemesis under which it shows; empty: none is needed.
    pub nemesis: &'static str,
    /// The workloads that must see it.
    pub workloads: &'static [&'static str],
    /// Only this node has it; 0: all have.
    pub node: u64,
}

/// All of them.
pub const ALL: [Planted; 24] = [
    bug("log-unsynced", "the log is called durable without fsync", "power-one", &["register", "append"]),
    bug("ack-before-write", "the log is called durable before it is written", "power-slow", &["register", "append"]),
    bug("write-error-ignored", "an fsync that fails is not noticed", "fsync-error", &["register", "append"]),
    bug("read-unconfirmed", "a read asks no majority", "pause-leader", &["register", "cas"]),
    bug(
        "read-index-reused",
        "a read is served by what was confirmed for an earlier one",
        "isolate-one",
        &["register", "cas"],
    ),
    bug("lease-by-wall-clock", "leases follow a clock that can be set", "clock-jump", &["sessions"]),
    bug("lease-shortened", "a new leader ends sessions early", "kill-leader", &["sessions"]),
    bug("lock-token-reused", "every grant has the same token", "", &["lock"]),
    bug("fence-ignored", "a write under an old grant is taken", "", &["lock"]),
    bug("finish-under-old-token", "an attempt that was lost ends the next one", "", &["tasks"]),
    bug("dependency-ignored", "a task begins before all that it waits for", "", &["tasks"]),
    bug("limit-off-by-one", "one more than the limit runs", "", &["limits"]),
    bug("probe-shared", "a half-open breaker admits everybody", "", &["breakers"]),
    bug("tick-repeated", "a tick fires twice", "", &["schedules"]),
    bug("dead-letter-lost", "a message that failed too often is gone", "", &["bus"]),
    bug("ack-forgotten", "an acknowledged message comes again", "", &["bus"]),
    bug("order-ignored", "messages of one key overtake each other", "", &["bus"]),
    bug("message-id-ignored", "a repeated publish is there twice", "", &["bus"]),
    bug("resend-run", "a resend has a second effect", "kill-leader", &["register", "append", "bank"]),
    bug("put-lost", "an acknowledged put is not stored", "", &["register"]),
    bug("condition-ignored", "a condition is not looked at", "", &["cas", "bank", "append"]),
    bug("watch-gap", "a watcher that comes back misses something", "kill-leader", &["watch"]),
    bug("snapshot-without-table", "a snapshot is installed without its documents", "wipe-one", &["register"]),
    Planted { node: 2, ..bug("drift", "one replica writes what no other does", "", &["register"]) },
];

const fn bug(
    bug: &'static str,
    about: &'static str,
    nemesis: &'static str,
    workloads: &'static [&'static str],
) -> Planted {
    Planted { bug, about, nemesis, workloads, node: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{nemesis, workload};

    #[test]
    fn what_must_catch_a_bug_exists() {
        for planted in ALL {
            assert!(planted.nemesis.is_empty() || nemesis::named(planted.nemesis).is_some(), "{planted:?}");
            let known = |name: &&str| workload::all().iter().any(|workload| workload.name() == *name);
            assert!(planted.workloads.iter().all(known), "{planted:?}");
        }
    }
}
