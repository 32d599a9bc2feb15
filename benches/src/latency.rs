//! Latencies of one kind: what all programs here record and print.
//!
//! Deliberately absent: means. They hide what a client notices.

use std::time::Duration;

use anyhow::Result;
use hdrhistogram::Histogram;

/// In microseconds up to a minute, to three digits; longer is shown as a minute.
pub(crate) struct Latency {
    micros: Histogram<u64>,
}

impl Latency {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self { micros: Histogram::new_with_bounds(1, 60_000_000, 3)? })
    }

    pub(crate) fn record(&mut self, took: Duration) {
        self.micros.saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    }

    pub(crate) fn add(&mut self, other: &Self) -> Result<()> {
        self.micros.add(&other.micros).map_err(|error| anyhow::anyhow!("histograms do not fit: {error:?}"))
    }

    pub(crate) fn count(&self) -> u64 {
        self.micros.len()
    }

    /// The latency that this share of the calls stayed within, in milliseconds.
    pub(crate) fn ms(&self, quantile: f64) -> f64 {
        self.micros.value_at_quantile(quantile) as f64 / 1_000.0
    }

    pub(crate) fn max_ms(&self) -> f64 {
        self.micros.max() as f64 / 1_000.0
    }
}
