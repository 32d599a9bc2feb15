//! One node, asked by itself: every call is made once, at that node and at no other.
//!
//! The library goes to the leader as soon as anybody names it, even if it was given one address. What a follower
//! answers is seen only by whoever asks that follower.
//!
//! Deliberately absent: resends. What a call that was not answered has done, nobody knows, and so it is recorded.

use std::error::Error as _;
use std::time::Duration;

use anyhow::Result;
use quorate_client::v1::kv_client::KvClient;
use quorate_client::v1::locks_client::LocksClient;
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Code, ConnectError, Response, Status};

use super::Context;
use crate::coordination::only;
use crate::record::Answer;

/// One node.
#[derive(Clone, Debug)]
pub(super) struct Direct {
    id: u64,
    channel: Channel,
    patience: Duration,
}

impl Direct {
    /// Every node, node 1 first. Each call is given up after `patience`.
    pub(super) fn all(context: &Context, patience: Duration) -> Result<Vec<Self>> {
        let nodes = context.endpoints.iter().zip(1_u64..);
        nodes.map(|(endpoint, id)| anyhow::Ok(Self { id, channel: only(endpoint)?, patience })).collect()
    }

    /// Its id.
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// Its documents.
    pub(super) fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone())
    }

    /// Its locks.
    pub(super) fn locks(&self) -> LocksClient<Channel> {
        LocksClient::new(self.channel.clone())
    }

    /// Waits for a call, as long as the patience lasts.
    pub(super) async fn call<T>(&self, call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Status> {
        match timeout(self.patience, call).await {
            Ok(answer) => answer.map(Response::into_inner),
            Err(_) => Err(Status::deadline_exceeded(format!("node {} did not answer in time", self.id))),
        }
    }
}

/// What a write that ended so has done: only a node's own word, or a connection that was never made, proves that it was
/// nothing.
pub(super) fn effect(status: &Status) -> Answer {
    let marked = |key: &str| status.metadata().contains_key(key);
    let is_refusal = match status.code() {
        Code::InvalidArgument | Code::NotFound | Code::AlreadyExists | Code::FailedPrecondition | Code::Aborted => true,
        // Without the mark it is HTTP/2's word, which cuts off calls under way.
        Code::ResourceExhausted => marked("quorate-rejected") || marked("quorate-overload"),
        _ => false,
    };
    if is_refusal || marked("quorate-no-effect") || never_connected(status) { Answer::Fail } else { Answer::Info }
}

fn never_connected(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marked(code: Code, key: &'static str) -> Status {
        let mut status = Status::new(code, "no");
        status.metadata_mut().insert(key, "1".parse().unwrap());
        status
    }

    #[test]
    fn only_a_refusal_or_a_mark_proves_that_nothing_happened() {
        for nothing in [
            Status::failed_precondition("another rev"),
            Status::aborted("over"),
            marked(Code::Unavailable, "quorate-no-effect"),
            marked(Code::ResourceExhausted, "quorate-rejected"),
        ] {
            assert_eq!(effect(&nothing), Answer::Fail, "{nothing:?}");
        }
        for open in [
            Status::unavailable("no"),
            Status::unknown("broken"),
            Status::cancelled("timeout"),
            Status::deadline_exceeded("late"),
            Status::resource_exhausted("too many streams"),
        ] {
            assert_eq!(effect(&open), Answer::Info, "{open:?}");
        }
    }

    #[test]
    fn a_connection_that_was_never_made_proves_it_too() {
        let error = ConnectError(Box::new(std::io::Error::other("nobody is there")));
        assert_eq!(effect(&Status::from_error(Box::new(error))), Answer::Fail);
    }
}
