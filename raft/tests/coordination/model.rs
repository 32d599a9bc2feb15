//! One namespace as it should be: what each command does to the bus and the documents, and when it is refused.
//!
//! Refusals of publications, acknowledgements, documents and transactions are foretold with their code. The other
//! commands are believed when they are refused, since that changed nothing, and followed when they are not.

use std::collections::{BTreeMap, BTreeSet};

use quorate_proto::log::answer::Body as A;
use quorate_proto::log::command::Body as B;
use quorate_proto::v1::{
    AckItem, AckRequest, AckResponse, BreakerState, KvDeleteResponse, KvEntry, KvPutResponse, LeaveResponse,
    PublishResponse, RejectionCode, TransactRequest, TransactResponse, TransactResult, transact_op, transact_result,
};
use quorate_raft::effect::Effect;

use super::At;
use super::bus_model::BusModel;
use super::kv_model::KvModel;
use super::view::View;

#[derive(Debug, Clone, Default)]
pub(crate) struct Model {
    /// The namespace's number: another one may have its name later.
    pub(crate) number: u64,
    pub(crate) bus: BusModel,
    pub(crate) kv: KvModel,
}

impl Model {
    pub(crate) fn new(number: u64) -> Self {
        Model { number, ..Model::default() }
    }

    /// Does what the command did. `before` is the namespace as it was.
    pub(crate) fn run(&mut self, before: &View, at: At, body: &B, answer: &A) {
        match (self.foretell(before, at, body), answer) {
            (Some(foretold), A::Rejected(refusal)) => {
                assert_eq!(foretold.err(), Some(refusal.code()), "{refusal:?}: {body:?}");
            }
            (Some(foretold), answer) => assert_eq!(foretold.as_ref(), Ok(answer), "{body:?}"),
            (None, A::Rejected(_)) => {}
            (None, answer) => self.follow(before, at, body, answer),
        }
    }

    /// What every command ends with: what happened is said, and what can be assigned is.
    pub(crate) fn settle<'e>(&mut self, at: At, effects: impl Iterator<Item = &'e Effect>) {
        effects.filter_map(subject).for_each(|subject| self.bus.news(at, subject));
        self.bus.settle(at);
    }

    pub(crate) fn tick(&mut self, at: At, sweeps: bool) {
        self.kv.tick(at, sweeps);
        self.bus.tick(at);
    }

    /// The answer of a command whose refusals are known, and does what it says; `None`: of another one.
    fn foretell(&mut self, before: &View, at: At, body: &B) -> Option<Result<A, RejectionCode>> {
        let rev = at.rev;
        Some(match body {
            B::Publish(req) => self.bus.plan(at, req, &before.quotas).map(|plan| {
                let published = self.bus.publish(at, req, Some(plan.as_slice()));
                A::Publish(PublishResponse { published, rev })
            }),
            B::Ack(req) => self.ack(at, req).map(|stale| A::Ack(AckResponse { stale, rev })),
            B::KvPut(req) => {
                let after = self.kv.put(at, req, before);
                self.write(before, at, after).map(|entry| A::KvPut(KvPutResponse { entry: Some(entry), rev }))
            }
            B::KvRollback(req) => {
                let after = self.kv.rollback(at, req);
                self.write(before, at, after).map(|entry| A::KvRollback(KvPutResponse { entry: Some(entry), rev }))
            }
            B::KvDelete(req) => self.kv.delete(at, req).map(|after| {
                let deleted = after.is_some();
                after.into_iter().for_each(|after| self.kv.write(at, after));
                A::KvDelete(KvDeleteResponse { deleted, rev })
            }),
            B::Transact(req) => {
                self.transact(before, at, req).map(|results| A::Transact(TransactResponse { results, rev }))
            }
            _ => return None,
        })
    }

    /// Does what a command did that was not refused.
    fn follow(&mut self, before: &View, at: At, body: &B, answer: &A) {
        match body {
            B::Subscribe(req) => self.bus.subscribe(at, req.spec.as_ref().expect("a specification")),
            B::Unsubscribe(req) => self.bus.unsubscribe(&req.name),
            B::Consume(req) => self.bus.consume(at, req),
            B::Leave(req) => {
                let released = self.bus.leave(at, &req.subscription, &req.consumer_id, &req.session_id);
                assert_eq!(*answer, A::Leave(LeaveResponse { released, rev: at.rev }));
            }
            B::RedriveDead(req) => {
                let redriven = self.bus.redrive(at, req, &before.quotas);
                assert!(matches!(answer, A::RedriveDead(answer) if answer.redriven == redriven), "{answer:?}");
            }
            B::PurgeDead(req) => {
                let purged = self.bus.purge(req);
                assert!(matches!(answer, A::PurgeDead(answer) if answer.purged == purged), "{answer:?}");
            }
            B::SetKvPolicy(req) => self.kv.set_policy(req.policy.as_ref().expect("a policy")),
            B::DeleteKvPolicy(req) => self.kv.delete_policy(&req.prefix),
            B::CloseSession(req) => self.session_ended(at, &req.session_id),
            B::ExpireSession(req) => self.session_ended(at, &req.session_id),
            _ => {}
        }
    }

    fn session_ended(&mut self, at: At, session_id: &str) {
        self.bus.session_ended(at, session_id);
        self.kv.session_ended(at, session_id);
    }

    /// The places of those that are over; refused if all of them are.
    fn ack(&mut self, at: At, req: &AckRequest) -> Result<Vec<u32>, RejectionCode> {
        if !req.items.iter().any(|item| self.bus.is_held(item)) {
            return Err(RejectionCode::Aborted);
        }
        let done = |item: &AckItem| self.bus.ack(at, item);
        let done: Vec<bool> = req.items.iter().map(done).collect();
        Ok((0..).zip(done).filter(|(_, done)| !done).map(|(place, _)| place).collect())
    }

    /// Writes one document if there is room for it, and gives it back without its value.
    fn write(
        &mut self,
        before: &View,
        at: At,
        after: Result<KvEntry, RejectionCode>,
    ) -> Result<KvEntry, RejectionCode> {
        let after = after?;
        self.kv.fits(&before.quotas, std::slice::from_ref(&after))?;
        self.kv.write(at, after.clone());
        Ok(light(after))
    }

    /// All of it is checked against what was, and then done, one after the other.
    fn transact(&mut self, before: &View, at: At, req: &TransactRequest) -> Result<Vec<TransactResult>, RejectionCode> {
        check_distinct(req)?;
        if !req.conditions.iter().all(|condition| self.kv.holds(condition)) {
            return Err(RejectionCode::FailedPrecondition);
        }
        let mut writes = Vec::new();
        for op in &req.ops {
            writes.push(self.check_op(before, at, op.op.as_ref().expect("an op"))?);
        }
        let documents: Vec<KvEntry> = writes.iter().flatten().cloned().collect();
        self.kv.fits(&before.quotas, &documents)?;
        let ops = req.ops.iter().filter_map(|op| op.op.as_ref());
        Ok(ops.zip(writes).map(|(op, write)| self.do_op(at, op, write)).collect())
    }

    /// What would be written to the documents; or why the transaction is refused.
    fn check_op(&self, before: &View, at: At, op: &transact_op::Op) -> Result<Option<KvEntry>, RejectionCode> {
        use transact_op::Op::{Ack, Delete, Publish, Put};
        match op {
            Put(req) => self.kv.put(at, req, before).map(Some),
            Delete(req) => self.kv.delete(at, req),
            Ack(item) if self.bus.is_held(item) => Ok(None),
            Ack(_) => Err(RejectionCode::Aborted),
            Publish(req) => self.bus.plan(at, req, &before.quotas).map(|_| None),
        }
    }

    fn do_op(&mut self, at: At, op: &transact_op::Op, write: Option<KvEntry>) -> TransactResult {
        use transact_result::Result as Done;
        if let Some(after) = &write {
            self.kv.write(at, after.clone());
        }
        let result = match op {
            transact_op::Op::Put(_) => Done::Put(light(write.expect("a document"))),
            transact_op::Op::Delete(_) => Done::Deleted(write.is_some()),
            transact_op::Op::Ack(item) => Done::Acked(self.bus.ack(at, item)),
            transact_op::Op::Publish(req) => {
                Done::Publish(PublishResponse { published: self.bus.publish(at, req, None), rev: at.rev })
            }
        };
        TransactResult { result: Some(result) }
    }

    /// The rows are what the model has.
    pub(crate) fn check(&self, view: &View) {
        self.bus.check(view);
        self.kv.check(view);
    }
}

fn light(entry: KvEntry) -> KvEntry {
    KvEntry { value: bytes::Bytes::new(), ..entry }
}

/// No key is written twice, no delivery acknowledged twice, and no subscription ensured for two subjects.
fn check_distinct(req: &TransactRequest) -> Result<(), RejectionCode> {
    let (mut keys, mut deliveries) = (BTreeSet::new(), BTreeSet::new());
    let mut ensured: BTreeMap<&str, &str> = BTreeMap::new();
    for op in req.ops.iter().filter_map(|op| op.op.as_ref()) {
        let goes = match op {
            transact_op::Op::Put(req) => keys.insert(req.key.as_str()),
            transact_op::Op::Delete(req) => keys.insert(req.key.as_str()),
            transact_op::Op::Ack(item) => deliveries.insert((item.subscription.as_str(), item.seq)),
            transact_op::Op::Publish(req) => {
                let (name, subject) = (req.ensure_subscription.as_str(), req.messages[0].subject.as_str());
                name.is_empty() || *ensured.entry(name).or_insert(subject) == subject
            }
        };
        if !goes {
            return Err(RejectionCode::InvalidArgument);
        }
    }
    Ok(())
}

/// What is said on the bus of something that happened.
fn subject(effect: &Effect) -> Option<&'static str> {
    match effect {
        Effect::ScheduleFired { .. } => Some("scheduled.tasks"),
        Effect::TaskTimedOut { .. } => Some("system.task.timed_out"),
        Effect::DeadlockResolved { .. } => Some("system.deadlock.resolved"),
        Effect::BreakerChanged { state, .. } => Some(match state {
            BreakerState::Open => "system.breaker.opened",
            BreakerState::HalfOpen => "system.breaker.half_opened",
            BreakerState::Closed | BreakerState::Unspecified => "system.breaker.closed",
        }),
        _ => None,
    }
}
