//! The gRPC door: one file a room, each handler in three steps: check, propose or read, map.
//!
//! Deliberately absent: writes to the state. [`status`] alone makes a [`tonic::Status`].

mod agents;
mod breakers;
mod cluster;
mod dispatch;
mod peer;
mod progress;
mod retries;
mod schedules;
mod sessions;
pub(crate) mod status;
mod tasks;
mod work;

pub(crate) use cluster::{hand_over, term_of};

use std::sync::Arc;

use quorate_proto::log::{Answer, Command, answer, command};
use quorate_proto::v1::{Consistency, RequestId};
use quorate_raft::error::{Error, Fatal, Outcome};
use quorate_raft::replica::View;
use tonic::service::Routes;
use tonic::{Response, Status};

use crate::core::Core;
use crate::stop::Reason;

/// The largest public message: several payloads of 1 MiB.
const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// Every service of a node.
pub(crate) fn routes(core: &Arc<Core>) -> Routes {
    use quorate_proto::v1::agents_server::AgentsServer;
    use quorate_proto::v1::breakers_server::BreakersServer;
    use quorate_proto::v1::cluster_server::ClusterServer;
    use quorate_proto::v1::dispatch_server::DispatchServer;
    use quorate_proto::v1::progress_server::ProgressServer;
    use quorate_proto::v1::retries_server::RetriesServer;
    use quorate_proto::v1::schedules_server::SchedulesServer;
    use quorate_proto::v1::sessions_server::SessionsServer;
    use quorate_proto::v1::tasks_server::TasksServer;

    let door = Door { core: core.clone() };
    Routes::new(SessionsServer::new(door.clone()))
        .add_service(AgentsServer::new(door.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES))
        .add_service(
            TasksServer::new(door.clone())
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES * 4),
        )
        .add_service(
            SchedulesServer::new(door.clone())
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES * 4),
        )
        .add_service(DispatchServer::new(door.clone()))
        .add_service(BreakersServer::new(door.clone()))
        .add_service(RetriesServer::new(door.clone()))
        .add_service(ProgressServer::new(door.clone()))
        .add_service(ClusterServer::new(door))
        .add_service(peer::service(core.clone()))
}

/// What every handler stands on.
#[derive(Clone)]
struct Door {
    core: Arc<Core>,
}

impl Door {
    /// Proposes a command and returns its answer's body, or the status that says why there is none.
    async fn propose(&self, request: Option<RequestId>, body: command::Body) -> Result<answer::Body, Status> {
        match self.core.proposer.propose(&Command { request, body: Some(body) }).await {
            Ok(answer) => answered(answer),
            Err(error) => Err(status::not_proposed(&error, self.core.leader_hint())),
        }
    }

    /// Reads the state, as fresh as asked.
    async fn read<T>(&self, consistency: Consistency, read: impl FnOnce(View<'_>) -> Outcome<T>) -> Result<T, Status> {
        if consistency != Consistency::Stale {
            self.fresh().await?;
        }
        self.core.replica.read(read).map_err(|error| match error {
            Error::Rejected(rejection) => status::rejected(&rejection),
            Error::Fatal(fatal) => self.fault(&fatal),
        })
    }

    /// Waits until a read of this node's state is linearizable.
    async fn fresh(&self) -> Result<(), Status> {
        self.core.reads.pass().await.map_err(|message| status::not_readable(&message, self.core.leader_hint()))
    }

    /// A fault met while reading stops the node as one met while applying does.
    fn fault(&self, fatal: &Fatal) -> Status {
        self.core.stop.now(Reason::Fault(fatal.to_string()));
        status::fault(fatal)
    }

    /// A good answer, with a hint to who leads.
    fn respond<T>(&self, message: T) -> Response<T> {
        let mut response = Response::new(message);
        status::hint(response.metadata_mut(), self.core.leader_hint());
        response
    }
}

fn answered(answer: Answer) -> Result<answer::Body, Status> {
    match answer.body {
        Some(answer::Body::Rejected(rejection)) => Err(status::rejected(&rejection)),
        Some(body) => Ok(body),
        None => Err(Status::internal("an answer without a body")),
    }
}

/// The answer's arm that belongs to the command's.
macro_rules! expect_arm {
    ($arm:ident, $body:expr) => {
        match $body {
            quorate_proto::log::answer::Body::$arm(response) => Ok(response),
            other => Err(tonic::Status::internal(format!("an answer of another kind: {other:?}"))),
        }
    };
}
use expect_arm;

/// A check that the rooms make too, made at the door.
fn checked(result: Result<(), Error>) -> Result<(), Status> {
    match result {
        Ok(()) => Ok(()),
        Err(Error::Rejected(rejection)) => Err(status::rejected(&rejection)),
        Err(Error::Fatal(fatal)) => Err(status::fault(&fatal)),
    }
}

/// A number of rows that a request asks for; more than the most is refused.
fn at_most(field: &str, asked: u32, most: usize) -> Result<(), Status> {
    if asked as usize > most {
        return Err(status::invalid(field, format!("{field} must be at most {most}; got {asked}")));
    }
    Ok(())
}

/// The same, where 0 stands for the default.
fn rows_wanted(field: &str, asked: u32, default: usize, most: usize) -> Result<usize, Status> {
    at_most(field, asked, most)?;
    Ok(if asked == 0 { default } else { asked as usize })
}

/// A fresh id, sortable by time.
pub(crate) fn new_id(prefix: &str) -> String {
    format!("{prefix}-{}", uuid::Uuid::now_v7().simple())
}
