//! One message from flags: published, or asked and answered.
//!
//! A message without an id gets one, so that a call that is repeated publishes nothing twice.

use std::time::Duration;

use clap::Args;
use quorate_client::Session;
use quorate_client::v1::{BusMessage, KeyValue, PublishRequest, Published};
use serde_json::json;
use uuid::Uuid;

use crate::cli::exit::Failure;
use crate::cli::signals::Signals;
use crate::cli::{Context, held, submit, values, view};

pub(super) const PUB_EXAMPLES: &str = "\
EXAMPLES:
  quorate bus pub agent.a1.tasks 'look at issue 812' --ensure-subscription agent.a1.tasks
      kept for an agent that has not come yet
  quorate bus pub mail.out --file letter.json --type letter --header lang=de --must-match
      refused if nobody subscribes to it
  quorate bus pub jobs.scan '{\"repo\": \"web\"}' --key repo:web --priority high --ttl 1h
      after those of the same key that came before, before others of less priority, and not after an hour
  make report | quorate bus pub reports.daily --file - --id \"report-$(date +%F)\"
      published once, however often this runs within ten minutes";

pub(super) const REQUEST_EXAMPLES: &str = "\
EXAMPLES:
  quorate bus request questions.weather 'Berlin?' --timeout 5s
      prints the answer as it came; exit code 1 if there is none in time, or nobody listens
  quorate bus request agent.a1.tasks --file task.json -o json
      the answer with all that is known of it";

const DEFAULT_WAIT: Duration = Duration::from_secs(30);

/// What a message says, and how.
#[derive(Args)]
pub(super) struct MessageArgs {
    /// What it is about: tokens of letters, digits, _ and -, divided by dots
    #[arg(value_name = "SUBJECT")]
    subject: String,
    /// What it says; without it and --file, nothing
    #[arg(value_name = "TEXT", conflicts_with = "file")]
    text: Option<String>,
    /// Read what it says from this file; - reads stdin
    #[arg(long, value_name = "FILE")]
    file: Option<String>,
    /// Its id: a second message of this id is not published within ten minutes (default: drawn)
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// Messages of one key are delivered one after another
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// critical, high, medium, low, background, P0 to P3, or 0 to 10 (default 0); higher first
    #[arg(long, value_name = "PRIORITY", value_parser = values::priority)]
    priority: Option<u32>,
    /// Not delivered after so long, at most 30d (default: it keeps)
    #[arg(long, value_name = "DURATION", value_parser = values::positive_duration)]
    ttl: Option<Duration>,
    /// Not delivered before so long, at most 30d
    #[arg(long, value_name = "DURATION", value_parser = values::positive_duration)]
    delay: Option<Duration>,
    /// What kind of message it is, for whoever gets it
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// Who it is from, for whoever gets it
    #[arg(long, value_name = "ID")]
    from: Option<String>,
    /// Who it is for, for whoever gets it; the subject decides who that is
    #[arg(long, value_name = "ID")]
    to: Option<String>,
    /// The task that it is about
    #[arg(long, value_name = "ID")]
    task: Option<String>,
    /// A note beside what it says; repeat for several, at most 32
    #[arg(long, value_name = "NAME=VALUE", value_parser = submit::pair)]
    header: Vec<KeyValue>,
}

/// Flags of `quorate bus pub`.
#[derive(Args)]
pub(crate) struct PubArgs {
    #[command(flatten)]
    message: MessageArgs,
    /// The subject that an answer goes to
    #[arg(long, value_name = "SUBJECT")]
    reply_to: Option<String>,
    /// What ties an answer to this message, or this message to what it answers
    #[arg(long, value_name = "ID")]
    correlation: Option<String>,
    /// Refuse if no subscription matches
    #[arg(long)]
    must_match: bool,
    /// Create this subscription to the subject first, if there is none
    #[arg(long, value_name = "NAME")]
    ensure_subscription: Option<String>,
}

/// Flags of `quorate bus request`.
#[derive(Args)]
pub(crate) struct RequestArgs {
    #[command(flatten)]
    message: MessageArgs,
}

impl MessageArgs {
    async fn message(self) -> Result<BusMessage, Failure> {
        let payload = match (self.text, self.file) {
            (Some(text), _) => text.into_bytes(),
            (None, Some(file)) => values::read_input(file).await?.1,
            (None, None) => Vec::new(),
        };
        Ok(BusMessage {
            id: self.id.unwrap_or_else(|| format!("m-{}", Uuid::now_v7().simple())),
            subject: self.subject,
            from: self.from.unwrap_or_default(),
            to: self.to.unwrap_or_default(),
            task_id: self.task.unwrap_or_default(),
            r#type: self.kind.unwrap_or_default(),
            payload: payload.into(),
            priority: self.priority.unwrap_or_default(),
            order_key: self.key.unwrap_or_default(),
            ttl_ms: self.ttl.map(values::millis).unwrap_or_default(),
            delay_ms: self.delay.map(values::millis).unwrap_or_default(),
            metadata: self.header,
            ..BusMessage::default()
        })
    }
}

impl PubArgs {
    async fn request(self) -> Result<PublishRequest, Failure> {
        let message = BusMessage {
            reply_to: self.reply_to.unwrap_or_default(),
            correlation_id: self.correlation.unwrap_or_default(),
            ..self.message.message().await?
        };
        Ok(PublishRequest {
            messages: vec![message],
            must_match: self.must_match,
            ensure_subscription: self.ensure_subscription.unwrap_or_default(),
            request: None,
        })
    }
}

pub(super) async fn publish(context: &Context, args: PubArgs) -> Result<(), Failure> {
    let request = args.request().await?;
    let id = request.messages.first().map(|message| message.id.clone()).unwrap_or_default();
    let answer = context.client.bus().publish_all(None, request).await?;
    let published = answer.published.into_iter().next().unwrap_or_default();
    context.out.show(
        || {
            json!({
                "id": id,
                "seq": published.seq,
                "matched": published.matched,
                "duplicate": published.duplicate,
                "rev": answer.rev,
            })
        },
        || outcome(&id, &published),
    )
}

/// What became of a message.
fn outcome(id: &str, published: &Published) -> String {
    match published {
        // An earlier attempt of this call may have been the first.
        Published { duplicate: true, seq, .. } => format!("{id} is published once, as {seq}"),
        Published { matched: 0, .. } => "nobody subscribes to it, so nobody keeps it".to_owned(),
        Published { matched: 1, seq, .. } => format!("{seq}, kept by 1 subscription"),
        Published { matched, seq, .. } => format!("{seq}, kept by {matched} subscriptions"),
    }
}

pub(super) async fn request(context: &Context, args: RequestArgs) -> Result<(), Failure> {
    let question = args.message.message().await?;
    let limit = context.timeout.unwrap_or(DEFAULT_WAIT);
    held::in_session(context, async |session: &Session, signals: &mut Signals| -> Result<(), Failure> {
        let bus = context.client.bus();
        let answer = tokio::select! {
            answer = bus.request(session, question, limit) => answer?,
            () = signals.next() => return Err(held::stopped()),
        };
        let payload = bus.payload(&answer).await?;
        context.out.content(|| view::message(&answer, &payload), &payload)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::super::Command;
    use super::super::tests::parsed;
    use super::*;

    async fn published(line: &[&str]) -> PublishRequest {
        match parsed(&[&["pub"][..], line].concat()) {
            Some(Command::Pub(args)) => args.request().await.unwrap(),
            _ => panic!("{line:?} is not understood"),
        }
    }

    #[tokio::test]
    async fn every_part_of_a_message_has_a_flag() {
        let flags = "--id i --key k --priority high --ttl 1h --delay 5s --reply-to r --correlation c --type t --to a";
        let rest = "--task t1 --header lang=de --header n=1 --must-match --ensure-subscription q";
        let line: Vec<&str> =
            ["jobs.scan", "hello"].into_iter().chain(flags.split(' ')).chain(rest.split(' ')).collect();
        let request = published(&line).await;
        assert!(request.must_match && request.ensure_subscription == "q");
        let message = &request.messages[0];
        assert_eq!((message.subject.as_str(), &message.payload[..]), ("jobs.scan", &b"hello"[..]));
        assert_eq!((message.id.as_str(), message.order_key.as_str(), message.priority), ("i", "k", 7));
        assert_eq!((message.ttl_ms, message.delay_ms), (3_600_000, 5_000));
        assert_eq!((message.reply_to.as_str(), message.correlation_id.as_str()), ("r", "c"));
        assert_eq!((message.r#type.as_str(), message.to.as_str(), message.task_id.as_str()), ("t", "a", "t1"));
        assert_eq!((message.metadata.len(), message.metadata[0].value.as_str()), (2, "de"));
    }

    #[tokio::test]
    async fn a_message_has_an_id_and_one_text_at_most() {
        let [one, other] = [published(&["a"]).await, published(&["a"]).await];
        assert!(!one.messages[0].id.is_empty() && one.messages[0].id != other.messages[0].id);
        assert!(one.messages[0].payload.is_empty());
        assert!(parsed(&["pub", "a", "text", "--file", "f"]).is_none() && parsed(&["pub"]).is_none());
        assert!(parsed(&["request", "a", "text"]).is_some());
        assert!(parsed(&["request", "a", "text", "--reply-to", "b"]).is_none(), "the answer comes here");
    }

    #[test]
    fn a_message_that_nobody_keeps_says_so() {
        let published = |matched, duplicate| Published { seq: 7, matched, duplicate };
        assert!(outcome("i", &published(0, false)).contains("nobody"));
        assert_eq!(outcome("i", &published(2, false)), "7, kept by 2 subscriptions");
        assert_eq!(outcome("i", &published(2, true)), "i is published once, as 7");
    }
}
