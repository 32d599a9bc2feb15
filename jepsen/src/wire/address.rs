//! Addresses on the wire: who has which, and for whom a packet is.
//!
//! Deliberately absent: IPv6. A packet of it is for nobody.

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};

use super::select::HARNESS;

/// The last byte of the harness's address.
const HARNESS_OCTET: u8 = 254;
/// The length of the network's part of an address.
pub(super) const PREFIX: u8 = 24;

/// Where everybody stands.
#[derive(Clone, Debug)]
pub(super) struct Directory {
    /// The place of each last byte.
    places: Vec<(u8, usize)>,
}

impl Directory {
    /// The nodes in their order, and the harness after them. Fails if one of them can have no address.
    pub(super) fn new(nodes: &[u64]) -> Result<Self> {
        let mut places: Vec<(u8, usize)> = Vec::new();
        for (place, node) in nodes.iter().chain(&[HARNESS]).enumerate() {
            let octet = octet(*node);
            let fits = *node == HARNESS || (1..u64::from(HARNESS_OCTET)).contains(node);
            ensure!(fits, "there is no address for node {node}");
            ensure!(places.iter().all(|(known, _)| *known != octet), "node {node} is there twice");
            places.push((octet, place));
        }
        ensure!(places.len() > 1, "a wire without nodes");
        Ok(Self { places })
    }

    /// The place of the one for whom a packet is. `None`: nobody has that address, or it is no IPv4 packet.
    pub(super) fn receiver(&self, packet: &[u8]) -> Option<usize> {
        let &[a, b, c, last] = destination(packet)?;
        let place = self.places.iter().find(|(octet, _)| *octet == last);
        place.filter(|_| Ipv4Addr::new(a, b, c, last) == address_of_octet(last)).map(|(_, place)| *place)
    }
}

/// The address of a node, or of [`HARNESS`].
pub(super) fn address(node: u64) -> Ipv4Addr {
    address_of_octet(octet(node))
}

fn octet(node: u64) -> u8 {
    if node == HARNESS { HARNESS_OCTET } else { u8::try_from(node).unwrap_or(u8::MAX) }
}

fn address_of_octet(octet: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, octet)
}

/// The destination in an IPv4 header.
fn destination(packet: &[u8]) -> Option<&[u8; 4]> {
    let version = packet.first()? >> 4;
    packet.get(16..20).filter(|_| version == 4)?.first_chunk()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(version: u8, to: [u8; 4]) -> Vec<u8> {
        let mut packet = vec![0; 20];
        packet[0] = (version << 4) | 5;
        packet[16..].copy_from_slice(&to);
        packet
    }

    #[test]
    fn a_packet_is_for_whoever_has_its_address() {
        let directory = Directory::new(&[1, 3]).unwrap();
        assert_eq!(directory.receiver(&packet(4, address(1).octets())), Some(0));
        assert_eq!(directory.receiver(&packet(4, address(3).octets())), Some(1));
        assert_eq!(directory.receiver(&packet(4, address(HARNESS).octets())), Some(2));
        assert_eq!(directory.receiver(&packet(4, address(2).octets())), None, "nobody has it");
        assert_eq!(directory.receiver(&packet(4, [10, 78, 0, 1])), None, "another network");
        assert_eq!(directory.receiver(&packet(4, [224, 0, 0, 1])), None, "multicast");
        assert_eq!(directory.receiver(&packet(6, address(1).octets())), None, "IPv6");
        assert_eq!(directory.receiver(&packet(4, address(1).octets())[..19]), None, "cut short");
        assert_eq!(directory.receiver(&[]), None);
    }

    #[test]
    fn every_node_has_an_address_of_its_own() {
        assert_eq!(address(7), Ipv4Addr::new(10, 77, 0, 7));
        assert_eq!(address(HARNESS), Ipv4Addr::new(10, 77, 0, 254));
        assert!(Directory::new(&[1, 253]).is_ok());
        let wrong: [&[u64]; 5] = [&[], &[0], &[254], &[1, 1], &[1_000]];
        for wrong in wrong {
            assert!(Directory::new(wrong).is_err(), "{wrong:?}");
        }
    }
}
