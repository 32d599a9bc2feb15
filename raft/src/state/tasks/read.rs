//! Reads of single tasks, the counts, and what an agent does. Lists are in `history`.

use quorate_proto::v1::{Task, TaskStatsResponse, TaskStatus};

use super::{Tasks, attempts, load};
use crate::error::Fatal;
use crate::state::agents::{self, Agents};
use crate::storage::rows::Rows;

/// How many of an agent's tasks [`Tasks::recent_of_agent`] gives.
const MAX_RECENT: usize = 20;
/// How many of its attempts that looks at: a task tried often appears once.
const MAX_RECENT_EXAMINED: usize = 1_000;

impl Tasks {
    /// One task, live or ended.
    pub fn get(&self, rows: &dyn Rows, task_id: &str) -> Result<Option<Task>, Fatal> {
        load(rows, task_id)
    }

    /// Of the task's dependencies, those not completed yet.
    pub fn open_dependencies(&self, task: &Task) -> Vec<String> {
        let dependencies = task.spec.iter().flat_map(|spec| &spec.dependencies);
        dependencies
            .filter(|id| self.waiting.get(id.as_str()).is_some_and(|ids| ids.contains(task.id.as_str())))
            .cloned()
            .collect()
    }

    /// The tasks that wait for this one.
    pub fn dependents(&self, task_id: &str) -> Vec<String> {
        self.waiting.get(task_id).into_iter().flatten().map(ToString::to_string).collect()
    }

    /// How many tasks stand where. `rev` is left for the caller, who knows what it read.
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
            queues: self.queues.depths(),
            rev: 0,
        }
    }

    /// Whether a claim by this agent would be granted something now. Looks at indexes only.
    pub fn claimable(&self, agents: &Agents, agent_id: &str) -> bool {
        agents.get(agent_id).is_some_and(|agent| agents::is_available(agent) && self.queues.any(agent))
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
