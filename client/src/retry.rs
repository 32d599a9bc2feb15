//! Retries on this side: the policy that the cluster applies to tasks, for any call of your own.
//!
//! ```no_run
//! # async fn send(_message: &str) -> Result<(), std::io::Error> { Ok(()) }
//! # async fn demo() {
//! use quorate_client::{DEFAULT_RETRY, execute_with_retry};
//!
//! let class = |error: &std::io::Error| match error.kind() {
//!     std::io::ErrorKind::TimedOut => "timeout".to_owned(),
//!     std::io::ErrorKind::PermissionDenied => "authentication".to_owned(),
//!     _ => "connection".to_owned(),
//! };
//! match execute_with_retry(&DEFAULT_RETRY, class, |_attempt| send("hello")).await {
//!     Ok(()) => {}
//!     Err(gave_up) => eprintln!("{gave_up}"),
//! }
//! # }
//! ```
//!
//! Deliberately absent: the calls of this library to the cluster, which retry by themselves what is safe to retry.

use std::time::Duration;

use quorate_proto::v1::RetryPolicy;
use tokio::time::sleep;

/// 3 retries after 2, 4 and 8 s, each ±20 %: the cluster's profile `default`.
pub const DEFAULT_RETRY: RetryPolicy = RetryPolicy {
    max_retries: 3,
    base_ms: DEFAULT_BASE_MS,
    cap_ms: DEFAULT_CAP_MS,
    jitter_permille: 200,
    never_retry: Vec::new(),
    always_retry: Vec::new(),
};

const DEFAULT_BASE_MS: u64 = 2_000;
const DEFAULT_CAP_MS: u64 = 60_000;
const FINAL_CLASSES: [&str; 3] = ["validation", "authentication", "not_found"];

/// It did not work, and is not tried again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("gave up after {attempts} attempts: {error}")]
pub struct GaveUp<E> {
    /// How the last attempt failed.
    pub error: E,
    /// Its class.
    pub class: String,
    /// How many attempts were made.
    pub attempts: u32,
    /// The class is final: another attempt would not have helped.
    pub is_final: bool,
}

/// Calls `f` until it succeeds, fails with a class that is final by the policy, or no retry is left. `f` gets the number
/// of the attempt, from 1; `classify` gives the class of an error, such as `timeout`, `connection` or `validation`.
pub async fn execute_with_retry<T, E, F>(
    policy: &RetryPolicy,
    classify: impl Fn(&E) -> String,
    mut f: impl FnMut(u32) -> F,
) -> Result<T, GaveUp<E>>
where
    F: Future<Output = Result<T, E>>,
{
    let mut attempt = 1;
    loop {
        let error = match f(attempt).await {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        let class = classify(&error);
        let is_final = is_final(policy, &class);
        if is_final || attempt > policy.max_retries {
            tracing::warn!(attempt, %class, is_final, "an attempt failed; giving up");
            return Err(GaveUp { error, class, attempts: attempt, is_final });
        }
        let wait = retry_delay(policy, attempt - 1, uuid::Uuid::new_v4().as_u64_pair().1);
        tracing::info!(attempt, %class, ?wait, "an attempt failed; trying again");
        sleep(wait).await;
        attempt += 1;
    }
}

/// How long to wait before a retry, as the cluster counts it: min(base × 2^n, cap) × uniform(1 - jitter, 1 + jitter).
/// `n` is 0 for the first retry; `chance` is any random number.
pub fn retry_delay(policy: &RetryPolicy, n: u32, chance: u64) -> Duration {
    let base_ms = if policy.base_ms == 0 { DEFAULT_BASE_MS } else { policy.base_ms };
    let cap_ms = if policy.cap_ms == 0 { DEFAULT_CAP_MS } else { policy.cap_ms };
    let doubled = base_ms.saturating_mul(1_u64.checked_shl(n).unwrap_or(u64::MAX));
    let jitter = u64::from(policy.jitter_permille.min(1_000));
    let factor = 1_000 - jitter + chance % (2 * jitter + 1);
    Duration::from_millis(doubled.min(cap_ms).saturating_mul(factor) / 1_000)
}

fn is_final(policy: &RetryPolicy, class: &str) -> bool {
    let named = |classes: &[String]| classes.iter().any(|known| known == class);
    (FINAL_CLASSES.contains(&class) || named(&policy.never_retry)) && !named(&policy.always_retry)
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    /// Fails with this class until the attempt that succeeds; tells the outcome, the attempts made, and the time taken.
    async fn fails_until(good: u32, class: &str, policy: &RetryPolicy) -> (Result<u32, GaveUp<String>>, u32, Duration) {
        let began = Instant::now();
        let mut made = 0;
        let outcome = execute_with_retry(
            policy,
            |error: &String| error.clone(),
            |attempt| {
                made += 1;
                assert_eq!(attempt, made, "attempts are numbered from 1");
                std::future::ready(if attempt >= good { Ok(attempt) } else { Err(class.to_owned()) })
            },
        )
        .await;
        (outcome, made, began.elapsed())
    }

    fn exact() -> RetryPolicy {
        RetryPolicy { jitter_permille: 0, ..DEFAULT_RETRY }
    }

    #[tokio::test(start_paused = true)]
    async fn a_first_try_that_works_waits_for_nothing() {
        let (outcome, made, took) = fails_until(1, "timeout", &exact()).await;
        assert_eq!((outcome, made, took), (Ok(1), 1, Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn a_third_try_that_works_comes_after_two_and_four_seconds() {
        let (outcome, made, took) = fails_until(3, "timeout", &exact()).await;
        assert_eq!((outcome, made), (Ok(3), 3));
        assert_eq!(took.as_secs(), 6);
    }

    #[tokio::test(start_paused = true)]
    async fn the_fourth_failure_is_the_last() {
        let (outcome, made, took) = fails_until(5, "timeout", &exact()).await;
        let gave_up = outcome.unwrap_err();
        assert_eq!((gave_up.attempts, gave_up.is_final, gave_up.class.as_str()), (4, false, "timeout"));
        assert_eq!(gave_up.to_string(), "gave up after 4 attempts: timeout");
        assert_eq!((made, took.as_secs()), (4, 2 + 4 + 8));
    }

    #[tokio::test(start_paused = true)]
    async fn a_final_class_stops_at_once_unless_the_policy_says_otherwise() {
        let (outcome, made, took) = fails_until(2, "validation", &exact()).await;
        assert!(outcome.unwrap_err().is_final);
        assert_eq!((made, took), (1, Duration::ZERO));
        let policy = RetryPolicy {
            never_retry: vec!["budget".to_owned()],
            always_retry: vec!["validation".to_owned()],
            ..exact()
        };
        assert!(fails_until(2, "budget", &policy).await.0.is_err());
        assert_eq!(fails_until(2, "validation", &policy).await.0, Ok(2));
    }

    #[tokio::test(start_paused = true)]
    async fn jitter_stays_within_its_share() {
        let (outcome, _, took) = fails_until(2, "timeout", &DEFAULT_RETRY).await;
        assert_eq!(outcome, Ok(2));
        // The timer's grain is a millisecond.
        assert!((1_600..=2_401).contains(&took.as_millis()), "{took:?}");
    }

    #[test]
    fn delays_double_up_to_the_cap_and_have_defaults() {
        let delays =
            |policy: &RetryPolicy| -> Vec<u128> { (0..7).map(|n| retry_delay(policy, n, 7).as_millis()).collect() };
        let expected: [u128; 7] = [2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000];
        assert_eq!(delays(&exact()), expected);
        assert_eq!(delays(&RetryPolicy::default()), expected);
        assert_eq!(retry_delay(&exact(), 200, 7), Duration::from_secs(60));
        let ends = [0, 400].map(|chance| retry_delay(&DEFAULT_RETRY, 0, chance).as_millis());
        assert_eq!(ends, [1_600_u128, 2_400]);
    }
}
