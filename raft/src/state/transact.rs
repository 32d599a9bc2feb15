//! Transactions: several writes as one command. A state, the acknowledgement of its cause and what follows from it are
//! there together or not at all, so no crash comes between them.
//!
//! Owns no rows. Everything is checked against the state as it was before, in the rooms whose writes they are: the
//! conditions, then every write. Only then the writes are carried out, in the order they are given. That no two of them
//! concern the same key or the same delivery is what makes the checks still true when their turn comes.
//!
//! One thing is not exact: messages are checked one by one, so several publishes to one subscription may together go
//! beyond what it takes, by what one transaction holds.

use std::collections::BTreeSet;

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

/// About how many bytes of documents one transaction may write, earlier versions included: a short request may append
/// to many long documents, and a batch of writes is in memory as a whole.
const MAX_WRITTEN_BYTES: u64 = 64 << 20;

/// A write that nothing stands against.
enum Plan {
    Put(Box<Planned>),
    Delete(Option<Box<Planned>>),
    Ack(AckItem),
    Publish(PublishRequest),
}

/// Carries out all the writes, or none.
pub fn run(rooms: &mut Rooms, out: &mut Out<'_, '_>, ctx: &Ctx, req: TransactRequest) -> Outcome<TransactResponse> {
    check_shape(&req)?;
    for (i, condition) in req.conditions.iter().enumerate() {
        kv::check_condition(&*out.txn, condition, &format!("conditions[{i}]."))?;
    }
    let mut plans = Vec::with_capacity(req.ops.len());
    for (i, op) in req.ops.into_iter().enumerate() {
        plans.push(plan(rooms, &*out.txn, ctx, op, &format!("ops[{i}]"))?);
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
    Ok(())
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
            bus::check_publish(rooms, rows, ctx, &publish, &format!("{at}.publish."))?;
            Plan::Publish(publish)
        }
        None => return Err(invalid(at, format!("{at} must be a put, a delete, an ack or a publish"))),
    })
}

/// What all the documents need together: one may take the place that another leaves.
fn check_room(rooms: &Rooms, plans: &[Plan]) -> Outcome<()> {
    let mut growth = Growth::default();
    let mut written = 0;
    for plan in plans {
        if let Plan::Put(planned) | Plan::Delete(Some(planned)) = plan {
            growth.add(planned);
            written += planned.burden();
        }
    }
    if written > MAX_WRITTEN_BYTES {
        let message = format!(
            "ops may write at most {MAX_WRITTEN_BYTES} bytes of documents, what they replace included; these would \
             write {written}"
        );
        return Err(exhausted("ops", message));
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
        Plan::Publish(request) => Done::Publish(bus::do_publish(rooms, out, ctx, request)?),
    };
    Ok(TransactResult { result: Some(result) })
}
