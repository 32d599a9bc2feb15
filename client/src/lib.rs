//! The library for agents: connect, follow the leader, retry what is safe to retry, work.
//!
//! - [`Client`]: a handle to the whole cluster; [`Sessions`], [`Agents`], [`Tasks`], [`Dispatch`], [`Breakers`],
//!   [`Retries`], [`Schedules`], [`Progress`], [`Cluster`] are its rooms.
//! - [`Worker`]: an agent's whole life: register, stay alive, run a handler for what is pushed to it, finish, drain.
//! - [`Graph`]: tasks and what they wait for, submitted in one command.
//! - [`execute_with_retry`]: any call of your own, tried again by the same policies.
//! - [`Error`]: says of every failed call whether it certainly had no effect or its outcome is unknown.
//!
//! ```no_run
//! # async fn demo() -> Result<(), quorate_client::Error> {
//! use quorate_client::{Client, Config, v1::TaskSpec};
//!
//! let client = Client::connect(Config::new(["127.0.0.1:7401"]))?;
//! let task = TaskSpec { title: "say hello".into(), required_capabilities: vec!["greeting".into()], ..Default::default() };
//! let submitted = client.tasks().submit_one(task).await?;
//! println!("{} is {:?}", submitted.task_id, submitted.status());
//! # Ok(())
//! # }
//! ```
//!
//! Deliberately absent: anything that decides. The cluster does; the library asks, repeats and reports.

mod agents;
mod background;
mod backups;
mod blobs;
mod breakers;
mod bus;
mod call;
mod channels;
mod client;
mod cluster;
mod config;
mod continuous;
mod dispatch;
mod error;
mod graph;
mod kv;
mod locks;
mod namespaces;
mod outbox;
mod progress;
mod reopen;
mod requests;
mod retries;
mod retry;
mod schedules;
mod sessions;
mod tasks;
mod transact;
mod watch;
mod worker;

pub use quorate_proto::v1;

pub use crate::agents::Agents;
pub use crate::backups::Backups;
pub use crate::blobs::Blobs;
pub use crate::breakers::{Blame, Breakers, CallError, Refused};
pub use crate::bus::{Bus, Consumer, ConsumerBuilder, Delivery, Requester};
pub use crate::client::Client;
pub use crate::cluster::{Cluster, MembersChanges};
pub use crate::config::Config;
pub use crate::continuous::{ContinuousAgent, ContinuousReport, Step};
pub use crate::dispatch::Dispatch;
pub use crate::error::Error;
pub use crate::graph::{Graph, Node};
pub use crate::kv::{Kv, KvDelete, KvPut};
pub use crate::locks::{LockBuilder, LockGuard, Locks, ScopeBuilder, ScopeGuard};
pub use crate::namespaces::Namespaces;
pub use crate::progress::Progress;
pub use crate::retries::Retries;
pub use crate::retry::{DEFAULT_RETRY, GaveUp, execute_with_retry, retry_delay};
pub use crate::schedules::Schedules;
pub use crate::sessions::{Session, Sessions};
pub use crate::tasks::Tasks;
pub use crate::transact::Transaction;
pub use crate::watch::Watch;
pub use crate::worker::{Done, Job, Output, Worker, WorkerBuilder, WorkerReport};

/// The largest message in either direction, several payloads of 1 MiB.
const MAX_MESSAGE_BYTES: usize = 16 << 20;
