//! What can go wrong on a disk that runs, and which files that is about.
//!
//! Deliberately absent: how it goes wrong. That is said where it happens, in `disk` and `content`.

use std::time::Duration;

use rustix::io::Errno;

/// Which files and directories a fault is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// All of them, directories too.
    Any,
    /// Every directory, and no file.
    Directories,
    /// The write-ahead log: `*.log` in a directory `log`.
    Wal,
    /// Every `MANIFEST-*`.
    Manifests,
    /// Every `*.sst`.
    Tables,
    /// What lies in a directory `snapshots`.
    Snapshots,
    /// Files and directories whose path from the root of the disk fits, such as `state/*/CURRENT`; a `*` stands for any
    /// characters, `/` too.
    Matching(String),
}

impl Which {
    /// Whether it is about this path, which has no `/` in front.
    pub(super) fn takes(&self, path: &str, is_dir: bool) -> bool {
        let (dirs, name) = path.rsplit_once('/').unwrap_or(("", path));
        match self {
            Which::Any => true,
            Which::Directories => is_dir,
            Which::Wal => !is_dir && name.ends_with(".log") && dirs.rsplit('/').next() == Some("log"),
            Which::Manifests => !is_dir && name.starts_with("MANIFEST-"),
            Which::Tables => !is_dir && name.ends_with(".sst"),
            Which::Snapshots => dirs.split('/').any(|dir| dir == "snapshots"),
            Which::Matching(pattern) => fits(pattern, path),
        }
    }
}

fn fits(pattern: &str, path: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == path };
    let Some(mut left) = path.strip_prefix(first) else { return false };
    let (between, last) = rest.rsplit_once('*').unwrap_or(("", rest));
    for part in between.split('*') {
        let Some((_, after)) = left.split_once(part) else { return false };
        left = after;
    }
    left.ends_with(last)
}

/// The faults that are on.
#[derive(Debug, Default)]
pub(super) struct Faults {
    /// A sync of these fails, so many times.
    pub(super) sync: Option<SyncFault>,
    /// How long a sync takes.
    pub(super) slow: Duration,
    /// How much fits on the disk. `None`: as much as anybody wants.
    pub(super) capacity: Option<u64>,
    /// These cannot be read.
    pub(super) read: Option<Which>,
}

/// Syncs that fail.
#[derive(Debug)]
pub(super) struct SyncFault {
    pub(super) which: Which,
    pub(super) errno: Errno,
    pub(super) left: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_class_takes_its_own_files() {
        let files = [
            "log/000004.log",
            "data/log/000004.log",
            "log/LOG",
            "log/MANIFEST-000005",
            "state/1/000007.sst",
            "snapshots/9-1-1/000007.sst",
            "backlog/000004.log",
        ];
        let taken = |which: Which| -> Vec<usize> {
            files.iter().enumerate().filter(|(_, path)| which.takes(path, false)).map(|(at, _)| at).collect()
        };
        assert_eq!(taken(Which::Any), [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(taken(Which::Wal), [0, 1]);
        assert_eq!(taken(Which::Manifests), [3]);
        assert_eq!(taken(Which::Tables), [4, 5]);
        assert_eq!(taken(Which::Snapshots), [5]);
        assert!(taken(Which::Directories).is_empty());
        assert!(Which::Directories.takes("log", true) && Which::Directories.takes("", true));
        assert!(!Which::Wal.takes("log/x.log", true) && Which::Snapshots.takes("snapshots/9-1-1", true));
    }

    #[test]
    fn a_star_stands_for_any_characters() {
        for (pattern, path, fit) in [
            ("IDENTITY.toml", "IDENTITY.toml", true),
            ("IDENTITY.toml", "IDENTITY.toml2", false),
            ("*", "", true),
            ("*.sst", "state/1/7.sst", true),
            ("*.sst", "state/1/7.sst.part", false),
            ("state/*/CURRENT", "state/1/CURRENT", true),
            ("state/*/CURRENT", "state/CURRENT", false),
            ("a*b*c", "a1b2c", true),
            ("a*b*c", "acb", false),
            ("a*bc*c", "abc", false),
            ("ab*ba", "aba", false),
            ("a**b", "ab", true),
        ] {
            assert_eq!(fits(pattern, path), fit, "{pattern} {path}");
        }
    }
}
