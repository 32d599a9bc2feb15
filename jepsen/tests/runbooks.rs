//! The pages of `docs/operating`, done as they are written, against real nodes; and every command that any of them
//! shows.
//!
//! Not shown here: the machines themselves (`systemctl`, disks that are replaced), and figures. `membership`, `backup`,
//! `corruption` and `adopt` do the same under load and count what was lost.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use quorate_client::{Client, Config};
use quorate_jepsen::process::{Process, clean_command};
use quorate_jepsen::runbook::{Runbook, blocks, pages};
use quorate_jepsen::until::until;
use quorate_jepsen::{DevNode, LocalCluster, binary, http, ports};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(30);

/// Where a node of the page is: `$NODE4` and `$HTTP4`.
struct Place {
    grpc: String,
    http: String,
}

impl Place {
    fn choose(book: &mut Runbook, node: u64) -> Result<Self> {
        let free = ports::free(2)?;
        let [grpc, http] = free[..] else { bail!("wanted two ports, got {}", free.len()) };
        let place = Place { grpc: format!("127.0.0.1:{grpc}"), http: format!("127.0.0.1:{http}") };
        book.set(&format!("NODE{node}"), &place.grpc);
        book.set(&format!("HTTP{node}"), &place.http);
        Ok(place)
    }

    fn client(&self) -> Result<Client> {
        Ok(Client::connect(Config::new([self.grpc.clone()]))?)
    }

    /// The process is there. A node that is not a member yet is not ready, but it lives.
    async fn lives(&self, process: &Process) -> Result<()> {
        let asked = || async { Ok(http::get(&self.http, "/health/live").await.ok().filter(|(code, _)| *code == 200)) };
        until("the new node lives", LIMIT, asked).await.map(drop).with_context(|| process.tail())
    }
}

/// A running cluster, the document that must still be there at the end, and the page.
async fn cluster_and(page: &str) -> Result<(LocalCluster, Client, Runbook)> {
    let cluster = LocalCluster::builder().start().await?;
    let client = cluster.client()?;
    client.kv().put("plan", "kept").send().await?;
    let mut book = Runbook::open(page, cluster.dir())?;
    book.set("QUORATE_ENDPOINTS", cluster.endpoints().join(","));
    Ok((cluster, client, book))
}

async fn ensure_kept(client: &Client) -> Result<()> {
    let plan = client.kv().get("plan").await?.context("the document is gone")?;
    ensure!(plan.value[..] == *b"kept", "{plan:?}");
    Ok(())
}

/// The node that is asked may hear of a change a moment after the leader has made it.
async fn voters_become(client: &Client, expected: &[u64]) -> Result<()> {
    let agreed = || async {
        let status = client.cluster().status().await?;
        let voters: Vec<u64> = status.nodes.iter().filter(|node| node.voter).map(|node| node.node_id).collect();
        Ok((voters == expected).then_some(()))
    };
    until(&format!("the voters are {expected:?}"), LIMIT, agreed).await
}

#[tokio::test(flavor = "multi_thread")]
async fn add_remove_replace() -> Result<()> {
    let (mut cluster, client, mut book) = cluster_and("add-remove-replace.md").await?;
    book.pass("set")?;

    let place = Place::choose(&mut book, 4)?;
    book.run("join").await?;
    let mut fourth = book.start("node-4-log")?;
    place.lives(&fourth).await?;
    book.run("add").await?;
    book.run("look").await?;
    fourth.wait_ready(&place.http, LIMIT).await?;
    voters_become(&client, &[1, 2, 3, 4]).await?;

    book.run("remove").await?;
    book.pass("stopped")?;
    cluster.kill(1)?;
    voters_become(&client, &[2, 3, 4]).await?;

    cluster.kill(2)?;
    let place = Place::choose(&mut book, 5)?;
    book.run("join-instead").await?;
    let mut fifth = book.start("node-5-log")?;
    place.lives(&fifth).await?;
    book.run("replace").await?;
    fifth.wait_ready(&place.http, LIMIT).await?;
    book.run("compare").await?;
    book.finish()?;

    voters_become(&client, &[3, 4, 5]).await?;
    let status = client.cluster().status().await?;
    ensure!(status.retired_node_ids == [1, 2], "{:?}", status.retired_node_ids);
    ensure_kept(&place.client()?).await?;
    fifth.kill()?;
    fourth.kill()?;
    cluster.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn backup_restore() -> Result<()> {
    let (cluster, client, mut book) = cluster_and("backup-restore.md").await?;
    let backups = cluster.dir().join("backups");
    fs::create_dir(&backups)?;
    book.pass("set")?;
    book.set("BACKUPS", backups.display().to_string());

    book.run("take").await?;
    book.run("list").await?;
    book.run("verify").await?;
    book.run("prune").await?;
    client.kv().put("plan", "changed since").send().await?;
    book.run("schedule").await?;
    book.run("planned").await?;

    let restored = Place::choose(&mut book, 1)?;
    let found = book.run("choose").await?;
    // The first one, taken before the change: a scheduled one may have been taken since. A name begins with its time.
    let id = found.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-')).filter(|word| word.contains("Z-")).min();
    book.set("BACKUP", id.with_context(|| format!("no backup in the list: {found}"))?);
    book.run("restore").await?;
    let mut node = book.start("restored-log")?;
    node.wait_ready(&restored.http, LIMIT).await?;
    book.run("look").await?;
    book.finish()?;

    ensure_kept(&restored.client()?).await?;
    node.kill()?;
    cluster.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_to_cluster() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut book = Runbook::open("dev-to-cluster.md", dir.path())?;
    book.pass("started")?;
    let dev = DevNode::start(dir.path(), Some(&dir.path().join("dev"))).await?;
    dev.client()?.kv().put("plan", "kept").send().await?;
    dev.stop().await?;

    let first = Place::choose(&mut book, 1)?;
    book.set("QUORATE_ENDPOINTS", &first.grpc);
    book.run("adopt").await?;
    let mut nodes = vec![book.start("node-1-log")?];
    nodes[0].wait_ready(&first.http, LIMIT).await?;
    let mut last = first;
    for id in [2, 3] {
        last = Place::choose(&mut book, id)?;
        book.run(&format!("join-{id}")).await?;
        let mut node = book.start(&format!("node-{id}-log"))?;
        last.lives(&node).await?;
        book.run(&format!("add-{id}")).await?;
        node.wait_ready(&last.http, LIMIT).await?;
        nodes.push(node);
    }
    book.run("compare").await?;
    book.finish()?;

    let client = last.client()?;
    voters_become(&client, &[1, 2, 3]).await?;
    ensure_kept(&client).await
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_disk() -> Result<()> {
    let (mut cluster, client, mut book) = cluster_and("damaged-disk.md").await?;
    book.pass("set")?;
    cluster.kill(2)?;
    let current = cluster.dir().join("node-2/log/CURRENT");
    ensure!(current.is_file(), "the log does not lie where this test damages it: {}", current.display());
    fs::write(&current, "damaged")?;
    let refused = cluster.restart(2).await.err().context("the node runs on a damaged log")?;
    ensure!(format!("{refused:#}").contains("quorate cluster rebuild"), "it does not say what to do: {refused:#}");
    cluster.kill(2)?;
    // The others go on meanwhile.
    client.kv().put("meanwhile", "written").send().await?;

    book.run("rebuild").await?;
    book.pass("started")?;
    cluster.restart(2).await?;
    book.run("compare").await?;
    book.run("clear").await?;
    book.finish()?;

    cluster.check_replicas_equal().await?;
    ensure_kept(&Client::connect(Config::new([cluster.endpoint(2)?]))?).await?;
    cluster.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_doctor() -> Result<()> {
    let (mut cluster, _, mut book) = cluster_and("health-and-doctor.md").await?;
    book.pass("set")?;
    book.run("status").await?;
    book.run("compare").await?;
    book.pass("asked")?;
    let (code, body) = http::get(&cluster.http(1)?, "/health/ready").await?;
    let health: Value = serde_json::from_str(&body)?;
    ensure!(code == 200 && health["ok"] == true && health["disk"].is_object(), "{code} {body}");
    book.run("doctor").await?;

    cluster.kill(3)?;
    let found: Value = serde_json::from_str(&book.run("doctor-json").await?)?;
    let of_third: Vec<&Value> =
        found.as_array().into_iter().flatten().filter(|finding| finding["node_id"] == 3).collect();
    let teaches = |finding: &&Value| finding["do"].as_str().is_some_and(|text| !text.is_empty());
    ensure!(of_third.iter().any(teaches), "nothing to be done about node 3, which is down: {found}");
    book.finish()?;
    cluster.close()
}

/// The nouns without a verb; all others have one.
const ALONE: [&str; 5] = ["serve", "dev", "restore", "events", "worker"];

/// Each `quorate` command of a block, without what follows it on the line.
fn commands(script: &str) -> Vec<String> {
    let whole = script.replace("\\\n", " ");
    let first = |line: &str| {
        let ends = [" | ", " || ", " && ", " # ", " &", " > "];
        let end = ends.iter().filter_map(|end| line.find(*end)).min().unwrap_or(line.len());
        line[..end].trim().to_owned()
    };
    whole.lines().filter(|line| line.starts_with("quorate ")).map(first).collect()
}

#[test]
fn every_command_that_a_page_shows_exists() -> Result<()> {
    let quorate = binary::quorate()?;
    let mut seen = 0;
    for path in markdown(&pages()?)? {
        let page = path.display();
        for block in blocks(&fs::read_to_string(&path)?) {
            for command in commands(&block.script) {
                let mut words = command.split_whitespace().skip(1);
                let noun = words.next().with_context(|| format!("{page}:{}: {command}", block.line))?;
                let verb = if ALONE.contains(&noun) { None } else { words.next() };
                let help = clean_command(&quorate).arg(noun).args(verb).arg("--help").output()?;
                let text = String::from_utf8_lossy(&help.stdout);
                ensure!(help.status.success(), "{page}:{}: there is no {command:?}", block.line);
                for flag in words.filter(|word| word.starts_with("--")) {
                    let flag = flag.split('=').next().unwrap_or(flag);
                    let known =
                        text.split(|c: char| c.is_whitespace() || c == '=' || c == ',').any(|word| word == flag);
                    ensure!(known, "{page}:{}: {command:?} has no {flag}", block.line);
                }
                seen += 1;
            }
        }
    }
    ensure!(seen > 20, "only {seen} commands were found: is this still how the pages are written?");
    Ok(())
}

#[test]
fn the_index_names_every_page_and_every_link_leads_somewhere() -> Result<()> {
    let folder = pages()?;
    let index = fs::read_to_string(folder.join("README.md"))?;
    for path in markdown(&folder)? {
        let name = path.file_name().and_then(|name| name.to_str()).context("a page without a name")?;
        ensure!(name == "README.md" || index.contains(&format!("({name})")), "{name} is not in the index");
        let text = fs::read_to_string(&path)?;
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap_or(link);
            let leads = target.is_empty() || target.contains("://") || folder.join(target).exists();
            ensure!(leads, "{name}: {link} leads nowhere");
        }
    }
    Ok(())
}

fn markdown(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
