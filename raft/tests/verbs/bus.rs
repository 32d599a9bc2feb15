//! The verbs of scripts about the bus.
//!
//! ```text
//! publish SUBJECT… text=t id=i priority=n key=k ttl=ms delay=ms n=copies payload_bytes=n must_match=1 ensure=NAME
//!         from=a seq=n       one message a subject; with n= that many of each, numbered
//! subscribe NAME patterns=a.*,b.> session=s attempts=n backoff=1,2 wait=ms max=n overflow=reject|drop_oldest
//!           drop_dead=1 replace=1
//! unsubscribe NAME
//! consume NAME session=s id=c credit=n       leave NAME session=s id=c
//! ack NAME SEQ… token=n kind=ack|nack|reject|release|extend delay=ms reason=r
//! redrive_dead NAME SEQ…       purge_dead NAME SEQ…
//! subscription NAME    subscriptions after=n limit=n    standing NAME    holds NAME CONSUMER    delivered
//! dead_messages [NAME] after=seq limit=n bare=1    dead_total [NAME]    message_totals
//! ```
//!
//! A token is the rev of the command that assigned: the number of commands up to there, reads left out. A delivery is
//! shown as its number, `@` and its token.

use bytes::Bytes;
use quorate_proto::log::{answer, command};
use quorate_proto::v1::{
    AckItem, AckKind, AckRequest, BusMessage, ConsumeRequest, DeadMessage, Delivery, LeaveRequest, Overflow,
    PublishRequest, Published, PurgeDeadRequest, RedriveDeadRequest, SubscribeRequest, Subscription,
    SubscriptionCounts, SubscriptionSpec, SubscriptionStats, UnsubscribeRequest,
};
use quorate_raft::apply::Machine;
use quorate_raft::effect::Effect;
use quorate_raft::state::bus::{DEFAULT_ATTEMPTS, DEFAULT_BACKOFF_MS, DEFAULT_MAX_MESSAGES};

use super::Line;

/// The command that a line stands for.
pub(crate) fn body(line: &Line<'_>) -> Option<command::Body> {
    use command::Body as B;
    let name = line.id();
    Some(match line.verb {
        "publish" => B::Publish(PublishRequest {
            messages: line.plain.iter().flat_map(|subject| messages(line, subject)).collect(),
            must_match: line.number("must_match", 0) > 0,
            ensure_subscription: line.text("ensure"),
            request: None,
        }),
        "subscribe" => B::Subscribe(SubscribeRequest {
            spec: Some(spec(line)),
            replace: line.number("replace", 0) > 0,
            request: None,
        }),
        "unsubscribe" => B::Unsubscribe(UnsubscribeRequest { name, request: None }),
        "consume" => B::Consume(ConsumeRequest {
            subscription: name,
            session_id: line.text("session"),
            consumer_id: line.text("id"),
            credit: line.small("credit", 0),
        }),
        "leave" => B::Leave(LeaveRequest {
            subscription: name,
            consumer_id: line.text("id"),
            session_id: line.text("session"),
            request: None,
        }),
        "ack" => B::Ack(AckRequest { items: seqs(line).map(|seq| item(line, seq)).collect(), request: None }),
        "redrive_dead" => {
            B::RedriveDead(RedriveDeadRequest { subscription: name, seqs: seqs(line).collect(), request: None })
        }
        "purge_dead" => {
            B::PurgeDead(PurgeDeadRequest { subscription: name, seqs: seqs(line).collect(), request: None })
        }
        _ => return None,
    })
}

fn messages(line: &Line<'_>, subject: &str) -> Vec<BusMessage> {
    let copies = line.number("n", 1);
    let of = |copy: u64| {
        let text = if copies > 1 { format!("{}{copy}", line.text("text")) } else { line.text("text") };
        let payload = match line.number("payload_bytes", 0) {
            0 => Bytes::from(text),
            size => Bytes::from(vec![b'x'; usize::try_from(size).unwrap()]),
        };
        BusMessage {
            id: line.text("id"),
            subject: subject.to_owned(),
            from: line.text("from"),
            payload,
            priority: line.small("priority", 0),
            order_key: line.text("key"),
            ttl_ms: line.number("ttl", 0),
            delay_ms: line.number("delay", 0),
            seq: line.number("seq", 0),
            ..BusMessage::default()
        }
    };
    (1..=copies).map(of).collect()
}

fn spec(line: &Line<'_>) -> SubscriptionSpec {
    let overflow = match line.text("overflow").as_str() {
        "reject" => Overflow::Reject,
        "drop_oldest" => Overflow::DropOldest,
        _ => Overflow::Unspecified,
    };
    SubscriptionSpec {
        name: line.id(),
        patterns: line.list("patterns"),
        session_id: line.text("session"),
        max_attempts: line.small("attempts", 0),
        backoff_ms: line.list("backoff").iter().map(|pause| pause.parse().unwrap()).collect(),
        ack_wait_ms: line.number("wait", 0),
        max_messages: line.number("max", 0),
        overflow: overflow as i32,
        drop_dead: line.number("drop_dead", 0) > 0,
    }
}

/// The numbers after the name.
fn seqs(line: &Line<'_>) -> impl Iterator<Item = u64> {
    line.plain.iter().skip(1).map(|seq| seq.parse().unwrap())
}

fn item(line: &Line<'_>, seq: u64) -> AckItem {
    let kind = match line.text("kind").as_str() {
        "" | "ack" => AckKind::Ack,
        "nack" => AckKind::Nack,
        "reject" => AckKind::Reject,
        "release" => AckKind::Release,
        "extend" => AckKind::Extend,
        _ => AckKind::Unspecified,
    };
    AckItem {
        subscription: line.id(),
        seq,
        token: line.number("token", 0),
        kind: kind as i32,
        delay_ms: line.number("delay", 0),
        reason: line.text("reason"),
    }
}

/// How an answer is shown.
pub(crate) fn show(body: &answer::Body) -> Option<String> {
    use answer::Body as B;
    Some(match body {
        B::Publish(r) => all_published(&r.published),
        B::Subscribe(r) => {
            let existed = if r.existed { " existed" } else { "" };
            format!("{}{existed}", subscription(r.subscription.as_ref().unwrap(), SubscriptionCounts::default()))
        }
        B::Unsubscribe(_) => "removed".to_owned(),
        B::Consume(_) => "ok".to_owned(),
        B::Leave(r) => format!("released={}", r.released),
        B::Ack(r) if r.stale.is_empty() => "ok".to_owned(),
        B::Ack(r) => format!("stale={}", joined(r.stale.iter().map(ToString::to_string), ",")),
        B::RedriveDead(r) => format!("redriven={} left={}", r.redriven, r.left),
        B::PurgeDead(r) => format!("purged={} left={}", r.purged, r.left),
        _ => return None,
    })
}

/// What a line that is no command reads.
pub(crate) fn read(machine: &Machine, _now_ms: u64, line: &Line<'_>) -> Option<String> {
    let (bus, rows) = (&machine.rooms().bus, &machine.rows);
    let name = line.id();
    let limit = usize::try_from(line.number("limit", 100)).unwrap();
    Some(match line.verb {
        "subscription" => bus.subscription(&name).map_or("none".to_owned(), |row| subscription(row, bus.counts(&name))),
        "subscriptions" => {
            let all = bus.subscriptions(&line.text("after"), limit);
            joined(all.into_iter().map(|row| row.spec.as_ref().unwrap().name.clone()), " ")
        }
        "standing" => standing(&bus.stats(&name)),
        "holds" => {
            let held = bus.held(&name, line.plain.get(1).copied().unwrap_or_default());
            let deliveries =
                held.iter().map(|(seq, token)| bus.delivery(rows, &name, *seq, *token).unwrap().expect("it is held"));
            joined(deliveries.map(|held| delivery(&held)), "\n")
        }
        "delivered" => joined(machine.effects().filter_map(effect), " "),
        "dead_messages" => {
            let bare = line.number("bare", 0) > 0;
            let dead = bus.dead(rows, &name, line.number("after", 0), limit, 1 << 22, bare).unwrap();
            joined(dead.iter().map(dead_message), "\n")
        }
        "dead_total" => bus.dead_total(&name).to_string(),
        "message_totals" => match bus.totals() {
            (0, 0) => "nothing".to_owned(),
            (0, bytes) => format!("{bytes} bytes of nothing"),
            (messages, _) => format!("{messages} messages"),
        },
        _ => return None,
    })
}

/// Runs of numbers with the same fate are shown as one.
fn all_published(published: &[Published]) -> String {
    let goes_on = |a: &Published, b: &Published| {
        !a.duplicate && !b.duplicate && a.matched > 0 && a.matched == b.matched && a.seq + 1 == b.seq
    };
    let shown = published.chunk_by(goes_on).map(|run| match run {
        [first, .., last] => format!("{}-{} to {}", first.seq, last.seq, last.matched),
        run => run.iter().map(one_published).collect(),
    });
    joined(shown, ", ")
}

fn one_published(one: &Published) -> String {
    match one {
        Published { duplicate: true, seq, .. } => format!("{seq} duplicate"),
        Published { matched: 0, .. } => "to nobody".to_owned(),
        Published { matched, seq, .. } => format!("{seq} to {matched}"),
    }
}

fn subscription(row: &Subscription, counts: SubscriptionCounts) -> String {
    let spec = row.spec.as_ref().unwrap();
    let mut shown = format!("{} {}", spec.name, spec.patterns.join(","));
    if !spec.session_id.is_empty() {
        shown.push_str(&format!(" session={}", spec.session_id));
    }
    if spec.backoff_ms != DEFAULT_BACKOFF_MS {
        shown.push_str(&format!(" backoff={}", joined(spec.backoff_ms.iter().map(ToString::to_string), ",")));
    }
    for (name, number, usual) in [
        ("attempts", u64::from(spec.max_attempts), u64::from(DEFAULT_ATTEMPTS)),
        ("wait", spec.ack_wait_ms, 0),
        ("max", spec.max_messages, DEFAULT_MAX_MESSAGES),
        ("published", counts.published, 0),
        ("acked", counts.acked, 0),
        ("redelivered", counts.redelivered, 0),
        ("dead", counts.dead, 0),
        ("expired", counts.expired, 0),
        ("dropped", counts.dropped, 0),
    ] {
        if number != usual {
            shown.push_str(&format!(" {name}={number}"));
        }
    }
    for (said, word) in [
        (spec.overflow() == Overflow::DropOldest, "drop_oldest"),
        (spec.drop_dead, "drop_dead"),
        (row.removing, "removing"),
    ] {
        if said {
            shown.push_str(&format!(" {word}"));
        }
    }
    shown
}

fn standing(stats: &SubscriptionStats) -> String {
    let counts =
        [("waiting", stats.waiting), ("delayed", stats.delayed), ("in_flight", stats.in_flight), ("dead", stats.dead)];
    let counts = counts.into_iter().filter(|(_, n)| *n > 0).map(|(name, n)| format!("{name}={n}"));
    let consumers = stats.consumers.iter().map(|c| format!("{}:{}/{}", c.consumer_id, c.in_flight, c.credit));
    joined(counts.chain(consumers), " ")
}

fn delivery(delivery: &Delivery) -> String {
    let message = delivery.message.as_ref().unwrap();
    let mut shown = format!("{}@{} {}", message.seq, delivery.token, String::from_utf8_lossy(&message.payload));
    if delivery.attempt > 1 {
        shown.push_str(&format!(" attempt={}", delivery.attempt));
    }
    if delivery.deadline_ms > 0 {
        shown.push_str(&format!(" deadline={}", delivery.deadline_ms));
    }
    shown
}

fn effect(effect: &Effect) -> Option<String> {
    Some(match effect {
        Effect::Delivered { subscription, consumer_id, seq, token } => {
            format!("{subscription}/{consumer_id}:{seq}@{token}")
        }
        Effect::DeliveryGone { subscription, consumer_id, seq, token } => {
            format!("{subscription}/{consumer_id}:-{seq}@{token}")
        }
        Effect::ConsumerGone { subscription, consumer_id } => format!("{subscription}/{consumer_id}:gone"),
        Effect::BusLeft => "left".to_owned(),
        _ => return None,
    })
}

fn dead_message(dead: &DeadMessage) -> String {
    let message = dead.message.as_ref().unwrap();
    let payload = match (message.payload.len(), message.payload_bytes) {
        (0, left_out @ 1..) => format!("({left_out} bytes)"),
        _ => String::from_utf8_lossy(&message.payload).into_owned(),
    };
    let failures = dead.failures.iter().map(|failure| {
        format!(" {}@{}:{}:{}", failure.attempt, failure.at_ms, failure.consumer_id, failure.reason.replace(' ', "_"))
    });
    let failures: String = failures.collect();
    format!("{} {} {payload} at={} {:?}{failures}", dead.subscription, message.seq, dead.dead_at_ms, dead.reason)
}

fn joined(all: impl Iterator<Item = String>, between: &str) -> String {
    let all: Vec<String> = all.collect();
    if all.is_empty() { "nothing".to_owned() } else { all.join(between) }
}
