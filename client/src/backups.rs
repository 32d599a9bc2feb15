//! Backups: copies of the whole state, outside of the cluster.

use quorate_proto::v1::backups_client::BackupsClient;
use quorate_proto::v1::{
    BackupPolicy, BackupRecord, BackupStatusRequest, BackupStatusResponse, CreateBackupRequest, SetBackupPolicyRequest,
    SetBackupPolicyResponse,
};

use crate::call::Plan;
use crate::channels::Channel;
use crate::client::Client;
use crate::error::Error;

/// Copies of the whole state.
#[derive(Debug, Clone)]
pub struct Backups {
    pub(crate) client: Client,
}

fn stub(channel: Channel) -> BackupsClient<Channel> {
    BackupsClient::new(channel)
}

impl Backups {
    /// Takes a backup now, to this target (`file:///DIR`, `s3://BUCKET/PREFIX`) or, if it is empty, to the policy's.
    /// `progress` hears how many bytes were sent, of how many. The record's `error` says why there is no backup, if there
    /// is none.
    ///
    /// `OutcomeUnknown`: the node that takes it was lost from sight. What it has done by then is not done again.
    pub async fn create(&self, target: &str, mut progress: impl FnMut(u64, u64)) -> Result<BackupRecord, Error> {
        let request = CreateBackupRequest { target: target.to_owned() };
        let mut told = self
            .client
            .call(Plan::UNSAFE, |channel| {
                let request = request.clone();
                async move { stub(channel).create(request).await }
            })
            .await?;
        let unknown = |message: String| Error::OutcomeUnknown { message };
        loop {
            match told.message().await {
                Ok(Some(answer)) => {
                    progress(answer.done_bytes, answer.bytes);
                    if let Some(record) = answer.record {
                        return Ok(record);
                    }
                }
                Ok(None) => return Err(unknown("the node ended the call before the backup was done".to_owned())),
                Err(status) => return Err(unknown(status.message().to_owned())),
            }
        }
    }

    /// Says when backups are taken and how long they stay. One without a target switches them off.
    pub async fn set_policy(&self, policy: BackupPolicy) -> Result<SetBackupPolicyResponse, Error> {
        let request = SetBackupPolicyRequest { policy: Some(policy) };
        self.client
            .call(Plan::SAFE, |channel| {
                let request = request.clone();
                async move { stub(channel).set_policy(request).await }
            })
            .await
    }

    /// The policy, how the last backups went, and when the next one is due.
    pub async fn status(&self) -> Result<BackupStatusResponse, Error> {
        self.client.call(Plan::READ, |channel| async move { stub(channel).status(BackupStatusRequest {}).await }).await
    }
}
