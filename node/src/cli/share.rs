//! `quorate share`: how the turns of a priority band are divided, and in which order bands are served.

use std::time::Duration;

use clap::{Args, Subcommand};
use quorate_client::v1::{BandOrder, DispatchPolicy, ShareUse};
use serde_json::{Value, json};

use super::exit::Failure;
use super::output::{or_dash, span, table};
use super::{Context, values};

const SET_EXAMPLES: &str = "\
EXAMPLES:
  quorate share set alpha 3
      while both have work, alpha gets three turns of a band for each one of a share with weight 1
  quorate share set alpha 1
      as every share begins

A task belongs to the share that it was submitted with, or else to the one named as its project.";

const POLICY_EXAMPLES: &str = "\
EXAMPLES:
  quorate share policy
      how it is now
  quorate share policy --order strict --ageing 10m
      higher priorities first; a task that has been ready for ten minutes counts as one higher, and so on
  quorate share policy --order weighted --ageing 0s
      every priority gets its part (P0 to P3: 100, 50, 25, 10); no ageing";

/// `quorate share …`
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Give a share a weight against the others
    #[command(after_help = SET_EXAMPLES)]
    Set {
        /// The share
        #[arg(value_name = "NAME")]
        name: String,
        /// Its weight, from 1 to 1,000
        #[arg(value_name = "WEIGHT", value_parser = clap::value_parser!(u32).range(1..=1_000))]
        weight: u32,
    },
    /// List the shares that have work or a weight of their own
    List,
    /// Show or change the order of priority bands and the ageing
    #[command(after_help = POLICY_EXAMPLES)]
    Policy(PolicyArgs),
}

/// Flags of `quorate share policy`.
#[derive(Args)]
pub(crate) struct PolicyArgs {
    /// strict: a lower priority only when no higher one can run; weighted: each its part
    #[arg(long, value_name = "ORDER", value_parser = order)]
    order: Option<BandOrder>,
    /// After this long, a task that is ready counts as one priority higher; from 1s to 30d, 0s for never
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    ageing: Option<Duration>,
}

fn order(text: &str) -> Result<BandOrder, String> {
    match text.trim().to_ascii_lowercase().as_str() {
        "strict" => Ok(BandOrder::Strict),
        "weighted" => Ok(BandOrder::Weighted),
        _ => Err("expected strict or weighted".into()),
    }
}

/// Does what the arguments say.
pub(crate) async fn run(context: &Context, command: Command) -> Result<(), Failure> {
    match command {
        Command::Set { name, weight } => {
            let answer = context.client.dispatch().set_share(&name, weight).await?;
            context.out.show(
                || json!({ "share": { "name": name, "weight": weight }, "rev": answer.rev }),
                || format!("{name} has weight {weight}"),
            )
        }
        Command::List => {
            let answer = context.client.dispatch().shares().await?;
            context.out.show(
                || {
                    let shares: Vec<Value> = answer.shares.iter().map(share_view).collect();
                    json!({ "shares": shares, "rev": answer.rev })
                },
                || share_table(&answer.shares),
            )
        }
        Command::Policy(args) => policy(context, args).await,
    }
}

/// What is not given stays as it is.
async fn policy(context: &Context, args: PolicyArgs) -> Result<(), Failure> {
    let dispatch = context.client.dispatch();
    let current = dispatch.policy().await?;
    let (mut policy, mut rev) = (current.policy.unwrap_or_default(), current.rev);
    if args.order.is_some() || args.ageing.is_some() {
        if let Some(order) = args.order {
            policy.set_order(order);
        }
        if let Some(ageing) = args.ageing {
            policy.ageing_ms = values::millis(ageing);
        }
        let answer = dispatch.set_policy(policy).await?;
        (policy, rev) = (answer.policy.unwrap_or_default(), answer.rev);
    }
    context.out.show(
        || json!({ "order": order_name(&policy), "ageing_ms": policy.ageing_ms, "rev": rev }),
        || policy_text(&policy),
    )
}

fn order_name(policy: &DispatchPolicy) -> &'static str {
    match policy.order() {
        BandOrder::Weighted => "weighted",
        BandOrder::Strict | BandOrder::Unspecified => "strict",
    }
}

fn policy_text(policy: &DispatchPolicy) -> String {
    let ageing = match policy.ageing_ms {
        0 => "no ageing".to_owned(),
        ms => format!("one priority higher for every {} of being ready", span(ms)),
    };
    format!("{} bands; {ageing}", order_name(policy))
}

fn share_view(share: &ShareUse) -> Value {
    json!({ "name": share.name, "weight": share.weight, "ready": share.ready, "running": share.running })
}

fn share_table(shares: &[ShareUse]) -> String {
    let rows = shares.iter().map(|share| {
        [or_dash(&share.name), share.weight.to_string(), share.ready.to_string(), share.running.to_string()]
    });
    table(["share", "weight", "ready", "running"], rows.collect(), "no shares")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_has_two_names() {
        assert_eq!(order("Strict"), Ok(BandOrder::Strict));
        assert_eq!(order("weighted"), Ok(BandOrder::Weighted));
        assert!(order("fair").unwrap_err().contains("strict or weighted"));
    }

    #[test]
    fn a_policy_is_one_line() {
        let policy = DispatchPolicy { order: BandOrder::Weighted as i32, ageing_ms: 600_000 };
        assert_eq!(policy_text(&policy), "weighted bands; one priority higher for every 10m of being ready");
        assert_eq!(policy_text(&DispatchPolicy::default()), "strict bands; no ageing");
    }

    #[test]
    fn a_share_without_a_name_has_a_dash() {
        let text = share_table(&[ShareUse { name: String::new(), weight: 1, ready: 40, running: 2 }]);
        assert!(text.contains(" - ") && text.contains("40"), "{text}");
        assert_eq!(share_table(&[]), "no shares");
    }
}
