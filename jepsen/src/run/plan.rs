//! What a run is to do.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::nemesis::{self, Nemesis};
use crate::workload::Workload;

/// One run.
pub struct Plan {
    /// What it is called in reports.
    pub name: String,
    /// What clients do, all at once.
    pub workloads: Vec<Arc<dyn Workload>>,
    /// Who does harm: nobody, one, or one of several at each strike.
    pub nemeses: Vec<String>,
    /// How long.
    pub time: Duration,
    /// Of every choice.
    pub seed: u64,
    /// How many clients each workload has.
    pub workers: u64,
    /// About how long each of them waits between two operations.
    pub pace: Duration,
    /// Where everything about it is kept; must not hold a run already.
    pub dir: PathBuf,
    /// Keep the nodes' data even if it passes.
    pub keep: bool,
    /// Against what.
    pub target: Target,
}

/// The cluster of a run.
pub enum Target {
    /// Started for it, and ended with it.
    Own(Own),
    /// Somebody else's, at these addresses. Nothing is done to it but work.
    Endpoints(Vec<String>),
}

/// A cluster that is started for a run.
#[derive(Clone, Debug)]
pub struct Own {
    /// How many nodes.
    pub nodes: u64,
    /// The server; otherwise the one beside this program.
    pub binary: Option<PathBuf>,
    /// More arguments for each node.
    pub args: Vec<String>,
    /// What the environment of each node says.
    pub env: Vec<(String, String)>,
}

impl Default for Own {
    fn default() -> Self {
        // Often enough that a lagging node needs a snapshot within a run.
        let args = ["--snapshot-every", "500", "--log-keep", "250"].map(str::to_owned).to_vec();
        Self { nodes: 3, binary: None, args, env: Vec::new() }
    }
}

impl Plan {
    /// Who does harm.
    pub fn nemesis(&self) -> Result<Option<Box<dyn Nemesis>>> {
        let mut of = Vec::new();
        for name in &self.nemeses {
            let known = || nemesis::all().iter().map(|one| one.name()).collect::<Vec<_>>().join(", ");
            let one = nemesis::named(name);
            of.push(one.with_context(|| format!("no nemesis is called {name:?}; there are {}", known()))?);
        }
        Ok(match of.len() {
            0 => None,
            1 => of.pop(),
            _ => Some(nemesis::mixed(of)),
        })
    }
}
