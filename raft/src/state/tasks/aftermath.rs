//! Aftermath: what follows for others when a task ends or is cancelled.
//!
//! Dependents hear that a dependency ended, children that their parent was cancelled. Each of those may end in turn, so
//! this is a queue and not a recursion; one command works through [`PER_COMMAND`] steps of it, and whatever is left is in
//! Aftermath rows and due at once. However large a graph is, no command is.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use quorate_proto::v1::{OnDependencyFailure, RunningAttempt, TaskStatus};

use super::moves::{self, Next};
use super::{cancel, child_key, dependent_key, is_ended, load, load_live, unblocks};
use crate::error::Fatal;
use crate::state::{Ctx, Out, Rooms};
use crate::storage::keys::{Key, Table};
use crate::storage::rows::Rows;

/// How many dependents and children are seen to at once. A command that reports on it does so twice: for its answer, and
/// at its end.
pub const PER_COMMAND: usize = 1_000;
/// How many running attempts a cancel names.
const NAMED: usize = 100;

/// Who is to hear of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// Those that wait for a task that ended.
    Dependents = 1,
    /// Those that a cancelled task spawned: they have their grace.
    Children = 2,
    /// The same, without a grace.
    ChildrenNow = 3,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    kind: Kind,
    task_id: Arc<str>,
    /// The last one that has heard.
    cursor: String,
}

/// What is still to be told, oldest first: by the rev and position of its cause.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Aftermath {
    entries: BTreeMap<(u64, u64), Entry>,
}

/// What a command did of it.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// Dependents that became READY.
    pub(super) ready: u32,
    /// Tasks that a cancel reached.
    pub(super) cancelled: u32,
    /// The first attempts that were running then.
    pub(super) running: Vec<RunningAttempt>,
}

impl Told {
    pub(super) fn cancelled(&mut self, running: Option<RunningAttempt>) {
        self.cancelled += 1;
        if self.running.len() < NAMED {
            self.running.extend(running);
        }
    }
}

impl Aftermath {
    pub(super) fn rebuild(rows: &dyn Rows) -> Result<Self, Fatal> {
        let mut entries = BTreeMap::new();
        let prefix = Key::table(Table::Aftermath);
        rows.scan(prefix.as_bytes(), &prefix.prefix_end(), &mut |key, value| {
            let (at, entry) = split(key, value)?;
            entries.insert(at, entry);
            Ok(true)
        })?;
        Ok(Aftermath { entries })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Notes that others are to hear. The caller's command ends with [`tell`], which writes down what is left.
    pub(super) fn add(&mut self, ctx: &Ctx, kind: Kind, task_id: &str) {
        let position = self.entries.range((ctx.rev, 0)..).next_back().map_or(0, |((_, position), _)| position + 1);
        let entry = Entry { kind, task_id: Arc::from(task_id), cursor: String::new() };
        self.entries.insert((ctx.rev, position), entry);
    }
}

/// Works on what is to be told, and writes down how far it came.
pub(super) fn tell(rooms: &mut Rooms, out: &mut Out<'_, '_>, ctx: &Ctx) -> Result<Told, Fatal> {
    let mut told = Told::default();
    let mut left = PER_COMMAND;
    while left > 0 {
        let Some((at, entry)) = rooms.tasks.aftermath.entries.first_key_value() else { break };
        let (at, mut entry) = (*at, entry.clone());
        let before = left;
        let finished = match entry.kind {
            Kind::Dependents => tell_dependents(rooms, out, ctx, &mut entry, &mut left, &mut told)?,
            Kind::Children | Kind::ChildrenNow => tell_children(rooms, out, ctx, &mut entry, &mut left, &mut told)?,
        };
        // An entry costs a step even if nobody listens: a long queue of them is work too.
        left = left.min(before - 1);
        if finished {
            rooms.tasks.aftermath.entries.remove(&at);
            if out.txn.get_bytes(key(at).as_bytes())?.is_some() {
                out.txn.delete(&key(at));
            }
        } else {
            rooms.tasks.aftermath.entries.insert(at, entry);
        }
    }
    write_down(rooms, out, ctx)?;
    Ok(told)
}

/// Entries of this very command have no row yet, and the first one may have come further.
fn write_down(rooms: &Rooms, out: &mut Out<'_, '_>, ctx: &Ctx) -> Result<(), Fatal> {
    let entries = &rooms.tasks.aftermath.entries;
    let first = entries.first_key_value().filter(|(at, _)| at.0 != ctx.rev);
    for (at, entry) in first.into_iter().chain(entries.range((ctx.rev, 0)..)) {
        let value = encode(entry);
        if out.txn.get_bytes(key(*at).as_bytes())?.as_ref() != Some(&value) {
            out.txn.put_bytes(&key(*at), value);
        }
    }
    Ok(())
}

fn tell_dependents(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    entry: &mut Entry,
    left: &mut usize,
    told: &mut Told,
) -> Result<bool, Fatal> {
    let status = match load(&*out.txn, &entry.task_id)? {
        Some(task) if is_ended(task.status()) => task.status(),
        // Redriven or purged meanwhile.
        _ => return Ok(true),
    };
    let after = (Bound::Excluded(entry.cursor.as_str()), Bound::Unbounded);
    let waiting = rooms.tasks.waiting.get(&entry.task_id);
    let dependents: Vec<Arc<str>> =
        waiting.into_iter().flat_map(|ids| ids.range::<str, _>(after)).take(*left).cloned().collect();
    let finished = dependents.len() < *left;
    *left -= dependents.len();
    for id in dependents {
        told.ready += u32::from(dependency_ended(rooms, out, ctx, &id, &entry.task_id, status)?);
        entry.cursor = id.to_string();
    }
    Ok(finished)
}

/// Whether the dependent became READY by it.
fn dependency_ended(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    task_id: &str,
    dependency: &str,
    status: TaskStatus,
) -> Result<bool, Fatal> {
    if !unblocks(status) {
        let mut task = load_live(&*out.txn, task_id)?;
        let spec = task.spec.as_ref();
        let is_soft = spec.is_some_and(|spec| spec.soft_dependencies.iter().any(|id| id == dependency));
        if !is_soft {
            let end = match spec.map_or(OnDependencyFailure::Block, |spec| spec.on_dependency_failure()) {
                OnDependencyFailure::Unspecified | OnDependencyFailure::Block => return Ok(false),
                OnDependencyFailure::Skip => TaskStatus::Skipped,
                OnDependencyFailure::Cascade => TaskStatus::Failed,
            };
            task.error = dependency_failed(dependency, status);
            moves::move_to(rooms, out, ctx, &mut task, Next::Ended(end))?;
            return Ok(false);
        }
    }
    out.txn.delete(&dependent_key(dependency, task_id));
    if !rooms.tasks.waits_no_longer(dependency, task_id) {
        return Ok(false);
    }
    let mut task = load_live(&*out.txn, task_id)?;
    let next = moves::first_place(&task, ctx);
    let ready = matches!(next, Next::Ready);
    moves::move_to(rooms, out, ctx, &mut task, next)?;
    Ok(ready)
}

/// Why a task ended that never ran.
pub(super) fn dependency_failed(dependency: &str, status: TaskStatus) -> String {
    format!("dependency {dependency} ended {}", super::status_name(status))
}

fn tell_children(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    entry: &mut Entry,
    left: &mut usize,
    told: &mut Told,
) -> Result<bool, Fatal> {
    let prefix = Key::table(Table::Child).text(&entry.task_id);
    let mut from = prefix.as_bytes().to_vec();
    if !entry.cursor.is_empty() {
        from = child_key(&entry.task_id, &entry.cursor).as_bytes().to_vec();
        from.push(0);
    }
    let mut children = Vec::new();
    let most = *left;
    out.txn.scan(&from, &prefix.prefix_end(), &mut |key, _| {
        let (_, child) = super::split_pair(key)?;
        children.push(child.to_owned());
        Ok(children.len() < most)
    })?;
    let finished = children.len() < most;
    *left -= children.len();
    let now = entry.kind == Kind::ChildrenNow;
    for child in children {
        match load(&*out.txn, &child)? {
            // What it spawned may still be at work.
            Some(task) if is_ended(task.status()) && task.children > 0 => {
                rooms.tasks.aftermath.add(ctx, entry.kind, &child);
            }
            Some(mut task) if !is_ended(task.status()) => {
                let reason = format!("its parent {} was cancelled", entry.task_id);
                let running = cancel::cancel_one(rooms, out, ctx, &mut task, &reason, now, true)?;
                told.cancelled(running);
            }
            _ => {}
        }
        entry.cursor = child;
    }
    Ok(finished)
}

fn key((rev, position): (u64, u64)) -> Key {
    Key::table(Table::Aftermath).number(rev).number(position)
}

/// Kind, task id, NUL, cursor.
fn encode(entry: &Entry) -> Bytes {
    let mut value = BytesMut::with_capacity(2 + entry.task_id.len() + entry.cursor.len());
    value.put_u8(entry.kind as u8);
    value.put_slice(entry.task_id.as_bytes());
    value.put_u8(0);
    value.put_slice(entry.cursor.as_bytes());
    value.freeze()
}

fn split(key: &[u8], value: &[u8]) -> Result<((u64, u64), Entry), Fatal> {
    let corrupt = || Fatal::Corrupt(format!("not an aftermath: {key:?} = {value:?}"));
    let numbers = key.get(1..).and_then(|rest| <[u8; 16]>::try_from(rest).ok()).ok_or_else(corrupt)?;
    let at = u128::from_be_bytes(numbers);
    let at = (u64::try_from(at >> 64).map_err(|_| corrupt())?, at as u64);
    let (kind, text) = value.split_first().ok_or_else(corrupt)?;
    let kind = match kind {
        1 => Kind::Dependents,
        2 => Kind::Children,
        3 => Kind::ChildrenNow,
        _ => return Err(corrupt()),
    };
    let text = std::str::from_utf8(text).map_err(|_| corrupt())?;
    let (task_id, cursor) = text.split_once('\0').ok_or_else(corrupt)?;
    Ok((at, Entry { kind, task_id: Arc::from(task_id), cursor: cursor.to_owned() }))
}
