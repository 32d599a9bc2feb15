//! The directory of an outbox: one process at a time, whole files or none.
//!
//! Everything here blocks. What cannot be read is set aside under another name, where a person finds it; only what is
//! settled is removed, and what was never finished.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::entry::{Entry, SUFFIX, Unread};

/// Behind the name of a file that is being written.
const UNFINISHED: &str = ".tmp";

/// An open outbox directory. It is this process's as long as this lives.
#[derive(Debug)]
pub(super) struct Dir {
    path: PathBuf,
    _lock: File,
}

impl Dir {
    /// Opens or creates it. `None`: another worker has it.
    pub(super) fn open(path: &Path) -> io::Result<Option<Self>> {
        create(path)?;
        // Whoever changes its working directory still finds it.
        let path = path.canonicalize()?;
        let lock = File::create(path.join("LOCK"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        if let Some(Err(error)) = path.parent().map(sync) {
            // It may not be readable to this user. The directory was most likely there before.
            tracing::debug!(outbox = %path.display(), %error, "the directory above it could not be synced");
        }
        let dir = Dir { path, _lock: lock };
        dir.clear_unfinished()?;
        Ok(Some(dir))
    }

    /// Writes an entry: once this returns it survives a loss of power.
    pub(super) fn put(&self, entry: &Entry) -> io::Result<PathBuf> {
        let name = entry.file_name();
        let (path, unfinished) = (self.path.join(&name), self.path.join(format!("{name}{UNFINISHED}")));
        let written = write(&unfinished, &entry.to_bytes())
            .and_then(|()| fs::rename(&unfinished, &path))
            .and_then(|()| sync(&self.path));
        if written.is_err() {
            // Room for others, perhaps. Whichever of the two there is.
            for left in [&unfinished, &path] {
                let _ = fs::remove_file(left);
            }
        }
        written.map(|()| path)
    }

    /// The files that are entries by their names.
    pub(super) fn files(&self) -> io::Result<Vec<PathBuf>> {
        self.named(|name| name.ends_with(SUFFIX.as_bytes()))
    }

    /// What a file says. `None`: nothing that can be delivered; it is gone, or why not is in the log.
    pub(super) fn read(&self, path: &Path) -> Option<Entry> {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::error!(file = %path.display(), %error, "a result in the outbox cannot be read");
                return None;
            }
        };
        match Entry::from_bytes(&bytes) {
            Ok(entry) => Some(entry),
            Err(unread @ Unread::Newer(_)) => {
                tracing::error!(file = %path.display(), %unread, "a result in the outbox was left for a newer program");
                None
            }
            Err(unread @ Unread::Damaged(_)) => {
                tracing::error!(file = %path.display(), %unread, "a result in the outbox is set aside");
                if let Err(error) = self.set_aside(path, "damaged") {
                    tracing::error!(file = %path.display(), %error, "it could not be set aside");
                }
                None
            }
        }
    }

    /// Removes an entry that is settled. Not synced: should a loss of power bring it back, it is delivered once more, and
    /// its token says what that means.
    pub(super) fn remove(&self, path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Keeps a file where nothing here looks at it again: `<name>.<why>`.
    pub(super) fn set_aside(&self, path: &Path, why: &str) -> io::Result<()> {
        let mut aside = path.as_os_str().to_owned();
        aside.push(".");
        aside.push(why);
        fs::rename(path, aside)
    }

    /// A write that did not end told nobody that its result was safe. Only while nothing is being written.
    fn clear_unfinished(&self) -> io::Result<()> {
        let unfinished = [SUFFIX, UNFINISHED].concat();
        for path in self.named(|name| name.ends_with(unfinished.as_bytes()))? {
            tracing::warn!(file = %path.display(), "a result was cut off while it was written to the outbox");
            fs::remove_file(path)?;
        }
        Ok(())
    }

    fn named(&self, wanted: impl Fn(&[u8]) -> bool) -> io::Result<Vec<PathBuf>> {
        let mut paths = Vec::new();
        for file in fs::read_dir(&self.path)? {
            let file = file?;
            if wanted(file.file_name().as_encoded_bytes()) && file.file_type()?.is_file() {
                paths.push(file.path());
            }
        }
        paths.sort_unstable();
        Ok(paths)
    }
}

/// Results are nobody else's business.
fn create(path: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Makes the names in a directory last.
fn sync(path: &Path) -> io::Result<()> {
    // Elsewhere a directory cannot be opened as a file is.
    if cfg!(unix) { File::open(path)?.sync_all() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::super::entry::tests::entry;
    use super::*;

    fn open(path: &Path) -> Dir {
        Dir::open(path).unwrap().expect("nobody else has it")
    }

    fn names(path: &Path) -> Vec<String> {
        let files = fs::read_dir(path).unwrap();
        let mut names: Vec<String> =
            files.map(|file| file.unwrap().file_name().into_string().unwrap()).filter(|name| name != "LOCK").collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn an_entry_is_there_until_it_is_removed_and_a_new_process_finds_it() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("deep").join("outbox");
        let file = open(&path).put(&entry("t", 5)).unwrap();
        let dir = open(&path);
        assert_eq!(dir.files().unwrap(), std::slice::from_ref(&file));
        assert_eq!(dir.read(&file), Some(entry("t", 5)));
        dir.remove(&file).unwrap();
        dir.remove(&file).unwrap();
        assert!(dir.files().unwrap().is_empty() && dir.read(&file).is_none());
        assert!(names(&path).is_empty());
    }

    #[test]
    fn it_is_one_workers_at_a_time() {
        let temp = tempfile::tempdir().unwrap();
        let first = open(temp.path());
        assert!(Dir::open(temp.path()).unwrap().is_none());
        drop(first);
        assert!(Dir::open(temp.path()).unwrap().is_some());
    }

    #[test]
    fn what_is_damaged_is_set_aside_and_kept() {
        let temp = tempfile::tempdir().unwrap();
        let dir = open(temp.path());
        let file = dir.put(&entry("t", 5)).unwrap();
        let mut bytes = fs::read(&file).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&file, &bytes).unwrap();
        assert!(dir.read(&file).is_none());
        assert_eq!(names(temp.path()), ["t-5.finish.damaged"]);
        assert_eq!(fs::read(temp.path().join("t-5.finish.damaged")).unwrap(), bytes);
        assert!(dir.files().unwrap().is_empty(), "it is not looked at again");
    }

    #[test]
    fn others_files_are_left_alone_and_a_write_that_was_cut_off_is_not() {
        let temp = tempfile::tempdir().unwrap();
        for name in ["notes.txt", "x.tmp", "finish", "t-5.finish.damaged", "t-6.finish.tmp"] {
            fs::write(temp.path().join(name), "x").unwrap();
        }
        fs::create_dir(temp.path().join("folder.finish")).unwrap();
        let dir = open(temp.path());
        assert!(dir.files().unwrap().is_empty());
        assert_eq!(names(temp.path()), ["finish", "folder.finish", "notes.txt", "t-5.finish.damaged", "x.tmp"]);
    }

    #[test]
    fn what_cannot_be_written_leaves_nothing_behind() {
        let temp = tempfile::tempdir().unwrap();
        let dir = open(temp.path());
        // A directory stands where the file is to go.
        let blocked = temp.path().join(entry("t", 5).file_name());
        fs::create_dir(&blocked).unwrap();
        assert!(dir.put(&entry("t", 5)).is_err());
        assert_eq!(names(temp.path()), ["t-5.finish"]);
        assert!(blocked.is_dir() && dir.files().unwrap().is_empty());
    }
}
