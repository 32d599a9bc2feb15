//! The bus: publish, subscribe, consume, ask and answer.
//!
//! ```text
//!  consumer ── the stream of one consumer: opened again whenever it breaks
//!    ├── inbox     what came and was not seen before, until it is handed out
//!    ├── delivery  one message under its token
//!    └── acks      what is said of deliveries, many in one call
//!  requests ── questions and their answers, by correlation id
//!  dead     ── what subscriptions gave up on
//! ```
//!
//! Deliberately absent: exactly-once processing. What is delivered twice says so (`attempt`), and an effect that must not
//! happen twice goes into the transaction that acknowledges its cause ([`Transaction`](crate::Transaction)).

mod acks;
mod consumer;
mod dead;
mod delivery;
mod inbox;
mod requests;

use bytes::Bytes;
use quorate_proto::v1::bus_client::BusClient;
use quorate_proto::v1::{
    BusMessage, GetSubscriptionRequest, GetSubscriptionResponse, ListSubscriptionsRequest, ListSubscriptionsResponse,
    PublishRequest, PublishResponse, Published, SubscribeRequest, SubscribeResponse, SubscriptionSpec,
    UnsubscribeRequest, UnsubscribeResponse,
};

use crate::call::Plan;
use crate::channels::Channel;
use crate::client::{Client, new_id};
use crate::error::Error;
use crate::requests::{identify, judged, removed};
use crate::sessions::Session;
use crate::tasks::check_size;

pub use consumer::{Consumer, ConsumerBuilder};
pub use delivery::Delivery;
pub(crate) use delivery::Ending;
pub use requests::Requester;

/// The largest payload that a message carries itself.
const INLINE_BYTES: usize = 1 << 20;

/// What is said.
#[derive(Debug, Clone)]
pub struct Bus {
    pub(crate) client: Client,
}

fn stub(channel: Channel) -> BusClient<Channel> {
    BusClient::new(channel)
        .max_decoding_message_size(crate::MAX_MESSAGE_BYTES * 4)
        .max_encoding_message_size(crate::MAX_MESSAGE_BYTES)
}

impl Bus {
    /// Publishes one message; it is on disk on a majority when this returns. A payload that is too large for the log goes
    /// beside it.
    ///
    /// With a session or a message id a resend publishes nothing twice (after one, `duplicate` may speak of this very
    /// call). Without either, a call of unknown outcome is not repeated.
    pub async fn publish(&self, session: Option<&Session>, message: BusMessage) -> Result<Published, Error> {
        let request = PublishRequest { messages: vec![message], ..PublishRequest::default() };
        let published = self.publish_all(session, request).await?.published.pop();
        published.ok_or_else(|| Error::OutcomeUnknown { message: "the answer names no message".to_owned() })
    }

    /// Publishes all of the messages or none, with every option. Repeated as [`Bus::publish`] is, if all of them have an
    /// id or there is a session.
    pub async fn publish_all(
        &self,
        session: Option<&Session>,
        mut request: PublishRequest,
    ) -> Result<PublishResponse, Error> {
        for message in &mut request.messages {
            offload(&self.client, message).await?;
        }
        let _under_way = identify(&mut request.request, session);
        check_size(&request)?;
        let identified = request.request.is_some();
        let outcome = self
            .client
            .call_in_full(plan(&request), |channel| {
                let request = request.clone();
                async move { stub(channel).publish(request).await }
            })
            .await;
        judged(outcome, identified)
    }

    /// Answers a message: to its `reply_to`, with its correlation id, task and trace carried along. `Config`: it asks for
    /// no answer.
    pub async fn reply<'a>(
        &self,
        session: impl Into<Option<&'a Session>>,
        to: &BusMessage,
        payload: impl Into<Bytes>,
    ) -> Result<Published, Error> {
        self.publish(session.into(), answer_to(to, payload.into())?).await
    }

    /// Sends a task to an agent's own queue, `agent.{id}.tasks`, which is created if the agent has not come yet. Returns
    /// the correlation id that its answer will carry: the message's own, or a drawn one.
    pub async fn send_task<'a>(
        &self,
        session: impl Into<Option<&'a Session>>,
        agent_id: &str,
        message: BusMessage,
    ) -> Result<String, Error> {
        let session: Option<&Session> = session.into();
        let request = task_for(agent_id, message);
        let correlation_id = request.messages.first().map(|task| task.correlation_id.clone()).unwrap_or_default();
        self.publish_all(session, request).await?;
        Ok(correlation_id)
    }

    /// What a message carries, from beside the log if it lies there. Not found: no node that can be reached has it.
    pub async fn payload(&self, message: &BusMessage) -> Result<Bytes, Error> {
        match &message.blob {
            Some(blob) => self.client.blobs().get(blob).await,
            None => Ok(message.payload.clone()),
        }
    }

    /// Creates a subscription, or finds it as it is. What was published before is not delivered. `Rejected` with
    /// `ALREADY_EXISTS`: it is another one.
    pub async fn subscribe(&self, spec: SubscriptionSpec) -> Result<SubscribeResponse, Error> {
        self.subscribe_with(spec, false).await
    }

    /// As [`Bus::subscribe`]; with `replace`, one that exists gets the new specification and keeps its messages.
    pub async fn subscribe_with(&self, spec: SubscriptionSpec, replace: bool) -> Result<SubscribeResponse, Error> {
        let request = SubscribeRequest { spec: Some(spec), replace, request: None };
        self.client
            .call(Plan::SAFE, |channel| {
                let request = request.clone();
                async move { stub(channel).subscribe(request).await }
            })
            .await
    }

    /// Removes a subscription with what waits in it and with its dead messages.
    pub async fn unsubscribe(&self, name: &str) -> Result<UnsubscribeResponse, Error> {
        let request = UnsubscribeRequest { name: name.to_owned(), request: None };
        let outcome = self
            .client
            .call_in_full(Plan::SAFE, |channel| {
                let request = request.clone();
                async move { stub(channel).unsubscribe(request).await }
            })
            .await;
        removed(outcome)
    }

    /// Begins to consume a subscription: `bus.consume(&session, "builds").credit(4).start()`. The consumers of one
    /// subscription share its messages.
    pub fn consume(&self, session: &Session, subscription: impl Into<String>) -> ConsumerBuilder {
        ConsumerBuilder::new(self.clone(), session.clone(), subscription.into())
    }

    /// One subscription and how it stands.
    pub async fn subscription(&self, name: &str) -> Result<GetSubscriptionResponse, Error> {
        let request = GetSubscriptionRequest { name: name.to_owned(), consistency: 0 };
        self.client
            .call(Plan::READ, |channel| {
                let request = request.clone();
                async move { stub(channel).get_subscription(request).await }
            })
            .await
    }

    /// A page of the subscriptions, by name.
    pub async fn subscriptions(&self, request: ListSubscriptionsRequest) -> Result<ListSubscriptionsResponse, Error> {
        self.client
            .call(Plan::READ, |channel| {
                let request = request.clone();
                async move { stub(channel).list_subscriptions(request).await }
            })
            .await
    }
}

/// Ids of the messages protect as the request's own does, for ten minutes: longer than any call takes.
fn plan(request: &PublishRequest) -> Plan {
    let all_named = request.messages.iter().all(|message| !message.id.is_empty());
    if request.request.is_some() || all_named { Plan::SAFE } else { Plan::UNSAFE }
}

/// Puts what is too large for the log beside it.
pub(crate) async fn offload(client: &Client, message: &mut BusMessage) -> Result<(), Error> {
    if message.payload.len() > INLINE_BYTES {
        message.blob = Some(client.blobs().put(std::mem::take(&mut message.payload)).await?);
    }
    Ok(())
}

fn answer_to(to: &BusMessage, payload: Bytes) -> Result<BusMessage, Error> {
    if to.reply_to.is_empty() {
        return Err(Error::Config { message: "the message asks for no answer: its reply_to is empty".to_owned() });
    }
    Ok(BusMessage {
        // An answer is worth sending again, and who gets it twice takes it once.
        id: new_id("m"),
        subject: to.reply_to.clone(),
        from: to.to.clone(),
        to: to.from.clone(),
        task_id: to.task_id.clone(),
        payload,
        correlation_id: to.correlation_id.clone(),
        traceparent: to.traceparent.clone(),
        ..BusMessage::default()
    })
}

fn task_for(agent_id: &str, mut message: BusMessage) -> PublishRequest {
    let subject = format!("agent.{agent_id}.tasks");
    message.subject = subject.clone();
    if message.to.is_empty() {
        message.to = agent_id.to_owned();
    }
    if message.correlation_id.is_empty() {
        message.correlation_id = new_id("c");
    }
    PublishRequest { messages: vec![message], ensure_subscription: subject, ..PublishRequest::default() }
}

#[cfg(test)]
mod tests {
    use quorate_proto::v1::RequestId;

    use super::*;
    use crate::call::Repeat;

    fn named(ids: &[&str]) -> PublishRequest {
        let messages = ids.iter().map(|id| BusMessage { id: (*id).to_owned(), ..BusMessage::default() });
        PublishRequest { messages: messages.collect(), ..PublishRequest::default() }
    }

    #[test]
    fn what_would_be_published_twice_is_not_sent_again() {
        assert_eq!(plan(&named(&["a", ""])).repeat, Repeat::Unsafe);
        assert_eq!(plan(&named(&["a", "b"])).repeat, Repeat::Safe);
        let identified = PublishRequest { request: Some(RequestId::default()), ..named(&["a", ""]) };
        assert_eq!(plan(&identified).repeat, Repeat::Safe);
    }

    #[test]
    fn an_answer_goes_back_with_what_ties_it_to_the_question() {
        let question = BusMessage {
            from: "asker".to_owned(),
            to: "agent".to_owned(),
            task_id: "t".to_owned(),
            correlation_id: "c-1".to_owned(),
            reply_to: "reply.s".to_owned(),
            traceparent: "00-1".to_owned(),
            ..BusMessage::default()
        };
        let answer = answer_to(&question, "yes".into()).unwrap();
        assert_eq!((answer.subject.as_str(), answer.correlation_id.as_str()), ("reply.s", "c-1"));
        assert_eq!((answer.from.as_str(), answer.to.as_str()), ("agent", "asker"));
        assert_eq!((answer.task_id.as_str(), answer.traceparent.as_str()), ("t", "00-1"));
        assert!(!answer.id.is_empty(), "it may be sent again");
        let statement = BusMessage { reply_to: String::new(), ..question };
        assert!(matches!(answer_to(&statement, Bytes::new()), Err(Error::Config { .. })));
    }

    #[test]
    fn a_task_waits_for_an_agent_that_has_not_come_yet() {
        let request = task_for("coder-1", BusMessage::default());
        assert_eq!(request.ensure_subscription, "agent.coder-1.tasks");
        let task = &request.messages[0];
        assert_eq!((task.subject.as_str(), task.to.as_str()), ("agent.coder-1.tasks", "coder-1"));
        assert!(!task.correlation_id.is_empty());
        let own = BusMessage { correlation_id: "mine".to_owned(), ..BusMessage::default() };
        assert_eq!(task_for("coder-1", own).messages[0].correlation_id, "mine");
    }
}
