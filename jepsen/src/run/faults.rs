//! The nemesis at work, and what is written down of it.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::clients::Clients;
use crate::cluster::LocalCluster;
use crate::nemesis::Nemesis;
use crate::rng::Rng;

/// How long healing may take on a busy machine.
const HEAL: Duration = Duration::from_secs(90);

/// One fault, from the strike to the end of its healing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Which nemesis.
    pub nemesis: String,
    /// What it did.
    pub what: String,
    /// When it began to, in nanoseconds of the run.
    pub from: u64,
    /// When all of it was undone; none: it was not.
    pub until: Option<u64>,
}

/// The faults of a run.
#[derive(Debug)]
pub struct Faults {
    began: Instant,
    file: File,
    /// In order.
    pub all: Vec<Fault>,
}

impl Faults {
    /// None yet; they are written to `path`.
    pub fn create(path: &Path, began: Instant) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { began, file, all: Vec::new() })
    }

    /// Reads them back.
    pub fn read(path: &Path) -> Result<Vec<Fault>> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }

    /// Strikes and heals until the time is over. A fault that does not heal ends the run.
    pub async fn work(
        &mut self,
        nemesis: &mut dyn Nemesis,
        cluster: &mut LocalCluster,
        rng: &mut Rng,
        time: Duration,
        clients: &Clients,
    ) -> Result<()> {
        while self.began.elapsed() < time {
            tokio::time::sleep(rng.millis(1_500, 4_000)).await;
            let from = self.now();
            let struck = nemesis.strike(cluster, rng).await;
            let what = struck.as_ref().map_or_else(|error| format!("failed: {error:#}"), Clone::clone);
            eprintln!("{:>6.1} s  {}  {what}; {}", self.began.elapsed().as_secs_f64(), nemesis.name(), clients.line());
            if struck.is_ok() {
                tokio::time::sleep(nemesis.hold(rng)).await;
            }
            let healed = tokio::time::timeout(HEAL, nemesis.heal(cluster)).await;
            let until = matches!(healed, Ok(Ok(()))).then(|| self.now());
            self.note(Fault { nemesis: nemesis.name().to_owned(), what, from, until })?;
            healed.context("healing took too long")??;
            struck?;
        }
        Ok(())
    }

    fn note(&mut self, fault: Fault) -> Result<()> {
        serde_json::to_writer(&self.file, &fault)?;
        self.file.write_all(b"\n")?;
        self.all.push(fault);
        Ok(())
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}
