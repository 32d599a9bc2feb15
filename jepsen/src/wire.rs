//! The wire: every node in a network namespace of its own, joined by a switch in user space, where every fault of a
//! network can be set.
//!
//! ```text
//!   namespace q1        namespace q2        namespace q3        the harness's own
//!   quorate serve       quorate serve       quorate serve       clients, checkers
//!        │ kernel TCP        │                   │                   │
//!   TUN 10.77.0.1       TUN 10.77.0.2       TUN 10.77.0.3       TUN 10.77.0.254
//!        └───────────────────┴─────────┬─────────┴───────────────────┘
//!                        one thread: whose packet is it, and
//!                  does this directed link let it pass, now or later?
//! ```
//!
//! At both ends of a link stands a real TCP stack, which retransmits, backs off, keeps half-open connections and gives
//! up as it would over a cable. A packet that is lost is lost below it: unlike [`crate::links`], a proxy of connections
//! that knows only open and silent, the wire has loss, delay, reordering and limited rate, and a connection over a cut
//! link is not opened. Unlike filters and queue disciplines of a kernel it needs no module (`netem` is often absent),
//! sets every fault at one moment for all nodes, and repeats its choices from a seed; which packets come, and when, is
//! still up to the kernels.
//!
//! A link has a direction, that of its packets. TCP needs both: a cut in one of them ends the traffic in both, but the
//! one end still hears the other try.
//!
//! The harness runs inside of namespaces itself ([`enter`]), so that nothing of this touches the machine's network, and
//! nothing of it is left when the harness ends, however it ends.
//!
//! Invariants: when a method that sets a fault has returned, no packet passes any more that the fault forbids, not even
//! one that was under way. Healed, everything under way arrives at once, and what was dropped never does.
//!
//! Linux only. Deliberately absent: IPv6 and multicast, which nobody hears here; corruption and duplication of packets,
//! which TCP hides; and when faults come, which is the nemesis's choice.

mod address;
mod check;
mod echo;
mod inside;
mod pump;
mod rules;
mod select;
mod space;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

pub use check::self_test;
pub use echo::{echo_client, echo_server};
pub use inside::{Entered, enter, is_inside, missing};
pub use rules::Count;
pub use select::{HARNESS, Links};

use address::Directory;
use pump::{Pump, Shared};
use rules::{Rules, Setting};
use space::Space;

/// A running wire. Whole at first. Dropped, it takes everybody off the network; the nodes are to be stopped before.
#[derive(Debug)]
pub struct Wire {
    nodes: Vec<u64>,
    shared: Arc<Shared>,
    /// Before the namespaces: it holds their devices.
    _pump: Pump,
    spaces: Vec<Space>,
}

impl Wire {
    /// Joins nodes with these ids, 1 to 253. The harness must be inside ([`enter`]), and have no other wire.
    pub fn start(nodes: &[u64], seed: u64) -> Result<Self> {
        ensure!(is_inside(), "a wire is started inside only: without namespaces, or before enter()");
        let directory = Directory::new(nodes)?;
        let spaces = nodes.iter().map(|node| Space::create(*node)).collect::<Result<Vec<_>>>()?;
        let mut devices = spaces.iter().map(Space::device).collect::<Result<Vec<_>>>()?;
        devices.push(space::own_device()?);
        let shared = Arc::new(Shared::new(Rules::new(nodes, seed))?);
        let pump = Pump::start(devices, directory, Arc::clone(&shared))?;
        Ok(Self { nodes: nodes.to_vec(), shared, _pump: pump, spaces })
    }

    /// The words in front of a command that make it run in the node's namespace, in the very process that was started,
    /// so that its pid is the node's. Empty if there is no such node.
    pub fn command(&self, node: u64) -> Vec<String> {
        self.space(node).map(Space::command).unwrap_or_default()
    }

    /// Where a node listens.
    pub fn address(node: u64) -> Ipv4Addr {
        address::address(node)
    }

    /// Where the harness and its clients are.
    pub fn harness() -> Ipv4Addr {
        address::address(HARNESS)
    }

    /// Drops all packets from one to the other. Either may be [`HARNESS`].
    pub fn cut(&self, from: u64, to: u64) {
        self.set(|of, at| (of, at) == (from, to), |setting| setting.cut = true);
    }

    /// Cuts both links between two nodes.
    pub fn pair(&self, one: u64, other: u64) {
        self.set(|from, to| Links::Between(one, other).has(from, to), |setting| setting.cut = true);
    }

    /// The node neither hears another node nor is heard. Clients reach all.
    pub fn isolate(&self, node: u64) {
        self.halves(&[node]);
    }

    /// The node neither hears anybody nor is heard, clients included.
    pub fn isolate_from_all(&self, node: u64) {
        self.set(|from, to| from == node || to == node, |setting| setting.cut = true);
    }

    /// The given nodes and the others hear each other no more; each side stays whole.
    pub fn halves(&self, one_side: &[u64]) {
        self.cut_between(|from, to| one_side.contains(&from) != one_side.contains(&to));
    }

    /// The node is heard by all, but hears no other node. (Of [`crate::links`] it is the other way round.)
    pub fn one_way(&self, node: u64) {
        self.cut_between(|_, to| to == node);
    }

    /// Only the given node hears the others, and only it is heard by them.
    pub fn bridge(&self, over: u64) {
        self.cut_between(|from, to| from != over && to != over);
    }

    /// The nodes stand in a ring, and each hears the majority in whose middle it stands: everybody hears a majority,
    /// and no two hear the same. Of three nodes each hears only the one before it, and no connection between two works.
    pub fn ring(&self) {
        self.cut_between(|from, to| !select::hears_in_ring(&self.nodes, to, from));
    }

    /// Loses packets with this probability, each by itself.
    pub fn loss(&self, links: Links, probability: f64) {
        self.set_links(links, |setting| setting.loss = probability);
    }

    /// Delays each packet by `base` and up to `jitter` more, 60 s each at most. Packets of a link keep their order: one
    /// that is late holds up those behind it.
    pub fn delay(&self, links: Links, base: Duration, jitter: Duration) {
        self.set_links(links, |setting| (setting.delay, setting.jitter) = (base, jitter));
    }

    /// Holds packets back with this probability, for 5 to 15 ms, while those behind them pass.
    pub fn reorder(&self, links: Links, probability: f64) {
        self.set_links(links, |setting| setting.reorder = probability);
    }

    /// Lets no more than so many bytes a second over each link. What would have to wait for 400 ms is dropped.
    pub fn rate(&self, links: Links, bytes_per_second: u64) {
        self.set_links(links, |setting| setting.rate = Some(bytes_per_second));
    }

    /// Takes a node's device down: it has no route to anybody, and is told so by its kernel. Should the kernel refuse,
    /// that is reported, and the switch keeps the node apart by itself.
    pub fn down(&self, node: u64) {
        // The switch first: it is at once.
        self.shared.rules.lock().set_down(node, true);
        self.report(node, self.set_up(node, false));
    }

    /// Takes a node's device up again. Should the kernel refuse, that is reported, and the node stays apart.
    pub fn up(&self, node: u64) {
        let done = self.set_up(node, true);
        if done.is_ok() {
            self.shared.rules.lock().set_down(node, false);
        }
        self.report(node, done);
    }

    /// Takes a node's device down for so long. Given up in between, it stays down until it is taken up or healed.
    pub async fn flap(&self, node: u64, down_for: Duration) {
        self.down(node);
        tokio::time::sleep(down_for).await;
        self.up(node);
    }

    /// Makes everything whole, devices too. What is under way arrives at once.
    pub fn heal(&self) {
        let down = self.shared.rules.lock().down();
        down.into_iter().for_each(|node| self.up(node));
        self.shared.rules.lock().heal();
        self.shared.wake();
    }

    /// What came of all packets so far, for each directed link.
    pub fn counters(&self) -> Vec<Count> {
        self.shared.rules.lock().counts()
    }

    fn set_up(&self, node: u64, up: bool) -> Result<()> {
        self.space(node).context("there is no such node")?.set_up(up)
    }

    /// A nemesis goes on: what the device did not do, the switch does.
    fn report(&self, node: u64, done: Result<()>) {
        if let Err(error) = done {
            eprintln!("the device of node {node}: {error:#}");
        }
    }

    fn space(&self, node: u64) -> Option<&Space> {
        self.spaces.iter().find(|space| space.node() == node)
    }

    fn set_links(&self, links: Links, change: impl Fn(&mut Setting)) {
        self.set(|from, to| links.has(from, to), change);
    }

    fn set(&self, meant: impl Fn(u64, u64) -> bool, change: impl Fn(&mut Setting)) {
        self.shared.rules.lock().set(meant, change);
    }

    fn cut_between(&self, meant: impl Fn(u64, u64) -> bool) {
        self.shared.rules.lock().cut_between(meant);
    }
}
