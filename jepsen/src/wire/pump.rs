//! The switch itself: one thread that takes packets from every device and gives each to the device of its receiver.
//!
//! Owns the devices, and the packets that are under way. One round: wait until a device has packets or one under way is
//! due; then, under one lock of the rules, deliver what is due and read what is there. A fault that has been set is
//! therefore seen by every packet from then on, and no round sees half of it.
//!
//! A thread and not tasks: a test that blocks its runtime does not stop the network. A packet that is passed at once is
//! not copied.
//!
//! Deliberately absent: decisions. Those are [`super::rules`].

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use anyhow::{Context, Result};
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use tun_rs::SyncDevice;

use super::address::Directory;
use super::rules::{Fate, Rules};

/// The largest IPv4 packet, whatever the MTU.
const PACKET_BYTES: usize = 64 << 10;
/// Packets read from one device in one round, so that none waits long for the others, nor a fault for the lock.
const BATCH: usize = 64;

/// What the pump shares with whoever sets faults.
#[derive(Debug)]
pub(super) struct Shared {
    /// A fair lock: the pump takes it again at once, and must not keep others out under load.
    pub(super) rules: Mutex<Rules>,
    stop: AtomicBool,
    wake: OwnedFd,
}

impl Shared {
    pub(super) fn new(rules: Rules) -> Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).context("no eventfd")?;
        Ok(Self { rules: Mutex::new(rules), stop: AtomicBool::new(false), wake })
    }

    /// Makes the pump look at the rules now.
    pub(super) fn wake(&self) {
        // Refused only where it has been woken more often than can be counted, and has not looked yet.
        let _woken = rustix::io::write(&self.wake, &1_u64.to_ne_bytes()).is_ok();
    }

    fn slept(&self) {
        let mut times = [0_u8; 8];
        let _woken = rustix::io::read(&self.wake, &mut times).is_ok();
    }
}

/// The running thread. Dropped, it ends, and closes the devices.
#[derive(Debug)]
pub(super) struct Pump {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Pump {
    /// Starts it. The devices stand in the order of the places of the rules and of the directory.
    pub(super) fn start(devices: Vec<SyncDevice>, directory: Directory, shared: Arc<Shared>) -> Result<Self> {
        let theirs = Arc::clone(&shared);
        let thread = thread::Builder::new().name("wire".to_owned()).spawn(move || {
            if let Err(error) = run(&devices, &directory, &theirs) {
                eprintln!("the wire is dead: {error:#}");
            }
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.wake();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            eprintln!("the thread of the wire has panicked");
        }
    }
}

fn run(devices: &[SyncDevice], directory: &Directory, shared: &Shared) -> Result<()> {
    let mut switch = Switch { devices, directory, under_way: BTreeMap::new(), taken: 0, heals: 0 };
    let mut buffer = vec![0_u8; PACKET_BYTES];
    let mut polled: Vec<PollFd<'_>> = devices.iter().map(|device| PollFd::new(device, PollFlags::IN)).collect();
    polled.push(PollFd::new(&shared.wake, PollFlags::IN));
    while !shared.stop.load(Ordering::Acquire) {
        match poll(&mut polled, switch.patience().as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error).context("cannot wait for packets"),
        }
        let ready = |place: usize| polled.get(place).is_some_and(|polled| !polled.revents().is_empty());
        if ready(devices.len()) {
            shared.slept();
        }
        let mut rules = shared.rules.lock();
        switch.deliver(&mut rules);
        for (place, device) in devices.iter().enumerate().filter(|(place, _)| ready(*place)) {
            switch.read(place, device, &mut buffer, &mut rules)?;
        }
    }
    Ok(())
}

struct Switch<'a> {
    devices: &'a [SyncDevice],
    directory: &'a Directory,
    /// By the moment each is due, and in the order they were taken.
    under_way: BTreeMap<(Instant, u64), Packet>,
    taken: u64,
    /// Up to which healing everything has been delivered.
    heals: u64,
}

struct Packet {
    from: usize,
    to: usize,
    bytes: Box<[u8]>,
}

impl Switch<'_> {
    /// How long there is nothing to deliver. `None`: nothing is under way.
    fn patience(&self) -> Option<Timespec> {
        let ((due, _), _) = self.under_way.first_key_value()?;
        let patience = due.saturating_duration_since(Instant::now());
        Timespec::try_from(patience).ok()
    }

    /// Delivers what is due; everything, if all was healed.
    fn deliver(&mut self, rules: &mut Rules) {
        let all = rules.heals() > self.heals;
        self.heals = rules.heals();
        let now = Instant::now();
        while let Some(first) = self.under_way.first_entry() {
            if !all && first.key().0 > now {
                return;
            }
            let Packet { from, to, bytes } = first.remove();
            if rules.release(from, to) {
                self.send(from, to, &bytes, rules);
            }
        }
    }

    /// Reads what a device has, but not for ever.
    fn read(&mut self, from: usize, device: &SyncDevice, buffer: &mut [u8], rules: &mut Rules) -> Result<()> {
        for _ in 0..BATCH {
            match device.recv(buffer) {
                Ok(bytes) => self.take(from, buffer.get(..bytes).unwrap_or_default(), rules),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).with_context(|| format!("device {from} gives no packets")),
            }
        }
        Ok(())
    }

    fn take(&mut self, from: usize, packet: &[u8], rules: &mut Rules) {
        let Some(to) = self.directory.receiver(packet) else { return };
        match rules.decide(from, to, packet.len(), Instant::now()) {
            Fate::Pass => self.send(from, to, packet, rules),
            Fate::Drop => {}
            Fate::Later(due) => {
                self.taken += 1;
                self.under_way.insert((due, self.taken), Packet { from, to, bytes: packet.into() });
            }
        }
    }

    fn send(&self, from: usize, to: usize, packet: &[u8], rules: &mut Rules) {
        // A device that is just going down takes nothing.
        if self.devices.get(to).is_none_or(|device| device.send(packet).is_err()) {
            rules.refused(from, to);
        }
    }
}
