//! Bugs that can be planted in the simulated store and machine, to see that the simulation sees them.

use clap::ValueEnum;

/// A bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Plant {
    /// An append is called durable before it is.
    AckBeforeFlush,
    /// A vote is given and never written.
    LoseVote,
    /// A resend is run again.
    SkipDedup,
    /// A restarted node applies its last entry once more.
    ApplyTwice,
    /// A snapshot is installed without its documents.
    SnapshotWithoutATable,
    /// A leader begins at its own wall clock, and the machine takes the time as it comes.
    ClockGoesBack,
}
