//! Reviews: a task that is reported done waits for others to accept it. An agent's review is a task of its own, which the
//! author may never take; a person decides by name.

use std::collections::BTreeSet;

use quorate_proto::v1::{
    DecideTaskRequest, DecideTaskResponse, FinishTaskRequest, Review, Task, TaskSpec, TaskStatus, Verdict,
};

use super::moves::{self, Next};
use super::{aftermath, attempts, cancel, evidence, live_key, load, status_name, submit};
use crate::error::{Fatal, Outcome, invalid, not_found, precondition};
use crate::state::{Ctx, Out, Rooms, check_id};
use crate::storage::rows::Rows;

/// Ids of review tasks begin so, and no others.
pub(super) const REVIEW_PREFIX: &str = "review/";

const MAX_COMMENT_BYTES: usize = 16 * 1024;

/// A person's word on a reported task.
pub fn decide(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    req: DecideTaskRequest,
) -> Outcome<DecideTaskResponse> {
    check_id("reviewer", &req.reviewer)?;
    let accepted = accepts("verdict", req.verdict())?;
    check_comment(&req.comment)?;
    let Some(mut task) = load(&*out.txn, &req.task_id)? else {
        return Err(not_found("task_id", format!("no task {:?} exists", req.task_id)));
    };
    if task.status() != TaskStatus::Reported {
        let message = format!("task {:?} is {} and not REPORTED", task.id, status_name(task.status()));
        return Err(precondition("task_id", message));
    }
    if req.reviewer == task.author_agent_id {
        return Err(precondition("reviewer", format!("{:?} did the work and may not accept it", req.reviewer)));
    }
    if task.reviews.iter().any(|review| review.person && review.reviewer == req.reviewer) {
        return Err(precondition("reviewer", format!("{:?} has accepted it already", req.reviewer)));
    }
    if accepted && evidence::reviews_missing(&task).1 == 0 {
        let message = format!("task {:?} needs no person's acceptance (any more); rework is still possible", task.id);
        return Err(precondition("verdict", message));
    }
    task.touched = true;
    let review = Review {
        reviewer: req.reviewer,
        person: true,
        accepted,
        comment: req.comment,
        at_ms: ctx.now_ms,
        review_task_id: String::new(),
    };
    take(rooms, out, ctx, &mut task, review)?;
    let told = aftermath::tell(rooms, out, ctx)?;
    Ok(DecideTaskResponse { task: Some(task), unblocked: told.ready, rev: ctx.rev })
}

/// Whether the finish of a review task says what a review must say.
pub(super) fn check_verdict(task: &Task, req: &FinishTaskRequest) -> Outcome<()> {
    check_comment(&req.comment)?;
    if task.review_of.is_empty() {
        return Ok(());
    }
    accepts("verdict", req.verdict()).map(|_| ())
}

/// The review task was completed: the reviewed one hears of it, if it still waits for that.
pub(super) fn review_completed(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    review_task: &Task,
    reviewer: &str,
    req: &FinishTaskRequest,
) -> Result<(), Fatal> {
    let Some(mut task) = load(&*out.txn, &review_task.review_of)? else { return Ok(()) };
    // A review of an earlier attempt says nothing of this one, and nobody accepts their own work.
    let current = task.status() == TaskStatus::Reported && review_ids(&task).contains(&review_task.id);
    if !current || reviewer == task.author_agent_id {
        return Ok(());
    }
    let review = Review {
        reviewer: reviewer.to_owned(),
        person: false,
        accepted: req.verdict() == Verdict::Accept,
        comment: req.comment.clone(),
        at_ms: ctx.now_ms,
        review_task_id: review_task.id.clone(),
    };
    take(rooms, out, ctx, &mut task, review)
}

/// Asks the next agent to review a reported task, if one more must accept: one after the other, so that each can be kept
/// from those that have spoken.
pub(super) fn begin(rooms: &mut Rooms, out: &mut Out<'_, '_>, ctx: &Ctx, task: &mut Task) -> Result<(), Fatal> {
    let (missing, _) = evidence::reviews_missing(task);
    if missing == 0 {
        return Ok(());
    }
    let n = evidence_reviews(task) - missing + 1;
    let mut review = new_review(&*out.txn, ctx, task, n)?;
    submit::attach_child(out, task, &mut review);
    let first = moves::first_place(&review, ctx);
    moves::create(rooms, out, ctx, &mut review, first)?;
    out.txn.put(&live_key(&task.id), task);
    Ok(())
}

/// Notes the review, and moves the task if that settles it.
fn take(rooms: &mut Rooms, out: &mut Out<'_, '_>, ctx: &Ctx, task: &mut Task, review: Review) -> Result<(), Fatal> {
    let (accepted, comment, by_agent) = (review.accepted, review.comment.clone(), !review.person);
    task.reviews.push(review);
    if accepted {
        return match evidence::reviews_missing(task) {
            (0, 0) => {
                drop_open_reviews(rooms, out, ctx, task)?;
                moves::move_to(rooms, out, ctx, task, Next::Ended(TaskStatus::Completed))
            }
            _ => {
                out.txn.put(&live_key(&task.id), task);
                if by_agent { begin(rooms, out, ctx, task) } else { Ok(()) }
            }
        };
    }
    drop_open_reviews(rooms, out, ctx, task)?;
    if !evidence::rework_allowed(task) {
        task.error = attempts::clip(&format!("sent back {} times; last: {comment}", task.reworks + 1));
        return moves::move_to(rooms, out, ctx, task, Next::Ended(TaskStatus::Failed));
    }
    task.reworks += 1;
    task.feedback = comment;
    task.reviews.clear();
    task.artifacts.clear();
    task.checks.clear();
    moves::move_to(rooms, out, ctx, task, Next::Ready)
}

/// What other reviewers still do is for nothing: they are stopped.
pub(super) fn drop_open_reviews(rooms: &mut Rooms, out: &mut Out<'_, '_>, ctx: &Ctx, task: &Task) -> Result<(), Fatal> {
    for id in review_ids(task) {
        if let Some(mut review) = load(&*out.txn, &id)?.filter(|review| !super::is_ended(review.status())) {
            cancel::cancel_one(rooms, out, ctx, &mut review, "the review was settled without it", true, true)?;
        }
    }
    Ok(())
}

fn evidence_reviews(task: &Task) -> u32 {
    task.spec.as_ref().and_then(|spec| spec.evidence.as_ref()).map_or(0, |policy| policy.agent_reviews)
}

/// The review tasks of the attempt under review.
pub(super) fn review_ids(task: &Task) -> Vec<String> {
    (1..=evidence_reviews(task)).map(|n| review_id(task, n)).collect()
}

/// Unique by the task's birth and the attempt under review. The prefix is kept from callers.
fn review_id(task: &Task, n: u32) -> String {
    format!("{REVIEW_PREFIX}{}/{}/{n}", task.created_rev, task.reported_attempt) + &position_suffix(task)
}

/// Tasks of one submission share their rev.
fn position_suffix(task: &Task) -> String {
    if task.created_position == 0 { String::new() } else { format!("@{}", task.created_position) }
}

fn new_review(rows: &dyn Rows, ctx: &Ctx, task: &Task, n: u32) -> Result<Task, Fatal> {
    let id = review_id(task, n);
    if load(rows, &id)?.is_some() {
        // No caller may choose an id of this form.
        return Err(Fatal::Corrupt(format!("the id {id:?} of a review task is taken, at rev {}", ctx.rev)));
    }
    let spec = task.spec.clone().unwrap_or_default();
    let spoken = task.reviews.iter().filter(|review| !review.person).map(|review| review.reviewer.clone());
    let excluded: BTreeSet<String> = spoken.chain([task.author_agent_id.clone()]).collect();
    let policy = spec.evidence.unwrap_or_default();
    Ok(Task {
        id: id.clone(),
        created_position: n,
        review_of: task.id.clone(),
        spec: Some(TaskSpec {
            task_id: id,
            title: super::check::clip_title(&format!("Review: {}", spec.title)),
            required_capabilities: policy.review_capabilities,
            excluded_agents: excluded.into_iter().collect(),
            priority: spec.priority,
            share: spec.share,
            cost: 1,
            retry: spec.retry,
            attempt_timeout_ms: spec.attempt_timeout_ms,
            ..TaskSpec::default()
        }),
        ..Task::default()
    })
}

fn accepts(field: &str, verdict: Verdict) -> Outcome<bool> {
    match verdict {
        Verdict::Accept => Ok(true),
        Verdict::Rework => Ok(false),
        Verdict::Unspecified => Err(invalid(field, format!("{field} must be ACCEPT or REWORK"))),
    }
}

fn check_comment(comment: &str) -> Outcome<()> {
    if comment.len() > MAX_COMMENT_BYTES {
        let message = format!("comment must be at most {MAX_COMMENT_BYTES} bytes; got {}", comment.len());
        return Err(invalid("comment", message));
    }
    Ok(())
}
