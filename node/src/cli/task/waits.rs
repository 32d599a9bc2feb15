//! What tasks wait for: the reasons, more dependencies, circles.

use clap::Args;
use quorate_client::v1::{AddDependenciesRequest, Deadlock, Reason};
use serde_json::json;

use crate::cli::exit::Failure;
use crate::cli::output::{or_dash, plain, table};
use crate::cli::{Context, view};

pub(super) const WHY_EXAMPLES: &str = "\
EXAMPLES:
  quorate task why deploy
      every reason, the most telling first: an open dependency, a limit, an open breaker, nobody who could do it
  quorate task why deploy -o json | jq -r '.reasons[0].code'
      one word for a program";

pub(super) const DEPEND_EXAMPLES: &str = "\
EXAMPLES:
  quorate task depend deploy --on build,test
      deploy starts when both are completed; refused, with the path, if that would close a circle";

pub(super) const DEADLOCKS_EXAMPLES: &str = "\
EXAMPLES:
  quorate task deadlocks
      each circle, and the task that would be skipped to break it
  quorate task deadlocks --resolve
      skips that task in each: those that wait for it go on";

/// Flags of `quorate task depend`.
#[derive(Args)]
pub(crate) struct DependArgs {
    /// The task; it must not be running
    #[arg(value_name = "ID")]
    id: String,
    /// What it must wait for, at most 256
    #[arg(long, value_name = "ID,..", value_delimiter = ',', required = true)]
    on: Vec<String>,
}

/// Flags of `quorate task deadlocks`.
#[derive(Args)]
pub(crate) struct DeadlocksArgs {
    /// Skip the task of the lowest priority in each circle
    #[arg(long)]
    resolve: bool,
}

pub(super) async fn why(context: &Context, id: &str) -> Result<(), Failure> {
    let answer = context.client.tasks().why(id).await?;
    let status = view::task_status(answer.status);
    context.out.show(
        || {
            let reasons: Vec<_> = answer.reasons.iter().map(view::reason).collect();
            json!({ "task_id": id, "status": status, "reasons": reasons, "rev": answer.rev })
        },
        || format!("{id} is {status}\n{}", table(["why", "about", "what"], reason_rows(&answer.reasons), "")),
    )
}

fn reason_rows(reasons: &[Reason]) -> Vec<[String; 3]> {
    reasons.iter().map(|reason| [reason.code.clone(), or_dash(&reason.subject), reason.message.clone()]).collect()
}

pub(super) async fn depend(context: &Context, args: DependArgs) -> Result<(), Failure> {
    let DependArgs { id, on } = args;
    let request = AddDependenciesRequest { task_id: id, dependencies: on, request: None };
    let answer = context.client.tasks().add_dependencies(request).await?;
    let task = answer.task.unwrap_or_default();
    context.out.show(
        || json!({ "task": view::task(&task), "rev": answer.rev }),
        || {
            let dependencies = view::spec_of(&task).dependencies.join(", ");
            format!("{} is {}, and waits for {dependencies}", task.id, view::task_status(task.status))
        },
    )
}

pub(super) async fn deadlocks(context: &Context, args: &DeadlocksArgs) -> Result<(), Failure> {
    let tasks = context.client.tasks();
    let (name, victim, empty, found, rev) = if args.resolve {
        let answer = tasks.resolve_deadlocks().await?;
        ("resolved", "skipped", "no circle to break", answer.resolved, answer.rev)
    } else {
        let answer = tasks.deadlocks().await?;
        ("deadlocks", "to skip", "no task waits for itself", answer.deadlocks, answer.rev)
    };
    context.out.show(
        || json!({ name: found.iter().map(view::deadlock).collect::<Vec<_>>(), "rev": rev }),
        || {
            let rows = found.iter().map(|deadlock| [circle(deadlock), deadlock.victim.clone()]).collect();
            table(["each waits for the next", victim], rows, empty)
        },
    )
}

/// `a → b → a`
fn circle(deadlock: &Deadlock) -> String {
    let ids = deadlock.task_ids.iter().chain(deadlock.task_ids.first());
    plain(&ids.map(String::as_str).collect::<Vec<_>>().join(" → "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_circle_ends_where_it_began() {
        let ids = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>();
        assert_eq!(circle(&Deadlock { task_ids: ids(&["a", "b"]), victim: "b".into() }), "a → b → a");
        assert_eq!(circle(&Deadlock { task_ids: ids(&["a"]), victim: "a".into() }), "a → a");
        assert_eq!(circle(&Deadlock::default()), "");
    }

    #[test]
    fn reasons_are_rows() {
        let reason = Reason { code: "no_agent".into(), message: "nobody offers rust".into(), subject: String::new() };
        assert_eq!(reason_rows(&[reason]), [["no_agent", "-", "nobody offers rust"].map(String::from)]);
    }
}
