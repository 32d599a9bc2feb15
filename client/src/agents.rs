//! Agents: register, look for, watch.

use futures::{Stream, TryStreamExt};
use quorate_proto::v1::agents_client::AgentsClient;
use quorate_proto::v1::{
    AgentEvent, AgentFilter, DeregisterAgentRequest, DeregisterAgentResponse, DrainAgentRequest, DrainAgentResponse,
    FindAgentsRequest, FindAgentsResponse, GetAgentRequest, GetAgentResponse, RegisterAgentRequest,
    RegisterAgentResponse, ReportAgentRequest, ReportAgentResponse, WatchAgentsRequest,
};

use crate::call::{Outcome, Plan};
use crate::channels::Channel;
use crate::client::Client;
use crate::error::Error;
use crate::sessions::Session;

/// The registry.
#[derive(Debug, Clone)]
pub struct Agents {
    pub(crate) client: Client,
}

fn stub(channel: Channel) -> AgentsClient<Channel> {
    AgentsClient::new(channel)
        .max_decoding_message_size(crate::MAX_MESSAGE_BYTES)
        .max_encoding_message_size(crate::MAX_MESSAGE_BYTES)
}

/// A removal that finds nothing to remove, after an attempt of unknown outcome, finds that attempt's work.
fn removed<T: Default>(outcome: Outcome<T>) -> Result<T, Error> {
    match outcome.result {
        Err(error) if outcome.doubt && error.is_not_found() => Ok(T::default()),
        result => result,
    }
}

impl Agents {
    /// Creates or updates the agent and ties it to the session.
    pub async fn register(
        &self,
        session: &Session,
        mut request: RegisterAgentRequest,
    ) -> Result<RegisterAgentResponse, Error> {
        request.session_id = session.id().to_owned();
        let under_way = request.request.is_none().then(|| session.begin());
        if let Some(under_way) = &under_way {
            request.request = Some(under_way.id());
        }
        self.client
            .call(Plan::SAFE, |channel| {
                let request = request.clone();
                async move { stub(channel).register(request).await }
            })
            .await
    }

    /// Reports health, status or reason.
    pub async fn report(&self, request: ReportAgentRequest) -> Result<ReportAgentResponse, Error> {
        self.client
            .call(Plan::SAFE, |channel| {
                let request = request.clone();
                async move { stub(channel).report(request).await }
            })
            .await
    }

    /// No new claims from now on; the agent is removed when its last task has ended.
    pub async fn drain(&self, agent_id: &str) -> Result<DrainAgentResponse, Error> {
        let request = DrainAgentRequest { agent_id: agent_id.to_owned(), request: None };
        let outcome = self
            .client
            .call_in_full(Plan::SAFE, |channel| {
                let request = request.clone();
                async move { stub(channel).drain(request).await }
            })
            .await;
        removed(outcome)
    }

    /// Removes the agent now; what it had claimed returns to the queue.
    pub async fn deregister(&self, agent_id: &str) -> Result<DeregisterAgentResponse, Error> {
        let request = DeregisterAgentRequest { agent_id: agent_id.to_owned(), request: None };
        let outcome = self
            .client
            .call_in_full(Plan::SAFE, |channel| {
                let request = request.clone();
                async move { stub(channel).deregister(request).await }
            })
            .await;
        removed(outcome)
    }

    /// One agent, with what it does and did last.
    pub async fn get(&self, agent_id: &str) -> Result<GetAgentResponse, Error> {
        let request = GetAgentRequest { agent_id: agent_id.to_owned(), consistency: 0 };
        self.client
            .call(Plan::READ, |channel| {
                let request = request.clone();
                async move { stub(channel).get(request).await }
            })
            .await
    }

    /// By capability and filters, least loaded first.
    pub async fn find(&self, request: FindAgentsRequest) -> Result<FindAgentsResponse, Error> {
        self.client
            .call(Plan::READ, |channel| {
                let request = request.clone();
                async move { stub(channel).find(request).await }
            })
            .await
    }

    /// The matching agents as they are, then every change. The stream ends when its node does; watch again then.
    pub fn watch(&self, filter: AgentFilter) -> impl Stream<Item = Result<AgentEvent, Error>> + Send + 'static {
        let client = self.client.clone();
        let request = WatchAgentsRequest { filter: Some(filter) };
        let open = async move {
            let events = client
                .call(Plan::READ, |channel| {
                    let request = request.clone();
                    async move { stub(channel).watch(request).await }
                })
                .await?;
            Ok(events.map_err(|status| Error::Unavailable {
                message: "the watch was cut off".to_owned(),
                last: status.message().to_owned(),
            }))
        };
        futures::stream::once(open).try_flatten()
    }
}

#[cfg(test)]
mod tests {
    use quorate_proto::v1::RejectionCode;
    use tokio::time::Instant;

    use super::*;

    fn not_found(doubt: bool) -> Outcome<DrainAgentResponse> {
        let (code, field) = (RejectionCode::NotFound, "agent_id".to_owned());
        let result = Err(Error::Rejected { code, field, message: "no such agent".to_owned() });
        Outcome { result, sent: Instant::now(), doubt, node: None }
    }

    #[test]
    fn a_removal_that_may_have_happened_and_finds_nothing_has_happened() {
        assert!(removed(not_found(false)).unwrap_err().is_not_found());
        assert_eq!(removed(not_found(true)).unwrap(), DrainAgentResponse::default());
    }
}
