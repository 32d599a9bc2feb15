//! Messages as they come: each printed, then acknowledged, so that one that was not printed goes to somebody else.

use clap::Args;
use quorate_client::v1::SubscriptionSpec;
use quorate_client::{Bus, Consumer, Delivery, Error, Session};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::cli::exit::Failure;
use crate::cli::signals::Signals;
use crate::cli::{Context, held, view};

pub(super) const EXAMPLES: &str = "\
EXAMPLES:
  quorate bus sub 'slack.events.>'
      what is published from now on, until Ctrl-C
  quorate bus sub 'agent.*.tasks' --name workers
      a queue that stays: with its other consumers, each message for one of them
  quorate bus sub --name workers --count 1 -o json
      the next message of one that exists, with all that is known of it
  quorate bus sub --name workers --no-ack --credit 20
      a look at up to twenty of them; they go back when this ends, and no attempt is counted

Quote patterns: the shell reads * and > as something else.";

/// Flags of `quorate bus sub`.
#[derive(Args)]
pub(crate) struct SubArgs {
    /// A subject in which * stands for any token and a last > for one or more; with --name, needed only to create it
    #[arg(value_name = "PATTERN", required_unless_present = "name")]
    patterns: Vec<String>,
    /// Consume the subscription of this name, which stays; without it, one that ends with this command
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// End after so many messages
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// How many messages it holds unacknowledged, at most 1,024
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_024))]
    credit: u32,
    /// Acknowledge nothing: what was shown goes back when this ends
    #[arg(long)]
    no_ack: bool,
}

/// Prints messages until there were enough, or a signal comes.
pub(super) async fn run(context: &Context, args: &SubArgs) -> Result<(), Failure> {
    held::in_session(context, async |session: &Session, signals: &mut Signals| -> Result<(), Failure> {
        let bus = context.client.bus();
        let name = subscription(&bus, session, args).await?;
        let mut consumer = bus.consume(session, name).credit(args.credit).start();
        let printed = print(context, &mut consumer, signals, args).await;
        // Left before the session ends: what is not acknowledged goes back, and no attempt is counted.
        let left = tokio::select! {
            left = consumer.close() => left,
            () = signals.next() => Ok(()),
        };
        printed?;
        Ok(left?)
    })
    .await
}

/// The name of the subscription to consume, which exists from here on.
async fn subscription(bus: &Bus, session: &Session, args: &SubArgs) -> Result<String, Failure> {
    let Some(name) = &args.name else {
        let name = format!("cli-{}", Uuid::now_v7().simple());
        let spec = SubscriptionSpec {
            name: name.clone(),
            patterns: args.patterns.clone(),
            session_id: session.id().to_owned(),
            drop_dead: true,
            ..SubscriptionSpec::default()
        };
        bus.subscribe(spec).await?;
        return Ok(name);
    };
    match bus.subscription(name).await {
        Ok(found) => {
            let spec = found.info.and_then(|info| info.subscription?.spec).unwrap_or_default();
            check_patterns(name, &spec.patterns, &args.patterns)?;
        }
        Err(error) if error.is_not_found() && !args.patterns.is_empty() => {
            let patterns = args.patterns.clone();
            bus.subscribe(SubscriptionSpec { name: name.clone(), patterns, ..SubscriptionSpec::default() }).await?;
        }
        Err(error) => return Err(error.into()),
    }
    Ok(name.clone())
}

/// Whoever names patterns expects nothing else.
fn check_patterns(name: &str, has: &[String], asked: &[String]) -> Result<(), Failure> {
    if asked.is_empty() || (asked.iter().all(|one| has.contains(one)) && has.iter().all(|one| asked.contains(one))) {
        return Ok(());
    }
    let has = has.join(" ");
    Err(Failure::failed(format!("{name} exists with other patterns: {has}; leave the patterns out to consume it")))
}

async fn print(
    context: &Context,
    consumer: &mut Consumer,
    signals: &mut Signals,
    args: &SubArgs,
) -> Result<(), Failure> {
    let bus = context.client.bus();
    let mut printed = 0;
    while args.count.is_none_or(|count| printed < count) {
        let next = tokio::select! {
            next = consumer.next() => next,
            () = signals.next() => return Ok(()),
        };
        let Some(delivery) = next else { return Ok(()) };
        let delivery = delivery?;
        let payload = bus.payload(delivery.message()).await?;
        context.out.event(|| shown(&delivery, &payload), || line(&delivery, &payload))?;
        printed += 1;
        if !args.no_ack {
            acknowledge(context, &delivery).await?;
        }
    }
    Ok(())
}

async fn acknowledge(context: &Context, delivery: &Delivery) -> Result<(), Failure> {
    match delivery.ack().await {
        // It took longer than it may, and somebody else sees it again. That is no reason to stop.
        Err(Error::Fenced { message, .. }) => {
            context.out.note(&format!("{} comes again: {message}", delivery.message().seq));
            Ok(())
        }
        said => Ok(said?),
    }
}

fn shown(delivery: &Delivery, payload: &[u8]) -> Value {
    json!({
        "subscription": delivery.subscription(),
        "attempt": delivery.attempt(),
        "token": delivery.token(),
        "message": view::message(delivery.message(), payload),
    })
}

/// `agent.a1.tasks  look at issue 812`
fn line(delivery: &Delivery, payload: &[u8]) -> String {
    let again = match delivery.attempt() {
        0 | 1 => String::new(),
        attempt => format!("  (attempt {attempt})"),
    };
    format!("{}{again}  {}", delivery.message().subject, view::bytes_line(payload))
}

#[cfg(test)]
mod tests {
    use super::super::Command;
    use super::super::tests::parsed;
    use super::*;

    fn asked(line: &[&str]) -> Option<SubArgs> {
        match parsed(&[&["sub"][..], line].concat())? {
            Command::Sub(args) => Some(args),
            _ => None,
        }
    }

    #[test]
    fn a_subscription_is_named_or_described() {
        let args = asked(&["a.>", "b.*", "--name", "workers", "--count", "10", "--credit", "4", "--no-ack"]).unwrap();
        assert_eq!((args.patterns.len(), args.name.as_deref(), args.count), (2, Some("workers"), Some(10)));
        assert!(args.no_ack && args.credit == 4);
        let args = asked(&["--name", "workers"]).unwrap();
        assert!(args.patterns.is_empty() && args.count.is_none() && args.credit == 1 && !args.no_ack);
        assert!(asked(&[]).is_none() && asked(&["a", "--count", "0"]).is_none());
    }

    #[test]
    fn patterns_that_were_asked_for_are_those_that_are_consumed() {
        let has = ["a".to_owned(), "b".to_owned()];
        let check = |asked: &[&str]| {
            let asked: Vec<String> = asked.iter().map(|one| (*one).to_owned()).collect();
            check_patterns("workers", &has, &asked)
        };
        assert!(check(&[]).is_ok() && check(&["b", "a"]).is_ok());
        assert!(check(&["a"]).unwrap_err().to_string().contains("a b"));
        assert!(check(&["a", "b", "c"]).is_err());
    }
}
