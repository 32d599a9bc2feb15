//! `quorate lock`: hold a name, run a command under it, see who holds what and who waits.

use std::time::Duration;

use clap::{Args, Subcommand};
use prost::Message;
use quorate_client::v1::{ListLocksRequest, Lock, LockHolder};
use quorate_client::{LockBuilder, LockGuard, Session};
use serde_json::json;

use super::exit::Failure;
use super::output::{age, or_dash, short, span, table, took};
use super::signals::Signals;
use super::{Context, held, values, view};

const ACQUIRE_EXAMPLES: &str = "\
EXAMPLES:
  quorate lock acquire deploy:web --wait 5m --note 'release 1.4'
      waits in line, prints the token, and holds the lock until Ctrl-C
  quorate lock acquire schema --shared --max-hold 1h
      together with other shared holders, for an hour at most

The token goes with whatever is written under the lock: see `quorate lock run --help`.
Exit code 1: others hold it and the wait is over, or it was lost.";

const RUN_EXAMPLES: &str = "\
EXAMPLES:
  quorate lock run deploy:web -- ./deploy.sh
      only if nobody deploys
  quorate lock run deploy:web --wait 10m --max-hold 1h -- make deploy
      in turn, and for longer than the five minutes that a lock is held otherwise

THE ENVIRONMENT:
  QUORATE_LOCK        the lock's name
  QUORATE_LOCK_TOKEN  its token, larger than that of any earlier grant: hand it to whatever can refuse an old one
  QUORATE_ENDPOINTS, QUORATE_NAMESPACE

EXIT CODE:
  the command's own; 1 if the lock was not granted, or was lost before the command had ended";

const LIST_EXAMPLES: &str = "\
EXAMPLES:
  quorate lock list
      who holds what, who waits for it, and for how long
  quorate lock list deploy: -o json
      only the locks whose names begin so, for a program";

/// The most that one list shows.
const MOST: i64 = 10_000;

/// `quorate lock …`
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Hold a lock until Ctrl-C or SIGTERM; prints its token
    #[command(after_help = ACQUIRE_EXAMPLES)]
    Acquire(TakeArgs),
    /// Run a command while holding a lock
    #[command(after_help = format!("{RUN_EXAMPLES}\n\n{}", held::THE_COMMAND))]
    Run {
        #[command(flatten)]
        take: TakeArgs,
        /// The command and its arguments
        #[arg(value_name = "COMMAND", last = true, required = true)]
        command: Vec<String>,
    },
    /// List the locks that are held or waited for, by name
    #[command(after_help = LIST_EXAMPLES)]
    List {
        /// Only names that begin so
        #[arg(value_name = "PREFIX")]
        prefix: Option<String>,
        /// How many at most
        #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=MOST))]
        limit: u32,
    },
    /// Show one lock: who holds it, who waits, and for how long
    Show {
        /// The lock
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// End every grant of a lock, whoever holds it: they are fenced from then on
    ForceRelease {
        /// The lock
        #[arg(value_name = "NAME")]
        name: String,
        /// Why, for whoever looks
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
}

/// How a lock is taken.
#[derive(Args)]
pub(crate) struct TakeArgs {
    /// The lock: 1 to 128 letters, digits or . _ - : / @
    #[arg(value_name = "NAME")]
    name: String,
    /// Together with other shared holders
    #[arg(long)]
    shared: bool,
    /// Who takes it, for whoever looks (default: drawn)
    #[arg(long, value_name = "NAME")]
    owner: Option<String>,
    /// How long to wait in line if others hold it (default: not at all)
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    wait: Option<Duration>,
    /// Lost after so long without being extended, which happens by itself: for a process that may hang (100ms to 1d)
    #[arg(long, value_name = "DURATION", value_parser = values::positive_duration)]
    ttl: Option<Duration>,
    /// Lost after so long, extended or not, at most 7d (default 5m)
    #[arg(long, value_name = "DURATION", value_parser = values::positive_duration)]
    max_hold: Option<Duration>,
    /// What for, for whoever looks
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,
}

impl TakeArgs {
    /// The lock that they describe, not taken yet.
    fn describe(&self, mut lock: LockBuilder) -> LockBuilder {
        if self.shared {
            lock = lock.shared();
        }
        if let Some(owner) = &self.owner {
            lock = lock.owner(owner);
        }
        if let Some(wait) = self.wait {
            lock = lock.wait(wait);
        }
        if let Some(ttl) = self.ttl {
            lock = lock.ttl(ttl);
        }
        if let Some(limit) = self.max_hold {
            lock = lock.max_hold(limit);
        }
        if let Some(note) = &self.note {
            lock = lock.note(note);
        }
        lock
    }
}

/// Does what the arguments say.
pub(crate) async fn run(context: &Context, command: Command) -> Result<(), Failure> {
    match command {
        Command::Acquire(args) => acquire(context, &args).await,
        Command::Run { take, command } => run_under(context, &take, &command).await,
        Command::List { prefix, limit } => list(context, prefix.unwrap_or_default(), limit).await,
        Command::Show { name } => show(context, &name).await,
        Command::ForceRelease { name, reason } => {
            force_release(context, &name, reason.as_deref().unwrap_or_default()).await
        }
    }
}

async fn acquire(context: &Context, args: &TakeArgs) -> Result<(), Failure> {
    held::in_session(context, async |session: &Session, signals: &mut Signals| -> Result<(), Failure> {
        let guard = take(context, session, signals, args).await?;
        context.out.event(
            || {
                let (owner, session_id) = (guard.owner(), session.id());
                json!({ "name": guard.name(), "token": guard.token(), "owner": owner, "session_id": session_id })
            },
            || guard.token().to_string(),
        )?;
        context.out.progress(&format!("{} is held; Ctrl-C gives it back", args.name));
        let is_lost = tokio::select! {
            () = over(context, session, &guard) => true,
            () = signals.next() => false,
        };
        if is_lost {
            return Err(Failure::failed(format!("lock {} was lost", args.name)));
        }
        Ok(held::give_back(guard.release(), signals).await?)
    })
    .await
}

async fn run_under(context: &Context, args: &TakeArgs, command: &[String]) -> Result<(), Failure> {
    held::in_session(context, async |session: &Session, signals: &mut Signals| -> Result<(), Failure> {
        let guard = take(context, session, signals, args).await?;
        let grant = [("QUORATE_LOCK", args.name.clone()), ("QUORATE_LOCK_TOKEN", guard.token().to_string())];
        let environment = held::environment(context, grant);
        let ended = held::run(command, environment, over(context, session, &guard), signals).await?;
        held::conclude(context, &format!("lock {}", args.name), ended, guard.release(), signals).await
    })
    .await
}

async fn take(
    context: &Context,
    session: &Session,
    signals: &mut Signals,
    args: &TakeArgs,
) -> Result<LockGuard, Failure> {
    let lock = args.describe(context.client.locks().lock(session, &args.name));
    if let Some(wait) = args.wait {
        context.out.progress(&format!("waiting up to {} for {}", took(wait), args.name));
    }
    tokio::select! {
        taken = lock.acquire() => Ok(taken?),
        () = signals.next() => Err(held::stopped()),
    }
}

/// Resolves when the grant is over, whoever says so.
async fn over(context: &Context, session: &Session, guard: &LockGuard) {
    let is_held = |put: &[u8]| match Lock::decode(put) {
        Ok(lock) => lock.holders.iter().any(|held| held.token == guard.token() && held.session_id == session.id()),
        // Something newer than this program.
        Err(_) => true,
    };
    tokio::select! {
        () = guard.lost() => {}
        () = held::taken_away(&context.client, "locks", guard.name(), guard.token(), is_held) => {}
    }
}

async fn list(context: &Context, prefix: String, limit: u32) -> Result<(), Failure> {
    let request = ListLocksRequest { prefix, limit, ..ListLocksRequest::default() };
    let answer = context.client.locks().list(request).await?;
    if answer.locks.len() >= limit as usize {
        context.out.note(&format!("only the first {limit} are shown; --limit shows more"));
    }
    context.out.show(
        || json!({ "locks": answer.locks.iter().map(view::lock).collect::<Vec<_>>(), "rev": answer.rev }),
        || lock_table(&answer.locks, answer.now_ms),
    )
}

async fn show(context: &Context, name: &str) -> Result<(), Failure> {
    let answer = context.client.locks().get(name).await?;
    let lock = answer.lock.ok_or_else(|| Failure::not_found(format!("nobody holds {name} or waits for it")))?;
    context.out.show(
        || json!({ "lock": view::lock(&lock), "rev": answer.rev }),
        || lock_table(std::slice::from_ref(&lock), answer.now_ms),
    )
}

async fn force_release(context: &Context, name: &str, reason: &str) -> Result<(), Failure> {
    let answer = context.client.locks().force_release(name, reason).await?;
    let shown = |holders: &[LockHolder]| holders.iter().map(view::holder).collect::<Vec<_>>();
    let names = |holders: &[LockHolder]| {
        let names: Vec<String> = holders.iter().map(|held| view::who(&held.session_id, &held.owner)).collect();
        if names.is_empty() { "nobody".to_owned() } else { names.join(", ") }
    };
    context.out.show(
        || json!({ "released": shown(&answer.released), "granted": shown(&answer.granted), "rev": answer.rev }),
        || format!("{name} was taken from {}; {} holds it now", names(&answer.released), names(&answer.granted)),
    )
}

/// A row for every holder, and for everybody who waits, in the order of the line. Ages are by the cluster's clock.
fn lock_table(locks: &[Lock], now_ms: u64) -> String {
    let header = ["lock", "state", "who", "mode", "token", "for", "ends in", "task", "note"];
    table(header, locks.iter().flat_map(|lock| rows(lock, now_ms)).collect(), "no locks are held or waited for")
}

fn rows(lock: &Lock, now_ms: u64) -> Vec<[String; 9]> {
    let holders = lock.holders.iter().map(|held| {
        [
            lock.name.clone(),
            "held".to_owned(),
            view::who(&held.session_id, &held.owner),
            view::lock_mode(held.mode),
            held.token.to_string(),
            age(held.acquired_at_ms, now_ms),
            ends_in([held.expires_at_ms, held.forced_at_ms], now_ms),
            or_dash(&held.task_id),
            short(&or_dash(&held.note), 40),
        ]
    });
    let waiters = lock.waiters.iter().enumerate().map(|(place, waiter)| {
        [
            lock.name.clone(),
            format!("waits, place {}", place + 1),
            view::who(&waiter.session_id, &waiter.owner),
            view::lock_mode(waiter.mode),
            "-".to_owned(),
            age(waiter.since_ms, now_ms),
            ends_in([waiter.until_ms, 0], now_ms),
            or_dash(&waiter.task_id),
            short(&or_dash(&waiter.note), 40),
        ]
    });
    holders.chain(waiters).collect()
}

/// How long until the first of these times; 0 stands for never.
fn ends_in(times: [u64; 2], now_ms: u64) -> String {
    match times.into_iter().filter(|at_ms| *at_ms > 0).min() {
        Some(at_ms) => span(at_ms.saturating_sub(now_ms)),
        None => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use quorate_client::v1::LockWaiter;

    use super::*;

    fn parsed(line: &[&str]) -> Option<Command> {
        crate::cli::subcommand([&["lock"][..], line].concat()).ok()
    }

    #[test]
    fn a_command_stands_behind_two_dashes_and_keeps_its_own_flags() {
        let line = ["run", "deploy:web", "--wait", "10m", "--", "make", "--ttl", "deploy"];
        let Some(Command::Run { take, command }) = parsed(&line) else { panic!("not understood") };
        assert_eq!((take.name.as_str(), take.wait, take.ttl), ("deploy:web", Some(Duration::from_secs(600)), None));
        assert_eq!(command, ["make", "--ttl", "deploy"]);
        assert!(parsed(&["run", "deploy:web"]).is_none(), "without a command");
        assert!(parsed(&["run", "deploy:web", "make"]).is_none(), "without the dashes");
    }

    #[test]
    fn a_lock_is_taken_without_waiting_unless_it_says_so() {
        let Some(Command::Acquire(args)) = parsed(&["acquire", "schema", "--shared"]) else { panic!("not understood") };
        assert!(args.shared && args.wait.is_none() && args.max_hold.is_none());
        assert!(parsed(&["acquire"]).is_none() && parsed(&["acquire", "a", "--ttl", "0s"]).is_none());
        assert!(matches!(parsed(&["list", "deploy:"]), Some(Command::List { prefix: Some(_), .. })));
        assert!(matches!(parsed(&["force-release", "a", "--reason", "stuck"]), Some(Command::ForceRelease { .. })));
    }

    #[test]
    fn a_table_shows_holders_and_the_line_with_their_ages() {
        let holder = LockHolder {
            session_id: "s1".into(),
            owner: "o".into(),
            token: 7,
            acquired_at_ms: 1_000,
            expires_at_ms: 40_000,
            forced_at_ms: 301_000,
            ..LockHolder::default()
        };
        let waiter = LockWaiter { session_id: "s2".into(), since_ms: 9_000, until_ms: 21_000, ..LockWaiter::default() };
        let rows = rows(&Lock { name: "a".into(), holders: vec![holder], waiters: vec![waiter] }, 10_000);
        assert_eq!(rows[0][..7], ["a", "held", "s1/o", "exclusive", "7", "9.0s", "30s"]);
        assert_eq!(rows[1][..7], ["a", "waits, place 1", "s2", "exclusive", "-", "1.0s", "11s"]);
        assert_eq!(ends_in([0, 0], 10_000), "-");
    }
}
