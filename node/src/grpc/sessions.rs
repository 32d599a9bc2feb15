//! Sessions: opened and closed through the log, kept alive in the leader's memory.

use std::sync::Arc;
use std::time::{Duration, Instant};

use openraft::Instant as _;
use quorate_proto::log::command;
use quorate_proto::peer as pb;
use quorate_proto::v1::sessions_server::Sessions;
use quorate_proto::v1::{
    CloseSessionRequest, CloseSessionResponse, HeldAttempt, KeepAliveRequest, KeepAliveResponse, OpenSessionRequest,
    OpenSessionResponse,
};
use quorate_raft::state::check_id;
use tonic::{Request, Response, Status};

use super::{Door, checked, expect_arm, new_id, status};
use crate::core::{Core, Leadership};
use crate::leases::{Kept, Key};

#[tonic::async_trait]
impl Sessions for Door {
    async fn open(&self, request: Request<OpenSessionRequest>) -> Result<Response<OpenSessionResponse>, Status> {
        let mut request = request.into_inner();
        if request.session_id.is_empty() {
            request.session_id = new_id("s");
        }
        let body = self.propose(None, command::Body::OpenSession(request)).await?;
        Ok(self.respond(expect_arm!(OpenSession, body)?))
    }

    async fn keep_alive(&self, request: Request<KeepAliveRequest>) -> Result<Response<KeepAliveResponse>, Status> {
        let session_id = request.into_inner().session_id;
        checked(check_id("session_id", &session_id))?;
        let response = match self.core.leadership() {
            Leadership::Here { .. } => keep_alive_here(&self.core, &self.namespace, &session_id).await?,
            Leadership::There { address, .. } => {
                let mut leader = self.core.peers.client(&address)?;
                let request = self
                    .core
                    .peers
                    .request(pb::PeerKeepAliveRequest { session_id, namespace: self.namespace.to_string() });
                let reply = leader.keep_alive(request).await?.into_inner();
                reply.response.ok_or_else(|| status::unavailable("the leader's answer is empty"))?
            }
            Leadership::Unknown => return Err(status::unavailable("no leader is known at the moment")),
        };
        Ok(self.respond(response))
    }

    async fn close(&self, request: Request<CloseSessionRequest>) -> Result<Response<CloseSessionResponse>, Status> {
        let request = request.into_inner();
        checked(check_id("session_id", &request.session_id))?;
        let body = self.propose(None, command::Body::CloseSession(request)).await?;
        Ok(self.respond(expect_arm!(CloseSession, body)?))
    }
}

/// Moves the deadline, if this node is a leader that a majority has heard lately: one cut off must not comfort anybody.
pub(super) async fn keep_alive_here(
    core: &Core,
    namespace: &Arc<str>,
    session_id: &str,
) -> Result<KeepAliveResponse, Status> {
    let acked = core.raft.as_leader().ok().and_then(|leader| leader.last_quorum_acked());
    let limit = Duration::from_millis(core.settings.config.election_max_ms);
    let single = core.is_alone();
    if !single && acked.is_none_or(|at| at.elapsed() >= limit) {
        return Err(status::unavailable("this leader has not heard from a majority lately"));
    }
    match core.leases.keep_alive(&Key::new(namespace, session_id), Instant::now()) {
        Kept::For(ttl) => {
            if let Some(kept) = kept(core, namespace, session_id, u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX)) {
                return Ok(kept);
            }
        }
        Kept::Ending => return Err(status::unavailable("the session's deadline has passed and its end is on the way")),
        Kept::Unknown => {}
    }
    // Not in the table or not in the state: ended, or so new that its deadline is not set yet, or this leader is so new that it has not
    // applied everything. Only a state that is up to date may say that a session has ended.
    core.reads.pass().await.map_err(|message| status::not_readable(&message, core.leader_hint()))?;
    let found =
        core.replica.read_in(namespace, |view| view.rooms.sessions.get(session_id).map(|session| session.ttl_ms));
    match found.flatten().and_then(|ttl_ms| kept(core, namespace, session_id, ttl_ms)) {
        Some(kept) => Ok(kept),
        None => Err(Status::not_found(format!("session {session_id} has ended; open a new one"))),
    }
}

/// What the session still holds goes along with every keep-alive: that is how a worker learns of a cancelled task.
/// `None`: there is no such session in the state that this is read from.
fn kept(core: &Core, namespace: &str, session_id: &str, ttl_ms: u64) -> Option<KeepAliveResponse> {
    let read = core.replica.read_in(namespace, |view| {
        // Ended, with its deadline still in the table: to say that it lives and holds nothing would be wrong twice.
        view.rooms.sessions.get(session_id)?;
        let held = view.rooms.tasks.held_by_session(session_id);
        Some(KeepAliveResponse {
            ttl_ms,
            held: held
                .map(|(task_id, token, fence_at_ms)| HeldAttempt { task_id: task_id.to_owned(), token, fence_at_ms })
                .collect(),
            rev: view.head.rev,
        })
    });
    read.flatten()
}
