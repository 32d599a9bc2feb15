//! One shell command as a process group: fed on stdin, read to its end, stopped as a whole.
//!
//! Owns the rule that nothing of a task outlives it: when the command has ended, or this is dropped, the whole group is
//! killed. What it prints is read to the end whatever happens, so that a full pipe never blocks it.
//! Deliberately absent: tasks, and what an exit code means; that is `worker`.

use std::collections::VecDeque;
use std::io;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// Between SIGTERM and SIGKILL, unless there is less time.
pub(crate) const GRACE: Duration = Duration::from_secs(5);
/// How long output may still come after the command itself has ended, from what it left running.
const DRAIN: Duration = Duration::from_secs(1);
/// How often a group that was told to stop is looked at.
const LOOK_ROUND: Duration = Duration::from_millis(20);

/// What to run.
pub(crate) struct Shell {
    /// For `sh -c`.
    pub(crate) command: String,
    /// Added to the environment of this process.
    pub(crate) env: Vec<(&'static str, String)>,
    /// All of stdin.
    pub(crate) input: Vec<u8>,
    /// More than this on stdout stops it.
    pub(crate) max_stdout_bytes: usize,
    /// How much of the end of stderr is kept.
    pub(crate) max_stderr_bytes: usize,
}

/// How it ended.
pub(crate) enum End {
    /// By itself.
    Exited(ExitStatus),
    /// It printed too much, and was stopped.
    TooMuchOutput,
    /// It was stopped because it was cancelled.
    Cancelled,
}

/// What came of it.
pub(crate) struct Ran {
    pub(crate) end: End,
    /// The beginning, complete unless there was too much.
    pub(crate) stdout: Vec<u8>,
    /// The end.
    pub(crate) stderr: Vec<u8>,
}

/// Runs it until it ends, prints too much, or `cancelled` resolves: with the time between SIGTERM and SIGKILL.
pub(crate) async fn run(shell: Shell, cancelled: impl Future<Output = Duration>) -> io::Result<Ran> {
    let mut child = Command::new("sh")
        .arg("-c")
        .arg(&shell.command)
        .envs(shell.env)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    let group = Group::of(&child);
    let stdout = Capture::head(shell.max_stdout_bytes);
    let stderr = Capture::tail(shell.max_stderr_bytes);
    let overflow = Arc::clone(&stdout.overflow);
    let readers = [read(child.stdout.take(), &stdout), read(child.stderr.take(), &stderr)];
    let feeder = feed(child.stdin.take(), shell.input);
    let (end, grace) = tokio::select! {
        status = child.wait() => (End::Exited(status?), GRACE),
        () = overflow.notified() => (End::TooMuchOutput, GRACE),
        grace = cancelled => (End::Cancelled, grace),
    };
    if !matches!(end, End::Exited(_)) {
        stop(&mut child, &group, grace).await?;
    }
    finish(readers, &group).await;
    feeder.abort();
    let end = match end {
        End::Exited(_) if stdout.is_over() => End::TooMuchOutput,
        end => end,
    };
    Ok(Ran { end, stdout: stdout.take(), stderr: stderr.take() })
}

/// SIGTERM to the group, then SIGKILL to whatever is left of it when its time is up. The shell itself may be gone at
/// once, and leave behind what still cleans up.
pub(super) async fn stop(child: &mut Child, group: &Group, grace: Duration) -> io::Result<()> {
    group.signal(Signal::TERM);
    let all_gone = async {
        child.wait().await?;
        while group.lives() {
            sleep(LOOK_ROUND).await;
        }
        Ok::<_, io::Error>(())
    };
    if let Ok(gone) = timeout(grace, all_gone).await {
        return gone;
    }
    group.signal(Signal::KILL);
    child.wait().await.map(|_| ())
}

/// Waits for the last output. What the command left running may hold the pipes: it gets a moment, then it is killed.
async fn finish(readers: [JoinHandle<()>; 2], group: &Group) {
    let aborts = [readers[0].abort_handle(), readers[1].abort_handle()];
    let mut all = std::pin::pin!(futures::future::join_all(readers));
    if timeout(DRAIN, &mut all).await.is_ok() {
        return;
    }
    group.signal(Signal::KILL);
    if timeout(DRAIN, &mut all).await.is_err() {
        // Held open by a process that left the group. What was read so far is what counts.
        for abort in aborts {
            abort.abort();
        }
    }
}

/// A process group; killed when this is dropped.
pub(super) struct Group(Option<Pid>);

impl Group {
    pub(super) fn of(child: &Child) -> Self {
        Self(child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw))
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = self.0 {
            // The only error to expect is that nobody is left, which is what was wanted.
            let _ = kill_process_group(group, signal);
        }
    }

    /// Whether any of it still runs.
    fn lives(&self) -> bool {
        self.0.is_some_and(|group| test_kill_process_group(group) != Err(Errno::SRCH) && !is_all_dead(group))
    }
}

/// Whether those left in the group are dead and only wait for somebody to take note, as they do for ever where the
/// first process takes no note of anybody. Where the system does not tell, they are not.
fn is_all_dead(group: Pid) -> bool {
    let Ok(processes) = std::fs::read_dir("/proc") else { return false };
    let mut dead = false;
    for process in processes.flatten() {
        let stat = std::fs::read_to_string(process.path().join("stat")).unwrap_or_default();
        match state_within(group, &stat) {
            Some('Z' | 'X') => dead = true,
            Some(_) => return false,
            None => {}
        }
    }
    dead
}

/// The state of a process of the group, from a line such as `7 (sh) S 1 7 …`; `None` if it is of another.
fn state_within(group: Pid, stat: &str) -> Option<char> {
    // A name may hold anything, also parentheses.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let (state, _parent, its_group) = (fields.next()?, fields.next()?, fields.next()?);
    if its_group.parse::<i32>() == Ok(group.as_raw_pid()) { state.chars().next() } else { None }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

fn feed(stdin: Option<tokio::process::ChildStdin>, input: Vec<u8>) -> JoinHandle<()> {
    tokio::spawn(async move {
        if let Some(mut stdin) = stdin {
            // A command is free not to read its stdin; then this is a broken pipe, and no error.
            let _ = stdin.write_all(&input).await;
        }
    })
}

fn read(source: Option<impl AsyncRead + Unpin + Send + 'static>, capture: &Capture) -> JoinHandle<()> {
    let capture = capture.clone();
    tokio::spawn(async move {
        let Some(mut source) = source else { return };
        let mut chunk = vec![0; 16 * 1024];
        while let Ok(count) = source.read(&mut chunk).await
            && count > 0
        {
            capture.push(&chunk[..count]);
        }
    })
}

/// Bounded output, shared with the task that reads it.
#[derive(Clone)]
struct Capture {
    bytes: Arc<Mutex<VecDeque<u8>>>,
    limit: usize,
    keeps_tail: bool,
    overflow: Arc<Notify>,
}

impl Capture {
    fn head(limit: usize) -> Self {
        Self { bytes: Arc::default(), limit, keeps_tail: false, overflow: Arc::default() }
    }

    fn tail(limit: usize) -> Self {
        Self { keeps_tail: true, ..Self::head(limit) }
    }

    fn push(&self, chunk: &[u8]) {
        let mut bytes = self.bytes.lock();
        if self.keeps_tail {
            bytes.extend(chunk);
            let surplus = bytes.len().saturating_sub(self.limit);
            bytes.drain(..surplus);
        } else {
            // One byte more than allowed is kept: that is how it is known that there was too much.
            let room = (self.limit + 1).saturating_sub(bytes.len());
            bytes.extend(chunk.iter().take(room));
            if bytes.len() > self.limit {
                self.overflow.notify_one();
            }
        }
    }

    fn is_over(&self) -> bool {
        !self.keeps_tail && self.bytes.lock().len() > self.limit
    }

    fn take(&self) -> Vec<u8> {
        let mut bytes = Vec::from(std::mem::take(&mut *self.bytes.lock()));
        bytes.truncate(self.limit);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn shell(command: &str) -> Shell {
        Shell {
            command: command.into(),
            env: vec![("QUORATE_TASK_ID", "t1".into())],
            input: b"input".to_vec(),
            max_stdout_bytes: 1000,
            max_stderr_bytes: 10,
        }
    }

    async fn after(millis: u64, grace: Duration) -> Duration {
        tokio::time::sleep(Duration::from_millis(millis)).await;
        grace
    }

    async fn to_the_end(command: &str) -> Ran {
        run(shell(command), std::future::pending()).await.unwrap()
    }

    #[tokio::test]
    async fn stdin_environment_and_output_arrive() {
        let ran = to_the_end("cat; echo \" for $QUORATE_TASK_ID\"; echo 0123456789abcdef >&2; exit 3").await;
        assert_eq!(ran.stdout, b"input for t1\n");
        assert_eq!(ran.stderr, b"789abcdef\n");
        assert!(matches!(ran.end, End::Exited(status) if status.code() == Some(3)));
    }

    #[tokio::test]
    async fn stdin_need_not_be_read() {
        let large = Shell { input: vec![b'x'; 1 << 20], ..shell("exit 0") };
        let ran = run(large, std::future::pending()).await.unwrap();
        assert!(matches!(ran.end, End::Exited(status) if status.success()));
    }

    #[tokio::test]
    async fn output_up_to_the_limit_is_kept_and_more_is_refused() {
        let fits = to_the_end("head -c 1000 /dev/zero").await;
        assert!(matches!(fits.end, End::Exited(_)) && fits.stdout.len() == 1000);
        let over = to_the_end("head -c 1001 /dev/zero").await;
        assert!(matches!(over.end, End::TooMuchOutput) && over.stdout.len() == 1000);
        let endless = to_the_end("yes").await;
        assert!(matches!(endless.end, End::TooMuchOutput));
    }

    #[tokio::test]
    async fn a_cancelled_command_is_stopped_with_its_children() {
        let started = Instant::now();
        let long = Shell { max_stdout_bytes: 100, ..shell("sleep 60 & echo $!; wait") };
        let ran = run(long, after(300, GRACE)).await.unwrap();
        assert!(matches!(ran.end, End::Cancelled));
        assert!(started.elapsed() < GRACE, "SIGTERM was enough");
        let child: i32 = String::from_utf8(ran.stdout).unwrap().trim().parse().unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        while is_alive(child) {
            assert!(Instant::now() < deadline, "the child of the command still runs");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn what_cleans_up_after_the_shell_has_ended_is_given_its_time() {
        let started = Instant::now();
        let tidy = "sh -c 'trap \"sleep 0.5; echo cleaned; exit 0\" TERM; while :; do sleep 0.1; done' & wait";
        let ran = run(shell(tidy), after(1_000, GRACE)).await.unwrap();
        assert!(matches!(ran.end, End::Cancelled));
        assert_eq!(ran.stdout, b"cleaned\n");
        assert!(started.elapsed() < GRACE, "it needed no SIGKILL");
    }

    #[test]
    fn a_process_is_looked_up_by_its_group() {
        let group = Pid::from_raw(7).unwrap();
        assert_eq!(state_within(group, "9 (a) b) Z 1 7 7 0"), Some('Z'));
        assert_eq!(state_within(group, "7 (sh) S 1 7 7 0"), Some('S'));
        assert_eq!(state_within(group, "7 (sh) S 7 8 8 0"), None);
        assert_eq!(state_within(group, ""), None);
    }

    #[tokio::test]
    async fn one_that_does_not_listen_is_killed_when_its_grace_is_over() {
        let started = Instant::now();
        let deaf = shell("trap '' TERM; echo ready; while :; do sleep 0.1; done");
        let ran = run(deaf, after(300, Duration::from_millis(200))).await.unwrap();
        assert!(matches!(ran.end, End::Cancelled));
        assert!(started.elapsed() < GRACE, "it had 200 ms");
    }

    #[tokio::test]
    async fn what_a_command_leaves_running_does_not_hold_it_up() {
        let started = Instant::now();
        let ran = to_the_end("sleep 60 & echo done").await;
        assert_eq!(ran.stdout, b"done\n");
        assert!(started.elapsed() < Duration::from_secs(30));
    }

    /// A process that nobody has waited for yet is not alive.
    fn is_alive(pid: i32) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(')').next().is_some_and(|rest| !rest.trim().is_empty() && !rest.trim().starts_with(['Z', 'X']))
    }
}
