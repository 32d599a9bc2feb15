//! The circuit: how one breaker moves. Looks at one record and nothing else; rows and indexes are the room's.

use quorate_proto::v1::{Breaker, BreakerSettings, BreakerState};

use super::Admission;
use crate::faults::{Bug, planted};

/// How much of an error is kept, in bytes.
pub const MAX_TEXT_BYTES: usize = 1_024;

/// A breaker of which nothing is known.
pub(super) fn as_new(name: &str) -> Breaker {
    Breaker { name: name.to_owned(), state: BreakerState::Closed as i32, ..Breaker::default() }
}

/// What it says to whoever asks, time left aside.
pub(super) fn admission(breaker: &Breaker) -> Admission {
    match (breaker.state(), &breaker.probe) {
        (BreakerState::Open, _) => Admission::No { retry_at_ms: breaker.probe_at_ms },
        (BreakerState::HalfOpen, Some(_)) if planted(Bug::ProbeShared) => Admission::Probe,
        (BreakerState::HalfOpen, Some(probe)) => Admission::No { retry_at_ms: probe.deadline_ms },
        (BreakerState::HalfOpen, None) => Admission::Probe,
        (BreakerState::Closed | BreakerState::Unspecified, _) => Admission::Yes,
    }
}

/// When it moves by itself.
pub(super) fn due_ms(breaker: &Breaker) -> Option<u64> {
    match breaker.state() {
        BreakerState::Open => Some(breaker.probe_at_ms).filter(|at_ms| *at_ms > 0),
        BreakerState::HalfOpen => breaker.probe.as_ref().map(|probe| probe.deadline_ms),
        BreakerState::Closed | BreakerState::Unspecified => None,
    }
}

/// Whether little is lost with its row: it admits something, and nobody set it up. A half-open one without a probe is
/// often that of an agent that is gone for good.
pub(super) fn is_idle(breaker: &Breaker) -> bool {
    let admits = match breaker.state() {
        BreakerState::HalfOpen => breaker.probe.is_none(),
        state => state == BreakerState::Closed,
    };
    admits && breaker.settings.is_none()
}

/// Whether failures of this class count.
pub(super) fn counts(settings: &BreakerSettings, class: &str) -> bool {
    !settings.excluded_classes.iter().any(|excluded| excluded == class)
}

/// Makes the moves that time makes, as of the moments at which they were due.
pub(super) fn settle(breaker: &mut Breaker, settings: &BreakerSettings, now_ms: u64) {
    if let Some(probe) = breaker.probe.take_if(|probe| probe.deadline_ms <= now_ms) {
        let who = if probe.holder.is_empty() { "somebody" } else { probe.holder.as_str() };
        fail(breaker, settings, &format!("the probe by {who} said nothing in time"), probe.deadline_ms);
    }
    if breaker.state() == BreakerState::Open && due_ms(breaker).is_some_and(|at_ms| at_ms <= now_ms) {
        breaker.set_state(BreakerState::HalfOpen);
        breaker.probe_at_ms = 0;
    }
}

/// Counts a failure: the one too many opens a closed breaker, any opens a half-open one.
pub(super) fn fail(breaker: &mut Breaker, settings: &BreakerSettings, error: &str, at_ms: u64) {
    breaker.failures = breaker.failures.saturating_add(1);
    breaker.failures_total = breaker.failures_total.saturating_add(1);
    breaker.last_error = error[..error.floor_char_boundary(MAX_TEXT_BYTES)].to_owned();
    if breaker.state() == BreakerState::HalfOpen || breaker.failures >= settings.failure_threshold {
        open(breaker, at_ms.saturating_add(settings.open_ms), String::new());
    }
}

/// Counts a success: what failed before is forgotten.
pub(super) fn succeed(breaker: &mut Breaker) {
    breaker.successes_total = breaker.successes_total.saturating_add(1);
    close(breaker);
}

/// Opens it until `probe_at_ms`; 0: until somebody closes it. Whoever probes is superseded.
pub(super) fn open(breaker: &mut Breaker, probe_at_ms: u64, reason: String) {
    if breaker.state() != BreakerState::Open {
        breaker.opened_count = breaker.opened_count.saturating_add(1);
    }
    breaker.set_state(BreakerState::Open);
    breaker.probe_at_ms = probe_at_ms;
    breaker.probe = None;
    breaker.reason = reason;
}

/// Closes it. Its settings, its totals and its last error stay.
pub(super) fn close(breaker: &mut Breaker) {
    breaker.set_state(BreakerState::Closed);
    breaker.failures = 0;
    breaker.probe_at_ms = 0;
    breaker.probe = None;
    breaker.reason.clear();
}

#[cfg(test)]
mod tests {
    use quorate_proto::v1::BreakerProbe;

    use super::*;

    fn settings() -> BreakerSettings {
        BreakerSettings { failure_threshold: 2, open_ms: 100, probe_timeout_ms: 50, ..BreakerSettings::default() }
    }

    fn opened_at(at_ms: u64) -> Breaker {
        let mut breaker = as_new("p");
        fail(&mut breaker, &settings(), "one", at_ms);
        assert_eq!(admission(&breaker), Admission::Yes);
        fail(&mut breaker, &settings(), "two", at_ms);
        breaker
    }

    fn settled(breaker: &Breaker, now_ms: u64) -> Breaker {
        let mut breaker = breaker.clone();
        settle(&mut breaker, &settings(), now_ms);
        breaker
    }

    #[test]
    fn the_last_failure_of_the_threshold_opens_it_for_a_while() {
        let breaker = opened_at(10);
        assert_eq!(admission(&breaker), Admission::No { retry_at_ms: 110 });
        assert_eq!((breaker.failures, breaker.opened_count, due_ms(&breaker)), (2, 1, Some(110)));
        assert_eq!(settled(&breaker, 109), breaker);
        assert_eq!(admission(&settled(&breaker, 110)), Admission::Probe);
    }

    #[test]
    fn time_moves_it_alike_in_one_step_and_in_many() {
        let mut probed = settled(&opened_at(10), 110);
        probed.probe = Some(BreakerProbe { token: 7, holder: "t1".to_owned(), deadline_ms: 160 });
        let step = settled(&probed, 160);
        assert_eq!(admission(&step), Admission::No { retry_at_ms: 260 });
        assert_eq!((step.failures, step.opened_count, step.failures_total), (3, 2, 3));
        assert_eq!(settled(&probed, 1_000), settled(&step, 1_000));
        assert_eq!(settled(&probed, 1_000), settled(&settled(&step, 200), 260));
        assert_eq!(admission(&settled(&probed, 1_000)), Admission::Probe);
    }

    #[test]
    fn opened_by_hand_it_stays_open() {
        let mut breaker = as_new("p");
        open(&mut breaker, 0, "hand".to_owned());
        assert_eq!(due_ms(&breaker), None);
        assert_eq!(admission(&settled(&breaker, u64::MAX)), Admission::No { retry_at_ms: 0 });
        close(&mut breaker);
        assert_eq!(admission(&breaker), Admission::Yes);
        assert_eq!((breaker.reason.as_str(), breaker.opened_count), ("", 1));
    }

    #[test]
    fn a_long_error_is_cut_between_characters() {
        let mut breaker = as_new("p");
        fail(&mut breaker, &settings(), &format!("x{}", "ä".repeat(MAX_TEXT_BYTES)), 1);
        assert_eq!(breaker.last_error.len(), MAX_TEXT_BYTES - 1);
    }
}
