//! The gRPC door: one file a room, each handler in three steps: check, propose or read, map.
//!
//! Deliberately absent: writes to the state. [`status`] alone makes a [`tonic::Status`].

mod agents;
mod backups;
mod blobs;
mod breakers;
mod bus;
mod cluster;
mod consume;
mod dispatch;
mod kv;
mod locks;
mod namespace;
mod namespaces;
mod peer;
mod progress;
mod retries;
mod schedules;
mod sessions;
pub(crate) mod status;
mod tasks;
mod transact;
mod watch;
mod work;

pub(crate) use cluster::{hand_over, status_of, take_snapshot, term_of};

use std::sync::Arc;

use quorate_proto::log::{Answer, Command, answer, command};
use quorate_proto::v1::{Consistency, Fence, RequestId};
use quorate_raft::error::{Error, Fatal, Outcome};
use quorate_raft::replica::View;
use quorate_raft::state::Rooms;
use quorate_raft::storage::rows::MemoryRows;
use tonic::service::Routes;
use tonic::{Response, Status};

use self::namespace::InNamespace;
use crate::core::Core;
use crate::hub::Hub;
use crate::stop::Reason;

/// The largest public message: several payloads of 1 MiB.
const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// Every service of a node.
pub(crate) fn routes(core: &Arc<Core>) -> Routes {
    use quorate_proto::v1::agents_server::AgentsServer;
    use quorate_proto::v1::backups_server::BackupsServer;
    use quorate_proto::v1::blobs_server::BlobsServer;
    use quorate_proto::v1::breakers_server::BreakersServer;
    use quorate_proto::v1::bus_server::BusServer;
    use quorate_proto::v1::cluster_server::ClusterServer;
    use quorate_proto::v1::dispatch_server::DispatchServer;
    use quorate_proto::v1::kv_server::KvServer;
    use quorate_proto::v1::locks_server::LocksServer;
    use quorate_proto::v1::namespaces_server::NamespacesServer;
    use quorate_proto::v1::progress_server::ProgressServer;
    use quorate_proto::v1::retries_server::RetriesServer;
    use quorate_proto::v1::schedules_server::SchedulesServer;
    use quorate_proto::v1::sessions_server::SessionsServer;
    use quorate_proto::v1::tasks_server::TasksServer;
    use quorate_proto::v1::transact_server::TransactServer;
    use quorate_proto::v1::watch_server::WatchServer;

    Routes::new(InNamespace::new(core, SessionsServer::new))
        .add_service(InNamespace::new(core, |door| {
            AgentsServer::new(door).max_decoding_message_size(MAX_MESSAGE_BYTES)
        }))
        .add_service(InNamespace::new(core, |door| {
            TasksServer::new(door)
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES * 4)
        }))
        .add_service(InNamespace::new(core, |door| {
            SchedulesServer::new(door)
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES * 4)
        }))
        .add_service(InNamespace::new(core, DispatchServer::new))
        .add_service(InNamespace::new(core, BreakersServer::new))
        .add_service(InNamespace::new(core, RetriesServer::new))
        .add_service(InNamespace::new(core, ProgressServer::new))
        .add_service(InNamespace::new(core, |door| WatchServer::new(door).max_encoding_message_size(MAX_MESSAGE_BYTES)))
        .add_service(InNamespace::new(core, LocksServer::new))
        .add_service(InNamespace::new(core, |door| {
            BusServer::new(door)
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES * 4)
        }))
        .add_service(InNamespace::new(core, |door| {
            KvServer::new(door)
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES * 4)
        }))
        .add_service(InNamespace::new(core, |door| {
            TransactServer::new(door).max_decoding_message_size(MAX_MESSAGE_BYTES)
        }))
        .add_service(InNamespace::new(core, BackupsServer::new))
        .add_service(InNamespace::new(core, BlobsServer::new))
        .add_service(InNamespace::new(core, NamespacesServer::new))
        .add_service(InNamespace::new(core, ClusterServer::new))
        .add_service(peer::service(core.clone()))
}

/// What every handler stands on: a door of one call, into one namespace.
#[derive(Clone)]
struct Door {
    core: Arc<Core>,
    namespace: Arc<str>,
    /// What must still be held for a write of this call.
    fences: Vec<Fence>,
}

impl Door {
    /// Proposes a command and returns its answer's body, or the status that says why there is none.
    async fn propose(&self, request: Option<RequestId>, body: command::Body) -> Result<answer::Body, Status> {
        let (namespace, fences) = (self.namespace.to_string(), self.fences.clone());
        match self.core.proposer.propose(&Command { request, namespace, fences, body: Some(body) }).await {
            Ok(answer) => answered(answer),
            Err(error) => Err(status::not_proposed(&error, self.core.leader_hint())),
        }
    }

    /// Reads the state, as fresh as asked.
    async fn read<T>(&self, consistency: Consistency, read: impl FnOnce(View<'_>) -> Outcome<T>) -> Result<T, Status> {
        if consistency != Consistency::Stale {
            self.fresh().await?;
        }
        match self.core.replica.read_in(&self.namespace, read) {
            None => Err(self.no_namespace()),
            Some(Ok(read)) => Ok(read),
            Some(Err(Error::Rejected(rejection))) => Err(status::rejected(&rejection)),
            Some(Err(Error::Fatal(fatal))) => Err(self.fault(&fatal)),
        }
    }

    /// Looks at the state as this node has applied it. In a namespace that is gone there is nothing.
    fn look<T>(&self, look: impl Fn(View<'_>) -> T) -> T {
        self.core.replica.read_in(&self.namespace, &look).unwrap_or_else(|| {
            let head = self.core.replica.head();
            look(View { rooms: &Rooms::default(), rows: &MemoryRows::default(), head: &head })
        })
    }

    /// The wake-ups of this namespace, if it exists.
    async fn hub(&self) -> Result<Arc<Hub>, Status> {
        let exists = || self.core.replica.read_in(&self.namespace, |_| ()).is_some();
        if !exists() {
            // Only a state that is up to date may say that there is none.
            self.fresh().await?;
            if !exists() {
                return Err(self.no_namespace());
            }
        }
        Ok(self.core.hubs.of(&self.namespace))
    }

    fn no_namespace(&self) -> Status {
        status::missing("namespace", format!("no namespace {} exists", self.namespace))
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
