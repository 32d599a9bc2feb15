//! The open loop: calls begun by a schedule that waits for no answer, and when somebody heard of each.
//!
//! A slow answer is seen as such and does not thin out the load. This program calls and hears, so one clock is enough.
//!
//! Deliberately absent: what is called and who hears. A call has a number; whoever hears of it finds that again.

use std::collections::BTreeSet;
use std::collections::btree_map::{BTreeMap, Entry};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use quorate_client::Error;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};

use crate::latency::Latency;
use crate::report::{Column, Table, column};

/// How long without news makes what is missing lost.
const LIMIT: Duration = Duration::from_secs(30);

/// What [`Heard::row`] fills.
pub(crate) const COLUMNS: &[Column] = &[
    column("heard", "heard", 0),
    column("p50", "p50_ms", 2),
    column("p90", "p90_ms", 2),
    column("p99", "p99_ms", 2),
    column("max", "max_ms", 2),
    column("ack p50", "from_ack_p50_ms", 2),
    column("ack p99", "from_ack_p99_ms", 2),
    column("early", "early", 0),
    column("again", "again", 0),
    column("late p99", "late_p99_ms", 2),
];

/// What they mean.
pub(crate) const ABOUT: &str = "ms from just before the call until it is heard of; ack: from its acknowledgement \
(early: heard before that, counts as 0); late: the call behind its schedule";

/// Number, and when it was heard of.
pub(crate) type News = (u64, Instant);

/// A call that was answered well.
struct Acked {
    begun: Instant,
    at: Instant,
}

/// What is known of the calls.
pub(crate) struct Calls {
    acked: BTreeMap<u64, Acked>,
    failed: Vec<Error>,
    /// How much later than planned each began.
    late: Latency,
}

/// What one listener heard.
#[derive(Default)]
pub(crate) struct Heard {
    first: BTreeMap<u64, Instant>,
    /// What came after a number's first time.
    again: u64,
}

/// What a schedule may be.
pub(crate) fn check(rate: u64, seconds: u64) -> Result<()> {
    ensure!((1..=100_000).contains(&rate), "--rate must be 1 to 100000; got {rate}");
    ensure!((1..=3_600).contains(&seconds), "--seconds must be 1 to 3600; got {seconds}");
    Ok(())
}

/// Calls by the schedule and then waits for the answers.
pub(crate) async fn calls<F>(rate: u64, seconds: u64, call: impl Fn(u64) -> F) -> Result<Calls>
where
    F: Future<Output = Result<(), Error>> + Send + 'static,
{
    let mut calls = Calls { acked: BTreeMap::new(), failed: Vec::new(), late: Latency::new()? };
    let mut under_way = JoinSet::new();
    let began = tokio::time::Instant::now();
    for number in 0..rate * seconds {
        let due = began + due_after(number, rate);
        sleep_until(due).await;
        calls.late.record(due.elapsed());
        let (begun, answer) = (Instant::now(), call(number));
        under_way.spawn(async move {
            answer.await?;
            Ok::<_, Error>((number, Acked { begun, at: Instant::now() }))
        });
    }
    while let Some(answer) = under_way.join_next().await {
        match answer? {
            Ok((number, acked)) => {
                calls.acked.insert(number, acked);
            }
            Err(error) => calls.failed.push(error),
        }
    }
    Ok(calls)
}

/// From the first call to this one. Computed from the start each time, so that no rounding adds up.
pub(crate) fn due_after(number: u64, rate: u64) -> Duration {
    Duration::from_nanos(number * 1_000_000_000 / rate)
}

impl Calls {
    /// How many were acknowledged. Fails if a call did.
    pub(crate) fn count(&self) -> Result<u64> {
        if let Some(error) = self.failed.first() {
            bail!("{} calls failed, one with: {error}", self.failed.len());
        }
        Ok(self.acked.len() as u64)
    }
}

impl Heard {
    /// Listens until every acknowledged call was heard of, or nothing was for long. How many were not.
    pub(crate) async fn wait_for(&mut self, calls: &Calls, told: &mut mpsc::UnboundedReceiver<News>) -> usize {
        let mut missing: BTreeSet<u64> = calls.acked.keys().copied().collect();
        while !missing.is_empty() {
            let Ok(Some((number, at))) = timeout(LIMIT, told.recv()).await else { break };
            missing.remove(&number);
            self.note(number, at);
        }
        while let Ok((number, at)) = told.try_recv() {
            self.note(number, at);
        }
        missing.len()
    }

    /// Adds what was heard to a table with [`COLUMNS`].
    pub(crate) fn row(&self, name: &str, calls: &Calls, table: &mut Table) -> Result<()> {
        let (from_call, from_ack, early) = self.latencies(calls)?;
        let numbers = [
            from_call.count() as f64,
            from_call.ms(0.5),
            from_call.ms(0.9),
            from_call.ms(0.99),
            from_call.max_ms(),
            from_ack.ms(0.5),
            from_ack.ms(0.99),
            early as f64,
            self.again as f64,
            calls.late.ms(0.99),
        ];
        table.row(name, numbers);
        Ok(())
    }

    fn note(&mut self, number: u64, at: Instant) {
        match self.first.entry(number) {
            Entry::Vacant(first) => {
                first.insert(at);
            }
            Entry::Occupied(_) => self.again += 1,
        }
    }

    /// From the call, and from its acknowledgement; the last: how many were heard of before that.
    fn latencies(&self, calls: &Calls) -> Result<(Latency, Latency, u64)> {
        let (mut from_call, mut from_ack, mut early) = (Latency::new()?, Latency::new()?, 0);
        for (number, acked) in &calls.acked {
            let Some(at) = self.first.get(number) else { continue };
            from_call.record(at.saturating_duration_since(acked.begun));
            from_ack.record(at.saturating_duration_since(acked.at));
            early += u64::from(*at < acked.at);
        }
        Ok((from_call, from_ack, early))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acked(begun: Instant, times_ms: &[(u64, u64, u64)]) -> Calls {
        let after = |ms: &u64| begun + Duration::from_millis(*ms);
        let acked = times_ms.iter().map(|(number, from, to)| (*number, Acked { begun: after(from), at: after(to) }));
        Calls { acked: acked.collect(), failed: Vec::new(), late: Latency::new().unwrap() }
    }

    #[test]
    fn the_schedule_is_even_and_does_not_drift() {
        assert_eq!(due_after(1, 200), Duration::from_millis(5));
        assert_eq!(due_after(3 * 1_000_000, 3), Duration::from_secs(1_000_000));
    }

    #[test]
    fn what_is_heard_before_the_acknowledgement_counts_as_zero() {
        let base = Instant::now();
        let calls = acked(base, &[(1, 10, 12), (2, 20, 25), (3, 30, 31)]);
        let mut heard = Heard::default();
        for (number, ms) in [(1, 14), (2, 24), (2, 90)] {
            heard.note(number, base + Duration::from_millis(ms));
        }
        let (from_call, from_ack, early) = heard.latencies(&calls).unwrap();
        assert_eq!((heard.again, early, from_call.count()), (1, 1, 2));
        assert!((from_call.max_ms() - 4.0).abs() < 0.1);
        assert!(from_ack.ms(0.5) < 0.1 && (from_ack.max_ms() - 2.0).abs() < 0.1);
    }

    #[test]
    fn a_row_fills_every_column() {
        let mut table = Table::new("heard", ABOUT, COLUMNS);
        Heard::default().row("nobody", &acked(Instant::now(), &[]), &mut table).unwrap();
        let text = table.text();
        assert_eq!(text[2].split_whitespace().count(), 1 + COLUMNS.len());
    }

    #[tokio::test]
    async fn what_nobody_heard_is_missing() {
        let (tell, mut told) = mpsc::unbounded_channel();
        let now = Instant::now();
        assert!(tell.send((2, now)).is_ok());
        drop(tell);
        let mut heard = Heard::default();
        assert_eq!(heard.wait_for(&acked(now, &[(1, 0, 0), (2, 0, 0)]), &mut told).await, 1);
        assert!(heard.first.contains_key(&2));
    }

    #[test]
    fn a_call_that_failed_is_told() {
        let mut calls = acked(Instant::now(), &[(1, 0, 1), (2, 0, 1)]);
        assert_eq!(calls.count().unwrap(), 2);
        calls.failed.push(Error::TimedOut { message: "too late".to_owned() });
        assert!(calls.count().unwrap_err().to_string().contains("too late"));
    }
}
