//! One `quorate` child process: start, signals, exit, and the files its output goes to.
//!
//! Owns the `Child` handle; nothing is ever ended by name. Deliberately absent: knowledge of clusters and roles.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use crate::until::until;

/// A process that can be started, stopped and started again with the same arguments.
#[derive(Debug)]
pub struct Process {
    name: String,
    binary: PathBuf,
    args: Vec<String>,
    env: Vec<(String, String)>,
    log_dir: PathBuf,
    child: Option<Child>,
}

/// A command without the `QUORATE_*` variables of the caller: they are settings, and a server would read them.
pub fn clean_command(binary: &Path) -> Command {
    let mut command = Command::new(binary);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("QUORATE_") {
            command.env_remove(name);
        }
    }
    command
}

impl Process {
    /// Describes a process; [`Process::start`] starts it. Output goes to `<name>.out` and `<name>.err` in `log_dir`.
    pub fn new(name: impl Into<String>, binary: &Path, args: Vec<String>, log_dir: &Path) -> Self {
        let (binary, log_dir) = (binary.to_owned(), log_dir.to_owned());
        Self { name: name.into(), binary, args, env: Vec::new(), log_dir, child: None }
    }

    /// Adds an environment variable.
    pub fn with_env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts it. Fails if it runs already.
    pub fn start(&mut self) -> Result<()> {
        if self.child.is_some() {
            bail!("{} runs already", self.name);
        }
        let child = clean_command(&self.binary)
            .args(&self.args)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(self.log_file("out")?)
            .stderr(self.log_file("err")?)
            .spawn()
            .with_context(|| format!("cannot start {}", self.binary.display()))?;
        self.child = Some(child);
        Ok(())
    }

    /// Whether it was started and not stopped through this handle. It may have exited on its own: see [`Process::exited`].
    pub fn is_started(&self) -> bool {
        self.child.is_some()
    }

    /// Its process id, while started.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// How it ended, if it ended on its own.
    pub fn exited(&mut self) -> Result<Option<ExitStatus>> {
        match self.child.as_mut() {
            Some(child) => Ok(child.try_wait()?),
            None => Ok(None),
        }
    }

    /// SIGKILL, and waits until the process is gone. No effect if it is not started.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// SIGKILL without waiting; [`Process::kill`] waits afterwards. No effect if it is not started.
    pub fn request_kill(&self) -> Result<()> {
        match self.child.as_ref().map(|child| kill_process(Pid::from_child(child), Signal::KILL)) {
            // It may have ended by itself, and nobody has looked yet.
            None | Some(Ok(()) | Err(Errno::SRCH)) => Ok(()),
            Some(Err(error)) => Err(error.into()),
        }
    }

    /// SIGTERM without waiting.
    pub fn request_stop(&self) -> Result<()> {
        let Some(child) = self.child.as_ref() else { bail!("{} is not running", self.name) };
        Ok(kill_process(Pid::from_child(child), Signal::TERM)?)
    }

    /// SIGTERM, and waits for the exit; SIGKILL and an error if that takes longer than `limit`.
    pub async fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.request_stop()?;
        let Some(child) = self.child.as_mut() else { bail!("{} is not running", self.name) };
        let started = std::time::Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break Some(status);
            }
            if started.elapsed() > limit {
                break None;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        let Some(status) = status else {
            self.kill()?;
            bail!("{} did not end within {} ms of SIGTERM\n{}", self.name, limit.as_millis(), self.tail());
        };
        self.child = None;
        Ok(status)
    }

    /// Waits until `/health/ready` at `http` answers 200; an exit before that is an error with the tail of the output.
    pub async fn wait_ready(&mut self, http: &str, limit: Duration) -> Result<()> {
        let started = std::time::Instant::now();
        loop {
            if let Some(status) = self.exited()? {
                bail!("{} ended with {status} before it was ready\n{}", self.name, self.tail());
            }
            if let Ok((200, _)) = crate::http::get(http, "/health/ready").await {
                return Ok(());
            }
            if started.elapsed() > limit {
                bail!("{} was not ready after {} ms\n{}", self.name, limit.as_millis(), self.tail());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until the process has ended on its own.
    pub async fn wait_exit(&mut self, limit: Duration) -> Result<ExitStatus> {
        let Some(mut child) = self.child.take() else { bail!("{} is not running", self.name) };
        let ended = until("the process ends", limit, || {
            let status = child.try_wait();
            async move { Ok(status?) }
        })
        .await;
        if ended.is_err() {
            // Still running: keep the handle, so that Drop ends it.
            self.child = Some(child);
        }
        ended
    }

    /// The last lines of its output, stderr last.
    pub fn tail(&self) -> String {
        let mut text = String::new();
        for suffix in ["out", "err"] {
            let path = self.log_path(suffix);
            let whole = std::fs::read(&path).unwrap_or_default();
            let whole = String::from_utf8_lossy(&whole);
            let lines: Vec<&str> = whole.lines().collect();
            let from = lines.len().saturating_sub(30);
            text.push_str(&format!("--- {}\n{}\n", path.display(), lines[from..].join("\n")));
        }
        text
    }

    fn log_path(&self, suffix: &str) -> PathBuf {
        self.log_dir.join(format!("{}.{suffix}", self.name))
    }

    fn log_file(&self, suffix: &str) -> Result<File> {
        let path = self.log_path(suffix);
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("could not end {}: {error:#}", self.name);
        }
    }
}
