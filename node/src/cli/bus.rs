//! `quorate bus`: say something, listen, ask; see and change the subscriptions.
//!
//! ```text
//!   publish    one message from flags; a question and its answer
//!   consume    messages as they come, acknowledged when they are printed
//!   shown      subscriptions as rows and as facts
//! ```
//!
//! What subscriptions gave up on is under `quorate dlq`.

mod consume;
mod publish;
mod shown;

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use quorate_client::v1::{ListSubscriptionsRequest, Overflow, SubscriptionSpec};
use serde_json::json;

use self::consume::SubArgs;
use self::publish::{PubArgs, RequestArgs};
use self::shown::{subscription_facts, subscription_table};
use super::exit::Failure;
use super::{Context, values, view};

const CREATE_EXAMPLES: &str = "\
EXAMPLES:
  quorate bus create workers 'agent.*.tasks'
      a queue that keeps what comes from now on, whoever consumes it
  quorate bus create mail 'mail.>' --max-attempts 3 --backoff 1s,30s,5m --ack-wait 2m
      three attempts with longer and longer pauses, each of two minutes at most
  quorate bus create latest 'prices.>' --max-messages 1000 --overflow drop-oldest --replace
      another specification for one that exists; what is in it stays

Quote patterns: the shell reads * and > as something else.";

/// The most that one list shows.
const MOST: i64 = 10_000;

/// `quorate bus …`
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Publish a message
    #[command(after_help = publish::PUB_EXAMPLES)]
    Pub(Box<PubArgs>),
    /// Print messages as they come, and acknowledge them
    #[command(after_help = consume::EXAMPLES)]
    Sub(SubArgs),
    /// Ask, and print the answer
    #[command(after_help = publish::REQUEST_EXAMPLES)]
    Request(Box<RequestArgs>),
    /// List subscriptions, by name
    List {
        /// How many at most
        #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=MOST))]
        limit: u32,
    },
    /// Show one subscription, what is in it, and who consumes it
    Show {
        /// The subscription
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Create a subscription that stays until it is deleted
    #[command(after_help = CREATE_EXAMPLES)]
    Create(Box<CreateArgs>),
    /// Remove a subscription with what waits in it and with its dead messages
    Delete {
        /// The subscription
        #[arg(value_name = "NAME")]
        name: String,
    },
}

/// Flags of `quorate bus create`.
#[derive(Args)]
pub(crate) struct CreateArgs {
    /// Its name: 1 to 128 letters, digits or . _ - : / @
    #[arg(value_name = "NAME")]
    name: String,
    /// What it is about: a subject in which * stands for any token and a last > for one or more; up to 16
    #[arg(value_name = "PATTERN", required = true)]
    patterns: Vec<String>,
    /// Deliveries that may fail before a message is dead (default 5)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    max_attempts: Option<u32>,
    /// The pause after each failed delivery, the last one for all further ones (default 1s,2s,4s,8s,16s)
    #[arg(long, value_name = "DURATION,..", value_delimiter = ',', value_parser = values::duration)]
    backoff: Vec<Duration>,
    /// How long a delivery may take until it has failed (default: as long as the consumer lives)
    #[arg(long, value_name = "DURATION", value_parser = values::positive_duration)]
    ack_wait: Option<Duration>,
    /// How many messages it keeps (default 1,000,000)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    max_messages: Option<u64>,
    /// What happens when it is full
    #[arg(long, value_enum, value_name = "WHAT", default_value = "reject")]
    overflow: WhenFull,
    /// Count dead messages, and keep none of them
    #[arg(long)]
    drop_dead: bool,
    /// If it exists with another specification, give it this one; what is in it stays
    #[arg(long)]
    replace: bool,
}

/// [`Overflow`] on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum WhenFull {
    /// The publisher is refused
    Reject,
    /// The oldest message that nobody has goes
    DropOldest,
}

impl From<WhenFull> for Overflow {
    fn from(when_full: WhenFull) -> Self {
        match when_full {
            WhenFull::Reject => Overflow::Reject,
            WhenFull::DropOldest => Overflow::DropOldest,
        }
    }
}

impl CreateArgs {
    fn spec(self) -> SubscriptionSpec {
        SubscriptionSpec {
            name: self.name,
            patterns: self.patterns,
            max_attempts: self.max_attempts.unwrap_or_default(),
            backoff_ms: self.backoff.into_iter().map(values::millis).collect(),
            ack_wait_ms: self.ack_wait.map(values::millis).unwrap_or_default(),
            max_messages: self.max_messages.unwrap_or_default(),
            overflow: Overflow::from(self.overflow) as i32,
            drop_dead: self.drop_dead,
            ..SubscriptionSpec::default()
        }
    }
}

/// Does what the arguments say.
pub(crate) async fn run(context: &Context, command: Command) -> Result<(), Failure> {
    match command {
        Command::Pub(args) => publish::publish(context, *args).await,
        Command::Sub(args) => consume::run(context, &args).await,
        Command::Request(args) => publish::request(context, *args).await,
        Command::List { limit } => list(context, limit).await,
        Command::Show { name } => show(context, &name).await,
        Command::Create(args) => create(context, *args).await,
        Command::Delete { name } => delete(context, &name).await,
    }
}

async fn list(context: &Context, limit: u32) -> Result<(), Failure> {
    let request = ListSubscriptionsRequest { limit, ..ListSubscriptionsRequest::default() };
    let answer = context.client.bus().subscriptions(request).await?;
    if answer.subscriptions.len() >= limit as usize {
        context.out.note(&format!("only the first {limit} are shown; --limit shows more"));
    }
    context.out.show(
        || {
            let subscriptions: Vec<_> = answer.subscriptions.iter().map(view::subscription_info).collect();
            json!({ "subscriptions": subscriptions, "rev": answer.rev })
        },
        || subscription_table(&answer.subscriptions),
    )
}

async fn show(context: &Context, name: &str) -> Result<(), Failure> {
    let answer = context.client.bus().subscription(name).await?;
    let info = answer.info.ok_or_else(|| Failure::not_found(format!("no subscription {name}")))?;
    context.out.show(
        || json!({ "subscription": view::subscription_info(&info), "rev": answer.rev }),
        || subscription_facts(&info),
    )
}

async fn create(context: &Context, args: CreateArgs) -> Result<(), Failure> {
    let replace = args.replace;
    let answer = context.client.bus().subscribe_with(args.spec(), replace).await?;
    let subscription = answer.subscription.unwrap_or_default();
    context.out.show(
        || {
            let shown = view::subscription(&subscription);
            json!({ "subscription": shown, "existed": answer.existed, "rev": answer.rev })
        },
        || {
            let spec = subscription.spec.clone().unwrap_or_default();
            let how = if answer.existed { "existed" } else { "is created" };
            format!("{} {how}: {}", spec.name, spec.patterns.join(" "))
        },
    )
}

async fn delete(context: &Context, name: &str) -> Result<(), Failure> {
    let answer = context.client.bus().unsubscribe(name).await?;
    context.out.show(|| json!({ "name": name, "rev": answer.rev }), || format!("{name} is deleted"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the words after `quorate bus` mean.
    pub(super) fn parsed(line: &[&str]) -> Option<Command> {
        crate::cli::subcommand([&["bus"][..], line].concat()).ok()
    }

    #[test]
    fn what_a_subscription_does_not_say_is_the_clusters_default() {
        let Some(Command::Create(args)) = parsed(&["create", "workers", "agent.*.tasks", "b.>"]) else { panic!("no") };
        assert!(!args.replace);
        let spec = args.spec();
        assert_eq!((spec.name.as_str(), spec.patterns.join(" ")), ("workers", "agent.*.tasks b.>".to_owned()));
        assert_eq!((spec.max_attempts, spec.ack_wait_ms, spec.overflow()), (0, 0, Overflow::Reject));
        assert!(parsed(&["create", "workers"]).is_none(), "without a pattern");
    }

    #[test]
    fn every_setting_of_a_subscription_has_a_flag() {
        let flags = "--max-attempts 3 --backoff 1s,30s --ack-wait 2m --max-messages 10 --overflow drop-oldest";
        let line: Vec<&str> = "create mail mail.>".split(' ').chain(flags.split(' ')).collect();
        let Some(Command::Create(args)) = parsed(&line) else { panic!("not understood") };
        let spec = args.spec();
        assert_eq!((spec.max_attempts, spec.ack_wait_ms, spec.max_messages), (3, 120_000, 10));
        assert_eq!((spec.backoff_ms.as_slice(), spec.overflow()), (&[1_000, 30_000][..], Overflow::DropOldest));
    }
}
