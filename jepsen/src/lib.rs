//! The harness: real `quorate` processes, the faults done to them, and what must hold afterwards.
//!
//! ```text
//!   scenario ─▶ run ─┬─▶ cluster   processes, on a wire, on disks and by clocks that can be faulty
//!                    ├─▶ workload  what clients do, and write down in a record
//!                    ├─▶ nemesis   what is done to the cluster meanwhile
//!                    ├─▶ check     record against promise
//!                    └─▶ report    one page for people; a line in the ledger
//! ```
//!
//! - [`cluster`]: three (or any number of) `quorate serve` processes. [`dev`]: one `quorate dev`.
//! - [`process`]: one child process and its log files. [`ports`], [`http`], [`status`], [`binary`]: what those need.
//! - [`wire`]: network namespaces joined by our own switch. [`links`]: proxies on loopback, where there are none.
//! - [`power`]: disks that forget what was not synced. [`disks`]: disks of a few MiB. [`clock`]: clocks that can be set.
//! - [`record`]: the file format of what clients saw. [`planted`]: bugs on purpose, and what must catch them.
//!
//! For tests that are about one thing:
//! - [`cli`]: the command line, as an operator types it. [`runbook`]: a page of `docs/operating`, done as it is written.
//! - [`load`]: writers that remember what was acknowledged. [`probe`]: one write every 10 ms, to measure gaps.
//! - [`gaps`]: writers under a steady pace, and how long each of them waited.
//! - [`witness`]: watchers that remember, and [`events`]: the history to hold them against.
//! - [`coordination`]: what must hold of deliveries and of locks, and lives that end as a process does.
//! - [`tasks`], [`until`], [`rng`]: small helpers.
//!
//! Deliberately absent: any link to the server's code. The harness sees what an operator sees: processes, ports, files.

pub mod binary;
pub mod check;
pub mod cli;
pub mod clock;
pub mod cluster;
pub mod coordination;
pub mod dev;
pub mod disks;
pub mod events;
pub mod faults;
pub mod fleet;
pub mod gaps;
pub mod history;
pub mod http;
pub mod links;
pub mod load;
pub mod nemesis;
pub mod planted;
pub mod ports;
pub mod power;
pub mod probe;
pub mod process;
pub mod record;
pub mod report;
pub mod rng;
pub mod run;
pub mod runbook;
pub mod scenario;
pub mod status;
pub mod tasks;
pub mod until;
pub mod wire;
pub mod witness;
pub mod workload;

pub use cluster::LocalCluster;
pub use dev::DevNode;
pub use gaps::Steady;
pub use load::Load;
pub use probe::Probe;
pub use rng::Rng;
