//! Directories and small files that must survive a crash whole.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::Fatal;
use crate::faults::crash_point;

/// A directory that removes itself once it is retired and its last user is gone.
#[derive(Debug, Clone)]
pub struct DirHandle {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    retired: AtomicBool,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // One that was moved elsewhere meanwhile is in other hands.
        if self.retired.load(Ordering::Acquire)
            && let Err(error) = fs::remove_dir_all(&self.path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), %error, "a retired directory could not be removed");
        }
    }
}

impl DirHandle {
    /// Takes charge of a directory that exists.
    pub fn new(path: PathBuf) -> Self {
        DirHandle { inner: Arc::new(Inner { path, retired: AtomicBool::new(false) }) }
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Removes the directory once the last handle is gone.
    pub fn retire(&self) {
        self.inner.retired.store(true, Ordering::Release);
    }
}

/// Replaces a small file so that a crash leaves the old content or the new one, never a mixture.
pub fn write_atomically(path: &Path, content: &[u8]) -> Result<(), Fatal> {
    let part = path.with_extension("part");
    let mut file = File::create(&part)?;
    file.write_all(content)?;
    crash_point("file.before-sync");
    file.sync_all()?;
    crash_point("file.before-rename");
    fs::rename(&part, path)?;
    crash_point("file.after-rename");
    match path.parent() {
        Some(dir) => sync_dir(dir),
        None => Ok(()),
    }
}

/// Makes the entries of a directory durable.
pub fn sync_dir(dir: &Path) -> Result<(), Fatal> {
    Ok(File::open(dir)?.sync_all()?)
}
