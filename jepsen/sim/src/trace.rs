//! What happened in a run, as lines with their simulated time: a hash over all of them and, for whoever looks for the
//! cause of a violation, the last of them.
//!
//! Deliberately absent: the whole text of a run. It is made again from the seed, with `--verbose`.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use xxhash_rust::xxh3::Xxh3;

/// How many of the last lines are kept.
const KEPT: usize = 80;

/// The lines of one run.
pub(crate) struct Trace {
    hash: Xxh3,
    last: VecDeque<String>,
    verbose: bool,
}

impl Trace {
    /// Nothing has happened yet. `verbose` prints every line.
    pub(crate) fn new(verbose: bool) -> Self {
        Trace { hash: Xxh3::new(), last: VecDeque::with_capacity(KEPT), verbose }
    }

    /// Something happened.
    pub(crate) fn note(&mut self, at: Duration, what: fmt::Arguments<'_>) {
        let line = format!("{:>10.6} {what}", at.as_secs_f64());
        self.hash.update(line.as_bytes());
        self.hash.update(b"\n");
        if self.verbose {
            println!("{line}");
        }
        if self.last.len() == KEPT {
            self.last.pop_front();
        }
        self.last.push_back(line);
    }

    /// The hash over every line so far.
    pub(crate) fn hash(&self) -> u64 {
        self.hash.digest()
    }

    /// The last lines.
    pub(crate) fn last(&self) -> Vec<String> {
        self.last.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(lines: &[(u64, &str)]) -> u64 {
        let mut trace = Trace::new(false);
        lines.iter().for_each(|(at, line)| trace.note(Duration::from_millis(*at), format_args!("{line}")));
        trace.hash()
    }

    #[test]
    fn order_time_and_text_count() {
        assert_eq!(hash(&[(1, "a"), (2, "b")]), hash(&[(1, "a"), (2, "b")]));
        assert_ne!(hash(&[(1, "a"), (2, "b")]), hash(&[(1, "b"), (2, "a")]));
        assert_ne!(hash(&[(1, "a")]), hash(&[(2, "a")]));
    }
}
