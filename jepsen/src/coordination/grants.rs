//! Who held exclusive locks, and what was written under them, replayed from the history.
//!
//! | must hold | at |
//! |---|---|
//! | one holder at most | every change of a lock |
//! | tokens rise, and a token is the rev of its grant | every change of holder |
//! | who is first in line is next | every change from one holder to another |
//! | a write is made by who holds the lock at that rev, and tokens in a register rise | every write |
//!
//! Deliberately absent: sessions that end while they wait, which leave a line in the very step that moves it.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};
use quorate_client::v1::{Lock, LockHolder, LockMode};

/// One step of the history.
#[derive(Clone, Debug)]
pub enum Change {
    /// A lock as it stands after the step.
    Lock {
        /// Where in the history.
        rev: u64,
        /// The cluster's time.
        at_ms: u64,
        /// The lock.
        lock: Lock,
    },
    /// Nobody holds the lock of this name any more.
    Free(String),
    /// Somebody wrote into the register that the lock of this name protects.
    Write {
        /// The lock.
        name: String,
        /// What was written: the token of the writer's grant.
        token: u64,
        /// The owner who says to have written it.
        by: String,
    },
}

/// What came of a history.
#[derive(Debug, Default)]
pub struct Grants {
    /// The owner of every grant, by lock and token.
    pub granted: BTreeMap<(String, u64), String>,
    /// What was written, by lock and token.
    pub written: BTreeSet<(String, u64)>,
    /// How many grants went to who was first in line.
    pub in_turn: u64,
    held: BTreeMap<String, Lock>,
    newest_grant: BTreeMap<String, u64>,
    newest_write: BTreeMap<String, u64>,
}

impl Grants {
    /// Follows a history from its beginning. Fails at the first step that must not be.
    pub fn replay(changes: impl IntoIterator<Item = Change>) -> Result<Self> {
        let mut grants = Self::default();
        for change in changes {
            match change {
                Change::Lock { rev, at_ms, lock } => {
                    let name = lock.name.clone();
                    grants.lock(rev, at_ms, lock).with_context(|| format!("lock {name} at rev {rev}"))?;
                }
                Change::Free(name) => {
                    ensure!(grants.held.remove(&name).is_some(), "lock {name} was freed and nobody held it");
                }
                Change::Write { name, token, by } => grants.write(name, token, &by)?,
            }
        }
        Ok(grants)
    }

    /// The locks that are held at the end.
    pub fn still_held(&self) -> Vec<&str> {
        self.held.keys().map(String::as_str).collect()
    }

    fn lock(&mut self, rev: u64, at_ms: u64, lock: Lock) -> Result<()> {
        let [holder] = &lock.holders[..] else { bail!("{} hold it: {:?}", lock.holders.len(), lock.holders) };
        ensure!(holder.mode() == LockMode::Exclusive, "it is shared: {holder:?}");
        let in_line = lock.waiters.windows(2).all(|pair| pair[0].ticket < pair[1].ticket);
        ensure!(in_line, "its line is not in the order of its tickets: {:?}", lock.waiters);
        let before = self.held.get(&lock.name);
        let known = before.and_then(|before| before.holders.first());
        if let Some(known) = known.filter(|known| known.token == holder.token) {
            ensure!(owner(known) == owner(holder), "token {} was given to two: {known:?} {holder:?}", holder.token);
        } else {
            if let Some(before) = before {
                let next = before.waiters.iter().find(|waiter| waiter.until_ms > at_ms);
                let next = next.map(|waiter| (waiter.session_id.as_str(), waiter.owner.as_str()));
                ensure!(next == Some(owner(holder)), "{next:?} was first in line, {holder:?} has it");
                self.in_turn += 1;
            }
            let newest = self.newest_grant.insert(lock.name.clone(), holder.token).unwrap_or_default();
            let rises = holder.token > newest && holder.token == rev;
            ensure!(rises, "a grant of token {} after one of {newest}", holder.token);
            self.granted.insert((lock.name.clone(), holder.token), holder.owner.clone());
        }
        self.held.insert(lock.name.clone(), lock);
        Ok(())
    }

    fn write(&mut self, name: String, token: u64, by: &str) -> Result<()> {
        let holder = self.held.get(&name).and_then(|lock| lock.holders.first());
        let is_holder = holder.is_some_and(|holder| holder.token == token && holder.owner == by);
        ensure!(is_holder, "{by} wrote under token {token} of lock {name}, which {holder:?} holds");
        let newest = self.newest_write.insert(name.clone(), token).unwrap_or_default();
        ensure!(token > newest, "token {token} of lock {name} was written after {newest}");
        self.written.insert((name, token));
        Ok(())
    }
}

fn owner(holder: &LockHolder) -> (&str, &str) {
    (&holder.session_id, &holder.owner)
}

#[cfg(test)]
mod tests {
    use quorate_client::v1::LockWaiter;

    use super::*;

    fn held(rev: u64, by: &str, token: u64, line: &[(&str, u64)]) -> Change {
        let holder = LockHolder { owner: by.to_owned(), token, mode: LockMode::Exclusive as i32, ..Default::default() };
        let waiters = line.iter().map(|(owner, ticket)| {
            let owner = (*owner).to_owned();
            LockWaiter { owner, ticket: *ticket, until_ms: 1_000, ..Default::default() }
        });
        let lock = Lock { name: "l".to_owned(), holders: vec![holder], waiters: waiters.collect() };
        Change::Lock { rev, at_ms: rev, lock }
    }

    fn free() -> Change {
        Change::Free("l".to_owned())
    }

    fn write(token: u64, by: &str) -> Change {
        Change::Write { name: "l".to_owned(), token, by: by.to_owned() }
    }

    #[test]
    fn one_after_another_in_the_order_of_the_line_is_how_it_should_be() {
        let grants = Grants::replay([
            held(1, "a", 1, &[]),
            held(2, "a", 1, &[("b", 2)]),
            held(3, "a", 1, &[("b", 2), ("c", 3)]),
            write(1, "a"),
            held(5, "b", 5, &[("c", 3)]),
            held(6, "c", 6, &[]),
            write(6, "c"),
            free(),
            held(9, "a", 9, &[]),
        ])
        .unwrap();
        assert_eq!((grants.granted.len(), grants.written.len(), grants.in_turn), (4, 2, 2));
        assert_eq!(grants.still_held(), ["l"]);
    }

    #[test]
    fn who_waited_too_long_is_passed_over() {
        let mut line = held(2, "a", 1, &[("b", 2), ("c", 3)]);
        if let Change::Lock { lock, .. } = &mut line {
            lock.waiters[0].until_ms = 4;
        }
        assert!(Grants::replay([held(1, "a", 1, &[]), line, held(5, "c", 5, &[])]).is_ok());
    }

    #[test]
    fn each_fault_is_found() {
        let mut two = held(1, "a", 1, &[]);
        let mut shared = held(1, "a", 1, &[]);
        if let (Change::Lock { lock: two, .. }, Change::Lock { lock: shared, .. }) = (&mut two, &mut shared) {
            two.holders.push(two.holders[0].clone());
            shared.holders[0].mode = LockMode::Shared as i32;
        }
        let waiting = || held(2, "a", 1, &[("b", 2), ("c", 3)]);
        let faults = [
            ("two at once", vec![two]),
            ("shared", vec![shared]),
            ("a token that is not its rev", vec![held(2, "a", 1, &[])]),
            ("a token that was given before", vec![held(5, "a", 5, &[]), free(), held(5, "b", 5, &[])]),
            ("one token for two", vec![held(1, "a", 1, &[]), held(2, "b", 1, &[])]),
            ("overtaken", vec![held(1, "a", 1, &[]), waiting(), held(5, "c", 5, &[("b", 2)])]),
            ("taken from its holder by nobody in line", vec![held(1, "a", 1, &[]), held(5, "b", 5, &[])]),
            ("a line out of order", vec![held(1, "a", 1, &[("b", 3), ("c", 2)])]),
            ("freed by nobody", vec![free()]),
            ("written by nobody", vec![write(1, "a")]),
            ("written too late", vec![held(1, "a", 1, &[]), free(), held(3, "b", 3, &[]), write(1, "a")]),
            ("written in another's name", vec![held(1, "a", 1, &[]), write(1, "b")]),
            ("written twice", vec![held(1, "a", 1, &[]), write(1, "a"), write(1, "a")]),
        ];
        for (what, changes) in faults {
            assert!(Grants::replay(changes).is_err(), "{what}");
        }
    }
}
