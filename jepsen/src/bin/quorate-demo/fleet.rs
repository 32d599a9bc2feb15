//! The worker processes of the demo: `quorate worker --exec`, each in a process group of its own.
//!
//! Owns their handles; every one of them is killed when the fleet is dropped.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process_group};

/// Name, capability, and the subcommand of this program that does the work.
const AGENTS: [(&str, &str, &str); 5] = [
    ("reviewer-1", "code-review", "review"),
    ("reviewer-2", "code-review", "review"),
    ("reviewer-3", "code-review", "review"),
    ("documenter-1", "documentation", "document"),
    ("orchestrator-1", "orchestration", "orchestrate"),
];

/// The running workers.
pub(crate) struct Fleet {
    workers: Vec<(&'static str, Child)>,
}

impl Fleet {
    /// Starts all workers against `endpoints`; their output goes to files in `log_dir`.
    pub(crate) fn start(quorate: &Path, endpoints: &[String], log_dir: &Path) -> Result<Self> {
        let own = std::env::current_exe()?;
        let mut fleet = Self { workers: Vec::new() };
        for (name, capability, role) in AGENTS {
            let exec = format!("{} {role}", quoted(&own.display().to_string()));
            let child = Command::new(quorate)
                .args(["worker", "--agent-id", name, "--agent-type", role, "--capability", capability])
                .args(["--session-ttl", "2s", "--exec", &exec])
                .env("QUORATE_BIN", quorate)
                .env("QUORATE_ENDPOINTS", endpoints.join(","))
                .stdin(Stdio::null())
                .stdout(File::create(log_dir.join(format!("{name}.out")))?)
                .stderr(File::create(log_dir.join(format!("{name}.err")))?)
                .process_group(0)
                .spawn()
                .with_context(|| format!("cannot start {name}"))?;
            fleet.workers.push((name, child));
        }
        Ok(fleet)
    }

    /// SIGKILL to the worker and whatever shares its process group; waits until the worker is gone.
    pub(crate) fn kill(&mut self, name: &str) -> Result<()> {
        let at = self.workers.iter().position(|(worker, _)| *worker == name);
        let (_, mut child) = self.workers.remove(at.with_context(|| format!("no worker {name}"))?);
        end(&mut child)
    }

    /// Whether this worker is one of ours and was not killed.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.workers.iter().any(|(worker, _)| *worker == name)
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for (name, child) in &mut self.workers {
            if let Err(error) = end(child) {
                eprintln!("could not end {name}: {error:#}");
            }
        }
    }
}

fn end(child: &mut Child) -> Result<()> {
    if child.try_wait()?.is_none() {
        kill_process_group(Pid::from_child(child), Signal::KILL)?;
        child.wait()?;
    }
    Ok(())
}

/// For a shell, if the path needs it.
fn quoted(path: &str) -> String {
    let plain = path.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+".contains(c));
    if plain { path.to_owned() } else { format!("'{}'", path.replace('\'', r"'\''")) }
}
