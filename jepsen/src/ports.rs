//! Free loopback ports.
//!
//! Taken from below the range that the kernel gives to outgoing connections: a node that is down for a moment must find
//! its port free when it returns, and a client that keeps dialling a port of that range may even connect to itself.
//!
//! Deliberately absent: a guarantee. A port is free when looked at; whoever starts a process on it retries once.

use std::net::TcpListener;

use anyhow::{Result, bail};

use crate::rng::Rng;

const LOWEST: u64 = 12_000;

/// `count` different ports, all free at this moment.
pub fn free(count: usize) -> Result<Vec<u16>> {
    let highest = first_ephemeral().max(LOWEST + 1_000);
    let mut rng = Rng::new(start_point());
    let mut held = Vec::new();
    let mut ports = Vec::new();
    for _ in 0..10_000 {
        if ports.len() == count {
            return Ok(ports);
        }
        let port = LOWEST + rng.below(highest - LOWEST);
        let Ok(port) = u16::try_from(port) else { continue };
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) {
            // Held until all are found, so that no port comes twice.
            held.push(listener);
            ports.push(port);
        }
    }
    bail!("found only {} of {count} free ports on loopback", ports.len())
}

/// Different in every process and at every moment, so that parallel tests look in different places.
fn start_point() -> u64 {
    let nanos =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |now| now.as_nanos() as u64);
    nanos ^ (u64::from(std::process::id()) << 32)
}

fn first_ephemeral() -> u64 {
    std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|text| text.split_whitespace().next()?.parse().ok())
        .unwrap_or(32_768)
}
