//! Dispatch: what decides whose turn it is, besides the tasks themselves.
//!
//! Owns the rows of limits, share weights, the policy and the routing table, all of them in memory. Few change them and
//! every claim reads them, so reading allocates nothing. `tasks` asks; nothing here looks at a task.
//!
//! ```text
//! limits    how many may run at once: in total, by agent type, by concurrency key
//! shares    how many turns of a priority band a share gets, against the others
//! policy    strict or weighted bands, ageing
//! routes    which agent type a text is for
//! ```
//!
//! Invariant: a weight of 1 is not stored, and neither is a table that nobody set.
//! Deliberately absent: counts of what runs and waits. They are the tasks' own.

mod default_routes;
mod limits;
mod routes;
mod shares;

use std::collections::BTreeMap;

use quorate_proto::v1::{BandOrder, DispatchPolicy, Limit, LimitScope, RoutingTable, ShareWeight};

pub use self::limits::{MAX_LIMITS, MAX_RUNNING, check_limit, delete_limit, set_limit};
pub use self::routes::{MAX_EPICS, MAX_PATTERN_BYTES, MAX_RULES, Routed, Routes, set_routes};
pub use self::shares::{DEFAULT_WEIGHT, MAX_AGEING_MS, MAX_WEIGHT, MAX_WEIGHTS, MIN_AGEING_MS, set_policy, set_share};
use crate::error::Fatal;
use crate::storage::keys::{Key, Table};
use crate::storage::rows::{self, Rows};

/// Limits, weights, policy and routes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dispatch {
    /// By scope, then by name.
    limits: BTreeMap<i32, BTreeMap<String, Limit>>,
    /// Only those that are not the default.
    weights: BTreeMap<String, u32>,
    policy: DispatchPolicy,
    routes: Routes,
}

impl Default for Dispatch {
    /// No limits, equal shares, strict bands without ageing, the table that ships.
    fn default() -> Self {
        Dispatch {
            limits: BTreeMap::new(),
            weights: BTreeMap::new(),
            policy: DispatchPolicy { order: BandOrder::Strict as i32, ageing_ms: 0 },
            routes: Routes::default(),
        }
    }
}

impl Dispatch {
    /// Builds everything from the rows.
    pub fn rebuild(rows: &dyn Rows) -> Result<Self, Fatal> {
        let mut dispatch = Dispatch::default();
        rows::scan_prefix::<Limit>(rows, &Key::table(Table::Limit), |_, limit| {
            dispatch.put_limit(limit);
            Ok(true)
        })?;
        rows::scan_prefix::<ShareWeight>(rows, &Key::table(Table::ShareWeight), |_, share| {
            dispatch.weights.insert(share.name, share.weight);
            Ok(true)
        })?;
        if let Some(policy) = rows::get::<DispatchPolicy>(rows, &Key::table(Table::DispatchPolicy))? {
            dispatch.policy = policy;
        }
        if let Some(table) = rows::get::<RoutingTable>(rows, &Key::table(Table::Routes))? {
            dispatch.routes = Routes::stored(table)?;
        }
        Ok(dispatch)
    }

    /// How many may run at once under this key; `None`: as many as there are.
    pub fn limit(&self, scope: LimitScope, name: &str) -> Option<u32> {
        self.limits.get(&(scope as i32))?.get(name).map(|limit| limit.max)
    }

    /// Whether anything is limited at all.
    pub fn has_limits(&self) -> bool {
        !self.limits.is_empty()
    }

    /// Every limit, by scope, then by name.
    pub fn limits(&self) -> impl Iterator<Item = &Limit> {
        self.limits.values().flat_map(|of_scope| of_scope.values())
    }

    /// A share's weight against the others.
    pub fn weight(&self, share: &str) -> u32 {
        self.weights.get(share).copied().unwrap_or(DEFAULT_WEIGHT)
    }

    /// The weights that are not the default, by name of the share.
    pub fn weights(&self) -> impl Iterator<Item = (&str, u32)> {
        self.weights.iter().map(|(share, weight)| (share.as_str(), *weight))
    }

    /// How priority bands are served. Its order is always STRICT or WEIGHTED.
    pub fn policy(&self) -> &DispatchPolicy {
        &self.policy
    }

    /// Which agent type a text is for.
    pub fn routes(&self) -> &Routes {
        &self.routes
    }

    fn put_limit(&mut self, limit: Limit) {
        self.limits.entry(limit.scope).or_default().insert(limit.name.clone(), limit);
    }

    /// Whether there was one.
    fn remove_limit(&mut self, scope: LimitScope, name: &str) -> bool {
        let Some(of_scope) = self.limits.get_mut(&(scope as i32)) else {
            return false;
        };
        let removed = of_scope.remove(name).is_some();
        if of_scope.is_empty() {
            self.limits.remove(&(scope as i32));
        }
        removed
    }
}
