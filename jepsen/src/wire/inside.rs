//! Into namespaces of our own: the harness runs itself again where nothing it does to a network touches the machine's.
//!
//! Owns what has to be there for that, and the sentences about what is not. As root the harness leaves only the network
//! and the mounts behind; as anybody else it becomes root of a user namespace first. Everything vanishes with the last
//! process in it.
//!
//! Deliberately absent: `unsafe`. The harness replaces itself by `unshare`, which replaces itself by the harness.

use std::fs::{self, OpenOptions};
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::space::{NAMES, run};

/// Set for the harness inside: the namespaces it left.
const INSIDE: &str = "QUORATE_JEPSEN_INSIDE";
/// What the mount of names is called in the list of mounts.
const SOURCE: &str = "quorate-wire";
const TUN: &str = "/dev/net/tun";
const AS_ROOT: &[&str] = &["--net", "--mount", "--propagation", "private"];
const AS_ANYBODY: &[&str] = &["--user", "--map-root-user", "--net", "--mount"];
/// Every program that is needed, and of which package it is.
const PROGRAMS: [(&str, &str); 4] =
    [("ip", "iproute2"), ("unshare", "util-linux"), ("nsenter", "util-linux"), ("mount", "util-linux")];

/// Where the harness is.
#[derive(Debug)]
pub enum Entered {
    /// In namespaces of its own: a [`super::Wire`] can be started.
    Inside,
    /// Where it was.
    Without {
        /// What is missing, a sentence each.
        missing: Vec<String>,
    },
}

/// Goes inside. To be called before there is a second thread: if all that is needed is there, this process becomes
/// another run of the same program with the same arguments, which this function then lets pass.
pub fn enter() -> Result<Entered> {
    if let Some(left) = std::env::var_os(INSIDE) {
        let left = left.to_string_lossy();
        prepare(&left).context("the namespaces of the harness cannot be used")?;
        return Ok(Entered::Inside);
    }
    match way_in() {
        Ok(flags) => {
            let program = std::env::current_exe().context("the harness does not know its own file")?;
            let mut command = Command::new("unshare");
            command.args(flags).arg("--").arg(program).args(std::env::args_os().skip(1)).env(INSIDE, namespaces()?);
            // Comes back only if it fails.
            Err(command.exec()).context("the harness cannot run itself by unshare")
        }
        Err(missing) => Ok(Entered::Without { missing }),
    }
}

/// What is missing for a network of our own, a sentence each. Empty: nothing, or the harness is inside already.
pub fn missing() -> Vec<String> {
    if is_inside() { Vec::new() } else { way_in().err().unwrap_or_default() }
}

/// Whether the harness is inside: what it names there nobody else sees.
pub fn is_inside() -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let ours = format!(" - tmpfs {SOURCE} ");
    mounts.lines().any(|mount| mount.contains(&ours))
}

/// Makes the new namespaces usable. A second time, as in a process that the harness started, there is nothing to do.
fn prepare(left: &str) -> Result<()> {
    check_left(left, &namespaces()?)?;
    if is_inside() {
        return Ok(());
    }
    run("ip", ["link", "set", "dev", "lo", "up"])?;
    fs::create_dir_all(NAMES).with_context(|| format!("cannot create {NAMES}"))?;
    run("mount", ["-t", "tmpfs", "-o", "mode=0755", SOURCE, NAMES])
}

/// Fails unless each of these namespaces is another one than the one that was left.
fn check_left(left: &str, entered: &str) -> Result<()> {
    let (left, entered): (Vec<&str>, Vec<&str>) = (left.split(' ').collect(), entered.split(' ').collect());
    ensure!(left.len() == entered.len(), "{INSIDE} is set, but not by the harness");
    for (left, entered) in left.iter().zip(&entered) {
        ensure!(left != entered, "{INSIDE} is set, but {entered} is the namespace that was to be left");
    }
    Ok(())
}

/// The namespaces of this process that the harness leaves.
fn namespaces() -> Result<String> {
    let of = |kind: &str| fs::read_link(format!("/proc/self/ns/{kind}")).context("/proc has no namespaces");
    Ok(format!("{} {}", of("net")?.display(), of("mnt")?.display()))
}

/// How `unshare` is to be called, or what is missing.
fn way_in() -> Result<&'static [&'static str], Vec<String>> {
    let mut missing = wanting();
    let root = rustix::process::geteuid().is_root();
    let ways: &[&'static [&'static str]] = if root { &[AS_ROOT, AS_ANYBODY] } else { &[AS_ANYBODY] };
    if missing.is_empty() {
        for flags in ways.iter().copied() {
            match try_out(flags) {
                Ok(()) => return Ok(flags),
                Err(error) => missing.push(format!("no network namespace can be made here ({error:#})")),
            }
        }
    }
    missing.push(
        "without these, nodes share the machine's network: no partition, loss, delay, reordering, limited rate or \
         flapping device can be tried"
            .to_owned(),
    );
    Err(missing)
}

/// What can be told to be missing without making a namespace.
fn wanting() -> Vec<String> {
    let mut missing = Vec::new();
    for (program, package) in PROGRAMS {
        // Its answer does not matter, only that there is one.
        if let Err(error) = Command::new(program).arg("--help").output() {
            missing.push(format!("the program `{program}` of {package} cannot be run ({error})"));
        }
    }
    if let Err(error) = OpenOptions::new().read(true).write(true).open(TUN) {
        missing.push(format!("{TUN} cannot be opened ({error}): no node can have a device of its own"));
    }
    // An empty folder, which `ip netns` would make too. Inside, only root of the machine could.
    if let Err(error) = fs::create_dir_all(NAMES) {
        missing.push(format!("{NAMES} is not there and cannot be created ({error}): create it once as root"));
    }
    missing
}

/// Makes such namespaces once, for a moment, and sets a device in them up.
fn try_out(flags: &[&str]) -> Result<()> {
    run("unshare", flags.iter().copied().chain(["--", "ip", "link", "set", "dev", "lo", "up"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_other_namespaces_count_as_inside() {
        assert!(check_left("net:[1] mnt:[2]", "net:[3] mnt:[4]").is_ok());
        assert!(check_left("net:[1] mnt:[2]", "net:[1] mnt:[4]").is_err(), "the same network");
        assert!(check_left("net:[1] mnt:[2]", "net:[3] mnt:[2]").is_err(), "the same mounts");
        assert!(check_left("1", "net:[3] mnt:[4]").is_err(), "set by hand");
        assert!(check_left("", "net:[3] mnt:[4]").is_err());
    }

    #[test]
    fn what_is_missing_is_said_in_sentences() {
        let missing = missing();
        assert!(missing.len() != 1, "a last sentence without a first: {missing:?}");
        assert!(missing.iter().all(|sentence| sentence.contains(' ')), "{missing:?}");
    }
}
