//! Submission: all tasks of a request are created, or none.
//!
//! Three passes: what the request alone shows to be wrong; what the state says to it (the plan); then the writes.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use quorate_proto::v1::{
    RejectionCode, SubmitTasksRequest, SubmitTasksResponse, SubmittedTask, Task, TaskSpec, TaskStatus, Unroutable,
};

use super::moves::{self, Next};
use super::{MAX_SETS, check, corrupt, cycle, idempotency_key, load};
use crate::error::{Fatal, Outcome, exhausted, invalid, not_found, precondition, reject};
use crate::state::{Ctx, Out, Rooms, agents};
use crate::storage::rows::Rows;

/// The most tasks one request may submit.
pub const MAX_SUBMIT: usize = 1_000;
/// The most live tasks that may wait for one task: its completion frees them all in one command.
pub const MAX_DEPENDENTS: usize = 10_000;

/// One specification of the request, looked at.
enum Planned {
    /// Its idempotency key is known: this is the earlier task, in the state or earlier in this request.
    Existed { task_id: String },
    /// To be created.
    New { task: Box<Task>, open: Vec<String>, unroutable: Option<String> },
}

/// Creates tasks.
pub fn submit(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    req: SubmitTasksRequest,
) -> Outcome<SubmitTasksResponse> {
    if !(1..=MAX_SUBMIT).contains(&req.tasks.len()) {
        return Err(invalid("tasks", format!("tasks must be 1 to {MAX_SUBMIT}; got {}", req.tasks.len())));
    }
    let specs = (req.tasks.into_iter().enumerate())
        .map(|(i, spec)| check::spec(&format!("tasks[{i}]"), spec))
        .collect::<Outcome<Vec<TaskSpec>>>()?;
    let plan = plan(rooms, &*out.txn, specs)?;
    for planned in &plan {
        if let Planned::New { task, open, unroutable } = planned {
            create(rooms, out, ctx, task, open, unroutable.as_deref())?;
        }
    }
    let tasks = plan.into_iter().map(|planned| submitted(&*out.txn, planned)).collect::<Result<_, Fatal>>()?;
    Ok(SubmitTasksResponse { tasks, rev: ctx.rev })
}

/// What is to be done with each specification, or why nothing is.
fn plan(rooms: &Rooms, rows: &dyn Rows, mut specs: Vec<TaskSpec>) -> Outcome<Vec<Planned>> {
    let known = known_ids(rows, &specs)?;
    rename_dependencies(&mut specs, &known);
    let new: Vec<(usize, &TaskSpec)> = (specs.iter().enumerate()).filter(|(i, _)| !known.contains_key(i)).collect();
    let new_ids = check_ids(rows, &new)?;
    let mut open = open_dependencies(rows, &new, &new_ids)?;
    check_circles(&new)?;
    check_dependents(rooms, &new, &open)?;
    check_sets(rooms, &new)?;
    let mut unroutable = unroutable(&rooms.agents, &new);
    Ok((specs.into_iter().enumerate())
        .map(|(i, spec)| match known.get(&i) {
            Some(task_id) => Planned::Existed { task_id: task_id.clone() },
            None => Planned::New {
                task: Box::new(new_task(i, spec)),
                open: open.remove(&i).unwrap_or_default(),
                unroutable: unroutable.remove(&i),
            },
        })
        .collect())
}

/// The specifications whose idempotency key is known, with the task each stands for.
fn known_ids(rows: &dyn Rows, specs: &[TaskSpec]) -> Outcome<BTreeMap<usize, String>> {
    let mut known = BTreeMap::new();
    let mut first_here: BTreeMap<&str, &str> = BTreeMap::new();
    for (i, spec) in specs.iter().enumerate() {
        let key = spec.idempotency_key.as_str();
        if key.is_empty() {
            continue;
        }
        if let Some(task_id) = first_here.get(key) {
            known.insert(i, (*task_id).to_owned());
        } else if let Some(value) = rows.get_bytes(idempotency_key(key).as_bytes())? {
            let task_id = String::from_utf8(value.to_vec())
                .map_err(|_| Fatal::Corrupt(format!("the row of idempotency key {key:?} is not a task id")))?;
            known.insert(i, task_id);
        } else {
            first_here.insert(key, &spec.task_id);
        }
    }
    Ok(known)
}

/// Within a request, whoever waits for a specification that stands for an earlier task waits for that task.
fn rename_dependencies(specs: &mut [TaskSpec], known: &BTreeMap<usize, String>) {
    let renamed: BTreeMap<String, &String> =
        known.iter().filter_map(|(i, task_id)| Some((specs.get(*i)?.task_id.clone(), task_id))).collect();
    if renamed.is_empty() {
        return;
    }
    for spec in specs {
        let mut seen = BTreeSet::new();
        for dependency in &mut spec.dependencies {
            if let Some(task_id) = renamed.get(dependency.as_str()) {
                dependency.clone_from(task_id);
            }
        }
        spec.dependencies.retain(|dependency| seen.insert(dependency.clone()));
    }
}

/// Each new id is new, and given once.
fn check_ids<'a>(rows: &dyn Rows, new: &[(usize, &'a TaskSpec)]) -> Outcome<BTreeSet<&'a str>> {
    let mut ids = BTreeSet::new();
    for (i, spec) in new {
        let exists = if ids.insert(spec.task_id.as_str()) {
            load(rows, &spec.task_id)?.is_some().then_some("exists already")
        } else {
            Some("is twice in the request")
        };
        if let Some(why) = exists {
            let field = format!("tasks[{i}].task_id");
            return Err(reject(RejectionCode::AlreadyExists, &field, format!("task {:?} {why}", spec.task_id)));
        }
    }
    Ok(ids)
}

/// The dependencies not completed yet, by position in the request.
fn open_dependencies(
    rows: &dyn Rows,
    new: &[(usize, &TaskSpec)],
    new_ids: &BTreeSet<&str>,
) -> Outcome<BTreeMap<usize, Vec<String>>> {
    // Many tasks of one request tend to wait for the same few.
    let mut completed: BTreeMap<&str, bool> = BTreeMap::new();
    let mut open = BTreeMap::new();
    for (i, spec) in new {
        let mut own = Vec::new();
        for id in &spec.dependencies {
            let done = if new_ids.contains(id.as_str()) {
                false
            } else if let Some(done) = completed.get(id.as_str()) {
                *done
            } else {
                let Some(task) = load(rows, id)? else {
                    let field = format!("tasks[{i}].dependencies");
                    return Err(not_found(&field, format!("{field} names {id:?}, which does not exist")));
                };
                let done = task.status() == TaskStatus::Completed;
                completed.insert(id, done);
                done
            };
            if !done {
                own.push(id.clone());
            }
        }
        if !own.is_empty() {
            open.insert(*i, own);
        }
    }
    Ok(open)
}

fn check_circles(new: &[(usize, &TaskSpec)]) -> Outcome<()> {
    let edges = new.iter().map(|(_, spec)| (spec.task_id.as_str(), spec.dependencies.as_slice())).collect();
    match cycle::find(&edges) {
        None => Ok(()),
        Some(path) => {
            let at = new.iter().find(|(_, spec)| Some(&spec.task_id) == path.first()).map_or(0, |(i, _)| *i);
            let message = format!("dependencies form a cycle: {}", path.join(" -> "));
            Err(precondition(&format!("tasks[{at}].dependencies"), message))
        }
    }
}

fn check_dependents(rooms: &Rooms, new: &[(usize, &TaskSpec)], open: &BTreeMap<usize, Vec<String>>) -> Outcome<()> {
    let mut added: BTreeMap<&str, usize> = BTreeMap::new();
    for (i, _) in new {
        for id in open.get(i).into_iter().flatten() {
            let count = added.entry(id).or_default();
            *count += 1;
            let waiting = rooms.tasks.waiting.get(id.as_str()).map_or(0, BTreeSet::len);
            if waiting + *count > MAX_DEPENDENTS {
                let field = format!("tasks[{i}].dependencies");
                return Err(exhausted(&field, format!("{MAX_DEPENDENTS} tasks wait for {id:?} already")));
            }
        }
    }
    Ok(())
}

/// A claim looks at every requirement set, so there may not be too many.
fn check_sets(rooms: &Rooms, new: &[(usize, &TaskSpec)]) -> Outcome<()> {
    let queues = &rooms.tasks.queues;
    let mut added: BTreeMap<&str, BTreeSet<&[String]>> = BTreeMap::new();
    for (i, spec) in new {
        let (pin, set) = (spec.agent_id.as_str(), spec.required_capabilities.as_slice());
        if queues.has_set(pin, set) {
            continue;
        }
        let sets = added.entry(pin).or_default();
        sets.insert(set);
        if queues.sets(pin) + sets.len() > MAX_SETS {
            let field = format!("tasks[{i}].required_capabilities");
            let message = format!("live tasks have {MAX_SETS} different sets of required capabilities already");
            return Err(exhausted(&field, message));
        }
    }
    Ok(())
}

/// Why a task cannot be done by anyone now, for those that asked to fail then.
fn unroutable(agents: &agents::Agents, new: &[(usize, &TaskSpec)]) -> BTreeMap<usize, String> {
    let mut answers: BTreeMap<(&str, &[String]), Option<String>> = BTreeMap::new();
    let mut unroutable = BTreeMap::new();
    for (i, spec) in new {
        if spec.unroutable() != Unroutable::Fail {
            continue;
        }
        let (pin, set) = (spec.agent_id.as_str(), spec.required_capabilities.as_slice());
        let answer = answers.entry((pin, set)).or_insert_with(|| match pin {
            "" => nobody_offers(agents, set),
            pin => pinned_lacks(agents, pin, set),
        });
        if let Some(why) = answer {
            unroutable.insert(*i, why.clone());
        }
    }
    unroutable
}

/// Names the first capability that nobody offers, or all of them if only the combination is missing.
fn nobody_offers(agents: &agents::Agents, set: &[String]) -> Option<String> {
    if agents.offers_all(set) {
        return None;
    }
    let missing = set.iter().find(|capability| !agents.offers_all(std::slice::from_ref(*capability)));
    Some(match missing {
        Some(capability) => format!("no registered agent offers {capability}"),
        None if set.is_empty() => "no agent is registered".to_owned(),
        None => format!("no registered agent offers {}", set.join(" + ")),
    })
}

fn pinned_lacks(agents: &agents::Agents, agent_id: &str, set: &[String]) -> Option<String> {
    match agents.get(agent_id).filter(|agent| agents::can_be_asked(agent)) {
        None => Some(format!("agent {agent_id} is not registered")),
        Some(agent) => set
            .iter()
            .find(|capability| !agents::offers(agent, std::slice::from_ref(*capability)))
            .map(|capability| format!("agent {agent_id} does not offer {capability}")),
    }
}

fn new_task(position: usize, spec: TaskSpec) -> Task {
    Task {
        id: spec.task_id.clone(),
        created_position: u32::try_from(position).unwrap_or(u32::MAX),
        spec: Some(spec),
        ..Task::default()
    }
}

fn create(
    rooms: &mut Rooms,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    task: &Task,
    open: &[String],
    unroutable: Option<&str>,
) -> Result<(), Fatal> {
    let mut task = task.clone();
    let key = task.spec.as_ref().map_or("", |spec| spec.idempotency_key.as_str());
    if !key.is_empty() {
        out.txn.put_bytes(&idempotency_key(key), Bytes::copy_from_slice(task.id.as_bytes()));
    }
    if let Some(why) = unroutable {
        task.set_status(TaskStatus::Failed);
        task.error = why.to_owned();
        // It ended: it waits for nothing.
        return moves::create(&mut rooms.tasks, out, ctx, task, &[]);
    }
    if !open.is_empty() {
        task.set_status(TaskStatus::Blocked);
        return moves::create(&mut rooms.tasks, out, ctx, task, open);
    }
    match moves::first_place(&task, ctx) {
        Next::Pending { ready_at_ms } => {
            task.set_status(TaskStatus::Pending);
            task.ready_at_ms = ready_at_ms;
        }
        _ => task.set_status(TaskStatus::Ready),
    }
    moves::create(&mut rooms.tasks, out, ctx, task, &[])
}

/// The answer for one specification, once every task of the request is stored.
fn submitted(rows: &dyn Rows, planned: Planned) -> Result<SubmittedTask, Fatal> {
    let (task_id, existed) = match planned {
        Planned::Existed { task_id } => (task_id, true),
        Planned::New { task, .. } => (task.id, false),
    };
    let task = load(rows, &task_id)?.ok_or_else(|| corrupt(&task_id, "was submitted but has no row"))?;
    Ok(SubmittedTask { task_id, status: task.status, existed })
}
