//! What messages, subscriptions and acknowledgements must look like, and their defaults. Deliberately absent: the
//! state; only the request is looked at.
//!
//! `at` is what stands before the name of a field, such as `messages[3].`; it may be empty.

use std::collections::BTreeSet;

use quorate_proto::v1::{AckItem, AckKind, BusMessage, Overflow, SubscriptionSpec};

use super::subject::{check_pattern, check_subject};
use crate::error::{Error, Outcome, invalid};
use crate::state::{blobs, check_id};

/// The largest payload; what is larger goes beside the log, as a blob.
pub const MAX_PAYLOAD_BYTES: usize = 1_048_576;
/// The highest priority.
pub const MAX_PRIORITY: u32 = 10;
/// The longest time to live and the longest delay of a message: 30 days.
pub const MAX_TTL_MS: u64 = 2_592_000_000;
/// The most entries of a message's metadata.
pub const MAX_METADATA: usize = 32;
/// The longest value in it.
pub const MAX_METADATA_VALUE_BYTES: usize = 1_024;
/// The longest type, order key and trace context.
pub const MAX_TEXT_BYTES: usize = 128;
/// The most patterns of a subscription.
pub const MAX_PATTERNS: usize = 16;
/// How many deliveries may fail if the subscription does not say.
pub const DEFAULT_ATTEMPTS: u32 = 5;
/// How many may fail at most.
pub const MAX_ATTEMPTS: u32 = 100;
/// The pauses after failed deliveries if the subscription does not say.
pub const DEFAULT_BACKOFF_MS: [u64; 5] = [1_000, 2_000, 4_000, 8_000, 16_000];
/// The most different pauses.
pub const MAX_BACKOFFS: usize = 32;
/// The longest pause, and the longest wait for an acknowledgement: a day.
pub const MAX_PAUSE_MS: u64 = 86_400_000;
/// How many messages a subscription keeps if it does not say.
pub const DEFAULT_MAX_MESSAGES: u64 = 1_000_000;
/// How many it may keep at most.
pub const MAX_MESSAGES: u64 = 10_000_000;
/// The longest reason for a failure.
pub const MAX_REASON_BYTES: usize = 1_024;

/// Checks a message as its publisher gives it.
pub(super) fn message(at: &str, message: &BusMessage) -> Outcome<()> {
    check_subject(&format!("{at}subject"), &message.subject)?;
    for (name, id) in [
        ("id", &message.id),
        ("from", &message.from),
        ("to", &message.to),
        ("task_id", &message.task_id),
        ("correlation_id", &message.correlation_id),
    ] {
        if !id.is_empty() {
            check_id(&format!("{at}{name}"), id)?;
        }
    }
    if !message.reply_to.is_empty() {
        check_subject(&format!("{at}reply_to"), &message.reply_to)?;
    }
    for (name, text) in
        [("type", &message.r#type), ("order_key", &message.order_key), ("traceparent", &message.traceparent)]
    {
        at_most(at, name, text.len() as u64, MAX_TEXT_BYTES as u64, " bytes")?;
    }
    at_most(at, "priority", u64::from(message.priority), u64::from(MAX_PRIORITY), "")?;
    at_most(at, "ttl_ms", message.ttl_ms, MAX_TTL_MS, "")?;
    at_most(at, "delay_ms", message.delay_ms, MAX_TTL_MS, "")?;
    content(at, message)?;
    metadata(at, message)?;
    let stamps = [
        ("seq", message.seq),
        ("published_at_ms", message.published_at_ms),
        ("expires_at_ms", message.expires_at_ms),
        ("payload_bytes", message.payload_bytes.into()),
    ];
    match stamps.into_iter().find(|(_, stamp)| *stamp > 0) {
        Some((name, _)) => Err(wrong(at, name, "must be left out: the coordinator sets it")),
        None => Ok(()),
    }
}

fn content(at: &str, message: &BusMessage) -> Outcome<()> {
    at_most(at, "payload", message.payload.len() as u64, MAX_PAYLOAD_BYTES as u64, " bytes")?;
    match &message.blob {
        Some(_) if !message.payload.is_empty() => {
            Err(wrong(at, "blob", "cannot stand beside payload; leave one of them out"))
        }
        Some(blob) => blobs::check_ref(&format!("{at}blob"), blob),
        None => Ok(()),
    }
}

fn metadata(at: &str, message: &BusMessage) -> Outcome<()> {
    at_most(at, "metadata", message.metadata.len() as u64, MAX_METADATA as u64, " entries")?;
    let mut seen = BTreeSet::new();
    for (i, entry) in message.metadata.iter().enumerate() {
        check_id(&format!("{at}metadata[{i}].key"), &entry.key)?;
        if !seen.insert(&entry.key) {
            return Err(wrong(at, &format!("metadata[{i}].key"), &format!("{:?} is there twice", entry.key)));
        }
        let name = format!("metadata[{i}].value");
        at_most(at, &name, entry.value.len() as u64, MAX_METADATA_VALUE_BYTES as u64, " bytes")?;
    }
    Ok(())
}

/// Checks a specification and fills its defaults in, so that two that mean the same are the same.
pub(super) fn spec(spec: Option<SubscriptionSpec>) -> Outcome<SubscriptionSpec> {
    let at = "spec.";
    let mut spec = spec.ok_or_else(|| invalid("spec", "spec must be given"))?;
    check_id("spec.name", &spec.name)?;
    if !(1..=MAX_PATTERNS).contains(&spec.patterns.len()) {
        let got = spec.patterns.len();
        return Err(wrong(at, "patterns", &format!("must be 1 to {MAX_PATTERNS} patterns; got {got}")));
    }
    for (i, pattern) in spec.patterns.iter().enumerate() {
        check_pattern(&format!("spec.patterns[{i}]"), pattern)?;
    }
    spec.patterns.sort();
    spec.patterns.dedup();
    if !spec.session_id.is_empty() {
        check_id("spec.session_id", &spec.session_id)?;
    }
    at_most(at, "max_attempts", u64::from(spec.max_attempts), u64::from(MAX_ATTEMPTS), "")?;
    if spec.max_attempts == 0 {
        spec.max_attempts = DEFAULT_ATTEMPTS;
    }
    at_most(at, "backoff_ms", spec.backoff_ms.len() as u64, MAX_BACKOFFS as u64, " pauses")?;
    for (i, pause) in spec.backoff_ms.iter().enumerate() {
        at_most(at, &format!("backoff_ms[{i}]"), *pause, MAX_PAUSE_MS, "")?;
    }
    if spec.backoff_ms.is_empty() {
        spec.backoff_ms = DEFAULT_BACKOFF_MS.to_vec();
    }
    at_most(at, "ack_wait_ms", spec.ack_wait_ms, MAX_PAUSE_MS, "")?;
    at_most(at, "max_messages", spec.max_messages, MAX_MESSAGES, "")?;
    if spec.max_messages == 0 {
        spec.max_messages = DEFAULT_MAX_MESSAGES;
    }
    spec.overflow = match Overflow::try_from(spec.overflow) {
        Ok(Overflow::Unspecified) if spec.session_id.is_empty() => Overflow::Reject as i32,
        Ok(Overflow::Unspecified) => Overflow::DropOldest as i32,
        Ok(known) => known as i32,
        Err(_) => {
            return Err(wrong(at, "overflow", &format!("must be REJECT or DROP_OLDEST; got {}", spec.overflow)));
        }
    };
    Ok(spec)
}

/// A durable subscription of this name that asks for one subject, and nothing else.
pub(super) fn default_spec(name: &str, subject: &str) -> SubscriptionSpec {
    SubscriptionSpec {
        name: name.to_owned(),
        patterns: vec![subject.to_owned()],
        max_attempts: DEFAULT_ATTEMPTS,
        backoff_ms: DEFAULT_BACKOFF_MS.to_vec(),
        max_messages: DEFAULT_MAX_MESSAGES,
        overflow: Overflow::Reject as i32,
        ..SubscriptionSpec::default()
    }
}

/// Checks what is said of one delivery.
pub(super) fn ack_item(at: &str, item: &AckItem) -> Outcome<()> {
    check_id(&format!("{at}subscription"), &item.subscription)?;
    let kind = match AckKind::try_from(item.kind) {
        Ok(kind) if kind != AckKind::Unspecified => kind,
        _ => return Err(wrong(at, "kind", "must be ACK, NACK, REJECT, RELEASE or EXTEND")),
    };
    at_most(at, "delay_ms", item.delay_ms, MAX_PAUSE_MS, "")?;
    if item.delay_ms > 0 && kind != AckKind::Nack {
        return Err(wrong(at, "delay_ms", "must be left out unless the kind is NACK"));
    }
    at_most(at, "reason", item.reason.len() as u64, MAX_REASON_BYTES as u64, " bytes")?;
    if !item.reason.is_empty() && !matches!(kind, AckKind::Nack | AckKind::Reject) {
        return Err(wrong(at, "reason", "must be left out unless the kind is NACK or REJECT"));
    }
    Ok(())
}

fn at_most(at: &str, name: &str, got: u64, most: u64, unit: &str) -> Outcome<()> {
    if got > most {
        return Err(wrong(at, name, &format!("must be at most {most}{unit}; got {got}")));
    }
    Ok(())
}

fn wrong(at: &str, name: &str, what: &str) -> Error {
    let field = format!("{at}{name}");
    invalid(&field, format!("{field} {what}"))
}

#[cfg(test)]
mod tests {
    use quorate_proto::v1::{BlobRef, KeyValue};

    use super::*;

    fn field<T: std::fmt::Debug>(outcome: Outcome<T>) -> String {
        match outcome {
            Err(Error::Rejected(rejection)) => {
                assert!(!rejection.message.is_empty());
                rejection.field
            }
            other => panic!("not refused: {other:?}"),
        }
    }

    /// The field that a message is refused for.
    fn refused(change: impl FnOnce(&mut BusMessage)) -> String {
        let mut given = BusMessage { subject: "a.b".to_owned(), ..BusMessage::default() };
        message("", &given).expect("a good message");
        change(&mut given);
        field(message("messages[3].", &given)).trim_start_matches("messages[3].").to_owned()
    }

    fn entry(key: &str, value: &str) -> KeyValue {
        KeyValue { key: key.to_owned(), value: value.to_owned() }
    }

    #[test]
    fn each_mistake_of_an_envelope_names_its_field() {
        assert_eq!(refused(|m| m.subject.clear()), "subject");
        assert_eq!(refused(|m| m.subject = "a.*".to_owned()), "subject");
        assert_eq!(refused(|m| m.id = "a b".to_owned()), "id");
        assert_eq!(refused(|m| m.from = "a!".to_owned()), "from");
        assert_eq!(refused(|m| m.to = "x".repeat(129)), "to");
        assert_eq!(refused(|m| m.task_id = "ä".to_owned()), "task_id");
        assert_eq!(refused(|m| m.correlation_id = " ".to_owned()), "correlation_id");
        assert_eq!(refused(|m| m.reply_to = ">".to_owned()), "reply_to");
        assert_eq!(refused(|m| m.r#type = "x".repeat(MAX_TEXT_BYTES + 1)), "type");
        assert_eq!(refused(|m| m.order_key = "x".repeat(MAX_TEXT_BYTES + 1)), "order_key");
        assert_eq!(refused(|m| m.traceparent = "x".repeat(MAX_TEXT_BYTES + 1)), "traceparent");
        assert_eq!(refused(|m| m.priority = MAX_PRIORITY + 1), "priority");
        assert_eq!(refused(|m| m.ttl_ms = MAX_TTL_MS + 1), "ttl_ms");
        assert_eq!(refused(|m| m.delay_ms = MAX_TTL_MS + 1), "delay_ms");
        assert_eq!(refused(|m| m.payload = vec![0_u8; MAX_PAYLOAD_BYTES + 1].into()), "payload");
        assert_eq!(refused(|m| m.metadata = vec![entry("k", ""); MAX_METADATA + 1]), "metadata");
        assert_eq!(refused(|m| m.metadata = vec![entry("k", "1"), entry("k", "2")]), "metadata[1].key");
        assert_eq!(refused(|m| m.metadata = vec![entry("", "")]), "metadata[0].key");
        assert_eq!(refused(|m| m.metadata = vec![entry("k", &"x".repeat(1_025))]), "metadata[0].value");
        assert_eq!(refused(|m| m.seq = 1), "seq");
        assert_eq!(refused(|m| m.published_at_ms = 1), "published_at_ms");
        assert_eq!(refused(|m| m.expires_at_ms = 1), "expires_at_ms");
        assert_eq!(refused(|m| m.payload_bytes = 1), "payload_bytes");
        let both = |m: &mut BusMessage| {
            m.payload = "x".into();
            m.blob = Some(BlobRef::default());
        };
        assert_eq!(refused(both), "blob");
    }

    fn given() -> SubscriptionSpec {
        SubscriptionSpec { name: "s".to_owned(), patterns: vec!["a.b".to_owned()], ..SubscriptionSpec::default() }
    }

    /// The field that a specification is refused for.
    fn refused_spec(change: impl FnOnce(&mut SubscriptionSpec)) -> String {
        let mut given = given();
        change(&mut given);
        field(spec(Some(given)))
    }

    #[test]
    fn each_mistake_of_a_specification_names_its_field() {
        assert_eq!(field(spec(None)), "spec");
        assert_eq!(refused_spec(|s| s.name.clear()), "spec.name");
        assert_eq!(refused_spec(|s| s.patterns.clear()), "spec.patterns");
        assert_eq!(refused_spec(|s| s.patterns = vec!["a".to_owned(); MAX_PATTERNS + 1]), "spec.patterns");
        assert_eq!(refused_spec(|s| s.patterns.push("a..b".to_owned())), "spec.patterns[1]");
        assert_eq!(refused_spec(|s| s.session_id = "a b".to_owned()), "spec.session_id");
        assert_eq!(refused_spec(|s| s.max_attempts = MAX_ATTEMPTS + 1), "spec.max_attempts");
        assert_eq!(refused_spec(|s| s.backoff_ms = vec![1; MAX_BACKOFFS + 1]), "spec.backoff_ms");
        assert_eq!(refused_spec(|s| s.backoff_ms = vec![1, MAX_PAUSE_MS + 1]), "spec.backoff_ms[1]");
        assert_eq!(refused_spec(|s| s.ack_wait_ms = MAX_PAUSE_MS + 1), "spec.ack_wait_ms");
        assert_eq!(refused_spec(|s| s.max_messages = MAX_MESSAGES + 1), "spec.max_messages");
        assert_eq!(refused_spec(|s| s.overflow = 9), "spec.overflow");
    }

    #[test]
    fn defaults_are_filled_in_and_patterns_have_one_order() {
        assert_eq!(spec(Some(given())).expect("a good one"), default_spec("s", "a.b"));
        let patterns = ["b", "a", "b"].map(str::to_owned).to_vec();
        let of_session = SubscriptionSpec { patterns, session_id: "s1".to_owned(), ..given() };
        let of_session = spec(Some(of_session)).expect("a good one");
        assert_eq!((of_session.overflow(), of_session.patterns.len()), (Overflow::DropOldest, 2));
        assert_eq!(spec(Some(of_session.clone())).expect("a good one"), of_session, "checked twice is checked once");
    }

    #[test]
    fn a_delay_belongs_to_a_nack_and_a_reason_to_a_failure() {
        let item = |kind: AckKind| AckItem { subscription: "s".to_owned(), kind: kind as i32, ..AckItem::default() };
        assert_eq!(field(ack_item("items[0].", &item(AckKind::Unspecified))), "items[0].kind");
        assert_eq!(field(ack_item("", &AckItem { delay_ms: 1, ..item(AckKind::Ack) })), "delay_ms");
        assert_eq!(field(ack_item("", &AckItem { delay_ms: MAX_PAUSE_MS + 1, ..item(AckKind::Nack) })), "delay_ms");
        let reason = "busy".to_owned();
        assert_eq!(field(ack_item("", &AckItem { reason: reason.clone(), ..item(AckKind::Release) })), "reason");
        assert!(ack_item("", &AckItem { reason, delay_ms: 1, ..item(AckKind::Nack) }).is_ok());
    }
}
