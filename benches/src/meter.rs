//! What a measurement took: time, and CPU of the servers and of this program.
//!
//! Deliberately absent: which call used it. Everything between two moments counts.

use std::time::{Duration, Instant};

use anyhow::Result;
use quorate_jepsen::LocalCluster;

use crate::cpu;

/// Where a measurement began.
pub(crate) struct Meter {
    pids: Vec<u32>,
    began: Instant,
    servers: Duration,
    bench: Duration,
}

/// What was used since then.
pub(crate) struct Took {
    length: Duration,
    servers: Duration,
    bench: Duration,
}

impl Meter {
    /// All nodes must run until the last [`Meter::read`].
    pub(crate) fn start(cluster: &LocalCluster) -> Result<Meter> {
        let pids = cluster.node_ids().into_iter().map(|id| cluster.pid(id)).collect::<Result<Vec<u32>>>()?;
        let (servers, bench) = (cpu::used(&pids)?, cpu::used(&[std::process::id()])?);
        Ok(Meter { pids, began: Instant::now(), servers, bench })
    }

    pub(crate) fn read(&self) -> Result<Took> {
        let length = self.began.elapsed();
        let servers = cpu::used(&self.pids)?.saturating_sub(self.servers);
        let bench = cpu::used(&[std::process::id()])?.saturating_sub(self.bench);
        Ok(Took { length, servers, bench })
    }
}

impl Took {
    pub(crate) fn per_second(&self, count: u64) -> f64 {
        count as f64 / self.length.as_secs_f64()
    }

    /// CPU of all servers together for each of so many, in microseconds.
    pub(crate) fn servers_us(&self, count: u64) -> f64 {
        self.servers.as_micros() as f64 / count.max(1) as f64
    }

    /// CPU of this program for each of so many, in microseconds.
    pub(crate) fn bench_us(&self, count: u64) -> f64 {
        self.bench.as_micros() as f64 / count.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_is_shared_out() {
        let took = Took {
            length: Duration::from_secs(2),
            servers: Duration::from_millis(30),
            bench: Duration::from_millis(10),
        };
        assert!((took.per_second(100) - 50.0).abs() < 0.01);
        assert!((took.servers_us(100) - 300.0).abs() < 0.01);
        assert!((took.bench_us(0) - 10_000.0).abs() < 0.01, "of nothing, all of it");
    }
}
