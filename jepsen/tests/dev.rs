//! `quorate dev`: quick to be ready, and its data is kept only where a folder was named.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use quorate_jepsen::process::clean_command;
use quorate_jepsen::{DevNode, binary, tasks};

/// The aim is one second, shown by the benches; a busy test machine gets some air.
const LIMIT: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
async fn ready_within_seconds_and_the_cli_reaches_it() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let started = Instant::now();
    let node = DevNode::start(dir.path(), None).await?;
    let mut list: Command = clean_command(&binary::quorate()?);
    let output = list.args(["agent", "list", "--endpoints", node.endpoint()]).output()?;
    let took = started.elapsed();
    eprintln!("ready and listed in {} ms", took.as_millis());
    ensure!(output.status.success(), "agent list failed: {}", String::from_utf8_lossy(&output.stderr));
    ensure!(took < LIMIT, "took {} ms", took.as_millis());
    node.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn data_is_gone_without_a_folder_and_kept_with_one() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let data = dir.path().join("data");
    for (data_dir, kept) in [(None, false), (Some(data.as_path()), true)] {
        let node = DevNode::start(dir.path(), data_dir).await?;
        node.client()?.tasks().submit_one(tasks::spec("remember-me", "nobody")).await?;
        node.stop().await?;
        let left = std::fs::read_dir(dir.path().join("tmp"))?.count();
        ensure!(left == 0, "{left} entries were left in the temporary folder");
        let node = DevNode::start(dir.path(), data_dir).await?;
        let found = node.client()?.tasks().get("remember-me").await;
        ensure!(found.is_ok() == kept, "with {data_dir:?}, after a restart: {found:?}");
        node.stop().await?;
    }
    Ok(())
}
