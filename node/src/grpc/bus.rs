//! The bus: published, subscribed to, acknowledged, looked at. Deliveries go by their own way ([`super::consume`]).

use futures::stream::BoxStream;
use quorate_proto::log::command;
use quorate_proto::v1::bus_server::Bus;
use quorate_proto::v1::{
    AckRequest, AckResponse, BlobRef, ConsumeEvent, ConsumeRequest, GetSubscriptionRequest, GetSubscriptionResponse,
    LeaveRequest, LeaveResponse, ListDeadMessagesRequest, ListDeadMessagesResponse, ListSubscriptionsRequest,
    ListSubscriptionsResponse, PublishRequest, PublishResponse, PurgeDeadRequest, PurgeDeadResponse,
    RedriveDeadRequest, RedriveDeadResponse, SubscribeRequest, SubscribeResponse, Subscription, SubscriptionInfo,
    UnsubscribeRequest, UnsubscribeResponse,
};
use quorate_raft::replica::View;
use quorate_raft::state::bus::{MAX_ACKS, MAX_CREDIT, MAX_PUBLISH};
use quorate_raft::state::check_id;
use tonic::{Request, Response, Status};

use super::{Door, at_most, checked, consume, expect_arm, rows_wanted, status};

const LIST_DEFAULT: usize = 1_000;
const LIST_MAX: usize = 10_000;
const DEAD_DEFAULT: usize = 100;
const DEAD_MAX: usize = 1_000;
/// A page of dead messages ends early at this.
const DEAD_BYTES: usize = 4 << 20;

#[tonic::async_trait]
impl Bus for Door {
    async fn publish(&self, request: Request<PublishRequest>) -> Result<Response<PublishResponse>, Status> {
        let mut request = request.into_inner();
        // Before anything is done for each of them.
        check_count("messages", request.messages.len(), MAX_PUBLISH)?;
        self.core.blobs.ensure_all(&blobs_of("", &request)).await?;
        let body = self.propose(request.request.take(), command::Body::Publish(request)).await?;
        Ok(self.respond(expect_arm!(Publish, body)?))
    }

    async fn subscribe(&self, request: Request<SubscribeRequest>) -> Result<Response<SubscribeResponse>, Status> {
        let mut request = request.into_inner();
        let spec = request.spec.as_ref().ok_or_else(|| status::invalid("spec", "spec must be given"))?;
        checked(check_id("spec.name", &spec.name))?;
        let body = self.propose(request.request.take(), command::Body::Subscribe(request)).await?;
        Ok(self.respond(expect_arm!(Subscribe, body)?))
    }

    async fn unsubscribe(&self, request: Request<UnsubscribeRequest>) -> Result<Response<UnsubscribeResponse>, Status> {
        let mut request = request.into_inner();
        checked(check_id("name", &request.name))?;
        let body = self.propose(request.request.take(), command::Body::Unsubscribe(request)).await?;
        Ok(self.respond(expect_arm!(Unsubscribe, body)?))
    }

    type ConsumeStream = BoxStream<'static, Result<ConsumeEvent, Status>>;

    async fn consume(&self, request: Request<ConsumeRequest>) -> Result<Response<Self::ConsumeStream>, Status> {
        let mut request = request.into_inner();
        checked(check_id("subscription", &request.subscription))?;
        checked(check_id("session_id", &request.session_id))?;
        if request.consumer_id.is_empty() {
            request.consumer_id.clone_from(&request.session_id);
        }
        checked(check_id("consumer_id", &request.consumer_id))?;
        at_most("credit", request.credit, MAX_CREDIT as usize)?;
        let events = consume::join(self.clone(), request).await?;
        Ok(self.respond(Box::pin(events) as Self::ConsumeStream))
    }

    async fn leave(&self, request: Request<LeaveRequest>) -> Result<Response<LeaveResponse>, Status> {
        let mut request = request.into_inner();
        checked(check_id("subscription", &request.subscription))?;
        checked(check_id("session_id", &request.session_id))?;
        let body = self.propose(request.request.take(), command::Body::Leave(request)).await?;
        Ok(self.respond(expect_arm!(Leave, body)?))
    }

    async fn ack(&self, request: Request<AckRequest>) -> Result<Response<AckResponse>, Status> {
        let mut request = request.into_inner();
        check_count("items", request.items.len(), MAX_ACKS)?;
        let body = self.propose(request.request.take(), command::Body::Ack(request)).await?;
        Ok(self.respond(expect_arm!(Ack, body)?))
    }

    async fn list_subscriptions(
        &self,
        request: Request<ListSubscriptionsRequest>,
    ) -> Result<Response<ListSubscriptionsResponse>, Status> {
        let request = request.into_inner();
        let limit = rows_wanted("limit", request.limit, LIST_DEFAULT, LIST_MAX)?;
        let response = self
            .read(request.consistency(), |view| {
                let subscriptions = view.rooms.bus.subscriptions(&request.after, limit).into_iter();
                let subscriptions = subscriptions.map(|subscription| info(&view, subscription)).collect();
                Ok(ListSubscriptionsResponse { subscriptions, rev: view.head.rev })
            })
            .await?;
        Ok(self.respond(response))
    }

    async fn get_subscription(
        &self,
        request: Request<GetSubscriptionRequest>,
    ) -> Result<Response<GetSubscriptionResponse>, Status> {
        let request = request.into_inner();
        checked(check_id("name", &request.name))?;
        let found = self
            .read(request.consistency(), |view| {
                let Some(subscription) = view.rooms.bus.subscription(&request.name) else { return Ok(None) };
                let info = Some(info(&view, subscription));
                Ok(Some(GetSubscriptionResponse { info, rev: view.head.rev }))
            })
            .await?;
        found
            .map(|response| self.respond(response))
            .ok_or_else(|| status::missing("name", format!("no subscription {:?} exists", request.name)))
    }

    async fn list_dead(
        &self,
        request: Request<ListDeadMessagesRequest>,
    ) -> Result<Response<ListDeadMessagesResponse>, Status> {
        let request = request.into_inner();
        let ListDeadMessagesRequest { subscription, after_seq, without_payloads, .. } = &request;
        if !subscription.is_empty() {
            checked(check_id("subscription", subscription))?;
        } else if *after_seq > 0 {
            // It would be the first page over and over.
            return Err(status::invalid(
                "after_seq",
                "after_seq goes with one subscription; name it, or leave both out",
            ));
        }
        let limit = rows_wanted("limit", request.limit, DEAD_DEFAULT, DEAD_MAX)?;
        let response = self
            .read(request.consistency(), |view| {
                let bus = &view.rooms.bus;
                let messages = bus.dead(view.rows, subscription, *after_seq, limit, DEAD_BYTES, *without_payloads)?;
                Ok(ListDeadMessagesResponse { messages, total: bus.dead_total(subscription), rev: view.head.rev })
            })
            .await?;
        Ok(self.respond(response))
    }

    async fn redrive_dead(
        &self,
        request: Request<RedriveDeadRequest>,
    ) -> Result<Response<RedriveDeadResponse>, Status> {
        let mut request = request.into_inner();
        checked(check_id("subscription", &request.subscription))?;
        let body = self.propose(request.request.take(), command::Body::RedriveDead(request)).await?;
        Ok(self.respond(expect_arm!(RedriveDead, body)?))
    }

    async fn purge_dead(&self, request: Request<PurgeDeadRequest>) -> Result<Response<PurgeDeadResponse>, Status> {
        let mut request = request.into_inner();
        checked(check_id("subscription", &request.subscription))?;
        let body = self.propose(request.request.take(), command::Body::PurgeDead(request)).await?;
        Ok(self.respond(expect_arm!(PurgeDead, body)?))
    }
}

/// What is published beside the log, each with the field that refers to it: the request itself is `at`.
pub(super) fn blobs_of(at: &str, request: &PublishRequest) -> Vec<(String, BlobRef)> {
    let messages = request.messages.iter().enumerate();
    messages.filter_map(|(i, message)| Some((format!("{at}messages[{i}].blob"), message.blob.clone()?))).collect()
}

/// At least one of them, and not too many.
pub(super) fn check_count(field: &str, got: usize, most: usize) -> Result<(), Status> {
    if (1..=most).contains(&got) {
        return Ok(());
    }
    Err(status::invalid(field, format!("{field} must be 1 to {most}; got {got}")))
}

fn info(view: &View<'_>, subscription: &Subscription) -> SubscriptionInfo {
    let name = subscription.spec.as_ref().map_or("", |spec| spec.name.as_str());
    let bus = &view.rooms.bus;
    SubscriptionInfo {
        stats: Some(bus.stats(name)),
        counts: Some(bus.counts(name)),
        subscription: Some(subscription.clone()),
    }
}
