//! Writing a record while it happens.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result};
use quorate_client::Error;
use serde_json::Value;

use super::{Event, History, Phase};

/// How an operation ended, as its process saw it.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// It took effect.
    Ok {
        /// What was answered.
        res: Value,
        /// Where in the log, if the server said so.
        rev: Option<u64>,
    },
    /// It certainly had no effect.
    Fail,
    /// Nobody knows.
    Info,
}

impl Answer {
    /// An answer with its place in the log.
    pub fn at(rev: u64, res: Value) -> Self {
        Answer::Ok { res, rev: Some(rev) }
    }

    /// An answer of which the place is not known.
    pub fn ok(res: Value) -> Self {
        Answer::Ok { res, rev: None }
    }

    /// What an error of the library says about the effect: only what was refused, or never taken, had none.
    pub fn of_error(error: &Error) -> Self {
        match error {
            Error::Rejected { .. }
            | Error::Fenced { .. }
            | Error::Unavailable { .. }
            | Error::Compacted { .. }
            | Error::Config { .. } => Answer::Fail,
            Error::OutcomeUnknown { .. } | Error::TimedOut { .. } => Answer::Info,
        }
    }
}

/// The record of one workload in one run. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Recorder {
    began: Instant,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    file: Mutex<Written>,
    next_process: AtomicU64,
}

#[derive(Debug)]
struct Written {
    out: BufWriter<File>,
    events: Vec<Event>,
    failed: Option<std::io::Error>,
}

impl Recorder {
    /// Begins a record at `path`; `began` is the moment that is 0 in it.
    pub fn create(path: &Path, began: Instant) -> Result<Self> {
        let out = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        let file = Mutex::new(Written { out: BufWriter::new(out), events: Vec::new(), failed: None });
        Ok(Self { began, shared: Arc::new(Shared { file, next_process: AtomicU64::new(0) }) })
    }

    /// A new process.
    pub fn process(&self) -> Process {
        Process { recorder: self.clone(), id: self.next_id() }
    }

    /// How many events were recorded so far.
    pub fn len(&self) -> usize {
        self.shared.file.lock().unwrap_or_else(PoisonError::into_inner).events.len()
    }

    /// Whether nothing was recorded yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What was recorded so far, and everything on disk.
    pub fn history(&self) -> Result<History> {
        let mut written = self.shared.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = written.failed.take() {
            return Err(error).context("the record could not be written");
        }
        written.out.flush()?;
        History::of(written.events.clone())
    }

    fn next_id(&self) -> u64 {
        self.shared.next_process.fetch_add(1, Ordering::Relaxed)
    }

    /// The time is taken under the lock: the order of lines is the order of times.
    fn write(&self, mut event: Event) {
        let mut written = self.shared.file.lock().unwrap_or_else(PoisonError::into_inner);
        event.t = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let line = serde_json::to_vec(&event).map_err(std::io::Error::from);
        let said = line.and_then(|mut line| {
            line.push(b'\n');
            written.out.write_all(&line)
        });
        if let Err(error) = said {
            written.failed.get_or_insert(error);
        }
        written.events.push(event);
    }
}

/// One logical process: one operation at a time. After an operation that nobody knows the end of it goes on under a new
/// id.
#[derive(Debug)]
pub struct Process {
    recorder: Recorder,
    id: u64,
}

impl Process {
    /// The id under which the next operation is recorded.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Records an operation around `call`. If this future is dropped, the operation stays open, and the process with it.
    pub async fn run(
        &mut self,
        f: &str,
        key: &str,
        arg: Value,
        node: Option<u64>,
        call: impl Future<Output = Answer>,
    ) -> Answer {
        let event = |ev| Event {
            t: 0,
            p: self.id,
            ev,
            f: f.to_owned(),
            key: key.to_owned(),
            arg: None,
            res: None,
            rev: None,
            node,
        };
        self.recorder.write(Event { arg: Some(arg), ..event(Phase::Invoke) });
        let answer = call.await;
        match &answer {
            Answer::Ok { res, rev } => {
                self.recorder.write(Event { res: Some(res.clone()), rev: *rev, ..event(Phase::Ok) });
            }
            Answer::Fail => self.recorder.write(event(Phase::Fail)),
            Answer::Info => {
                self.recorder.write(event(Phase::Info));
                self.id = self.recorder.next_id();
            }
        }
        answer
    }
}
