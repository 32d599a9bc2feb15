//! A file that holds room. Other programs may fill the disk to its last byte; what this node has under way then, a flush
//! above all, gets the room that the ballast gives back.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

const NAME: &str = "BALLAST";

/// The file, there or not.
pub(super) struct Ballast {
    path: PathBuf,
    /// 0: there shall be none.
    size: u64,
    held: bool,
}

impl Ballast {
    /// Takes over what an earlier run left, if it has the right size.
    pub(super) fn open(dir: &Path, size: u64) -> Self {
        let path = dir.join(NAME);
        let held = size > 0 && fs::metadata(&path).is_ok_and(|meta| meta.len() == size);
        if !held {
            remove(&path);
        }
        Ballast { path, size, held }
    }

    /// The bytes that it shall hold and does not.
    pub(super) fn missing(&self) -> u64 {
        if self.held { 0 } else { self.size }
    }

    /// Takes the room, if it is not taken.
    pub(super) fn hold(&mut self) {
        if self.missing() == 0 {
            return;
        }
        match File::create(&self.path).and_then(|file| reserve(&file, self.size)) {
            Ok(()) => self.held = true,
            Err(error) => {
                remove(&self.path);
                // Somebody else was faster: the next look tries again. A file system that cannot do it never will.
                if error.raw_os_error() != Some(Errno::NOSPC.raw_os_error()) {
                    tracing::info!(%error, "no space can be set aside on this file system");
                    self.size = 0;
                }
            }
        }
    }

    /// Gives the room back.
    pub(super) fn release(&mut self) {
        if self.held {
            remove(&self.path);
            self.held = false;
        }
    }
}

/// Removes the ballast of a directory that no node has open.
pub(super) fn drop_from(dir: &Path) {
    remove(&dir.join(NAME));
}

fn reserve(file: &File, size: u64) -> io::Result<()> {
    Ok(rustix::io::retry_on_intr(|| fallocate(file, FallocateFlags::empty(), 0, size))?)
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "the ballast could not be removed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_held_released_and_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(NAME);
        let mut ballast = Ballast::open(dir.path(), 1 << 20);
        assert_eq!(ballast.missing(), 1 << 20);
        ballast.hold();
        if ballast.size == 0 {
            eprintln!("this file system sets no space aside");
            return;
        }
        assert_eq!((ballast.missing(), fs::metadata(&file).unwrap().len()), (0, 1 << 20));
        assert_eq!(Ballast::open(dir.path(), 1 << 20).missing(), 0, "it outlives the process");
        ballast.release();
        assert_eq!((ballast.missing(), file.exists()), (1 << 20, false));
    }

    #[test]
    fn one_of_another_size_goes() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(NAME), [0; 10]).unwrap();
        assert_eq!(Ballast::open(dir.path(), 0).missing(), 0);
        assert!(!dir.path().join(NAME).exists());
    }
}
