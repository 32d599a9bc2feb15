//! Namespaces: a cluster divided, so that nothing in one part sees another.
//!
//! Owns the Namespace rows, and for each namespace its own [`Rooms`] over its own space of rows: the rooms below know
//! nothing of it. `default` always exists. Quotas live here and are handed to the rooms, which keep them.
//!
//! Invariants:
//! - a namespace's number is the rev of its creation, so it is never used again;
//! - a namespace is removed only when nothing live is in it; what it leaves (finished tasks, histories) goes with it, as one
//!   range of keys.
//!
//! Deliberately absent: permissions, and anything that reaches from one namespace into another.

use std::collections::BTreeMap;
use std::sync::Arc;

use quorate_proto::v1::{
    DeleteNamespaceRequest, DeleteNamespaceResponse, Namespace, NamespaceUsage, SetNamespaceRequest,
    SetNamespaceResponse,
};

use crate::error::{Fatal, Outcome, exhausted, invalid, not_found, precondition};
use crate::state::cluster::Cluster;
use crate::state::{Ctx, Out, Rooms};
use crate::storage::keys::{Key, Table};
use crate::storage::rows::{self, Rows};
use crate::storage::space::SpaceRows;

/// The namespace that always exists, and that a call means which names none.
pub const DEFAULT: &str = "default";
/// The most namespaces that may exist at once.
pub const MAX_NAMESPACES: usize = 1_000;
/// How many namespaces one tick looks after. Each may have its full bound of due things.
const TICKED: usize = 32;
const MAX_NAME_BYTES: usize = 64;

/// One namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Its name, shared with whoever is told about it.
    pub name: Arc<str>,
    /// Its row.
    pub row: Namespace,
    /// Its rooms.
    pub rooms: Rooms,
}

impl Part {
    /// Its rows.
    pub fn rows<'r>(&self, rows: &'r dyn Rows) -> SpaceRows<'r> {
        SpaceRows::new(rows, self.row.number)
    }

    fn new(row: Namespace, mut rooms: Rooms) -> Self {
        rooms.quotas = row.quotas.unwrap_or_default();
        Part { name: row.name.as_str().into(), row, rooms }
    }
}

/// Every namespace, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespaces {
    parts: BTreeMap<Arc<str>, Part>,
    /// What is about all of them.
    pub cluster: Cluster,
}

impl Default for Namespaces {
    fn default() -> Self {
        let row = Namespace { name: DEFAULT.to_owned(), ..Namespace::default() };
        let part = Part::new(row, Rooms::default());
        Namespaces { parts: BTreeMap::from([(part.name.clone(), part)]), cluster: Cluster::default() }
    }
}

impl Namespaces {
    /// Builds every index of every namespace from the rows.
    pub fn rebuild(rows: &dyn Rows) -> Result<Self, Fatal> {
        let mut namespaces = Namespaces { cluster: Cluster::rebuild(rows)?, ..Namespaces::default() };
        let mut found = vec![namespaces.default_part().row.clone()];
        rows::scan_prefix::<Namespace>(rows, &Key::table(Table::Namespace), |_, row| {
            found.push(row);
            Ok(true)
        })?;
        for row in found {
            let rooms = Rooms::rebuild(&SpaceRows::new(rows, row.number))?;
            let part = Part::new(row, rooms);
            namespaces.parts.insert(part.name.clone(), part);
        }
        Ok(namespaces)
    }

    /// One namespace; an empty name means `default`.
    pub fn get(&self, name: &str) -> Option<&Part> {
        self.parts.get(named(name))
    }

    /// The same, or the refusal that says that there is none.
    pub fn existing(&self, name: &str) -> Outcome<&Part> {
        self.get(name).ok_or_else(|| unknown(name))
    }

    pub(crate) fn existing_mut(&mut self, name: &str) -> Outcome<&mut Part> {
        self.parts.get_mut(named(name)).ok_or_else(|| unknown(name))
    }

    /// Every namespace, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Part> {
        self.parts.values()
    }

    /// The one that always exists.
    pub fn default_part(&self) -> &Part {
        // It is inserted by every constructor and removed by nothing.
        &self.parts[DEFAULT]
    }

    /// When something is due next in any of them, in milliseconds since 1970.
    pub fn next_due_ms(&self) -> Option<u64> {
        self.parts.values().filter_map(|part| part.rooms.next_due_ms()).min()
    }

    /// The names of those where something is due or work is left to assign: so many as one tick looks after, and others
    /// the next time.
    pub(crate) fn to_tick(&self, ctx: &Ctx) -> Vec<Arc<str>> {
        let due = |part: &&Part| {
            part.rooms.next_due_ms().is_some_and(|at_ms| at_ms <= ctx.now_ms) || part.rooms.has_work_left()
        };
        let mut names: Vec<Arc<str>> = self.parts.values().filter(due).map(|part| part.name.clone()).collect();
        if names.len() > TICKED {
            let first = ctx.rev % names.len() as u64;
            names.rotate_left(usize::try_from(first).unwrap_or_default());
            names.truncate(TICKED);
        }
        names
    }
}

/// What a namespace holds of what a quota bounds.
pub fn usage(rooms: &Rooms) -> NamespaceUsage {
    let (messages, message_bytes) = rooms.bus.totals();
    let (kv_keys, kv_bytes) = rooms.kv.totals();
    NamespaceUsage {
        live_tasks: rooms.tasks.live() as u64,
        messages,
        message_bytes,
        kv_keys,
        kv_bytes,
        agents: rooms.agents.len() as u64,
        sessions: rooms.sessions.len() as u64,
    }
}

/// Creates a namespace, or changes the quotas of one.
pub fn set(
    namespaces: &mut Namespaces,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    req: SetNamespaceRequest,
) -> Outcome<SetNamespaceResponse> {
    check_name(&req.name)?;
    let mut row = match namespaces.parts.get(req.name.as_str()) {
        Some(part) => part.row.clone(),
        None if namespaces.parts.len() >= MAX_NAMESPACES => {
            return Err(exhausted("name", format!("{MAX_NAMESPACES} namespaces exist; delete some first")));
        }
        None => Namespace { name: req.name, number: ctx.rev, created_at_ms: ctx.now_ms, ..Namespace::default() },
    };
    row.quotas = req.quotas;
    out.txn.put(&row_key(&row.name), &row);
    match namespaces.parts.get_mut(row.name.as_str()) {
        Some(part) => {
            part.rooms.quotas = row.quotas.unwrap_or_default();
            part.row = row.clone();
        }
        None => {
            let part = Part::new(row.clone(), Rooms::default());
            namespaces.parts.insert(part.name.clone(), part);
        }
    }
    Ok(SetNamespaceResponse { namespace: Some(row), rev: ctx.rev })
}

/// Removes a namespace that holds nothing live, with all that it leaves.
pub fn delete(
    namespaces: &mut Namespaces,
    out: &mut Out<'_, '_>,
    ctx: &Ctx,
    req: DeleteNamespaceRequest,
) -> Outcome<DeleteNamespaceResponse> {
    let part = namespaces.existing_mut(&req.name)?;
    if &*part.name == DEFAULT {
        return Err(precondition("name", format!("namespace {DEFAULT:?} always exists")));
    }
    if let Some(what) = part.rooms.first_in_use() {
        let message = format!("namespace {:?} is not empty: it has {what}; remove them first", req.name);
        return Err(precondition("name", message));
    }
    let row = part.row.clone();
    out.txn.delete_space(row.number);
    out.txn.delete(&row_key(&row.name));
    namespaces.parts.remove(row.name.as_str());
    Ok(DeleteNamespaceResponse { rev: ctx.rev })
}

/// Checks a name that a caller chose.
pub fn check_name(name: &str) -> Outcome<()> {
    let fits = (1..=MAX_NAME_BYTES).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
    if fits {
        return Ok(());
    }
    Err(invalid("name", format!("name must be 1 to {MAX_NAME_BYTES} letters, digits, _ or -; got {name:?}")))
}

fn named(name: &str) -> &str {
    if name.is_empty() { DEFAULT } else { name }
}

fn unknown(name: &str) -> crate::error::Error {
    not_found("namespace", format!("no namespace {name:?} exists; create it with `quorate namespace set {name}`"))
}

fn row_key(name: &str) -> Key {
    Key::table(Table::Namespace).text(name)
}
