//! `quorate namespace`: the parts of a cluster, and how much each may hold.

use clap::{Args, Subcommand};
use quorate_client::v1::{Namespace, NamespaceInfo, NamespaceUsage, Quotas};
use serde_json::{Value, json};

use super::Context;
use super::exit::Failure;
use super::output::{age, now_ms, table};

const SET_EXAMPLES: &str = "\
EXAMPLES:
  quorate namespace set research --max-live-tasks 10000 --max-agents 50
      creates it, or changes these two quotas; the others stay as they are
  quorate namespace set research --max-agents 0
      lifts a quota
  quorate -n research task list
      what a command is about; or QUORATE_NAMESPACE=research

A quota that is lower than what is there takes nothing away; it holds back what comes next.";

/// `quorate namespace …`
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Create a namespace, or change its quotas; what is left out stays as it is
    #[command(after_help = SET_EXAMPLES)]
    Set {
        /// Its name: 1 to 64 letters, digits, _ or -
        #[arg(value_name = "NAME")]
        name: String,
        #[command(flatten)]
        quotas: QuotaFlags,
    },
    /// List the namespaces, with what they hold and may hold
    List,
    /// Remove a namespace in which nothing is live, with its finished tasks and its histories
    Delete {
        /// The namespace
        #[arg(value_name = "NAME")]
        name: String,
    },
}

/// What a namespace may hold; 0 for no limit.
#[derive(Args)]
pub(crate) struct QuotaFlags {
    /// How many tasks that have not ended; 0 for no limit, as with all of these
    #[arg(long, value_name = "N")]
    max_live_tasks: Option<u64>,
    /// How many registered agents
    #[arg(long, value_name = "N")]
    max_agents: Option<u64>,
    /// How many open sessions
    #[arg(long, value_name = "N")]
    max_sessions: Option<u64>,
    /// How many messages that some subscription keeps
    #[arg(long, value_name = "N")]
    max_messages: Option<u64>,
    /// How many bytes of them
    #[arg(long, value_name = "BYTES")]
    max_message_bytes: Option<u64>,
    /// How many documents, earlier versions not counted
    #[arg(long, value_name = "N")]
    max_kv_keys: Option<u64>,
    /// How many bytes of them
    #[arg(long, value_name = "BYTES")]
    max_kv_bytes: Option<u64>,
}

impl QuotaFlags {
    /// The quotas to send: what is left out is what holds now.
    fn over(&self, now: &Quotas) -> Quotas {
        Quotas {
            max_live_tasks: self.max_live_tasks.unwrap_or(now.max_live_tasks),
            max_messages: self.max_messages.unwrap_or(now.max_messages),
            max_message_bytes: self.max_message_bytes.unwrap_or(now.max_message_bytes),
            max_kv_keys: self.max_kv_keys.unwrap_or(now.max_kv_keys),
            max_kv_bytes: self.max_kv_bytes.unwrap_or(now.max_kv_bytes),
            max_agents: self.max_agents.unwrap_or(now.max_agents),
            max_sessions: self.max_sessions.unwrap_or(now.max_sessions),
        }
    }
}

/// Does what the arguments say.
pub(crate) async fn run(context: &Context, command: Command) -> Result<(), Failure> {
    match command {
        Command::Set { name, quotas } => set(context, &name, &quotas).await,
        Command::List => list(context).await,
        Command::Delete { name } => {
            let answer = context.client.namespaces().delete(&name).await?;
            context.out.show(|| json!({ "name": name, "rev": answer.rev }), || format!("{name} is deleted"))
        }
    }
}

async fn set(context: &Context, name: &str, flags: &QuotaFlags) -> Result<(), Failure> {
    let namespaces = context.client.namespaces();
    let known = namespaces.list().await?.namespaces;
    let now = known.into_iter().filter_map(|info| info.namespace).find(|known| known.name == name);
    let now = now.and_then(|namespace| namespace.quotas).unwrap_or_default();
    let answer = namespaces.set(name, flags.over(&now)).await?;
    let namespace = answer.namespace.unwrap_or_default();
    context.out.show(
        || json!({ "namespace": namespace_view(&namespace), "rev": answer.rev }),
        || format!("{}: {}", namespace.name, quota_line(&namespace.quotas.unwrap_or_default())),
    )
}

async fn list(context: &Context) -> Result<(), Failure> {
    let answer = context.client.namespaces().list().await?;
    context.out.show(
        || json!({ "namespaces": answer.namespaces.iter().map(info_view).collect::<Vec<_>>(), "rev": answer.rev }),
        || {
            let now = now_ms();
            let header = ["name", "age", "tasks", "agents", "sessions", "messages", "bytes", "documents", "bytes"];
            table(header, answer.namespaces.iter().map(|info| row(info, now)).collect(), "no namespaces")
        },
    )
}

fn namespace_view(namespace: &Namespace) -> Value {
    let quotas = namespace.quotas.unwrap_or_default();
    json!({
        "name": namespace.name,
        "created_at_ms": (namespace.created_at_ms > 0).then_some(namespace.created_at_ms),
        "quotas": {
            "max_live_tasks": quotas.max_live_tasks,
            "max_agents": quotas.max_agents,
            "max_sessions": quotas.max_sessions,
            "max_messages": quotas.max_messages,
            "max_message_bytes": quotas.max_message_bytes,
            "max_kv_keys": quotas.max_kv_keys,
            "max_kv_bytes": quotas.max_kv_bytes,
        },
    })
}

fn info_view(info: &NamespaceInfo) -> Value {
    let mut view = namespace_view(&info.namespace.clone().unwrap_or_default());
    if let Value::Object(fields) = &mut view {
        fields.insert("usage".to_owned(), usage_view(&info.usage.unwrap_or_default()));
    }
    view
}

fn usage_view(usage: &NamespaceUsage) -> Value {
    json!({
        "live_tasks": usage.live_tasks,
        "agents": usage.agents,
        "sessions": usage.sessions,
        "messages": usage.messages,
        "message_bytes": usage.message_bytes,
        "kv_keys": usage.kv_keys,
        "kv_bytes": usage.kv_bytes,
    })
}

fn row(info: &NamespaceInfo, now_ms: u64) -> [String; 9] {
    let namespace = info.namespace.clone().unwrap_or_default();
    let (quotas, created_at_ms) = (namespace.quotas.unwrap_or_default(), namespace.created_at_ms);
    let usage = info.usage.unwrap_or_default();
    [
        namespace.name,
        age(created_at_ms, now_ms),
        used(usage.live_tasks, quotas.max_live_tasks),
        used(usage.agents, quotas.max_agents),
        used(usage.sessions, quotas.max_sessions),
        used(usage.messages, quotas.max_messages),
        used(usage.message_bytes, quotas.max_message_bytes),
        used(usage.kv_keys, quotas.max_kv_keys),
        used(usage.kv_bytes, quotas.max_kv_bytes),
    ]
}

/// `7 of 50`, `7`
fn used(used: u64, quota: u64) -> String {
    if quota == 0 { used.to_string() } else { format!("{used} of {quota}") }
}

/// `max_live_tasks 10000, max_agents 50`
fn quota_line(quotas: &Quotas) -> String {
    let all = [
        ("max_live_tasks", quotas.max_live_tasks),
        ("max_agents", quotas.max_agents),
        ("max_sessions", quotas.max_sessions),
        ("max_messages", quotas.max_messages),
        ("max_message_bytes", quotas.max_message_bytes),
        ("max_kv_keys", quotas.max_kv_keys),
        ("max_kv_bytes", quotas.max_kv_bytes),
    ];
    let set: Vec<String> =
        all.iter().filter(|(_, most)| *most > 0).map(|(name, most)| format!("{name} {most}")).collect();
    if set.is_empty() { "no quotas".to_owned() } else { set.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Option<Command> {
        crate::cli::subcommand(line.split(' ')).ok()
    }

    #[test]
    fn a_quota_that_is_left_out_stays_as_it_is() {
        let line = "namespace set research --max-live-tasks 10000 --max-agents 0";
        let Some(Command::Set { name, quotas }) = parsed(line) else { panic!("{line}") };
        let now = Quotas { max_agents: 50, max_kv_keys: 7, ..Quotas::default() };
        let sent = quotas.over(&now);
        assert_eq!(name, "research");
        assert_eq!((sent.max_live_tasks, sent.max_agents, sent.max_kv_keys), (10_000, 0, 7));
        assert_eq!(quota_line(&sent), "max_live_tasks 10000, max_kv_keys 7");
        assert!(parsed("namespace set").is_none() && parsed("namespace delete research").is_some());
    }

    #[test]
    fn a_row_shows_what_is_used_of_what() {
        let quotas = Some(Quotas { max_agents: 50, ..Quotas::default() });
        let namespace = Some(Namespace { name: "research".into(), quotas, ..Namespace::default() });
        let usage = Some(NamespaceUsage { live_tasks: 3, agents: 7, ..NamespaceUsage::default() });
        let info = NamespaceInfo { namespace, usage };
        assert_eq!(row(&info, 0)[..4], ["research", "-", "3", "7 of 50"]);
        assert_eq!(
            (&info_view(&info)["usage"]["agents"], &info_view(&info)["quotas"]["max_agents"]),
            (&json!(7), &json!(50))
        );
    }
}
