//! Disks of a few MiB that can be filled: file systems in memory, mounted for one test.
//!
//! Owns what it mounted: dropped, it unmounts that very path and nothing else. Mounting takes root; see [`permitted`].
//!
//! Deliberately absent: slow and failing disks.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The foreign file.
const FOREIGN: &str = "FOREIGN";
const PIECE: usize = 64 << 10;

/// Whether this process may mount at all. Says so if not.
pub fn permitted() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("not run: a small disk is mounted as root only");
    }
    root
}

/// A mounted disk.
#[derive(Debug)]
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Mounts an empty disk of so many bytes at `path`, which is created.
    pub fn mount(path: &Path, bytes: u64) -> Result<Self> {
        fs::create_dir_all(path)?;
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &format!("size={bytes},mode=0700"), "tmpfs"]).arg(path);
        run(&mut command)?;
        Ok(Self { path: path.to_owned() })
    }

    /// Writes a file that is none of the node's, until there is no byte left.
    pub fn fill(&self) -> Result<u64> {
        let mut file = File::create(self.path.join(FOREIGN))?;
        let mut written = 0;
        let mut piece = &[0xa5_u8; PIECE][..];
        loop {
            match file.write(piece) {
                Ok(bytes) if bytes > 0 => written += bytes as u64,
                // A whole piece may not fit where a byte does.
                Ok(_) | Err(_) if piece.len() > 1 => piece = &piece[..piece.len() / 2],
                Err(error) if error.kind() != ErrorKind::StorageFull => return Err(error.into()),
                Ok(_) | Err(_) => return Ok(written),
            }
        }
    }

    /// Takes that file away.
    pub fn clear(&self) -> Result<()> {
        Ok(fs::remove_file(self.path.join(FOREIGN))?)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if let Err(error) = run(Command::new("umount").arg(&self.path)) {
            eprintln!("{} stays mounted: {error:#}", self.path.display());
        }
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?} cannot be run"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
