//! Subscriptions as rows, and one as facts.

use quorate_client::v1::SubscriptionInfo;

use crate::cli::output::{age, facts, now_ms, or_dash, span, table};
use crate::cli::view;

pub(super) fn subscription_table(subscriptions: &[SubscriptionInfo]) -> String {
    let header = ["name", "patterns", "waiting", "delayed", "in flight", "dead", "consumers", "stays"];
    table(header, subscriptions.iter().map(row).collect(), "no subscriptions")
}

fn row(info: &SubscriptionInfo) -> [String; 8] {
    let stats = info.stats.clone().unwrap_or_default();
    let subscription = info.subscription.clone().unwrap_or_default();
    let spec = subscription.spec.unwrap_or_default();
    let stays = match spec.session_id.as_str() {
        _ if subscription.removing => "is being removed".to_owned(),
        "" => "until deleted".to_owned(),
        session => format!("with {session}"),
    };
    [
        spec.name,
        spec.patterns.join(" "),
        stats.waiting.to_string(),
        stats.delayed.to_string(),
        stats.in_flight.to_string(),
        stats.dead.to_string(),
        stats.consumers.len().to_string(),
        stays,
    ]
}

pub(super) fn subscription_facts(info: &SubscriptionInfo) -> String {
    let now = now_ms();
    let [name, patterns, waiting, delayed, in_flight, dead, _, stays] = row(info);
    let subscription = info.subscription.clone().unwrap_or_default();
    let counts = info.counts.unwrap_or_default();
    let spec = subscription.spec.unwrap_or_default();
    let pauses: Vec<String> = spec.backoff_ms.iter().map(|ms| span(*ms)).collect();
    let ack_wait = if spec.ack_wait_ms == 0 { "as long as it likes".to_owned() } else { span(spec.ack_wait_ms) };
    let shown = facts(vec![
        ("name", name),
        ("patterns", patterns),
        ("stays", stays),
        ("waiting", waiting),
        ("delayed", delayed),
        ("in flight", in_flight),
        ("dead", if spec.drop_dead { "not kept".to_owned() } else { dead }),
        ("attempts", format!("{}, with pauses of {}", spec.max_attempts, pauses.join(", "))),
        ("a delivery may take", ack_wait),
        ("keeps", format!("{} messages, then: {}", spec.max_messages, view::overflow(spec.overflow))),
        ("created", format!("{} ago", age(subscription.created_at_ms, now))),
        ("published so far", counts.published.to_string()),
        ("acknowledged", counts.acked.to_string()),
        ("delivered again", counts.redelivered.to_string()),
        ("died", counts.dead.to_string()),
        ("expired", counts.expired.to_string()),
        ("dropped", counts.dropped.to_string()),
    ]);
    format!("{shown}\n{}", consumer_table(info, now))
}

fn consumer_table(info: &SubscriptionInfo, now_ms: u64) -> String {
    let consumers = info.stats.as_ref().map(|stats| stats.consumers.as_slice()).unwrap_or_default();
    let rows = consumers.iter().map(|consumer| {
        [
            consumer.consumer_id.clone(),
            or_dash(&consumer.session_id),
            format!("{}/{}", consumer.in_flight, consumer.credit),
            age(consumer.since_ms, now_ms),
        ]
    });
    table(["consumer", "session", "in flight", "since"], rows.collect(), "nobody consumes it")
}

#[cfg(test)]
mod tests {
    use quorate_client::v1::{Consumer, Subscription, SubscriptionCounts, SubscriptionSpec, SubscriptionStats};

    use super::*;

    #[test]
    fn a_subscription_shows_what_is_in_it_and_who_takes_it() {
        let spec =
            SubscriptionSpec { name: "work".into(), patterns: vec!["a".into(), "b".into()], ..Default::default() };
        let subscription = Subscription { spec: Some(spec), ..Subscription::default() };
        let consumer = Consumer { consumer_id: "c1".into(), credit: 4, in_flight: 2, ..Consumer::default() };
        let stats = SubscriptionStats { waiting: 3, consumers: vec![consumer], ..SubscriptionStats::default() };
        let counts = Some(SubscriptionCounts { redelivered: 7_041, ..SubscriptionCounts::default() });
        let info = SubscriptionInfo { subscription: Some(subscription.clone()), stats: Some(stats), counts };
        assert_eq!(row(&info), ["work", "a b", "3", "0", "0", "0", "1", "until deleted"].map(str::to_owned));
        let text = subscription_facts(&info);
        assert!(text.contains("2/4") && text.contains("as long as it likes") && text.contains("7041"), "{text}");
        let removing = Subscription { removing: true, ..subscription };
        let removing = SubscriptionInfo { subscription: Some(removing), ..SubscriptionInfo::default() };
        assert_eq!(row(&removing)[7], "is being removed");
    }
}
