//! What a leader takes, given its own disk and the other voters'. Pure.
//!
//! A command needs room where it is committed: on the leader and on enough others for a majority. One full follower is
//! passed over. A voter that says nothing is neither full nor not: whether it is needed is for consensus to find out, and its
//! silence alone refuses nothing.

use quorate_proto::v1::{Disk, DiskState};

use super::growth::Growth;

/// The largest growth that is admitted. `None`: that voter has not said anything lately.
pub(super) fn admits(own: DiskState, others: &[Option<DiskState>]) -> Growth {
    let voters = others.len() + 1;
    let majority = voters / 2 + 1;
    let count = |wanted: DiskState| others.iter().flatten().filter(|state| **state == wanted).count();
    let (roomy, low, full) = (count(DiskState::Ok), count(DiskState::Low), count(DiskState::Full));
    // The leader writes its own log in any case: the ballast gives it the room.
    if voters - full < majority {
        return Growth::Vital;
    }
    match own {
        DiskState::Full => Growth::Frees,
        DiskState::Low => Growth::Finishes,
        DiskState::Ok | DiskState::Unspecified if low + full > 0 && 1 + roomy < majority => Growth::Finishes,
        DiskState::Ok | DiskState::Unspecified => Growth::Grows,
    }
}

/// The refusal, for whoever asked for more than is admitted: which disks it is, and what is taken still.
pub(super) fn why<'a>(admits: Growth, disks: impl Iterator<Item = (u64, &'a Disk)>) -> String {
    let taken = match admits {
        Growth::Grows => return String::new(),
        Growth::Finishes => "only what ends something or frees space is",
        Growth::Frees => "only what frees space is",
        Growth::Vital => "nothing is",
    };
    let scarce: Vec<String> = disks
        .filter(|(_, disk)| matches!(disk.state(), DiskState::Low | DiskState::Full))
        .map(|(id, disk)| format!("of node {id} has {} KiB left", disk.free_bytes >> 10))
        .collect();
    format!("the disk {}: {taken} taken until there is more", scarce.join(", that "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OK: Option<DiskState> = Some(DiskState::Ok);
    const LOW: Option<DiskState> = Some(DiskState::Low);
    const FULL: Option<DiskState> = Some(DiskState::Full);

    #[test]
    fn what_is_taken_depends_on_where_a_majority_has_room() {
        use DiskState::{Full, Low, Ok};
        let table: [(DiskState, &[Option<DiskState>], Growth); 20] = [
            // A cluster of one.
            (Ok, &[], Growth::Grows),
            (Low, &[], Growth::Finishes),
            (Full, &[], Growth::Frees),
            // Three.
            (Ok, &[OK, OK], Growth::Grows),
            (Ok, &[OK, FULL], Growth::Grows),
            (Ok, &[OK, None], Growth::Grows),
            (Ok, &[LOW, LOW], Growth::Finishes),
            (Ok, &[LOW, FULL], Growth::Finishes),
            (Ok, &[LOW, None], Growth::Finishes),
            (Ok, &[FULL, FULL], Growth::Vital),
            (Low, &[OK, OK], Growth::Finishes),
            (Full, &[OK, FULL], Growth::Frees),
            (Full, &[FULL, FULL], Growth::Vital),
            // Nobody has said that it has no room.
            (Ok, &[None, None], Growth::Grows),
            // Two: both are needed.
            (Ok, &[LOW], Growth::Finishes),
            (Ok, &[FULL], Growth::Vital),
            (Ok, &[None], Growth::Grows),
            // Five.
            (Ok, &[OK, OK, FULL, FULL], Growth::Grows),
            (Ok, &[OK, LOW, LOW, FULL], Growth::Finishes),
            (Ok, &[OK, FULL, FULL, FULL], Growth::Vital),
        ];
        for (own, others, wanted) in table {
            assert_eq!(admits(own, others), wanted, "{own:?} and {others:?}");
        }
    }

    #[test]
    fn a_refusal_names_the_disks_and_what_is_taken() {
        let disk = |state: DiskState| Disk { total_bytes: 16 << 20, free_bytes: 5 << 10, state: state as i32 };
        let disks = [(1, disk(DiskState::Ok)), (2, disk(DiskState::Low)), (3, disk(DiskState::Full))];
        let all = || disks.iter().map(|(id, disk)| (*id, disk));
        let wanted = "the disk of node 2 has 5 KiB left, that of node 3 has 5 KiB left: only what ends something or frees \
                      space is taken until there is more";
        assert_eq!(why(Growth::Finishes, all()), wanted);
        assert_eq!(why(Growth::Grows, all()), "");
    }
}
