//! Retry profiles: retry policies that tasks name instead of spelling them out.

use quorate_proto::v1::retries_client::RetriesClient;
use quorate_proto::v1::{
    DeleteRetryProfileRequest, DeleteRetryProfileResponse, ListRetryProfilesRequest, ListRetryProfilesResponse,
    RetryPolicy, SetRetryProfileRequest, SetRetryProfileResponse,
};

use crate::call::Plan;
use crate::client::Client;
use crate::error::Error;

/// The named retry policies.
#[derive(Debug, Clone)]
pub struct Retries {
    pub(crate) client: Client,
}

impl Retries {
    /// Defines a profile, or replaces one, a built-in one included.
    pub async fn set(&self, name: &str, policy: RetryPolicy) -> Result<SetRetryProfileResponse, Error> {
        let request = SetRetryProfileRequest { name: name.to_owned(), policy: Some(policy), request: None };
        self.client
            .call(Plan::SAFE, |channel| {
                let request = request.clone();
                async move { RetriesClient::new(channel).set_profile(request).await }
            })
            .await
    }

    /// Removes a profile; a built-in one goes back to what it was.
    pub async fn delete(&self, name: &str) -> Result<DeleteRetryProfileResponse, Error> {
        let request = DeleteRetryProfileRequest { name: name.to_owned(), request: None };
        let outcome = self
            .client
            .call_in_full(Plan::SAFE, |channel| {
                let request = request.clone();
                async move { RetriesClient::new(channel).delete_profile(request).await }
            })
            .await;
        match outcome.result {
            // An attempt whose outcome is not known may have removed it.
            Err(error) if outcome.doubt && error.is_not_found() => Ok(DeleteRetryProfileResponse::default()),
            result => result,
        }
    }

    /// Every profile, by name.
    pub async fn list(&self) -> Result<ListRetryProfilesResponse, Error> {
        self.client
            .call(Plan::READ, |channel| async move {
                RetriesClient::new(channel).list_profiles(ListRetryProfilesRequest::default()).await
            })
            .await
    }
}
