//! What `quorate lock`, `quorate scope` and `quorate bus sub` hold, and what runs meanwhile.
//!
//! ```text
//!   in_session    a session that ends with the command, whatever happens in between
//!   run           a command under a grant: a process group, stopped when the grant is over
//!   conclude      what its end and the end of the grant mean for the exit code
//! ```
//!
//! Owns the order of things: a command is stopped when its grant is known to be over; the grant is given back when the
//! command has ended, and nothing of it runs any longer.
//! Deliberately absent: safety by that alone. What the command writes under the grant is fenced by the grant's token.

use std::io::IsTerminal;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use quorate_client::v1::{EventKind, WatchFilter, WatchRequest};
use quorate_client::{Client, Error, Session};
use tokio::process::Command;

use super::Context;
use super::exec::{self, Group};
use super::exit::Failure;
use super::signals::Signals;

/// After so long without contact, the cluster gives what is held to others.
const SESSION_TTL: Duration = Duration::from_secs(15);

/// Said of the command of `lock run` and of `scope run`.
pub(super) const THE_COMMAND: &str = "\
THE COMMAND:
  runs as it stands, without a shell, in a process group of its own. If the grant is lost it gets SIGTERM
  and after 5 s SIGKILL, and so it does if this process is told to stop. What it leaves running when it
  ends is killed, since it would run without the grant.
  stdin is passed on unless it is a terminal: a group of its own cannot read that.";

/// Does something within a session, and closes it: what is still held then goes to others at once.
pub(super) async fn in_session<T>(
    context: &Context,
    work: impl AsyncFnOnce(&Session, &mut Signals) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let mut signals = Signals::new()?;
    let sessions = context.client.sessions();
    let session = tokio::select! {
        opened = sessions.open(SESSION_TTL) => opened?,
        () = signals.next() => return Err(stopped()),
    };
    let done = work(&session, &mut signals).await;
    let closed = tokio::select! {
        closed = session.close() => closed.map_err(|error| error.to_string()),
        () = signals.next() => Err("told to stop".to_owned()),
    };
    if let Err(why) = closed {
        let ttl = SESSION_TTL.as_secs();
        context
            .out
            .note(&format!("the session was not closed; what it holds is free after {ttl}s at the latest: {why}"));
    }
    done
}

/// A signal came before there was anything to show.
pub(super) fn stopped() -> Failure {
    Failure::failed("told to stop")
}

/// The environment of a command that talks to the same cluster.
pub(super) fn environment(context: &Context, grant: [(&'static str, String); 2]) -> Vec<(&'static str, String)> {
    let mut environment = Vec::from(grant);
    environment.push(("QUORATE_ENDPOINTS", context.endpoints.join(",")));
    environment.push(("QUORATE_NAMESPACE", context.namespace.clone()));
    environment
}

/// Resolves when the history says that a grant is over: ended by an operator, say, of which its guard does not hear.
/// `token` is the rev of the grant, `holds` says whether an object as it was put still has it.
pub(super) async fn taken_away(client: &Client, room: &str, key: &str, token: u64, holds: impl Fn(&[u8]) -> bool) {
    let filter = WatchFilter { room: room.to_owned(), key: key.to_owned(), ..WatchFilter::default() };
    let request = WatchRequest { filters: vec![filter], from_rev: token + 1, ..WatchRequest::default() };
    let mut watch = client.watch(request);
    while let Some(Ok(response)) = watch.next().await {
        if response.events.iter().any(|event| event.kind() == EventKind::Delete || !holds(&event.value)) {
            return;
        }
    }
    // Without the history, the guard's word is all there is.
    std::future::pending().await
}

/// Gives a grant back, unless a signal says not to wait for that: it ends with its session, which is closed next.
pub(super) async fn give_back(
    release: impl Future<Output = Result<(), Error>>,
    signals: &mut Signals,
) -> Result<(), Error> {
    tokio::select! {
        released = release => released,
        () = signals.next() => Ok(()),
    }
}

/// How a command ended that ran under a grant.
#[derive(Debug)]
pub(super) enum Ended {
    /// By itself, or by our signal to stop.
    Exited(ExitStatus),
    /// The grant was over, and it was stopped.
    Over,
}

/// Runs a command until it ends, the grant is `over`, or a signal comes.
pub(super) async fn run(
    command: &[String],
    environment: Vec<(&'static str, String)>,
    over: impl Future<Output = ()>,
    signals: &mut Signals,
) -> Result<Ended, Failure> {
    let (program, args) = command.split_first().ok_or_else(|| Failure::bad_input("expected a command behind --"))?;
    let wrong = |error: std::io::Error| Failure::failed(format!("{program}: {error}"));
    // In a group of its own it would be stopped as soon as it reads the terminal, and nobody would know why.
    let stdin = if std::io::stdin().is_terminal() { Stdio::null() } else { Stdio::inherit() };
    let mut command = Command::new(program);
    command.args(args).envs(environment).stdin(stdin).process_group(0).kill_on_drop(true);
    let mut child = command.spawn().map_err(wrong)?;
    let group = Group::of(&child);
    let is_over = tokio::select! {
        status = child.wait() => return status.map(Ended::Exited).map_err(wrong),
        () = over => true,
        () = signals.next() => false,
    };
    tokio::select! {
        stopped = exec::stop(&mut child, &group, exec::GRACE) => stopped.map_err(wrong)?,
        // A second one: no more waiting.
        () = signals.next() => {}
    }
    // What is left of it is killed.
    drop(group);
    let status = child.wait().await.map_err(wrong)?;
    Ok(if is_over { Ended::Over } else { Ended::Exited(status) })
}

/// What the end of a command means, and then that of the grant `what` that it ran under, which `release` gives back.
pub(super) async fn conclude(
    context: &Context,
    what: &str,
    ended: Ended,
    release: impl Future<Output = Result<(), Error>>,
    signals: &mut Signals,
) -> Result<(), Failure> {
    let Ended::Exited(status) = ended else {
        return Err(Failure::failed(format!("{what} was lost: the command was stopped")));
    };
    let code = code(status);
    // Any other failure to give it back is mended by the end of the session, which comes next.
    if let Err(Error::Fenced { .. }) = give_back(release, signals).await {
        let late = format!("{what} was over before the command was: it may not have been alone");
        if code == 0 {
            return Err(Failure::failed(late));
        }
        context.out.note(&late);
    }
    if code == 0 { Ok(()) } else { Err(Failure::of_command(code)) }
}

/// As a shell says it: for one that a signal ended, 128 and its number.
fn code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::time::Instant;

    use tokio::time::sleep;

    use super::*;

    async fn shell(command: &str, over: impl Future<Output = ()>) -> Result<Ended, Failure> {
        let command = ["sh", "-c", command].map(str::to_owned);
        let mut signals = Signals::new().unwrap();
        run(&command, vec![("QUORATE_LOCK_TOKEN", "7".to_owned())], over, &mut signals).await
    }

    #[tokio::test]
    async fn a_command_ends_with_its_own_code_and_knows_its_token() {
        for (command, ends_with) in [("exit $QUORATE_LOCK_TOKEN", 7), ("kill -9 $$", 137), ("true", 0)] {
            match shell(command, pending()).await.unwrap() {
                Ended::Exited(status) => assert_eq!(code(status), ends_with, "{command}"),
                Ended::Over => panic!("{command} was stopped"),
            }
        }
        let missing = run(&["no-such-program".to_owned()], Vec::new(), pending(), &mut Signals::new().unwrap()).await;
        assert!(missing.unwrap_err().to_string().starts_with("no-such-program: "));
    }

    #[tokio::test]
    async fn a_command_is_stopped_when_its_grant_is_over() {
        let began = Instant::now();
        let ended = shell("sleep 60 & wait", sleep(Duration::from_millis(200))).await.unwrap();
        assert!(matches!(ended, Ended::Over));
        assert!(began.elapsed() < Duration::from_secs(30), "its child was stopped too");
    }
}
