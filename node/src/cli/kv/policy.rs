//! How many earlier versions of documents are kept, and for how long.

use std::time::Duration;

use clap::Subcommand;
use quorate_client::v1::KvPolicy;
use serde_json::json;

use crate::cli::exit::Failure;
use crate::cli::output::{span, table};
use crate::cli::{Context, values, view};

const SET_EXAMPLES: &str = "\
EXAMPLES:
  quorate kv policy set results/ --versions 0
      no earlier versions
  quorate kv policy set agents/ --versions 100 --max-age 30d
      the last hundred, for a month
  quorate kv policy set logs/ --max-age 0s
      ten, for however long

Of all policies whose prefix a key begins with, the longest counts, and no other.";

/// `quorate kv policy …`
#[derive(Subcommand)]
pub(crate) enum PolicyCommand {
    /// Say what is kept of the documents whose keys begin so
    #[command(after_help = SET_EXAMPLES)]
    Set {
        /// What keys begin with; an empty one for all
        #[arg(value_name = "PREFIX")]
        prefix: String,
        /// How many versions besides the current one
        #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(0..=1_000))]
        versions: u32,
        /// How old they may be, counted from when they were replaced; 0s: only their number counts
        #[arg(long, value_name = "DURATION", default_value = "90d", value_parser = values::duration)]
        max_age: Duration,
    },
    /// List the policies, by prefix
    List,
    /// Remove a policy: the next shorter prefix counts again
    Delete {
        /// The policy's prefix
        #[arg(value_name = "PREFIX")]
        prefix: String,
    },
}

pub(super) async fn run(context: &Context, command: PolicyCommand) -> Result<(), Failure> {
    let kv = context.client.kv();
    match command {
        PolicyCommand::Set { prefix, versions, max_age } => {
            let policy = KvPolicy { prefix, versions, max_age_ms: values::millis(max_age) };
            let answer = kv.set_policy(policy.clone()).await?;
            context.out.show(
                || json!({ "policy": view::kv_policy(&policy), "rev": answer.rev }),
                || {
                    let [prefix, versions, max_age] = row(&policy);
                    format!("{prefix}: {versions} versions besides the current one, kept for {max_age}")
                },
            )
        }
        PolicyCommand::List => {
            let answer = kv.policies().await?;
            context.out.show(
                || {
                    let policies: Vec<_> = answer.policies.iter().map(view::kv_policy).collect();
                    json!({ "policies": policies, "rev": answer.rev })
                },
                || {
                    let rows = answer.policies.iter().map(row).collect();
                    table(["prefix", "versions", "kept for"], rows, "no policies: 10 versions are kept for 90 days")
                },
            )
        }
        PolicyCommand::Delete { prefix } => {
            let answer = kv.delete_policy(&prefix).await?;
            context
                .out
                .show(|| json!({ "prefix": prefix, "rev": answer.rev }), || format!("{} is deleted", shown(&prefix)))
        }
    }
}

fn row(policy: &KvPolicy) -> [String; 3] {
    let kept = if policy.max_age_ms == 0 { "however long".to_owned() } else { span(policy.max_age_ms) };
    [shown(&policy.prefix), policy.versions.to_string(), kept]
}

fn shown(prefix: &str) -> String {
    if prefix.is_empty() { "every key".to_owned() } else { prefix.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::super::Command;
    use super::super::tests::parsed;
    use super::*;

    #[test]
    fn what_a_policy_does_not_say_is_as_without_one() {
        let set = |line: &[&str]| match parsed(&[&["policy", "set"][..], line].concat()) {
            Some(Command::Policy(PolicyCommand::Set { prefix, versions, max_age })) => {
                row(&KvPolicy { prefix, versions, max_age_ms: values::millis(max_age) })
            }
            _ => panic!("{line:?} is not understood"),
        };
        assert_eq!(set(&["results/", "--versions", "0"]), ["results/", "0", "90d"].map(str::to_owned));
        assert_eq!(set(&["", "--max-age", "0s"]), ["every key", "10", "however long"].map(str::to_owned));
        assert!(parsed(&["policy", "list"]).is_some() && parsed(&["policy", "delete", "results/"]).is_some());
    }
}
