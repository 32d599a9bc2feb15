//! Running: how much is in progress under each limit. Counted where a claim begins and ends, so never off by one.

use std::collections::BTreeMap;

use quorate_proto::v1::{LimitScope, Task};

/// In-progress tasks by what they count against.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Running {
    total: u32,
    by_type: BTreeMap<String, u32>,
    by_key: BTreeMap<String, u32>,
    by_share: BTreeMap<String, u32>,
}

impl Running {
    pub(super) fn add(&mut self, task: &Task) {
        self.total += 1;
        if let Some(claim) = &task.claim {
            *self.by_type.entry(claim.agent_type.clone()).or_default() += 1;
        }
        if let Some(spec) = &task.spec {
            *self.by_share.entry(spec.share.clone()).or_default() += 1;
            for key in &spec.concurrency_keys {
                *self.by_key.entry(key.clone()).or_default() += 1;
            }
        }
    }

    pub(super) fn remove(&mut self, task: &Task) {
        self.total = self.total.saturating_sub(1);
        if let Some(claim) = &task.claim {
            take_one(&mut self.by_type, &claim.agent_type);
        }
        if let Some(spec) = &task.spec {
            take_one(&mut self.by_share, &spec.share);
            for key in &spec.concurrency_keys {
                take_one(&mut self.by_key, key);
            }
        }
    }

    pub(super) fn under(&self, scope: LimitScope, name: &str) -> u32 {
        match scope {
            LimitScope::Total => self.total,
            LimitScope::AgentType => self.by_type.get(name).copied().unwrap_or_default(),
            LimitScope::Key => self.by_key.get(name).copied().unwrap_or_default(),
            LimitScope::Unspecified => 0,
        }
    }

    pub(super) fn of_share(&self, share: &str) -> u32 {
        self.by_share.get(share).copied().unwrap_or_default()
    }

    pub(super) fn shares(&self) -> impl Iterator<Item = &str> {
        self.by_share.keys().map(String::as_str)
    }
}

fn take_one(counts: &mut BTreeMap<String, u32>, name: &str) {
    if let Some(count) = counts.get_mut(name) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            counts.remove(name);
        }
    }
}
