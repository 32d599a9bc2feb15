//! The harness: real `quorate` processes on loopback, the faults done to them, and what must hold afterwards.
//!
//! - [`cluster`]: three (or any number of) `quorate serve` processes. [`dev`]: one `quorate dev`.
//! - [`process`]: one child process and its log files. [`ports`], [`http`], [`status`], [`binary`]: what those need.
//! - [`disks`]: disks of a few MiB. [`cli`]: the command line, as an operator types it.
//! - [`links`]: a network between the nodes that can be cut, where it is asked for.
//! - [`load`]: writers that remember what was acknowledged. [`probe`]: one write every 10 ms, to measure gaps.
//! - [`gaps`]: writers under a steady pace, and how long each of them waited.
//! - [`witness`]: watchers that remember, and [`events`]: the history to hold them against.
//! - [`coordination`]: what must hold of deliveries and of locks, and lives that end as a process does.
//! - [`runbook`]: a page of `docs/operating`, done as it is written.
//! - [`tasks`], [`until`], [`rng`]: small helpers for tests.
//!
//! Deliberately absent: any link to the server's code. The harness sees what an operator sees: processes, ports, files.

pub mod binary;
pub mod cli;
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
pub mod ports;
pub mod probe;
pub mod process;
pub mod rng;
pub mod runbook;
pub mod status;
pub mod tasks;
pub mod until;
pub mod witness;

pub use cluster::LocalCluster;
pub use dev::DevNode;
pub use gaps::Steady;
pub use load::Load;
pub use probe::Probe;
pub use rng::Rng;
