//! `quorate dlq`: dead letters, the tasks that failed for good or ran out of time, and the messages that a subscription
//! gave up on.
//!
//! ```text
//!   tasks       named by their ids
//!   messages    named by their subscription and their number in it
//! ```

mod messages;
mod tasks;

use clap::{Args, Subcommand};
use quorate_client::Error;
use serde_json::Value;

use self::messages::{Found, message_table};
use self::tasks::{dead_letters, letter_table};
use super::exit::Failure;
use super::task::Paging;
use super::{Context, view};

const EXAMPLES: &str = "\
EXAMPLES:
  quorate dlq list --project shop
      which tasks failed, and with which error
  quorate dlq show fix-7
      one of them, with its attempts
  quorate dlq redrive fix-7 fix-8
      back to the queue, their failures forgotten
  quorate dlq redrive --all --project shop
      all of a project, once the cause is gone
  quorate dlq purge --all --yes
      removes all of them with what they left, but for those that others wait for; cannot be undone

EXAMPLES WITH MESSAGES:
  quorate dlq list --messages --subscription mail
      what the subscription gave up on, and why
  quorate dlq show mail/1042
      one of them, with its payload and its failed attempts
  quorate dlq redrive --messages --subscription mail 1042 1043
      back into the subscription, as if new; without numbers, all that are dead now
  quorate dlq purge --messages --subscription mail --yes
      removes all that are dead now; cannot be undone";

/// `quorate dlq …`
#[derive(Subcommand)]
pub(crate) enum Command {
    /// List dead letters, tasks by id and then messages
    #[command(after_help = EXAMPLES)]
    List(ListArgs),
    /// Show one dead letter and its attempts
    #[command(after_help = EXAMPLES)]
    Show {
        /// The task, or the message as SUBSCRIPTION/NUMBER
        #[arg(value_name = "ID")]
        id: String,
        /// A message is meant, even if there is a task of this id
        #[arg(long)]
        messages: bool,
    },
    /// Send dead letters back, their failures forgotten
    #[command(after_help = EXAMPLES)]
    Redrive(RedriveArgs),
    /// Remove dead letters with their attempts and payloads; cannot be undone
    #[command(after_help = EXAMPLES)]
    Purge(PurgeArgs),
}

/// Flags of `quorate dlq list`.
#[derive(Args)]
pub(crate) struct ListArgs {
    /// Only tasks of this project, and no messages
    #[arg(long, value_name = "NAME", conflicts_with = "messages")]
    project: Option<String>,
    /// Only messages
    #[arg(long, conflicts_with = "page_token")]
    messages: bool,
    /// With --messages: only those of this subscription
    #[arg(long, value_name = "NAME", requires = "messages")]
    subscription: Option<String>,
    #[command(flatten)]
    paging: Paging,
}

/// Flags of `quorate dlq redrive`.
#[derive(Args)]
pub(crate) struct RedriveArgs {
    /// The tasks; with --messages, numbers of messages
    #[arg(value_name = "ID", required_unless_present_any = ["all", "messages"], conflicts_with = "all")]
    ids: Vec<String>,
    /// All dead tasks
    #[arg(long, conflicts_with = "messages")]
    all: bool,
    /// With --all: only those of this project
    #[arg(long, value_name = "NAME", requires = "all", conflicts_with = "ids")]
    project: Option<String>,
    /// Messages of a subscription; without numbers, all that are dead now
    #[arg(long, requires = "subscription")]
    messages: bool,
    /// With --messages: whose
    #[arg(long, value_name = "NAME", requires = "messages")]
    subscription: Option<String>,
}

/// Flags of `quorate dlq purge`.
#[derive(Args)]
pub(crate) struct PurgeArgs {
    /// The tasks; with --messages, numbers of messages
    #[arg(value_name = "ID", required_unless_present_any = ["all", "messages"], conflicts_with = "all")]
    ids: Vec<String>,
    /// All dead tasks; needs --yes
    #[arg(long, requires = "yes", conflicts_with = "messages")]
    all: bool,
    /// With --all: only those of this project
    #[arg(long, value_name = "NAME", requires = "all")]
    project: Option<String>,
    /// Messages of a subscription; without numbers all that are dead now, which needs --yes
    #[arg(long, requires = "subscription")]
    messages: bool,
    /// With --messages: whose
    #[arg(long, value_name = "NAME", requires = "messages")]
    subscription: Option<String>,
    /// With --all, or --messages without numbers: yes, remove them
    #[arg(long)]
    yes: bool,
}

/// Does what the arguments say.
pub(crate) async fn run(context: &Context, command: Command) -> Result<(), Failure> {
    match command {
        Command::List(args) if args.messages => {
            let found = messages::find(context, args.subscription.as_deref().unwrap_or_default(), &args.paging).await?;
            context.out.show(|| found.json(), || message_table(&found.messages))
        }
        Command::List(args) => list(context, args).await,
        Command::Show { id, messages } => show(context, &id, messages).await,
        Command::Redrive(RedriveArgs { ids, subscription: Some(subscription), .. }) => {
            messages::redrive(context, &subscription, &ids).await
        }
        Command::Redrive(args) => tasks::redrive(context, args).await,
        Command::Purge(PurgeArgs { ids, subscription: Some(subscription), yes, .. }) => {
            messages::purge(context, &subscription, &ids, yes).await
        }
        Command::Purge(args) => tasks::purge(context, args).await,
    }
}

/// Tasks, and beside the first page of all of them the messages.
async fn list(context: &Context, args: ListArgs) -> Result<(), Failure> {
    let is_about_all = args.project.is_none() && args.paging.is_first();
    let pages = dead_letters(context, &args.paging, args.project).await?;
    let found = if is_about_all { messages::find(context, "", &args.paging).await? } else { Found::default() };
    context.out.show(
        || {
            let mut view = pages.json("tasks", view::task);
            if let (Value::Object(view), true) = (&mut view, is_about_all) {
                view.insert("messages".to_owned(), found.views());
                view.insert("messages_total".to_owned(), found.total.into());
            }
            view
        },
        || match (pages.rows.is_empty(), found.messages.is_empty()) {
            (_, true) => letter_table(&pages.rows),
            (true, false) => message_table(&found.messages),
            (false, false) => format!("{}\n{}", letter_table(&pages.rows), message_table(&found.messages)),
        },
    )
}

/// A task if there is one of this id, else a message.
async fn show(context: &Context, id: &str, is_message: bool) -> Result<(), Failure> {
    let message = messages::named(id);
    if is_message {
        let (subscription, seq) =
            message.ok_or_else(|| Failure::bad_input(format!("expected SUBSCRIPTION/NUMBER; got {id}")))?;
        return messages::show(context, subscription, seq).await;
    }
    match (context.client.tasks().get(id).await, message) {
        (Ok(answer), _) => tasks::show(context, id, answer).await,
        (Err(error), Some((subscription, seq))) if error.is_not_found() => {
            messages::show(context, subscription, seq).await
        }
        (Err(error), _) => Err(error.into()),
    }
}

/// A failure after some were done already says how many.
fn in_part(error: Error, done: u64, what: &str) -> Failure {
    let failure = Failure::from(error);
    if done == 0 {
        return failure;
    }
    Failure::from_anyhow(&anyhow::Error::new(failure).context(format!("{done} were {what}, then it stopped")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Option<Command> {
        crate::cli::subcommand(line.split(' ')).ok()
    }

    fn accepted(line: &str) -> bool {
        parsed(line).is_some()
    }

    #[test]
    fn all_is_said_on_purpose() {
        assert!(accepted("dlq redrive a b") && accepted("dlq redrive --all --project p"));
        assert!(accepted("dlq purge a") && accepted("dlq purge --all --yes"));
        let wrong = ["dlq redrive", "dlq redrive a --all", "dlq redrive a --project p", "dlq purge --all", "dlq purge"];
        for line in wrong {
            assert!(!accepted(line), "{line}");
        }
    }

    #[test]
    fn messages_are_those_of_a_subscription() {
        assert!(accepted("dlq list --messages") && accepted("dlq list --messages --subscription mail --all"));
        let wrong = ["dlq list --subscription mail", "dlq list --messages --project p", "dlq redrive --messages"];
        for line in wrong.into_iter().chain(["dlq redrive a --subscription mail", "dlq purge --messages --all --yes"]) {
            assert!(!accepted(line), "{line}");
        }
        let line = "dlq redrive --messages --subscription mail 7 8";
        let Some(Command::Redrive(args)) = parsed(line) else { panic!("{line}") };
        assert_eq!((args.subscription.as_deref(), args.ids.join(" ")), (Some("mail"), "7 8".to_owned()));
        assert!(accepted("dlq redrive --messages --subscription mail"), "all of them");
        assert!(accepted("dlq purge --messages --subscription mail --yes"));
    }

    #[test]
    fn a_failure_half_way_says_how_far_it_came() {
        let lost = || Error::OutcomeUnknown { message: "gone".into() };
        assert!(!in_part(lost(), 0, "purged").to_string().contains("were"));
        let failure = in_part(lost(), 1_000, "purged");
        assert!(failure.code() == 5 && failure.to_string().starts_with("1000 were purged"), "{failure}");
    }
}
