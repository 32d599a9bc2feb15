//! CPU time of processes, from /proc.
//!
//! Deliberately absent: other systems than Linux.

use std::time::Duration;

use anyhow::{Context, Result};

/// The kernel reports in ticks of 10 ms to every user space on the platforms we build for.
const MS_PER_TICK: u64 = 10;

/// User and system time of these processes so far.
pub(crate) fn used(pids: &[u32]) -> Result<Duration> {
    let mut ticks = 0;
    for pid in pids {
        let path = format!("/proc/{pid}/stat");
        let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
        // The name in parentheses may contain spaces: count fields after it. utime and stime are fields 14 and 15.
        let (_, rest) = text.rsplit_once(") ").with_context(|| format!("cannot read {path}"))?;
        let fields: Vec<&str> = rest.split(' ').collect();
        for at in [11, 12] {
            ticks += fields.get(at).with_context(|| format!("{path} is too short"))?.parse::<u64>()?;
        }
    }
    Ok(Duration::from_millis(ticks * MS_PER_TICK))
}
