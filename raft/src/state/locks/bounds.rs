//! How much there may be of it. A lock is one row with all who hold it and wait for it, so what a command rewrites
//! grows with the locks that it touches and with those who take part in them; both have a bound. Functions of the state
//! alone: nothing here writes a row.
//!
//! A session that ends, or an attempt, touches at most [`MAX_SESSION_LOCKS`] locks, with one holder each and at most
//! [`MAX_COMPANY`] others in all. A tick stops sooner, and the next one goes on ([`super::run_due`]).

use quorate_proto::v1::Lock;

use super::{Locks, MAX_LOCKS};
use crate::error::{Outcome, exhausted};

/// The most locks that one session holds and waits for, scope leases counted with them; and one attempt, of whatever
/// sessions.
pub const MAX_SESSION_LOCKS: usize = 4_096;
/// The most that share or wait in all locks together, the first holder of each not counted.
pub const MAX_COMPANY: usize = 200_000;

/// Whether the session, and the attempt if there is one, may take part in one more.
pub(super) fn check_taker(locks: &Locks, session_id: &str, (task_id, token): (&str, u64)) -> Outcome<()> {
    let of_session = locks.parts.count_of_session(session_id) + locks.scopes.count_of_session(session_id);
    if of_session >= MAX_SESSION_LOCKS {
        let message = format!(
            "session {session_id:?} takes part in {MAX_SESSION_LOCKS} locks and scope leases; release some first"
        );
        return Err(exhausted("session_id", message));
    }
    if task_id.is_empty() {
        return Ok(());
    }
    let of_attempt = locks.parts.count_of_attempt(task_id, token) + locks.scopes.count_of_attempt(task_id, token);
    if of_attempt >= MAX_SESSION_LOCKS {
        let message = format!(
            "{MAX_SESSION_LOCKS} locks and scope leases are part of this attempt of {task_id:?}; release some first"
        );
        return Err(exhausted("task_id", message));
    }
    Ok(())
}

/// Whether there is room for one more lock, or for one more that takes part in this one.
pub(super) fn check_room(locks: &Locks, lock: &Lock) -> Outcome<()> {
    if lock.holders.is_empty() {
        if locks.len() >= MAX_LOCKS {
            return Err(exhausted("name", format!("{MAX_LOCKS} locks are held; release some first")));
        }
    } else if locks.parts.len().saturating_sub(locks.len()) >= MAX_COMPANY {
        let message = format!("{MAX_COMPANY} share locks or wait for them already; try again when some have left");
        return Err(exhausted("name", message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use quorate_proto::v1::{
        AcquireLockRequest, AcquireScopeRequest, LockHolder, LockMode, LockWaiter, OpenSessionRequest,
        ReleaseLockRequest,
    };

    use super::super::{acquire, acquire_scope, ends, release};
    use super::*;
    use crate::error::Error;
    use crate::state::{Ctx, Out, Rooms, sessions};
    use crate::storage::rows::MemoryRows;
    use crate::storage::txn::Txn;

    /// The room without its rows: no command reads them.
    struct State {
        rooms: Rooms,
        rev: u64,
    }

    impl State {
        fn with_sessions<const N: usize>(ids: [&str; N]) -> Self {
            let mut state = State { rooms: Rooms::default(), rev: 0 };
            for id in ids {
                let req =
                    OpenSessionRequest { session_id: id.to_owned(), ttl_ms: 15_000, ..OpenSessionRequest::default() };
                assert_eq!(state.refused(|rooms, out, ctx| sessions::open(rooms, out, ctx, req)), "");
            }
            state
        }

        /// The field at fault; empty: none.
        fn refused<T>(&mut self, f: impl FnOnce(&mut Rooms, &mut Out<'_, '_>, &Ctx) -> Outcome<T>) -> String {
            self.rev += 1;
            let ctx = Ctx { now_ms: 1_000, rev: self.rev, entropy: 0 };
            let rows = MemoryRows::default();
            let mut txn = Txn::new(&rows, 0);
            match f(&mut self.rooms, &mut Out { txn: &mut txn, effects: &mut Vec::new() }, &ctx) {
                Ok(_) => String::new(),
                Err(Error::Rejected(rejection)) => rejection.field,
                Err(Error::Fatal(fatal)) => panic!("{fatal}"),
            }
        }

        fn lock(&mut self, name: &str, session: &str, attempt: Option<u64>) -> String {
            let req = AcquireLockRequest {
                name: name.to_owned(),
                session_id: session.to_owned(),
                mode: LockMode::Shared as i32,
                task_id: attempt.map_or("", |_| "t").to_owned(),
                task_token: attempt.unwrap_or_default(),
                ..AcquireLockRequest::default()
            };
            self.refused(|rooms, out, ctx| acquire(rooms, out, ctx, req))
        }

        fn scope(&mut self, session: &str, attempt: Option<u64>) -> String {
            let req = AcquireScopeRequest {
                realm: "r".to_owned(),
                globs: vec!["a".to_owned()],
                mode: LockMode::Shared as i32,
                session_id: session.to_owned(),
                task_id: attempt.map_or("", |_| "t").to_owned(),
                task_token: attempt.unwrap_or_default(),
                ..AcquireScopeRequest::default()
            };
            self.refused(|rooms, out, ctx| acquire_scope(rooms, out, ctx, req))
        }

        fn unlock(&mut self, name: &str, session: &str) -> String {
            let (name, session_id) = (name.to_owned(), session.to_owned());
            let req = ReleaseLockRequest { name, session_id, ..ReleaseLockRequest::default() };
            self.refused(|rooms, out, ctx| release(rooms, out, ctx, req))
        }
    }

    fn holder(owner: String, expires_at_ms: u64) -> LockHolder {
        let (session_id, mode) = ("other".to_owned(), LockMode::Shared as i32);
        LockHolder { session_id, owner, mode, expires_at_ms, ..LockHolder::default() }
    }

    #[test]
    fn a_session_takes_part_in_so_many() {
        let mut state = State::with_sessions(["s", "s2"]);
        for n in 1..MAX_SESSION_LOCKS {
            assert_eq!(state.lock(&n.to_string(), "s", None), "");
        }
        assert_eq!(state.scope("s", None), "");
        assert_eq!([state.lock("more", "s", None), state.scope("s", None)], ["session_id"; 2]);
        assert_eq!(state.lock("1", "s", None), "", "it has that one");
        assert_eq!([state.lock("more", "s2", None), state.scope("s2", None)], [""; 2]);
        assert_eq!([state.unlock("1", "s"), state.lock("more", "s", None)], [""; 2]);
    }

    #[test]
    fn an_attempt_takes_part_in_so_many_whoever_asks() {
        let mut state = State::with_sessions(["s", "s2", "s3"]);
        for n in 1..MAX_SESSION_LOCKS {
            let session = if n % 2 == 0 { "s" } else { "s2" };
            assert_eq!(state.lock(&n.to_string(), session, Some(7)), "");
        }
        assert_eq!(state.scope("s", Some(7)), "");
        assert_eq!([state.lock("more", "s3", Some(7)), state.scope("s3", Some(7))], ["task_id"; 2]);
        assert_eq!([state.lock("more", "s3", Some(8)), state.scope("s3", None)], [""; 2]);
    }

    #[test]
    fn so_many_share_and_wait_in_all_locks_together() {
        let mut state = State::with_sessions(["s", "s2"]);
        let holders = (0..=MAX_COMPANY).map(|n| holder(n.to_string(), 0)).collect();
        state.rooms.locks.put(Lock { name: "crowded".to_owned(), holders, ..Lock::default() });
        assert_eq!(state.lock("free", "s", None), "", "who is the first is no company");
        assert_eq!(state.lock("free", "s2", None), "name");
        assert_eq!(state.unlock("free", "s"), "");
        assert_eq!(state.lock("free", "s2", None), "");
        state.rooms.locks.take_out("crowded");
        assert_eq!(state.lock("free", "s", None), "");
        assert_eq!(state.rooms.locks.parts.len(), 2);
    }

    #[test]
    fn a_tick_rewrites_so_much_and_leaves_the_rest() {
        let mut state = State::with_sessions([]);
        for n in 0..20 {
            let waiter = |n: usize| LockWaiter {
                session_id: "other".to_owned(),
                owner: format!("w{n}"),
                mode: LockMode::Exclusive as i32,
                until_ms: 9_000,
                ..LockWaiter::default()
            };
            let lock = Lock {
                name: format!("l{n:02}"),
                holders: vec![holder("h".to_owned(), 1_000)],
                waiters: (1..1_024).map(waiter).collect(),
            };
            state.rooms.locks.put(lock);
        }
        let mut ended = Vec::new();
        for _ in 0..3 {
            let refused = state.refused(|rooms, out, ctx| {
                ended.push(ends::run_due(rooms, out, ctx, 1_000)?);
                Ok(())
            });
            assert_eq!(refused, "");
        }
        assert_eq!(ended, [16, 4, 0], "1,024 take part in each, and 16,384 are rewritten at once");
        assert_eq!(state.rooms.locks.next_due_ms(), Some(9_000));
    }
}
