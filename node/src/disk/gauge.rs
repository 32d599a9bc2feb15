//! From free bytes to a state. Pure.
//!
//! LOW is below the reserve, FULL below half of it. The way back is a tenth longer: a disk on the line does not change its
//! state with every file that RocksDB removes.

use quorate_proto::v1::DiskState;

/// The part of a disk that the reserve takes at most: a disk of 16 MiB keeps 2 MiB free, not a GiB.
const PART: u64 = 8;

/// The reserve in force on a disk of this size. 0: there is no guard.
pub(super) fn reserve_of(configured: u64, total: u64) -> u64 {
    configured.min(total / PART)
}

/// The state after `before`, with so many bytes free.
pub(super) fn judge(before: DiskState, free: u64, reserve: u64) -> DiskState {
    let below = |limit: u64, was_below: bool| free < if was_below { limit + limit / 10 } else { limit };
    if below(reserve / 2, before == DiskState::Full) {
        DiskState::Full
    } else if below(reserve, matches!(before, DiskState::Low | DiskState::Full)) {
        DiskState::Low
    } else {
        DiskState::Ok
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESERVE: u64 = 1_000;

    #[test]
    fn a_state_is_left_a_tenth_later_than_it_is_entered() {
        use DiskState::{Full, Low, Ok};
        let table = [
            (Ok, 1_000, Ok),
            (Ok, 999, Low),
            (Ok, 500, Low),
            (Ok, 499, Full),
            (Low, 1_099, Low),
            (Low, 1_100, Ok),
            (Low, 500, Low),
            (Low, 499, Full),
            (Full, 549, Full),
            (Full, 550, Low),
            (Full, 1_099, Low),
            (Full, 1_100, Ok),
            (Full, 0, Full),
        ];
        for (before, free, after) in table {
            assert_eq!(judge(before, free, RESERVE), after, "{before:?} with {free} free");
        }
    }

    #[test]
    fn a_disk_that_hovers_about_the_line_keeps_its_state() {
        let mut state = DiskState::Ok;
        let mut changes = 0;
        for free in [1_010, 990, 1_010, 990, 1_050, 980, 1_099] {
            let next = judge(state, free, RESERVE);
            changes += u32::from(next != state);
            state = next;
        }
        assert_eq!((state, changes), (DiskState::Low, 1));
    }

    #[test]
    fn without_a_reserve_every_disk_has_room() {
        for before in [DiskState::Ok, DiskState::Low, DiskState::Full] {
            assert_eq!(judge(before, 0, 0), DiskState::Ok);
        }
    }

    #[test]
    fn a_small_disk_keeps_an_eighth_free() {
        assert_eq!(reserve_of(1 << 30, 16 << 20), 2 << 20);
        assert_eq!(reserve_of(1 << 30, 1 << 40), 1 << 30);
        assert_eq!(reserve_of(0, 1 << 40), 0);
    }
}
