//! Bodies: the heavy parts of a task, in rows of their own.
//!
//! Owns the TaskBody and TaskResult rows. A task's row is written with every move; its payload, description and result
//! are written once. Inside `tasks` a task therefore comes without them, and gets them back where it leaves the room.

use bytes::Bytes;
use prost::Message;
use quorate_proto::v1::{Task, TaskBody};

use crate::error::Fatal;
use crate::state::Out;
use crate::storage::keys::{Key, Table};
use crate::storage::rows::{self, Rows};

fn body_key(task_id: &str) -> Key {
    Key::table(Table::TaskBody).text(task_id)
}

fn result_key(task_id: &str) -> Key {
    Key::table(Table::TaskResult).text(task_id)
}

/// Takes payload and description out of a new task, into their row.
pub(super) fn put_aside(out: &mut Out<'_, '_>, task: &mut Task) {
    let Some(spec) = &mut task.spec else { return };
    let body =
        TaskBody { payload: std::mem::take(&mut spec.payload), description: std::mem::take(&mut spec.description) };
    if !body.payload.is_empty() || !body.description.is_empty() {
        out.txn.put(&body_key(&task.id), &body);
    }
}

/// Keeps a result; an empty one has no row, and takes that of an earlier attempt away.
pub(super) fn put_result(out: &mut Out<'_, '_>, task: &Task, result: Bytes) -> Result<(), Fatal> {
    let key = result_key(&task.id);
    if !result.is_empty() {
        out.txn.put_bytes(&key, result);
    } else if task.attempts > 1 && out.txn.get_bytes(key.as_bytes())?.is_some() {
        out.txn.delete(&key);
    }
    Ok(())
}

/// How many bytes the task takes with its payload and description.
pub(super) fn weigh(rows: &dyn Rows, task: &Task) -> Result<usize, Fatal> {
    let body = rows.get_bytes(body_key(&task.id).as_bytes())?.map_or(0, |body| body.len());
    Ok(task.encoded_len() + body)
}

/// The task with its payload and description.
pub(super) fn with_body(rows: &dyn Rows, mut task: Task) -> Result<Task, Fatal> {
    if let Some(body) = rows::get::<TaskBody>(rows, &body_key(&task.id))?
        && let Some(spec) = &mut task.spec
    {
        spec.payload = body.payload;
        spec.description = body.description;
    }
    Ok(task)
}

/// The task with everything.
pub(super) fn whole(rows: &dyn Rows, task: Task) -> Result<Task, Fatal> {
    let mut task = with_body(rows, task)?;
    task.result = rows.get_bytes(result_key(&task.id).as_bytes())?.unwrap_or_default();
    Ok(task)
}

/// Both rows go with the task.
pub(super) fn delete(out: &mut Out<'_, '_>, task_id: &str) {
    out.txn.delete(&body_key(task_id));
    out.txn.delete(&result_key(task_id));
}
