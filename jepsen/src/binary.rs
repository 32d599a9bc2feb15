//! Finds the `quorate` program that belongs to the running test, demo or bench.
//!
//! Deliberately absent: a search in PATH. A test must never run some other version by accident.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The server binary: `QUORATE_BIN`, else the one in the profile folder of the current executable.
pub fn quorate() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("QUORATE_BIN") {
        let path = PathBuf::from(path);
        if !path.is_file() {
            bail!("QUORATE_BIN is {}, which is not a file", path.display());
        }
        return Ok(path);
    }
    let own = std::env::current_exe().context("where is the current executable?")?;
    let path = profile_folder(&own)?.join("quorate");
    if !path.is_file() {
        bail!("no server binary at {}: build it (cargo build -p quorate), or set QUORATE_BIN", path.display());
    }
    Ok(path)
}

/// The commit that is checked out here, if this is a checkout; with a `+` if something was changed since.
pub fn commit() -> String {
    let git = |args: &[&str]| {
        let output = std::process::Command::new("git").args(args).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else { return "unknown".to_owned() };
    let changed = git(&["status", "--porcelain"]).is_some_and(|changes| !changes.is_empty());
    if changed { format!("{commit}+") } else { commit }
}

/// `target/<profile>`, for a test in its `deps` folder as for a program beside it.
fn profile_folder(executable: &Path) -> Result<&Path> {
    let folder = executable.parent().context("the executable has no folder")?;
    match folder.file_name() {
        Some(name) if name == "deps" || name == "examples" => folder.parent().context("deps has no parent folder"),
        _ => Ok(folder),
    }
}
