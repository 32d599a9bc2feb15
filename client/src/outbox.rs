//! The outbox: results that are on disk before they are on their way.
//!
//! A file an attempt, written in full before the first delivery and removed once the cluster has answered: so a result
//! outlives the process that brought it, and an outage longer than its session.
//!
//! ```text
//!  outbox ── when files are written, read and settled; off the threads that must not wait
//!    ├── dir     the directory: one process at a time, whole files or none
//!    └── entry   what a file says, how damage is found, how a file is called
//! ```
//!
//! Invariant: no file with a result goes before an answer to it. One that the cluster would not take in any form, or
//! that cannot be read, is set aside.
//!
//! Deliberately absent: deliveries. Those are the worker's: its bench for what it has just done, its courier for what
//! is left.

mod dir;
mod entry;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use quorate_proto::v1::{FinishTaskRequest, FinishTaskResponse};
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::error::Error;
use dir::Dir;

pub(crate) use entry::Entry;

/// An earlier run in this very process may still be letting go of the directory.
const LOOKS: u32 = 20;
const BETWEEN_LOOKS: Duration = Duration::from_millis(50);

/// The outbox of one worker. Cheap to clone; the directory is free for others once every clone is gone.
#[derive(Debug, Clone)]
pub(crate) struct Outbox {
    dir: Arc<Dir>,
    agent_id: Arc<str>,
    namespace: Arc<str>,
}

/// Says which file an entry is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Slip(PathBuf);

/// Where an entry came from: what was held under one session.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Origin {
    pub(crate) namespace: String,
    pub(crate) session_id: String,
}

/// What an answer means for the entry that was delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// The cluster has it: as the result, or as an orphan of its attempt.
    Taken,
    /// The cluster would not have it, and has no place to keep it.
    Refused,
    /// Whether it arrived is not known: it is to be delivered, once more perhaps.
    Owed,
}

impl Fate {
    pub(crate) fn of(answer: Option<&Result<FinishTaskResponse, Error>>) -> Self {
        match answer {
            // It is about the fence of whoever delivered, or about the request id: nobody looked at the finish itself.
            Some(Err(error)) if error.fence_is_over() => Fate::Owed,
            Some(Err(Error::Rejected { field, .. })) if field.starts_with("request.") => Fate::Owed,
            Some(Ok(_) | Err(Error::Fenced { .. })) => Fate::Taken,
            Some(Err(Error::Rejected { .. })) => Fate::Refused,
            Some(Err(_)) | None => Fate::Owed,
        }
    }
}

impl Outbox {
    /// Opens or creates the outbox in this directory, for an agent and its namespace.
    pub(crate) async fn open(path: PathBuf, agent_id: &str, namespace: &str) -> Result<Self, Error> {
        let shown = path.display().to_string();
        for look in 0..LOOKS {
            if look > 0 {
                sleep(BETWEEN_LOOKS).await;
            }
            let path = path.clone();
            match off_thread(move || Dir::open(&path)).await {
                Ok(Some(dir)) => {
                    return Ok(Outbox { dir: Arc::new(dir), agent_id: agent_id.into(), namespace: namespace.into() });
                }
                Ok(None) => {}
                Err(error) => {
                    let message = format!("outbox must be a directory that can be written to; {shown}: {error}");
                    return Err(Error::Config { message });
                }
            }
        }
        let message =
            format!("outbox must be a directory of this worker's own; {shown} is in use by another worker process");
        Err(Error::Config { message })
    }

    /// Writes a result down. `None`: it could not be written, and lives as long as this process.
    pub(crate) async fn put(&self, finish: &FinishTaskRequest) -> Option<Slip> {
        let entry = Entry {
            finish: finish.clone(),
            agent_id: self.agent_id.to_string(),
            namespace: self.namespace.to_string(),
        };
        let dir = Arc::clone(&self.dir);
        match off_thread(move || dir.put(&entry)).await {
            Ok(path) => Some(Slip(path)),
            Err(error) => {
                let (task, token) = (&finish.task_id, finish.token);
                tracing::error!(task, token, %error, "a result is not in the outbox; it is delivered all the same");
                None
            }
        }
    }

    /// What an entry says, unless it is gone or cannot be read any more.
    pub(crate) async fn read(&self, slip: &Slip) -> Option<Entry> {
        let (dir, path) = (Arc::clone(&self.dir), slip.0.clone());
        off_thread(move || Ok(dir.read(&path))).await.ok().flatten()
    }

    /// Every entry there is, by where it came from. Reads one at a time: all of them may be a lot.
    pub(crate) async fn entries(&self) -> io::Result<BTreeMap<Origin, Vec<Slip>>> {
        let dir = Arc::clone(&self.dir);
        off_thread(move || {
            let mut entries: BTreeMap<Origin, Vec<Slip>> = BTreeMap::new();
            for path in dir.files()? {
                if let Some(entry) = dir.read(&path) {
                    let session_id = entry.session_id().to_owned();
                    entries.entry(Origin { namespace: entry.namespace, session_id }).or_default().push(Slip(path));
                }
            }
            Ok(entries)
        })
        .await
    }

    /// Does with an entry as its fate has it.
    pub(crate) async fn settle(&self, slip: &Slip, fate: Fate) {
        let (dir, path) = (Arc::clone(&self.dir), slip.0.clone());
        let settled = match fate {
            Fate::Taken => off_thread(move || dir.remove(&path)).await,
            Fate::Refused => {
                tracing::error!(file = %path.display(), "nobody took a result; it is set aside");
                off_thread(move || dir.set_aside(&path, "refused")).await
            }
            Fate::Owed => Ok(()),
        };
        if let Err(error) = settled {
            tracing::warn!(file = %slip.0.display(), %error, "a settled result stays in the outbox");
        }
    }
}

/// Disks take their time.
async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use quorate_proto::v1::RejectionCode;

    use super::entry::tests::entry;
    use super::*;

    async fn open(path: &Path) -> Outbox {
        Outbox::open(path.to_owned(), "builder", "tests").await.unwrap()
    }

    fn answered(error: Error) -> Fate {
        Fate::of(Some(&Err(error)))
    }

    #[test]
    fn only_an_answer_to_the_finish_itself_settles_it() {
        let rejected = |code, field: &str| Error::Rejected { code, field: field.to_owned(), message: String::new() };
        assert_eq!(Fate::of(Some(&Ok(FinishTaskResponse::default()))), Fate::Taken);
        let fenced = |field: &str| Error::Fenced { field: field.to_owned(), message: String::new() };
        assert_eq!(answered(fenced("")), Fate::Taken, "kept as an orphan");
        assert_eq!(answered(fenced("fence")), Fate::Owed, "a grant of the deliverer's is over, not the attempt");
        assert_eq!(answered(rejected(RejectionCode::NotFound, "task_id")), Fate::Refused);
        assert_eq!(answered(rejected(RejectionCode::InvalidArgument, "result")), Fate::Refused);
        assert_eq!(answered(rejected(RejectionCode::NotFound, "request.session_id")), Fate::Owed);
        assert_eq!(answered(Error::OutcomeUnknown { message: String::new() }), Fate::Owed);
        assert_eq!(Fate::of(None), Fate::Owed);
    }

    #[tokio::test]
    async fn entries_are_found_by_their_sessions_and_go_as_their_fate_has_it() {
        let temp = tempfile::tempdir().unwrap();
        let outbox = open(temp.path()).await;
        let mut other = entry("c", 3).finish;
        other.request.as_mut().unwrap().session_id = "s-2".to_owned();
        let (first, second) = (entry("a", 1), entry("b", 2));
        let slips = [
            outbox.put(&first.finish).await.unwrap(),
            outbox.put(&second.finish).await.unwrap(),
            outbox.put(&other).await.unwrap(),
        ];
        assert_eq!(outbox.read(&slips[0]).await, Some(first));
        let entries = outbox.entries().await.unwrap();
        let found: Vec<(&str, usize)> =
            entries.iter().map(|(origin, slips)| (origin.session_id.as_str(), slips.len())).collect();
        assert_eq!(found, [("s-1", 2), ("s-2", 1)]);
        assert!(entries.keys().all(|origin| origin.namespace == "tests"));
        for (slip, fate) in slips.iter().zip([Fate::Taken, Fate::Refused, Fate::Owed]) {
            outbox.settle(slip, fate).await;
        }
        assert_eq!(outbox.entries().await.unwrap().values().flatten().collect::<Vec<_>>(), [&slips[2]]);
        assert!(temp.path().join("b-2.finish.refused").is_file() && !temp.path().join("a-1.finish").exists());
    }

    #[tokio::test]
    async fn a_second_worker_is_told_that_it_is_the_second() {
        let temp = tempfile::tempdir().unwrap();
        let _first = open(temp.path()).await;
        let refused = Outbox::open(temp.path().to_owned(), "other", "").await.unwrap_err();
        assert!(matches!(&refused, Error::Config { message } if message.contains("in use")), "{refused}");
        let file = temp.path().join("file");
        std::fs::write(&file, "x").unwrap();
        let refused = Outbox::open(file, "other", "").await.unwrap_err();
        assert!(matches!(&refused, Error::Config { message } if message.contains("directory")), "{refused}");
    }

    #[tokio::test]
    async fn what_cannot_be_written_is_said_and_no_more() {
        let temp = tempfile::tempdir().unwrap();
        let outbox = open(temp.path()).await;
        temp.close().unwrap();
        assert_eq!(outbox.put(&entry("a", 1).finish).await, None);
    }
}
