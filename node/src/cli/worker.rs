//! `quorate worker`: an agent that runs a shell command for every task.
//!
//! The client library does the work of being an agent (session, claims, retries, finishing); this file says what one task
//! is: a process group, its stdin, its environment. `judge` says what its end means, `evidence` what it has to show.
//! Deliberately absent: sandboxing. The command runs as this user, with this environment.

mod evidence;
mod judge;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use quorate_client::v1::KeyValue;
use quorate_client::{Done, Job, Worker, WorkerReport};
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

use self::evidence::Evidence;
use self::judge::Rules;
use super::exec::{self, Shell};
use super::exit::Failure;
use super::output::{Out, facts, short, took};
use super::signals::Signals;
use super::{Context, submit, values, view};

/// Shown under `quorate worker --help`.
pub(crate) const EXAMPLES: &str = r#"THE COMMAND:
  runs as `sh -c CMD`, in a process group of its own, once for every attempt.
  stdin        the task as JSON: id, title, description, payload, labels, attempt, token,
               required_capabilities, dependencies, parent_id, evidence, feedback, review_of
  environment  QUORATE_TASK_ID, QUORATE_ATTEMPT, QUORATE_TOKEN, QUORATE_ENDPOINTS, QUORATE_NAMESPACE,
               QUORATE_FEEDBACK   what the last reviewer wants changed, or empty
               QUORATE_REVIEW_OF  the task that this one reviews, or empty
               QUORATE_EVIDENCE   a file to write evidence to (below)
  stdout       the result, at most 1 MiB
  stderr       the last 64 KiB are kept with the attempt
  exit code    0   completed
               75  released: somebody else may try after a second, and no retry is counted
               65  failed for good: no retry
               any other, or a signal: failed, retried as the task's policy says
               --error-class-of-exit says what kind of failure a code is
  If the task is cancelled, its time is up, or the lease is lost, the process group gets SIGTERM
  and after 5 s SIGKILL, sooner if the task's grace is shorter. A cancel is then acknowledged.

A REVIEW:
  If QUORATE_REVIEW_OF is set, the command is to judge that task, as the exit code says:
               0   accept; stdout is the comment
               1   rework; stdout is what has to change
  Any other means what it always does. `quorate task result "$QUORATE_REVIEW_OF"` shows the work.

EVIDENCE:
  Lines in the file $QUORATE_EVIDENCE, sent with a completed task:
  artifact KIND URI [DIGEST [BYTES]]     something that was made, and where it is
  check NAME EXIT_CODE                   a check that was run

THE OUTBOX:
  With --outbox DIR a result is on disk before it is delivered, and goes once the cluster has answered.
  What is there when the worker dies is delivered by the next that is started with the same DIR, so
  start it again soon: within the session's TTL, or before a cluster that is down is back. A result
  that comes too late is kept with its attempt, beside that of whoever did the task again.
  One DIR for every worker process. *.damaged and *.refused are for you to look at.

SIGNALS:
  SIGTERM or SIGINT once: take no more tasks, finish what runs, leave.
  A second time: leave now; what runs is killed, and returns to the queue.

EXAMPLES:
  quorate worker --capability code-review --exec ./review.sh
      one task at a time
  quorate worker --capability rust --capability test --capacity 4 --exec 'jq -r .payload.crate | xargs cargo test -p'
      four at a time
  quorate worker --capability fix --exec './fix.sh; make test; echo check test $? >> "$QUORATE_EVIDENCE"'
      shows that the tests passed
  quorate worker --capability ask --error-class-of-exit 69=connection,28=timeout --exec ./ask.sh
      tells the retry policy and the breakers what went wrong
  quorate worker --capability train --outbox /var/lib/builder-1/outbox --exec ./train.sh
      a night's work is not lost with the last second of it
  QUORATE_ENDPOINTS=a:7401,b:7401,c:7401 quorate worker --id builder-1 --type builder --capability build --exec make
      a name of its own, on a cluster of three"#;

const MAX_RESULT_BYTES: usize = 1024 * 1024;
const MAX_TAIL_BYTES: usize = 64 * 1024;
/// One variable of an environment may have 128 KiB.
const MAX_FEEDBACK_BYTES: usize = 64 * 1024;

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
    /// The agent's type: tasks may ask for it
    #[arg(long = "type", value_name = "TYPE", visible_alias = "agent-type", default_value = "worker")]
    agent_type: String,
    /// A note about it, which tasks may ask for; repeat for several
    #[arg(long, value_name = "NAME=VALUE", value_parser = submit::pair)]
    label: Vec<KeyValue>,
    /// How many tasks at once
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    capacity: u32,
    /// After this long without contact the cluster gives its tasks to others (1s to 1h)
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = session_ttl)]
    session_ttl: Duration,
    /// Keep results in this directory until the cluster has answered; without it, none survives the worker
    #[arg(long, value_name = "DIR")]
    outbox: Option<PathBuf>,
    /// What kind of failure an exit code is, such as 28=timeout or 69=connection; whatever else the code would mean
    #[arg(long, value_name = "CODE=CLASS,..", value_delimiter = ',', value_parser = judge::class_of_exit)]
    error_class_of_exit: Vec<(i32, String)>,
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
    let mut worker = Worker::builder(context.client.clone())
        .agent_id(&id)
        .agent_type(&args.agent_type)
        .capabilities(&args.capability)
        .capacity(args.capacity)
        .session_ttl(args.session_ttl);
    for label in args.label {
        worker = worker.metadata(label.key, label.value);
    }
    if let Some(dir) = args.outbox {
        worker = worker.outbox(dir);
    }
    let worker = worker.build();
    let crew = Arc::new(Crew {
        command: args.exec,
        classes: args.error_class_of_exit,
        endpoints: context.endpoints.join(","),
        namespace: context.namespace.clone(),
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
        ("cancelled", report.cancelled),
        ("fenced", report.fenced),
        ("sessions_lost", report.sessions_lost),
        ("replayed", report.replayed),
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

/// What all tasks of this worker share.
struct Crew {
    command: String,
    classes: Vec<(i32, String)>,
    endpoints: String,
    namespace: String,
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
        let (done, how) = self.attempt(&job, attempt).await;
        self.log(&format!("task {} {how} after {}", task.id, took(started.elapsed())));
        done
    }

    async fn attempt(&self, job: &Job, attempt: u32) -> (Done, String) {
        let evidence = match Evidence::begin() {
            Ok(evidence) => evidence,
            Err(error) => return judge::failed(format!("no file for evidence: {error}")),
        };
        let cancelled = async {
            job.cancelled().await;
            time_to_stop(job.grace_left())
        };
        let ran = match exec::run(self.shell(job, attempt, &evidence), cancelled).await {
            Ok(ran) => ran,
            Err(error) => return judge::failed(format!("sh could not be run: {error}")),
        };
        let rules = Rules { is_review: job.is_review(), classes: &self.classes, reason: job.cancel_reason() };
        match rules.judge(ran) {
            (done @ Done::Completed { .. }, how) => match evidence.shown().await {
                Ok(shown) => (shown.beside(done), how),
                Err(error) => judge::failed_permanently(error),
            },
            other => other,
        }
    }

    fn shell(&self, job: &Job, attempt: u32, evidence: &Evidence) -> Shell {
        let task = &job.task;
        Shell {
            command: self.command.clone(),
            env: vec![
                ("QUORATE_TASK_ID", task.id.clone()),
                ("QUORATE_ATTEMPT", attempt.to_string()),
                ("QUORATE_TOKEN", job.token().to_string()),
                ("QUORATE_ENDPOINTS", self.endpoints.clone()),
                ("QUORATE_NAMESPACE", self.namespace.clone()),
                ("QUORATE_FEEDBACK", variable(job.feedback())),
                // Set even if empty: this worker may itself run inside a review.
                ("QUORATE_REVIEW_OF", task.review_of.clone()),
                ("QUORATE_EVIDENCE", evidence.path()),
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

/// How long a command may take to stop: with a margin for saying so while that still counts.
fn time_to_stop(grace_left: Duration) -> Duration {
    // None left: it is fenced already, and nothing waits for it.
    if grace_left.is_zero() { exec::GRACE } else { exec::GRACE.min(grace_left * 3 / 4) }
}

/// Free text as an environment variable can hold it.
fn variable(text: &str) -> String {
    text[..text.floor_char_boundary(MAX_FEEDBACK_BYTES)].replace('\0', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn session_ttls_are_bounded() {
        assert_eq!(session_ttl("2s"), Ok(Duration::from_secs(2)));
        assert!(session_ttl("500ms").is_err());
        assert!(session_ttl("2h").is_err());
    }

    #[test]
    fn a_command_stops_in_time_to_say_so() {
        assert_eq!(time_to_stop(Duration::ZERO), exec::GRACE);
        assert_eq!(time_to_stop(Duration::from_secs(60)), exec::GRACE);
        assert_eq!(time_to_stop(Duration::from_secs(2)), Duration::from_millis(1_500));
    }

    #[test]
    fn any_feedback_fits_into_the_environment() {
        assert_eq!(variable("two\0words"), "two words");
        assert_eq!(variable(&"ä".repeat(MAX_FEEDBACK_BYTES)).len(), MAX_FEEDBACK_BYTES);
    }
}
