//! Messages and subscriptions, as JSON.

use quorate_client::v1::{
    BusMessage, Consumer, DeadMessage, DeliveryFailure, Overflow, Subscription, SubscriptionInfo,
};
use serde_json::{Value, json};

use super::{blob, bytes, name, pairs, time};

/// `drop_oldest`, for example.
pub(crate) fn overflow(value: i32) -> String {
    name(Overflow::try_from(value).map(|known| known.as_str_name()).ok(), "OVERFLOW_", value)
}

/// A message with what it carries, which may come from beside the log.
pub(crate) fn message(message: &BusMessage, payload: &[u8]) -> Value {
    json!({
        "seq": message.seq,
        "id": message.id,
        "subject": message.subject,
        "from": message.from,
        "to": message.to,
        "task_id": message.task_id,
        "type": message.r#type,
        "payload": bytes(payload),
        "blob": message.blob.as_ref().map(blob),
        "correlation_id": message.correlation_id,
        "reply_to": message.reply_to,
        "priority": message.priority,
        "order_key": message.order_key,
        "traceparent": message.traceparent,
        "headers": pairs(&message.metadata),
        "published_at_ms": time(message.published_at_ms),
        "expires_at_ms": time(message.expires_at_ms),
    })
}

/// What a subscription gave up on. An event says so without the message.
pub(crate) fn dead(dead: &DeadMessage) -> Value {
    json!({
        "subscription": dead.subscription,
        "seq": dead.seq,
        "reason": dead.reason,
        "failures": dead.failures.iter().map(failure).collect::<Vec<_>>(),
        "dead_at_ms": time(dead.dead_at_ms),
        "message": dead.message.as_ref().map(|carried| message(carried, &carried.payload)),
    })
}

fn failure(failure: &DeliveryFailure) -> Value {
    json!({
        "attempt": failure.attempt,
        "at_ms": time(failure.at_ms),
        "consumer_id": failure.consumer_id,
        "reason": failure.reason,
    })
}

/// What a subscription is.
pub(crate) fn subscription(subscription: &Subscription) -> Value {
    let spec = subscription.spec.clone().unwrap_or_default();
    json!({
        "name": spec.name,
        "patterns": spec.patterns,
        "session_id": spec.session_id,
        "max_attempts": spec.max_attempts,
        "backoff_ms": spec.backoff_ms,
        "ack_wait_ms": time(spec.ack_wait_ms),
        "max_messages": spec.max_messages,
        "overflow": overflow(spec.overflow),
        "drop_dead": spec.drop_dead,
        "created_at_ms": time(subscription.created_at_ms),
        "created_rev": subscription.created_rev,
        "removing": subscription.removing,
    })
}

/// A subscription with what is in it now, and what it has seen since it was created.
pub(crate) fn subscription_info(info: &SubscriptionInfo) -> Value {
    let (stats, counts) = (info.stats.clone().unwrap_or_default(), info.counts.unwrap_or_default());
    let mut view = super::object(subscription(&info.subscription.clone().unwrap_or_default()));
    view.extend(super::object(json!({
        "totals": {
            "published": counts.published,
            "acked": counts.acked,
            "redelivered": counts.redelivered,
            "dead": counts.dead,
            "expired": counts.expired,
            "dropped": counts.dropped,
        },
        "waiting": stats.waiting,
        "delayed": stats.delayed,
        "in_flight": stats.in_flight,
        "dead": stats.dead,
        "consumers": stats.consumers.iter().map(consumer).collect::<Vec<_>>(),
    })));
    Value::Object(view)
}

fn consumer(consumer: &Consumer) -> Value {
    json!({
        "consumer_id": consumer.consumer_id,
        "session_id": consumer.session_id,
        "credit": consumer.credit,
        "in_flight": consumer.in_flight,
        "since_ms": time(consumer.since_ms),
    })
}

#[cfg(test)]
mod tests {
    use quorate_client::v1::{SubscriptionCounts, SubscriptionSpec, SubscriptionStats};

    use super::*;

    #[test]
    fn a_message_shows_what_it_carries() {
        let sent = BusMessage { seq: 7, subject: "a.b".into(), r#type: "note".into(), ..BusMessage::default() };
        let view = message(&sent, b"{\"n\": 1}");
        assert_eq!(
            (&view["subject"], &view["type"], &view["payload"]["n"]),
            (&json!("a.b"), &json!("note"), &json!(1))
        );
        let given_up = DeadMessage { message: Some(sent), seq: 7, reason: "no".into(), ..DeadMessage::default() };
        let view = dead(&given_up);
        assert_eq!(
            (&view["seq"], &view["reason"], &view["message"]["subject"]),
            (&json!(7), &json!("no"), &json!("a.b"))
        );
        assert!(dead(&DeadMessage { message: None, ..given_up })["message"].is_null(), "an event brings no message");
    }

    #[test]
    fn what_died_ever_is_not_what_is_dead_now() {
        let spec = SubscriptionSpec {
            name: "work".into(),
            overflow: Overflow::DropOldest as i32,
            ..SubscriptionSpec::default()
        };
        let subscription = Some(Subscription { spec: Some(spec), ..Subscription::default() });
        let stats = Some(SubscriptionStats { dead: 2, ..SubscriptionStats::default() });
        let counts = Some(SubscriptionCounts { dead: 9, ..SubscriptionCounts::default() });
        let view = subscription_info(&SubscriptionInfo { subscription, stats, counts });
        assert_eq!((&view["dead"], &view["totals"]["dead"]), (&json!(2), &json!(9)));
        assert_eq!(view["overflow"], "drop_oldest");
    }
}
