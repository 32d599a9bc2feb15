//! Circles: whether owners would wait for each other for ever.
//!
//! A waiter waits for every holder of its lock, and for every waiter before it that could not share with it. Only a new
//! place in line adds to that, so a circle can only be closed by who comes, and is looked for from there. An owner that
//! waits for two locks at a time counts as waiting for both.
//!
//! The search is bounded. Beyond the bound the wait is admitted: its time limit ends it, if it was part of a circle.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};

use quorate_proto::v1::{Lock, LockMode, LockWaiter};

use super::Locks;
use super::checked::who;
use super::line::{self, Owner, holds_as, waits_as};

/// How many holders and waiters are looked at in search of a circle.
const MAX_STEPS: usize = 10_000;
/// How many links of a circle are shown from each end.
const SHOWN: usize = 10;

/// An owner on the way, and where it was met in a line: the lock, and the place.
struct Met<'a> {
    owner: Owner<'a>,
    place: Option<(&'a str, usize)>,
}

/// A walk over who waits for whom, breadth first: the circle that is found is a shortest one.
#[derive(Default)]
struct Walk<'a> {
    /// Which owner led to each, waiting for which lock.
    from: BTreeMap<Owner<'a>, (Owner<'a>, &'a str)>,
    ahead: VecDeque<Met<'a>>,
    /// Up to which place each line was walked by somebody who cannot share: it need not be walked again.
    walked: BTreeMap<&'a str, usize>,
    steps: usize,
}

/// The circle that this owner would close at the end of that line, for people.
pub(super) fn closed_by<'a>(locks: &'a Locks, lock: &'a Lock, waiter: &'a LockWaiter) -> Option<String> {
    let newcomer = waits_as(waiter);
    let mut walk = Walk::default();
    walk.along(lock, lock.waiters.len(), waiter.mode(), newcomer, newcomer);
    while let Some(met) = walk.ahead.pop_front() {
        for name in locks.parts.awaited_by(met.owner) {
            let Some(lock) = locks.get(name) else { continue };
            let place = match met.place {
                Some((met_in, place)) if met_in == name => place,
                _ => {
                    let Some(place) = line::place_of(lock, met.owner) else { continue };
                    walk.steps += place;
                    place
                }
            };
            if walk.along(lock, place, lock.waiters[place].mode(), met.owner, newcomer) {
                return Some(walk.path(newcomer, met.owner, name));
            }
            if walk.steps > MAX_STEPS {
                return None;
            }
        }
    }
    None
}

impl<'a> Walk<'a> {
    /// Goes to all that somebody at that place in line waits for; says whether `sought` is among them.
    fn along(&mut self, lock: &'a Lock, place: usize, mode: LockMode, waits: Owner<'a>, sought: Owner<'a>) -> bool {
        let name = lock.name.as_str();
        if self.walked.get(name).is_some_and(|walked| *walked >= place) {
            return false;
        }
        let shares = mode == LockMode::Shared;
        if !shares {
            self.walked.insert(name, place);
        }
        // The last first: whoever is farther back in line walks the most of it, and spares the others.
        let before = lock.waiters[..place].iter().enumerate().rev();
        let before = before.filter(|(_, waiter)| !(shares && waiter.mode() == LockMode::Shared));
        let before = before.map(|(at, waiter)| Met { owner: waits_as(waiter), place: Some((name, at)) });
        let holders = lock.holders.iter().map(|holder| Met { owner: holds_as(holder), place: None });
        for met in before.chain(holders) {
            self.steps += 1;
            if met.owner == sought {
                return true;
            }
            if let Entry::Vacant(unseen) = self.from.entry(met.owner) {
                unseen.insert((waits, name));
                self.ahead.push_back(met);
            }
        }
        false
    }

    /// From the newcomer to `last`, which waits for `name` behind the newcomer.
    fn path(&self, newcomer: Owner<'a>, last: Owner<'a>, name: &str) -> String {
        let link = |name: &str, (session_id, owner): Owner<'_>| {
            format!("waits for lock {name:?} behind {}", who(session_id, owner))
        };
        let mut links = vec![link(name, newcomer)];
        let mut at = last;
        while at != newcomer
            && let Some((before, name)) = self.from.get(&at)
        {
            links.push(link(name, at));
            at = *before;
        }
        links.reverse();
        if links.len() > 2 * SHOWN {
            let left_out = links.len() - 2 * SHOWN;
            links.splice(SHOWN..SHOWN + left_out, [format!("({left_out} more)")]);
        }
        format!("{} {}", who(newcomer.0, newcomer.1), links.join(", which "))
    }
}

#[cfg(test)]
mod tests {
    use quorate_proto::v1::LockHolder;

    use super::*;

    /// Who holds a lock and who waits for it, `+` before those that share.
    fn locks(rows: &[(&str, &str)]) -> Locks {
        let mut locks = Locks::default();
        for (name, owners) in rows {
            let mut owners = owners.split(' ').map(named);
            let (owner, mode) = owners.next().unwrap();
            let holder = LockHolder { session_id: "s".to_owned(), owner, mode, ..LockHolder::default() };
            let waiters = owners.map(|(owner, mode)| waiter(&owner, mode)).collect();
            locks.put(Lock { name: (*name).to_owned(), holders: vec![holder], waiters });
        }
        locks
    }

    fn named(owner: &str) -> (String, i32) {
        match owner.strip_prefix('+') {
            Some(owner) => (owner.to_owned(), LockMode::Shared as i32),
            None => (owner.to_owned(), LockMode::Exclusive as i32),
        }
    }

    fn waiter(owner: &str, mode: i32) -> LockWaiter {
        LockWaiter { session_id: "s".to_owned(), owner: owner.to_owned(), mode, ..LockWaiter::default() }
    }

    fn closed(locks: &Locks, name: &str, owner: &str) -> Option<String> {
        let (owner, mode) = named(owner);
        closed_by(locks, locks.get(name).unwrap(), &waiter(&owner, mode))
    }

    #[test]
    fn the_path_is_told_from_who_comes() {
        let locks = locks(&[("x", "a c"), ("y", "b a"), ("z", "d")]);
        assert_eq!(
            closed(&locks, "x", "b").as_deref(),
            Some("s/b waits for lock \"x\" behind s/a, which waits for lock \"y\" behind s/b")
        );
        assert_eq!(closed(&locks, "z", "a"), None);
        assert_eq!(closed(&locks, "y", "c"), None, "c waits for a, which waits for b, and nobody for c");
    }

    #[test]
    fn who_shares_waits_for_no_other_that_does() {
        let shared = locks(&[("x", "h +a"), ("y", "b a")]);
        assert_eq!(closed(&shared, "x", "+b"), None, "both get x when h leaves");
        assert!(closed(&shared, "x", "b").is_some());
        let behind = locks(&[("x", "h a"), ("y", "b a")]);
        assert!(closed(&behind, "x", "+b").is_some(), "a is before it and cannot share");
    }

    #[test]
    fn a_long_line_is_walked_once() {
        let waiters: Vec<String> = (0..1_000).map(|i| format!("w{i}")).collect();
        let line = format!("h {}", waiters.join(" "));
        // Whoever stands last leads to the circle, through all the others.
        let locks = locks(&[("x", &line), ("y", "b h")]);
        assert!(closed(&locks, "x", "b").is_some());
    }

    #[test]
    fn beyond_the_bound_a_wait_is_admitted() {
        let chain = |length: usize| {
            let rows: Vec<(String, String)> =
                (0..length).map(|i| (format!("l{i}"), format!("o{i} o{}", i + 1))).collect();
            let rows: Vec<(&str, &str)> = rows.iter().map(|(name, owners)| (name.as_str(), owners.as_str())).collect();
            let locks = locks(&rows);
            closed(&locks, &format!("l{}", length - 1), "o0").map(|path| path.contains(" more)"))
        };
        assert_eq!(chain(3), Some(false));
        assert_eq!(chain(100), Some(true));
        assert_eq!(chain(MAX_STEPS + 10), None);
    }
}
