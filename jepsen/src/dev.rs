//! One `quorate dev` process.
//!
//! Deliberately absent: anything a cluster has. See [`crate::cluster`].

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use quorate_client::{Client, Config};

use crate::process::Process;
use crate::{binary, ports};

/// A single node on loopback.
#[derive(Debug)]
pub struct DevNode {
    process: Process,
    endpoint: String,
    http: String,
}

impl DevNode {
    /// Starts it and waits until it is ready. `work_dir` takes its log files and stands in for the system's temporary
    /// folder; without `data_dir` the node throws its data away at exit.
    pub async fn start(work_dir: &Path, data_dir: Option<&Path>) -> Result<Self> {
        let ports = ports::free(2)?;
        let [grpc, http] = ports[..] else { bail!("wanted two ports, got {}", ports.len()) };
        let endpoint = format!("127.0.0.1:{grpc}");
        let http = format!("127.0.0.1:{http}");
        let temp_dir = work_dir.join("tmp");
        std::fs::create_dir_all(&temp_dir)?;
        let mut args: Vec<String> = vec!["dev".into()];
        args.extend(["--listen".into(), endpoint.clone(), "--http-listen".into(), http.clone()]);
        if let Some(dir) = data_dir {
            args.extend(["--data-dir".into(), dir.display().to_string()]);
        }
        let process = Process::new("dev", &binary::quorate()?, args, work_dir);
        let mut process = process.with_env("TMPDIR", &temp_dir.display().to_string());
        process.start()?;
        process.wait_ready(&http, Duration::from_secs(10)).await?;
        Ok(Self { process, endpoint, http })
    }

    /// Its gRPC address.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Its HTTP address.
    pub fn http(&self) -> &str {
        &self.http
    }

    /// A client for it.
    pub fn client(&self) -> Result<Client> {
        Ok(Client::connect(Config::new([self.endpoint.clone()]))?)
    }

    /// SIGTERM, and waits for the exit, which must be a success.
    pub async fn stop(mut self) -> Result<()> {
        let status = self.process.terminate(Duration::from_secs(10)).await?;
        if !status.success() {
            bail!("quorate dev ended with {status} after SIGTERM\n{}", self.process.tail());
        }
        Ok(())
    }
}
