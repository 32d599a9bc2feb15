//! The command that a step stands for, as the namespace is now.

use quorate_proto::log::ExpireSession;
use quorate_proto::log::command::Body as B;
use quorate_proto::v1::*;

use super::steps::{Ack, If, KEYS, Op, Put, SUBSCRIPTIONS, Step, Test};
use super::view::View;
use crate::support::{is_ended, session_id, task_id};

/// `None`: what was sent before is sent again.
pub(crate) fn body(view: &View, step: Step) -> Option<B> {
    Some(match step {
        Step::Plain(body) => *body,
        Step::Resend => return None,
        Step::Expire { session, stale } => {
            let session_id = session_id(session);
            let epoch = view.sessions.get(&session_id).map_or(0, |session| session.epoch);
            B::ExpireSession(ExpireSession { session_id, epoch: epoch.saturating_sub(u64::from(stale)) })
        }
        Step::Ack(acks) => {
            let items = acks.into_iter().map(|ack| item(view, ack)).collect();
            B::Ack(AckRequest { items, request: None })
        }
        Step::Redrive { subscription, one } => {
            let (subscription, seqs) = dead(view, subscription, one);
            B::RedriveDead(RedriveDeadRequest { subscription, seqs, request: None })
        }
        Step::Purge { subscription, one } => {
            let (subscription, seqs) = dead(view, subscription, one);
            B::PurgeDead(PurgeDeadRequest { subscription, seqs, request: None })
        }
        Step::Acquire { request, bound } => {
            let (task_id, task_token) = attempt(view, bound);
            B::AcquireLock(AcquireLockRequest { task_id, task_token, ..*request })
        }
        Step::Extend { pick, stale, ttl_ms } => {
            let (name, token, ..) = grant(view, pick, stale);
            B::ExtendLock(ExtendLockRequest { name, token, ttl_ms, request: None })
        }
        Step::Release { pick, stale, by_name } => release(view, pick, stale, by_name),
        Step::AcquireScope { request, bound } => {
            let (task_id, task_token) = attempt(view, bound);
            B::AcquireScope(AcquireScopeRequest { task_id, task_token, ..*request })
        }
        Step::ReleaseScope { pick, stale, force } => release_scope(view, pick, stale, force),
        Step::Put(write) => B::KvPut(put(view, write)),
        Step::Delete(key, condition) => B::KvDelete(delete(view, key, condition)),
        Step::Rollback { key, back, condition } => {
            let version = view.documents.get(KEYS[key]).map_or(1, |entry| entry.version).saturating_sub(back);
            let if_mod_rev = mod_rev(view, KEYS[key], condition);
            B::KvRollback(KvRollbackRequest {
                key: KEYS[key].to_owned(),
                version,
                if_mod_rev,
                ..KvRollbackRequest::default()
            })
        }
        Step::Transact { conditions, ops } => B::Transact(TransactRequest {
            conditions: conditions.into_iter().map(|(key, test)| condition(view, KEYS[key], test)).collect(),
            ops: ops.into_iter().map(|op| TransactOp { op: Some(self::op(view, op)) }).collect(),
            request: None,
        }),
        Step::Submit { timeout_ms } => {
            B::SubmitTasks(SubmitTasksRequest { tasks: vec![spec(view, timeout_ms)], ..SubmitTasksRequest::default() })
        }
        Step::Finish { pick, kind, stale } => {
            let (task_id, token) = attempt(view, Some(pick));
            let token = token.saturating_sub(u64::from(stale));
            B::FinishTask(FinishTaskRequest { task_id, token, kind: kind as i32, ..FinishTaskRequest::default() })
        }
        Step::Cancel(pick) => {
            let live: Vec<&Task> = view.tasks.values().filter(|task| !is_ended(task.status())).collect();
            let task_id = choose(&live, pick).map_or_else(|| task_id(0), |task| task.id.clone());
            B::CancelTask(CancelTaskRequest { task_id, now: true, ..CancelTaskRequest::default() })
        }
    })
}

/// A grant that is held, or the token before it; what nobody holds has no fence.
pub(crate) fn fence(view: &View, pick: u8, stale: bool) -> Option<Fence> {
    let locks = view
        .locks
        .values()
        .flat_map(|lock| lock.holders.iter().map(move |holder| (FenceKind::Lock, lock.name.as_str(), holder.token)));
    let scopes = view.scopes.values().map(|lease| (FenceKind::Scope, lease.id.as_str(), lease.token));
    let attempts = view
        .tasks
        .values()
        .filter_map(|task| task.claim.as_ref().map(|claim| (FenceKind::Task, task.id.as_str(), claim.token)));
    let held: Vec<(FenceKind, &str, u64)> = locks.chain(scopes).chain(attempts).collect();
    let (kind, name, token) = *choose(&held, pick)?;
    Some(Fence { kind: kind as i32, name: name.to_owned(), token: token - u64::from(stale) })
}

fn choose<T>(of: &[T], pick: u8) -> Option<&T> {
    if of.is_empty() { None } else { of.get(usize::from(pick) % of.len()) }
}

/// A delivery that is under way; if none is, one that never was.
fn item(view: &View, ack: Ack) -> AckItem {
    let under_way: Vec<&PendingDelivery> = view.pending.values().filter(|row| !row.consumer_id.is_empty()).collect();
    let (subscription, seq, token) = match choose(&under_way, ack.pick) {
        Some(row) => (row.subscription.clone(), row.seq, row.token - u64::from(ack.stale)),
        None => (SUBSCRIPTIONS[0].to_owned(), 1, 1),
    };
    AckItem { subscription, seq, token, kind: ack.kind as i32, delay_ms: ack.delay_ms, reason: String::new() }
}

fn dead(view: &View, subscription: usize, one: Option<u8>) -> (String, Vec<u64>) {
    let name = SUBSCRIPTIONS[subscription];
    let of_it: Vec<u64> = view.dead.keys().filter(|(of, _)| of == name).map(|(_, seq)| *seq).collect();
    let seqs = one.and_then(|pick| choose(&of_it, pick).copied()).into_iter().collect();
    (name.to_owned(), seqs)
}

/// Task and token of an attempt that runs; none if none does, or none is wanted.
fn attempt(view: &View, pick: Option<u8>) -> (String, u64) {
    let running = view.tasks.values().filter_map(|task| Some((task.id.clone(), task.claim.as_ref()?.token)));
    let running: Vec<(String, u64)> = running.collect();
    pick.and_then(|pick| choose(&running, pick).cloned()).unwrap_or_default()
}

/// Lock, token, session and owner of a grant.
fn grant(view: &View, pick: u8, stale: bool) -> (String, u64, String, String) {
    let held = view.locks.values().flat_map(|lock| lock.holders.iter().map(move |holder| (lock.name.clone(), holder)));
    let held: Vec<(String, &LockHolder)> = held.collect();
    match choose(&held, pick) {
        Some((name, holder)) => {
            let token = holder.token - u64::from(stale);
            (name.clone(), token, holder.session_id.clone(), holder.owner.clone())
        }
        None => ("l0".to_owned(), 1, session_id(0), String::new()),
    }
}

/// Under its token; or by its owner, who may be in line.
fn release(view: &View, pick: u8, stale: bool, by_name: bool) -> B {
    let waiting =
        view.locks.values().flat_map(|lock| lock.waiters.iter().map(move |waiter| (lock.name.clone(), waiter)));
    let waiting: Vec<(String, &LockWaiter)> = waiting.collect();
    let request = match choose(&waiting, pick) {
        Some((name, waiter)) if by_name => ReleaseLockRequest {
            name: name.clone(),
            session_id: waiter.session_id.clone(),
            owner: waiter.owner.clone(),
            ..ReleaseLockRequest::default()
        },
        _ => {
            let (name, token, session_id, owner) = grant(view, pick, stale);
            ReleaseLockRequest { name, token, session_id, owner, request: None }
        }
    };
    B::ReleaseLock(request)
}

fn release_scope(view: &View, pick: u8, stale: bool, force: bool) -> B {
    let held: Vec<&ScopeLease> = view.scopes.values().collect();
    let (id, token) = choose(&held, pick).map_or(("e0".to_owned(), 1), |lease| (lease.id.clone(), lease.token));
    if force {
        return B::ForceReleaseScope(ForceReleaseScopeRequest { id, ..ForceReleaseScopeRequest::default() });
    }
    B::ReleaseScope(ReleaseScopeRequest { id, token: token - u64::from(stale), request: None })
}

fn mod_rev(view: &View, key: &str, condition: If) -> u64 {
    let current = view.documents.get(key).map_or(0, |entry| entry.mod_rev);
    match condition {
        If::Any => 0,
        If::Current => current,
        If::Stale => current + 1,
    }
}

fn put(view: &View, Put { request, condition }: Put) -> KvPutRequest {
    let if_mod_rev = mod_rev(view, &request.key, condition);
    KvPutRequest { if_mod_rev, ..*request }
}

fn delete(view: &View, key: usize, condition: If) -> KvDeleteRequest {
    let if_mod_rev = mod_rev(view, KEYS[key], condition);
    KvDeleteRequest { key: KEYS[key].to_owned(), if_mod_rev, ..KvDeleteRequest::default() }
}

fn condition(view: &View, key: &str, test: Test) -> KvCondition {
    let entry = view.documents.get(key);
    let (mod_rev, version) = entry.map_or((0, 0), |entry| (entry.mod_rev, entry.version));
    let test = match test {
        Test::Exists(wrong) => kv_condition::Test::Exists(entry.is_some() != wrong),
        Test::ModRev(wrong) => kv_condition::Test::ModRev(mod_rev + u64::from(wrong)),
        Test::Version(wrong) => kv_condition::Test::Version(version + u64::from(wrong)),
        Test::Value => kv_condition::Test::Value(entry.map(|entry| entry.value.clone()).unwrap_or_default()),
    };
    KvCondition { key: key.to_owned(), test: Some(test) }
}

fn op(view: &View, op: Op) -> transact_op::Op {
    match op {
        Op::Put(write) => transact_op::Op::Put(put(view, write)),
        Op::Delete(key, condition) => transact_op::Op::Delete(delete(view, key, condition)),
        Op::Ack(ack) => transact_op::Op::Ack(item(view, ack)),
        Op::Publish(request) => transact_op::Op::Publish(*request),
    }
}

/// Under an id that no task has.
fn spec(view: &View, attempt_timeout_ms: u64) -> TaskSpec {
    let free = (0..=u8::MAX).map(task_id).find(|id| !view.tasks.contains_key(id));
    let retry = RetryPolicy { max_retries: 1, base_ms: 500, cap_ms: 2_000, ..RetryPolicy::default() };
    TaskSpec { task_id: free.expect("a free id"), attempt_timeout_ms, retry: Some(retry), ..TaskSpec::default() }
}
