//! Transactions: several writes as one command. A state, the acknowledgement of its cause and what follows from it are
//! there together or not at all, so no crash comes between them.
//!
//! Owns no rows. Everything is checked against the state as it was before, in the rooms whose writes they are: the
//! conditions, then every write. Only then the writes are carried out, in the order they are given. That no two of them
//! concern the same key or the same delivery is what makes the checks still true when their turn comes.
//!
//! What the writes cost together is added up as they are checked, and the first that is too much ends it.
//!
//! One thing is not exact: messages are checked one by one, so several publishes to one subscription may together go
//! beyond what it takes, by what one transaction holds.

use std::collections::{BTreeMap, BTreeSet};

use quorate_proto::v1::{
    AckItem, PublishRequest, TransactOp, TransactRequest, TransactResponse, TransactResult, transact_op,
    transact_result,
};

use crate::error::{Fatal, Outcome, exhausted, invalid};
use crate::state::kv::{Growth, Planned};
use crate::state::{Ctx, Out, Rooms, bus, kv};
use crate::storage::rows::Rows;

/// The most writes.
pub const MAX_OPS: usize = 128;
/// The most conditions.
pub const MAX_CONDITIONS: usize = 128;
/// The most subscriptions that its publishes may ensure.
pub const MAX_ENSURED: usize = 16;

/// About how many bytes of documents one transaction may move: what it writes, what that replaces, and what patches
/// take apart. A short request may append to many long documents, and a batch of writes is in memory as a whole.
const MAX_MOVED_BYTES: u64 = 64 << 20;

/// A write that nothing stands against.
enum Plan {
    Put(Box<Planned>),
    Delete(Option<Box<Planned>>),
    Ack(AckItem),
    /// And how many copies it makes, as the subscriptions were before.
    Publish(PublishRequest, usize),
}

/// Carries out all the writes, or none.
pub fn run(rooms: &mut Rooms, out: &mut Out<'_, '_>, ctx: &Ctx, req: TransactRequest) -> Outcome<TransactResponse> {
    check_shape(&req)?;
    for (i, condition) in req.conditions.iter().enumerate() {
        kv::check_condition(&*out.txn, condition, &format!("conditions[{i}]."))?;
    }
    let mut plans = Vec::with_capacity(req.ops.len());
    let mut load = Load::default();
    for (i, op) in req.ops.into_iter().enumerate() {
        let at = format!("ops[{i}]");
        let planned = plan(rooms, &*out.txn, ctx, op, &at)?;
        load.add(rooms, &planned, &at)?;
        plans.push(planned);
    }
    check_room(rooms, &plans)?;
    let results = plans.into_iter().map(|plan| carry_out(rooms, out, ctx, plan)).collect::<Result<Vec<_>, Fatal>>()?;
    Ok(TransactResponse { results, rev: ctx.rev })
}

/// What can be said without the state.
fn check_shape(req: &TransactRequest) -> Outcome<()> {
    if req.conditions.len() > MAX_CONDITIONS {
        let message = format!("conditions must be at most {MAX_CONDITIONS}; got {}", req.conditions.len());
        return Err(invalid("conditions", message));
    }
    if !(1..=MAX_OPS).contains(&req.ops.len()) {
        return Err(invalid("ops", format!("ops must be 1 to {MAX_OPS}; got {}", req.ops.len())));
    }
    let mut keys = BTreeSet::new();
    let mut deliveries = BTreeSet::new();
    for (i, op) in req.ops.iter().enumerate() {
        use transact_op::Op;
        let at = format!("ops[{i}]");
        let (kind, request) = match &op.op {
            Some(Op::Put(put)) => ("put", put.request.as_ref()),
            Some(Op::Delete(delete)) => ("delete", delete.request.as_ref()),
            Some(Op::Ack(_)) => ("ack", None),
            Some(Op::Publish(publish)) => ("publish", publish.request.as_ref()),
            None => return Err(invalid(&at, format!("{at} must be a put, a delete, an ack or a publish"))),
        };
        if request.is_some() {
            let field = format!("{at}.{kind}.request");
            return Err(invalid(&field, format!("{field} must be empty; the transaction has one")));
        }
        let again = match &op.op {
            Some(Op::Put(put)) => !keys.insert(&put.key),
            Some(Op::Delete(delete)) => !keys.insert(&delete.key),
            Some(Op::Ack(ack)) => !deliveries.insert((&ack.subscription, ack.seq)),
            Some(Op::Publish(_)) | None => false,
        };
        if again {
            let field = format!("{at}.{kind}");
            return Err(invalid(&field, format!("{field} is about what an earlier op writes; each may occur once")));
        }
    }
    check_ensured(&req.ops)
}

/// A subscription that is created takes the subject of who ensures it. Each publish sees it as still to be created, so
/// all of them must mean the same subject: what the others say would go nowhere.
fn check_ensured(ops: &[TransactOp]) -> Outcome<()> {
    let mut subjects: BTreeMap<&str, &str> = BTreeMap::new();
    for (i, op) in ops.iter().enumerate() {
        let Some(transact_op::Op::Publish(publish)) = &op.op else { continue };
        let Some((name, subject)) = ensured(publish) else { continue };
        let field = format!("ops[{i}].publish.ensure_subscription");
        let known = *subjects.entry(name).or_insert(subject);
        if known != subject {
            let message = format!("{field} is {name:?}, which an earlier op ensures for {known:?}; got {subject:?}");
            return Err(invalid(&field, message));
        }
        if subjects.len() > MAX_ENSURED {
            let message = format!("{field} must be one of at most {MAX_ENSURED} in all ops; {name:?} is one more");
            return Err(invalid(&field, message));
        }
    }
    Ok(())
}

/// The subscription that a publish wants to be there, and the subject that it is for.
fn ensured(publish: &PublishRequest) -> Option<(&str, &str)> {
    let name = Some(publish.ensure_subscription.as_str()).filter(|name| !name.is_empty())?;
    Some((name, publish.messages.first()?.subject.as_str()))
}

fn plan(rooms: &Rooms, rows: &dyn Rows, ctx: &Ctx, op: TransactOp, at: &str) -> Outcome<Plan> {
    use transact_op::Op;
    Ok(match op.op {
        Some(Op::Put(put)) => Plan::Put(Box::new(kv::check_put(rooms, rows, ctx, &put, &format!("{at}.put."))?)),
        Some(Op::Delete(delete)) => {
            Plan::Delete(kv::check_delete(rows, ctx, &delete, &format!("{at}.delete."))?.map(Box::new))
        }
        Some(Op::Ack(ack)) => {
            bus::check_ack(rooms, &ack, &format!("{at}.ack."))?;
            Plan::Ack(ack)
        }
        Some(Op::Publish(publish)) => {
            let copies = bus::check_publish(rooms, rows, ctx, &publish, &format!("{at}.publish."))?;
            Plan::Publish(publish, copies)
        }
        None => return Err(invalid(at, format!("{at} must be a put, a delete, an ack or a publish"))),
    })
}

/// What the writes planned so far cost.
#[derive(Default)]
struct Load {
    moved: u64,
    copies: usize,
    /// The subscriptions that they create, each with its subject.
    created: BTreeMap<String, String>,
}

impl Load {
    /// One more; refused if it is too much.
    fn add(&mut self, rooms: &Rooms, plan: &Plan, at: &str) -> Outcome<()> {
        match plan {
            Plan::Put(planned) | Plan::Delete(Some(planned)) => {
                self.moved = self.moved.saturating_add(planned.burden());
                if self.moved > MAX_MOVED_BYTES {
                    let message = format!(
                        "ops may move at most {MAX_MOVED_BYTES} bytes of documents, what is replaced and what patches \
                         take apart included; with {at} it is more"
                    );
                    return Err(exhausted("ops", message));
                }
            }
            Plan::Publish(publish, copies) => {
                let copies = copies.saturating_add(self.copies_to_created(publish));
                self.copies = self.copies.saturating_add(copies);
                if self.copies > bus::MAX_PLACED {
                    let message = format!(
                        "ops may make at most {} copies of messages, one for each subscription that a message goes \
                         to; with {at} it is more",
                        bus::MAX_PLACED
                    );
                    return Err(exhausted("ops", message));
                }
                if let Some((name, subject)) = ensured(publish)
                    && rooms.bus.subscription(name).is_none()
                {
                    self.created.insert(name.to_owned(), subject.to_owned());
                }
            }
            Plan::Delete(None) | Plan::Ack(_) => {}
        }
        Ok(())
    }

    /// The check saw the subscriptions as they were before. Those that earlier ops create get their copies too; the one
    /// that this op ensures was counted.
    fn copies_to_created(&self, publish: &PublishRequest) -> usize {
        let own = publish.ensure_subscription.as_str();
        let others = self.created.iter().filter(|(name, _)| name.as_str() != own);
        let subjects: Vec<&str> = others.map(|(_, subject)| subject.as_str()).collect();
        let takes = |subject: &str| subjects.iter().filter(|taken| **taken == subject).count();
        publish.messages.iter().map(|message| takes(&message.subject)).sum()
    }
}

/// What all the documents need together: one may take the place that another leaves.
fn check_room(rooms: &Rooms, plans: &[Plan]) -> Outcome<()> {
    let mut growth = Growth::default();
    for plan in plans {
        if let Plan::Put(planned) | Plan::Delete(Some(planned)) = plan {
            growth.add(planned);
        }
    }
    growth.check(rooms, "ops")
}

fn carry_out(rooms: &mut Rooms, out: &mut Out<'_, '_>, ctx: &Ctx, plan: Plan) -> Result<TransactResult, Fatal> {
    use transact_result::Result as Done;
    let result = match plan {
        Plan::Put(planned) => Done::Put(kv::do_put(rooms, out, ctx, *planned)?),
        Plan::Delete(planned) => Done::Deleted(kv::do_delete(rooms, out, ctx, planned.map(|planned| *planned))?),
        Plan::Ack(item) => {
            bus::do_ack(rooms, out, ctx, item)?;
            Done::Acked(true)
        }
        Plan::Publish(request, _) => Done::Publish(bus::do_publish(rooms, out, ctx, request)?),
    };
    Ok(TransactResult { result: Some(result) })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use quorate_proto::v1::KvPutRequest;

    use super::*;
    use crate::error::Error;
    use crate::storage::rows::MemoryRows;

    #[test]
    fn what_all_writes_move_is_bounded_as_they_are_checked() {
        let (rooms, ctx) = (Rooms::default(), Ctx { now_ms: 1, rev: 1, entropy: 1 });
        let value = Bytes::from(vec![b'x'; 1 << 20]);
        let req = KvPutRequest { key: "k".to_owned(), value, ..KvPutRequest::default() };
        let put = Plan::Put(Box::new(kv::check_put(&rooms, &MemoryRows::default(), &ctx, &req, "").unwrap()));
        let mut load = Load::default();
        for i in 0..63 {
            assert!(load.add(&rooms, &put, &format!("ops[{i}]")).is_ok(), "{i}");
        }
        match load.add(&rooms, &put, "ops[63]") {
            Err(Error::Rejected(rejection)) => {
                assert_eq!(rejection.field, "ops");
                assert!(rejection.message.ends_with("with ops[63] it is more"), "{}", rejection.message);
            }
            other => panic!("64 MiB and what is around them: {other:?}"),
        }
    }
}
