//! What goes wrong, and when: drawn from the seed, one fault after another, some of them at once.
//!
//! Every fault ends by itself; healing ends whatever is left. Owns nothing but the order.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::network::Weather;
use crate::node::Cluster;
use crate::rng::Rng;
use crate::types::{sleep_ms, spawn};

/// How long faults are made.
const FAULTS: Duration = Duration::from_secs(16);

/// Makes faults until the time for them is over or something was found.
pub(crate) async fn run(cluster: Arc<Cluster>, seed: u64) {
    let mut rng = Rng::new(seed, 1);
    while cluster.world.now() < FAULTS && !cluster.world.has_failed() {
        sleep_ms(rng.between(100, 900)).await;
        match rng.below(100) {
            0..22 => crash_some(&cluster, &mut rng),
            22..54 => partition(&cluster, &mut rng),
            54..66 => worse_weather(&cluster, &mut rng),
            66..76 => pause(&cluster, &mut rng),
            76..86 => slow_disk(&cluster, &mut rng),
            86..92 => failing_disk(&cluster, &mut rng),
            _ => jump_clock(&cluster, &mut rng),
        }
        // Some faults are met alone, some together.
        if rng.chance(400) {
            sleep_ms(rng.between(300, 1_500)).await;
        }
    }
}

/// Nothing is wrong any more.
pub(crate) fn heal(cluster: &Cluster) {
    cluster.network.cut(BTreeSet::new());
    cluster.network.set_weather(Weather::default());
    for node in cluster.ids() {
        cluster.pause(node, false);
        if let Some(disk) = cluster.disks.get(&node) {
            disk.set_slow(false);
        }
    }
    cluster.start_all();
    cluster.world.note(format_args!("healed"));
}

fn any(cluster: &Cluster, rng: &mut Rng) -> u64 {
    rng.between(1, cluster.disks.len() as u64 + 1)
}

/// One node, most of them or all of them, each for a time of its own.
fn crash_some(cluster: &Cluster, rng: &mut Rng) {
    let size = cluster.disks.len() as u64;
    let count = match rng.below(10) {
        0..7 => 1,
        7..9 => size / 2 + 1,
        _ => size,
    };
    let first = any(cluster, rng);
    for step in 0..count {
        let node = (first + step - 1) % size + 1;
        cluster.crash(node, Duration::from_millis(rng.between(50, 2_500)));
    }
}

/// Which links a partition cuts.
fn links(ids: &[u64], rng: &mut Rng) -> BTreeSet<(u64, u64)> {
    let size = ids.len() as u64;
    let first = rng.between(1, size + 1);
    // Seen from the first, the others follow it round.
    let place = |node: u64| (node + size - first) % size;
    let kind = rng.below(6);
    let apart = |from: u64, to: u64| match kind {
        // The first alone, both ways; what it sends; what it is sent.
        0 => from == first || to == first,
        1 => from == first,
        2 => to == first,
        // Two halves.
        3 => (place(from) < size / 2) != (place(to) < size / 2),
        // Two halves, and the first in both: the bridge.
        4 => place(from) > 0 && place(to) > 0 && (place(from) <= size / 2) != (place(to) <= size / 2),
        // A ring, one way.
        _ => (place(from) + 1) % size != place(to),
    };
    let pairs = ids.iter().flat_map(|from| ids.iter().map(move |to| (*from, *to)));
    pairs.filter(|(from, to)| from != to && apart(*from, *to)).collect()
}

fn partition(cluster: &Arc<Cluster>, rng: &mut Rng) {
    let links = links(&cluster.ids(), rng);
    cluster.world.note(format_args!("cut {links:?}"));
    cluster.world.totals.lock().partitions += 1;
    cluster.network.cut(links);
    let (cluster, ms) = (cluster.clone(), rng.between(200, 2_500));
    spawn(async move {
        sleep_ms(ms).await;
        cluster.network.cut(BTreeSet::new());
    });
}

fn worse_weather(cluster: &Arc<Cluster>, rng: &mut Rng) {
    let most = rng.between(3_000, 60_000);
    let weather = Weather { delay_us: (200, most), lost: rng.below(300), twice: rng.below(200) };
    cluster.world.note(format_args!("{weather:?}"));
    cluster.network.set_weather(weather);
    let (cluster, ms) = (cluster.clone(), rng.between(300, 3_000));
    spawn(async move {
        sleep_ms(ms).await;
        cluster.network.set_weather(Weather::default());
    });
}

fn pause(cluster: &Arc<Cluster>, rng: &mut Rng) {
    let (node, ms) = (any(cluster, rng), rng.between(100, 2_000));
    cluster.world.note(format_args!("n{node} pauses for {ms} ms"));
    cluster.pause(node, true);
    let cluster = cluster.clone();
    spawn(async move {
        sleep_ms(ms).await;
        cluster.pause(node, false);
    });
}

fn slow_disk(cluster: &Arc<Cluster>, rng: &mut Rng) {
    let (node, ms) = (any(cluster, rng), rng.between(300, 3_000));
    let Some(disk) = cluster.disks.get(&node).cloned() else { return };
    cluster.world.note(format_args!("n{node} has a slow disk for {ms} ms"));
    disk.set_slow(true);
    spawn(async move {
        sleep_ms(ms).await;
        disk.set_slow(false);
    });
}

fn failing_disk(cluster: &Cluster, rng: &mut Rng) {
    let node = any(cluster, rng);
    if let Some(disk) = cluster.disks.get(&node).filter(|_| cluster.get(node).is_some()) {
        cluster.world.note(format_args!("the next flush of n{node} fails"));
        disk.fail_next();
    }
}

fn jump_clock(cluster: &Cluster, rng: &mut Rng) {
    let (node, ahead_ms) = (any(cluster, rng), rng.below(120_000));
    cluster.world.note(format_args!("the wall clock of n{node} is {ahead_ms} ms ahead"));
    cluster.set_clock(node, ahead_ms);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_partition_cuts_something_and_nobody_from_itself() {
        for seed in 0..200 {
            for size in [3_u64, 5] {
                let ids: Vec<u64> = (1..=size).collect();
                let links = links(&ids, &mut Rng::new(seed, 0));
                assert!(!links.is_empty() && links.iter().all(|(from, to)| from != to));
            }
        }
    }
}
