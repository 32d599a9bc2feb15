//! Dead messages: found, redriven, purged. One is named by its subscription and its number in it.

use quorate_client::Error;
use quorate_client::v1::{BusMessage, DeadMessage, ListDeadMessagesRequest};
use serde_json::{Value, json};

use super::in_part;
use crate::cli::exit::Failure;
use crate::cli::output::{age, facts, now_ms, or_dash, short, table};
use crate::cli::task::Paging;
use crate::cli::{Context, view};

/// The most that one command takes.
const MOST_AT_ONCE: usize = 1_024;

/// Dead messages, without their payloads.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) messages: Vec<DeadMessage>,
    /// How many there are where these were found.
    pub(super) total: u64,
    rev: u64,
}

impl Found {
    pub(super) fn views(&self) -> Value {
        Value::Array(self.messages.iter().map(view::dead).collect())
    }

    pub(super) fn json(&self) -> Value {
        json!({ "messages": self.views(), "messages_total": self.total, "rev": self.rev })
    }
}

/// `mail/1042` as the subscription and the number.
pub(super) fn named(text: &str) -> Option<(&str, u64)> {
    let (subscription, seq) = text.rsplit_once('/')?;
    if subscription.is_empty() { None } else { Some((subscription, seq.parse().ok()?)) }
}

/// Those of a subscription, or of all if it is empty, oldest first. Of all of them one page at most: only within a
/// subscription there is a next one.
pub(super) async fn find(context: &Context, subscription: &str, paging: &Paging) -> Result<Found, Failure> {
    let mut found = Found::default();
    let mut after_seq = 0;
    while let Some(limit) = paging.next_limit(found.messages.len()) {
        let request = ListDeadMessagesRequest {
            subscription: subscription.to_owned(),
            after_seq,
            limit,
            without_payloads: true,
            ..ListDeadMessagesRequest::default()
        };
        let page = context.client.bus().dead(request).await?;
        (found.total, found.rev) = (page.total, page.rev);
        let last = page.messages.last().map(|dead| dead.seq);
        found.messages.extend(page.messages);
        match last {
            Some(seq) if !subscription.is_empty() && (found.messages.len() as u64) < found.total => after_seq = seq,
            _ => break,
        }
    }
    let left = found.total.saturating_sub(found.messages.len() as u64);
    if left > 0 {
        context.out.note(&format!("{left} more messages are dead: --messages --subscription NAME --all"));
    }
    Ok(found)
}

/// One of them, with what it carries.
pub(super) async fn show(context: &Context, subscription: &str, seq: u64) -> Result<(), Failure> {
    let request = ListDeadMessagesRequest {
        subscription: subscription.to_owned(),
        after_seq: seq.saturating_sub(1),
        limit: 1,
        ..ListDeadMessagesRequest::default()
    };
    let page = context.client.bus().dead(request).await?;
    let dead = page.messages.into_iter().find(|dead| dead.seq == seq);
    let dead = dead.ok_or_else(|| Failure::not_found(format!("{subscription} has no dead message {seq}")))?;
    context.out.show(|| json!({ "dead": view::dead(&dead), "rev": page.rev }), || dead_facts(&dead))
}

/// Back into their subscription; without numbers, all that are dead now.
pub(super) async fn redrive(context: &Context, subscription: &str, numbers: &[String]) -> Result<(), Failure> {
    let bus = context.client.bus();
    let seqs = parse(numbers)?;
    let swept = sweep(context, subscription, &seqs, "redriven", async |seqs: Vec<u64>| {
        let answer = bus.redrive_dead(None, subscription, seqs).await?;
        Ok::<_, Error>(Step { done: answer.redriven, left: answer.left, rev: answer.rev })
    });
    swept.await?.show(context, "redriven")
}

/// Removes them; without numbers, all that are dead now, if that is what is meant.
pub(super) async fn purge(context: &Context, subscription: &str, numbers: &[String], yes: bool) -> Result<(), Failure> {
    if numbers.is_empty() && !yes {
        return Err(Failure::bad_input(format!("name the messages, or say --yes for all of {subscription}")));
    }
    let bus = context.client.bus();
    let seqs = parse(numbers)?;
    let swept = sweep(context, subscription, &seqs, "purged", async |seqs: Vec<u64>| {
        let answer = bus.purge_dead(None, subscription, seqs).await?;
        Ok::<_, Error>(Step { done: answer.purged, left: answer.left, rev: answer.rev })
    });
    swept.await?.show(context, "purged")
}

fn parse(numbers: &[String]) -> Result<Vec<u64>, Failure> {
    let number = |text: &String| {
        text.parse::<u64>()
            .map_err(|_| Failure::bad_input(format!("expected the number of a dead message; got {text}")))
    };
    numbers.iter().map(number).collect()
}

/// What one call did.
#[derive(Debug, Default)]
struct Step {
    done: u64,
    /// Still dead in the subscription.
    left: u64,
    rev: u64,
}

/// What all calls did.
#[derive(Debug, Default)]
struct Swept {
    done: u64,
    left: u64,
    rev: u64,
    /// Of those that were named.
    not_done: usize,
}

impl Swept {
    fn add(&mut self, step: &Step) {
        self.done += step.done;
        (self.left, self.rev) = (step.left, step.rev);
    }

    fn show(&self, context: &Context, what: &str) -> Result<(), Failure> {
        context.out.show(
            || json!({ what: self.done, "left": self.left, "rev": self.rev }),
            || format!("{} {what}, {} left", self.done, self.left),
        )?;
        match self.not_done {
            0 => Ok(()),
            count => Err(Failure::failed(format!("{count} not {what}: the subscription has no room for more"))),
        }
    }
}

/// Call by call, since each takes so many and so much only.
async fn sweep(
    context: &Context,
    subscription: &str,
    seqs: &[u64],
    what: &str,
    call: impl AsyncFn(Vec<u64>) -> Result<Step, Error>,
) -> Result<Swept, Failure> {
    if !seqs.is_empty() {
        return sweep_named(seqs, what, call).await;
    }
    let asked = ListDeadMessagesRequest {
        subscription: subscription.to_owned(),
        limit: 1,
        without_payloads: true,
        ..ListDeadMessagesRequest::default()
    };
    let total = context.client.bus().dead(asked).await?.total;
    sweep_all(total, what, call).await
}

/// Those that are named, in their order: a call that takes fewer than it was given took the first of them.
async fn sweep_named(
    seqs: &[u64],
    what: &str,
    call: impl AsyncFn(Vec<u64>) -> Result<Step, Error>,
) -> Result<Swept, Failure> {
    let mut swept = Swept::default();
    let mut left = seqs;
    while !left.is_empty() {
        let some = &left[..left.len().min(MOST_AT_ONCE)];
        let step = call(some.to_vec()).await.map_err(|error| in_part(error, swept.done, what))?;
        swept.add(&step);
        let done = usize::try_from(step.done).unwrap_or(usize::MAX).min(some.len());
        if done == 0 {
            break;
        }
        left = &left[done..];
    }
    Ok(Swept { not_done: left.len(), ..swept })
}

/// The oldest, as many as there were at the beginning: what is redriven may die again, and would be found for ever.
async fn sweep_all(
    total: u64,
    what: &str,
    call: impl AsyncFn(Vec<u64>) -> Result<Step, Error>,
) -> Result<Swept, Failure> {
    let mut swept = Swept::default();
    while swept.done < total {
        let step = call(Vec::new()).await.map_err(|error| in_part(error, swept.done, what))?;
        swept.add(&step);
        if step.done == 0 || step.left == 0 {
            break;
        }
    }
    Ok(swept)
}

/// Dead messages as rows.
pub(super) fn message_table(messages: &[DeadMessage]) -> String {
    let now = now_ms();
    let header = ["message", "subject", "attempts", "died", "reason"];
    table(header, messages.iter().map(|dead| message_row(dead, now)).collect(), "no dead messages")
}

fn message_row(dead: &DeadMessage, now_ms: u64) -> [String; 5] {
    let subject = dead.message.as_ref().map(|message| message.subject.as_str()).unwrap_or_default();
    [
        format!("{}/{}", dead.subscription, dead.seq),
        or_dash(subject),
        // Not how many there are: only the last ones are kept.
        dead.failures.last().map_or(0, |failure| failure.attempt).to_string(),
        age(dead.dead_at_ms, now_ms),
        short(&or_dash(&dead.reason), 60),
    ]
}

fn dead_facts(dead: &DeadMessage) -> String {
    let now = now_ms();
    let message = dead.message.clone().unwrap_or_default();
    let facts = facts(vec![
        ("message", format!("{}/{}", dead.subscription, dead.seq)),
        ("died", format!("{} ago", age(dead.dead_at_ms, now))),
        ("reason", dead.reason.clone()),
        ("published", format!("{} ago", age(message.published_at_ms, now))),
        ("payload", short(&payload(&message), 400)),
        ("headers", view::pairs_line(&message.metadata)),
        ("priority", view::priority(message.priority)),
        ("subject", message.subject),
        ("id", message.id),
        ("type", message.r#type),
        ("from", message.from),
        ("to", message.to),
        ("task", message.task_id),
        ("key", message.order_key),
        ("correlation", message.correlation_id),
        ("reply to", message.reply_to),
    ]);
    let rows = dead.failures.iter().map(|failure| {
        [
            failure.attempt.to_string(),
            or_dash(&failure.consumer_id),
            format!("{} ago", age(failure.at_ms, now)),
            short(&or_dash(&failure.reason), 80),
        ]
    });
    format!("{facts}\n{}", table(["attempt", "consumer", "failed", "reason"], rows.collect(), "no attempt failed"))
}

fn payload(message: &BusMessage) -> String {
    match &message.blob {
        Some(blob) => format!("{} bytes beside the log", blob.size_bytes),
        None => view::bytes_line(&message.payload),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use quorate_client::v1::DeliveryFailure;

    use super::*;

    #[test]
    fn a_message_is_named_by_its_subscription_and_its_number() {
        assert_eq!(named("mail/1042"), Some(("mail", 1_042)));
        assert_eq!(named("agent/a1/7"), Some(("agent/a1", 7)));
        for other in ["mail", "/7", "mail/", "mail/x", "review/fix-7", "mail/-1"] {
            assert_eq!(named(other), None, "{other}");
        }
        assert!(parse(&["7".to_owned(), "8".to_owned()]).is_ok_and(|seqs| seqs == [7, 8]));
        assert_eq!(parse(&["mail/7".to_owned()]).unwrap_err().code(), 2);
    }

    #[tokio::test]
    async fn those_that_are_named_are_done_in_their_order_until_there_is_no_room() {
        let seqs: Vec<u64> = (1..=2_000).collect();
        let firsts = Cell::new(Vec::new());
        let room = Cell::new(1_500_u64);
        let swept = sweep_named(&seqs, "redriven", async |some: Vec<u64>| {
            let mut seen = firsts.take();
            seen.push(some[0]);
            firsts.set(seen);
            let done = room.get().min(some.len() as u64);
            room.set(room.get() - done);
            Ok::<_, Error>(Step { done, left: 9, rev: 7 })
        });
        let swept = swept.await.unwrap();
        assert_eq!((swept.done, swept.not_done, swept.left), (1_500, 500, 9));
        assert_eq!(firsts.take(), [1, 1_025, 1_501]);
    }

    #[tokio::test]
    async fn what_dies_again_meanwhile_is_not_found_for_ever() {
        let calls = Cell::new(0);
        let swept = sweep_all(2_500, "redriven", async |_: Vec<u64>| {
            calls.set(calls.get() + 1);
            Ok::<_, Error>(Step { done: 1_024, left: 2_500, rev: 7 })
        });
        assert_eq!((swept.await.unwrap().done, calls.get()), (3_072, 3));
        let once = async |_: Vec<u64>| Ok::<_, Error>(Step { done: 3, left: 0, rev: 7 });
        let all = sweep_all(3, "purged", once).await.unwrap();
        assert_eq!((all.done, all.left), (3, 0));
    }

    #[test]
    fn a_dead_message_shows_what_it_carried_and_why_it_died() {
        let message =
            BusMessage { seq: 7, subject: "mail.out".into(), payload: "hello".into(), ..BusMessage::default() };
        let failure = DeliveryFailure { attempt: 1, reason: "no route".into(), ..DeliveryFailure::default() };
        let dead = DeadMessage {
            subscription: "mail".into(),
            message: Some(message),
            reason: "5 attempts".into(),
            failures: vec![failure],
            dead_at_ms: 1_000,
            seq: 7,
        };
        assert_eq!(message_row(&dead, 6_000), ["mail/7", "mail.out", "1", "5.0s", "5 attempts"].map(str::to_owned));
        let text = dead_facts(&dead);
        assert!(text.contains("hello") && text.contains("no route"), "{text}");
    }
}
