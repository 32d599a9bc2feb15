//! Dead messages: what subscriptions gave up on. Look at them, put them back, or throw them away.

use quorate_proto::v1::{
    ListDeadMessagesRequest, ListDeadMessagesResponse, PurgeDeadRequest, PurgeDeadResponse, RedriveDeadRequest,
    RedriveDeadResponse,
};

use super::{Bus, stub};
use crate::call::Plan;
use crate::error::Error;
use crate::requests::{identify, judged, plan};
use crate::sessions::Session;

impl Bus {
    /// A page of the messages that a subscription gave up on, oldest first; of every subscription if none is named.
    pub async fn dead(&self, request: ListDeadMessagesRequest) -> Result<ListDeadMessagesResponse, Error> {
        self.client
            .call(Plan::READ, |channel| {
                let request = request.clone();
                async move { stub(channel).list_dead(request).await }
            })
            .await
    }

    /// Puts dead messages back into their subscription, as if new: these, or without any the oldest 1,024. Without a
    /// session, a call of unknown outcome is not repeated.
    pub async fn redrive_dead(
        &self,
        session: Option<&Session>,
        subscription: &str,
        seqs: Vec<u64>,
    ) -> Result<RedriveDeadResponse, Error> {
        let mut request = RedriveDeadRequest { subscription: subscription.to_owned(), seqs, request: None };
        let _under_way = identify(&mut request.request, session);
        let outcome = self
            .client
            .call_in_full(plan(request.request.as_ref()), |channel| {
                let request = request.clone();
                async move { stub(channel).redrive_dead(request).await }
            })
            .await;
        judged(outcome, session.is_some())
    }

    /// Throws dead messages away for good: these, or without any the oldest 1,024. Without a session, a call of unknown
    /// outcome is not repeated.
    pub async fn purge_dead(
        &self,
        session: Option<&Session>,
        subscription: &str,
        seqs: Vec<u64>,
    ) -> Result<PurgeDeadResponse, Error> {
        let mut request = PurgeDeadRequest { subscription: subscription.to_owned(), seqs, request: None };
        let _under_way = identify(&mut request.request, session);
        let outcome = self
            .client
            .call_in_full(plan(request.request.as_ref()), |channel| {
                let request = request.clone();
                async move { stub(channel).purge_dead(request).await }
            })
            .await;
        judged(outcome, session.is_some())
    }
}
