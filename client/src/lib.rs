//! The library for agents: connect, follow the leader, retry what is safe to retry, work.
//!
//! - [`Client`]: a handle to the whole cluster; [`Sessions`], [`Agents`], [`Tasks`], [`Cluster`] are its rooms.
//! - [`Worker`]: an agent's whole life: register, stay alive, claim, run a handler, finish, drain.
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
mod call;
mod channels;
mod client;
mod cluster;
mod config;
mod error;
mod sessions;
mod tasks;
mod worker;

pub use quorate_proto::v1;

pub use crate::agents::Agents;
pub use crate::client::Client;
pub use crate::cluster::Cluster;
pub use crate::config::Config;
pub use crate::error::Error;
pub use crate::sessions::{Session, Sessions};
pub use crate::tasks::Tasks;
pub use crate::worker::{Done, Job, Output, Worker, WorkerBuilder, WorkerReport};

/// The largest message in either direction, several payloads of 1 MiB.
const MAX_MESSAGE_BYTES: usize = 16 << 20;
