//! One server process: configuration, proposing, the leader's loops, gRPC, HTTP, and the command line beside it.
//!
//! ```text
//!   cli ─────── subcommands; on top of the client library
//!   server ──── start and stop of one node
//!   ├─ config, data_dir     what it is told, what its directory says
//!   ├─ core ─────────────── the parts of a running node, shared by its handlers
//!   ├─ propose, reads ───── into the log and out of the state
//!   ├─ leases, hub, leader  deadlines, wake-ups, and the loops that act on them
//!   ├─ calendar, schedules  when a schedule ticks, and the loop that fires it
//!   └─ grpc, http ───────── the doors
//! ```

mod blobs;
mod calendar;
pub mod cli;
mod clock;
mod config;
mod core;
mod data_dir;
mod grpc;
mod http;
mod hub;
mod leader;
mod leases;
mod propose;
mod reads;
mod retention;
mod schedules;
mod server;
mod stop;
