//! Dispatch: limits, shares, the order of bands, the routing table.

use quorate_proto::v1::dispatch_client::DispatchClient;
use quorate_proto::v1::{
    DeleteLimitRequest, DeleteLimitResponse, DispatchPolicy, ExplainRouteRequest, ExplainRouteResponse,
    GetDispatchPolicyRequest, GetDispatchPolicyResponse, GetRoutesRequest, GetRoutesResponse, LimitScope,
    ListLimitsRequest, ListLimitsResponse, ListSharesRequest, ListSharesResponse, RejectionCode, RoutingTable,
    SetDispatchPolicyRequest, SetDispatchPolicyResponse, SetLimitRequest, SetLimitResponse, SetRoutesRequest,
    SetRoutesResponse, SetShareRequest, SetShareResponse,
};

use crate::call::{Outcome, Plan};
use crate::channels::Channel;
use crate::client::Client;
use crate::error::Error;

/// What decides whose turn it is.
#[derive(Debug, Clone)]
pub struct Dispatch {
    pub(crate) client: Client,
}

fn stub(channel: Channel) -> DispatchClient<Channel> {
    DispatchClient::new(channel)
        .max_decoding_message_size(crate::MAX_MESSAGE_BYTES)
        .max_encoding_message_size(crate::MAX_MESSAGE_BYTES)
}

/// A limit that is not there, after an attempt of unknown outcome, was lifted by that attempt.
fn lifted(outcome: Outcome<DeleteLimitResponse>) -> Result<DeleteLimitResponse, Error> {
    match outcome.result {
        Err(error) if outcome.doubt && error.is_not_found() => Ok(DeleteLimitResponse::default()),
        result => result,
    }
}

/// Another version than expected, after an attempt of unknown outcome, may be that attempt's own.
fn replaced(outcome: Outcome<SetRoutesResponse>) -> Result<SetRoutesResponse, Error> {
    match outcome.result {
        Err(Error::Rejected { code: RejectionCode::FailedPrecondition, message, .. }) if outcome.doubt => {
            Err(Error::OutcomeUnknown { message: format!("{message}, it may be the one that was sent") })
        }
        result => result,
    }
}

impl Dispatch {
    /// At most `max` tasks run at once under this key. The name is empty for the total.
    pub async fn set_limit(&self, scope: LimitScope, name: &str, max: u32) -> Result<SetLimitResponse, Error> {
        let request = SetLimitRequest { scope: scope as i32, name: name.to_owned(), max, request: None };
        self.client
            .call(Plan::SAFE, |channel| {
                let request = request.clone();
                async move { stub(channel).set_limit(request).await }
            })
            .await
    }

    /// No limit under this key any more.
    pub async fn delete_limit(&self, scope: LimitScope, name: &str) -> Result<DeleteLimitResponse, Error> {
        let request = DeleteLimitRequest { scope: scope as i32, name: name.to_owned(), request: None };
        let outcome = self
            .client
            .call_in_full(Plan::SAFE, |channel| {
                let request = request.clone();
                async move { stub(channel).delete_limit(request).await }
            })
            .await;
        lifted(outcome)
    }

    /// Every limit, with what runs and waits under it.
    pub async fn limits(&self) -> Result<ListLimitsResponse, Error> {
        let request = ListLimitsRequest { consistency: 0 };
        self.client.call(Plan::READ, |channel| async move { stub(channel).list_limits(request).await }).await
    }

    /// Gives a share this weight against the others.
    pub async fn set_share(&self, name: &str, weight: u32) -> Result<SetShareResponse, Error> {
        let request = SetShareRequest { name: name.to_owned(), weight, request: None };
        self.client
            .call(Plan::SAFE, |channel| {
                let request = request.clone();
                async move { stub(channel).set_share(request).await }
            })
            .await
    }

    /// Every share that has work or a weight of its own.
    pub async fn shares(&self) -> Result<ListSharesResponse, Error> {
        let request = ListSharesRequest { consistency: 0 };
        self.client.call(Plan::READ, |channel| async move { stub(channel).list_shares(request).await }).await
    }

    /// Replaces the policy.
    pub async fn set_policy(&self, policy: DispatchPolicy) -> Result<SetDispatchPolicyResponse, Error> {
        let request = SetDispatchPolicyRequest { policy: Some(policy), request: None };
        self.client
            .call(Plan::SAFE, |channel| {
                let request = request.clone();
                async move { stub(channel).set_policy(request).await }
            })
            .await
    }

    /// The policy in force.
    pub async fn policy(&self) -> Result<GetDispatchPolicyResponse, Error> {
        let request = GetDispatchPolicyRequest { consistency: 0 };
        self.client.call(Plan::READ, |channel| async move { stub(channel).get_policy(request).await }).await
    }

    /// Replaces the routing table; with `if_version`, only if that is still the current one.
    pub async fn set_routes(&self, table: RoutingTable, if_version: Option<u64>) -> Result<SetRoutesResponse, Error> {
        let request = SetRoutesRequest { table: Some(table), if_version, request: None };
        let outcome = self
            .client
            .call_in_full(Plan::SAFE, |channel| {
                let request = request.clone();
                async move { stub(channel).set_routes(request).await }
            })
            .await;
        replaced(outcome)
    }

    /// The routing table in force.
    pub async fn routes(&self) -> Result<GetRoutesResponse, Error> {
        let request = GetRoutesRequest { consistency: 0 };
        self.client.call(Plan::READ, |channel| async move { stub(channel).get_routes(request).await }).await
    }

    /// Which agent type a task with this text would get, and why.
    pub async fn explain_route(
        &self,
        title: &str,
        description: &str,
        epic: &str,
    ) -> Result<ExplainRouteResponse, Error> {
        let (title, description, epic) = (title.to_owned(), description.to_owned(), epic.to_owned());
        let request = ExplainRouteRequest { title, description, epic, consistency: 0 };
        self.client
            .call(Plan::READ, |channel| {
                let request = request.clone();
                async move { stub(channel).explain_route(request).await }
            })
            .await
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    fn refused<T>(code: RejectionCode, doubt: bool) -> Outcome<T> {
        let result = Err(Error::Rejected { code, field: String::new(), message: "no".to_owned() });
        Outcome { result, sent: Instant::now(), doubt, node: None }
    }

    #[test]
    fn a_limit_that_may_have_been_lifted_and_is_not_there_was_lifted() {
        assert!(lifted(refused(RejectionCode::NotFound, false)).unwrap_err().is_not_found());
        assert_eq!(lifted(refused(RejectionCode::NotFound, true)).unwrap(), DeleteLimitResponse::default());
    }

    #[test]
    fn a_table_that_may_have_been_replaced_by_this_very_call_is_not_called_refused() {
        let plain = replaced(refused(RejectionCode::FailedPrecondition, false));
        assert!(matches!(plain, Err(Error::Rejected { .. })), "{plain:?}");
        let doubtful = replaced(refused(RejectionCode::FailedPrecondition, true));
        assert!(matches!(doubtful, Err(Error::OutcomeUnknown { .. })), "{doubtful:?}");
    }
}
