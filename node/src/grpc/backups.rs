//! Backups: taken now, planned, looked at. Taken by the leader, whose disk has all that was committed.

use std::time::Duration;

use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use quorate_proto::log::command;
use quorate_proto::v1::backups_server::Backups;
use quorate_proto::v1::{
    BackupProgress, BackupStatusRequest, BackupStatusResponse, CreateBackupRequest, Rejection, RejectionCode,
    SetBackupPolicyRequest, SetBackupPolicyResponse,
};
use quorate_raft::state::backups::resolved;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::{Door, expect_arm, status};
use crate::backup;

/// How often progress is told.
const TELL: Duration = Duration::from_millis(250);

#[tonic::async_trait]
impl Backups for Door {
    type CreateStream = BoxStream<'static, Result<BackupProgress, Status>>;

    async fn create(&self, request: Request<CreateBackupRequest>) -> Result<Response<Self::CreateStream>, Status> {
        let Some(term) = self.core.office() else {
            let mut status = status::unavailable("backups are taken by the leader");
            status::hint(status.metadata_mut(), self.core.leader_hint());
            return Err(status);
        };
        let target = self.target(request.into_inner().target)?;
        let Some(turn) = backup::turn() else { return Err(refused("", "another backup is being taken on this node")) };
        let (teller, told) = mpsc::channel(1);
        let core = self.core.clone();
        // It goes on if nobody listens any more: a backup that is nearly done is worth having.
        tokio::spawn(async move {
            let _turn = turn;
            let mut progress = throttled(teller.clone());
            let record = backup::take(&core, &target, term, &mut progress).await;
            backup::note(&core, term, record.clone()).await;
            let (bytes, done_bytes) = (record.sent_bytes, record.sent_bytes);
            let _gone = teller.send(BackupProgress { bytes, done_bytes, record: Some(record) }).await;
        });
        let responses = stream::unfold(told, |mut told| async move { told.recv().await.map(|one| (Ok(one), told)) });
        Ok(Response::new(responses.boxed()))
    }

    async fn set_policy(
        &self,
        request: Request<SetBackupPolicyRequest>,
    ) -> Result<Response<SetBackupPolicyResponse>, Status> {
        let request = request.into_inner();
        let Some(policy) = &request.policy else { return Err(status::invalid("policy", "policy must be set")) };
        if !policy.target.is_empty() {
            check_target("policy.target", &policy.target)?;
        }
        let body = self.propose(None, command::Body::SetBackupPolicy(request)).await?;
        Ok(self.respond(expect_arm!(SetBackupPolicy, body)?))
    }

    async fn status(&self, _: Request<BackupStatusRequest>) -> Result<Response<BackupStatusResponse>, Status> {
        self.fresh().await?;
        let row = backup::row(&self.core).map_err(|fatal| self.fault(&fatal))?;
        Ok(self.respond(BackupStatusResponse {
            next_at_ms: backup::next_at_ms(&row, self.core.clock.now_ms()),
            policy: Some(resolved(&row.policy.unwrap_or_default())),
            last_success: row.last_success,
            last_failure: row.last_failure,
            failures: row.failures,
        }))
    }
}

impl Door {
    /// The target that is asked for, or the policy's.
    fn target(&self, asked: String) -> Result<String, Status> {
        if !asked.is_empty() {
            check_target("target", &asked)?;
            return Ok(asked);
        }
        let row = backup::row(&self.core).map_err(|fatal| self.fault(&fatal))?;
        row.policy.map(|policy| policy.target).filter(|target| !target.is_empty()).ok_or_else(|| {
            refused("target", "no target is set: name one, or set a policy with `quorate backup schedule --to`")
        })
    }
}

/// Tells how far it is now and then. Somebody who does not listen misses some of it.
fn throttled(teller: mpsc::Sender<BackupProgress>) -> impl FnMut(u64, u64) + Send {
    let mut told: Option<Instant> = None;
    move |done_bytes, bytes| {
        if told.is_none_or(|told| told.elapsed() >= TELL) {
            told = Some(Instant::now());
            let _missed = teller.try_send(BackupProgress { bytes, done_bytes, record: None });
        }
    }
}

fn check_target(field: &str, target: &str) -> Result<(), Status> {
    backup::check_url(target).map_err(|message| status::invalid(field, format!("{field}: {message}")))
}

fn refused(field: &str, message: &str) -> Status {
    let code = RejectionCode::FailedPrecondition as i32;
    status::rejected(&Rejection { code, field: field.to_owned(), message: message.to_owned() })
}
