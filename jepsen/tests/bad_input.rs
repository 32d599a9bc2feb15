//! Bad input of every kind: a non-zero exit, the right code, and one clear line that names what is wrong.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use quorate_jepsen::process::{Process, clean_command};
use quorate_jepsen::{DevNode, binary, ports};

const LIMIT: Duration = Duration::from_secs(15);

/// Runs to the end. Output goes through files: a server that unexpectedly runs on must not block on a full pipe.
fn run(command: &mut Command, dir: &Path) -> Result<Output> {
    let (out, err) = (dir.join("out"), dir.join("err"));
    command.stdin(Stdio::null()).stdout(std::fs::File::create(&out)?).stderr(std::fs::File::create(&err)?);
    let mut child = command.spawn()?;
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if started.elapsed() > LIMIT {
            child.kill()?;
            child.wait()?;
            bail!("{command:?} still runs after {LIMIT:?}\n{}", std::fs::read_to_string(&err)?);
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    Ok(Output { status, stdout: std::fs::read(&out)?, stderr: std::fs::read(&err)? })
}

/// The exit code must be `code`, and one line of stderr must hold every word of `words`.
fn refused(output: &Output, code: i32, words: &[&str]) -> Result<()> {
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(code), "exit {:?} instead of {code}: {stderr}", output.status.code());
    ensure!(!stderr.contains("panicked"), "panicked: {stderr}");
    let named = stderr.lines().any(|line| {
        let line = line.to_lowercase();
        words.iter().all(|word| line.contains(&word.to_lowercase()))
    });
    ensure!(named, "no line of stderr names {words:?}: {stderr}");
    Ok(())
}

/// The arguments of a one-node cluster.
struct Serve {
    node_id: u64,
    cluster_id: &'static str,
    data_dir: String,
    listen: String,
    http: String,
}

impl Serve {
    fn new(data_dir: &Path) -> Result<Self> {
        let ports = ports::free(2)?;
        Ok(Self {
            node_id: 1,
            cluster_id: "first",
            data_dir: data_dir.display().to_string(),
            listen: format!("127.0.0.1:{}", ports[0]),
            http: format!("127.0.0.1:{}", ports[1]),
        })
    }

    fn args(&self) -> Vec<String> {
        let peer = format!("{}={}", self.node_id, self.listen);
        let id = self.node_id.to_string();
        let pairs = [
            ("--node-id", id.as_str()),
            ("--cluster-id", self.cluster_id),
            ("--data-dir", self.data_dir.as_str()),
            ("--listen", self.listen.as_str()),
            ("--http-listen", self.http.as_str()),
            ("--peer", peer.as_str()),
        ];
        let flags = pairs.iter().flat_map(|(name, value)| [(*name).to_owned(), (*value).to_owned()]);
        std::iter::once(String::from("serve")).chain(flags).collect()
    }

    fn run(&self, dir: &Path) -> Result<Output> {
        run(clean_command(&binary::quorate()?).args(self.args()), dir)
    }

    /// Starts it, waits until it is ready, stops it: afterwards the data folder is this node's.
    async fn once(&self, dir: &Path) -> Result<()> {
        let mut process = Process::new("once", &binary::quorate()?, self.args(), dir);
        process.start()?;
        process.wait_ready(&self.http, LIMIT).await?;
        process.terminate(LIMIT).await?;
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_folder_of_another_cluster_node_or_format_is_refused() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let data = dir.path().join("data");
    let mine = Serve::new(&data)?;
    mine.once(dir.path()).await?;
    refused(
        &Serve { cluster_id: "second", ..Serve::new(&data)? }.run(dir.path())?,
        1,
        &["cluster", "first", "second"],
    )?;
    refused(&Serve { node_id: 2, ..Serve::new(&data)? }.run(dir.path())?, 1, &["node 1", "2"])?;

    let identity = data.join("IDENTITY.toml");
    let text = std::fs::read_to_string(&identity).context("IDENTITY.toml")?;
    let newer: Vec<String> = text
        .lines()
        .map(
            |line| {
                if line.starts_with("format_version") { "format_version = 9999".to_owned() } else { line.to_owned() }
            },
        )
        .collect();
    std::fs::write(&identity, newer.join("\n"))?;
    refused(&mine.run(dir.path())?, 1, &["format", "9999"])?;
    std::fs::write(&identity, text)?;
    mine.once(dir.path()).await.context("the refusals must have left the data usable")
}

#[test]
fn a_taken_port_is_named() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let serve = Serve::new(&dir.path().join("data"))?;
    let _holder = std::net::TcpListener::bind(&serve.listen)?;
    refused(&serve.run(dir.path())?, 1, &[&serve.listen])
}

#[test]
fn a_data_folder_that_cannot_be_written_is_named() -> Result<()> {
    let dir = tempfile::tempdir()?;
    // Under a regular file: refused to root as well, whom permissions would not stop.
    let file = dir.path().join("plain-file");
    std::fs::write(&file, "")?;
    refused(&Serve::new(&file.join("data"))?.run(dir.path())?, 1, &["plain-file"])
}

#[test]
fn a_public_address_needs_the_explicit_flag() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut serve = Serve::new(&dir.path().join("data"))?;
    serve.listen = serve.listen.replace("127.0.0.1", "0.0.0.0");
    refused(&serve.run(dir.path())?, 2, &["--insecure-i-understand"])
}

#[test]
fn config_files_are_read_strictly() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let quorate = binary::quorate()?;
    let missing = dir.path().join("missing.toml");
    let output = run(clean_command(&quorate).arg("serve").arg("--config").arg(&missing), dir.path())?;
    refused(&output, 2, &["missing.toml"])?;
    let broken = dir.path().join("broken.toml");
    std::fs::write(&broken, "node_id = = 1\n")?;
    refused(&run(clean_command(&quorate).arg("serve").arg("--config").arg(&broken), dir.path())?, 2, &["broken.toml"])?;
    let unknown = dir.path().join("unknown.toml");
    std::fs::write(&unknown, "node_idd = 1\n")?;
    refused(&run(clean_command(&quorate).arg("serve").arg("--config").arg(&unknown), dir.path())?, 2, &["node_idd"])
}

#[tokio::test(flavor = "multi_thread")]
async fn submissions_are_checked_before_anything_is_created() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let node = DevNode::start(dir.path(), None).await?;
    let big = "x".repeat(1024 * 1024 + 1);
    let cycle = r#"{"tasks": [
        {"task_id": "alpha", "title": "a", "dependencies": ["gamma"]},
        {"task_id": "beta", "title": "b", "dependencies": ["alpha"]},
        {"task_id": "gamma", "title": "c", "dependencies": ["beta"]}]}"#;
    let oversize = format!(r#"{{"tasks": [{{"task_id": "a", "title": "a", "payload": "{big}"}}]}}"#);
    // Contents, exit codes that are right for it, what a line of stderr must name.
    let cases: [(&str, &str, &[i32], &[&str]); 6] = [
        ("priority", r#"{"tasks": [{"title": "a", "priority": "URGENTISH"}]}"#, &[2], &["priority"]),
        ("json", r#"{"tasks": [{"title": "a""#, &[2], &["json"]),
        ("field", r#"{"tasks": [{"title": "a", "colour": "red"}]}"#, &[2], &["colour"]),
        ("dependency", r#"{"tasks": [{"title": "a", "dependencies": ["no-such"]}]}"#, &[1, 2, 3], &["no-such"]),
        ("cycle", cycle, &[1, 2], &["alpha", "beta", "gamma", "cycle"]),
        ("oversize", &oversize, &[1, 2], &["payload"]),
    ];
    for (name, contents, codes, words) in cases {
        let file = dir.path().join(format!("{name}.json"));
        std::fs::write(&file, contents)?;
        let mut submit = clean_command(&binary::quorate()?);
        submit.args(["task", "submit"]).arg(&file).args(["--endpoints", node.endpoint()]);
        let output = run(&mut submit, dir.path())?;
        let code = output.status.code().unwrap_or(-1);
        ensure!(codes.contains(&code), "{name}: exit {code}: {}", String::from_utf8_lossy(&output.stderr));
        refused(&output, code, words).context(name)?;
    }
    let stats = node.client()?.tasks().stats().await?;
    let created = stats.pending + stats.ready + stats.blocked + stats.in_progress;
    ensure!(created == 0, "{created} tasks exist although every submission was refused");
    node.stop().await
}
