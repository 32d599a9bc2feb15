//! A retry policy: its bounds, what it retries, and how long it waits, in integers. Deliberately absent: the state.

use quorate_proto::v1::RetryPolicy;

use crate::error::{Outcome, invalid};
use crate::state::check_id;

/// The policy of whoever asks for none: 3 retries after 2, 4 and 8 s, each ±20 %.
pub const DEFAULT_POLICY: RetryPolicy = of(3, DEFAULT_BASE_MS, DEFAULT_CAP_MS, 200);
/// The first delay of a policy that names none.
pub const DEFAULT_BASE_MS: u64 = 2_000;
/// The longest delay of a policy that names none.
pub const DEFAULT_CAP_MS: u64 = 60_000;
/// The most retries.
pub const MAX_RETRIES: u32 = 100;
/// The longest delay that may be asked for: 30 days.
pub const MAX_DELAY_MS: u64 = 2_592_000_000;
/// The most error classes in each of a policy's lists.
pub const MAX_CLASSES: usize = 32;
/// Error classes that another attempt cannot mend. Every other one is retried: `timeout`, `connection`, `busy`, one of
/// your own, or none.
pub const FINAL_CLASSES: [&str; 3] = ["validation", "authentication", "not_found"];

const MAX_JITTER_PERMILLE: u32 = 1_000;

/// A policy without lists of classes.
pub(super) const fn of(max_retries: u32, base_ms: u64, cap_ms: u64, jitter_permille: u32) -> RetryPolicy {
    RetryPolicy { max_retries, base_ms, cap_ms, jitter_permille, never_retry: Vec::new(), always_retry: Vec::new() }
}

/// Checks a policy and fills its defaults in. `field` names it, as in `tasks[3].retry`.
pub fn check(field: &str, mut policy: RetryPolicy) -> Outcome<RetryPolicy> {
    if policy.base_ms == 0 {
        policy.base_ms = DEFAULT_BASE_MS;
    }
    if policy.cap_ms == 0 {
        policy.cap_ms = DEFAULT_CAP_MS;
    }
    let bounded = [
        ("max_retries", u64::from(policy.max_retries), u64::from(MAX_RETRIES)),
        ("base_ms", policy.base_ms, MAX_DELAY_MS),
        ("cap_ms", policy.cap_ms, MAX_DELAY_MS),
        ("jitter_permille", u64::from(policy.jitter_permille), u64::from(MAX_JITTER_PERMILLE)),
    ];
    for (name, given, most) in bounded {
        if given > most {
            let field = format!("{field}.{name}");
            return Err(invalid(&field, format!("{field} must be 0 to {most}; got {given}")));
        }
    }
    for (name, classes) in [("never_retry", &policy.never_retry), ("always_retry", &policy.always_retry)] {
        let field = format!("{field}.{name}");
        if classes.len() > MAX_CLASSES {
            let message = format!("{field} must be at most {MAX_CLASSES} error classes; got {}", classes.len());
            return Err(invalid(&field, message));
        }
        for (i, class) in classes.iter().enumerate() {
            check_id(&format!("{field}[{i}]"), class)?;
        }
    }
    Ok(policy)
}

/// Whether a failure of this class is not tried again, however many retries are left.
pub fn is_final(policy: &RetryPolicy, class: &str) -> bool {
    let named = |classes: &[String]| classes.iter().any(|known| known == class);
    (FINAL_CLASSES.contains(&class) || named(&policy.never_retry)) && !named(&policy.always_retry)
}

/// min(base × 2^n, cap) × uniform(1 - jitter, 1 + jitter), the factor in permille; `n` is 0 for the first retry.
pub fn delay_ms(policy: &RetryPolicy, n: u32, entropy: u64) -> u64 {
    let doubled = policy.base_ms.saturating_mul(1_u64.checked_shl(n).unwrap_or(u64::MAX));
    let jitter = u64::from(policy.jitter_permille.min(MAX_JITTER_PERMILLE));
    let factor = 1_000 - jitter + entropy % (2 * jitter + 1);
    doubled.min(policy.cap_ms).saturating_mul(factor) / 1_000
}

#[cfg(test)]
mod tests {
    use crate::error::Error;

    use super::*;

    #[test]
    fn without_jitter_the_delay_doubles_up_to_the_cap() {
        let policy = RetryPolicy { jitter_permille: 0, ..DEFAULT_POLICY };
        let delays: Vec<u64> = (0..7).map(|n| delay_ms(&policy, n, u64::MAX)).collect();
        assert_eq!(delays, [2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000]);
        assert_eq!(delay_ms(&policy, 100, 7), 60_000);
    }

    #[test]
    fn jitter_reaches_both_ends_and_never_beyond() {
        let delays: Vec<u64> = (0..=400).map(|entropy| delay_ms(&DEFAULT_POLICY, 0, entropy)).collect();
        assert_eq!((delays.iter().min(), delays.iter().max()), (Some(&1_600), Some(&2_400)));
        let full = RetryPolicy { jitter_permille: 1_000, ..DEFAULT_POLICY };
        let delays: Vec<u64> = (0..=2_000).map(|entropy| delay_ms(&full, 0, entropy)).collect();
        assert_eq!((delays.iter().min(), delays.iter().max()), (Some(&0), Some(&4_000)));
    }

    #[test]
    fn what_another_attempt_cannot_mend_is_final() {
        let policy = RetryPolicy {
            never_retry: vec!["budget".to_owned()],
            always_retry: vec!["not_found".to_owned()],
            ..DEFAULT_POLICY
        };
        // The class; final by default; final by this policy.
        let table = [
            ("validation", true, true),
            ("authentication", true, true),
            ("not_found", true, false),
            ("budget", false, true),
            ("timeout", false, false),
            ("connection", false, false),
            ("busy", false, false),
            ("", false, false),
        ];
        for (class, by_default, by_policy) in table {
            assert_eq!(is_final(&DEFAULT_POLICY, class), by_default, "{class:?} by default");
            assert_eq!(is_final(&policy, class), by_policy, "{class:?} by the policy");
        }
    }

    #[test]
    fn defaults_are_filled_in() {
        let filled = check("retry", RetryPolicy { max_retries: 1, ..RetryPolicy::default() }).expect("a good policy");
        assert_eq!((filled.max_retries, filled.jitter_permille), (1, 0));
        assert_eq!((filled.base_ms, filled.cap_ms), (DEFAULT_BASE_MS, DEFAULT_CAP_MS));
    }

    #[test]
    fn every_bound_is_checked_and_named() {
        let class = |name: &str| vec![name.to_owned()];
        let cases = [
            (RetryPolicy { max_retries: 101, ..DEFAULT_POLICY }, "retry.max_retries"),
            (RetryPolicy { base_ms: MAX_DELAY_MS + 1, ..DEFAULT_POLICY }, "retry.base_ms"),
            (RetryPolicy { cap_ms: MAX_DELAY_MS + 1, ..DEFAULT_POLICY }, "retry.cap_ms"),
            (RetryPolicy { jitter_permille: 1_001, ..DEFAULT_POLICY }, "retry.jitter_permille"),
            (RetryPolicy { never_retry: class("a b"), ..DEFAULT_POLICY }, "retry.never_retry[0]"),
            (RetryPolicy { always_retry: class(""), ..DEFAULT_POLICY }, "retry.always_retry[0]"),
            (RetryPolicy { never_retry: vec!["c".to_owned(); 33], ..DEFAULT_POLICY }, "retry.never_retry"),
        ];
        for (policy, field) in cases {
            match check("retry", policy) {
                Err(Error::Rejected(rejection)) => assert_eq!(rejection.field, field, "{}", rejection.message),
                other => panic!("{field}: {other:?}"),
            }
        }
    }
}
