//! Backups under writes: complete, smaller the second time, restored elsewhere under another name, where they grow again.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use quorate_client::v1::backups_client::BackupsClient;
use quorate_client::v1::{BackupRecord, BackupStatusRequest};
use quorate_jepsen::coordination::only;
use quorate_jepsen::rng::env_u64;
use quorate_jepsen::{LocalCluster, Steady, gaps, load};

const WRITERS: usize = 4;
const RESTORED: &str = "restored";

fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is an unusual path", path.display()))
}

/// Takes a backup by the command line; gives what the cluster has recorded of it.
async fn back_up(cluster: &LocalCluster, to: &str) -> Result<BackupRecord> {
    let began = Instant::now();
    cluster.cli(&["backup", "create", "--to", to]).await?.succeeded()?;
    let took = began.elapsed().as_millis();
    let leader = cluster.leader().await?;
    let mut stub = BackupsClient::new(only(&cluster.endpoint(leader)?)?);
    let status = stub.status(BackupStatusRequest {}).await?.into_inner();
    let record = status.last_success.context("no backup is recorded")?;
    ensure!(record.error.is_empty() && !record.id.is_empty() && record.rev > 0, "recorded is {record:?}");
    ensure!(record.bytes >= record.sent_bytes, "more was sent than there is: {record:?}");
    eprintln!("backup {} in {took} ms: {} bytes, {} of them sent", record.id, record.bytes, record.sent_bytes);
    Ok(record)
}

/// A target that cannot be written, whoever asks: a directory below a file.
async fn a_target_that_is_none_is_refused(cluster: &LocalCluster, load: &Steady) -> Result<()> {
    let file = cluster.dir().join("a-file");
    std::fs::write(&file, "not a directory")?;
    let none = file.join("backups");
    let said = cluster.cli(&["backup", "create", "--to", text(&none)?]).await?.refused()?;
    ensure!(said.contains("a-file"), "the error does not name the target: {said}");
    load.wait_success().await
}

/// Begins a cluster of another name from the newest backup, and lets it grow to three.
async fn restore(from: &str) -> Result<LocalCluster> {
    let mut cluster = LocalCluster::builder().nodes(0).cluster_id(RESTORED).start().await?;
    cluster.reserve(1)?;
    let (dir, address) = (text(cluster.data_dir(1)?)?.to_owned(), cluster.endpoint(1)?);
    let began = Instant::now();
    let place = ["--data-dir", &dir, "--advertise", &address];
    let same = ["restore", "latest", "--from", from, "--cluster-id", "harness"];
    let said = cluster.cli(&[&same[..], &place[..]].concat()).await?.refused().context("the old name")?;
    ensure!(said.contains("harness"), "refused for another reason: {said}");
    let other = ["restore", "latest", "--from", from, "--cluster-id", RESTORED];
    cluster.cli(&[&other[..], &place[..]].concat()).await?.succeeded()?;
    let again = cluster.cli(&[&other[..], &place[..]].concat()).await?.refused().context("over what is there")?;
    ensure!(again.contains(&dir), "refused for another reason: {again}");
    cluster.add_process(1).await?;
    cluster.wait_ready(1).await?;
    eprintln!("restored and ready in {} ms", began.elapsed().as_millis());
    Ok(cluster)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_before_a_backup_is_in_the_restored_cluster() -> Result<()> {
    let mib = env_u64("QUORATE_STATE_MIB", 8);
    let cluster = LocalCluster::builder().start().await?;
    let client = cluster.client()?;
    load::fill(&client, "state", mib).await?;
    let load = Steady::start(&client, WRITERS, "backup").await?;
    a_target_that_is_none_is_refused(&cluster, &load).await?;

    let target = cluster.dir().join("backups");
    std::fs::create_dir(&target)?;
    let target = text(&target)?;
    let began = Instant::now();
    let first = back_up(&cluster, target).await?;
    load.wait_success().await?;
    let before = load.acked();
    let second = back_up(&cluster, target).await?;
    eprintln!("longest gap during two backups of {mib} MiB: {:?}", load.longest_gap_since(began));
    ensure!(second.id != first.id && second.rev > first.rev, "{second:?} is no newer than {first:?}");
    ensure!(second.sent_bytes < first.sent_bytes, "the second sent {second:?}, the first {first:?}");
    let list = cluster.cli(&["backup", "list", "--from", target]).await?.succeeded()?;
    ensure!(list.contains(&first.id) && list.contains(&second.id), "listed are {list}");
    for id in ["latest", first.id.as_str()] {
        cluster.cli(&["backup", "verify", id, "--from", target]).await?.succeeded()?;
    }

    let mut restored = restore(target).await?;
    let there = restored.client()?;
    gaps::check_kept(&there, &before).await?;
    let outcome = load.stop().await?;
    cluster.check_replicas_equal().await?;
    let (old, new) = (cluster.status(cluster.leader().await?).await?.rev, restored.status(1).await?.rev);
    ensure!(new > old, "the restored cluster is at rev {new}, the old one at {old}: a token could be given twice");
    for id in [2, 3] {
        restored.add_process(id).await?;
        restored.cli(&["cluster", "add", &restored.member(id)?]).await?.succeeded()?;
        restored.wait_ready(id).await?;
    }
    let status = there.cluster().status().await?;
    ensure!(status.cluster_id == RESTORED, "the restored cluster is called {}", status.cluster_id);
    gaps::check_kept(&there, &before).await?;
    restored.check_replicas_equal().await?;

    eprintln!("{}", outcome.summary());
    outcome.check_none_failed()?;
    outcome.check_kept(&client).await?;
    restored.close()?;
    cluster.close()
}

/// A bit that is wrong in the target is found by verify, and nothing is restored from it.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_backup_is_not_restored() -> Result<()> {
    let cluster = LocalCluster::builder().nodes(1).start().await?;
    load::fill(&cluster.client()?, "state", 1).await?;
    let target = cluster.dir().join("backups");
    std::fs::create_dir(&target)?;
    back_up(&cluster, text(&target)?).await?;
    let (mut largest, mut folders) = ((0, None), vec![target.join("objects")]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let meta = entry.metadata()?;
            if meta.is_dir() {
                folders.push(entry.path());
            } else if meta.len() > largest.0 {
                largest = (meta.len(), Some(entry.path()));
            }
        }
    }
    let object = largest.1.context("the backup has no objects")?;
    let mut content = std::fs::read(&object)?;
    let middle = content.len() / 2;
    content[middle] ^= 1;
    std::fs::write(&object, content)?;

    let name = object.file_name().and_then(|name| name.to_str()).context("an unusual name")?;
    let said = cluster.cli(&["backup", "verify", "latest", "--from", text(&target)?]).await?.refused()?;
    ensure!(said.contains(name), "verify does not name the damaged object {name}: {said}");
    let dir = cluster.dir().join("from-damaged");
    let place = ["--data-dir", text(&dir)?, "--cluster-id", RESTORED, "--advertise", "127.0.0.1:1"];
    let restore = ["restore", "latest", "--from", text(&target)?];
    cluster.cli(&[&restore[..], &place[..]].concat()).await?.refused()?;
    let left = |name: &str| dir.join(name).exists();
    ensure!(!left("IDENTITY.toml") || left("RESTORING"), "{} looks like a node's", dir.display());
    cluster.close()
}
