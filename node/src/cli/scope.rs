//! `quorate scope`: hold a set of paths, run a command under it, see who holds what.

use clap::{Args, Subcommand};
use prost::Message;
use quorate_client::v1::ScopeLease;
use quorate_client::{ScopeBuilder, ScopeGuard, Session};
use serde_json::json;

use super::exit::Failure;
use super::output::{age, or_dash, short, table};
use super::signals::Signals;
use super::{Context, held, view};

const ACQUIRE_EXAMPLES: &str = "\
EXAMPLES:
  quorate scope acquire --realm repo:web 'src/**'
      everything below src; prints the id and the token, and holds it until Ctrl-C
  quorate scope acquire --realm repo:web 'src/api/*.rs' docs/api.md --note 'rewrite, see #812'
      all of it, or nothing

GLOBS:
  ? one character, * any number of them, [a-z] and [!a-z] one of a class, ** any number of directories;
  a / at the end means everything below. Quote them: the shell reads them as something else.
Exit code 1: somebody holds what overlaps (the message says who and what), or it was lost.";

const RUN_EXAMPLES: &str = "\
EXAMPLES:
  quorate scope run --realm repo:web 'src/api/**' -- ./refactor.sh
      only if nobody else works there

THE ENVIRONMENT:
  QUORATE_SCOPE        the lease's id
  QUORATE_SCOPE_TOKEN  its token
  QUORATE_ENDPOINTS, QUORATE_NAMESPACE

EXIT CODE:
  the command's own; 1 if the lease was not granted, or was lost before the command had ended";

const LIST_EXAMPLES: &str = "\
EXAMPLES:
  quorate scope list
      every lease
  quorate scope list --realm repo:web src/api/users.rs
      who is in the way of this file; a glob will do too";

/// `quorate scope …`
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Hold globs until Ctrl-C or SIGTERM; prints the lease's id and token
    #[command(after_help = ACQUIRE_EXAMPLES)]
    Acquire(TakeArgs),
    /// Run a command while holding globs
    #[command(after_help = format!("{RUN_EXAMPLES}\n\n{}", held::THE_COMMAND))]
    Run {
        #[command(flatten)]
        take: TakeArgs,
        /// The command and its arguments
        #[arg(value_name = "COMMAND", last = true, required = true)]
        command: Vec<String>,
    },
    /// List the leases: all, those of a realm, or those that overlap with a path
    #[command(after_help = LIST_EXAMPLES)]
    List {
        /// Only leases of this realm
        #[arg(long, value_name = "REALM")]
        realm: Option<String>,
        /// Only leases that overlap with one of these paths or globs
        #[arg(value_name = "PATH", requires = "realm")]
        paths: Vec<String>,
    },
    /// End a lease, whoever holds it: its holder is fenced from then on
    ForceRelease {
        /// The lease
        #[arg(value_name = "ID")]
        id: String,
        /// Why, for whoever looks
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
}

/// How globs are taken.
#[derive(Args)]
pub(crate) struct TakeArgs {
    /// What the globs are paths of, such as repo:web, branches or hosts
    #[arg(long, value_name = "REALM")]
    realm: String,
    /// What to hold: 1 to 32 paths or globs
    #[arg(value_name = "GLOB", required = true)]
    globs: Vec<String>,
    /// Together with other shared holders
    #[arg(long)]
    shared: bool,
    /// The lease's id (default: drawn)
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// Who takes it, for whoever looks (default: drawn)
    #[arg(long, value_name = "NAME")]
    owner: Option<String>,
    /// What for, for whoever looks
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,
}

impl TakeArgs {
    /// The lease that they describe, not taken yet.
    fn describe(&self, mut scope: ScopeBuilder) -> ScopeBuilder {
        if self.shared {
            scope = scope.shared();
        }
        if let Some(id) = &self.id {
            scope = scope.id(id);
        }
        if let Some(owner) = &self.owner {
            scope = scope.owner(owner);
        }
        if let Some(note) = &self.note {
            scope = scope.note(note);
        }
        scope
    }
}

/// Does what the arguments say.
pub(crate) async fn run(context: &Context, command: Command) -> Result<(), Failure> {
    match command {
        Command::Acquire(args) => acquire(context, &args).await,
        Command::Run { take, command } => run_under(context, &take, &command).await,
        Command::List { realm, paths } => list(context, &realm.unwrap_or_default(), paths).await,
        Command::ForceRelease { id, reason } => {
            force_release(context, &id, reason.as_deref().unwrap_or_default()).await
        }
    }
}

async fn acquire(context: &Context, args: &TakeArgs) -> Result<(), Failure> {
    held::in_session(context, async |session: &Session, signals: &mut Signals| -> Result<(), Failure> {
        let guard = take(context, session, signals, args).await?;
        context.out.event(|| view::scope(guard.lease()), || format!("{} {}", guard.id(), guard.token()))?;
        context.out.progress(&format!("{} is held; Ctrl-C gives it back", args.globs.join(" ")));
        let is_lost = tokio::select! {
            () = over(context, &guard) => true,
            () = signals.next() => false,
        };
        if is_lost {
            return Err(Failure::failed(format!("scope {} was lost", guard.id())));
        }
        Ok(held::give_back(guard.release(), signals).await?)
    })
    .await
}

async fn run_under(context: &Context, args: &TakeArgs, command: &[String]) -> Result<(), Failure> {
    held::in_session(context, async |session: &Session, signals: &mut Signals| -> Result<(), Failure> {
        let guard = take(context, session, signals, args).await?;
        let grant = [("QUORATE_SCOPE", guard.id().to_owned()), ("QUORATE_SCOPE_TOKEN", guard.token().to_string())];
        let environment = held::environment(context, grant);
        let ended = held::run(command, environment, over(context, &guard), signals).await?;
        held::conclude(context, &format!("scope {}", guard.id()), ended, guard.release(), signals).await
    })
    .await
}

async fn take(
    context: &Context,
    session: &Session,
    signals: &mut Signals,
    args: &TakeArgs,
) -> Result<ScopeGuard, Failure> {
    let scope = args.describe(context.client.locks().acquire_scope(session, &args.realm, &args.globs));
    tokio::select! {
        taken = scope.acquire() => Ok(taken?),
        () = signals.next() => Err(held::stopped()),
    }
}

/// Resolves when the lease is over, whoever says so.
async fn over(context: &Context, guard: &ScopeGuard) {
    let is_held = |put: &[u8]| match ScopeLease::decode(put) {
        Ok(lease) => lease.token == guard.token(),
        // Something newer than this program.
        Err(_) => true,
    };
    tokio::select! {
        () = guard.lost() => {}
        () = held::taken_away(&context.client, "scopes", guard.id(), guard.token(), is_held) => {}
    }
}

async fn list(context: &Context, realm: &str, paths: Vec<String>) -> Result<(), Failure> {
    let answer = context.client.locks().scopes(realm, paths).await?;
    context.out.show(
        || json!({ "scopes": answer.leases.iter().map(view::scope).collect::<Vec<_>>(), "rev": answer.rev }),
        || {
            let header = ["id", "realm", "globs", "mode", "who", "token", "for", "task", "note"];
            table(header, answer.leases.iter().map(|lease| row(lease, answer.now_ms)).collect(), "no leases")
        },
    )
}

async fn force_release(context: &Context, id: &str, reason: &str) -> Result<(), Failure> {
    let answer = context.client.locks().force_release_scope(id, reason).await?;
    let released = answer.released.unwrap_or_default();
    context.out.show(
        || json!({ "released": view::scope(&released), "rev": answer.rev }),
        || format!("{id} was taken from {}", view::who(&released.session_id, &released.owner)),
    )
}

fn row(lease: &ScopeLease, now_ms: u64) -> [String; 9] {
    [
        lease.id.clone(),
        lease.realm.clone(),
        lease.globs.join(" "),
        view::lock_mode(lease.mode),
        view::who(&lease.session_id, &lease.owner),
        lease.token.to_string(),
        age(lease.acquired_at_ms, now_ms),
        or_dash(&lease.task_id),
        short(&or_dash(&lease.note), 40),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &[&str]) -> Option<Command> {
        crate::cli::subcommand([&["scope"][..], line].concat()).ok()
    }

    #[test]
    fn globs_end_where_the_command_begins() {
        let line = ["run", "--realm", "repo:web", "src/**", "docs/api.md", "--", "sh", "-c", "make"];
        let Some(Command::Run { take, command }) = parsed(&line) else { panic!("not understood") };
        assert_eq!((take.realm.as_str(), take.globs.join(" ")), ("repo:web", "src/** docs/api.md".to_owned()));
        assert_eq!(command, ["sh", "-c", "make"]);
        assert!(parsed(&["run", "--realm", "r", "--", "make"]).is_none(), "without a glob");
        assert!(parsed(&["acquire", "src/**"]).is_none(), "without a realm");
    }

    #[test]
    fn paths_mean_something_in_a_realm_only() {
        assert!(matches!(parsed(&["list"]), Some(Command::List { realm: None, .. })));
        assert!(parsed(&["list", "--realm", "r"]).is_some());
        let Some(Command::List { paths, .. }) = parsed(&["list", "--realm", "r", "a", "b"]) else { panic!("no") };
        assert_eq!(paths, ["a", "b"]);
        assert!(parsed(&["list", "a"]).is_none());
    }

    #[test]
    fn a_row_says_who_holds_what_since_when() {
        let lease = ScopeLease {
            id: "s-1".into(),
            realm: "repo:web".into(),
            globs: vec!["src/**".into(), "a.md".into()],
            session_id: "s1".into(),
            owner: "o".into(),
            token: 7,
            acquired_at_ms: 1_000,
            ..ScopeLease::default()
        };
        assert_eq!(row(&lease, 6_000)[..7], ["s-1", "repo:web", "src/** a.md", "exclusive", "s1/o", "7", "5.0s"]);
    }
}
