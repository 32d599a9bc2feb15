//! Retry: how long a failed task waits, in integers.

use quorate_proto::v1::{RetryPolicy, Task};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The policy of a task that asks for none.
pub const DEFAULT_POLICY: RetryPolicy =
    RetryPolicy { max_retries: 3, base_ms: DEFAULT_BASE_MS, cap_ms: DEFAULT_CAP_MS, jitter_permille: 200 };
/// The first delay of a policy that names none.
pub const DEFAULT_BASE_MS: u64 = 2_000;
/// The longest delay of a policy that names none.
pub const DEFAULT_CAP_MS: u64 = 60_000;

/// The task's policy. Stored tasks have theirs filled in.
pub(super) fn policy(task: &Task) -> RetryPolicy {
    task.spec.as_ref().and_then(|spec| spec.retry).unwrap_or(DEFAULT_POLICY)
}

/// Whether the failures counted so far leave a retry.
pub(super) fn allowed(task: &Task) -> bool {
    task.failures <= policy(task).max_retries
}

/// How long the task waits after its latest failure. Tasks that fail in one command draw differently from its chance.
pub(super) fn delay_ms(task: &Task, entropy: u64) -> u64 {
    let own = xxh3_64_with_seed(task.id.as_bytes(), entropy);
    delay(&policy(task), task.failures.saturating_sub(1), own)
}

/// min(base × 2^n, cap) × uniform(1 - jitter, 1 + jitter), the factor in permille.
fn delay(policy: &RetryPolicy, n: u32, entropy: u64) -> u64 {
    let doubled = policy.base_ms.saturating_mul(1_u64.checked_shl(n).unwrap_or(u64::MAX));
    let jitter = u64::from(policy.jitter_permille.min(1_000));
    let factor = 1_000 - jitter + entropy % (2 * jitter + 1);
    doubled.min(policy.cap_ms).saturating_mul(factor) / 1_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_jitter_the_delay_doubles_up_to_the_cap() {
        let policy = RetryPolicy { jitter_permille: 0, ..DEFAULT_POLICY };
        let delays: Vec<u64> = (0..7).map(|n| delay(&policy, n, u64::MAX)).collect();
        assert_eq!(delays, [2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000]);
        assert_eq!(delay(&policy, 100, 7), 60_000);
    }

    #[test]
    fn jitter_reaches_both_ends_and_never_beyond() {
        let delays: Vec<u64> = (0..=400).map(|entropy| delay(&DEFAULT_POLICY, 0, entropy)).collect();
        assert_eq!((delays.iter().min(), delays.iter().max()), (Some(&1_600), Some(&2_400)));
    }
}
