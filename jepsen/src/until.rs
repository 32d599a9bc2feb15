//! Waiting for a condition with a deadline: the one way in which tests wait.
//!
//! Deliberately absent: fixed sleeps.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(20);

/// Polls `check` until it gives a value. An error ends the wait at once; so does the deadline, with `what` in the message.
pub async fn until<T, Check, Answer>(what: &str, limit: Duration, mut check: Check) -> Result<T>
where
    Check: FnMut() -> Answer,
    Answer: Future<Output = Result<Option<T>>>,
{
    let started = Instant::now();
    loop {
        if let Some(value) = check().await? {
            return Ok(value);
        }
        if started.elapsed() > limit {
            bail!("waited {} ms in vain: {what}", limit.as_millis());
        }
        tokio::time::sleep(POLL).await;
    }
}
