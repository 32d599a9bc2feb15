//! `quorate retry`: retry policies with a name.

use std::time::Duration;

use clap::{Args, Subcommand};
use quorate_client::retry_delay;
use quorate_client::v1::{RetryPolicy, RetryProfile};
use serde_json::{Value, json};

use super::exit::Failure;
use super::output::{or_dash, span, table};
use super::{Context, values};

const SET_EXAMPLES: &str = "\
EXAMPLES:
  quorate retry set patient --max-retries 8 --base 10s --cap 10m
      10 s, 20 s, 40 s … up to 10 minutes, each 20% more or less
  quorate retry set fast --max-retries 2 --base 500ms --jitter 0%
      in place of the built-in one
  quorate retry set careful --never-retry budget,policy --always-retry not_found
      validation, authentication and not_found are never retried unless a profile says so

A task names a profile when it is submitted: quorate task submit --retry-profile patient …";

/// How many delays a table shows.
const SHOWN_DELAYS: u32 = 6;

/// `quorate retry …`
#[derive(Subcommand)]
pub(crate) enum Command {
    /// List the profiles, the built-in ones included
    List,
    /// Define a profile, or replace one as a whole
    #[command(after_help = SET_EXAMPLES)]
    Set(SetArgs),
    /// Delete a profile; a built-in one goes back to what it was
    Delete {
        /// The profile
        #[arg(value_name = "NAME")]
        name: String,
    },
}

/// Flags of `quorate retry set`.
#[derive(Args)]
pub(crate) struct SetArgs {
    /// The profile
    #[arg(value_name = "NAME")]
    name: String,
    /// Retries after the first attempt
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(0..=100))]
    max_retries: u32,
    /// How long before the first retry; each later one waits twice as long
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = values::positive_duration)]
    base: Duration,
    /// The longest wait
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = values::positive_duration)]
    cap: Duration,
    /// How much more or less each wait may be, so that what failed together does not come back together
    #[arg(long, value_name = "PERCENT", default_value = "20%", value_parser = jitter)]
    jitter: u32,
    /// Error classes that are not retried, besides validation, authentication and not_found
    #[arg(long, value_name = "CLASS,..", value_delimiter = ',')]
    never_retry: Vec<String>,
    /// Error classes that are retried all the same
    #[arg(long, value_name = "CLASS,..", value_delimiter = ',')]
    always_retry: Vec<String>,
}

/// Does what the arguments say.
pub(crate) async fn run(context: &Context, command: Command) -> Result<(), Failure> {
    match command {
        Command::List => list(context).await,
        Command::Set(args) => set(context, args).await,
        Command::Delete { name } => delete(context, &name).await,
    }
}

async fn list(context: &Context) -> Result<(), Failure> {
    let answer = context.client.retries().list().await?;
    context.out.show(
        || json!({ "profiles": answer.profiles.iter().map(view).collect::<Vec<_>>(), "rev": answer.rev }),
        || {
            let header = ["name", "retries", "waits", "jitter", "never retried", "always retried", "built in"];
            table(header, answer.profiles.iter().map(row).collect(), "no profiles")
        },
    )
}

async fn set(context: &Context, args: SetArgs) -> Result<(), Failure> {
    let policy = RetryPolicy {
        max_retries: args.max_retries,
        base_ms: values::millis(args.base),
        cap_ms: values::millis(args.cap),
        jitter_permille: args.jitter,
        never_retry: args.never_retry,
        always_retry: args.always_retry,
    };
    let answer = context.client.retries().set(&args.name, policy).await?;
    let profile = answer.profile.unwrap_or_default();
    context.out.show(
        || json!({ "profile": view(&profile), "rev": answer.rev }),
        || {
            let waits = profile.policy.as_ref().map(waits).unwrap_or_default();
            format!("{}: retries after {}", profile.name, if waits.is_empty() { "nothing" } else { waits.as_str() })
        },
    )
}

async fn delete(context: &Context, name: &str) -> Result<(), Failure> {
    let answer = context.client.retries().delete(name).await?;
    context.out.show(|| json!({ "name": name, "rev": answer.rev }), || format!("{name} is deleted"))
}

/// A profile.
pub(super) fn view(profile: &RetryProfile) -> Value {
    let policy = profile.policy.clone().unwrap_or_default();
    json!({
        "name": profile.name,
        "built_in": profile.built_in,
        "max_retries": policy.max_retries,
        "base_ms": policy.base_ms,
        "cap_ms": policy.cap_ms,
        "jitter": f64::from(policy.jitter_permille) / 1000.0,
        "never_retry": policy.never_retry,
        "always_retry": policy.always_retry,
    })
}

fn row(profile: &RetryProfile) -> [String; 7] {
    let policy = profile.policy.clone().unwrap_or_default();
    [
        profile.name.clone(),
        policy.max_retries.to_string(),
        or_dash(&waits(&policy)),
        percent(policy.jitter_permille),
        or_dash(&policy.never_retry.join(", ")),
        or_dash(&policy.always_retry.join(", ")),
        if profile.built_in { "yes".into() } else { "no".into() },
    ]
}

/// `2.0s, 4.0s, 8.0s`: the waits without their jitter.
fn waits(policy: &RetryPolicy) -> String {
    let exact = RetryPolicy { jitter_permille: 0, ..policy.clone() };
    let shown = policy.max_retries.min(SHOWN_DELAYS);
    let mut waits: Vec<String> = (0..shown).map(|n| span(values::millis(retry_delay(&exact, n, 0)))).collect();
    if policy.max_retries > shown {
        waits.push("…".to_owned());
    }
    waits.join(", ")
}

/// `20%` as 200.
fn jitter(text: &str) -> Result<u32, String> {
    let wrong = || String::from("expected a share from 0% to 100%, such as 20%");
    let percent: f64 = text.strip_suffix('%').and_then(|number| number.parse().ok()).ok_or_else(wrong)?;
    if !(0.0..=100.0).contains(&percent) {
        return Err(wrong());
    }
    // In range: 0 to 1,000.
    Ok((percent * 10.0).round() as u32)
}

/// 200 as `20%`.
fn percent(permille: u32) -> String {
    match permille % 10 {
        0 => format!("{}%", permille / 10),
        tenths => format!("{}.{tenths}%", permille / 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_is_a_percentage() {
        for (text, permille) in [("0%", 0), ("20%", 200), ("12.5%", 125), ("100%", 1_000)] {
            assert_eq!(jitter(text), Ok(permille));
            assert_eq!(percent(permille), text);
        }
        for wrong in ["", "%", "20", "0.2", "101%", "-1%", "NaN%"] {
            assert!(jitter(wrong).unwrap_err().contains("20%"), "{wrong}");
        }
    }

    #[test]
    fn a_table_shows_the_first_waits() {
        let policy = |max_retries| RetryPolicy { max_retries, jitter_permille: 200, ..RetryPolicy::default() };
        assert_eq!(waits(&policy(0)), "");
        assert_eq!(waits(&policy(3)), "2.0s, 4.0s, 8.0s");
        assert_eq!(waits(&policy(9)), "2.0s, 4.0s, 8.0s, 16s, 32s, 1m, …");
    }
}
