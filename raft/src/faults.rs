//! Faults on purpose, to see whether the harness sees them: bugs that are planted, and places to crash at.
//!
//! Both need the feature `faults`, which no release has; without it every function here is a constant that the compiler
//! removes. A process is told by its environment: `FAULT_PLANT=<bug>`, and `FAULT_CRASH=<place>[:<pass>]`, which ends
//! the process as SIGKILL would when it comes to that place for the given time, the first unless said otherwise.
//!
//! Deliberately absent: switches at run time, and more than one bug at once.

/// A bug that can be planted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// The log is not synced before it is called durable.
    LogUnsynced,
    /// A vote is not synced before it is given.
    VoteUnsynced,
    /// The log is called durable before it is written.
    AckBeforeWrite,
    /// A log that could not be written is called durable.
    WriteErrorIgnored,
    /// A linearizable read asks nobody.
    ReadUnconfirmed,
    /// A read is served by what was confirmed for an earlier one.
    ReadIndexReused,
    /// Leases follow the wall clock.
    LeaseByWallClock,
    /// A new leader gives sessions a tenth of their time to live.
    LeaseShortened,
    /// Every grant of a lock has the same token.
    LockTokenReused,
    /// A write is not held against its fence.
    FenceIgnored,
    /// An attempt is ended by whoever ran the one before.
    FinishUnderOldToken,
    /// A task begins as soon as one of those that it waits for is done.
    DependencyIgnored,
    /// One more than the limit may run.
    LimitOffByOne,
    /// A half-open breaker lets everybody try.
    ProbeShared,
    /// A tick of a schedule does not move it on.
    TickRepeated,
    /// A message that failed too often is gone.
    DeadLetterLost,
    /// A message that was acknowledged comes again.
    AckForgotten,
    /// Messages of one key overtake each other.
    OrderIgnored,
    /// A publish that is repeated under its id is there twice.
    MessageIdIgnored,
    /// A resend is run again.
    ResendRun,
    /// A put is acknowledged and not stored.
    PutLost,
    /// A condition on a version is not looked at.
    ConditionIgnored,
    /// A watcher that comes back misses what came next.
    WatchGap,
    /// A snapshot is installed without its documents.
    SnapshotWithoutTable,
    /// This node writes what no other does.
    Drift,
}

impl Bug {
    /// All of them, each with the name by which it is planted.
    pub const ALL: [(Bug, &'static str); 25] = [
        (Bug::LogUnsynced, "log-unsynced"),
        (Bug::VoteUnsynced, "vote-unsynced"),
        (Bug::AckBeforeWrite, "ack-before-write"),
        (Bug::WriteErrorIgnored, "write-error-ignored"),
        (Bug::ReadUnconfirmed, "read-unconfirmed"),
        (Bug::ReadIndexReused, "read-index-reused"),
        (Bug::LeaseByWallClock, "lease-by-wall-clock"),
        (Bug::LeaseShortened, "lease-shortened"),
        (Bug::LockTokenReused, "lock-token-reused"),
        (Bug::FenceIgnored, "fence-ignored"),
        (Bug::FinishUnderOldToken, "finish-under-old-token"),
        (Bug::DependencyIgnored, "dependency-ignored"),
        (Bug::LimitOffByOne, "limit-off-by-one"),
        (Bug::ProbeShared, "probe-shared"),
        (Bug::TickRepeated, "tick-repeated"),
        (Bug::DeadLetterLost, "dead-letter-lost"),
        (Bug::AckForgotten, "ack-forgotten"),
        (Bug::OrderIgnored, "order-ignored"),
        (Bug::MessageIdIgnored, "message-id-ignored"),
        (Bug::ResendRun, "resend-run"),
        (Bug::PutLost, "put-lost"),
        (Bug::ConditionIgnored, "condition-ignored"),
        (Bug::WatchGap, "watch-gap"),
        (Bug::SnapshotWithoutTable, "snapshot-without-table"),
        (Bug::Drift, "drift"),
    ];
}

#[cfg(feature = "faults")]
pub use told::{crash_point, planted};

/// Whether this process was told to have the bug.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub const fn planted(_bug: Bug) -> bool {
    false
}

/// A place where a crash matters.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub const fn crash_point(_place: &'static str) {}

#[cfg(feature = "faults")]
#[allow(clippy::disallowed_methods, reason = "a build that is told by its environment to be wrong")]
mod told {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::Bug;

    /// Whether this process was told to have the bug.
    pub fn planted(bug: Bug) -> bool {
        static TOLD: OnceLock<Option<Bug>> = OnceLock::new();
        *TOLD.get_or_init(|| {
            let name = std::env::var("FAULT_PLANT").ok()?;
            let known = Bug::ALL.into_iter().find(|(_, known)| *known == name);
            if known.is_none() {
                tracing::error!(name, "no such bug can be planted");
                std::process::exit(2);
            }
            known.map(|(bug, _)| bug)
        }) == Some(bug)
    }

    /// A place where a crash matters: the end of this process, if it was told to end here.
    pub fn crash_point(place: &'static str) {
        static TOLD: OnceLock<Option<(String, u64)>> = OnceLock::new();
        static PASSES: AtomicU64 = AtomicU64::new(0);
        let told = TOLD.get_or_init(|| {
            let told = std::env::var("FAULT_CRASH").ok()?;
            let (place, pass) = told.split_once(':').unwrap_or((&told, "1"));
            Some((place.to_owned(), pass.parse().unwrap_or(1)))
        });
        if let Some((at, pass)) = told
            && at == place
            && PASSES.fetch_add(1, Ordering::SeqCst) + 1 == *pass
        {
            // Nothing is flushed and nothing is said: as if the power had gone.
            std::process::abort();
        }
    }
}
