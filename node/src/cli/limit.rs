//! `quorate limit`: how many tasks may run at once, in total, by agent type and by concurrency key.

use clap::Subcommand;
use quorate_client::v1::{LimitScope, LimitUse};
use serde_json::{Value, json};

use super::Context;
use super::exit::Failure;
use super::output::{age, now_ms, table};

const SET_EXAMPLES: &str = "\
EXAMPLES:
  quorate limit set total 10
      ten tasks at once, whatever they are
  quorate limit set type:security-specialist 2
      two of those that agents of this type run
  quorate limit set gpu 3
      three of those that were submitted with the concurrency key gpu

A limit that is lower than what runs stops nothing; it holds back what comes next.";

/// `quorate limit …`
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Let at most so many tasks run at once
    #[command(after_help = SET_EXAMPLES)]
    Set {
        /// What is limited: total, type:AGENT_TYPE, or a concurrency key (key:NAME, if its name looks like one of those)
        #[arg(value_name = "WHAT", value_parser = limited)]
        what: Limited,
        /// How many, from 1 to 1,000,000
        #[arg(value_name = "MAX", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        max: u32,
    },
    /// Lift a limit
    Delete {
        /// What is limited: total, type:AGENT_TYPE, or a concurrency key
        #[arg(value_name = "WHAT", value_parser = limited)]
        what: Limited,
    },
    /// List the limits, with what runs and waits under them
    List,
}

/// What a limit is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Limited {
    scope: LimitScope,
    name: String,
}

impl Limited {
    /// As it is written on the command line.
    fn shown(scope: LimitScope, name: &str) -> String {
        match scope {
            LimitScope::Total => "total".to_owned(),
            LimitScope::AgentType => format!("type:{name}"),
            LimitScope::Key if limited(name).is_ok_and(|read| read.scope == LimitScope::Key && read.name == name) => {
                name.to_owned()
            }
            LimitScope::Key | LimitScope::Unspecified => format!("key:{name}"),
        }
    }
}

fn limited(text: &str) -> Result<Limited, String> {
    let (scope, name) = match text.split_once(':') {
        _ if text == "total" => return Ok(Limited { scope: LimitScope::Total, name: String::new() }),
        Some(("type", name)) => (LimitScope::AgentType, name),
        Some(("key", name)) => (LimitScope::Key, name),
        _ => (LimitScope::Key, text),
    };
    if name.is_empty() {
        return Err("expected total, type:AGENT_TYPE, or the name of a concurrency key".into());
    }
    Ok(Limited { scope, name: name.to_owned() })
}

/// Does what the arguments say.
pub(crate) async fn run(context: &Context, command: Command) -> Result<(), Failure> {
    let dispatch = context.client.dispatch();
    match command {
        Command::Set { what, max } => {
            let answer = dispatch.set_limit(what.scope, &what.name, max).await?;
            let limit = LimitUse { limit: answer.limit, ..LimitUse::default() };
            context.out.show(
                || json!({ "limit": limit_view(&limit, false), "rev": answer.rev }),
                || format!("{}: at most {max} at once", Limited::shown(what.scope, &what.name)),
            )
        }
        Command::Delete { what } => {
            let answer = dispatch.delete_limit(what.scope, &what.name).await?;
            let shown = Limited::shown(what.scope, &what.name);
            context
                .out
                .show(|| json!({ "deleted": shown, "rev": answer.rev }), || format!("{shown}: no limit any more"))
        }
        Command::List => {
            let answer = dispatch.limits().await?;
            context.out.show(
                || {
                    let limits: Vec<Value> = answer.limits.iter().map(|limit| limit_view(limit, true)).collect();
                    json!({ "limits": limits, "rev": answer.rev })
                },
                || limit_table(&answer.limits, now_ms()),
            )
        }
    }
}

/// A limit, with what runs and waits under it if that is known.
pub(super) fn limit_view(shown: &LimitUse, with_use: bool) -> Value {
    let limit = shown.limit.clone().unwrap_or_default();
    let scope = match limit.scope() {
        LimitScope::Total => "total",
        LimitScope::AgentType => "agent_type",
        LimitScope::Key => "key",
        LimitScope::Unspecified => "unspecified",
    };
    let mut view = json!({
        "scope": scope,
        "name": limit.name,
        "max": limit.max,
        "updated_at_ms": limit.updated_at_ms,
    });
    if let Value::Object(fields) = &mut view
        && with_use
    {
        fields.insert("running".into(), json!(shown.running));
        fields.insert("waiting".into(), json!(shown.waiting));
    }
    view
}

fn limit_table(limits: &[LimitUse], now_ms: u64) -> String {
    let rows = limits.iter().map(|shown| {
        let limit = shown.limit.clone().unwrap_or_default();
        [
            Limited::shown(limit.scope(), &limit.name),
            limit.max.to_string(),
            shown.running.to_string(),
            shown.waiting.to_string(),
            age(limit.updated_at_ms, now_ms),
        ]
    });
    table(["what", "max", "running", "waiting", "changed"], rows.collect(), "no limits")
}

#[cfg(test)]
mod tests {
    use quorate_client::v1::Limit;

    use super::*;

    #[test]
    fn what_is_limited_reads_back_as_it_is_shown() {
        for (text, scope, name) in [
            ("total", LimitScope::Total, ""),
            ("type:security", LimitScope::AgentType, "security"),
            ("gpu", LimitScope::Key, "gpu"),
            ("provider:anthropic", LimitScope::Key, "provider:anthropic"),
            ("key:total", LimitScope::Key, "total"),
            ("key:type:security", LimitScope::Key, "type:security"),
            ("key:key:a", LimitScope::Key, "key:a"),
        ] {
            assert_eq!(limited(text), Ok(Limited { scope, name: name.to_owned() }));
            assert_eq!(Limited::shown(scope, name), text);
        }
        assert_eq!(limited("key:gpu"), limited("gpu"));
        for wrong in ["", "type:", "key:"] {
            assert!(limited(wrong).unwrap_err().contains("type:AGENT_TYPE"), "{wrong}");
        }
    }

    #[test]
    fn a_limit_shows_what_runs_and_waits_under_it() {
        let limit = Limit { scope: LimitScope::Key as i32, name: "gpu".into(), max: 3, updated_at_ms: 1_000 };
        let shown = LimitUse { limit: Some(limit), running: 3, waiting: 12 };
        assert_eq!(limit_view(&shown, true)["waiting"], 12);
        assert_eq!(limit_view(&shown, false)["waiting"], Value::Null);
        let text = limit_table(&[shown], 61_000);
        assert!(text.contains("gpu") && text.contains("12") && text.contains("1m"), "{text}");
        assert_eq!(limit_table(&[], 0), "no limits");
    }
}
