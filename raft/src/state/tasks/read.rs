//! Reads of single tasks, the counts, and what an agent does. Lists are in `history`.

use std::collections::BTreeSet;

use quorate_proto::v1::{LimitScope, ShareUse, Task, TaskStatsResponse, TaskStatus};

use super::claim::{self, Gate};
use super::{Tasks, attempts, body, load};
use crate::error::Fatal;
use crate::state::Rooms;
use crate::state::agents;
use crate::state::dispatch::Dispatch;
use crate::storage::rows::Rows;

/// How many of an agent's tasks [`Tasks::recent_of_agent`] gives.
const MAX_RECENT: usize = 20;
/// How many of its attempts that looks at: a task tried often appears once.
const MAX_RECENT_EXAMINED: usize = 1_000;

/// Whether the attempt of this token is the task's now.
pub fn holds(rows: &dyn Rows, task_id: &str, token: u64) -> Result<bool, Fatal> {
    Ok(load(rows, task_id)?.is_some_and(|task| task.claim.is_some_and(|claim| claim.token == token)))
}

impl Tasks {
    /// One task, live or ended, with its payload, description and result.
    pub fn get(&self, rows: &dyn Rows, task_id: &str) -> Result<Option<Task>, Fatal> {
        load(rows, task_id)?.map(|task| body::whole(rows, task)).transpose()
    }

    /// One task without those: what its status needs.
    pub fn get_light(&self, rows: &dyn Rows, task_id: &str) -> Result<Option<Task>, Fatal> {
        load(rows, task_id)
    }

    /// A task that was assigned under this token, as its worker gets it; `None` once that is over.
    pub fn assigned(&self, rows: &dyn Rows, task_id: &str, token: u64) -> Result<Option<Task>, Fatal> {
        let held = |task: &Task| task.claim.as_ref().is_some_and(|claim| claim.token == token);
        load(rows, task_id)?.filter(held).map(|task| body::with_body(rows, task)).transpose()
    }

    /// The attempts the agent holds, as task and token, oldest first.
    pub fn held_by_agent(&self, agent_id: &str) -> impl Iterator<Item = (&str, u64)> {
        self.by_agent.get(agent_id).into_iter().flatten().map(|(token, id)| (&**id, *token))
    }

    /// What the task still waits for.
    pub fn open_dependencies(&self, task: &Task) -> Vec<String> {
        self.blocked.get(task.id.as_str()).into_iter().flatten().map(ToString::to_string).collect()
    }

    /// The tasks that wait for this one.
    pub fn dependents(&self, task_id: &str) -> Vec<String> {
        self.waiting.get(task_id).into_iter().flatten().map(ToString::to_string).collect()
    }

    /// How many tasks stand where. `rev` and `completed_unaided` are left for the caller: they are not this room's.
    pub fn stats(&self) -> TaskStatsResponse {
        TaskStatsResponse {
            pending: self.count_of(TaskStatus::Pending),
            ready: self.count_of(TaskStatus::Ready),
            blocked: self.count_of(TaskStatus::Blocked),
            in_progress: self.count_of(TaskStatus::InProgress),
            completed: self.count_of(TaskStatus::Completed),
            failed: self.count_of(TaskStatus::Failed),
            timed_out: self.count_of(TaskStatus::TimedOut),
            cancelled: self.count_of(TaskStatus::Cancelled),
            reported: self.count_of(TaskStatus::Reported),
            skipped: self.count_of(TaskStatus::Skipped),
            completed_unaided: 0,
            queues: self.queues.depths(),
            rev: 0,
        }
    }

    /// Ready tasks that count against a limit.
    pub fn waiting_under(&self, scope: LimitScope, name: &str) -> u64 {
        self.queues.ready_where(|_, needs| match scope {
            LimitScope::Total => true,
            LimitScope::AgentType => needs.agent_type == name,
            LimitScope::Key => needs.keys.iter().any(|key| key == name),
            LimitScope::Unspecified => false,
        })
    }

    /// Every share that has live tasks, running ones, or a weight of its own.
    pub fn share_use(&self, dispatch: &Dispatch) -> Vec<ShareUse> {
        let known = self.queues.shares().chain(self.running.shares());
        let names: BTreeSet<&str> = known.chain(dispatch.weights().map(|(name, _)| name)).collect();
        let of = |name: &str| ShareUse {
            name: name.to_owned(),
            weight: dispatch.weight(name),
            ready: self.queues.ready_where(|_, needs| needs.share == name),
            running: self.running.of_share(name),
        };
        names.into_iter().map(of).collect()
    }

    /// What the agent holds now, oldest claim first, then what it held last: at most 20.
    pub fn recent_of_agent(&self, rows: &dyn Rows, agent_id: &str) -> Result<Vec<String>, Fatal> {
        let held = self.by_agent.get(agent_id).into_iter().flatten();
        let mut recent: Vec<String> = held.take(MAX_RECENT).map(|(_, id)| id.to_string()).collect();
        let prefix = attempts::agent_key(agent_id);
        let mut examined = 0;
        rows.scan(prefix.as_bytes(), &prefix.prefix_end(), &mut |_, value| {
            if recent.len() >= MAX_RECENT || examined >= MAX_RECENT_EXAMINED {
                return Ok(false);
            }
            examined += 1;
            let (task_id, _) = attempts::split_agent_value(value)?;
            if !recent.iter().any(|known| known == task_id) {
                recent.push(task_id.to_owned());
            }
            Ok(true)
        })?;
        Ok(recent)
    }
}

/// Whether a claim by this agent would be granted something at this time. Looks at indexes only.
pub fn claimable(rooms: &Rooms, now_ms: u64, agent_id: &str) -> bool {
    let Some(agent) = rooms.agents.get(agent_id).filter(|agent| agents::is_available(agent)) else {
        return false;
    };
    let gate = Gate { rooms, now_ms };
    gate.admits(agent)
        && rooms.tasks.queues.best_for(agent, claim::order(rooms, now_ms), |needs| gate.opens(needs)).is_some()
}
