//! Wall clocks that jump, run fast or slow, and come back: a file that libfaketime reads in each process that was told
//! to.
//!
//! What libfaketime 0.9.10 does, and why the file is written as it is here:
//!
//! - A process that has run for a while shows `start + offset + rate * ran`: the offset is taken from its start, and
//!   so is the rate, so a change of rate alone would be a jump too. [`WallClock`] chooses the offset so that it is
//!   none, and has to be told when the process starts ([`WallClock::starting`]).
//! - A rate that the file does not name any more stays. So the file always names one.
//! - It reads the file at each look at the clock: a change is seen at once. A file that is empty ends the process, so
//!   the file is replaced, never written to.
//!
//! Only the wall clock is faked. `CLOCK_MONOTONIC` stays true, and so do the times of files for who asks by `statx`.
//!
//! Deliberately absent: what processes make of it, and the check that a process is linked dynamically to glibc, without
//! which it does not load the library.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

/// Names the library where it is not in a usual place.
const VARIABLE: &str = "QUORATE_FAKETIME";
/// The one that is made for threads: without its lock they could read half of an old text and half of a new one.
const LIBRARY: &str = "libfaketimeMT.so.1";
/// Below this, Debian has a directory for each architecture.
const LIBRARIES: &str = "/usr/lib";
/// Where libfaketime puts what processes share.
const SHARED: &str = "/dev/shm";

fn find_library() -> Result<PathBuf, String> {
    match std::env::var_os(VARIABLE) {
        Some(named) => check_library(PathBuf::from(named)).ok_or_else(|| format!("{VARIABLE} names no file")),
        None => find_below(Path::new(LIBRARIES))
            .ok_or_else(|| format!("no {LIBRARIES}/*/faketime/{LIBRARY} (Debian: libfaketime), and no {VARIABLE}")),
    }
}

fn check_library(path: PathBuf) -> Option<PathBuf> {
    path.is_file().then_some(path)
}

fn find_below(root: &Path) -> Option<PathBuf> {
    let mut places: Vec<PathBuf> = fs::read_dir(root).ok()?.flatten().map(|entry| entry.path()).collect();
    places.sort();
    places.into_iter().find_map(|place| check_library(place.join("faketime").join(LIBRARY)))
}

/// What one process is shown, against the true time.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Shown {
    /// Seconds ahead at the start of the process.
    offset: f64,
    /// Seconds that pass in one.
    rate: f64,
}

impl Shown {
    const TRUE: Self = Self { offset: 0.0, rate: 1.0 };

    /// Seconds ahead when the process has run for so many.
    fn ahead(self, ran: f64) -> f64 {
        self.offset + ran * (self.rate - 1.0)
    }

    /// The same at this moment, and from now on at another rate.
    fn at_rate(self, ran: f64, rate: f64) -> Self {
        Self { offset: self.ahead(ran) - ran * (rate - 1.0), rate }
    }

    fn jumped(self, seconds: f64) -> Self {
        Self { offset: self.offset + seconds, ..self }
    }

    /// The same at this moment, for a process that starts now.
    fn restarted(self, ran: f64) -> Self {
        Self { offset: self.ahead(ran), ..self }
    }

    /// As libfaketime reads it. No letter may come in but the `x`: others stand for minutes, hours, days.
    fn text(self) -> String {
        format!("{:+.6} x{:.6}\n", self.offset, self.rate)
    }
}

#[derive(Debug)]
struct State {
    shown: Shown,
    started: Instant,
}

/// The wall clock of one process.
#[derive(Debug)]
pub struct WallClock {
    library: PathBuf,
    file: PathBuf,
    state: Mutex<State>,
}

impl WallClock {
    /// Whether clocks can be faked here, or what is missing.
    pub fn permitted() -> Result<(), String> {
        find_library().map(|_| ())
    }

    /// A clock that is right, for a process that is still to start. `file` is written, in a directory that is there.
    pub fn new(file: &Path) -> Result<Self> {
        let library = find_library().map_err(anyhow::Error::msg)?;
        Self::with_library(library, file)
    }

    fn with_library(library: PathBuf, file: &Path) -> Result<Self> {
        let file = std::path::absolute(file).with_context(|| format!("{} is nowhere", file.display()))?;
        let state = State { shown: Shown::TRUE, started: Instant::now() };
        let clock = Self { library, file, state: Mutex::new(state) };
        clock.heal()?;
        Ok(clock)
    }

    /// What the process is started with.
    pub fn environment(&self) -> Vec<(String, String)> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let variables = [
            ("LD_PRELOAD", text(&self.library)),
            ("FAKETIME_TIMESTAMP_FILE", text(&self.file)),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
        ];
        variables.map(|(name, value)| (name.to_owned(), value)).into()
    }

    /// To be called right before the process is started, each time: it is shown what the one before it was.
    pub fn starting(&self) -> Result<()> {
        let mut state = self.state();
        let shown = state.shown.restarted(state.started.elapsed().as_secs_f64());
        state.started = Instant::now();
        self.show(&mut state, shown)
    }

    /// So many seconds ahead of what it shows now; back if negative.
    pub fn jump(&self, seconds: i64) -> Result<()> {
        let mut state = self.state();
        let shown = state.shown.jumped(seconds as f64);
        self.show(&mut state, shown)
    }

    /// So many seconds pass in one from now on; without a jump, if [`WallClock::starting`] was told.
    pub fn rate(&self, factor: f64) -> Result<()> {
        ensure!(factor.is_finite() && factor > 0.0, "no clock runs at a rate of {factor}");
        let mut state = self.state();
        let shown = state.shown.at_rate(state.started.elapsed().as_secs_f64(), factor);
        self.show(&mut state, shown)
    }

    /// The true time, at the true rate: a jump, if it was wrong.
    pub fn heal(&self) -> Result<()> {
        self.show(&mut self.state(), Shown::TRUE)
    }

    /// How far ahead of the true time it is now, in seconds.
    pub fn ahead(&self) -> f64 {
        let state = self.state();
        state.shown.ahead(state.started.elapsed().as_secs_f64())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(&self, state: &mut State, shown: Shown) -> Result<()> {
        replace(&self.file, &shown.text())?;
        state.shown = shown;
        Ok(())
    }
}

fn replace(path: &Path, text: &str) -> Result<()> {
    let part = path.with_extension("part");
    let written = File::create(&part).and_then(|mut file| file.write_all(text.as_bytes()));
    let replaced = written.and_then(|()| fs::rename(&part, path));
    replaced.with_context(|| format!("{} cannot be replaced", path.display()))
}

/// Removes what libfaketime leaves behind for a process that was killed, after that.
pub fn forget(pid: u32) -> Result<()> {
    for name in [format!("faketime_shm_{pid}"), format!("sem.faketime_sem_{pid}")] {
        let path = Path::new(SHARED).join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("{} cannot be removed", path.display()));
            }
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_one_that_libfaketime_reads() {
        let text = |offset, rate| Shown { offset, rate }.text();
        assert_eq!(Shown::TRUE.text(), "+0.000000 x1.000000\n");
        assert_eq!(text(3600.0, 1.0), "+3600.000000 x1.000000\n");
        assert_eq!(text(-120.5, 2.0), "-120.500000 x2.000000\n");
        for shown in [text(-0.0, 0.5), text(1e9, 1e-3), text(-1e-9, 100.0)] {
            assert!(shown.starts_with(['+', '-']), "{shown}");
            assert_eq!(shown.matches(char::is_alphabetic).collect::<String>(), "x", "{shown}");
        }
    }

    #[test]
    fn a_change_of_rate_and_a_restart_are_no_jumps() {
        let fast = Shown::TRUE.jumped(3600.0).at_rate(60.0, 2.0);
        assert_eq!((fast.ahead(60.0), fast.ahead(70.0)), (3600.0, 3610.0));
        let slow = fast.at_rate(70.0, 0.5);
        assert_eq!((slow.ahead(70.0), slow.ahead(90.0)), (3610.0, 3600.0));
        let restarted = slow.restarted(90.0);
        assert_eq!((restarted.ahead(0.0), restarted.ahead(20.0)), (3600.0, 3590.0));
        assert_eq!(restarted.jumped(-3600.0).ahead(0.0), 0.0);
    }

    #[test]
    fn the_file_says_what_was_asked_for() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("clock");
        let clock = WallClock::with_library(PathBuf::from("/lib/some.so"), &file)?;
        assert_eq!(fs::read_to_string(&file)?, Shown::TRUE.text());
        clock.jump(-3600)?;
        assert_eq!(fs::read_to_string(&file)?, "-3600.000000 x1.000000\n");
        clock.jump(60)?;
        assert_eq!(fs::read_to_string(&file)?, "-3540.000000 x1.000000\n");
        clock.rate(2.0)?;
        assert!(fs::read_to_string(&file)?.ends_with(" x2.000000\n"));
        assert!(clock.ahead() >= -3540.0, "{}", clock.ahead());
        clock.starting()?;
        assert!(fs::read_to_string(&file)?.ends_with(" x2.000000\n"));
        for wrong in [f64::NAN, f64::INFINITY, 0.0, -1.0] {
            assert!(clock.rate(wrong).is_err(), "{wrong}");
        }
        clock.heal()?;
        assert_eq!((fs::read_to_string(&file)?, clock.ahead()), (Shown::TRUE.text(), 0.0));
        assert_eq!(fs::read_dir(dir.path())?.count(), 1, "nothing else is left there");
        Ok(())
    }

    #[test]
    fn the_environment_names_the_library_and_the_file() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("clock");
        let clock = WallClock::with_library(PathBuf::from("/lib/some.so"), &file)?;
        let environment = clock.environment();
        let value = |name: &str| environment.iter().find(|(found, _)| found == name).map(|(_, value)| value.clone());
        assert_eq!(value("LD_PRELOAD").as_deref(), Some("/lib/some.so"));
        assert_eq!(value("FAKETIME_TIMESTAMP_FILE"), Some(file.to_string_lossy().into_owned()));
        assert_eq!(value("FAKETIME_DONT_FAKE_MONOTONIC").as_deref(), Some("1"));
        assert_eq!(value("FAKETIME"), None, "it would keep the file from being read");
        Ok(())
    }

    #[test]
    fn the_library_is_found_where_debian_has_it() -> Result<()> {
        let root = tempfile::tempdir()?;
        assert_eq!(find_below(root.path()), None);
        let dir = root.path().join("x86_64-linux-gnu/faketime");
        fs::create_dir_all(&dir)?;
        assert_eq!(find_below(root.path()), None);
        fs::write(dir.join(LIBRARY), "")?;
        assert_eq!(find_below(root.path()), Some(dir.join(LIBRARY)));
        Ok(())
    }
}
