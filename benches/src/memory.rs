//! Resident memory of processes, from /proc.
//!
//! Deliberately absent: what the memory is for. The databases' buffers and caches are in it: an operator pays them too.

use anyhow::{Context, Result};

/// What this process has in memory now, in bytes. An error also for one that has ended and was not waited for.
pub(crate) fn resident(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    let kib = kib_of(&text).with_context(|| format!("{path} has no VmRSS: the process has ended"))?;
    Ok(kib * 1_024)
}

/// Bytes, for people.
pub(crate) fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// The line is "VmRSS:", blanks, a number and "kB", by which the kernel means 1,024 bytes.
fn kib_of(status: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    value.trim().strip_suffix("kB")?.trim_end().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_right_line_is_read() {
        assert_eq!(kib_of("VmHWM:\t   99999 kB\nVmRSS:\t   12345 kB\nRssAnon:\t    1000 kB\n"), Some(12_345));
        assert_eq!(kib_of("Name:\tquorate\nState:\tZ (zombie)\n"), None);
    }

    #[test]
    fn a_running_process_has_some() {
        assert!(resident(std::process::id()).unwrap() > 100_000);
    }
}
