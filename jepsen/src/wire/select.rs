//! Which directed links are meant.
//!
//! Deliberately absent: what is done to them.

/// The harness, and with it its clients, where a node is to be named. No node has this id.
pub const HARNESS: u64 = 0;

/// Some of the directed links. The links of the harness are meant only where [`HARNESS`] is named. A node that is not
/// there has no links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    /// Every link from a node to another.
    All,
    /// The links of a node from and to all others.
    Of(u64),
    /// The two links between two nodes.
    Between(u64, u64),
    /// The links to a node from all others.
    Into(u64),
    /// The links from a node to all others.
    OutOf(u64),
}

impl Links {
    /// Whether the link from one to the other is meant.
    pub(super) fn has(self, from: u64, to: u64) -> bool {
        let between_nodes = from != HARNESS && to != HARNESS;
        let meant = match self {
            Self::All => between_nodes,
            Self::Of(node) => (from == node || to == node) && (between_nodes || node == HARNESS),
            Self::Between(one, other) => (from, to) == (one, other) || (from, to) == (other, one),
            Self::Into(node) => to == node && (between_nodes || node == HARNESS),
            Self::OutOf(node) => from == node && (between_nodes || node == HARNESS),
        };
        meant && from != to
    }
}

/// Who hears whom when each node hears the majority in whose middle it stands, the nodes standing in a ring: everybody
/// hears a majority, and no two hear the same one. Of three each hears the one before it, of five both neighbours.
pub(super) fn hears_in_ring(nodes: &[u64], listener: u64, speaker: u64) -> bool {
    let place = |node: u64| nodes.iter().position(|known| *known == node);
    let (Some(listener), Some(speaker)) = (place(listener), place(speaker)) else { return false };
    let majority = nodes.len() / 2 + 1;
    // Counted from the first of the majority, which stands half of it before the listener.
    (speaker + nodes.len() + majority / 2 - listener) % nodes.len() < majority
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(links: Links) -> Vec<(u64, u64)> {
        let pairs = (0..4).flat_map(|from| (0..4).map(move |to| (from, to)));
        pairs.filter(|(from, to)| links.has(*from, *to)).collect()
    }

    #[test]
    fn each_choice_means_its_own_links() {
        assert_eq!(chosen(Links::All), [(1, 2), (1, 3), (2, 1), (2, 3), (3, 1), (3, 2)]);
        assert_eq!(chosen(Links::Of(2)), [(1, 2), (2, 1), (2, 3), (3, 2)]);
        assert_eq!(chosen(Links::Into(2)), [(1, 2), (3, 2)]);
        assert_eq!(chosen(Links::OutOf(2)), [(2, 1), (2, 3)]);
        assert_eq!(chosen(Links::Between(3, 1)), [(1, 3), (3, 1)]);
        assert_eq!(chosen(Links::Between(HARNESS, 1)), [(0, 1), (1, 0)]);
        assert_eq!(chosen(Links::OutOf(HARNESS)), [(0, 1), (0, 2), (0, 3)]);
        assert!(chosen(Links::Of(9)).is_empty());
    }

    fn heard(count: u64) -> Vec<Vec<u64>> {
        let nodes: Vec<u64> = (1..=count).collect();
        let heard_by = |listener: u64| {
            nodes.iter().copied().filter(|speaker| hears_in_ring(&nodes, listener, *speaker)).collect::<Vec<_>>()
        };
        nodes.iter().map(|listener| heard_by(*listener)).collect()
    }

    #[test]
    fn in_a_ring_everybody_hears_another_majority() {
        assert_eq!(heard(3), [vec![1, 3], vec![1, 2], vec![2, 3]]);
        assert_eq!(heard(5), [vec![1, 2, 5], vec![1, 2, 3], vec![2, 3, 4], vec![3, 4, 5], vec![1, 4, 5]]);
        for count in 3..8 {
            let mut all = heard(count);
            assert!(all.iter().all(|heard| heard.len() as u64 == count / 2 + 1), "{all:?}");
            all.sort();
            all.dedup();
            assert_eq!(all.len() as u64, count, "two hear the same: {all:?}");
        }
    }
}
