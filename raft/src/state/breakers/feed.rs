//! What tasks and time say to the breakers. Nothing here can be refused: an attempt has happened, whatever is thought
//! of it. Deliberately absent: commands that a client sends.

use quorate_proto::v1::{Breaker, BreakerProbe, BreakerState};

use super::checked::MAX_OPEN_MS;
use super::{Admission, Breakers, circuit, store};
use crate::error::Fatal;
use crate::state::{Ctx, Out, Rooms};

/// What came of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// It worked.
    Success,
    /// It failed. A class that is excluded does not count.
    Failure {
        /// For people.
        error: &'a str,
        /// For settings; may be empty.
        class: &'a str,
    },
    /// Whoever made it is gone. Always counts.
    Lost {
        /// For people.
        error: &'a str,
    },
    /// It says nothing of the thing it used: cancelled, released.
    Nothing,
}

impl Breakers {
    /// Whether this is a failure that counts.
    pub(super) fn counts(&self, name: &str, verdict: Verdict<'_>) -> bool {
        match verdict {
            Verdict::Failure { class, .. } => circuit::counts(self.settings(name), class),
            Verdict::Lost { .. } => true,
            Verdict::Success | Verdict::Nothing => false,
        }
    }
}

/// An attempt begins under this breaker; true: it is the probe. The caller has seen `admission` say Yes or Probe. A task
/// may take hours: its probe has as long as the attempt itself.
pub fn begin(
    rooms: &mut Breakers,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    name: &str,
    holder: &str,
    token: u64,
    deadline_ms: u64,
) -> bool {
    if rooms.admission(name, ctx.now_ms) != Admission::Probe {
        return false;
    }
    let mut breaker = rooms.now(name, ctx.now_ms);
    breaker.probe = Some(BreakerProbe { token, holder: holder.to_owned(), deadline_ms });
    store(rooms, out, ctx, breaker);
    true
}

/// What came of an attempt. `probe_token`: it was the probe, under its own token; a probe that was superseded meanwhile
/// counts nothing. Anything else counts only while CLOSED: a call that was under way when the breaker opened says
/// nothing new.
///
/// A success where nothing has failed writes nothing: every finish comes this way.
pub fn record(
    rooms: &mut Breakers,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    name: &str,
    verdict: Verdict<'_>,
    probe_token: Option<u64>,
) {
    let counts = rooms.counts(name, verdict);
    let sound = |known: &Breaker| known.state() == BreakerState::Closed && known.failures == 0;
    if !counts && rooms.get(name).is_none_or(sound) {
        return;
    }
    let mut breaker = rooms.now(name, ctx.now_ms);
    let speaks = match probe_token {
        Some(token) => breaker.probe.as_ref().is_some_and(|probe| probe.token == token),
        None => breaker.state() == BreakerState::Closed,
    };
    if !speaks {
        return;
    }
    match verdict {
        Verdict::Success => circuit::succeed(&mut breaker),
        Verdict::Failure { error, .. } | Verdict::Lost { error } if counts => {
            circuit::fail(&mut breaker, rooms.settings(name), error, ctx.now_ms);
        }
        // Nothing was learned: the next one may probe.
        Verdict::Failure { .. } | Verdict::Lost { .. } | Verdict::Nothing => breaker.probe = None,
    }
    store(rooms, out, ctx, breaker);
}

/// A provider asked to be left alone for so long. No failure is counted; if it is open for longer, nothing changes.
pub fn throttle(rooms: &mut Breakers, out: &mut Out<'_, '_>, ctx: &Ctx, name: &str, retry_after_ms: u64) {
    if retry_after_ms == 0 {
        return;
    }
    let wait_ms = retry_after_ms.min(MAX_OPEN_MS);
    let until_ms = ctx.now_ms.saturating_add(wait_ms);
    let mut breaker = rooms.now(name, ctx.now_ms);
    let longer = breaker.probe_at_ms == 0 || breaker.probe_at_ms >= until_ms;
    if breaker.state() == BreakerState::Open && longer {
        return;
    }
    circuit::open(&mut breaker, until_ms, format!("asked to wait for {wait_ms} ms"));
    store(rooms, out, ctx, breaker);
}

/// Moves the breakers whose time has come, at most `limit`.
pub fn run_due(rooms: &mut Rooms, out: &mut Out<'_, '_>, ctx: &Ctx, limit: usize) -> Result<usize, Fatal> {
    let due: Vec<String> = (rooms.breakers.timers.iter())
        .take_while(|(at_ms, _)| *at_ms <= ctx.now_ms)
        .take(limit)
        .map(|(_, name)| name.clone())
        .collect();
    for name in &due {
        let breaker = rooms.breakers.now(name, ctx.now_ms);
        store(&mut rooms.breakers, out, ctx, breaker);
    }
    Ok(due.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effect::Effect;
    use crate::state::breakers::{MAX_BREAKERS, agent_breaker};
    use crate::storage::rows::MemoryRows;
    use crate::storage::txn::Txn;

    const FAILED: Verdict<'static> = Verdict::Failure { error: "down", class: "connection" };

    #[derive(Default)]
    struct Bench {
        rooms: Rooms,
        rows: MemoryRows,
        rev: u64,
        effects: Vec<Effect>,
        writes: u64,
    }

    impl Bench {
        /// Runs one step, stores what it wrote, and holds the indexes to the rows.
        fn run<T>(&mut self, now_ms: u64, step: impl FnOnce(&mut Rooms, &mut Out<'_, '_>, &Ctx) -> T) -> T {
            self.rev += 1;
            self.effects.clear();
            let ctx = Ctx { now_ms, rev: self.rev, entropy: 0 };
            let mut txn = Txn::new(&self.rows, 0);
            let done = step(&mut self.rooms, &mut Out { txn: &mut txn, effects: &mut self.effects }, &ctx);
            self.writes = txn.write_count();
            for (key, value) in txn.into_writes().rows {
                match value {
                    Some(value) => self.rows.0.insert(key, value),
                    None => self.rows.0.remove(&key),
                };
            }
            assert_eq!(Breakers::rebuild(&self.rows).unwrap(), self.rooms.breakers);
            done
        }

        fn record(&mut self, now_ms: u64, verdict: Verdict<'_>, probe_token: Option<u64>) {
            self.run(now_ms, |rooms, out, ctx| record(&mut rooms.breakers, out, ctx, "p", verdict, probe_token));
        }

        fn begin(&mut self, now_ms: u64, token: u64) -> bool {
            self.run(now_ms, |rooms, out, ctx| begin(&mut rooms.breakers, out, ctx, "p", "t", token, now_ms + 300_000))
        }

        fn now(&self, now_ms: u64) -> Breaker {
            self.rooms.breakers.now("p", now_ms)
        }

        fn opened_at(now_ms: u64) -> Self {
            let mut bench = Bench::default();
            for _ in 0..5 {
                bench.record(now_ms, FAILED, None);
            }
            assert_eq!(bench.now(now_ms).state(), BreakerState::Open);
            bench
        }
    }

    #[test]
    fn what_is_well_writes_nothing() {
        let mut bench = Bench::default();
        for verdict in [Verdict::Success, Verdict::Nothing, Verdict::Failure { error: "slow", class: "timeout" }] {
            bench.record(1, verdict, None);
            assert_eq!(bench.writes, 0, "{verdict:?}");
        }
        assert!(bench.rooms.breakers.is_quiet() && !bench.begin(1, 7));
        bench.record(1, FAILED, None);
        bench.record(1, Verdict::Success, None);
        assert_eq!((bench.writes, bench.now(1).failures, bench.now(1).successes_total), (1, 0, 1));
        bench.record(1, Verdict::Success, None);
        assert_eq!((bench.writes, bench.now(1).successes_total), (0, 1));
    }

    #[test]
    fn a_lost_lease_counts_though_timeouts_do_not() {
        let mut bench = Bench::default();
        for _ in 0..5 {
            bench.record(1, Verdict::Failure { error: "slow", class: "timeout" }, None);
            bench.record(1, Verdict::Lost { error: "lease lost" }, None);
        }
        assert_eq!((bench.now(1).state(), bench.now(1).failures), (BreakerState::Open, 5));
        assert!(matches!(&bench.effects[..], [Effect::BreakerChanged { state: BreakerState::Open, .. }]));
    }

    #[test]
    fn one_attempt_probes_and_only_its_token_decides() {
        let mut bench = Bench::opened_at(1_000);
        assert!(!bench.begin(60_999, 7));
        assert!(bench.begin(61_000, 8));
        assert!(!bench.begin(61_000, 9));
        for (verdict, token) in [(Verdict::Success, None), (FAILED, None), (Verdict::Success, Some(7))] {
            bench.record(61_001, verdict, token);
            assert_eq!(bench.writes, 0, "{verdict:?} {token:?}");
        }
        bench.record(61_001, Verdict::Nothing, Some(8));
        assert!(matches!(&bench.effects[..], [Effect::BreakerChanged { state: BreakerState::HalfOpen, .. }]));
        assert!(bench.begin(61_002, 10));
        bench.record(61_003, Verdict::Success, Some(10));
        assert_eq!((bench.now(61_003).state(), bench.now(61_003).failures), (BreakerState::Closed, 0));
    }

    #[test]
    fn a_lost_probe_opens_it_again_and_its_late_word_counts_nothing() {
        let mut bench = Bench::opened_at(1_000);
        assert!(bench.begin(61_000, 8));
        assert_eq!(bench.rooms.breakers.next_due_ms(), Some(361_000));
        assert_eq!(bench.run(361_000, |rooms, out, ctx| run_due(rooms, out, ctx, 10).unwrap()), 1);
        assert_eq!(bench.rooms.breakers.next_due_ms(), Some(421_000));
        bench.record(361_001, Verdict::Success, Some(8));
        assert_eq!((bench.writes, bench.now(361_001).failures), (0, 6));
        // Long after, in one step.
        assert_eq!(bench.run(500_000, |rooms, out, ctx| run_due(rooms, out, ctx, 10).unwrap()), 1);
        assert_eq!((bench.now(500_000).state(), bench.rooms.breakers.next_due_ms()), (BreakerState::HalfOpen, None));
    }

    #[test]
    fn a_throttle_only_ever_lengthens_and_counts_no_failure() {
        let mut bench = Bench::default();
        let mut asked = |now_ms: u64, wait_ms: u64| {
            bench.run(now_ms, |rooms, out, ctx| throttle(&mut rooms.breakers, out, ctx, "p", wait_ms));
            (bench.writes, bench.now(now_ms).probe_at_ms)
        };
        assert_eq!(asked(1_000, 0), (0, 0));
        assert_eq!(asked(1_000, 5_000), (1, 6_000));
        assert_eq!(asked(2_000, 1_000), (0, 6_000));
        assert_eq!(asked(2_000, u64::MAX), (1, 2_000 + MAX_OPEN_MS));
        assert_eq!((bench.now(2_000).failures_total, bench.now(2_000).opened_count), (0, 1));
    }

    #[test]
    fn a_full_room_forgets_an_idle_breaker_and_never_an_open_one() {
        let mut bench = Bench::default();
        bench.run(1, |rooms, out, ctx| {
            for i in 0..MAX_BREAKERS {
                let name = agent_breaker(&format!("a{i}"));
                throttle(&mut rooms.breakers, out, ctx, &name, 10_000);
            }
        });
        bench.record(2, FAILED, None);
        assert_eq!((bench.writes, bench.rooms.breakers.len()), (0, MAX_BREAKERS), "all are open");
        bench.run(20_000, |rooms, out, ctx| {
            let breakers = &mut rooms.breakers;
            assert!(begin(breakers, out, ctx, "agent:a7", "t", 1, 30_000));
            record(breakers, out, ctx, "agent:a7", Verdict::Success, Some(1));
        });
        bench.record(20_001, FAILED, None);
        assert_eq!((bench.now(20_001).failures, bench.rooms.breakers.len()), (1, MAX_BREAKERS));
        assert!(bench.rooms.breakers.get("agent:a7").is_none());
    }
}
