//! What becomes of a packet: one rule set for all directed links. Pure: time is an argument, and chance is seeded.
//!
//! Owns each link's setting, its random choices, what is under way on it, and its counters.
//!
//! Invariants: packets of a link keep their order, whatever its delay and jitter, unless it is told to reorder; the
//! k-th packet of a link draws the same numbers whatever the settings were before, so that a seed decides the same
//! again; what is under way on a link is bounded.
//!
//! Deliberately absent: packets. They are kept by [`super::pump`].

use std::time::{Duration, Instant};

use serde::Serialize;

use super::select::{HARNESS, Links};
use crate::rng::Rng;

/// A link of limited rate drops what would wait longer than this for its turn, as `tbf` does with `latency 400ms`.
const QUEUE_TIME: Duration = Duration::from_millis(400);
/// What may pass at once over a link of limited rate that was idle.
const BURST_BYTES: usize = 4 << 10;
/// Packets that may be under way on one link; more are dropped.
const QUEUE_PACKETS: usize = 1_000;
/// A packet out of order comes this much later, more or less: enough for others to overtake it.
const HELD_BACK: Duration = Duration::from_millis(10);
/// No link is slower than this, so that no sum of times overflows.
const SLOWEST: Duration = Duration::from_secs(60);

/// What becomes of one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It arrives now.
    Pass,
    /// It never arrives.
    Drop,
    /// It arrives then, if [`Rules::release`] still says so.
    Later(Instant),
}

/// How a directed link treats packets. By default it passes them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Setting {
    pub(super) cut: bool,
    /// Probability that a packet is lost.
    pub(super) loss: f64,
    pub(super) delay: Duration,
    /// At most this is added to the delay, equally likely anywhere below it.
    pub(super) jitter: Duration,
    /// Probability that a packet is held back while others pass.
    pub(super) reorder: f64,
    /// Bytes a second.
    pub(super) rate: Option<u64>,
}

/// What came of the packets of one directed link. [`HARNESS`] is the harness itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    /// Who sent them.
    pub from: u64,
    /// For whom they were.
    pub to: u64,
    /// Arrived.
    pub passed: u64,
    /// Will never arrive.
    pub dropped: u64,
    /// Did not arrive at once. Each is counted as passed or dropped too, once that is known.
    pub delayed: u64,
}

impl Count {
    /// What came of them since an earlier count.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            passed: self.passed.saturating_sub(earlier.passed),
            dropped: self.dropped.saturating_sub(earlier.dropped),
            delayed: self.delayed.saturating_sub(earlier.delayed),
            ..*self
        }
    }
}

/// All directed links. Places are counted from 0 in the order of the nodes; the last place is the harness.
#[derive(Debug)]
pub(super) struct Rules {
    ends: Vec<End>,
    links: Vec<Link>,
    heals: u64,
}

#[derive(Debug)]
struct End {
    name: u64,
    down: bool,
}

#[derive(Debug)]
struct Link {
    setting: Setting,
    rng: Rng,
    /// When the last byte that was taken has left. `None`: long ago.
    free_at: Option<Instant>,
    /// When the last packet in order is due.
    last_due: Option<Instant>,
    under_way: usize,
    count: Count,
}

impl Rules {
    /// Whole links between all nodes and the harness.
    pub(super) fn new(nodes: &[u64], seed: u64) -> Self {
        let ends: Vec<End> = nodes.iter().chain(&[HARNESS]).map(|name| End { name: *name, down: false }).collect();
        let pairs = ends.iter().flat_map(|from| ends.iter().map(|to| (from.name, to.name)));
        let links = pairs.map(|(from, to)| Link::new(from, to, seed)).collect();
        Self { ends, links, heals: 0 }
    }

    /// Decides about one packet that is read at `from` and meant for `to`.
    pub(super) fn decide(&mut self, from: usize, to: usize, bytes: usize, now: Instant) -> Fate {
        let apart = self.are_apart(from, to);
        let Some(link) = self.link(from, to) else { return Fate::Drop };
        let fate = link.decide(bytes, now, apart);
        match fate {
            Fate::Pass => link.count.passed += 1,
            Fate::Drop => link.count.dropped += 1,
            Fate::Later(_) => {
                link.count.delayed += 1;
                link.under_way += 1;
            }
        }
        fate
    }

    /// Whether a packet whose time has come still arrives: not if its link was cut meanwhile.
    pub(super) fn release(&mut self, from: usize, to: usize) -> bool {
        let apart = self.are_apart(from, to);
        let Some(link) = self.link(from, to) else { return false };
        link.under_way = link.under_way.saturating_sub(1);
        let arrives = !apart && !link.setting.cut;
        if arrives {
            link.count.passed += 1;
        } else {
            link.count.dropped += 1;
        }
        arrives
    }

    /// A packet that was to arrive did not: the device took it not.
    pub(super) fn refused(&mut self, from: usize, to: usize) {
        let Some(link) = self.link(from, to) else { return };
        link.count.passed = link.count.passed.saturating_sub(1);
        link.count.dropped += 1;
    }

    /// Changes the setting of every link that is meant.
    pub(super) fn set(&mut self, meant: impl Fn(u64, u64) -> bool, change: impl Fn(&mut Setting)) {
        for link in self.links.iter_mut().filter(|link| meant(link.count.from, link.count.to)) {
            change(&mut link.setting);
            link.setting.delay = link.setting.delay.min(SLOWEST);
            link.setting.jitter = link.setting.jitter.min(SLOWEST);
        }
    }

    /// Cuts every link between two different nodes that is meant. The links of the harness stay as they are.
    pub(super) fn cut_between(&mut self, meant: impl Fn(u64, u64) -> bool) {
        self.set(|from, to| Links::All.has(from, to) && meant(from, to), |setting| setting.cut = true);
    }

    /// A node whose device is down neither sends nor hears.
    pub(super) fn set_down(&mut self, node: u64, down: bool) {
        for end in self.ends.iter_mut().filter(|end| end.name == node) {
            end.down = down;
        }
    }

    /// Makes everything whole, and forgets what was under way: it is to be released at once.
    pub(super) fn heal(&mut self) {
        self.ends.iter_mut().for_each(|end| end.down = false);
        for link in &mut self.links {
            link.setting = Setting::default();
            (link.free_at, link.last_due) = (None, None);
        }
        self.heals += 1;
    }

    /// How often everything was healed.
    pub(super) fn heals(&self) -> u64 {
        self.heals
    }

    /// The nodes whose devices are down.
    pub(super) fn down(&self) -> Vec<u64> {
        self.ends.iter().filter(|end| end.down).map(|end| end.name).collect()
    }

    /// What came of all packets so far, link by link.
    pub(super) fn counts(&self) -> Vec<Count> {
        self.links.iter().map(|link| link.count).filter(|count| count.from != count.to).collect()
    }

    fn are_apart(&self, from: usize, to: usize) -> bool {
        let is_down = |place: usize| self.ends.get(place).is_none_or(|end| end.down);
        from == to || is_down(from) || is_down(to)
    }

    fn link(&mut self, from: usize, to: usize) -> Option<&mut Link> {
        let width = self.ends.len();
        self.links.get_mut(from * width + to).filter(|_| to < width)
    }
}

impl Link {
    fn new(from: u64, to: u64, seed: u64) -> Self {
        let rng = Rng::new(seed ^ Rng::new((from << 32) | to).next_u64());
        let count = Count { from, to, ..Count::default() };
        Self { setting: Setting::default(), rng, free_at: None, last_due: None, under_way: 0, count }
    }

    fn decide(&mut self, bytes: usize, now: Instant, apart: bool) -> Fate {
        // All of them for every packet: what one packet draws does not depend on the fate of those before it.
        let (lost, jitter) = (fraction(&mut self.rng), fraction(&mut self.rng));
        let (reordered, back) = (fraction(&mut self.rng), fraction(&mut self.rng));
        let setting = self.setting;
        if apart || setting.cut || lost < setting.loss || self.under_way >= QUEUE_PACKETS {
            return Fate::Drop;
        }
        let Some(sent) = self.sent(bytes, now) else { return Fate::Drop };
        let due = sent + setting.delay + setting.jitter.mul_f64(jitter);
        if reordered < setting.reorder {
            return Fate::Later(due + HELD_BACK.mul_f64(0.5 + back));
        }
        let due = self.last_due.map_or(due, |last| due.max(last));
        self.last_due = Some(due);
        // Behind what is under way, even if that is due: it is not there yet.
        if due <= now && self.under_way == 0 { Fate::Pass } else { Fate::Later(due) }
    }

    /// When the packet has left, one byte after the other at the link's rate. `None`: the queue is full.
    fn sent(&mut self, bytes: usize, now: Instant) -> Option<Instant> {
        let Some(rate) = self.setting.rate else {
            self.free_at = None;
            return Some(now);
        };
        let idle_since = now.checked_sub(time_of(BURST_BYTES, rate)).unwrap_or(now);
        let begins = self.free_at.map_or(idle_since, |free| free.max(idle_since));
        if begins.saturating_duration_since(now) > QUEUE_TIME {
            return None;
        }
        let ends = begins + time_of(bytes, rate);
        self.free_at = Some(ends);
        Some(ends.max(now))
    }
}

/// How long so many bytes take.
fn time_of(bytes: usize, rate: u64) -> Duration {
    Duration::from_nanos((bytes as u64).saturating_mul(1_000_000_000) / rate.max(1))
}

/// From 0 up to, not including, 1.
fn fraction(rng: &mut Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests;
