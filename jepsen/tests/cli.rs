//! The command line against a real node: what a newcomer does in the first minutes, as JSON that can be checked.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use quorate_client::v1::{AgentFilter, agent_event};
use quorate_jepsen::process::clean_command;
use quorate_jepsen::until::until;
use quorate_jepsen::{DevNode, binary};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(20);

/// The node, and the binary that talks to it.
struct Session {
    node: DevNode,
}

impl Session {
    async fn start(dir: &Path) -> Result<Self> {
        Ok(Session { node: DevNode::start(dir, None).await? })
    }

    fn command(&self) -> Result<Command> {
        let mut command = clean_command(&binary::quorate()?);
        command.env("QUORATE_ENDPOINTS", self.node.endpoint());
        Ok(command)
    }

    /// Exit code and standard output.
    fn run(&self, args: &[&str]) -> Result<(i32, String)> {
        let output = self.command()?.args(args).output()?;
        Ok((output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stdout).into_owned()))
    }

    fn json(&self, args: &[&str]) -> Result<Value> {
        let (code, text) = self.run(&[args, &["-o", "json"]].concat())?;
        ensure!(code == 0, "{args:?} ended with {code}: {text}");
        serde_json::from_str(&text).with_context(|| format!("{args:?} printed {text}"))
    }

    /// A worker process that ends with the guard.
    fn worker(&self, id: &str, exec: &str) -> Result<Running> {
        let mut command = self.command()?;
        command.args(["worker", "--id", id, "--capability", "shout", "--exec", exec, "--quiet"]);
        Ok(Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?))
    }
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn ids(list: &Value) -> Vec<&str> {
    let rows = list.as_array().or_else(|| list.get("tasks")?.as_array()).or_else(|| list.get("agents")?.as_array());
    rows.into_iter().flatten().filter_map(|row| row["id"].as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_from_submission_to_result_by_the_command_line() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let session = Session::start(dir.path()).await?;
    let file = dir.path().join("plan.json");
    let plan = json!([
        {"task_id": "low", "title": "later", "required_capabilities": ["shout"], "priority": "P3"},
        {"task_id": "first", "title": "first", "required_capabilities": ["shout"], "priority": "CRITICAL"},
        {"task_id": "second", "title": "second", "required_capabilities": ["shout"], "dependencies": ["first"]},
        {"task_id": "nobody", "title": "waits", "required_capabilities": ["translation"]},
    ]);
    std::fs::write(&file, plan.to_string())?;
    let path = file.to_str().context("an unusual path")?;
    let (code, printed) = session.run(&["task", "submit", path])?;
    ensure!(code == 0 && printed.lines().collect::<Vec<_>>() == ["low", "first", "second", "nobody"], "{printed}");

    // What stands where, before anybody works.
    ensure!(ids(&session.json(&["task", "list", "--ready"])?) == ["first", "low", "nobody"], "the ready ones");
    ensure!(ids(&session.json(&["task", "list", "--status", "blocked"])?) == ["second"], "the blocked one");
    let first = session.json(&["task", "show", "first"])?;
    ensure!(first["task"]["priority"] == 10 && first["task"]["status"] == "ready", "{first}");
    ensure!(first["dependents"] == json!(["second"]), "{first}");
    let queue = session.json(&["queue", "status"])?;
    ensure!(queue["counts"]["ready"] == 3 && queue["counts"]["blocked"] == 1, "{queue}");

    let _worker = session.worker("shouter", "echo done; echo noise >&2")?;
    let (code, _) = session.run(&["task", "wait", "low", "first", "second", "--timeout", "20s"])?;
    ensure!(code == 0, "waiting ended with {code}");
    ensure!(session.run(&["task", "result", "second"])? == (0, "done\n".to_owned()), "the result");
    let attempts = session.json(&["task", "attempts", "first"])?;
    let attempt = attempts.get("attempts").unwrap_or(&attempts)[0].clone();
    ensure!(attempt["outcome"] == "completed" && attempt["exit_code"] == 0, "{attempts}");
    ensure!(attempt["agent_id"] == "shouter" && attempt["stderr"] == "noise\n", "{attempts}");
    ensure!(ids(&session.json(&["task", "list", "--status", "completed"])?).len() == 3, "three are completed");

    let agents =
        session.json(&["agent", "list", "--capability", "shout", "--min-health", "0.8", "--max-load", "0.7"])?;
    ensure!(ids(&agents) == ["shouter"], "{agents}");
    ensure!(ids(&session.json(&["agent", "list", "--capability", "translation"])?).is_empty(), "nobody translates");
    let info = session.json(&["agent", "info", "shouter"])?;
    ensure!(info.to_string().contains("second"), "its recent tasks: {info}");

    // What does not exist is exit code 3, whatever it is.
    for args in [["task", "show", "no-such"], ["agent", "info", "no-such"], ["task", "result", "no-such"]] {
        let (code, _) = session.run(&args)?;
        ensure!(code == 3, "{args:?} ended with {code}");
    }
    session.node.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_shows_what_is_there_and_every_change() -> Result<()> {
    use futures::StreamExt;

    let dir = tempfile::tempdir()?;
    let session = Session::start(dir.path()).await?;
    let client = session.node.client()?;
    let worker = session.worker("early", "true")?;
    until("the worker stands", LIMIT, || async {
        let agent = client.agents().get("early").await.ok().and_then(|found| found.agent);
        Ok(agent.filter(|agent| agent.standing))
    })
    .await?;
    let mut events = std::pin::pin!(client.agents().watch(AgentFilter::default()));
    let mut next = async || {
        let event =
            tokio::time::timeout(LIMIT, events.next()).await.context("no news")?.context("the watch ended")??;
        let agent = event.agent.clone().context("news of nobody")?;
        anyhow::Ok((event.kind(), agent.id, event.rev))
    };
    let (kind, id, seen) = next().await?;
    ensure!((kind, id.as_str()) == (agent_event::Kind::Present, "early"), "{kind:?} {id}");
    let second = session.worker("late", "true")?;
    let (kind, id, rev) = next().await?;
    ensure!((kind, id.as_str()) == (agent_event::Kind::Changed, "late") && rev > seen, "{kind:?} {id} {rev}");
    client.agents().deregister("early").await?;
    // The later one's standing order is a change too, and may come before or after.
    let (kind, id, last) = loop {
        let (kind, id, rev) = next().await?;
        if (kind, id.as_str()) != (agent_event::Kind::Changed, "late") {
            break (kind, id, rev);
        }
    };
    ensure!((kind, id.as_str()) == (agent_event::Kind::Gone, "early") && last > rev, "{kind:?} {id} {last}");
    drop((worker, second));
    session.node.stop().await
}
