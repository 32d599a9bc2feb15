//! One server process: configuration, proposing, the leader's loops, gRPC, HTTP, and the command line beside it.
//!
//! ```text
//!   cli ─────── subcommands; on top of the client library
//!   server ──── start and stop of one node
//!   ├─ config, data_dir     what it is told, what its directory says
//!   ├─ joining, offline     how it comes into a cluster; what is done to a directory while no node runs in it
//!   ├─ roster, neighbours   who belongs to the cluster, and how they are
//!   ├─ members              adding, removing and replacing them, step by step
//!   ├─ core ─────────────── the parts of a running node, shared by its handlers
//!   ├─ propose, reads ───── into the log and out of the state
//!   ├─ leases, hub, leader  deadlines, wake-ups, and the loops that act on them
//!   ├─ calendar, schedules  when a schedule ticks, and the loop that fires it
//!   ├─ retention, forget    what is old goes: history, ended tasks
//!   ├─ backup               copies of the state outside of the cluster
//!   ├─ disk, slow           a disk that is full or slow
//!   └─ grpc, http ───────── the doors
//! ```

mod backup;
mod blobs;
mod calendar;
pub mod cli;
mod clock;
mod config;
mod core;
mod data_dir;
mod disk;
mod forget;
mod grpc;
mod http;
mod hub;
mod joining;
mod leader;
mod leases;
mod members;
mod neighbours;
mod offline;
mod propose;
mod reads;
mod retention;
mod roster;
mod schedules;
mod server;
mod slow;
mod stop;
