//! `quorate agent`: who exists, what they can do, how busy they are.

use clap::{Args, Subcommand};
use futures::StreamExt;
use futures::future::join_all;
use quorate_client::v1::{Agent, AgentEvent, AgentFilter, AgentStatus, ExecutionMode, FindAgentsRequest, Task};
use serde_json::json;

use super::exit::Failure;
use super::output::{age, facts, now_ms, or_dash, short, table};
use super::task::task_rows;
use super::{Context, task, values, view};

const LIST_EXAMPLES: &str = "\
EXAMPLES:
  quorate agent list
      everybody, the least loaded first
  quorate agent list --capability code-review --capability rust --status available --max-load 0.7
      who offers both, and has room
  quorate agent list --min-health 0.8 -o json
      for a program
  quorate agent list --watch
      one line for every agent, then one for every change";

/// `quorate agent …`
#[derive(Subcommand)]
pub(crate) enum Command {
    /// List agents, the least loaded first
    #[command(after_help = LIST_EXAMPLES)]
    List(ListArgs),
    /// Show one agent and its latest tasks
    Info {
        /// The agent
        #[arg(value_name = "ID")]
        id: String,
    },
    /// Give an agent no more work; it is removed when its last task has ended
    Drain {
        /// The agent
        #[arg(value_name = "ID")]
        id: String,
    },
    /// Remove an agent now; what it was working on returns to the queue
    Remove {
        /// The agent
        #[arg(value_name = "ID")]
        id: String,
    },
}

/// Flags of `quorate agent list`.
#[derive(Args)]
pub(crate) struct ListArgs {
    /// Only agents that offer this; repeat to require several
    #[arg(long, value_name = "NAME")]
    capability: Vec<String>,
    /// Only agents in this state: available, busy, draining, unavailable, failed; repeat to allow several
    #[arg(long, value_name = "STATUS", value_parser = values::agent_status)]
    status: Vec<AgentStatus>,
    /// Only agents of this type
    #[arg(long = "type", value_name = "TYPE")]
    agent_type: Option<String>,
    /// Only agents that work this way: autonomous, scheduled, continuous, collaborative
    #[arg(long, value_name = "MODE", value_parser = values::execution_mode)]
    mode: Option<ExecutionMode>,
    /// Only agents at least this healthy, from 0.0 to 1.0
    #[arg(long, value_name = "SHARE", value_parser = values::permille)]
    min_health: Option<u32>,
    /// Only agents at most this loaded (load by capacity), from 0.0 to 1.0
    #[arg(long, value_name = "SHARE", value_parser = values::permille)]
    max_load: Option<u32>,
    /// How many at most
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    /// Stay, and print every change as one line
    #[arg(long, conflicts_with = "limit")]
    watch: bool,
}

impl ListArgs {
    fn filter(&self) -> AgentFilter {
        AgentFilter {
            capabilities: self.capability.clone(),
            statuses: self.status.iter().map(|status| *status as i32).collect(),
            agent_type: self.agent_type.clone().unwrap_or_default(),
            execution_mode: self.mode.map_or(0, |mode| mode as i32),
            min_health_permille: self.min_health.unwrap_or_default(),
            max_load_permille: self.max_load,
        }
    }
}

/// Does what the arguments say.
pub(crate) async fn run(context: &Context, command: Command) -> Result<(), Failure> {
    match command {
        Command::List(args) if args.watch => watch(context, &args).await,
        Command::List(args) => list(context, &args).await,
        Command::Info { id } => info(context, &id).await,
        Command::Drain { id } => drain(context, &id).await,
        Command::Remove { id } => remove(context, &id).await,
    }
}

async fn list(context: &Context, args: &ListArgs) -> Result<(), Failure> {
    let request = FindAgentsRequest { filter: Some(args.filter()), limit: args.limit, ..Default::default() };
    let found = context.client.agents().find(request).await?;
    if found.agents.len() >= args.limit as usize {
        context.out.note(&format!("only the first {} are shown; --limit shows more", args.limit));
    }
    context.out.show(
        || json!({ "agents": found.agents.iter().map(view::agent).collect::<Vec<_>>(), "rev": found.rev }),
        || agent_table(&found.agents),
    )
}

async fn watch(context: &Context, args: &ListArgs) -> Result<(), Failure> {
    let agents = context.client.agents();
    let mut events = std::pin::pin!(agents.watch(args.filter()));
    while let Some(event) = events.next().await {
        let event = event?;
        context.out.event(|| event_view(&event), || event_line(&event))?;
    }
    Err(Failure::unavailable("the watch ended: the node that served it went away"))
}

fn event_view(event: &AgentEvent) -> serde_json::Value {
    json!({ "kind": view::event_kind(event.kind), "agent": event.agent.as_ref().map(view::agent), "rev": event.rev })
}

fn event_line(event: &AgentEvent) -> String {
    let agent = event.agent.clone().unwrap_or_default();
    format!(
        "{:<8} {}  {}  load {}/{}  health {}  [{}]  {}",
        view::event_kind(event.kind),
        agent.id,
        view::agent_status(agent.status),
        agent.load,
        agent.capacity,
        view::percent(agent.health_permille),
        agent.capabilities.join(", "),
        agent.reason,
    )
}

async fn info(context: &Context, id: &str) -> Result<(), Failure> {
    let answer = context.client.agents().get(id).await?;
    let agent = answer.agent.ok_or_else(|| Failure::not_found(format!("no agent {id}")))?;
    let tasks = context.client.tasks();
    // A task may have been removed meanwhile: then it is not recent any more.
    let calls = answer.recent_task_ids.iter().map(|id| tasks.get(id));
    let tasks: Vec<Task> = join_all(calls).await.into_iter().filter_map(|answer| answer.ok()?.task).collect();
    context.out.show(
        || {
            let tasks: Vec<_> = tasks.iter().map(view::task).collect();
            json!({ "agent": view::agent(&agent), "recent_tasks": tasks, "rev": answer.rev })
        },
        || {
            let tasks = table(task::TASK_HEADER, task_rows(&tasks, now_ms()), "no tasks yet");
            format!("{}\n{tasks}", agent_facts(&agent))
        },
    )
}

async fn drain(context: &Context, id: &str) -> Result<(), Failure> {
    let answer = context.client.agents().drain(id).await?;
    context.out.show(
        || json!({ "agent_id": id, "remaining": answer.remaining, "rev": answer.rev }),
        || match answer.remaining {
            0 => format!("{id} had nothing to do and is removed"),
            left => format!("{id} is draining; it is removed when {left} running attempts have ended"),
        },
    )
}

async fn remove(context: &Context, id: &str) -> Result<(), Failure> {
    let answer = context.client.agents().deregister(id).await?;
    context.out.show(
        || json!({ "agent_id": id, "released_tasks": answer.released_tasks, "rev": answer.rev }),
        || format!("{id} is removed; {} tasks returned to the queue", answer.released_tasks),
    )
}

fn agent_table(agents: &[Agent]) -> String {
    let now = now_ms();
    let header = ["id", "type", "status", "load", "health", "mode", "capabilities", "changed", "reason"];
    let rows = agents
        .iter()
        .map(|agent| {
            [
                agent.id.clone(),
                or_dash(&agent.agent_type),
                view::agent_status(agent.status),
                format!("{}/{}", agent.load, agent.capacity),
                view::percent(agent.health_permille),
                mode(agent),
                or_dash(&agent.capabilities.join(", ")),
                age(agent.updated_at_ms, now),
                short(&or_dash(&agent.reason), 40),
            ]
        })
        .collect();
    table(header, rows, "no agents")
}

fn agent_facts(agent: &Agent) -> String {
    let now = now_ms();
    let metadata: Vec<String> = agent.metadata.iter().map(|pair| format!("{}={}", pair.key, pair.value)).collect();
    facts(vec![
        ("id", agent.id.clone()),
        ("type", agent.agent_type.clone()),
        ("status", view::agent_status(agent.status)),
        ("reason", agent.reason.clone()),
        ("load", format!("{} of {}", agent.load, agent.capacity)),
        ("health", view::percent(agent.health_permille)),
        ("mode", mode(agent)),
        ("capabilities", agent.capabilities.join(", ")),
        ("endpoint", agent.endpoint.clone()),
        ("metadata", metadata.join(", ")),
        ("session", agent.session_id.clone()),
        ("restarts", agent.restarts.to_string()),
        ("registered", format!("{} ago", age(agent.registered_at_ms, now))),
        ("changed", format!("{} ago", age(agent.updated_at_ms, now))),
        ("revision", agent.revision.to_string()),
    ])
}

fn mode(agent: &Agent) -> String {
    match view::execution_mode(agent.execution_mode).as_str() {
        "unspecified" => "-".into(),
        mode => mode.to_owned(),
    }
}
