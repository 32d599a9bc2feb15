//! `quorate worker`: an agent that runs a shell command for every task.
//!
//! The client library does the work of being an agent (session, claims, retries, finishing); this file says what one task
//! is: a process group, its stdin, and what its exit code means.
//! Deliberately absent: sandboxing. The command runs as this user, with this environment.

use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use quorate_client::v1::Task;
use quorate_client::{Done, Job, Output, Worker, WorkerReport};
use serde_json::{Map, Value, json};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

use super::exec::{self, End, Ran, Shell};
use super::exit::Failure;
use super::output::{Out, facts, short, took};
use super::{Context, values, view};

/// Shown under `quorate worker --help`.
pub(crate) const EXAMPLES: &str = r#"THE COMMAND:
  runs as `sh -c CMD`, in a process group of its own, once for every attempt.
  stdin        the task as JSON: id, title, description, payload, labels, attempt, token,
               required_capabilities, dependencies
  environment  QUORATE_TASK_ID, QUORATE_ATTEMPT, QUORATE_TOKEN, QUORATE_ENDPOINTS
  stdout       the result, at most 1 MiB
  stderr       the last 64 KiB are kept with the attempt
  exit code    0   completed
               75  released: somebody else may try at once, and no retry is counted
               65  failed for good: no retry
               any other, or a signal: failed, retried as the task's policy says
  If the task is cancelled, its time is up, or the lease is lost, the process group gets SIGTERM
  and after 5 s SIGKILL. The worker hears of it within a third of the session's TTL.

SIGNALS:
  SIGTERM or SIGINT once: take no more tasks, finish what runs, leave.
  A second time: leave now; what runs is killed, and returns to the queue.

EXAMPLES:
  quorate worker --capability code-review --exec ./review.sh
      one task at a time
  quorate worker --capability rust --capability test --capacity 4 --exec 'jq -r .payload.crate | xargs cargo test -p'
      four at a time
  QUORATE_ENDPOINTS=a:7401,b:7401,c:7401 quorate worker --id builder-1 --type builder --capability build --exec make
      a name of its own, on a cluster of three"#;

const MAX_RESULT_BYTES: usize = 1024 * 1024;
const MAX_TAIL_BYTES: usize = 64 * 1024;
/// EX_TEMPFAIL of sysexits.h.
const EXIT_RELEASED: i32 = 75;
/// EX_DATAERR of sysexits.h.
const EXIT_FAILED_PERMANENTLY: i32 = 65;

/// Flags of `quorate worker`.
#[derive(Args)]
pub(crate) struct WorkerArgs {
    /// What this agent can do; repeat for several
    #[arg(long, value_name = "NAME", required = true)]
    capability: Vec<String>,
    /// The shell command that does a task
    #[arg(long, value_name = "CMD")]
    exec: String,
    /// The agent's id; without it, a new one every time
    #[arg(long, value_name = "ID", visible_alias = "agent-id")]
    id: Option<String>,
    /// The agent's type, for people and for filters
    #[arg(long = "type", value_name = "TYPE", visible_alias = "agent-type", default_value = "worker")]
    agent_type: String,
    /// How many tasks at once
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    capacity: u32,
    /// After this long without contact the cluster gives its tasks to others (1s to 1h)
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = session_ttl)]
    session_ttl: Duration,
    /// No line for every task that begins or ends
    #[arg(long)]
    quiet: bool,
}

fn session_ttl(text: &str) -> Result<Duration, String> {
    let ttl = values::duration(text)?;
    let accepted = Duration::from_secs(1)..=Duration::from_secs(3_600);
    if accepted.contains(&ttl) { Ok(ttl) } else { Err("expected 1s to 1h".into()) }
}

/// Works until it is told to stop.
pub(crate) async fn run(context: &Context, args: WorkerArgs) -> Result<(), Failure> {
    start_logging();
    let id = args.id.unwrap_or_else(|| format!("worker-{}", uuid::Uuid::new_v4().simple()));
    let worker = Worker::builder(context.client.clone())
        .agent_id(&id)
        .agent_type(&args.agent_type)
        .capabilities(&args.capability)
        .capacity(args.capacity)
        .session_ttl(args.session_ttl)
        .build();
    let crew = Arc::new(Crew {
        command: args.exec,
        endpoints: context.endpoints.join(","),
        out: context.out,
        quiet: args.quiet,
    });
    let handler = move |job: Job| {
        let crew = Arc::clone(&crew);
        async move { crew.work(job).await }
    };
    let mut signals = Signals::new()?;
    let out = context.out;
    let (stop, mut stopped) = watch::channel(false);
    let stopping = async move {
        // The sender lives as long as the worker; if it is gone, stopping is right as well.
        let _ = stopped.wait_for(|stop| *stop).await;
    };
    out.note(&format!("{id} offers {}", args.capability.join(", ")));
    let leave_now = async {
        signals.next().await;
        out.note("finishing what runs; a second signal stops it");
        stop.send_replace(true);
        signals.next().await;
    };
    let report = tokio::select! {
        report = worker.run(handler, stopping) => report?,
        () = leave_now => return Err(Failure::failed("stopped in the middle of its tasks; they return to the queue")),
    };
    show(out, &id, &report)
}

fn show(out: Out, id: &str, report: &WorkerReport) -> Result<(), Failure> {
    let counts = [
        ("completed", report.completed),
        ("failed", report.failed),
        ("released", report.released),
        ("fenced", report.fenced),
        ("sessions_lost", report.sessions_lost),
    ];
    out.show(
        || {
            let mut view: Map<String, Value> =
                counts.iter().map(|(name, count)| ((*name).to_owned(), json!(count))).collect();
            view.insert("agent_id".into(), json!(id));
            Value::Object(view)
        },
        || {
            let counts = counts.iter().map(|(name, count)| (*name, count.to_string()));
            facts(std::iter::once(("agent", id.to_owned())).chain(counts).collect())
        },
    )
}

/// Warnings of the client library, such as a lost session; `RUST_LOG` shows more.
fn start_logging() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    // Fails only if logging was started before, which is as good.
    let _ = lines.try_init();
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        let listen =
            |kind| signal(kind).map_err(|error| Failure::failed(format!("cannot listen for signals: {error}")));
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// What all tasks of this worker share.
struct Crew {
    command: String,
    endpoints: String,
    out: Out,
    quiet: bool,
}

impl Crew {
    async fn work(&self, job: Job) -> Done {
        let task = &job.task;
        let started = Instant::now();
        let (attempt, token) = task.claim.as_ref().map_or((0, 0), |claim| (claim.attempt, claim.token));
        let title = task.spec.as_ref().map_or("", |spec| spec.title.as_str());
        self.log(&format!("task {} started (attempt {attempt}, token {token}): {}", task.id, short(title, 80)));
        let (done, how) = match exec::run(self.shell(task, attempt, token), job.cancelled()).await {
            Ok(ran) => judge(ran),
            Err(error) => failed(format!("sh could not be run: {error}"), Output::default()),
        };
        self.log(&format!("task {} {how} after {}", task.id, took(started.elapsed())));
        done
    }

    fn shell(&self, task: &Task, attempt: u32, token: u64) -> Shell {
        Shell {
            command: self.command.clone(),
            env: vec![
                ("QUORATE_TASK_ID", task.id.clone()),
                ("QUORATE_ATTEMPT", attempt.to_string()),
                ("QUORATE_TOKEN", token.to_string()),
                ("QUORATE_ENDPOINTS", self.endpoints.clone()),
            ],
            input: view::job(task).to_string().into_bytes(),
            max_stdout_bytes: MAX_RESULT_BYTES,
            max_stderr_bytes: MAX_TAIL_BYTES,
        }
    }

    fn log(&self, line: &str) {
        if !self.quiet {
            self.out.note(line);
        }
    }
}

/// What the end of a command means for its task, and the words for it.
fn judge(ran: Ran) -> (Done, String) {
    let error_line = last_line(&ran.stderr);
    let status = match ran.end {
        // The task is not ours any more, so this changes nothing; it says at least that nothing came of it.
        End::Cancelled => return (Done::Released, "cancelled".into()),
        End::TooMuchOutput => {
            let error = format!("stdout is more than {MAX_RESULT_BYTES} bytes, the most that a result may have");
            return failed_permanently(error, output(None, &ran.stdout, ran.stderr));
        }
        End::Exited(status) => status,
    };
    match status.code() {
        Some(0) => {
            // The result is the whole of stdout: no need to keep its tail beside it.
            let output = output(Some(0), &[], ran.stderr);
            (Done::Completed { result: ran.stdout.into(), output }, "completed".into())
        }
        Some(EXIT_RELEASED) => (Done::Released, format!("released ({})", reason(status, &error_line))),
        code => {
            let error = reason(status, &error_line);
            let output = output(code, &ran.stdout, ran.stderr);
            if code == Some(EXIT_FAILED_PERMANENTLY) {
                failed_permanently(error, output)
            } else {
                failed(error, output)
            }
        }
    }
}

fn failed(error: String, output: Output) -> (Done, String) {
    let how = format!("failed ({error})");
    (Done::Failed { error, output }, how)
}

fn failed_permanently(error: String, output: Output) -> (Done, String) {
    let how = format!("failed permanently ({error})");
    (Done::FailedPermanently { error, output }, how)
}

fn output(exit_code: Option<i32>, stdout: &[u8], stderr: Vec<u8>) -> Output {
    let tail = &stdout[stdout.len().saturating_sub(MAX_TAIL_BYTES)..];
    Output { exit_code, stdout: tail.to_vec().into(), stderr: stderr.into() }
}

/// `exit code 3: cannot open the file`
fn reason(status: ExitStatus, error_line: &str) -> String {
    use std::os::unix::process::ExitStatusExt;
    let how = match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "ended in an unknown way".into(),
    };
    if error_line.is_empty() { how } else { format!("{how}: {error_line}") }
}

/// The last line of stderr that says anything.
fn last_line(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    short(text.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default(), 300)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    fn ran(raw_status: i32) -> Ran {
        Ran {
            end: End::Exited(ExitStatus::from_raw(raw_status)),
            stdout: b"out".to_vec(),
            stderr: b"first\nlast\n\n".to_vec(),
        }
    }

    #[test]
    fn exit_codes_decide() {
        assert!(matches!(judge(ran(0)).0, Done::Completed { result, .. } if result.as_ref() == b"out"));
        assert!(matches!(judge(ran(75 << 8)).0, Done::Released));
        assert!(matches!(judge(ran(65 << 8)).0, Done::FailedPermanently { .. }));
        let (done, how) = judge(ran(3 << 8));
        assert_eq!(how, "failed (exit code 3: last)");
        let Done::Failed { error, output } = done else { panic!("it must be retried") };
        assert_eq!((error.as_str(), output.exit_code), ("exit code 3: last", Some(3)));
        assert_eq!(output.stdout.as_ref(), b"out");
        let (done, how) = judge(ran(9));
        assert!(matches!(done, Done::Failed { output, .. } if output.exit_code.is_none()));
        assert_eq!(how, "failed (killed by signal 9: last)");
    }

    #[test]
    fn too_much_output_is_never_retried() {
        let (done, how) = judge(Ran { end: End::TooMuchOutput, ..ran(0) });
        assert!(matches!(done, Done::FailedPermanently { .. }));
        assert!(how.contains("1048576 bytes"), "{how}");
        assert!(matches!(judge(Ran { end: End::Cancelled, ..ran(0) }).0, Done::Released));
    }

    #[test]
    fn session_ttls_are_bounded() {
        assert_eq!(session_ttl("2s"), Ok(Duration::from_secs(2)));
        assert!(session_ttl("500ms").is_err());
        assert!(session_ttl("2h").is_err());
    }
}
