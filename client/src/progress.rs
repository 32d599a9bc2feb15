//! Progress: how far the work is, what milestones it reached, and how it stood minute by minute.

use quorate_proto::v1::progress_client::ProgressClient;
use quorate_proto::v1::{
    CheckpointsRequest, CheckpointsResponse, HistoryRequest, HistoryResponse, ProjectsRequest, ProjectsResponse,
};

use crate::call::Plan;
use crate::channels::Channel;
use crate::client::Client;
use crate::error::Error;

/// The roll-ups.
#[derive(Debug, Clone)]
pub struct Progress {
    pub(crate) client: Client,
}

/// A plan of many features is a large message.
fn stub(channel: Channel) -> ProgressClient<Channel> {
    ProgressClient::new(channel).max_decoding_message_size(crate::MAX_MESSAGE_BYTES * 4)
}

impl Progress {
    /// Every project with its epics and features, or the one of this name.
    pub async fn projects(&self, project: &str) -> Result<ProjectsResponse, Error> {
        let request = ProjectsRequest { project: project.to_owned(), consistency: 0 };
        self.client
            .call(Plan::READ, |channel| {
                let request = request.clone();
                async move { stub(channel).projects(request).await }
            })
            .await
    }

    /// Milestones of all projects or of one, newest first. A limit of 0 means 100; at most 1,000.
    pub async fn checkpoints(&self, project: &str, limit: u32) -> Result<CheckpointsResponse, Error> {
        let request = CheckpointsRequest { project: project.to_owned(), limit, consistency: 0 };
        self.client
            .call(Plan::READ, |channel| {
                let request = request.clone();
                async move { stub(channel).checkpoints(request).await }
            })
            .await
    }

    /// Samples of the past, oldest first.
    pub async fn history(&self, request: HistoryRequest) -> Result<HistoryResponse, Error> {
        self.client.call(Plan::READ, move |channel| async move { stub(channel).history(request).await }).await
    }
}
