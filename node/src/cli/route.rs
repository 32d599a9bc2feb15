//! `quorate route`: the routing table, and what it would do with a text.
//!
//! The table that `show -o json` prints is the table that `set` reads, its version included: so a table that somebody
//! else changed meanwhile is not overwritten.
//! Deliberately absent: matching. Only the cluster's answer counts.

use clap::{Args, Subcommand};
use quorate_client::v1::{EpicRoute, ExplainRouteResponse, RouteRule, RoutingTable};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::exit::Failure;
use super::output::{facts, or_dash, table};
use super::{Context, values};

const SET_EXAMPLES: &str = r#"EXAMPLES:
  quorate route show -o json > routes.json
  quorate route set routes.json
      after an edit; refused if somebody else changed the table meanwhile
  quorate route set routes.toml
      the same as TOML

FILE:
  { "rules": [ { "name": "devops", "pattern": "\\b(?:deploy|docker)", "agent_type": "devops-engineer" } ],
    "epics": [ { "epic": "E001", "agent_type": "backend-development" } ],
    "fallback_agent_type": "general-purpose", "version": 3 }
  Rules are tried in their order on the title and the description, then the epic, then the
  fallback; without a fallback, no type is chosen. A pattern is a regular expression; it ignores
  case; \b and \w know ASCII letters only. version is the one that the table was made from; leave
  it out to replace whatever is there."#;

const EXPLAIN_EXAMPLES: &str = "\
EXAMPLES:
  quorate route explain Deploy the message bus
      which rule would choose the agent type, and which were tried before
  quorate route explain 'Miscellaneous task' --epic E001
      no rule matches, so the epic decides";

/// `quorate route …`
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Show the routing table
    Show,
    /// Replace the routing table
    #[command(after_help = SET_EXAMPLES)]
    Set {
        /// The table as JSON, or as TOML if the name ends in .toml; - reads JSON from stdin
        #[arg(value_name = "FILE")]
        file: String,
    },
    /// Say which agent type a task would get, and why
    #[command(after_help = EXPLAIN_EXAMPLES)]
    Explain(ExplainArgs),
}

/// Flags of `quorate route explain`.
#[derive(Args)]
pub(crate) struct ExplainArgs {
    /// The task's title
    #[arg(value_name = "TEXT", required = true, num_args = 1..)]
    text: Vec<String>,
    /// The task's description
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// The task's epic
    #[arg(long, value_name = "NAME")]
    epic: Option<String>,
}

/// A table as it stands in a file.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct TableFile {
    #[serde(default)]
    fallback_agent_type: String,
    version: Option<u64>,
    #[serde(default)]
    rules: Vec<RuleFile>,
    #[serde(default)]
    epics: Vec<EpicFile>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RuleFile {
    name: String,
    pattern: String,
    agent_type: String,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct EpicFile {
    epic: String,
    agent_type: String,
}

impl TableFile {
    fn parse(name: &str, bytes: &[u8]) -> Result<Self, String> {
        if !name.ends_with(".toml") {
            return serde_json::from_slice(bytes).map_err(|error| format!("{name}: {error}"));
        }
        let text = std::str::from_utf8(bytes).map_err(|_| format!("{name}: not UTF-8"))?;
        toml::from_str(text).map_err(|error| format!("{name}: {}", error.message()))
    }

    fn of(table: &RoutingTable) -> Self {
        let rules = table.rules.iter().cloned();
        let epics = table.epics.iter().cloned();
        TableFile {
            fallback_agent_type: table.fallback_agent_type.clone(),
            version: Some(table.version),
            rules: rules
                .map(|RouteRule { name, pattern, agent_type }| RuleFile { name, pattern, agent_type })
                .collect(),
            epics: epics.map(|EpicRoute { epic, agent_type }| EpicFile { epic, agent_type }).collect(),
        }
    }

    /// The table, and the version that it was made from.
    fn into_table(self) -> (RoutingTable, Option<u64>) {
        let rules = self.rules.into_iter();
        let epics = self.epics.into_iter();
        let table = RoutingTable {
            rules: rules
                .map(|RuleFile { name, pattern, agent_type }| RouteRule { name, pattern, agent_type })
                .collect(),
            epics: epics.map(|EpicFile { epic, agent_type }| EpicRoute { epic, agent_type }).collect(),
            fallback_agent_type: self.fallback_agent_type,
            version: 0,
        };
        (table, self.version)
    }
}

/// Does what the arguments say.
pub(crate) async fn run(context: &Context, command: Command) -> Result<(), Failure> {
    match command {
        Command::Show => {
            let table = context.client.dispatch().routes().await?.table.unwrap_or_default();
            context.out.show(|| json!(TableFile::of(&table)), || table_text(&table))
        }
        Command::Set { file } => set(context, file).await,
        Command::Explain(args) => explain(context, args).await,
    }
}

async fn set(context: &Context, file: String) -> Result<(), Failure> {
    let (name, bytes) = values::read_input(file).await?;
    let (table, if_version) = TableFile::parse(&name, &bytes).map_err(Failure::bad_input)?.into_table();
    let answer = context.client.dispatch().set_routes(table, if_version).await?;
    let table = answer.table.unwrap_or_default();
    context.out.show(
        || json!({ "version": table.version, "rules": table.rules.len(), "epics": table.epics.len(), "rev": answer.rev }),
        || format!("the table now has version {}, with {} rules", table.version, table.rules.len()),
    )
}

async fn explain(context: &Context, args: ExplainArgs) -> Result<(), Failure> {
    let dispatch = context.client.dispatch();
    let (title, description) = (args.text.join(" "), args.description.unwrap_or_default());
    let answer = dispatch.explain_route(&title, &description, &args.epic.unwrap_or_default()).await?;
    context.out.show(
        || {
            json!({
                "agent_type": answer.agent_type,
                "by": answer.by,
                "matched": answer.matched,
                "tried": answer.tried,
                "version": answer.version,
                "available_agents": answer.available_agents,
                "rev": answer.rev,
            })
        },
        || facts(explanation(&answer)),
    )
}

fn explanation(answer: &ExplainRouteResponse) -> Vec<(&'static str, String)> {
    let chosen_by = match answer.by.split_once(':') {
        Some((kind, name)) => format!("{kind} {name}"),
        None if answer.by == "none" => "nothing: no rule, no epic, and there is no fallback".to_owned(),
        None => answer.by.clone(),
    };
    let found = if answer.matched.is_empty() { String::new() } else { format!("{:?}", answer.matched) };
    vec![
        ("agent type", or_dash(&answer.agent_type)),
        ("chosen by", chosen_by),
        ("found", found),
        ("tried before", or_dash(&answer.tried.join(", "))),
        ("table", format!("version {}", answer.version)),
        ("could take it now", format!("{} agents", answer.available_agents)),
    ]
}

fn table_text(routes: &RoutingTable) -> String {
    let rules = routes
        .rules
        .iter()
        .enumerate()
        .map(|(at, rule)| [(at + 1).to_string(), rule.name.clone(), rule.pattern.clone(), rule.agent_type.clone()]);
    let rules = table(["", "rule", "pattern", "agent type"], rules.collect(), "no rules");
    let epics = routes.epics.iter().map(|route| [route.epic.clone(), route.agent_type.clone()]);
    let epics = table(["epic", "agent type"], epics.collect(), "no epics");
    let fallback = or_dash(&routes.fallback_agent_type);
    format!("{rules}\n{epics}\nfallback: {fallback}\nversion: {}", routes.version)
}

#[cfg(test)]
mod tests {
    use super::*;

    const JSON: &str = r#"{ "rules": [ { "name": "ops", "pattern": "\\bdeploy", "agent_type": "devops" } ],
        "epics": [ { "epic": "E1", "agent_type": "core" } ], "fallback_agent_type": "anybody", "version": 3 }"#;
    const TOML: &str = r#"
        fallback_agent_type = "anybody"
        version = 3
        [[rules]]
        name = "ops"
        pattern = '\bdeploy'
        agent_type = "devops"
        [[epics]]
        epic = "E1"
        agent_type = "core"
    "#;

    #[test]
    fn json_and_toml_say_the_same() {
        let json = TableFile::parse("routes.json", JSON.as_bytes()).unwrap().into_table();
        let toml = TableFile::parse("routes.toml", TOML.as_bytes()).unwrap().into_table();
        assert_eq!(json, toml);
        assert_eq!(json.0.rules[0].pattern, r"\bdeploy");
        assert_eq!(json.1, Some(3));
    }

    #[test]
    fn what_is_shown_can_be_set() {
        let (mut table, _) = TableFile::parse("stdin", JSON.as_bytes()).unwrap().into_table();
        table.version = 7;
        let shown = json!(TableFile::of(&table)).to_string();
        let (again, version) = TableFile::parse("stdin", shown.as_bytes()).unwrap().into_table();
        assert_eq!((again.rules, again.epics, version), (table.rules, table.epics, Some(7)));
        assert_eq!(again.fallback_agent_type, "anybody");
    }

    #[test]
    fn a_mistake_in_a_file_is_named() {
        let wrong = TableFile::parse("routes.json", br#"{"rule": []}"#).unwrap_err();
        assert!(wrong.contains("routes.json") && wrong.contains("rule"), "{wrong}");
        let wrong = TableFile::parse("routes.toml", b"rules = [{ name = 'a' }]").unwrap_err();
        assert!(wrong.contains("routes.toml") && wrong.contains("pattern"), "{wrong}");
        assert!(TableFile::parse("stdin", b"{}").unwrap().into_table().1.is_none());
    }

    #[test]
    fn an_explanation_names_the_rule_what_it_found_and_what_was_tried() {
        let answer = ExplainRouteResponse {
            agent_type: "security-specialist".into(),
            by: "rule:security".into(),
            matched: "identity".into(),
            tried: vec!["devops".into(), "database".into()],
            version: 0,
            available_agents: 2,
            rev: 9,
        };
        let shown: Vec<String> =
            explanation(&answer).into_iter().map(|(name, value)| format!("{name}: {value}")).collect();
        assert_eq!(
            shown,
            [
                "agent type: security-specialist",
                "chosen by: rule security",
                "found: \"identity\"",
                "tried before: devops, database",
                "table: version 0",
                "could take it now: 2 agents",
            ]
        );
        let nothing = ExplainRouteResponse { by: "none".into(), ..Default::default() };
        assert!(explanation(&nothing)[1].1.contains("no fallback"));
    }

    #[test]
    fn the_table_shows_rules_in_order_epics_and_the_fallback() {
        let (table, _) = TableFile::parse("stdin", JSON.as_bytes()).unwrap().into_table();
        let text = table_text(&table);
        assert!(text.contains(r"\bdeploy") && text.contains("E1"), "{text}");
        assert!(text.ends_with("fallback: anybody\nversion: 0"), "{text}");
    }
}
