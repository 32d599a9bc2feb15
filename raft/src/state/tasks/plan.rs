//! Plans: what a submission comes to, before anything is written. Everything that may refuse it is here.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use quorate_proto::v1::{
    OnDependencyFailure, RejectionCode, Spawn, SubmitTasksRequest, Task, TaskSpec, TaskStatus, Unroutable,
};

use super::needs::Needs;
use super::{MAX_SETS, aftermath, cycle, idempotency_key, is_ended, load, moves, status_name, unblocks};
use crate::error::{Error, Fatal, Outcome, exhausted, invalid, not_found, precondition, reject};
use crate::state::{Ctx, Rooms, agents, check_id};
use crate::storage::rows::Rows;

/// The most tasks one request may submit.
pub const MAX_SUBMIT: usize = 1_000;
/// The most live tasks that may wait for one task.
pub const MAX_DEPENDENTS: usize = 10_000;
/// How far a task may be from the one that somebody submitted.
pub const MAX_DEPTH: u32 = 16;
/// The most tasks that one task may spawn.
pub const MAX_CHILDREN: u32 = 10_000;
/// The most edges that a spawn adds to those that wait for its parent.
const MAX_JOINED: usize = 10_000;
/// The most tasks that one task may wait for, those that its dependencies spawned included.
pub(super) const MAX_OPEN: usize = 2_000;
/// The most tasks that a search for a cycle looks at.
const MAX_WALKED: usize = 100_000;

/// One specification of the request, looked at.
pub(super) enum Planned {
    /// Its idempotency key is known: this is the earlier task, in the state or earlier in this request.
    Existed { task_id: String },
    /// To be created, and where it begins.
    New { task: Box<Task>, first: First },
}

/// Where a new task begins.
pub(super) enum First {
    Free,
    Blocked(Vec<String>),
    /// It ends before it began: nobody can do it, or a dependency has failed.
    Ended(TaskStatus, String),
}

/// The request, looked at.
pub(super) struct Plan {
    pub(super) tasks: Vec<Planned>,
    /// The spawning task, with its children counted.
    pub(super) parent: Option<Task>,
    /// Tasks that wait for the parent, and shall wait for the new ones too.
    pub(super) joined: BTreeSet<Arc<str>>,
}

/// What is to be done with each specification, or why nothing is. Specifications are checked and complete.
pub(super) fn plan(
    rooms: &Rooms,
    rows: &dyn Rows,
    ctx: &Ctx,
    req: &SubmitTasksRequest,
    mut specs: Vec<TaskSpec>,
) -> Outcome<Plan> {
    let parent = req.spawn.as_ref().map(|spawn| spawning(rows, spawn, &specs)).transpose()?;
    let parent_id = parent.as_ref().map_or("", |parent| parent.id.as_str());
    let known = known_ids(rows, parent_id, &specs)?;
    rename_dependencies(&mut specs, &known);
    let new: Vec<(usize, &TaskSpec)> = (specs.iter().enumerate()).filter(|(i, _)| !known.contains_key(i)).collect();
    let parent = parent.map(|parent| with_children(parent, new.len())).transpose()?;
    let new_ids = check_ids(rows, &new)?;
    let mut firsts = BTreeMap::new();
    for (i, spec) in &new {
        firsts.insert(*i, first_of(rows, &format!("tasks[{i}]"), spec, &new_ids)?);
    }
    let joined = joined(rooms, rows, req, &new)?;
    if !req.admit_cycles {
        check_circles(rooms, &new, &firsts, &joined)?;
    }
    check_dependents(rooms, &new, &firsts)?;
    check_sets(rooms, &new)?;
    check_progress(rooms, &new)?;
    let mut unroutable = unroutable(&rooms.agents, &new);
    let tasks = (specs.into_iter().enumerate())
        .map(|(i, spec)| match known.get(&i) {
            Some(task_id) => Planned::Existed { task_id: task_id.clone() },
            None => Planned::New {
                first: match unroutable.remove(&i) {
                    // It ended: it waits for nothing.
                    Some(why) => First::Ended(TaskStatus::Failed, why),
                    None => firsts.remove(&i).unwrap_or(First::Free),
                },
                task: Box::new(new_task(ctx, i, spec, parent.as_ref())),
            },
        })
        .collect();
    Ok(Plan { tasks, parent, joined })
}

/// The running task that spawns, if the token is its own.
fn spawning(rows: &dyn Rows, spawn: &Spawn, specs: &[TaskSpec]) -> Outcome<Task> {
    check_id("spawn.parent_id", &spawn.parent_id)?;
    let Some(parent) = load(rows, &spawn.parent_id)? else {
        return Err(not_found("spawn.parent_id", format!("no task {:?} exists", spawn.parent_id)));
    };
    if parent.claim.as_ref().is_none_or(|claim| claim.token != spawn.token) {
        let message = format!("fenced: token {} is not that of a running attempt of {:?}", spawn.token, parent.id);
        return Err(reject(RejectionCode::Aborted, "spawn.token", message));
    }
    if parent.cancel.is_some() {
        return Err(precondition("spawn.parent_id", format!("task {:?} is being cancelled", parent.id)));
    }
    if parent.depth >= MAX_DEPTH {
        let message = format!("task {:?} is {MAX_DEPTH} spawns deep; that is the most", parent.id);
        return Err(exhausted("spawn.parent_id", message));
    }
    if let Some(i) = specs.iter().position(|spec| spec.idempotency_key.is_empty()) {
        let field = format!("tasks[{i}].idempotency_key");
        let message = format!("{field} is needed in a spawn: a parent that is tried again must not spawn twice");
        return Err(invalid(&field, message));
    }
    Ok(parent)
}

fn with_children(mut parent: Task, new: usize) -> Outcome<Task> {
    parent.children = parent.children.saturating_add(u32::try_from(new).unwrap_or(u32::MAX));
    if parent.children > MAX_CHILDREN {
        let message = format!("task {:?} would have spawned more than {MAX_CHILDREN} tasks", parent.id);
        return Err(exhausted("tasks", message));
    }
    Ok(parent)
}

/// The specifications whose idempotency key is known, with the task each stands for.
fn known_ids(rows: &dyn Rows, parent_id: &str, specs: &[TaskSpec]) -> Outcome<BTreeMap<usize, String>> {
    let mut known = BTreeMap::new();
    let mut first_here: BTreeMap<&str, &str> = BTreeMap::new();
    for (i, spec) in specs.iter().enumerate() {
        let key = spec.idempotency_key.as_str();
        if key.is_empty() {
            continue;
        }
        if let Some(task_id) = first_here.get(key) {
            known.insert(i, (*task_id).to_owned());
        } else if let Some(value) = rows.get_bytes(idempotency_key(parent_id, key).as_bytes())? {
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
        for list in [&mut spec.dependencies, &mut spec.soft_dependencies, &mut spec.pending_dependencies] {
            for dependency in list.iter_mut() {
                if let Some(task_id) = renamed.get(dependency.as_str()) {
                    dependency.clone_from(task_id);
                }
            }
            list.retain(|dependency| seen.insert(dependency.clone()));
        }
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

/// Where a new task begins, by its dependencies. `at` names it.
fn first_of(rows: &dyn Rows, at: &str, spec: &TaskSpec, new_ids: &BTreeSet<&str>) -> Outcome<First> {
    let mut open = Vec::new();
    for (name, ids) in [
        ("dependencies", &spec.dependencies),
        ("soft_dependencies", &spec.soft_dependencies),
        ("pending_dependencies", &spec.pending_dependencies),
    ] {
        for id in ids {
            if new_ids.contains(id.as_str()) {
                open.push(id.clone());
                continue;
            }
            let Some(task) = load(rows, id)? else {
                if name == "pending_dependencies" {
                    open.push(id.clone());
                    continue;
                }
                let field = format!("{at}.{name}");
                return Err(not_found(&field, format!("{field} names {id:?}, which does not exist")));
            };
            let status = task.status();
            let settled = unblocks(status) || (name == "soft_dependencies" && is_ended(status));
            if settled {
                continue;
            }
            if is_ended(status) {
                let why = aftermath::dependency_failed(id, status);
                match spec.on_dependency_failure() {
                    OnDependencyFailure::Skip => return Ok(First::Ended(TaskStatus::Skipped, why)),
                    OnDependencyFailure::Cascade => return Ok(First::Ended(TaskStatus::Failed, why)),
                    OnDependencyFailure::Unspecified | OnDependencyFailure::Block => {}
                }
            }
            open.push(id.clone());
        }
    }
    Ok(if open.is_empty() { First::Free } else { First::Blocked(open) })
}

/// What a stored task would wait for if it began again now.
pub(super) fn open_of(rows: &dyn Rows, task: &Task) -> Result<Vec<String>, Fatal> {
    let Some(spec) = &task.spec else { return Ok(Vec::new()) };
    let mut open = Vec::new();
    for id in spec.dependencies.iter().chain(&spec.soft_dependencies).chain(&spec.pending_dependencies) {
        let status = load(rows, id)?.map(|task| task.status());
        let soft = spec.soft_dependencies.contains(id);
        let settled = status.is_some_and(|status| unblocks(status) || (soft && is_ended(status)));
        // What is gone was purged, and only what had ended can be; a pending one may not have come yet.
        let yet_to_come = task.attempts == 0 && spec.pending_dependencies.contains(id);
        let purged = status.is_none() && !yet_to_come;
        if !settled && !purged {
            open.push(id.clone());
        }
    }
    Ok(open)
}

/// Those that wait for the spawning task, if they are to wait for what it spawns.
fn joined(
    rooms: &Rooms,
    rows: &dyn Rows,
    req: &SubmitTasksRequest,
    new: &[(usize, &TaskSpec)],
) -> Outcome<BTreeSet<Arc<str>>> {
    let Some(spawn) = req.spawn.as_ref().filter(|spawn| spawn.dependents_wait && !new.is_empty()) else {
        return Ok(BTreeSet::new());
    };
    let waiting = rooms.tasks.waiting.get(spawn.parent_id.as_str());
    let edges = waiting.map_or(0, BTreeSet::len) * new.len();
    if edges > MAX_JOINED {
        let message = format!("spawn.dependents_wait would add {edges} edges; at most {MAX_JOINED} are accepted");
        return Err(exhausted("spawn.dependents_wait", message));
    }
    let joined: BTreeSet<Arc<str>> = waiting.into_iter().flatten().cloned().collect();
    for id in &joined {
        let known = load(rows, id)?
            .and_then(|task| task.spec)
            .map_or(0, |spec| spec.dependencies.len() + spec.soft_dependencies.len() + spec.pending_dependencies.len());
        let open = known + new.len();
        if open > MAX_OPEN {
            let message = format!("task {id:?} would wait for {open} tasks; at most {MAX_OPEN} are accepted");
            return Err(exhausted("spawn.dependents_wait", message));
        }
    }
    Ok(joined)
}

/// A new circle can only close through a new task: inside the request, or, where something that exists waits for one of
/// the new ones, through that.
fn check_circles(
    rooms: &Rooms,
    new: &[(usize, &TaskSpec)],
    firsts: &BTreeMap<usize, First>,
    joined: &BTreeSet<Arc<str>>,
) -> Outcome<()> {
    let mut edges: BTreeMap<&str, &[String]> = BTreeMap::new();
    for (i, spec) in new {
        if let Some(First::Blocked(open)) = firsts.get(i) {
            edges.insert(&spec.task_id, open);
        }
    }
    let inside = |id: &str| edges.get(id).map(|open| open.to_vec()).unwrap_or_default();
    if let Some(path) = cycle::find(edges.keys().copied(), inside) {
        return Err(circle(new, &path));
    }
    let children: Vec<String> = match joined.is_empty() {
        true => Vec::new(),
        false => new.iter().map(|(_, spec)| spec.task_id.clone()).collect(),
    };
    let walked = Cell::new(0_usize);
    let beyond = |id: &str| -> Vec<String> {
        walked.set(walked.get() + 1);
        if walked.get() > MAX_WALKED {
            return Vec::new();
        }
        match edges.get(id) {
            Some(open) => open.to_vec(),
            None => {
                let open = rooms.tasks.blocked.get(id).into_iter().flatten().map(ToString::to_string);
                let also: &[String] = if joined.contains(id) { &children } else { &[] };
                open.chain(also.iter().cloned()).collect()
            }
        }
    };
    // Inside the request there is none: a circle leaves it, through a new task that waits for one that exists already.
    let awaited = !joined.is_empty() || new.iter().any(|(_, spec)| rooms.tasks.waiting.contains_key(&*spec.task_id));
    let fresh: BTreeSet<&str> = new.iter().map(|(_, spec)| spec.task_id.as_str()).collect();
    let leaves = |open: &[String]| open.iter().any(|id| !fresh.contains(id.as_str()));
    for (id, _) in edges.iter().filter(|(_, open)| awaited && leaves(open)) {
        let found = cycle::through(id, beyond);
        if walked.get() > MAX_WALKED {
            return Err(too_far("tasks"));
        }
        if let Some(path) = found {
            return Err(circle(new, &path));
        }
    }
    Ok(())
}

fn circle(new: &[(usize, &TaskSpec)], path: &[String]) -> Error {
    let at = new.iter().find(|(_, spec)| path.contains(&spec.task_id)).map_or(0, |(i, _)| *i);
    let message = format!("dependencies form a cycle: {}", cycle::shown(path));
    precondition(&format!("tasks[{at}].dependencies"), message)
}

fn too_far(field: &str) -> Error {
    exhausted(field, format!("more than {MAX_WALKED} tasks would have to be looked at to rule a cycle out"))
}

fn check_dependents(rooms: &Rooms, new: &[(usize, &TaskSpec)], firsts: &BTreeMap<usize, First>) -> Outcome<()> {
    let mut added: BTreeMap<&str, usize> = BTreeMap::new();
    for (i, _) in new {
        let Some(First::Blocked(open)) = firsts.get(i) else { continue };
        for id in open {
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

/// A claim looks at the head of every line, so there may not be too many.
pub(super) fn check_sets(rooms: &Rooms, new: &[(usize, &TaskSpec)]) -> Outcome<()> {
    let queues = &rooms.tasks.queues;
    let mut added: BTreeMap<&str, BTreeSet<Needs>> = BTreeMap::new();
    for (i, spec) in new {
        let (pin, needs) = (spec.agent_id.as_str(), Needs::of(spec));
        if queues.has_set(pin, &needs) {
            continue;
        }
        let sets = added.entry(pin).or_default();
        sets.insert(needs);
        if queues.sets(pin) + sets.len() > MAX_SETS {
            let field = format!("tasks[{i}]");
            let message = format!(
                "live tasks differ in {MAX_SETS} ways already in what they need (capabilities, type, labels, \
                 concurrency keys, breakers, share)"
            );
            return Err(exhausted(&field, message));
        }
    }
    Ok(())
}

fn check_progress(rooms: &Rooms, new: &[(usize, &TaskSpec)]) -> Outcome<()> {
    match new.iter().find(|(_, spec)| !rooms.progress.has_room(&spec.project, &spec.epic, &spec.feature)) {
        None => Ok(()),
        Some((i, _)) => {
            let field = format!("tasks[{i}].feature");
            Err(exhausted(&field, format!("{field}: there are too many different projects, epics and features")))
        }
    }
}

/// Why a task cannot be done by anyone now, for those that asked to fail then.
fn unroutable(agents: &agents::Agents, new: &[(usize, &TaskSpec)]) -> BTreeMap<usize, String> {
    let mut unroutable = BTreeMap::new();
    for (i, spec) in new.iter().filter(|(_, spec)| spec.unroutable() == Unroutable::Fail) {
        let why = match spec.agent_id.as_str() {
            "" => nobody_fits(agents, spec),
            pin => pinned_lacks(agents, pin, &spec.required_capabilities),
        };
        unroutable.extend(why.map(|why| (*i, why)));
    }
    unroutable
}

/// Names the first capability that nobody offers, or all that is asked for if only the combination is missing.
fn nobody_fits(agents: &agents::Agents, spec: &TaskSpec) -> Option<String> {
    let set = &spec.required_capabilities;
    let needs = Needs::of(spec);
    if agents.offering(set).any(|agent| agents::can_be_asked(agent) && needs.fit(agent)) {
        return None;
    }
    let missing = set.iter().find(|capability| !agents.offers_all(std::slice::from_ref(*capability)));
    Some(match missing {
        Some(capability) => format!("no registered agent offers {capability}"),
        None if needs == (Needs { share: needs.share.clone(), ..Needs::default() }) => {
            "no agent is registered".to_owned()
        }
        None if agents.offers_all(set) => format!("no registered agent is {}", needs.describe()),
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

fn new_task(ctx: &Ctx, position: usize, spec: TaskSpec, parent: Option<&Task>) -> Task {
    Task {
        id: spec.task_id.clone(),
        created_position: u32::try_from(position).unwrap_or(u32::MAX),
        created_at_ms: ctx.now_ms,
        parent_id: parent.map_or(String::new(), |parent| parent.id.clone()),
        depth: parent.map_or(0, |parent| parent.depth + 1),
        spec: Some(spec),
        ..Task::default()
    }
}

/// Refuses what would make a task that exists wait in a circle, or too many wait for one. `open` is what it is to wait
/// for besides what it waits for now.
/// `walked` counts what was looked at, over all tasks of a request.
pub(super) fn check_added(rooms: &Rooms, task: &Task, open: &[String], walked: &Cell<usize>) -> Outcome<()> {
    for id in open {
        if rooms.tasks.waiting.get(id.as_str()).is_some_and(|waiting| waiting.len() >= MAX_DEPENDENTS) {
            return Err(exhausted("dependencies", format!("{MAX_DEPENDENTS} tasks wait for {id:?} already")));
        }
    }
    // No circle passes through a task that nobody waits for, itself included.
    if !open.contains(&task.id) && !rooms.tasks.waiting.contains_key(task.id.as_str()) {
        return Ok(());
    }
    let waits_for = |id: &str| -> Vec<String> {
        walked.set(walked.get() + 1);
        if walked.get() > MAX_WALKED {
            return Vec::new();
        }
        if id == task.id {
            return open.to_vec();
        }
        rooms.tasks.blocked.get(id).into_iter().flatten().map(ToString::to_string).collect()
    };
    let found = cycle::through(&task.id, waits_for);
    if walked.get() > MAX_WALKED {
        return Err(too_far("dependencies"));
    }
    match found {
        Some(path) => {
            Err(precondition("dependencies", format!("dependencies would form a cycle: {}", cycle::shown(&path))))
        }
        None => Ok(()),
    }
}

/// Refuses a change to a task in a status that does not allow it.
pub(super) fn not_started(task: &Task) -> Outcome<()> {
    let status = task.status();
    let blockable = status == TaskStatus::Blocked || moves::may_move(status, TaskStatus::Blocked);
    if blockable && !is_ended(status) {
        return Ok(());
    }
    let message =
        format!("task {:?} is {}; only one that has not started may wait for more", task.id, status_name(status));
    Err(precondition("task_id", message))
}
