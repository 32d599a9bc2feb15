//! What happened in a history, counted: a check says nothing of what never happened.

use std::collections::BTreeMap;

use quorate_proto::log::answer::Body as A;
use quorate_proto::log::command::Body as B;
use quorate_proto::v1::{DeliveryFailure, Rejection, RejectionCode, TransactRequest, transact_op};
use quorate_raft::storage::keys::Table;

use super::view::{View, number, raw};
use super::{At, Outcome, locks};

/// What must happen in the histories that a test counts.
pub(crate) const WANTED: [&str; 44] = [
    "a resend answered",
    "a request refused by its record",
    "a fence passed",
    "a fence refused",
    "a chunk referred to twice",
    "a session's end",
    // The bus.
    "a message to several",
    "a message published before",
    "a full subscription",
    "a quota of messages",
    "no subscription that matches",
    "an ack",
    "a stale ack among others",
    "a stale ack",
    "a delivery given back",
    "a delivery again",
    "no ack in time",
    "a death",
    "a redrive",
    "a message too old",
    "a message dropped",
    "a message behind an older one of its key",
    "news",
    // Locks and scopes.
    "a grant",
    "a place in line",
    "a grant to who waited",
    "grants together",
    "a circle refused",
    "a grant ended by time",
    "a wait ended by time",
    "a grant ended with its attempt",
    "a scope lease",
    "a scope lease refused",
    // Documents and transactions.
    "a merge",
    "a merge refused",
    "a revision refused",
    "a quota of documents",
    "a count that went on after a removal",
    "a rollback",
    "a version forgotten",
    "a document gone with its session",
    "a document gone by time",
    "a transaction of ack and write",
    "a transaction refused after a part of it passed",
];

#[derive(Debug, Default)]
pub(crate) struct Tally(BTreeMap<&'static str, u64>);

/// A command, with the namespace before and after it.
pub(crate) struct Deed<'d> {
    pub(crate) before: &'d View,
    pub(crate) after: &'d View,
    pub(crate) at: At,
    pub(crate) body: &'d B,
    pub(crate) answer: &'d A,
    pub(crate) outcome: &'d Outcome,
    pub(crate) is_fenced: bool,
}

impl Tally {
    /// Those that never happened.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        WANTED.into_iter().filter(|what| !self.0.contains_key(what)).collect()
    }

    pub(crate) fn count(&mut self, deed: &Deed<'_>) {
        match deed.outcome {
            Outcome::Resent => self.add("a resend answered"),
            Outcome::Stopped(why) if why.field == "fence" => self.add("a fence refused"),
            Outcome::Stopped(why) if why.field.starts_with("request.") => self.add("a request refused by its record"),
            Outcome::Stopped(_) => {}
            Outcome::Refused(why) => self.count_refusal(deed.body, why),
            Outcome::Done => {
                self.add_if("a fence passed", deed.is_fenced);
                self.count_bus(deed);
                self.count_locks(deed);
                self.count_documents(deed);
            }
        }
    }

    fn add(&mut self, what: &'static str) {
        assert!(WANTED.contains(&what), "{what:?} is counted, but nobody wants it");
        *self.0.entry(what).or_default() += 1;
    }

    fn add_if(&mut self, what: &'static str, happened: bool) {
        if happened {
            self.add(what);
        }
    }

    fn count_refusal(&mut self, body: &B, why: &Rejection) {
        use RejectionCode::{Aborted, FailedPrecondition, ResourceExhausted};
        match (body, why.code()) {
            (B::Publish(_), ResourceExhausted) if why.message.contains("quota") => self.add("a quota of messages"),
            (B::Publish(_), ResourceExhausted) => self.add("a full subscription"),
            (B::Publish(_), FailedPrecondition) => self.add("no subscription that matches"),
            (B::Ack(_), Aborted) => self.add("a stale ack"),
            (B::AcquireLock(_), _) => self.add_if("a circle refused", locks::is_circle(why)),
            (B::AcquireScope(_), FailedPrecondition) => self.add_if("a scope lease refused", why.field == "globs"),
            (B::KvPut(_), ResourceExhausted) => self.add("a quota of documents"),
            (B::KvPut(_), FailedPrecondition) if why.field == "merge" => self.add("a merge refused"),
            (B::KvPut(_) | B::KvDelete(_) | B::KvRollback(_), FailedPrecondition) => self.add("a revision refused"),
            (B::Transact(req), _) => {
                self.add_if("a transaction refused after a part of it passed", part_passed(req, why));
            }
            _ => {}
        }
    }

    fn count_bus(&mut self, deed: &Deed<'_>) {
        let Deed { before, after, at, body, .. } = deed;
        match deed.answer {
            A::Ack(answer) => self.add_if("a stale ack among others", !answer.stale.is_empty()),
            A::Leave(answer) => self.add_if("a delivery given back", answer.released > 0),
            A::RedriveDead(answer) => self.add_if("a redrive", answer.redriven > 0),
            A::Publish(answer) => {
                self.add_if("a message to several", answer.published.iter().any(|one| one.matched > 1));
                self.add_if("a message published before", answer.published.iter().any(|one| one.duplicate));
            }
            _ => {}
        }
        for (name, is) in &after.counts {
            let was = before.counts.get(name).copied().unwrap_or_default();
            self.add_if("an ack", is.acked > was.acked);
            self.add_if("a delivery again", is.redelivered > was.redelivered);
            self.add_if("a death", is.dead > was.dead);
            self.add_if("a message too old", is.expired > was.expired);
            self.add_if("a message dropped", is.dropped > was.dropped);
        }
        let late = |failure: &DeliveryFailure| failure.at_ms == at.now_ms && failure.reason.starts_with("no ack");
        let mut failures = after.pending.values().filter_map(|row| row.failures.last());
        self.add_if("no ack in time", matches!(body, B::Tick(_)) && failures.any(late));
        let mut waiting = after.pending.values().filter(|row| row.consumer_id.is_empty() && !row.order_key.is_empty());
        let is_behind = waiting.any(|row| {
            let mut others = after.pending.values().filter(|other| other.order_key == row.order_key);
            others.any(|other| other.subscription == row.subscription && other.seq < row.seq)
        });
        self.add_if("a message behind an older one of its key", is_behind);
        self.add_if("news", after.messages.values().any(|message| message.r#type == "news"));
        let shared = raw(&after.rows, Table::Chunk).any(|(_, count)| number(count) > 1);
        self.add_if("a chunk referred to twice", shared);
        self.add_if("a session's end", before.sessions.keys().any(|id| !after.sessions.contains_key(id)));
    }

    fn count_locks(&mut self, deed: &Deed<'_>) {
        let Deed { before, after, at, body, .. } = deed;
        match deed.answer {
            A::AcquireLock(answer) => {
                self.add_if("a grant", answer.holder.as_ref().is_some_and(|holder| holder.token == at.rev));
                self.add_if("a place in line", answer.holder.is_none());
            }
            A::AcquireScope(_) => self.add("a scope lease"),
            _ => {}
        }
        for (name, was) in &before.locks {
            let is = after.locks.get(name).cloned().unwrap_or_default();
            let granted = is.holders.iter().filter(|holder| holder.token == at.rev).count();
            let from_line = granted > 0 && is.waiters.len() < was.waiters.len();
            self.add_if("a grant to who waited", from_line);
            self.add_if("grants together", from_line && granted > 1);
            let ended = |task_id: &str, token: u64| !task_id.is_empty() && !after.runs(task_id, token);
            let with_attempt = was.holders.iter().any(|holder| ended(&holder.task_id, holder.task_token));
            self.add_if("a grant ended with its attempt", with_attempt);
            let by_time = was.holders.iter().any(|holder| super::is_past(holder.expires_at_ms, at.now_ms))
                || was.holders.iter().any(|holder| super::is_past(holder.forced_at_ms, at.now_ms));
            self.add_if("a grant ended by time", by_time && matches!(body, B::Tick(_)));
            let waits_over = was.waiters.iter().any(|waiter| waiter.until_ms <= at.now_ms);
            self.add_if("a wait ended by time", waits_over && matches!(body, B::Tick(_)));
        }
    }

    fn count_documents(&mut self, deed: &Deed<'_>) {
        let Deed { before, after, body, .. } = deed;
        match body {
            B::KvPut(req) => {
                let went_on = !before.documents.contains_key(&req.key) && after.documents[&req.key].version > 1;
                self.add_if("a count that went on after a removal", went_on);
                self.add_if("a merge", req.merge > 1 && before.documents.contains_key(&req.key));
            }
            B::KvRollback(_) => self.add("a rollback"),
            B::Transact(req) => {
                let is_ack = |op: &transact_op::Op| matches!(op, transact_op::Op::Ack(_));
                let ops: Vec<&transact_op::Op> = req.ops.iter().filter_map(|op| op.op.as_ref()).collect();
                let both = ops.iter().any(|op| is_ack(op)) && !ops.iter().all(|op| is_ack(op));
                self.add_if("a transaction of ack and write", both);
            }
            _ => {}
        }
        let forgotten = before.versions.keys().any(|version| !after.versions.contains_key(version));
        self.add_if("a version forgotten", forgotten);
        let mut gone = before.documents.values().filter(|entry| !after.documents.contains_key(&entry.key));
        match body {
            B::CloseSession(_) | B::ExpireSession(_) => {
                self.add_if("a document gone with its session", gone.next().is_some());
            }
            B::Tick(_) => self.add_if("a document gone by time", gone.next().is_some()),
            _ => {}
        }
    }
}

/// Whether something of the transaction was checked, and would have been done, before it was refused.
fn part_passed(req: &TransactRequest, why: &Rejection) -> bool {
    let later_op = why.field.starts_with("ops[") && !why.field.starts_with("ops[0]");
    later_op || (why.field.starts_with("ops[0]") && !req.conditions.is_empty())
}
