//! Network namespaces with one TUN device each.
//!
//! Owns what it named: dropped, it takes the name away, and the kernel the namespace, once nobody is in it.
//!
//! Deliberately absent: bridges, veth pairs, filters and queue disciplines: a kernel may lack them, and none is needed.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tun_rs::{DeviceBuilder, SyncDevice};

use super::address::{PREFIX, address};
use super::select::HARNESS;

/// Where `ip netns` keeps the names of namespaces.
pub(super) const NAMES: &str = "/var/run/netns";
/// What the device is called in every namespace.
const DEVICE: &str = "wire";
/// That of Ethernet: a lost packet is then as much of a stream as elsewhere, and what waits in queues stays small.
const MTU: &str = "1500";
/// Packets that wait for the switch in each device. The default is half of it.
const QUEUE: &str = "1000";

/// A node's namespace.
#[derive(Debug)]
pub(super) struct Space {
    node: u64,
    name: String,
}

impl Space {
    /// Makes the namespace of a node.
    pub(super) fn create(node: u64) -> Result<Self> {
        let name = format!("q{node}");
        run("ip", ["netns", "add", &name])?;
        Ok(Self { node, name })
    }

    /// Whose it is.
    pub(super) fn node(&self) -> u64 {
        self.node
    }

    /// What runs the command behind it in this namespace, in the same process and with the same view of the disk.
    /// (`ip netns exec` would give it mounts of its own, which outlive those of the harness.)
    pub(super) fn command(&self) -> Vec<String> {
        vec!["nsenter".to_owned(), format!("--net={NAMES}/{}", self.name), "--".to_owned()]
    }

    /// Makes its device, with the node's address.
    pub(super) fn device(&self) -> Result<SyncDevice> {
        let device = device_within(&self.name)?;
        ready(&["-n", &self.name], self.node)?;
        Ok(device)
    }

    /// Takes the device up or down. It keeps its address.
    pub(super) fn set_up(&self, up: bool) -> Result<()> {
        run("ip", ["-n", &self.name, "link", "set", "dev", DEVICE, if up { "up" } else { "down" }])
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        if let Err(error) = run("ip", ["netns", "del", &self.name]) {
            eprintln!("namespace {} stays: {error:#}", self.name);
        }
    }
}

/// Makes the harness's own device, in the namespace it runs in.
pub(super) fn own_device() -> Result<SyncDevice> {
    let device = device_here()?;
    ready(&[], HARNESS)?;
    Ok(device)
}

/// A device is of the namespace that the thread is in which makes it; this thread lives for nothing else.
fn device_within(name: &str) -> Result<SyncDevice> {
    let path = Path::new(NAMES).join(name);
    let space = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    let thread = thread::Builder::new().name(format!("into-{name}")).spawn(move || -> Result<SyncDevice> {
        move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network))
            .with_context(|| format!("cannot enter {}", path.display()))?;
        device_here()
    })?;
    thread.join().map_err(|_panic| anyhow!("the thread that makes a device has panicked"))?
}

/// Plain packets: without offload the kernel hands over what would go over a cable, cut to size and with checksums.
fn device_here() -> Result<SyncDevice> {
    let device = DeviceBuilder::new().name(DEVICE).build_sync().context("cannot make a TUN device")?;
    device.set_nonblocking(true).context("cannot read a TUN device without waiting")?;
    Ok(device)
}

/// Gives the device its address. `within`: what tells `ip` the namespace.
fn ready(within: &[&str], node: u64) -> Result<()> {
    let address = format!("{}/{PREFIX}", address(node));
    let steps: [&[&str]; 3] = [
        &["link", "set", "dev", DEVICE, "mtu", MTU, "txqueuelen", QUEUE, "up"],
        &["address", "add", &address, "dev", DEVICE],
        &["link", "set", "dev", "lo", "up"],
    ];
    steps.iter().try_for_each(|step| run("ip", within.iter().chain(*step)))
}

/// Runs a program to its end; what it complains of becomes the error.
pub(super) fn run(program: &str, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<()> {
    let mut command = Command::new(program);
    let output = command.args(args).output().with_context(|| format!("{program} cannot be run"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
